"""KV caches.

capacity.py    free memory -> CacheCapacity: how many sequences and prefixes fit
buffers.py     tensors of all layers, allocated once
pool.py        KVPool: which sequence has which prefix; the cache that attention layers write to
chat_cache.py  ChatKVCache: one growing token sequence for a chat
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.generate.kv_cache.buffers import CacheCapacity
    from vidqa.generate.kv_cache.capacity import plan_capacity
    from vidqa.generate.kv_cache.chat_cache import ChatKVCache
    from vidqa.generate.kv_cache.pool import KVPool

__all__ = ["CacheCapacity", "ChatKVCache", "KVPool", "plan_capacity"]

__getattr__ = lazy_exports(
    __name__, {"CacheCapacity": "buffers", "ChatKVCache": "chat_cache", "KVPool": "pool", "plan_capacity": "capacity"}
)
