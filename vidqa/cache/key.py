"""Identity of a cache entry, and the location of the cache.

A key consists of media_id, segment and encoder_id. Everything that changes the features is part of it; what only
changes speed (batch size, threads, device, decoder) is not. The encoder_id is a digest that a bundle computes from its
image and video encoders: graphs, layer, preprocessing settings, sampling rule and preprocessing revision. Incrementing
that revision or changing the number of frames therefore creates new keys.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

#: Incremented when the format of an entry changes; older entries are then not found.
ENTRY_FORMAT = 1

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class CacheKey:
    """Identity of one encoded segment."""

    media_id: str  # digest of the file content
    segment_key: str  # Segment.key
    encoder_id: str  # also a folder name: letters, digits, `.`, `_` and `-`

    def __post_init__(self) -> None:
        if not self.media_id or not self.segment_key:
            raise ValueError(f"a cache key needs a media_id and a segment, got {self}")
        if not _SAFE_NAME.fullmatch(self.encoder_id):
            raise ValueError(f"encoder_id must be usable as a folder name, got {self.encoder_id!r}")

    @cached_property
    def digest(self) -> str:
        """File name of the entry without its suffix: 40 hex digits."""
        parts = [ENTRY_FORMAT, self.media_id, self.segment_key, self.encoder_id]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]

    @property
    def relative(self) -> Path:
        """Path of the entry relative to the cache folder: `features/ENCODER/ab/abcd....safetensors`."""
        return Path(FEATURES_FOLDER, self.encoder_id, self.digest[:2], self.digest + ENTRY_SUFFIX)


#: Folder of all entries in the cache folder, and the suffix of an entry.
FEATURES_FOLDER = "features"
ENTRY_SUFFIX = ".safetensors"
#: Folder of the record indexes of training data (`vidqa.training.data.record_index`): DIGEST-DIGEST*.npz, .jsonl
RECORDS_FOLDER = "records"


def default_cache_dir() -> Path:
    """Return the user's cache folder for vidqa: `~/.cache/vidqa` on Linux, the platform's default elsewhere."""
    from platformdirs import user_cache_path  # imported here because commands with --cache-dir do not need it

    return user_cache_path("vidqa", appauthor=False)
