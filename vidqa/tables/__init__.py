"""Result tables on disk.

In: `AnswerRow`. Out: a Parquet, CSV, JSONL or Arrow file, or a folder of Parquet files (a dataset).

table.py            the table of a run: which questions are answered; add rows, checkpoint, commit
schema.py           columns and types; rows to data frames and back
formats.py          data frames to files and back, in batches
spreadsheet_csv.py  strings that a spreadsheet would run as formulas
reader.py           read a table of any format, with the rows of an interrupted run
superseded.py       which rows are about older content or by a replaced model
statistics.py       counts of a table
combine.py          merge tables, write them in another format
provenance.py       what the digests of a table stand for
destination.py      the files that `--out` refers to
journal/            crash-safe changes: row index, part files, merge
search_results.py   tables of `vidqa search`
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["Table", "new_table", "read_table"]

__getattr__ = lazy_exports(__name__, {"Table": "table", "new_table": "table", "read_table": "formats"})
