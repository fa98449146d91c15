"""A run dies at any of its steps on the disk: readers see the old table or the new one, and the next run mends all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vidqa.records import AnswerRow, MediaItem
from vidqa.tables.formats import read_table
from vidqa.tables.schema import frame_to_rows
from vidqa.tables.table import Table

Make = Callable[..., AnswerRow]
A, B, C, D = (letter * 32 for letter in "abcd")
ASKED = ("Describe the video.", "m1", "s1")
#: What changes a folder. A kill between two of these leaves what the first left.
STEPS = ("replace", "fsync", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """Stands for kill -9: from here on the process changes nothing on the disk."""


@contextmanager
def dying(at: int | None) -> Iterator[list[str]]:
    """Let the process die at its step number `at`: that one and all after it do not happen."""
    done: list[str] = []
    before = {name: getattr(os, name) for name in STEPS}

    def counted(name: str) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if at is not None and len(done) >= at:
                raise Killed
            done.append(name)
            return before[name](*args, **kwargs)

        return step

    try:
        for name in STEPS:
            setattr(os, name, counted(name))
        yield done
    except Killed:
        pass
    finally:
        for name in STEPS:
            setattr(os, name, before[name])


def item(path: str) -> MediaItem:
    return MediaItem("/videos/" + path, "/videos", path, 1, 1)


def first_night(out: str, row: Make) -> None:
    table = Table(out).load()
    table.add([row(), row(start_s=1 / 3, end_s=0.5)])
    table.add([row(media_id=B, path="b.mp4", status="failed")])
    table.add([row(media_id=C, path="c.mp4")])
    table.commit()


def second_night(out: Path, row: Make) -> None:
    """A file renamed, another copied, a failed one retried, a new one, one gone for good: in two parts."""
    table = Table(out).load()
    table.recover()
    found = [(A, item("new.mp4")), (B, item("b.mp4")), (C, item("c.mp4")), (C, item("c copy.mp4"))]
    table.update_paths(found, exists=lambda place: place != "/videos/a.mp4")
    if table.status(B, *ASKED) == "failed":
        table.add([row(media_id=B, path="b.mp4")])
    table.checkpoint()
    if table.status(D, *ASKED) is None:
        table.add([row(media_id=D, path="d.mp4", start_s=float(s)) for s in range(3)])
    table.checkpoint()
    table.commit()


def told(out: Path) -> list[tuple[object, ...]]:
    rows = frame_to_rows(read_table(out)) if out.exists() else []
    return sorted((r.media_id, r.path, r.start_s, r.status) for r in rows)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "set/"])
def test_every_step_may_be_the_last(tmp_path: Path, row: Make, name: str) -> None:
    base, out = tmp_path / "base", tmp_path / "work" / name.rstrip("/")
    base.mkdir()
    first_night(f"{base}/{name}", row)
    old = told(base / name.rstrip("/"))

    def fresh() -> None:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        shutil.copytree(base, tmp_path / "work")

    fresh()
    with dying(None) as steps:
        second_night(out, row)
    new = told(out)
    assert len(new) == 8 and len(old) == 4
    assert len(steps) >= 15
    for at in range(0, len(steps), 1 if name == "t.parquet" else 3):  # how a format is written is no step of ours
        fresh()
        with dying(at):
            second_night(out, row)
        seen = told(out)
        if name == "set/":  # several files, renamed one by one: a row may be missing for a moment, none is there twice
            assert len(set(seen)) == len(seen) and set(seen) <= {*old, *new}
        else:
            assert seen in (old, new), f"a reader saw neither table after step {at}, {steps[at]}"
        second_night(out, row)
        assert told(out) == new, f"rows differ after step {at}, {steps[at]}"
        assert set(os.listdir(tmp_path / "work")) == {name.rstrip("/")}
