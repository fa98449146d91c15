"""Answers and errors -> AnswerRow: the one place where a row is made.

Pure, but for the clock; knows no model and no table.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from vidqa.common.display import message_without_path
from vidqa.errors import ItemError
from vidqa.pipeline.run.run_options import Identity
from vidqa.records import Answer, AnswerRow, EncodedSegment, MediaFacts, Question, WorkItem


def answered_row(
    work: WorkItem,
    question: Question,
    segment: EncodedSegment,
    answer: Answer | ItemError,
    who: Identity,
    settings: str,
) -> AnswerRow:
    """The row of one segment and one question.

    Args:
        work: the file.
        question: what was asked.
        segment: what the model saw.
        answer: what it said, or why it said nothing.
        who: what produced the row.
        settings: the `settings_id`.
    """
    values = _common(work, question, who, settings) | _facts(segment.facts)
    values |= {"start_s": segment.start_s, "end_s": segment.end_s, "frame_times_s": segment.frame_times_s}
    values["n_repeated_frames"] = sum(segment.repeated)
    if isinstance(answer, ItemError):
        return AnswerRow(**values | _failure(answer, work))
    values |= {
        "answer": answer.text or None,
        "status": answer.status,
        "n_visual_tokens": answer.n_visual_tokens,
        "n_prompt_tokens": answer.n_prompt_tokens,
        "n_answer_tokens": answer.n_answer_tokens,
        "finish_reason": answer.finish_reason,
    }
    return AnswerRow(**values)


def failed_row(work: WorkItem, question: Question, error: ItemError, who: Identity, settings: str) -> AnswerRow:
    """The row of a file that gave no segment at all."""
    return AnswerRow(**_common(work, question, who, settings) | _failure(error, work))


def _common(work: WorkItem, question: Question, who: Identity, settings: str) -> dict[str, Any]:
    """Every column, most of them still null."""
    nothing = dict.fromkeys(AnswerRow.__dataclass_fields__)
    return nothing | {
        "media_id": work.media_id,
        "path": work.item.rel,
        "root": work.item.root,
        "question_id": question.id,
        "question": question.text,
        "model": who.model,
        "model_id": who.model_id,
        "encoder_id": who.encoder_id,
        "settings_id": settings,
        "vidqa_version": who.vidqa_version,
        "created_at": datetime.now(UTC),
    }


def _facts(facts: MediaFacts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in ("duration_s", "width", "height", "fps", "codec")}


def _failure(error: ItemError, work: WorkItem) -> dict[str, Any]:
    return {"status": "failed", "error_kind": error.kind, "error": message_without_path(error, work.item.path)}
