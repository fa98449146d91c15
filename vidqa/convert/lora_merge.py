"""Merge a PEFT LoRA adapter into the weights of its base model.

Source: PEFT's adapter_config.json and keys (`base_model.model.<module>.lora_A.weight`). The tests compare the result
with PEFT's own merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from vidqa.convert.checks import read_json
from vidqa.convert.lazy_tensors import LazyTensor, LoraMerged, StateDict
from vidqa.convert.sources import WeightSource
from vidqa.errors import BundleError

_KEY = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
#: Settings that change how an adapter is merged, with the only supported value.
_SUPPORTED = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layer_replication": None,
}


def merge_lora(tensors: Mapping[str, LazyTensor], adapter: WeightSource) -> tuple[dict[str, LazyTensor], list[str]]:
    """Merge an adapter into an LLM's tensors. No tensor is read yet.

    Args:
        tensors: the LLM's tensors under its own keys.
        adapter: keys with `lora_A` and `lora_B`, and `adapter_config.json` in its folder.

    Returns:
        All tensors, with those that the adapter changes as `LoraMerged`, and a message for each unexpected adapter key.

    Raises:
        BundleError: the configuration is missing or not supported, or shapes do not match.
    """
    path = adapter.folder / "adapter_config.json"
    if not path.is_file():
        raise BundleError(f"{adapter.path}: a LoRA adapter needs its adapter_config.json")
    config = read_json(path)
    for key, supported in _SUPPORTED.items():
        if config.get(key) not in (supported, None):
            raise BundleError(f"{path}: {key} is {config[key]!r}; such an adapter cannot be merged")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise BundleError(f"{path}: {key} is set; such an adapter cannot be merged")
    pairs: dict[str, dict[str, LazyTensor]] = {}
    state = StateDict(adapter)
    unexpected_keys = []
    for key, tensor in state.pop_prefix("base_model.model.", "").items():
        m = _KEY.fullmatch(key)
        if m is None or f"{m[1]}.weight" not in tensors:
            unexpected_keys.append(f"{tensor.label}: unexpected key")
        else:
            pairs.setdefault(f"{m[1]}.weight", {})[m[2]] = tensor
    merged = dict(tensors)
    for key, pair in pairs.items():
        merged[key] = _merge(key, tensors[key], pair, config, str(adapter.path))
    return merged, unexpected_keys + state.unexpected_keys()


def _merge(
    key: str, base: LazyTensor, pair: Mapping[str, LazyTensor], config: Mapping[str, object], path: str
) -> LoraMerged:
    if set(pair) != {"A", "B"}:
        raise BundleError(f"{path}: {key} has only one of lora_A and lora_B")
    a, b = pair["A"], pair["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or (b.shape[0], a.shape[1]) != base.shape or a.shape[0] != b.shape[1]:
        raise BundleError(f"{path}: {key}: {list(b.shape)} x {list(a.shape)} does not match {list(base.shape)}")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise BundleError(f"{path}: adapter_config.json has no lora_alpha")
    rank = a.shape[0]
    return LoraMerged(base, a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
