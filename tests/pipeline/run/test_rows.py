"""Rows from answers and errors."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import numpy as np
import pytest

from vidqa.errors import ItemError
from vidqa.pipeline.run.rows import answered_row, failed_row
from vidqa.pipeline.run.run_options import Identity
from vidqa.records import Answer, EncodedSegment, Features, MediaFacts, MediaItem, Question, WorkItem

IDENTITY = Identity("tiny", "m1", "e1", "0.1.0")
QUESTION = Question("q", "What?")
WORK = WorkItem(MediaItem("/clips/x/a.mp4", "/clips", "x/a.mp4", 1, 1), "c" * 32, (QUESTION,))
FEATURES = Features(np.zeros((4, 5, 16), np.float16), np.zeros(8, np.float32), True, "video")
SEGMENT = EncodedSegment(
    MediaFacts("video", "h264", 640, 480, 9.5, 25.0),
    2.0,
    3.0,
    (2.0, 2.5, 3.0, 3.0),
    (False, False, False, True),
    FEATURES,
)


def test_an_answer() -> None:
    answer = Answer("red", "ok", "eos", 20, 31, 3)
    row = answered_row(WORK, QUESTION, SEGMENT, answer, IDENTITY, "s1")
    assert (row.media_id, row.root, row.path) == ("c" * 32, "/clips", "x/a.mp4")
    assert (row.question_id, row.question, row.answer, row.status, row.finish_reason) == (
        *("q", "What?", "red", "ok", "eos"),
    )
    assert (row.start_s, row.end_s, row.frame_times_s, row.n_repeated_frames) == (2.0, 3.0, (2.0, 2.5, 3.0, 3.0), 1)
    assert (row.n_visual_tokens, row.n_prompt_tokens, row.n_answer_tokens) == (20, 31, 3)
    assert (row.width, row.height, row.duration_s, row.fps, row.codec) == (640, 480, 9.5, 25.0, "h264")
    assert (row.model, row.model_id, row.encoder_id, row.settings_id) == ("tiny", "m1", "e1", "s1")
    assert row.error is None and row.error_kind is None and row.created_at.tzinfo is UTC


@pytest.mark.parametrize("status", ["truncated", "empty"])
def test_an_empty_answer_is_null(status: str) -> None:
    answer = Answer("" if status == "empty" else "re", status, "length", 20, 31, 2)  # type: ignore[arg-type]
    row = answered_row(WORK, QUESTION, SEGMENT, answer, IDENTITY, "s1")
    assert (row.status, row.answer) == (status, None if status == "empty" else "re")


def test_a_question_that_fails_keeps_the_facts_of_its_segment() -> None:
    error = ItemError("prompt_too_long", "/clips/x/a.mp4: 900 tokens")
    row = answered_row(WORK, QUESTION, SEGMENT, error, IDENTITY, "s1")
    assert (row.status, row.answer, row.error_kind, row.error) == ("failed", None, "prompt_too_long", "900 tokens")
    assert (row.start_s, row.n_repeated_frames, row.width, row.n_prompt_tokens) == (2.0, 1, 640, None)


def test_facts_that_are_not_finite_are_null() -> None:
    facts = replace(SEGMENT.facts, duration_s=float("inf"), fps=float("nan"))
    row = answered_row(
        WORK, QUESTION, replace(SEGMENT, facts=facts), Answer("red", "ok", "eos", 20, 31, 3), IDENTITY, "s"
    )
    assert (row.duration_s, row.fps, row.width) == (None, None, 640)


def test_the_notes_of_a_file_are_joined() -> None:
    def note(*notes: str) -> str | None:
        segment = replace(SEGMENT, facts=replace(SEGMENT.facts, notes=notes))
        return answered_row(WORK, QUESTION, segment, Answer("red", "ok", "eos", 20, 31, 3), IDENTITY, "s1").media_note

    assert (note(), note("1 of 3 pages"), note("a", "b")) == (None, "1 of 3 pages", "a; b")


def test_a_file_that_fails_has_no_facts() -> None:
    row = failed_row(WORK, QUESTION, ItemError("timeout", "too slow"), IDENTITY, "s1")
    assert (row.status, row.error_kind, row.error, row.question) == ("failed", "timeout", "too slow", "What?")
    assert (row.start_s, row.frame_times_s, row.n_repeated_frames, row.width) == (None, None, None, None)
    facts = replace(SEGMENT.facts, notes=("1 of 3 pages",))
    row = failed_row(WORK, QUESTION, ItemError("partial", "1 of 3 pages"), IDENTITY, "s1", facts)
    assert (row.start_s, row.width, row.media_note, row.error_kind) == (None, 640, "1 of 3 pages", "partial")
