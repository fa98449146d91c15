"""`config.json` of a language model -> configuration of transformers, with errors that name file and key.

transformers checks some types, with errors of several kinds, and computes with whatever passes. So types, sizes and
position encodings are checked here first. Settings that the model type does not have are refused, unless they are
listed as having no effect.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from vidqa.common.foreign_files import LARGEST_SIZE, JsonSettings, as_number, as_whole
from vidqa.conversion.formats.recognized_keys import GENERAL, GENERATION, VISION_PART, raise_problems, unknown_keys
from vidqa.errors import BundleError

#: Sizes that a configuration must contain if its model type has them: the defaults are those of other models.
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SIZES = frozenset({*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"})
_POSITIVE = frozenset({"rope_theta", "rope_local_base_freq", "partial_rotary_factor"})
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_ROPE = ("rope_parameters", "rope_scaling")
#: Keys of a position encoding, by type of value.
_ROPE_KEYS: Mapping[str, type] = {
    "rope_type": str,
    "type": str,
    "rope_theta": float,
    "factor": float,
    "partial_rotary_factor": float,
    "attention_factor": float,
    "beta_fast": float,
    "beta_slow": float,
    "low_freq_factor": float,
    "high_freq_factor": float,
    "mscale": float,
    "mscale_all_dim": float,
    "original_max_position_embeddings": int,
    "short_factor": list,
    "long_factor": list,
    "truncate": bool,
}
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def llm_config(config: JsonSettings, kind: str) -> Any:
    """Build the configuration of a language model.

    Args:
        config: the content of its `config.json`.
        kind: a model type of transformers.

    Raises:
        BundleError: a value is missing or not valid, or a setting is unknown; names file and keys.
    """
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    kinds = _accepted_types(cls)
    renamed: dict[str, str] = getattr(cls, "attribute_map", {})
    ignored = GENERAL | GENERATION | VISION_PART
    supported = {*kinds, *renamed, *_ROPE, "rope_theta"} - ignored
    own = {key: value for key, value in config.items() if key in supported}
    problems = list(unknown_keys(config, {*own, *ignored}))
    values: dict[str, Any] = {}
    for key, value in own.items():
        if value is None and key in _ROPE:
            continue
        values[key], problem = _converted(key, value, kinds.get(key, {float} if key == "rope_theta" else None))
        problems += [f"{config.file}: {config.where}{key}: {problem}"] if problem else []
    given = {*own, *(field for name, field in renamed.items() if name in own)}
    missing = [key for key in REQUIRED if key in kinds and key not in given]
    problems += [f"{config.file}: {config.where}{key}: missing" for key in missing]
    raise_problems(problems)
    _check_heads(config, values)
    for key in _ROPE:
        _check_rope(config.section(key))
    try:
        return cls(**values)
    except Exception as e:  # validators of transformers and huggingface_hub raise errors of many kinds
        raise BundleError(f"{config.file}: not a valid configuration of {kind}: {' '.join(str(e).split())}") from e


def _accepted_types(cls: Any) -> dict[str, set[type] | None]:
    """Return the types of JSON values that each field accepts; None for a field that only transformers can check."""
    if is_dataclass(cls):
        return {f.name: _flat(f.type) for f in fields(cls)}
    defaults = cls().to_dict()  # releases before 5.4 have no dataclasses
    return {k: {type(v), type(None)} if isinstance(v, bool | int | float | str) else None for k, v in defaults.items()}


def _flat(hint: Any) -> set[type] | None:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_flat(part) for part in get_args(hint)]
        return None if None in parts else set().union(*(p for p in parts if p is not None))
    if origin is Literal:
        return {type(value) for value in get_args(hint)}
    found = origin or hint
    found = {tuple: list}.get(found, found)
    if isinstance(found, type) and issubclass(found, dict):
        found = dict
    return {found} if found in _NAMES else None


def _converted(key: str, value: Any, kinds: set[type] | None) -> tuple[Any, str | None]:
    """Return a value in the type of its field, and what is wrong with it."""
    kinds = {int} if kinds is None and key in _SIZES else kinds
    if kinds is None or (value is None and type(None) in kinds) or (isinstance(value, bool) and bool in kinds):
        return value, None
    if not isinstance(value, bool) and int in kinds and (whole := as_whole(value)) is not None:
        minimum = 1 if key in _SIZES else -LARGEST_SIZE
        return whole, None if minimum <= whole <= LARGEST_SIZE else f"must be a size of at least 1, got {value!r:.80}"
    if float in kinds and (number := as_number(value)) is not None:
        if number < 0 and key.endswith("_eps"):
            return number, f"must be at least 0, got {value!r:.80}"
        return number, f"must be above 0, got {value!r:.80}" if key in _POSITIVE and number <= 0 else None
    if isinstance(value, str | list | dict) and type(value) in kinds:
        return value, _unknown_activation(value) if key in _ACTIVATIONS and isinstance(value, str) else None
    names = " or ".join(name for kind, name in _NAMES.items() if kind in kinds)
    return value, f"must be {names}, got {value!r:.80}"


def _unknown_activation(name: str) -> str | None:
    from transformers.activations import ACT2FN

    return None if name in ACT2FN else f"unknown activation {name!r:.80}"


def _check_heads(config: JsonSettings, values: Mapping[str, Any]) -> None:
    heads, kv_heads = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if heads and kv_heads and heads % kv_heads:
        raise config.error("num_key_value_heads", f"{kv_heads} does not divide the {heads} attention heads")
    size = values.get("hidden_size")
    if heads and size and not values.get("head_dim") and size % heads:
        raise config.error("num_attention_heads", f"{heads} does not divide the hidden size {size}")


def _check_rope(rope: JsonSettings | None) -> None:
    """Check a position encoding, or one for each type of layer."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if rope is None:
        return
    if rope and all(isinstance(value, dict) for value in rope.values()):
        for key in rope:
            _check_rope(rope.section(key))
        return
    raise_problems(list(_rope_problems(rope)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    supported = ("default", *ROPE_INIT_FUNCTIONS)
    if kind not in supported:
        raise rope.error("rope_type", f"{kind!r:.80} is not supported; supported: {', '.join(supported)}")
    if kind in ("linear", "dynamic", "yarn", "llama3") and rope.get("factor") is None:
        raise rope.error("factor", "missing")


def _rope_problems(rope: JsonSettings) -> Iterator[str]:
    yield from unknown_keys(rope, _ROPE_KEYS)
    for key, kind in _ROPE_KEYS.items():
        value = rope.get(key)
        if value is None:
            continue
        listed = value if kind is list and isinstance(value, list) else [value]
        is_number = kind in (int, float, list)
        if is_number and not all((number := as_number(item)) is not None and number > 0 for item in listed):
            what = "a list of numbers above 0" if kind is list else "a number above 0"
            yield f"{rope.file}: {rope.where}{key}: must be {what}, got {value!r:.80}"
        elif kind in (str, bool) and not isinstance(value, kind):
            yield f"{rope.file}: {rope.where}{key}: must be {_NAMES[kind]}, got {value!r:.80}"
