"""Keys of table rows: which file a row is about, and which question, model and settings produced it."""

from __future__ import annotations

import os
from typing import NamedTuple, get_args

from vidqa.records import Status

STATUSES: tuple[Status, ...] = get_args(Status)
#: Columns that identify a file within a table.
FILE_COLUMNS = ("media_id", "root", "path")


class QuestionKey(NamedTuple):
    """A question with the model and settings that answer it."""

    question: str  # the text: two question ids with the same text are the same question
    model_id: str
    settings_id: str


class RowState(NamedTuple):
    """What a run needs to know about an existing row, in order to decide whether it is done."""

    status: Status
    is_noted: bool = False  # depends on `--strict`: has a media_note, or failed because of it

    @classmethod
    def of(cls, status: Status, error_kind: str | None, media_note: str | None) -> RowState:
        """Return the state of a row with these values."""
        return cls(status, error_kind == "partial" if status == "failed" else media_note is not None)


#: Columns that the state of a row is made of.
STATE_COLUMNS = ("status", "error_kind", "media_note")
#: Columns that a `RowIndex` is built from.
KEY_COLUMNS = (*FILE_COLUMNS, *QuestionKey._fields, *STATE_COLUMNS)


def file_path(root: str, path: str) -> str:
    """Return the path of a row's file from its `root` and the path relative to it."""
    return os.path.join(root, path)
