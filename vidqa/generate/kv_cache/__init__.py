"""KV caches.

capacity.py    free memory -> CacheCapacity: how many sequences and prefixes fit
buffers.py     tensors of all layers, allocated once
pool.py        KVPool: which sequence has which prefix; the cache that attention layers write to
chat_cache.py  ChatKVCache: one growing token sequence for a chat
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.generate.kv_cache.buffers import CacheCapacity
    from vidqa.generate.kv_cache.capacity import plan_capacity
    from vidqa.generate.kv_cache.chat_cache import ChatKVCache
    from vidqa.generate.kv_cache.pool import KVPool

__all__ = ["CacheCapacity", "ChatKVCache", "KVPool", "plan_capacity"]

_MODULES = {"CacheCapacity": "buffers", "ChatKVCache": "chat_cache", "KVPool": "pool", "plan_capacity": "capacity"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
