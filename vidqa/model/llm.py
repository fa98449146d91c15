"""A transformers folder -> a causal LLM and its tokenizer, strictly and without a word.

Knows transformers, its quantisation and its placing on several devices. Does not know bundles, connectors or prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from vidqa.encoders.onnx_errors import VERIFY_HINT
from vidqa.errors import BundleError, DeviceError
from vidqa.model.llama.loader import FastTokenizer, load_llama
from vidqa.model.lora import ADAPTER_FOLDER, apply_adapter

Quantise = Literal["8bit", "4bit"]


def load_llm(
    folder: Path,
    dtype: torch.dtype | None,
    *,
    quantise: Quantise | None = None,
    place: torch.device | Literal["map"] | None = None,
    answers_only: bool = False,
    device: torch.device | None = None,
) -> tuple[Any, Any]:
    """Read a causal LLM and its tokenizer.

    Nothing is fetched, no code from the folder runs, and only safetensors are read.

    Args:
        folder: config, safetensors, tokenizer.
        dtype: of the weights; None keeps the saved one. Of a quantised LLM it is the type of its arithmetic.
        quantise: weights of linear layers in 8 or 4 bits while they are read, by bitsandbytes; None does not.
        place: a device, or `map` to spread the layers over all devices by their free memory; None is the CPU.
        answers_only: the model will not be trained or written: a plain Llama is then read without transformers.
        device: that such a plain Llama is read onto; None is the CPU. Others are moved there by the caller.

    Returns:
        The LLM and its tokenizer.

    Raises:
        BundleError: a file cannot be read, or a weight is missing, unknown or of another shape; all are named.
        DeviceError: a package that `quantise` or `map` needs is not installed.
    """
    if answers_only and quantise is None and place is None and (plain := load_llama(folder, dtype, device)) is not None:
        return plain, FastTokenizer.read(folder) or load_tokenizer(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = _how(dtype, quantise, place)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # Mismatched shapes are errors below, where all of them are named.
    strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            llm, info = AutoModelForCausalLM.from_pretrained(folder, **how, **strict, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except torch.OutOfMemoryError:  # nothing is wrong with the folder
        raise
    except Exception as e:  # transformers lets through whatever its many parsers raise over a strange file
        raise _unusable(folder, "cannot be loaded", e) from e
    problems = [f"{key}: missing" for key in sorted(info["missing_keys"])]
    problems += [f"{key}: unknown key" for key in sorted(info["unexpected_keys"])]
    problems += [f"{key}: shape {list(a)}, must be {list(b)}" for key, a, b in sorted(info["mismatched_keys"])]
    if problems:
        raise BundleError("\n".join(f"{folder}: {p}" for p in problems))
    if quantise == "4bit":
        _keep_odd_widths_unpacked(llm)
    if (adapter := folder / ADAPTER_FOLDER).is_dir():
        llm = apply_adapter(llm, adapter)
    return llm, tokenizer


def named_dtype(name: str | None) -> torch.dtype | None:
    """`float32`, `float16` or `bfloat16` as torch's type; None stays None."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name] if name else None


def _how(
    dtype: torch.dtype | None, quantise: Quantise | None, place: torch.device | Literal["map"] | None
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for precision and place."""
    how: dict[str, Any] = {"dtype": dtype or "auto"}
    if place is not None:
        _need("accelerate", "placing a language model piece by piece", "train")
        how["device_map"] = "auto" if place == "map" else {"": place}
    if quantise:
        _need("bitsandbytes", f"{quantise} weights", "quantize")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast
        from transformers import BitsAndBytesConfig

        if quantise == "8bit":
            how["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        else:
            # nf4 with doubly quantised scales, as the published programs load their 4-bit models.
            kind = dtype or torch.float16
            how["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=kind,
            )
    return how


def _keep_odd_widths_unpacked(llm: Any) -> None:
    """bitsandbytes (0.50) repacks 4-bit weights for CPUs with AVX-512, and fails at widths that are not multiples of 64."""
    for module in llm.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and (
            module.in_features % 64 or module.out_features % 32
        ):
            module.support_avx512bf16_for_cpu = False


def _need(package: str, what: str, extra: str) -> None:
    if find_spec(package) is None:
        raise DeviceError(f"{what}: the package {package} is not installed", hint=f'pip install "vidqa[{extra}]"')


def load_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of an LLM folder, without its weights.

    Raises:
        BundleError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # as above
        raise _unusable(folder, "the tokenizer cannot be read", e) from e


def _unusable(folder: Path, what: str, error: Exception) -> BundleError:
    said = str(error) if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {error}"
    return BundleError(f"{folder}: {what}: {said}", hint=VERIFY_HINT)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and reports of transformers on stderr: what is wrong with a model is said by our own errors."""
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()
