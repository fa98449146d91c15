"""An LLM folder -> causal LLM and tokenizer, loaded strictly and without messages from transformers.

Quantized loading (bitsandbytes) and placement on several devices (accelerate) are handled here too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from vidqa.common.extras import require
from vidqa.encoders.onnx_errors import VERIFY_HINT
from vidqa.errors import BundleError
from vidqa.model.bundle.bundle import ADAPTER_FOLDER
from vidqa.model.llama.loader import FastTokenizer, load_llama, valid_end_tokens
from vidqa.model.lora import apply_adapter

Quantization = Literal["8bit", "4bit"]


def load_llm(
    folder: Path,
    dtype: torch.dtype | None,
    *,
    quantize: Quantization | None = None,
    device_map: torch.device | Literal["map"] | None = None,
    inference_only: bool = False,
    device: torch.device | None = None,
) -> tuple[Any, Any]:
    """Load a causal LLM and its tokenizer.

    Nothing is downloaded, no code from the folder runs, and only safetensors are read.

    Args:
        folder: LLM folder with config, safetensors and tokenizer.
        dtype: dtype of the weights; None is the saved one. For a quantized LLM it is the compute dtype.
        quantize: quantize the weights of linear layers to 8 or 4 bits while loading, with bitsandbytes.
        device_map: a device, or `map` to distribute the layers over all devices by free memory; None is the CPU.
        inference_only: the model will be neither trained nor saved. A standard Llama is then loaded without
            transformers.
        device: device of a Llama loaded without transformers; None is the CPU. The caller moves any other model.

    Returns:
        The LLM and its tokenizer.

    Raises:
        BundleError: a file cannot be read, or a weight is missing, unknown or of another shape; all are named.
        UsageError: a package that `quantize` or `device_map` needs is not installed.
    """
    if inference_only and quantize is None and device_map is None:
        llama = load_llama(folder, dtype, device)
        if llama is not None:
            return llama, FastTokenizer.read(folder) or load_tokenizer(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = _loading_arguments(dtype, quantize, device_map)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # Mismatched shapes are reported below, all together.
    strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            llm, info = AutoModelForCausalLM.from_pretrained(folder, **how, **strict, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except torch.OutOfMemoryError:  # nothing is wrong with the folder
        raise
    except Exception as e:  # the parsers of transformers may raise anything on a malformed file
        raise _unusable(folder, "cannot be loaded", e) from e
    problems = [f"{key}: missing" for key in sorted(info["missing_keys"])]
    problems += [f"{key}: unknown key" for key in sorted(info["unexpected_keys"])]
    problems += [f"{key}: shape {list(a)}, must be {list(b)}" for key, a, b in sorted(info["mismatched_keys"])]
    ends = getattr(getattr(llm, "generation_config", None), "eos_token_id", None)
    if not valid_end_tokens(ends):
        problems.append(f"eos_token_id: must be a token id or a list of them, got {ends!r:.80}")
    if problems:
        raise BundleError("\n".join(f"{folder}: {p}" for p in problems))
    if quantize == "4bit":
        _keep_odd_widths_unpacked(llm)
    if (adapter := folder / ADAPTER_FOLDER).is_dir():
        llm = apply_adapter(llm, adapter)
    return llm, tokenizer


def dtype_from_name(name: str | None) -> torch.dtype | None:
    """Return torch's dtype for `float32`, `float16` or `bfloat16`; None stays None."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name] if name else None


def _loading_arguments(
    dtype: torch.dtype | None, quantize: Quantization | None, device_map: torch.device | Literal["map"] | None
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for precision and placement."""
    how: dict[str, Any] = {"dtype": dtype or "auto"}
    if device_map is not None:
        require("loading a language model layer by layer", "quantize" if quantize else "map", "accelerate")
        how["device_map"] = "auto" if device_map == "map" else {"": device_map}
    if quantize:
        require(f"loading {quantize} weights", "quantize", "bitsandbytes")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs every cast
        from transformers import BitsAndBytesConfig

        if quantize == "8bit":
            how["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        else:
            # nf4 with double quantization, as the published programs load their 4-bit models.
            compute_dtype = dtype or torch.float16
            how["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute_dtype,
            )
    return how


def _keep_odd_widths_unpacked(llm: Any) -> None:
    """Keep bitsandbytes (0.50) from repacking 4-bit weights for AVX-512: it fails unless sizes are multiples of 64."""
    for module in llm.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and (
            module.in_features % 64 or module.out_features % 32
        ):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of an LLM folder, without its weights.

    Raises:
        BundleError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # see `load_llm`
        raise _unusable(folder, "the tokenizer cannot be read", e) from e


def _unusable(folder: Path, what: str, error: Exception) -> BundleError:
    detail = (
        str(error) if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {error}"
    )
    return BundleError(f"{folder}: {what}: {detail}", hint=VERIFY_HINT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and reports of transformers on stderr: problems are reported as our own errors."""
    from transformers.utils import logging as hf_logging

    level, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()
