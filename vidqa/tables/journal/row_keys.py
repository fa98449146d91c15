"""Keys of table rows: which file a row is about, and which question, model and settings produced it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from vidqa.records import AnswerRow, Status

STATUSES: tuple[Status, ...] = get_args(Status)
#: Columns that identify a file within a table.
FILE_COLUMNS = ("media_id", "root", "path")


class QuestionKey(NamedTuple):
    """A question with the model and settings that answer it."""

    question: str  # the text: two question ids with the same text are the same question
    model_id: str
    settings_id: str


class RowState(NamedTuple):
    """The state of an existing row, from which a run decides whether it is done."""

    status: Status
    is_noted: bool = False  # depends on `--strict`: has a media_note, or failed because of it

    @classmethod
    def of(cls, status: Status, error_kind: str | None, media_note: str | None) -> RowState:
        """Return the state of a row with these values."""
        return cls(status, error_kind == "partial" if status == "failed" else media_note is not None)


#: Columns that the state of a row is made of.
STATE_COLUMNS = ("status", "error_kind", "media_note")
#: Columns that identify the segment of a row.
SEGMENT_COLUMNS = ("start_s", "n_segments")
#: Columns that a `RowIndex` is built from.
KEY_COLUMNS = (*FILE_COLUMNS, *QuestionKey._fields, *STATE_COLUMNS, *SEGMENT_COLUMNS, "question_id")


class RowEntry(NamedTuple):
    """What the index keeps of a row of a file."""

    question: QuestionKey
    state: RowState
    start_s: float | None  # start of the segment
    n_segments: int | None  # of the file

    @classmethod
    def of(cls, row: AnswerRow) -> RowEntry:
        """Return the entry of a row."""
        question = QuestionKey(row.question, row.model_id, row.settings_id)
        state = RowState.of(row.status, row.error_kind, row.media_note)
        return cls(question, state, row.start_s, row.n_segments)

    @classmethod
    def from_columns(cls, values: Sequence[Any]) -> RowEntry:
        """Return the entry of a stored row, from the columns after `FILE_COLUMNS` in `KEY_COLUMNS`."""
        return cls(QuestionKey(*values[:3]), RowState.of(*values[3:6]), *values[6:8])


def file_path(root: str, path: str) -> str:
    """Return the path of a row's file from its `root` and the path relative to it."""
    return os.path.join(root, path)
