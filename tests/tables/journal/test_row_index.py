"""The row index: every row is found by its content and file, in any order of rows, in little memory."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from vidqa.records import AnswerRow
from vidqa.tables.journal.row_index import RowIndex
from vidqa.tables.journal.row_keys import KEY_COLUMNS, STATUSES, QuestionKey, RowEntry, RowState, file_path
from vidqa.tables.schema import rows_to_frame

Make = Callable[..., AnswerRow]
QUESTION = QuestionKey("Describe the video.", "m1", "s1")


def batches(rows: list[AnswerRow], size: int) -> list[pl.DataFrame]:
    frame = rows_to_frame(rows).select(KEY_COLUMNS)
    return [frame[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parametrize("seed", range(3))
def test_rows_in_any_order_are_found(row: Make, seed: int) -> None:
    """Rows of one file may be far apart in the table, as when a second question was asked weeks later."""
    chance = random.Random(seed)
    rows = []
    for _ in range(300):
        names = {"media_id": f"{chance.randrange(20):032x}", "path": f"{chance.randrange(2)}.mp4"}
        values = {
            "status": chance.choice(STATUSES),
            "media_note": chance.choice([None, "truncated: 1 of 2 s readable"]),
        }
        if values["status"] == "failed":
            values["error_kind"] = chance.choice(["timeout", "partial"])
        rows.append(row(**names, question=chance.choice("QRS"), answer=None, **values))
    index = RowIndex(batches(rows, chance.randrange(1, 60)))
    assert len(index) == 300 == sum(index.counts().values())
    for media_id in {r.media_id for r in rows}:
        mine = [(i, r.root, r.path) for i, r in enumerate(rows) if r.media_id == media_id]
        assert index.rows(media_id) == mine
        assert {(file.root, file.path) for file in index.files(media_id).values()} == {(r, p) for _, r, p in mine}
        for question in "QRS":
            states = [
                (r.path, RowState(r.status, (r.error_kind == "partial") if r.error_kind else r.media_note is not None))
                for r in rows
                if r.media_id == media_id and r.question == question
            ]
            key = QuestionKey(question, "m1", "s1")
            assert index.states(media_id, key) == Counter(state for _, state in states)
            of_one = Counter(state for path, state in states if path == "1.mp4")
            assert index.states(media_id, key, "/videos/1.mp4") == of_one
    for status in STATUSES:
        assert index.counts().get(status, 0) == sum(r.status == status for r in rows)


def test_names_of_any_kind_are_returned(row: Make) -> None:
    names = ["a.mp4", "\u044f\u0437\u044b\u043a", "nul\0", "\U0001f4fc", "a" * 300, "\udcff.mp4", "looks\\xff.mp4"]
    rows = [row(media_id=f"{i:032x}", path=name, root="/r/" + name) for i, name in enumerate(names)]
    index = RowIndex(batches(rows, 3))
    for row_ in rows:
        index.append(row_.media_id, row_.root, row_.path, [RowEntry(QUESTION, RowState("failed"), None, None)])
    for i, row_ in enumerate(rows):
        assert row_.media_id is not None
        assert index.rows(row_.media_id) == [(i, row_.root, row_.path), (i + len(rows), row_.root, row_.path)]
        assert index.has_failed(row_.media_id, file_path(row_.root, row_.path), QUESTION)
    assert sorted(index.all_files()) == sorted((r.media_id, r.root, r.path) for r in rows)  # type: ignore[type-var]


def test_ids_of_any_kind_are_found(row: Make) -> None:
    ids = [f"{i:032x}" for i in range(50)] + [letter * 32 for letter in "ghijk"]
    strange = ["", "short", "\u044f" * 16, "long" * 20, "long" * 20 + "er"]
    for some in (ids, ids + strange):
        rows = [row(media_id=m, path=f"{i}.mp4", root=f"/r{i % 3}") for i, m in enumerate(some)]
        rows.append(row(media_id=None, path="unread.mp4", status="failed", error_kind="permission"))
        frame = rows_to_frame(rows).select(KEY_COLUMNS)
        index = RowIndex([frame[:7], frame[7:], frame])
        for i, media_id in enumerate(some):
            names = (f"/r{i % 3}", f"{i}.mp4")
            assert index.rows(media_id) == [(i, *names), (i + len(rows), *names)]
            assert list(index.files(media_id)) == ["/".join(names)]
        assert index.files("none") == {} and index.rows("none") == []
        assert index.rows(None) == [(k * len(rows) + len(some), "/videos", "unread.mp4") for k in range(2)]
        assert (None, "/videos", "unread.mp4") in list(index.all_files())
        assert index.has_failed(None, "/videos/unread.mp4", QUESTION)


def test_files_with_equal_names_or_contents_stay_separate(row: Make) -> None:
    """No part of a file's key alone identifies it."""
    rows = [row(media_id=f"{i % 5:032x}", root=f"/r{i % 2}", path=f"{i % 3}.mp4") for i in range(30)]
    index = RowIndex(batches(rows, 10))
    assert len(list(index.all_files())) == 30
    for i, found in enumerate(rows):
        path = file_path(found.root, found.path)
        index.drop(found.media_id, path)
        assert len(index) == 30 - i - 1 and index.dropped().sum() == i + 1 and index.dropped()[i]


def test_changes_are_reported_by_row_number(row: Make) -> None:
    a, b = "a" * 32, "b" * 32
    rows = [row(), row(start_s=1.0), row(question="Why?"), row(media_id=b, path="b.mp4"), row(question="Why?")]
    index = RowIndex(batches(rows, 2))
    assert index.copy(a, "/videos/a.mp4", QuestionKey("Why?", "m1", "s1"), "/videos", "c.mp4") == ["ok", "ok"]
    index.move(a, "/videos/a.mp4", "/videos", "new.mp4")
    index.drop(a, "/videos/new.mp4", QUESTION)
    index.append(b, "/videos", "b2.mp4", [RowEntry(QUESTION, RowState("ok"), 0.0, None)] * 2)
    assert index.dropped().tolist() == [True, True, False, False, False, False, False]
    assert index.renamed().rows.tolist() == [2, 4] and index.renamed().names == [("/videos", "new.mp4")] * 2
    assert index.copies().rows.tolist() == [2, 4] and index.copies().names == [("/videos", "c.mp4")] * 2
    assert len(index) == 7 and index.counts() == {"ok": 7}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc (Linux)")
def test_the_index_is_small(tmp_path: Path) -> None:
    """400,000 files with one row each: at most 320 bytes a file, also while the index is built."""
    code = (
        "import resource, polars as pl\n"
        "from vidqa.tables.journal.row_index import RowIndex\n"
        "def frames(n):\n"
        "    for a in range(0, n, 50_000):\n"
        "        i = pl.DataFrame({'i': range(a, min(a + 50_000, n))})\n"
        "        media_id = (pl.col('i').hash().cast(pl.String) + '0' * 32).str.slice(0, 32)\n"
        "        path = pl.format('folder/clip{}.mp4', 1_000_000 + pl.col('i'))\n"
        "        rest = dict(root='/archive', question='What?', model_id='m', settings_id='s', status='ok',\n"
        "                    error_kind=None, media_note=None, start_s=0.0, n_segments=1, question_id='what')\n"
        "        rest = {name: pl.lit(value) for name, value in rest.items()}\n"
        "        yield i.select(media_id=media_id, path=path, **rest)\n"
        "def peak():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "few = RowIndex(frames(100_000))\n"
        "before = peak()\n"
        "many = RowIndex(frames(500_000))\n"
        "print((peak() - before) / 400_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 320, done.stdout
