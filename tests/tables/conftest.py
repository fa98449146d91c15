"""Fixtures for answer rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from vidqa.records import AnswerRow


def make_row(**changes: Any) -> AnswerRow:
    values: dict[str, Any] = {
        "media_id": "a" * 32, "path": "a.mp4", "root": "/videos", "start_s": 0.0, "end_s": 1 / 3, "n_segments": 1,
        "frame_times_s": (0.0, 0.1, 1 / 3), "n_repeated_frames": 0, "media_note": None, "question_id": "caption",
        "question": "Describe the video.", "answer": "A red circle moves left.", "value": None,
        "confidence": None, "status": "ok", "error_kind": None, "error": None, "n_visual_tokens": 296,
        "n_prompt_tokens": 310, "n_answer_tokens": 6, "finish_reason": "eos",
        "duration_s": 1 / 3, "width": 640, "height": 480, "fps": 30000 / 1001, "codec": "h264", "model": "demo",
        "model_id": "m1", "encoder_id": "e1", "settings_id": "s1", "vidqa_version": "0.1.0",
        "created_at": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    }  # fmt: skip
    values.update(changes)
    if values["status"] == "failed":
        values.update({"answer": None, "error_kind": values["error_kind"] or "unreadable"})
    return AnswerRow(**values)


@pytest.fixture
def row() -> Callable[..., AnswerRow]:
    return make_row
