"""`adapter_config.json` of peft: which adapters add a plain product of two matrices to a weight, and with which scale.

Only such adapters can be merged without peft's own code for their kind. Every other setting is refused by name: with an
adapter that is merged incorrectly, answers are wrong but still fluent. Source: peft 0.21, LoraConfig; a test compares
its fields with the tables below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidqa.common.foreign_files import JsonSettings, as_number, as_whole, is_unset, read_settings
from vidqa.errors import BundleError

ADAPTER_CONFIG = "adapter_config.json"
#: Settings that `read_lora_settings` reads.
HANDLED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    }
)
#: Settings that do not change how the stored matrices are merged, whatever their value.
HARMLESS = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",  # training only
        "runtime_config",  # where peft computes
        "megatron_core",  # a module name, without effect unless megatron_config is set
        "qalora_group_size",  # without effect unless use_qalora is set
        "eva_config",  # how A was initialized
    }
)
#: Settings whose only supported value, besides null, false and empty, is this one.
_ONLY = {"bias": "none"}
#: Initial values of A and B that leave the base weights as they are.
_PLAIN_INIT = (True, False, None, "gaussian", "orthogonal", "eva")
#: Initial values for which peft changes the base weights, so that the adapter belongs to other weights than the base's.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_CONVERT = (
    "convert it into an ordinary LoRA adapter with peft: "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
)


@dataclass(frozen=True)
class LoraSettings:
    """Settings of an adapter. Names of layers are those in the LLM, without peft's prefix.

    Attributes:
        file: the `adapter_config.json`.
        r: rank of the layers that `rank_pattern` does not name.
        alpha: scale of the layers that `alpha_pattern` does not name.
        use_rslora: divide alpha by the square root of the rank instead of the rank.
        rank_pattern: rank by regular expression that the end of a layer's name must match; the first match counts.
        alpha_pattern: alpha in the same way.
        target_modules: ends of layer names, or a regular expression of whole names.
        exclude_modules: layers to exclude, in the same form; empty for none.
        layers: indices of the blocks; None for all of them.
        layers_pattern: names of the list of blocks; empty for any.
    """

    file: Path
    r: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] = ()
    layers: frozenset[int] | None = None
    layers_pattern: tuple[str, ...] = field(default=())

    def rank(self, layer: str) -> int:
        """Return the rank of a layer."""
        return next((r for key, r in self.rank_pattern.items() if _pattern(key).match(layer)), self.r)

    def scale(self, layer: str) -> float:
        """Return the factor of B @ A for a layer."""
        alpha = next((a for key, a in self.alpha_pattern.items() if _pattern(key).match(layer)), self.alpha)
        rank = self.rank(layer)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def selects(self, layer: str) -> bool:
        """Return whether peft would attach the adapter to a layer; it ignores the weights of any other layer."""
        if _names(self.exclude_modules, layer):
            return False
        if isinstance(self.target_modules, str):
            return self.target_modules == "all-linear" or _names(self.target_modules, layer)
        return _names(self.target_modules, layer) and (self.layers is None or self._block(layer) in self.layers)

    def peft_arguments(self) -> dict[str, Any]:
        """Return the arguments of peft's `LoraConfig` that attach the same adapter."""

        def as_given(modules: str | tuple[str, ...]) -> str | list[str] | None:
            return (modules if isinstance(modules, str) else list(modules)) or None

        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.use_rslora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "target_modules": as_given(self.target_modules),
            "exclude_modules": as_given(self.exclude_modules),
            "layers_to_transform": sorted(self.layers) if self.layers is not None else None,
            "layers_pattern": list(self.layers_pattern) or None,
        }

    def _block(self, layer: str) -> int | None:
        """Return the index of the block that a layer belongs to."""
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((m for pattern in patterns if (m := re.match(pattern, layer))), None)
        return int(found[1]) if found else None


def read_lora_settings(folder: Path) -> LoraSettings:
    """Read the settings of an adapter.

    Args:
        folder: folder with `adapter_config.json`.

    Raises:
        BundleError: the file cannot be read, a value is not valid, or the adapter is not a plain product of two
            matrices; names file and key.
    """
    config = read_settings(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise config.error("peft_type", f"must be LORA, got {config.get('peft_type')!r:.80}")
    _check_supported(config)
    for key in ("r", "lora_alpha", "target_modules"):
        if key not in config:
            raise config.error(key, "missing")
    ranks, alphas = _table(config, "rank_pattern"), _table(config, "alpha_pattern")
    for key, rank in ranks.items():
        if (as_whole(rank) or 0) < 1:
            raise config.error(f"rank_pattern.{key}", f"must be a whole number of at least 1, got {rank!r:.80}")
    for key, alpha in alphas.items():
        if as_number(alpha) is None:
            raise config.error(f"alpha_pattern.{key}", f"must be a number, got {alpha!r:.80}")
    targets = _modules(config, "target_modules")
    if not targets:
        raise config.error("target_modules", f"must be a list of names, got {config['target_modules']!r:.80}")
    return LoraSettings(
        config.file,
        config.whole("r", 8),
        config.number("lora_alpha", 8),
        config.flag("use_rslora"),
        {key: int(rank) for key, rank in ranks.items()},
        {key: float(alpha) for key, alpha in alphas.items()},
        targets,
        _modules(config, "exclude_modules"),
        _layers(config),
        _layers_pattern(config),
    )


def _check_supported(config: JsonSettings) -> None:
    init = config.get("init_lora_weights", True)
    name = init.lower() if isinstance(init, str) else init
    if not any(name is plain or (isinstance(name, str) and name == plain) for plain in _PLAIN_INIT):
        changed = isinstance(name, str) and name.startswith(_CHANGED_BASE)
        why = "the adapter belongs to base weights that peft changed" if changed else "not supported"
        error = config.error("init_lora_weights", f"{init!r:.80}: {why}")
        error.hint = _CONVERT if changed else None
        raise error
    refused = [
        f"{config.file}: {key}: {value!r:.80}: such an adapter cannot be merged"
        for key, value in config.items()
        if key not in HANDLED | HARMLESS and not is_unset(value) and value != _ONLY.get(key, _MISSING)
    ]
    if refused:
        raise BundleError("\n".join(refused))


_MISSING = object()


def _table(config: JsonSettings, key: str) -> Mapping[str, Any]:
    table: Mapping[str, Any] = config.section(key) or {}
    for pattern in table:
        _check_pattern(config, key, rf"(.*\.)?({pattern})$")
    return table


def _modules(config: JsonSettings, key: str) -> str | tuple[str, ...]:
    """Return a list of names, or a regular expression; empty if the key is missing or null."""
    value = config.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        _check_pattern(config, key, value)
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise config.error(key, f"must be a list of names, got {value!r:.80}")
    return tuple(value)


def _layers(config: JsonSettings) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    found = [as_whole(index) for index in listed]
    if any(index is None or index < 0 for index in found):
        raise config.error("layers_to_transform", f"must be a list of indices, got {value!r:.80}")
    return frozenset(index for index in found if index is not None) or None


def _layers_pattern(config: JsonSettings) -> tuple[str, ...]:
    found = _modules(config, "layers_pattern")
    patterns = found if isinstance(found, tuple) else (found,) if found else ()
    for pattern in patterns:
        _check_pattern(config, "layers_pattern", pattern)
    return patterns


def _check_pattern(config: JsonSettings, key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as e:
        raise config.error(key, f"{pattern!r:.80} is not a valid pattern: {e}") from e


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _names(modules: str | Collection[str], layer: str) -> bool:
    """Return whether a list of name ends, or a regular expression of whole names, contains a layer."""
    if isinstance(modules, str):
        return bool(modules) and re.fullmatch(modules, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in modules)
