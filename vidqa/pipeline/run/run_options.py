"""Options of a run, and what identifies the model and settings that produced a row."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

from vidqa.cache.key import default_cache_dir
from vidqa.config.digest import settings_id, settings_values
from vidqa.errors import UsageError
from vidqa.media.selection.file_selection import FileSelection
from vidqa.records import Question

#: Larger than any memory allows.
_MAX_BATCH_SIZE = 1 << 20


#: Shortest and longest segment in seconds. Windows that are shorter than a frame would all show the same ones.
_SEGMENT_S = (0.01, 1_000_000)


def _user_cache() -> Path:
    return Path(os.environ.get("VIDQA_CACHE") or default_cache_dir())


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    `segment_s` and `max_new_tokens` change answers and are part of `settings_id`; the other options never change an
    answer. Values are normalized: text to `Path`, `~` to the home folder, numpy numbers to Python numbers.

    Raises:
        UsageError: lists all invalid values.
    """

    cache_dir: Path = field(default_factory=_user_cache)  # default: VIDQA_CACHE, else the user's cache folder
    segment_s: float | None = None  # None: each video is one segment
    max_new_tokens: int | None = None  # None: the bundle's own
    batch_size: int | None = None  # None: chosen by each stage
    timeout_s: float = 120.0  # longest time without progress in decoding a file
    n_workers: int | None = None  # decoder processes; None: one per core
    memory_bytes: int = 4 << 30  # per decoder process
    retry: Literal["failed", "all"] | None = None  # which failed rows to try again; `failed` skips quarantined ones
    prune_missing: bool = False  # drop the rows of removed files, and those about earlier content that had a problem
    spreadsheet: bool = False  # write strings in CSV that a spreadsheet would run as formulas as text
    strict: bool = False  # files with notes fail with the error kind `partial`
    files: FileSelection = field(default_factory=FileSelection)  # which of the files found are processed

    def __post_init__(self) -> None:
        problems = []
        limits = (("segment_s", "segment length", *_SEGMENT_S), ("timeout_s", "timeout", 0, sys.float_info.max))
        for name, title, least, most in limits:
            value = getattr(self, name)
            if name == "segment_s" and value is None:
                continue
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if is_number and least <= value <= most and value > 0:
                object.__setattr__(self, name, float(value))
            else:
                what = f"{least} to {most:,} seconds" if least else "a positive number of seconds"
                problems.append(f"{title} must be {what}, got {value!r}")
        for name in ("max_new_tokens", "batch_size", "n_workers", "memory_bytes"):
            value = getattr(self, name)
            if name != "memory_bytes" and value is None:
                continue
            number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
            if number >= 1:
                object.__setattr__(self, name, number)
            else:
                problems.append(f"{name} must be a whole number of at least 1, got {value!r}")
        if isinstance(self.cache_dir, str | os.PathLike):
            object.__setattr__(self, "cache_dir", Path(self.cache_dir).expanduser())
        else:
            problems.append(f"cache_dir must be a folder, got {self.cache_dir!r}")
        if self.retry not in (None, "failed", "all"):
            problems.append(f"retry must be 'failed' or 'all', got {self.retry!r}")
        if not isinstance(self.files, FileSelection):
            problems.append(f"files must be a FileSelection, got {self.files!r}")
        if problems:
            raise UsageError("\n".join(problems))
        object.__setattr__(self, "timeout_s", min(self.timeout_s, threading.TIMEOUT_MAX))  # centuries, or 49 days
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", min(self.batch_size, _MAX_BATCH_SIZE))


@dataclass(frozen=True)
class Identity:
    """The model and version that produced a row."""

    model: str
    model_id: str
    encoder_id: str
    vidqa_version: str


def settings_of(options: RunOptions, question: Question) -> str:
    """Return the `settings_id` of a question: a digest of all settings outside the bundle that change its answer.

    Args:
        options: of the run.
        question: may have its own limit of tokens.
    """
    return settings_id(options.segment_s, _generation(options), question)


def settings_values_of(options: RunOptions, question: Question) -> dict[str, object]:
    """Return the settings that `settings_of` is a digest of.

    Args:
        options: of the run.
        question: as for `settings_of`.
    """
    return settings_values(options.segment_s, _generation(options), question)


def _generation(options: RunOptions) -> dict[str, object]:
    return {"max_new_tokens": options.max_new_tokens}
