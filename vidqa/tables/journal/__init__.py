"""Crash-safe changes of a table: part files next to it, merged into it when the run ends.

row_keys.py    the keys that identify a row
row_index.py   which rows exist (SQLite, in memory); segment_rows.py: of which segments, if some are missing
question_ids.py  which ids the questions have, and which of them change
change_log.py  changes as data frames, and replaying them on an index
parts.py       the part files, and atomic publication of new table files
merge.py       applies an index to stored rows
storage.py     table files and part files together: open, append, merge
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.tables.journal.row_index import RowIndex
    from vidqa.tables.journal.storage import TableStorage

__all__ = ["RowIndex", "TableStorage"]

__getattr__ = lazy_exports(__name__, {"RowIndex": "row_index", "TableStorage": "storage"})
