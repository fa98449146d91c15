"""Every format returns what was written; other files are refused, with the column, and left unchanged."""

from __future__ import annotations

import csv
import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest

from vidqa.errors import TableError
from vidqa.records import ROW_COLUMNS, AnswerRow
from vidqa.tables.formats import SUFFIXES, format_of, read_table, write
from vidqa.tables.schema import SCHEMA, frame_to_rows, rows_to_frame
from vidqa.tables.table import Table, new_table

Make = Callable[..., AnswerRow]
FORMS = [".parquet", ".csv", ".jsonl", ".arrow"]

TEXTS = [
    "", " lead and trail ", 'quo"te', "it's, a comma", "line\nline", "cr\r", "\r\n", "tab\t", "null", "NaN", "[1]",
    "\u044f\u0437\u044b\u043a \u4e2d\u6587 \U0001f4fc", "\u2028 \u0085", "nul\0", "\\x41 \\n \\", "#hash",
    "-1", "{}", "=1+1", "\0", "a\0b\"c,\n", "\ufeff", "\x1a\x7f", "\U0010ffff",
]  # fmt: skip
NAMES = [
    os.fsdecode(b"caf\xe9.mp4"),
    os.fsdecode(b"a\\b\xff.mp4"),
    "looks\\xe9.mp4",
    "back\\slash",
    "new\nline",
    "\ud83d.mp4",
]


@pytest.mark.parametrize("suffix", FORMS)
def test_round_trip(tmp_path: Path, row: Make, suffix: str) -> None:
    rows = [row()]
    rows += [row(answer=t, question=t, value=t, model=t or "m") for t in TEXTS]
    rows += [row(path=n, root="/videos/" + n) for n in NAMES] + [row(answer="long " * 600_000)]
    rows += [row(frame_times_s=()), row(frame_times_s=(5e-324, 1e300, 123456789.12345679)), row(confidence=1e-17)]
    rows += [row(n_prompt_tokens=2**53 + 1), row(created_at=datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC))]
    nothing = dict.fromkeys(c for c in ROW_COLUMNS if c not in KEPT)
    rows += [
        row(
            **nothing, status="failed", error_kind="crashed", error="the decoder died", vidqa_version="0", media_id=None
        )
    ]
    path = tmp_path / ("t" + suffix)
    new_table(rows, path)
    frame = read_table(path)
    assert frame.schema == pl.Schema(SCHEMA) and tuple(frame.columns) == ROW_COLUMNS
    found = frame_to_rows(frame)
    assert len(found) == len(rows)
    for a, b in zip(found, rows, strict=True):
        assert a == b
    again = tmp_path / ("again" + suffix)
    write(frame, again)
    assert read_table(again).equals(frame)


KEPT = (
    "media_id", "path", "root", "question_id", "question", "status", "model_id", "settings_id", "error_kind", "error",
    "vidqa_version",
)  # fmt: skip


@pytest.mark.parametrize("suffix", FORMS)
def test_a_table_without_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("t" + suffix)
    new_table([], path)
    assert read_table(path).schema == pl.Schema(SCHEMA) and read_table(path).height == 0


def test_all_null_columns_keep_their_types(tmp_path: Path, row: Make) -> None:
    for suffix in FORMS:
        path = tmp_path / ("t" + suffix)
        new_table([row(frame_times_s=None, width=None, fps=None, value=None, answer=None, status="empty")], path)
        assert read_table(path).schema == pl.Schema(SCHEMA)


def test_other_programs_can_read_the_csv(tmp_path: Path, row: Make) -> None:
    new_table([row(answer=t) for t in TEXTS], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as f:
        found = list(csv.DictReader(f))
    assert [r["answer"] for r in found] == TEXTS
    assert tuple(found[0]) == ROW_COLUMNS
    assert json.loads(found[0]["frame_times_s"]) == [0.0, 0.1, 1 / 3]
    assert datetime.fromisoformat(found[0]["created_at"]) == row().created_at


def test_other_programs_can_read_the_jsonl(tmp_path: Path, row: Make) -> None:
    new_table([row(answer=t) for t in TEXTS], tmp_path / "t.jsonl")
    found = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [r["answer"] for r in found] == TEXTS
    assert found[0]["frame_times_s"] == [0.0, 0.1, 1 / 3] and found[0]["value"] is None
    assert datetime.fromisoformat(found[0]["created_at"]) == row().created_at


def test_parquet_is_compressed_with_zstd(tmp_path: Path, row: Make) -> None:
    new_table([row(media_id=f"{i:032x}") for i in range(5000)], tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 5000 * 60


def test_timestamps_are_stored_in_utc(tmp_path: Path, row: Make) -> None:
    here = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert rows_to_frame([row(created_at=here)])["created_at"][0] == here.astimezone(UTC)
    with pytest.raises(ValueError, match="time zone"):
        rows_to_frame([row(created_at=datetime(2026, 1, 2))])


def test_an_unknown_suffix_is_an_error_that_lists_the_suffixes(tmp_path: Path) -> None:
    for name in ("captions.xlsx", "captions", ".parquet"):
        with pytest.raises(TableError, match=r"\.parquet, \.csv, \.jsonl or \.arrow"):
            Table(tmp_path / name)
    assert {format_of("X" + s.upper()) for s in SUFFIXES} == {"parquet", "csv", "jsonl", "arrow"}


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize(
    "garbage", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"hello\nworld\n", b"PAR1", b"\n", b"[1]\n", b'{"a":\n']
)
def test_garbage_is_refused_and_left_unchanged(tmp_path: Path, suffix: str, garbage: bytes) -> None:
    path = tmp_path / ("t" + suffix)
    path.write_bytes(garbage)
    with pytest.raises(TableError) as caught:
        Table(path).load()
    assert str(path) in caught.value.what and "--out" in (caught.value.hint or "")
    assert path.read_bytes() == garbage


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_every_truncation_of_a_table_is_refused(tmp_path: Path, row: Make, suffix: str) -> None:
    path = tmp_path / ("t" + suffix)
    new_table([row()], path)
    whole = path.read_bytes()
    for n in range(0, len(whole) - 40, 37):
        path.write_bytes(whole[:n])
        if suffix == ".csv" and n == whole.index(b"\n") + 1:
            continue  # only a header: a table without rows
        with pytest.raises(TableError):
            read_table(path)


def as_other_program(frame: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.with_columns(
            frame["frame_times_s"].cast(pl.String) if 0 else pl.lit("[]").alias("frame_times_s")
        ).write_csv(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    elif path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_ipc(path)


@pytest.mark.parametrize("suffix", FORMS)
def test_a_wrong_schema_is_an_error_that_names_the_column(tmp_path: Path, row: Make, suffix: str) -> None:
    path, good = tmp_path / ("t" + suffix), rows_to_frame([row(), row()])
    for frame, column in [
        (good.with_columns(pl.lit("wide").alias("width")), "width"),
        (good.with_columns(pl.lit(1.5).alias("n_prompt_tokens")), "n_prompt_tokens"),
        (good.with_columns(pl.lit("yesterday").alias("created_at")), "created_at"),
        (good.with_columns(pl.lit("fine").alias("status")), "status"),
        (good.with_columns(pl.lit(None, pl.String).alias("question")), "question"),
        (good.drop("settings_id"), "settings_id"),
        (good.with_columns(pl.lit("x").alias("my_notes")), "my_notes"),
    ]:
        as_other_program(frame, path)
        before = path.read_bytes()
        with pytest.raises(TableError, match=f"`{column}`"):
            Table(path).load()
        assert path.read_bytes() == before
    as_other_program(good, path)
    assert read_table(path).height == 2


@pytest.mark.parametrize("suffix", FORMS)
def test_columns_missing_in_an_older_table_are_null(tmp_path: Path, row: Make, suffix: str) -> None:
    path = tmp_path / ("t" + suffix)
    as_other_program(
        rows_to_frame([row()]).drop("confidence", "encoder_id", "created_at").select(pl.all().reverse()), path
    )
    table = Table(path).load()
    table.add([row(media_id="b" * 32, path="b.mp4")])
    table.commit()
    frame = read_table(path)
    assert tuple(frame.columns) == ROW_COLUMNS
    assert frame["created_at"].to_list() == [None, row().created_at]
    assert frame["encoder_id"].to_list() == [None, "e1"]


def test_types_widened_by_another_program_are_narrowed(tmp_path: Path, row: Make) -> None:
    wide = rows_to_frame([row(), row(width=None)]).with_columns(
        pl.col("width").cast(pl.Float64).fill_null(float("nan")),
        pl.col("height").cast(pl.Int16),
        pl.col("frame_times_s").cast(pl.List(pl.Float32)),
        pl.col("codec").cast(pl.Categorical),
        pl.col("created_at").dt.cast_time_unit("ns"),
    )
    wide.write_parquet(tmp_path / "t.parquet")
    frame = read_table(tmp_path / "t.parquet")
    assert frame["width"].to_list() == [640, None] and frame["height"][0] == 480
    assert frame.schema == pl.Schema(SCHEMA)


def test_a_full_disk_leaves_the_old_table(tmp_path: Path, row: Make) -> None:
    path = tmp_path / "t.csv"
    new_table([row()], path)
    table = Table(path).load()
    table.add(row(media_id=f"{i:032x}", path=f"{i}.mp4") for i in range(200))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(TableError, match="cannot be written") as caught:
            table.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in caught.value.what and str(tmp_path) in (caught.value.hint or "")
    assert path.read_bytes() == before and set(os.listdir(tmp_path)) <= {"t.csv", "t.csv.parts"}
    assert table.commit() and read_table(path).height == 201  # once there is space again, nothing is lost
    assert os.listdir(tmp_path) == ["t.csv"]


@pytest.mark.parametrize("suffix", FORMS)
def test_a_file_size_limit_at_any_byte_is_reported(tmp_path: Path, row: Make, suffix: str) -> None:
    """Whether the limit is reached in the rows or, for Parquet and Arrow, in the description at the end."""
    path = tmp_path / ("t" + suffix)
    new_table([row()], path)
    size, before = path.stat().st_size, path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(1, size, size // 12):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(TableError, match=r"cannot be written: File too large\n") as caught:
                new_table([row(), row()], path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "ulimit -f" in (caught.value.hint or "")
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_an_error_message_with_an_undecodable_name_is_written(tmp_path: Path, row: Make) -> None:
    message = "cannot open " + NAMES[0]
    new_table([row(status="failed", error=message)], tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["error"][0] == "cannot open caf\\xe9.mp4"
    assert replace(row(), path=NAMES[0]).path == NAMES[0]
