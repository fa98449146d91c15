"""A LoRA adapter of PEFT -> the weights of its base with the adapter folded in.

Facts: PEFT's adapter_config.json and key names (`base_model.model.<module>.lora_A.weight`), checked against PEFT's own
merge in the tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from vidqa.convert.checks import read_json
from vidqa.convert.lazy_tensors import Claim, LazyTensor, LowRank
from vidqa.convert.sources import WeightSource
from vidqa.errors import BundleError

_KEY = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
#: Settings that change what a merge is, with the only value that is understood.
_PLAIN = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layer_replication": None,
}


def merge_lora(tensors: Mapping[str, LazyTensor], adapter: WeightSource) -> tuple[dict[str, LazyTensor], list[str]]:
    """Fold an adapter into an LLM's tensors; nothing is read yet.

    Args:
        tensors: by the LLM's own names.
        adapter: keys with `lora_A` and `lora_B`, and `adapter_config.json` in its folder.

    Returns:
        All tensors, changed where the adapter has a say, and the adapter's keys that found no place.

    Raises:
        BundleError: no or an unusual configuration, or shapes that do not multiply.
    """
    path = adapter.folder / "adapter_config.json"
    if not path.is_file():
        raise BundleError(f"{adapter.place}: a LoRA adapter needs its adapter_config.json")
    config = read_json(path)
    for key, plain in _PLAIN.items():
        if config.get(key) not in (plain, None):
            raise BundleError(f"{path}: {key} is {config[key]!r}; such an adapter cannot be folded in")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise BundleError(f"{path}: {key} is set; such an adapter cannot be folded in")
    pairs: dict[str, dict[str, LazyTensor]] = {}
    claim = Claim(adapter)
    surplus = []
    for key, origin in claim.take("base_model.model.", "").items():
        m = _KEY.fullmatch(key)
        if m is None or f"{m[1]}.weight" not in tensors:
            surplus.append(f"{origin.label}: unknown key")
        else:
            pairs.setdefault(f"{m[1]}.weight", {})[m[2]] = origin
    merged = dict(tensors)
    for key, pair in pairs.items():
        merged[key] = _fold(key, tensors[key], pair, config, str(adapter.place))
    return merged, surplus + claim.rest()


def _fold(
    key: str, base: LazyTensor, pair: Mapping[str, LazyTensor], config: Mapping[str, object], place: str
) -> LowRank:
    if set(pair) != {"A", "B"}:
        raise BundleError(f"{place}: {key} has only one of lora_A and lora_B")
    a, b = pair["A"], pair["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or (b.shape[0], a.shape[1]) != base.shape or a.shape[0] != b.shape[1]:
        raise BundleError(f"{place}: {key}: {list(b.shape)} x {list(a.shape)} does not make {list(base.shape)}")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise BundleError(f"{place}: adapter_config.json has no lora_alpha")
    rank = a.shape[0]
    return LowRank(base, a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
