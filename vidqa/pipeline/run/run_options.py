"""How a run is done and what it is for: the values that every stage of the pipeline shares.

Pure values; knows no stage.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

from vidqa.cache.key import default_cache_dir
from vidqa.config import settings_id
from vidqa.errors import UsageError
from vidqa.records import Question


def _user_cache() -> Path:
    return Path(os.environ.get("VIDQA_CACHE") or default_cache_dir())


@dataclass(frozen=True)
class RunOptions:
    """How a run is done.

    `segment_s` and `max_new_tokens` change answers and are part of `settings_id`; the rest changes speed and where
    things lie, never an answer. Equal values are kept in one form: a path as text becomes a `Path`, `~` the home
    folder, numbers of numpy Python's own.

    Raises:
        UsageError: lists every value that cannot be.
    """

    cache_dir: Path = field(default_factory=_user_cache)  # VIDQA_CACHE, else the user's cache
    segment_s: float | None = None  # None: the whole clip is one segment
    max_new_tokens: int | None = None  # None: what the bundle says
    batch_size: int | None = None  # None: chosen by the stage
    timeout_s: float = 120.0  # per file, for decoding
    n_workers: int | None = None  # decode processes; None: by the number of cores
    memory_bytes: int = 4 << 30  # per decode process
    retry: Literal["failed", "all"] | None = None  # what failed is asked again; `failed`: but for quarantine
    prune_missing: bool = False  # rows of files that vanished go

    def __post_init__(self) -> None:
        wrong = []
        for name, what in (("segment_s", "segment length"), ("timeout_s", "timeout")):
            value = getattr(self, name)
            if name == "segment_s" and value is None:
                continue
            seconds = float(value) if isinstance(value, Real) else 0.0
            if 0 < seconds < float("inf"):
                object.__setattr__(self, name, seconds)
            else:
                wrong.append(f"{what} must be a positive number of seconds, got {value!r}")
        for name in ("max_new_tokens", "batch_size", "n_workers", "memory_bytes"):
            value = getattr(self, name)
            if name != "memory_bytes" and value is None:
                continue
            number = int(value) if isinstance(value, Integral) else 0
            if number >= 1:
                object.__setattr__(self, name, number)
            else:
                wrong.append(f"{name} must be a whole number of at least 1, got {value!r}")
        if isinstance(self.cache_dir, str | os.PathLike):
            object.__setattr__(self, "cache_dir", Path(self.cache_dir).expanduser())
        else:
            wrong.append(f"cache_dir must be a folder, got {self.cache_dir!r}")
        if self.retry not in (None, "failed", "all"):
            wrong.append(f"retry must be 'failed' or 'all', got {self.retry!r}")
        if wrong:
            raise UsageError("\n".join(wrong))


@dataclass(frozen=True)
class Identity:
    """What produced a row."""

    model: str
    model_id: str
    encoder_id: str
    vidqa_version: str


def settings_of(options: RunOptions, question: Question) -> str:
    """The `settings_id` of a question: digest of what, outside the bundle, changes its answer."""
    return settings_id(options.segment_s, {"max_new_tokens": options.max_new_tokens}, question)
