"""What can go wrong, by name. Every error says what failed, where, and what to try.

A `MediaError` (or any other `ItemError`) belongs to one file or one question: the run turns it into a row and goes on.
Any other `VidqaError` ends the command with its exit code. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_LOCKED = 4
EXIT_INTERRUPTED = 130

#: Every value that the column `error_kind` can take, with what it means to a user.
ERROR_KINDS: dict[str, str] = {
    "missing": "there is no such file, or it vanished between scan and read",
    "changed": "the file was written to while it was read",
    "empty_file": "the file has no bytes",
    "not_media": "the content is not a picture or a video, whatever the name says",
    "unreadable": "the container or picture is damaged and nothing can be decoded",
    "no_video": "a media file without a video stream (audio only, subtitles)",
    "encrypted": "the stream is encrypted",
    "unsupported": "no installed decoder knows this codec or format",
    "not_local": "a playlist or script that would open other files or addresses; refused",
    "permission": "the file may not be read by this user",
    "too_large": "a frame is larger than the limit",
    "timeout": "decoding took longer than the time limit",
    "crashed": "the decoder process died",
    "out_of_memory": "decoding or answering ran out of memory",
    "prompt_too_long": "the prompt does not fit the context of the model",
}


class VidqaError(Exception):
    """Base of all errors that a user can cause or mend.

    Args:
        what: one sentence: what failed and where.
        hint: what to try next; shown on a line of its own.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  try: {self.hint}" if self.hint else self.what


class UsageError(VidqaError):
    """Wrong flags, settings or question files. `what` lists all problems, one a line."""

    exit_code = EXIT_USAGE


class DeviceError(VidqaError):
    """A requested device cannot be had."""

    exit_code = EXIT_USAGE


class BundleError(VidqaError):
    """A model folder is incomplete, altered, or not one that this version can load."""


class CacheError(VidqaError):
    """A cache entry is damaged or does not belong to its key."""


class TableError(VidqaError):
    """A table cannot be read or written, or has another schema."""


class TrainError(VidqaError):
    """Training cannot begin or go on: too many bad samples, a loss that is no number, no room for checkpoints."""


class LockedError(VidqaError):
    """Another run holds the lock of the table, or writes the same model."""

    exit_code = EXIT_LOCKED


class ItemError(VidqaError):
    """An error that belongs to one item and becomes a row.

    Args:
        kind: one of `ERROR_KINDS`.
        what: one sentence for the column `error`.
    """

    def __init__(self, kind: str, what: str, *, hint: str | None = None) -> None:
        if kind not in ERROR_KINDS:
            raise ValueError(f"unknown error kind {kind!r}; known: {', '.join(ERROR_KINDS)}")
        super().__init__(what, hint=hint)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:  # crosses process borders whole
        return _rebuild_item_error, (type(self), self.kind, self.what, self.hint)


class MediaError(ItemError):
    """One media file cannot be turned into frames."""


class PromptTooLongError(ItemError):
    """A prompt does not fit the context; the sentence says by how many tokens."""

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__("prompt_too_long", what, hint=hint)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_prompt_too_long, (self.what, self.hint)


def _rebuild_item_error(cls: type[ItemError], kind: str, what: str, hint: str | None) -> ItemError:
    return cls(kind, what, hint=hint)


def _rebuild_prompt_too_long(what: str, hint: str | None) -> PromptTooLongError:
    return PromptTooLongError(what, hint=hint)
