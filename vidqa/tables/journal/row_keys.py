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


#: Columns that a `RowIndex` is built from.
KEY_COLUMNS = (*FILE_COLUMNS, *QuestionKey._fields, "status")


def file_path(root: str, path: str) -> str:
    """Return the path of a row's file from its `root` and the path relative to it."""
    return os.path.join(root, path)
