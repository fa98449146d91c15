"""Attention over shared prefixes.

shared_prefix.py   queries, suffix KV and prefix KV -> attention output, in plain torch on any device
triton_kernels.py  the same in two GPU kernels; imported only if Triton is installed
cuda_graphs.py     capture and replay of decode steps
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.generate.attention.shared_prefix import PrefixSpan, SharedPrefix, SuffixSpan

__all__ = ["PrefixSpan", "SharedPrefix", "SuffixSpan"]

_MODULES = {"PrefixSpan": "shared_prefix", "SharedPrefix": "shared_prefix", "SuffixSpan": "shared_prefix"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
