"""Errors and exit codes. Every error message states what failed, where, and what to try.

A `MediaError` (or any other `ItemError`) concerns one file or one question: the run turns it into a row and continues.
Any other `VidqaError` ends the command with its exit code. All other exceptions are bugs and keep their traceback.
"""

from __future__ import annotations

import re

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_LOCKED = 4
EXIT_INTERRUPTED = 130

#: Every value of the column `error_kind`, with its meaning for a user.
ERROR_KINDS: dict[str, str] = {
    "missing": "the file does not exist, or disappeared between the scan and reading it",
    "changed": "the file was modified while it was being read",
    "empty_file": "the file has a size of 0 bytes",
    "not_media": "the content is neither an image nor a video, whatever the file name suggests",
    "unreadable": "the container or image is damaged and nothing can be decoded",
    "no_video": "a media file without a video stream (audio only, subtitles)",
    "encrypted": "the stream is encrypted",
    "unsupported": "no installed decoder supports this codec or format",
    "not_local": "a playlist or script that would open other files or URLs; refused",
    "permission": "this user is not allowed to read the file",
    "too_large": "a frame is larger than the limit, or the video has too many segments",
    "timeout": "the decoder made no progress within the time limit",
    "crashed": "the decoder process died",
    "out_of_memory": "decoding or answering ran out of memory",
    "not_finite": "the encoder or the language model returned NaN or infinity",
    "prompt_too_long": "the prompt does not fit into the model's context",
    "partial": "the file could be read with a problem, and --strict does not accept problems",
}

#: Kinds of notes about files that can be read all the same. Each note contains the name of its kind as a word, such as
#: `truncated: 5.2 of 20.0 s readable`, `clock jumps by 26 h` or `1 of 3 pages`.
NOTE_KINDS: dict[str, str] = {
    "truncated": "the file ends before the end that its header states",
    "damaged": "a part cannot be decoded",
    "clock": "the timestamps jump",
    "pages": "only the first of several pages was read",
    "images": "only the primary one of several images was read",
    "views": "only the first of several views was read",
    "colors": "the colors are approximate",
    "other": "any other problem",
}


def note_kind(note: str) -> str:
    """Return the kind of a note: the first word that is one of `NOTE_KINDS`, or `other`."""
    return next((word for word in re.findall(r"[a-z_]+", note.lower()) if word in NOTE_KINDS), "other")


class VidqaError(Exception):
    """Base class of all errors that a user can cause or fix.

    Args:
        what: one sentence: what failed and where.
        hint: what to try next; printed on a separate line.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        """Return the message and, on a second line, the hint."""
        return f"{self.what}\n  try: {self.hint}" if self.hint else self.what


class UsageError(VidqaError):
    """Invalid options, settings or question files. `what` lists all problems, one per line."""

    exit_code = EXIT_USAGE


class DeviceError(VidqaError):
    """A requested device is not available."""

    exit_code = EXIT_USAGE


class BundleError(VidqaError):
    """A model folder is incomplete, modified, or of a kind that this version cannot load."""


class CacheError(VidqaError):
    """A cache entry is damaged or does not belong to its key."""


class TableError(VidqaError):
    """A table cannot be read or written, or has a different schema."""


class TrainError(VidqaError):
    """Training cannot start or continue: too many bad samples, a NaN loss, a disk too small for checkpoints."""


class LockedError(VidqaError):
    """Another run holds the lock on the table or model."""

    exit_code = EXIT_LOCKED


class ItemError(VidqaError):
    """An error that concerns one item and becomes a row.

    Args:
        kind: one of `ERROR_KINDS`.
        what: one sentence for the column `error`.
    """

    def __init__(self, kind: str, what: str, *, hint: str | None = None) -> None:
        if kind not in ERROR_KINDS:
            raise ValueError(f"unknown error kind {kind!r}; choose from {', '.join(ERROR_KINDS)}")
        super().__init__(what, hint=hint)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all fields when the error is sent between processes."""
        return _rebuild_item_error, (type(self), self.kind, self.what, self.hint)


class MediaError(ItemError):
    """A media file cannot be decoded into frames."""


class PromptTooLongError(ItemError):
    """A prompt does not fit into the context; the message states by how many tokens."""

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__("prompt_too_long", what, hint=hint)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all fields when the error is sent between processes."""
        return _rebuild_prompt_too_long, (self.what, self.hint)


def _rebuild_item_error(cls: type[ItemError], kind: str, what: str, hint: str | None) -> ItemError:
    return cls(kind, what, hint=hint)


def _rebuild_prompt_too_long(what: str, hint: str | None) -> PromptTooLongError:
    return PromptTooLongError(what, hint=hint)
