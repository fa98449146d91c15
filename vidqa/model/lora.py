"""LoRA adapters of an LLM: attached for training, written beside it, applied when it is loaded. peft does the work.

An adapter lies in the LLM's folder, in `adapter/`, as peft writes it, so that its digest is one of the bundle's. Of its
settings only rank, scale and the names of layers are read; nothing in it can run code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidqa.errors import BundleError, VidqaError

ADAPTER_FOLDER = "adapter"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What peft puts before the names of a plain LLM's weights.
_PREFIX = "base_model.model."
_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number of at least 1", lambda v: type(v) is int and 1 <= v < 1 << 31),
    "lora_alpha": ("a number", lambda v: type(v) in (int, float) and 0 <= v < 1 << 31),
    "target_modules": (
        "a list of names",
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(name, str) for name in v),
    ),
}


def attach_lora(llm: Any, r: int, alpha: float, dropout: float, targets: Sequence[str] | None = None) -> None:
    """Put fresh adapters on layers of an LLM, in place, float32; its class and its way of being called stay.

    Args:
        llm: a causal LLM of transformers.
        r: rank.
        alpha: scale; the adapter counts alpha / r.
        dropout: share of inputs that the adapter does not see in training.
        targets: last names of the layers; None takes every linear layer but the head.

    Raises:
        VidqaError: peft is not installed, or no layer has such a name.
    """
    peft = _peft()
    names = sorted(targets) if targets else linear_layers(llm)
    settings = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, bias="none")
    try:
        peft.inject_adapter_in_model(settings, llm)
    except ValueError as error:
        raise VidqaError(f"LoRA: no layer is named {', '.join(names)}: {error}") from error
    for name, weight in llm.named_parameters():
        if (
            ".lora_" in name
        ):  # peft gives them the type of a half-precision LLM, in which small steps of learning vanish
            weight.data = weight.data.float()


def linear_layers(llm: Any) -> list[str]:
    """Last names of all linear layers but the head, as the original tuning code takes them."""
    head = llm.get_output_embeddings()
    # Quantised layers are no nn.Linear, but are named so.
    found = {
        name.rpartition(".")[2]
        for name, module in llm.named_modules()
        if module is not head and (isinstance(module, nn.Linear) or type(module).__name__.startswith("Linear"))
    }
    return sorted(found)


def merge_lora(llm: Any) -> Any:
    """Work adapters into the weights that they stand on.

    Args:
        llm: with adapters, from `attach_lora` or peft; changed in place.

    Returns:
        The plain LLM.
    """
    layer_kind: Any = __import__("peft.tuners.lora", fromlist=["LoraLayer"]).LoraLayer
    for name, module in list(llm.named_modules()):
        if isinstance(module, layer_kind):
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
    """Write an adapter as peft reads it.

    Args:
        weights: by their names in a VideoLlava whose LLM `attach_lora` changed: `llm.....lora_A.default.weight`.
        r: and the other settings, as for `attach_lora`.
        alpha: see there.
        dropout: see there.
        targets: see there; None takes the layers that the weights are of.
        folder: is made.
    """
    plain = {_PREFIX + k.removeprefix("llm.").replace(".default.", "."): v.contiguous() for k, v in weights.items()}
    layers = sorted(targets or {k.split(".lora_")[0].rpartition(".")[2] for k in plain})
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
    (folder / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(plain, folder / _WEIGHTS, metadata={"format": "pt"})


def apply_adapter(llm: Any, folder: Path) -> Any:
    """Read an adapter and work it into an LLM.

    Args:
        llm: the plain LLM; changed in place.
        folder: holds settings and weights.

    Returns:
        The LLM with the adapter in its weights.

    Raises:
        BundleError: the adapter is damaged, of another kind, or of another LLM; names file and key.
    """
    file = folder / _CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{folder}: the adapter cannot be read: {error}") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise BundleError(f"{file}: peft_type must be LORA")
    problems = [f"{file}: {key}: missing" for key in _SETTINGS if key not in settings]
    problems += [
        f"{file}: {key}: must be {says}, got {settings[key]!r:.80}"
        for key, (says, accepts) in _SETTINGS.items()
        if key in settings and not accepts(settings[key])
    ]
    if problems:
        raise BundleError("\n".join(problems))
    refused = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if settings.get(k)]
    if refused:
        raise BundleError(f"{file}: {', '.join(refused)}: not supported")
    attach_lora(llm, settings["r"], settings["lora_alpha"], 0.0, settings["target_modules"])
    own = {_PREFIX + n.replace(".default.", "."): p for n, p in llm.named_parameters() if ".lora_" in n}
    problems = [f"{key}: missing" for key in own if key not in weights]
    problems += [f"{key}: unknown key, or of another shape" for key, value in weights.items()
                 if key not in own or own[key].shape != value.shape]  # fmt: skip
    if problems:
        raise BundleError("\n".join(f"{folder / _WEIGHTS}: {p}" for p in problems[:10]))
    for key, value in weights.items():
        own[key].data.copy_(value)
    return merge_lora(llm)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise VidqaError("LoRA needs the package peft", hint="pip install 'vidqa[train]'") from error
    return peft
