"""Attention over shared prefixes.

shared_prefix.py   queries, suffix KV and prefix KV -> attention output, in plain torch on any device
triton_kernels.py  the same in two GPU kernels; imported only if Triton is installed
cuda_graphs.py     capture and replay of decode steps
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.generate.attention.shared_prefix import PrefixSpan, SharedPrefix, SuffixSpan

__all__ = ["PrefixSpan", "SharedPrefix", "SuffixSpan"]

__getattr__ = lazy_exports(
    __name__, {"PrefixSpan": "shared_prefix", "SharedPrefix": "shared_prefix", "SuffixSpan": "shared_prefix"}
)
