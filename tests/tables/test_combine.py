"""Merging whole tables by the key of their rows, and writing them in other formats."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vidqa.errors import TableError, UsageError
from vidqa.records import AnswerRow
from vidqa.tables.combine import check_target, merged_rows, rows_to_keep, write_table
from vidqa.tables.formats import read_table
from vidqa.tables.provenance import Provenance, sidecar_path
from vidqa.tables.reader import TableReader
from vidqa.tables.table import Table, new_table

A, B = "a" * 32, "b" * 32
START = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def merge(tmp_path: Path, *tables: list[AnswerRow], pass_rows: int = 1000) -> list[tuple[Any, ...]]:
    readers = []
    for number, rows in enumerate(tables):
        path = tmp_path / f"{number}.{('parquet', 'csv', 'jsonl', 'arrow')[number % 4]}"
        new_table(rows, path)
        readers.append(TableReader(path))
    keep = rows_to_keep(readers, pass_rows=pass_rows)
    out = check_target(tmp_path / "out.parquet", replace=True)
    write_table(merged_rows(readers, keep, lambda n: None), out, Provenance())
    names = ("path", "media_id", "start_s", "status", "answer")
    return [tuple(row) for row in read_table(out.path).select(names).iter_rows()]


def test_an_answer_beats_a_failure_and_the_newest_beats_older_ones(
    row: Callable[..., AnswerRow], tmp_path: Path
) -> None:
    old, new = row(answer="old", created_at=at(0)), row(answer="new", created_at=at(1))
    failed = row(status="failed", created_at=at(2))
    assert [found[-1] for found in merge(tmp_path, [new], [old], [failed])] == ["new"]
    assert [found[-1] for found in merge(tmp_path, [failed], [old], [new])] == ["new"]
    assert [found[-1] for found in merge(tmp_path, [row(answer="a")], [row(answer="b")])] == ["b"]


def test_different_rows_are_all_kept(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    rows = [
        row(), row(path="b.mp4"), row(media_id=B), row(start_s=1.0), row(question="Who?"), row(model_id="m2"),
        row(settings_id="s2"), row(root="/other"),
    ]  # fmt: skip
    assert len(merge(tmp_path, rows[:3], rows[3:], rows)) == len(rows)


def test_failed_rows_of_a_whole_file_give_way_to_answers(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    whole = row(status="failed", start_s=None, end_s=None, n_segments=None, created_at=at(9))
    segments = [row(start_s=float(i), n_segments=3) for i in range(3)]
    assert {found[3] for found in merge(tmp_path, segments, [whole])} == {"ok"}
    partly = merge(tmp_path, segments[:2], [whole])
    assert sorted(found[3] for found in partly) == ["failed", "ok", "ok"], "it stands for the segment that is missing"
    unread = row(media_id=None, status="failed", start_s=None, end_s=None, n_segments=None, error_kind="permission")
    assert [found[3] for found in merge(tmp_path, [unread], segments[:1])] == ["ok"]
    assert [found[3] for found in merge(tmp_path, [unread], [unread])] == ["failed"]


def test_several_passes_find_the_same_rows(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    random.seed(1)
    tables = [
        [
            row(path=f"{random.randrange(20)}.mp4", created_at=at(random.randrange(9)), answer=f"{table} {i}")
            for i in range(60)
        ]
        for table in range(3)
    ]
    once, often = merge(tmp_path, *tables), merge(tmp_path, *tables, pass_rows=17)
    assert once == often and len(once) == 20


def test_the_target_is_checked_first(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    new_table([row()], tmp_path / "t.csv")
    reader = TableReader(tmp_path / "t.csv")
    with pytest.raises(UsageError, match="exists already"):
        check_target(tmp_path / "t.csv", replace=False)
    check_target(tmp_path / "t.csv", replace=False, inputs=[reader])
    with pytest.raises(UsageError, match="does not exist"):
        check_target(tmp_path / "no" / "t.csv", replace=True)
    with pytest.raises(UsageError, match="must end in"):
        check_target(tmp_path / "t.txt", replace=True)
    (tmp_path / "dataset").mkdir()
    new_table([row()], tmp_path / "dataset" / "part-000001.parquet")
    with pytest.raises(UsageError, match="new folder"):
        check_target(f"{tmp_path}/dataset/", replace=True)
    table = Table(tmp_path / "run.parquet").load()
    table.add([row()])
    table.checkpoint()
    with pytest.raises(TableError, match="interrupted run"):
        check_target(tmp_path / "run.parquet", replace=True)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow", "new/"])
def test_a_written_table_reads_back_equal_and_can_be_continued(
    row: Callable[..., AnswerRow], tmp_path: Path, name: str
) -> None:
    rows = [row(), row(path="=b\n\r.mp4", answer="=1+1"), row(path="c.mp4", status="failed")]
    new_table(rows, tmp_path / "source.parquet")
    source, provenance = TableReader(tmp_path / "source.parquet"), Provenance({"s1": {"segment_s": None}})
    target = check_target(f"{tmp_path}/{name}", replace=False)
    write_table(source.batches(), target, provenance, for_spreadsheets=True)
    assert read_table(target.path).equals(read_table(source.path))
    assert TableReader(target.path).provenance == provenance
    assert sidecar_path(target.path).exists() == (name[2:] in ("csv", "jsonl", "arrow"))
    table = Table(f"{tmp_path}/{name}").load()
    table.add([row(path="d.mp4", media_id=B)])
    table.commit()
    assert len(read_table(target.path)) == 4


def test_rows_of_an_interrupted_run_are_read(row: Callable[..., AnswerRow], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = Table(path).load()
    table.add([row()])
    table.checkpoint()
    assert TableReader(path).head(5)["path"].to_list() == ["a.mp4"] and TableReader(path).n_pending == 1
    table.commit()
    table.load().add([row(answer="again"), row(path="b.mp4")])
    table.checkpoint()
    reader = TableReader(path)
    assert reader.n_pending == 2
    assert reader.head(5, ["path", "answer"]).rows() == [("a.mp4", "again"), ("b.mp4", "A red circle moves left.")]
    assert read_table(path).height == 1, "the table itself is not touched"


def test_what_is_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    for name, message in (("x.csv", "does not belong"), ("no.csv", "no such table"), ("empty", "contains no table")):
        with pytest.raises(TableError, match=message) as error:
            TableReader(tmp_path / name).count()
        assert "--out" not in str(error.value)
