"""Long videos: rows of one file and question that reach the table one after another, and resuming in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from vidqa.records import AnsweredSegments, AnswerRow, MediaItem
from vidqa.tables.formats import read_table
from vidqa.tables.table import Table

Make = Callable[..., AnswerRow]
A, N = "a" * 32, 4
ASKED = ("Describe the video.", "m1", "s1")


def item(name: str = "a.mp4") -> MediaItem:
    return MediaItem(f"/videos/{name}", "/videos", name, 1, 1)


@pytest.fixture(params=["t.parquet", "t.csv", "t.jsonl", "set/"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/{request.param}"


@pytest.fixture
def some(row: Make) -> Callable[..., list[AnswerRow]]:
    def make(*numbers: int, **changes: object) -> list[AnswerRow]:
        return [row(start_s=i / 3, end_s=(i + 1) / 3, n_segments=N, **changes) for i in numbers]

    return make


def kept(table: Table, *, with_failed: bool = True) -> dict[str, AnsweredSegments]:
    rows = table.segments(A, item(), ASKED)
    assert rows is not None
    starts = rows.answered | rows.failed if with_failed else rows.answered
    return {ASKED[0]: AnsweredSegments(rows.n_segments, frozenset(starts))}


def starts(table: Iterable[AnswerRow]) -> list[float | None]:
    return sorted((one.start_s for one in table), key=str)


def test_missing_segments_are_known_after_every_end_of_a_run(out: str, some: Callable[..., list[AnswerRow]]) -> None:
    table = Table(out).load()
    table.add(some(0))
    table.add(some(2))
    assert table.checkpoint()
    killed = Table(out).load()  # only the journal has the rows
    assert killed.recover() == 2
    for again in (killed, Table(out).load()):
        rows = again.segments(A, item(), ASKED)
        assert rows is not None and not rows.is_complete and not rows.has_failed
        assert (rows.n_segments, rows.answered) == (N, {0.0, 2 / 3})
    table = Table(out).load()
    table.add(some(1), kept(table))
    table.add(some(3), kept(table))
    assert table.segments(A, item(), ASKED) is None, "complete"
    table.commit()
    assert starts(Table(out).load().rows_for(A)) == [0.0, 1 / 3, 2 / 3, 1.0]
    assert Table(out).load().segments(A, item(), ASKED) is None


def test_another_number_of_segments_replaces_all(out: str, some: Callable[..., list[AnswerRow]], row: Make) -> None:
    table = Table(out).load()
    table.add(some(0, 2))
    table.commit()
    table = Table(out).load()
    table.add([row(start_s=0.0, n_segments=2, answer="new")], {ASKED[0]: AnsweredSegments(N, frozenset({0.0}))})
    table.add([row(start_s=1.0, n_segments=2, answer="new")])
    table.commit()
    assert [one.answer for one in Table(out).load().rows_for(A)] == ["new", "new"]


def test_a_retry_replaces_only_failed_segments(out: str, some: Callable[..., list[AnswerRow]]) -> None:
    table = Table(out).load()
    table.add([*some(0, 1), *some(2, 3, status="failed")])
    table.commit()
    table = Table(out).load()
    rows = table.segments(A, item(), ASKED)
    assert rows is not None and rows.is_complete and rows.failed == {2 / 3, 1.0}
    table.add(some(2, answer="second try"), kept(table, with_failed=False))
    table.checkpoint()
    killed = Table(out).load()
    killed.recover()
    rows = killed.segments(A, item(), ASKED)
    assert rows is not None and not rows.is_complete and rows.answered == {0.0, 1 / 3, 2 / 3} and not rows.failed
    killed.add(some(3, answer="third try"), kept(killed, with_failed=False))
    killed.commit()
    assert [one.answer for one in Table(out).load().rows_for(A)][2:] == ["second try", "third try"]
    assert Table(out).load().counts() == {"ok": 4}


def test_a_failed_row_for_the_rest_of_a_file(out: str, some: Callable[..., list[AnswerRow]], row: Make) -> None:
    table = Table(out).load()
    table.add(some(0, 1))
    table.add([row(start_s=None, end_s=None, n_segments=None, status="failed")], kept(table))
    table.commit()
    table = Table(out).load()
    rows = table.segments(A, item(), ASKED)
    assert rows is not None and rows.is_complete and rows.rest_failed and rows.answered == {0.0, 1 / 3}
    table.add(some(2, 3), kept(table))
    table.commit()
    assert starts(Table(out).load().rows_for(A)) == [0.0, 1 / 3, 2 / 3, 1.0]


def test_rows_of_earlier_versions_count_as_complete(out: str, row: Make) -> None:
    table = Table(out).load()
    table.add([row(start_s=float(i), n_segments=None) for i in range(3)])
    table.commit()
    table = Table(out).load()
    assert table.segments(A, item(), ASKED) is None and table.status(A, *ASKED) == "ok"


def test_renamed_and_copied_files_keep_their_missing_segments(out: str, some: Callable[..., list[AnswerRow]]) -> None:
    table = Table(out).load()
    table.add(some(0, 1))
    table.commit()
    table = Table(out).load()
    assert table.update_paths([(A, item("b.mp4"))], exists=lambda _: False).n_renamed == 1
    assert table.segments(A, item(), ASKED) is None
    moved = table.segments(A, item("b.mp4"), ASKED)
    assert moved is not None and moved.answered == {0.0, 1 / 3}
    assert table.update_paths([(A, item("c.mp4"))], exists=lambda _: True, copy_incomplete=False).n_copied == 0
    assert table.update_paths([(A, item("c.mp4"))], exists=lambda _: True).n_copied == 1
    table.commit()
    table = Table(out).load()
    for name in ("b.mp4", "c.mp4"):
        rows = table.segments(A, item(name), ASKED)
        assert rows is not None and rows.answered == {0.0, 1 / 3} and not rows.is_complete
    table.add([one for one in some(2, 3, path="c.mp4")], {ASKED[0]: AnsweredSegments(N, frozenset({0.0, 1 / 3}))})
    assert table.update_paths([(A, item("b.mp4"))], exists=lambda _: True).n_copied == 1, "a complete copy replaces it"
    table.commit()
    assert len(read_table(out)) == 8 and Table(out).load().segments(A, item("b.mp4"), ASKED) is None


def test_other_questions_and_dropped_files_do_not_matter(
    out: str, some: Callable[..., list[AnswerRow]], row: Make
) -> None:
    table = Table(out).load()
    table.add([*some(0, 1), *some(0, 1, 2, 3, question="Why?")])
    assert table.segments(A, item(), ("Why?", "m1", "s1")) is None
    assert table.states(A, item(), ASKED).total() == 2 and table.states(A, item("x.mp4"), ASKED).total() == 0
    table.prune(lambda path: True)
    assert table.segments(A, item(), ASKED) is None and len(table) == 0
