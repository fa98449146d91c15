"""Merge a PEFT LoRA adapter into the weights of its base model.

Source: PEFT's keys (`base_model.model.<module>.lora_A.weight`). The tests compare the result with PEFT's own merge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vidqa.conversion.lazy_tensors import LazyTensor, LoraMerged, StateDict
from vidqa.conversion.sources import WeightSource
from vidqa.errors import BundleError
from vidqa.model.lora_settings import ADAPTER_CONFIG, LoraSettings, read_lora_settings

_KEY = re.compile(r"(?P<layer>.+)\.(?:lora_(?P<part>[AB])(?:\.default)?|base_layer)\.weight")
_TIED = ("model.embed_tokens.weight", "lm_head.weight")


def merge_lora(
    tensors: Mapping[str, LazyTensor], adapter: WeightSource, tied: bool
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Merge an adapter into an LLM's tensors. No tensor is read yet.

    Args:
        tensors: the LLM's tensors under its own keys.
        adapter: keys with `lora_A` and `lora_B`, and `adapter_config.json` in its folder.
        tied: whether the LLM's head shares the weights of its embedding table.

    Returns:
        All tensors, with those that the adapter changes as `LoraMerged`, and a message for each unexpected adapter key.

    Raises:
        BundleError: the configuration is missing or not supported, or shapes do not match.
    """
    if not (adapter.folder / ADAPTER_CONFIG).is_file():
        raise BundleError(f"{adapter.path}: a LoRA adapter needs its {ADAPTER_CONFIG}")
    settings = read_lora_settings(adapter.folder)
    pairs: dict[str, dict[str, LazyTensor]] = {}
    merged = dict(tensors)
    state = StateDict(adapter)
    unexpected_keys = []
    for key, tensor in state.pop_prefix("base_model.model.", "").items():
        m = _KEY.fullmatch(key)
        layer = m["layer"] if m else ""
        if m is None or f"{layer}.weight" not in tensors:
            unexpected_keys.append(f"{tensor.label}: unexpected key")
        elif not settings.selects(layer):
            unexpected_keys.append(f"{tensor.label}: a layer that {settings.file.name} does not select")
        elif tied and f"{layer}.weight" in _TIED:
            raise BundleError(f"{tensor.label}: the head of this language model is its embedding table; not supported")
        elif m["part"] is None:  # peft saves the base weights of a head or embedding table too
            merged[f"{layer}.weight"] = tensor
        else:
            pairs.setdefault(layer, {})[m["part"]] = tensor
    for layer, pair in pairs.items():
        merged[f"{layer}.weight"] = _merge(layer, merged[f"{layer}.weight"], pair, settings)
    return merged, unexpected_keys + state.unexpected_keys()


def _merge(layer: str, base: LazyTensor, pair: Mapping[str, LazyTensor], settings: LoraSettings) -> LoraMerged:
    if set(pair) != {"A", "B"}:
        raise BundleError(f"{next(iter(pair.values())).label}: {layer} has only one of lora_A and lora_B")
    a, b, rank = pair["A"], pair["B"], settings.rank(layer)
    if a.shape != (rank, *base.shape[1:]) or b.shape != (*base.shape[:1], rank) or len(base.shape) != 2:
        shapes = f"{list(b.shape)} x {list(a.shape)}"
        raise BundleError(
            f"{a.label}: {shapes} does not match {list(base.shape)} with the rank {rank} of {settings.file}"
        )
    return LoraMerged(base, a, b, settings.scale(layer))
