"""Result tables on disk.

In: `AnswerRow`. Out: a Parquet, CSV, JSONL or Arrow file, or a folder of Parquet files (a dataset).

table.py            the table of a run: which questions are answered; add rows, checkpoint, commit
schema.py           columns and types; rows to data frames and back
formats.py          data frames to files and back, in batches
destination.py      the files that `--out` refers to
journal/            crash-safe changes: row index, part files, merge
search_results.py   tables of `vidqa search`
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {"Table": "vidqa.tables.table", "new_table": "vidqa.tables.table", "read_table": "vidqa.tables.formats"}
__all__ = ["Table", "new_table", "read_table"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
