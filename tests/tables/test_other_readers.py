"""Files that other programs open: Arrow without string views, CSV without formulas."""

from __future__ import annotations

import csv
import struct
from collections.abc import Callable
from dataclasses import make_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flatbuffers.table
import polars as pl
import pytest

from vidqa.records import AnswerRow
from vidqa.tables import search_results
from vidqa.tables.formats import read_table
from vidqa.tables.schema import SCHEMA, frame_to_rows, rows_to_frame
from vidqa.tables.table import Table, new_table

Make = Callable[..., AnswerRow]

#: Members of the union `Type` in Arrow's Schema.fbs that vidqa may write; 24, a string view, needs pyarrow 15.
ARROW_TYPES = {2: "int", 3: "float", 10: "timestamp", 20: "large_utf8", 21: "large_list"}


class Reader:
    """A table of a flatbuffer; fields by their number in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self._table: Any = flatbuffers.table.Table(data, at)

    @classmethod
    def root(cls, data: bytes) -> Reader:
        return cls(data, struct.unpack_from("<I", data)[0])

    def _at(self, field: int) -> int:
        return int(self._table.Offset(4 + 2 * field))

    def byte(self, field: int) -> int:
        return int(self._table.Bytes[self._table.Pos + self._at(field)])

    def table(self, field: int) -> Reader | None:
        at = self._at(field)
        return Reader(self._table.Bytes, self._table.Indirect(self._table.Pos + at)) if at else None

    def tables(self, field: int) -> list[Reader]:
        at = self._at(field)
        start, n = (self._table.Vector(at), self._table.VectorLen(at)) if at else (0, 0)
        return [Reader(self._table.Bytes, self._table.Indirect(start + 4 * i)) for i in range(n)]

    def string(self, field: int) -> str:
        return self._table.String(self._table.Pos + self._at(field)).decode()

    def blocks(self, field: int) -> list[tuple[int, int]]:
        """Offset and metadata length of each `Block` of a vector."""
        at = self._at(field)
        start, n = self._table.Vector(at), self._table.VectorLen(at)
        return [struct.unpack_from("<qi", self._table.Bytes, start + 24 * i) for i in range(n)]


def types_of(data: bytes) -> dict[str, int]:
    """Return the types of all columns of an Arrow file, and check that its record batches are not compressed."""
    n = struct.unpack_from("<i", data, len(data) - 10)[0]
    footer = Reader.root(data[len(data) - 10 - n : len(data) - 10])
    for offset, length in footer.blocks(3):
        message = Reader.root(data[offset + 8 : offset + length])  # after the continuation marker and the length
        batch = message.table(2)
        assert batch is not None and batch.table(3) is None, "the record batch is compressed"
    schema = footer.table(1)
    assert schema is not None
    fields = schema.tables(1)
    fields += [child for field in fields for child in field.tables(5)]
    return {field.string(0): field.byte(2) for field in fields}


@pytest.mark.parametrize("n_rows", [0, 3])
def test_arrow_files_have_no_string_views_and_no_compression(tmp_path: Path, row: Make, n_rows: int) -> None:
    path = tmp_path / "t.arrow"
    new_table([row(media_id=f"{i:032x}") for i in range(n_rows)], path)
    types = types_of(path.read_bytes())
    assert set(SCHEMA) <= set(types) and set(types.values()) <= set(ARROW_TYPES)
    assert ARROW_TYPES[types["answer"]] == "large_utf8" and ARROW_TYPES[types["frame_times_s"]] == "large_list"
    assert read_table(path).height == n_rows


def test_arrow_files_of_search_results_are_as_compatible(tmp_path: Path) -> None:
    values = dict.fromkeys(search_results.SCHEMA) | {"path": "a.mp4", "root": "/", "created_at": datetime.now(UTC)}
    hit = make_dataclass("Hit", search_results.SCHEMA)(**values)
    search_results.write_results([hit], tmp_path / "hits.arrow")
    types = types_of((tmp_path / "hits.arrow").read_bytes())
    assert list(types) == list(search_results.SCHEMA) and set(types.values()) <= set(ARROW_TYPES)


def test_a_table_with_string_views_and_compression_can_be_continued(tmp_path: Path, row: Make) -> None:
    """Earlier versions of vidqa wrote them, and polars does."""
    path = tmp_path / "t.arrow"
    rows_to_frame([row()]).write_ipc(path, compression="zstd", compat_level=pl.CompatLevel.newest())
    with pytest.raises(AssertionError, match="compressed"):
        types_of(path.read_bytes())
    table = Table(path).load()
    assert table.rows_for("a" * 32) == [row()]
    table.add([row(media_id="b" * 32, path="b.mp4")])
    table.commit()
    assert read_table(path).height == 2 and set(types_of(path.read_bytes()).values()) <= set(ARROW_TYPES)


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "''=1", "'@", "=", "'", "''", "'text",
    "it's", "a=1", " =1", "", "\ufeff=1", '="a"&"b"', "-",
]  # fmt: skip


def csv_cells(path: Path) -> list[dict[str, str]]:
    """Read a CSV file as another program does."""
    with path.open(newline="", encoding="utf-8-sig") as f:
        return list(csv.DictReader(f))


def formula_rows(row: Make) -> list[AnswerRow]:
    rows = [
        row(question=text or "q", answer=text, path=f"{text}x.mp4", root=text or "/", model=text) for text in FORMULAS
    ]
    return [*rows, row(status="failed", error_kind="timeout", error="-too slow", answer=None, confidence=-0.5)]


def test_csv_for_spreadsheets_has_no_formulas_and_reads_back_equal(tmp_path: Path, row: Make) -> None:
    path, rows = tmp_path / "t.csv", formula_rows(row)
    table = Table(path, for_spreadsheets=True).load()
    table.add(rows)
    table.commit()
    assert frame_to_rows(read_table(path)) == rows
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    for cells in csv_cells(path):
        for name in ("path", "root", "question", "answer", "model", "error"):
            assert cells[name][:1] not in tuple("=+-@\t\r\n\uff1d"), cells[name]
    assert csv_cells(path)[-1]["confidence"] == "-0.5", "a number is no formula"
    assert [cells["answer"] for cells in csv_cells(path)][8:10] == ["''=1", "'''=1"]


def test_a_plain_csv_is_written_as_it_is(tmp_path: Path, row: Make) -> None:
    new_table(formula_rows(row), tmp_path / "t.csv")
    assert [cells["answer"] for cells in csv_cells(tmp_path / "t.csv")][:-1] == FORMULAS
    assert frame_to_rows(read_table(tmp_path / "t.csv")) == formula_rows(row)


@pytest.mark.parametrize("first", [True, False])
def test_a_table_for_spreadsheets_stays_one(tmp_path: Path, row: Make, first: bool) -> None:
    """Also in runs without the option; a plain table becomes one when rows are written."""
    path = tmp_path / "t.csv"
    for number, option in enumerate((first, not first)):
        table = Table(path, for_spreadsheets=option).load()
        assert table.status(f"{0:032x}", "=1", "m1", "s1") == ("ok" if number else None)
        table.add([row(media_id=f"{number:032x}", path=f"={number}.mp4", question="=1")])
        table.commit()
    before = path.read_bytes()
    assert Table(path).load().commit() is False and path.read_bytes() == before
    assert [cells["path"] for cells in csv_cells(path)] == ["'=0.mp4", "'=1.mp4"]
    assert read_table(path)["path"].to_list() == ["=0.mp4", "=1.mp4"]


def test_search_results_for_spreadsheets(tmp_path: Path) -> None:
    values = dict.fromkeys(search_results.SCHEMA) | {"path": "=a.mp4", "root": "/", "text": "@x", "score": -0.5}
    hit = make_dataclass("Hit", search_results.SCHEMA)(**values)
    path = tmp_path / "hits.csv"
    search_results.write_results([hit], path, for_spreadsheets=True)
    (cells,) = csv_cells(path)
    assert (cells["path"], cells["text"], cells["score"]) == ("'=a.mp4", "'@x", "-0.5")
    search_results.check_target(path)
