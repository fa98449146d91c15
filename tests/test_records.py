"""Values that cross a border check themselves."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from vidqa.errors import ERROR_KINDS, ItemError, LockedError, MediaError, PromptTooLongError, UsageError, VidqaError
from vidqa.records import (
    ROW_COLUMNS,
    WHOLE,
    AnswerRow,
    EncoderInput,
    Features,
    FrameBatch,
    MediaItem,
    Prompt,
    Question,
    Segment,
)

T2, F2 = np.zeros(2), np.zeros(2, dtype=bool)


def test_columns_are_those_of_the_contract() -> None:
    assert ROW_COLUMNS == (
        "media_id", "path", "root", "start_s", "end_s", "n_segments", "frame_times_s", "n_repeated_frames",
        "question_id", "question", "answer", "value", "confidence", "media_note", "status", "error_kind", "error",
        "n_visual_tokens", "n_prompt_tokens", "n_answer_tokens", "finish_reason", "duration_s", "width", "height",
        "fps", "codec", "model", "model_id", "encoder_id", "settings_id", "vidqa_version", "created_at",
    )  # fmt: skip


def test_segments_have_stable_keys() -> None:
    assert WHOLE.key == "whole"
    assert Segment(0.0, 10.0).key == "0.000-10.000"
    assert Segment(10.0).key == "10.000-end"
    assert Segment(1 / 3, 2 / 3).key == "0.333-0.667"
    for start_s, end_s in [(-1.0, None), (2.0, 2.0), (3.0, 1.0)]:
        with pytest.raises(ValueError, match="start_s"):
            Segment(start_s, end_s)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrameBatch(np.zeros((2, 4, 4, 3), np.float32), T2, F2),
        lambda: FrameBatch(np.zeros((0, 4, 4, 3), np.uint8), T2[:0], F2[:0]),
        lambda: FrameBatch(np.zeros((2, 4, 4, 4), np.uint8), T2, F2),
        lambda: FrameBatch(np.zeros((2, 4, 4, 3), np.uint8), T2[:1], F2),
        lambda: FrameBatch(np.zeros((2, 4, 4, 3), np.uint8), T2.astype(np.float32), F2),
        lambda: FrameBatch(np.zeros((2, 4, 4, 3), np.uint8), T2, F2.astype(np.uint8)),
        lambda: EncoderInput(np.zeros((2, 4, 4, 3), np.float32), T2, F2, "video"),
        lambda: EncoderInput(np.zeros((2, 3, 4, 4)), T2, F2, "video"),
        lambda: Features(np.zeros((2, 3, 4), np.float32), np.zeros(2, np.float32), True, "video"),
        lambda: Features(np.zeros((3, 4), np.float16), np.zeros(2, np.float32), True, "video"),
        lambda: Features(np.zeros((2, 3, 4), np.float16), np.zeros(2), True, "video"),
        lambda: Prompt(np.zeros(3, np.int32), np.zeros(3, bool)),
        lambda: Prompt(np.zeros(3, np.int64), np.zeros(4, bool)),
        lambda: MediaItem("", "/", "a", 0, 0),
        lambda: MediaItem("/a", "/", "", 0, 0),
    ],
)
def test_wrong_shapes_and_types_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_right_ones_pass_and_are_frozen() -> None:
    batch = FrameBatch(np.zeros((2, 4, 4, 3), np.uint8), T2, F2)
    assert batch.kind == "video"
    with pytest.raises(FrozenInstanceError):
        batch.kind = "image"  # type: ignore[misc]
    assert Prompt(np.zeros(3, np.int64), np.array([True, False, True])).n_slots == 2


def row(**changes: Any) -> AnswerRow:
    values: dict[str, Any] = dict.fromkeys(ROW_COLUMNS, "x")
    values |= {"status": "ok", "error_kind": None, "created_at": datetime.now(UTC)}
    return AnswerRow(**(values | changes))


def test_an_error_is_never_a_caption() -> None:
    assert row().answer == "x"
    assert row(status="failed", error_kind="timeout", answer=None).status == "failed"
    for changes in (
        {"status": "failed", "error_kind": "timeout"},
        {"status": "failed", "answer": None},
        {"error_kind": "timeout"},
        {"status": "skipped"},
    ):
        with pytest.raises(ValueError, match=r"error kind|must not have an answer"):
            row(**changes)


def test_item_errors_cross_process_borders_whole() -> None:
    for error in (
        MediaError("timeout", "too slow", hint="--timeout"),
        PromptTooLongError("12 tokens too many", hint="x"),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error) and (back.kind, back.what, back.hint) == (error.kind, error.what, error.hint)
    with pytest.raises(ValueError, match="unknown error kind"):
        ItemError("tired", "no")
    assert all(ERROR_KINDS.values())


def test_errors_say_what_and_what_to_try() -> None:
    assert str(UsageError("bad", hint="good")) == "bad\n  try: good" and str(VidqaError("bad")) == "bad"
    assert (UsageError("").exit_code, LockedError("").exit_code, VidqaError("").exit_code) == (2, 4, 1)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (("a b", "Why?"), ValueError, "id must be a word"),
        (("", "Why?"), ValueError, "id must be a word"),
        (("a" * 65, "Why?"), ValueError, "id must be a word"),
        (("a\n", "Why?"), ValueError, "id must be a word"),
        (("a", ""), ValueError, "text is empty"),
        (("a", " \n"), ValueError, "text is empty"),
        (("a", "\udcff"), ValueError, "text is not valid Unicode at character 1"),
        (("a", "b\0"), ValueError, "text contains a NUL"),
        (("a", "Why?", "nonsense"), ValueError, "type must be one of text, yes_no, choice, number"),
        (("a", "Why?", "choice"), ValueError, "choices are needed"),
        (("a", "Why?", "text", ("x", "y")), ValueError, "choices are needed"),
        (("a", "Why?", "choice", ("x", "X ")), ValueError, "two different"),
        (("a", "Why?", "choice", ("x", " ")), ValueError, "two different"),
        (("a", "Why?", "text", (), 0), ValueError, "max_new_tokens must be at least 1"),
        (("a", "Why?", "text", (), 1.5), TypeError, "max_new_tokens must be an int or None, not float"),
        (("a", "Why?", "text", (), True), TypeError, "max_new_tokens"),
        (("a", "Why?", "choice", "xy"), TypeError, "choices must be a tuple of strings"),
        (("a", None), TypeError, "text must be a str, not None"),
        ((3, "Why?"), TypeError, "id must be a str, not int"),
    ],
)
def test_invalid_questions_are_refused_at_once(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Question(*values)
