"""LoRA adapters of an LLM, with peft: attached for training, saved in the LLM folder, merged when the LLM is loaded.

An adapter is saved as `adapter/` in the LLM folder, in peft's format, so that the bundle has its digest. Nothing in it
can run code; lora_settings.py decides which settings are supported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidqa.common.extras import require
from vidqa.errors import BundleError, VidqaError
from vidqa.model.lora_settings import ADAPTER_CONFIG, read_lora_settings

_WEIGHTS = "adapter_model.safetensors"
#: Prefix that peft adds to the weight names of an LLM.
_PREFIX = "base_model.model."


def attach_lora(llm: Any, r: int, alpha: float, dropout: float, targets: Sequence[str] | None = None) -> None:
    """Attach new float32 adapters to layers of an LLM, in place; its class and signature stay the same.

    Args:
        llm: a causal LLM of transformers.
        r: rank of the adapters.
        alpha: scale; the adapter is multiplied by alpha / r.
        dropout: dropout of the adapter's input in training.
        targets: last components of the layer names; None is every linear layer except the head.

    Raises:
        UsageError: peft is not installed.
        VidqaError: no layer has such a name.
    """
    names = sorted(targets) if targets else linear_layers(llm)
    try:
        _inject(llm, {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": names})
    except ValueError as error:
        raise VidqaError(f"LoRA: no layer is named {', '.join(names)}: {error}") from error


def _inject(llm: Any, settings: Mapping[str, Any]) -> None:
    peft = _peft()
    peft.inject_adapter_in_model(peft.LoraConfig(**settings, bias="none"), llm)
    for name, weight in llm.named_parameters():
        if ".lora_" in name:  # peft would use the LLM's half precision, in which small updates vanish
            weight.data = weight.data.float()


def linear_layers(llm: Any) -> list[str]:
    """Return the last name components of all linear layers except the head, as the original training code does."""
    head = llm.get_output_embeddings()
    # Quantized layers are not nn.Linear, but their class names start with it.
    found = {
        name.rpartition(".")[2]
        for name, module in llm.named_modules()
        if module is not head and (isinstance(module, nn.Linear) or type(module).__name__.startswith("Linear"))
    }
    return sorted(found)


def merge_lora(llm: Any) -> Any:
    """Merge adapters into the weights of an LLM.

    Args:
        llm: an LLM with adapters, from `attach_lora` or peft; changed in place.

    Returns:
        The LLM without adapters.
    """
    layer_class: Any = __import__("peft.tuners.lora", fromlist=["LoraLayer"]).LoraLayer
    for name, module in list(llm.named_modules()):
        if isinstance(module, layer_class):
            module.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(llm.get_submodule(parent), last, module.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(llm):
            delattr(llm, leftover)
    return llm


def write_adapter(
    weights: Mapping[str, Tensor], r: int, alpha: float, dropout: float, targets: Sequence[str] | None, folder: Path
) -> None:
    """Save an adapter in peft's format.

    Args:
        weights: by their names in a VideoLlava after `attach_lora`: `llm.....lora_A.default.weight`.
        r: as for `attach_lora`.
        alpha: as for `attach_lora`.
        dropout: as for `attach_lora`.
        targets: as for `attach_lora`; None is the layers that the weights belong to.
        folder: the folder to create.
    """
    by_peft_name = {
        _PREFIX + k.removeprefix("llm.").replace(".default.", "."): v.contiguous() for k, v in weights.items()
    }
    layers = sorted(targets or {k.split(".lora_")[0].rpartition(".")[2] for k in by_peft_name})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": layers,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(by_peft_name, folder / _WEIGHTS, metadata={"format": "pt"})


def apply_adapter(llm: Any, folder: Path) -> Any:
    """Load an adapter and merge it into an LLM.

    Args:
        llm: an LLM without adapters; changed in place.
        folder: folder with the adapter's settings and weights.

    Returns:
        The LLM with the adapter merged into its weights.

    Raises:
        BundleError: the adapter is damaged, of another type, or made for another LLM; names file and key.
    """
    settings = read_lora_settings(folder)
    try:
        weights = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{folder}: the adapter cannot be read: {error}") from error
    try:
        _inject(llm, settings.peft_arguments())
    except ValueError as error:
        raise BundleError(
            f"{settings.file}: target_modules: no layer of the language model matches: {error}"
        ) from error
    parameters = {_PREFIX + n.replace(".default.", "."): p for n, p in llm.named_parameters() if ".lora_" in n}
    problems = [f"{key}: missing" for key in parameters if key not in weights]
    problems += [f"{key}: unknown key, or of another shape" for key, value in weights.items()
                 if key not in parameters or parameters[key].shape != value.shape]  # fmt: skip
    if problems:
        raise BundleError("\n".join(f"{folder / _WEIGHTS}: {p}" for p in problems[:10]))
    for key, value in weights.items():
        parameters[key].data.copy_(value)
    return merge_lora(llm)


def _peft() -> Any:
    require("LoRA", "train", "peft")
    import peft

    return peft
