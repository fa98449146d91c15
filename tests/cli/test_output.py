"""What commands print about rows: nothing that a model writes reaches the terminal as a control sequence."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from vidqa.cli.output import answer_text, rows_as_table
from vidqa.errors import ItemError
from vidqa.pipeline.run.rows import failed_row
from vidqa.pipeline.run.run_options import Identity
from vidqa.records import AnswerRow, MediaItem, Question, WorkItem

HOSTILE = "red\x1b[2J\x07 star\u202e\nsecond\tline"


def row(path: str, answer: str) -> AnswerRow:
    work = WorkItem(MediaItem(f"/clips/{path}", "/clips", path, 1, 1), "c" * 32)
    failed = failed_row(
        work, Question("q", "What?"), ItemError("timeout", "slow"), Identity("m", "m1", "e1", "0"), "s1"
    )
    return replace(failed, status="ok", error_kind=None, error=None, answer=answer)


def test_a_table_of_answers_has_one_printable_line_per_row() -> None:
    rows = [row(path="a.mp4", answer=HOSTILE), row(path="b\x1b[1m.mp4", answer="blue")]
    first, second = rows_as_table(rows).splitlines()
    assert first.isprintable() and second.isprintable()
    assert first.endswith(r"red\x1b[2J\x07 star\u202e second line")


@pytest.mark.parametrize(
    ("at_terminal", "printed"), [(True, "red\\x1b[2J\\x07 star\\u202e\nsecond\tline"), (False, HOSTILE)]
)
def test_an_answer_is_escaped_on_a_terminal_only(
    at_terminal: bool, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: at_terminal, raising=False)
    assert answer_text(HOSTILE) == printed and answer_text(None) == ""
