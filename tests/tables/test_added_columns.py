"""Tables and part files of an earlier version that lack a newer column: loaded with nulls, kept, and not recomputed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from vidqa.records import AnswerRow
from vidqa.tables.formats import read_table, write
from vidqa.tables.journal import change_log
from vidqa.tables.journal.change_log import RowChange
from vidqa.tables.schema import SCHEMA, rows_to_frame
from vidqa.tables.table import Table

COLUMN = "n_repeated_frames"
ADDED = ("n_segments", COLUMN, "media_note")


def write_old_table(rows: list[AnswerRow], path: Path) -> None:
    """Write a table as a version without the column did."""
    new = path.with_name(f"new{path.suffix}")
    write(rows_to_frame(rows), new)
    read = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".arrow": pl.read_ipc}
    frame = read[path.suffix](new.read_bytes()).drop(ADDED)
    frame_write = {
        ".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson,
        ".arrow": frame.write_ipc,
    }  # fmt: skip
    frame_write[path.suffix](path)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "arrow"])
def test_an_old_table_is_loaded_and_kept(row: Callable[..., AnswerRow], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    write_old_table([row(), row(media_id="b" * 32, path="b.mp4")], path)
    before = path.read_bytes()
    table = Table(path).load()
    assert len(table) == 2 and table.status("a" * 32, "Describe the video.", "m1", "s1") == "ok"
    table.commit()
    assert path.read_bytes() == before, "nothing is pending, nothing is written"
    table.add([row(media_id="c" * 32, path="c.mp4", n_repeated_frames=5)])
    table.commit()
    found = read_table(path)
    assert found.columns == list(SCHEMA)
    assert dict(found.select("path", COLUMN).iter_rows()) == {"a.mp4": None, "b.mp4": None, "c.mp4": 5}


def test_part_files_of_an_interrupted_older_run_are_recovered(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = Table(path).load()
    table.add([row(n_repeated_frames=3)])
    table.checkpoint()
    (part,) = (tmp_path / "t.parquet.parts").glob("0*.parquet")
    pl.read_parquet(part.read_bytes()).drop(ADDED).write_parquet(part)
    again = Table(path).load()
    assert again.recover() == 1
    assert read_table(path)[COLUMN].to_list() == [None]


def test_other_columns_of_a_part_file_are_required(row: Callable[..., AnswerRow]) -> None:
    frame = change_log.to_frame([RowChange(row(), "row")])
    assert change_log.check(frame.drop(COLUMN), "x").equals(frame.with_columns(pl.lit(None, pl.Int64).alias(COLUMN)))
    with pytest.raises(Exception, match="not a part file"):
        change_log.check(frame.drop("codec"), "x")
