"""KV caches.

capacity.py    free memory -> CacheCapacity: how many sequences and prefixes fit
buffers.py     tensors of all layers, allocated once
pool.py        KVPool: which sequence has which prefix; the cache that attention layers write to
chat_cache.py  ChatKVCache: one growing token sequence for a chat
"""
