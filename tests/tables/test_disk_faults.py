"""Full disks, folders that become read-only, clocks set back, damaged part files, and other files in the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from vidqa.common.file_lock import FileLock
from vidqa.errors import LockedError, TableError
from vidqa.records import AnswerRow, MediaItem
from vidqa.tables.formats import read_table
from vidqa.tables.schema import frame_to_rows
from vidqa.tables.table import Table, new_table

Make = Callable[..., AnswerRow]
Mount = Callable[..., None]
A, B = "a" * 32, "b" * 32
ASKED = ("Describe the video.", "m1", "s1")


def many(row: Make, start: int, n: int) -> list[AnswerRow]:
    """Return rows that do not compress."""
    return [row(media_id=os.urandom(16).hex(), path=f"{start + i}.mp4", answer=os.urandom(40).hex()) for i in range(n)]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "set/"])
def test_a_full_disk_loses_no_finished_rows(small_disk: Path, row: Make, name: str) -> None:
    out = f"{small_disk}/{name}"
    table = Table(out).load()
    table.add(first := many(row, 0, 100))
    table.commit()
    (small_disk / "ballast").write_bytes(b"\0" * (40 << 10))
    table, n_safe = Table(out).load(), 0
    with pytest.raises(TableError, match="cannot be written") as caught:
        for k in range(100):
            table.add(many(row, 1000 * (k + 1), 100))
            table.checkpoint()
            n_safe += 100
    assert "free space" in (caught.value.hint or "") and n_safe > 0
    with pytest.raises(TableError, match="cannot be written"):
        table.commit()
    assert frame_to_rows(read_table(out)) == first  # a reader sees the complete old table
    for part in (small_disk / (name.rstrip("/") + ".parts")).glob("0*"):
        assert pl.read_parquet(part).height == 100
    again = Table(out).load()
    if n_safe > 300:  # the disk has no space for two copies even without the ballast
        return
    (small_disk / "ballast").unlink()
    assert again.recover() == n_safe and len(read_table(out)) == 100 + n_safe


def test_a_read_only_folder_is_an_error_before_the_run_starts(small_disk: Path, mount: Mount, row: Make) -> None:
    new_table([row()], small_disk / "t.parquet")
    mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(TableError, match="is not writable") as caught:
        Table(small_disk / "t.parquet").load()
    assert "--out" in (caught.value.hint or "")
    assert len(read_table(small_disk / "t.parquet")) == 1


def test_a_folder_that_becomes_read_only_keeps_the_table(small_disk: Path, mount: Mount, row: Make) -> None:
    new_table([row()], small_disk / "t.parquet")
    table = Table(small_disk / "t.parquet").load()
    table.add([row(media_id=B, path="b.mp4")])
    mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(TableError, match="Read-only"):
        table.commit()
    mount("-o", "remount,rw", str(small_disk))
    assert table.commit() and len(read_table(small_disk / "t.parquet")) == 2


def test_the_free_space_is_checked_before_the_first_row(small_disk: Path, row: Make) -> None:
    new_table(many(row, 0, 600), small_disk / "t.parquet")
    table = Table(small_disk / "t.parquet").load()
    size = (small_disk / "t.parquet").stat().st_size
    assert table.bytes_needed(0) == size and table.bytes_needed(600) == pytest.approx(3 * size, rel=0.01)
    table.check_free_space()
    (small_disk / "ballast").write_bytes(b"\0" * ((256 << 10) - size - (size // 2)))
    with pytest.raises(TableError, match=r"No space left on device: .* required") as caught:
        table.check_free_space()
    assert f"free space in {small_disk}" in (caught.value.hint or "")


def test_a_lock_is_held_on_a_full_disk(small_disk: Path) -> None:
    """It cannot name its holder there, but nothing else is lost."""
    with (small_disk / "ballast").open("wb", buffering=0) as f, suppress(OSError):
        while f.write(b"\0" * 4096):
            pass
    with FileLock(small_disk / "t.parquet"), pytest.raises(LockedError, match="another run"):
        FileLock(small_disk / "t.parquet").__enter__()
    assert os.listdir(small_disk) == ["ballast"]


def test_a_clock_set_back(tmp_path: Path, row: Make) -> None:
    """Neither the names of parts, nor existing answers, nor the owner of a lock depend on the clock."""
    out = tmp_path / "t.parquet"
    for year in (2026, 1971):
        table = Table(out).load()
        table.add([row(question=str(year), created_at=datetime(year, 1, 1, tzinfo=UTC))])
        table.checkpoint()
        for path in (tmp_path / "t.parquet.parts").iterdir():
            os.utime(path, (year, year))
    assert Table(out).load().recover() == 2
    assert [r.question for r in frame_to_rows(read_table(out))] == ["2026", "1971"]
    os.utime(out, (1, 1))
    table = Table(out).load()
    assert table.status(A, "2026", *ASKED[1:]) == table.status(A, "1971", *ASKED[1:]) == "ok"
    (tmp_path / ".t.parquet.lock").write_text(json.dumps({"host": "h", "pid": 1, "start": "2099-01-01T00:00:00+00:00"}))
    with FileLock(out) as lock:
        assert lock.stale_holder is not None and lock.stale_holder.start.startswith("2099")


def test_parts_of_an_interrupted_run_count_and_loading_does_not_change_them(tmp_path: Path, row: Make) -> None:
    out = tmp_path / "t.csv"
    table = Table(out).load()
    table.add([row(), row(media_id=B, path="b.mp4", status="failed")])
    table.checkpoint()
    seen = Table(out).load()  # as --dry-run loads it
    assert seen.status(A, *ASKED) == "ok" and seen.counts() == {"ok": 1, "failed": 1}
    assert seen.rows_for(A) == [row()]
    assert sorted(os.listdir(tmp_path)) == ["t.csv.parts"]
    assert seen.recover() == 2 and os.listdir(tmp_path) == ["t.csv"]
    assert Table(out).load().recover() == 0


def test_a_damaged_part_is_an_error_that_names_it(tmp_path: Path, row: Make) -> None:
    out = tmp_path / "t.parquet"
    table = Table(out).load()
    for question in ("one", "two"):
        table.add([row(question=question)])
        table.checkpoint()
    part = tmp_path / "t.parquet.parts" / "000001.parquet"
    whole = part.read_bytes()
    for damaged in (whole[:-20], b"", whole[:100] + b"\xff" * 100 + whole[200:]):
        part.write_bytes(damaged)
        with pytest.raises(TableError, match=r"000001\.parquet") as caught:
            Table(out).load().recover()
        assert "move this file away" in (caught.value.hint or "")
    pl.DataFrame({"x": [1]}).write_parquet(part)
    with pytest.raises(TableError, match="not a part file"):
        Table(out).load()
    part.rename(tmp_path / "away.parquet")
    assert Table(out).load().recover() == 1
    assert [r.question for r in frame_to_rows(read_table(out))] == ["two"]


def test_a_dataset_grows_and_rewrites_only_changed_files(tmp_path: Path, row: Make) -> None:
    out = f"{tmp_path}/set/"
    for k in range(3):
        table = Table(out).load()
        table.add([row(media_id=f"{k:032x}", path=f"{k}.mp4", status="failed" if k == 1 else "ok")])
        assert table.commit()
    names = sorted(os.listdir(out))
    assert names == ["part-000001.parquet", "part-000002.parquet", "part-000003.parquet"]
    before = {name: (Path(out) / name).stat().st_ino for name in names}
    table = Table(tmp_path / "set").load()  # an existing folder needs no slash
    item = MediaItem("/videos/new.mp4", "/videos", "new.mp4", 1, 1)
    table.update_paths([(f"{2:032x}", item)], exists=lambda path: False)
    table.add([row(media_id=f"{1:032x}", path="1.mp4")])
    assert table.commit() and not table.commit()
    found = frame_to_rows(read_table(tmp_path / "set"))
    assert [(r.path, r.status) for r in found] == [("0.mp4", "ok"), ("new.mp4", "ok"), ("1.mp4", "ok")]
    assert pl.read_parquet(f"{out}/*.parquet").height == 3
    after = {name: (Path(out) / name).stat().st_ino for name in names}
    assert after[names[0]] == before[names[0]] and after[names[2]] != before[names[2]]
    assert sorted(os.listdir(tmp_path)) == ["set"]


def test_a_folder_with_other_files_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(TableError, match=r"movie\.mp4"):
        Table(f"{tmp_path}/").load()
    with pytest.raises(TableError, match="is a file"):
        Table(f"{tmp_path}/movie.mp4/").load()


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "set/"])
def test_prune_drops_the_rows_of_deleted_files(tmp_path: Path, row: Make, name: str) -> None:
    out = f"{tmp_path}/{name}"
    table = Table(out).load()
    table.add([row(), row(media_id=B, path="b.mp4"), row(media_id=None, path="c.mp4", status="failed")])
    table.commit()
    table = Table(out).load()
    assert table.prune(lambda path: path != "/videos/b.mp4") == 2
    table.commit()
    assert [r.path for r in frame_to_rows(read_table(out))] == ["b.mp4"]


def test_more_rows_than_one_batch(tmp_path: Path, row: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches of three rows, changes to a row do not depend on where a batch ends."""
    for module in ("formats", "journal.storage"):
        monkeypatch.setattr(f"vidqa.tables.{module}.BATCH_ROWS", 3)
    monkeypatch.setattr("vidqa.tables.formats._JSONL_BYTES", 1000)
    for suffix in (".parquet", ".csv", ".jsonl", ".arrow"):
        out = tmp_path / ("t" + suffix)
        table = Table(out).load()
        table.add(row(media_id=f"{k // 2:032x}", path=f"{k // 2}.mp4", start_s=k % 2 / 1) for k in range(20))
        table.commit()
        table = Table(out).load()
        moved = MediaItem("/videos/new.mp4", "/videos", "new.mp4", 1, 1)
        table.update_paths([(f"{3:032x}", moved)], exists=lambda path: False)
        table.add([row(media_id=f"{4:032x}", path="4.mp4", answer="again")])
        copied = MediaItem("/videos/copy.mp4", "/videos", "copy.mp4", 1, 1)
        table.update_paths([(f"{5:032x}", copied)], exists=lambda path: True)
        table.commit()
        paths = [f"{k // 2}.mp4" for k in range(20)]
        paths[6:10] = ["new.mp4", "new.mp4"]
        assert [r.path for r in frame_to_rows(read_table(out))] == [*paths, "4.mp4", "copy.mp4", "copy.mp4"], suffix
