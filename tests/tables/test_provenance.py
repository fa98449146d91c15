"""What the ids of a table stand for is stored once, in every format, and survives crashes, merges and older tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from vidqa.records import AnswerRow
from vidqa.tables.formats import read_table
from vidqa.tables.journal.storage import TableStorage
from vidqa.tables.provenance import METADATA_KEY, Provenance, read_provenance, sidecar_path
from vidqa.tables.table import Table, new_table

TEXT = "Describe the video."
FIRST = Provenance({"s1": {"segment_s": None}}, {"m1": {"name": "demo", "model": "demo"}}, ({"id": "c", "text": TEXT},))
SECOND = Provenance({"s2": {"segment_s": 5.0}}, {"m2": {"name": "b", "model": "~/b"}}, ({"id": "w", "text": "Who?"},))
SUFFIXES = ["t.parquet", "t.csv", "t.jsonl", "t.arrow", "dataset/"]


def stored(path: Path | str) -> Provenance:
    return TableStorage(path).provenance()


def filled(path: str, rows: list[AnswerRow], provenance: Provenance) -> Table:
    table = Table(path).load()
    table.set_provenance(provenance)
    table.add(rows)
    return table


@pytest.mark.parametrize("name", SUFFIXES)
def test_it_accumulates_over_runs_and_is_dropped_with_the_last_row(
    row: Callable[..., AnswerRow], tmp_path: Path, name: str
) -> None:
    path = f"{tmp_path}/{name}"
    filled(path, [row()], FIRST).commit()
    other = row(media_id="b" * 32, path="b.mp4", question="Who?", model_id="m2", settings_id="s2")
    filled(path, [other], SECOND).commit()
    assert stored(path) == FIRST | SECOND
    table = Table(path).load()
    assert table.prune(lambda file: file.endswith("a.mp4")) == 1
    table.commit()
    if name != "dataset/":  # a file of a dataset that did not change keeps its own
        assert stored(path) == SECOND
    assert len(read_table(path)) == 1


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "dataset/"])
def test_a_killed_run_leaves_it_in_the_part_files(row: Callable[..., AnswerRow], tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"
    filled(path, [row()], FIRST).checkpoint()
    assert stored(path) == FIRST, "while the table does not exist yet"
    table = Table(path).load()
    table.set_provenance(SECOND)  # another run, with other settings, merges the rows
    assert table.recover() == 1
    assert stored(path) == FIRST


def test_a_table_of_an_earlier_version_has_none_and_stays_byte_identical(
    row: Callable[..., AnswerRow], tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    new_table([row()], path)
    before = path.read_bytes()
    table = Table(path).load()
    table.set_provenance(FIRST)
    table.commit()
    assert path.read_bytes() == before and not sidecar_path(path).exists() and not stored(path)
    filled(str(path), [row(media_id="b" * 32, path="b.mp4")], FIRST).commit()
    assert stored(path) == FIRST


def test_a_damaged_sidecar_is_ignored_with_a_warning(
    row: Callable[..., AnswerRow], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.jsonl"
    filled(str(path), [row()], FIRST).commit()
    for text in ("", "[]", '{"format": 1, "settings": [], "models": {}, "questions": []}', '{"format": 9}', "[" * 9999):
        sidecar_path(path).write_text(text)
        caplog.clear()
        assert not stored(path)
        assert "cannot be read" in caplog.text


def test_parquet_metadata_is_one_json_text(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    filled(str(path), [row()], FIRST).commit()
    data = json.loads(pl.read_parquet_metadata(path)[METADATA_KEY])
    assert data["settings"] == {"s1": {"segment_s": None}} and data["questions"] == [{"id": "c", "text": TEXT}]
    assert read_provenance(path) == FIRST
