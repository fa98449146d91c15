"""What identifies a cache entry, and where the cache lies.

Key = media content x segment x encoder. What changes bytes is in the key; what changes only speed (batch size, threads,
device, decoder) is not. The encoder_id is a digest that a bundle computes from its image and video encoders: the
graphs, the layer, the preprocessing settings, the sampling rule and the preprocessing revision. So raising that
revision, or changing the number of frames, gives new keys without a word here.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

#: Raised by one when the form of an entry changes; entries of an older form are then simply not found.
ENTRY_FORMAT = 1

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class CacheKey:
    """Identity of one encoded segment. None of the three parts may be empty."""

    media_id: str  # digest of the file's content
    segment_key: str  # Segment.key
    encoder_id: str  # names a folder of the cache, so letters, digits, `.`, `_` and `-` only

    def __post_init__(self) -> None:
        if not self.media_id or not self.segment_key:
            raise ValueError(f"a cache key needs a media_id and a segment, got {self}")
        if not _SAFE_NAME.fullmatch(self.encoder_id):
            raise ValueError(f"encoder_id must be usable as a folder name, got {self.encoder_id!r}")

    @cached_property
    def digest(self) -> str:
        """40 hex digits, the name of the entry."""
        parts = [ENTRY_FORMAT, self.media_id, self.segment_key, self.encoder_id]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]

    @property
    def relative(self) -> Path:
        """Where the entry lies below the cache: `features/ENCODER/ab/abcd....safetensors`."""
        return Path(FEATURES_FOLDER, self.encoder_id, self.digest[:2], self.digest + ENTRY_SUFFIX)


#: Folder of all entries below the root, and how an entry's name ends.
FEATURES_FOLDER = "features"
#: Folder of what is remembered of files of conversations (`vidqa.train.data.record_index`): DIGEST-DIGEST*.npz, .jsonl
RECORDS_FOLDER = "records"
ENTRY_SUFFIX = ".safetensors"


def default_cache_dir() -> Path:
    """The user's cache folder for vidqa: `~/.cache/vidqa` on Linux, the platform's place elsewhere."""
    from platformdirs import user_cache_path  # here: commands that get a folder by flag need not load it

    return user_cache_path("vidqa", appauthor=False)
