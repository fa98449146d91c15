"""Feature cache on disk.

In: `CacheKey` (media_id, segment, encoder_id). Out: `EncodedSegment`.

key.py              identity of an entry, folder of the cache
entry.py            an entry as bytes (safetensors with checksum)
feature_store.py    read and write entries
media_index.py      path -> media_id and facts, without reading unchanged files (SQLite)
maintenance.py      statistics, verification, pruning
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["CacheKey", "FeatureStore", "MediaIndex"]

__getattr__ = lazy_exports(__name__, {"CacheKey": "key", "FeatureStore": "feature_store", "MediaIndex": "media_index"})
