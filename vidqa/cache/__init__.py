"""Feature cache on disk.

In: `CacheKey` (media_id, segment, encoder_id). Out: `EncodedSegment`.

key.py              identity of an entry, folder of the cache
entry.py            an entry as bytes (safetensors with checksum)
feature_store.py    read and write entries
media_index.py      path -> media_id and facts, without reading unchanged files (SQLite)
maintenance.py      statistics, verification, pruning
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "CacheKey": "vidqa.cache.key",
    "FeatureStore": "vidqa.cache.feature_store",
    "MediaIndex": "vidqa.cache.media_index",
}
__all__ = ["CacheKey", "FeatureStore", "MediaIndex"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
