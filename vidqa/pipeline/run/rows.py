"""Answers and errors -> AnswerRow. All rows are made here."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from vidqa.common.display import message_without_path
from vidqa.errors import ItemError
from vidqa.pipeline.run.run_options import Identity
from vidqa.records import Answer, AnswerRow, EncodedSegment, MediaFacts, Question, Segment, WorkItem


def answered_row(
    work: WorkItem,
    question: Question,
    segment: EncodedSegment,
    answer: Answer | ItemError,
    identity: Identity,
    settings: str,
    n_segments: int = 1,
) -> AnswerRow:
    """Return the row for one question about one segment.

    Args:
        work: the file.
        question: of the file.
        segment: of the file.
        answer: of the model, or the reason why there is none.
        identity: what produced the answer.
        settings: the `settings_id`.
        n_segments: of the file.
    """
    values = _common(work, question, identity, settings) | _facts(segment.facts)
    values |= {"start_s": segment.start_s, "end_s": segment.end_s, "n_segments": n_segments}
    values["frame_times_s"] = segment.frame_times_s
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


def failed_row(
    work: WorkItem,
    question: Question,
    error: ItemError,
    identity: Identity,
    settings: str,
    facts: MediaFacts | None = None,
    segment: Segment | None = None,
    n_segments: int | None = None,
) -> AnswerRow:
    """Return the row for one question about a segment, or a whole file, that could not be decoded or encoded.

    Args:
        work: the file.
        question: of the file.
        error: why it failed.
        identity: what would have produced the answer.
        settings: the `settings_id`.
        facts: of the file, if it could be read.
        segment: None for the whole file.
        n_segments: of the file, if `segment` is not None.
    """
    values = _common(work, question, identity, settings) | (_facts(facts) if facts is not None else {})
    if segment is not None:
        duration_s = facts.duration_s if facts is not None else None
        end_s = min((end for end in (segment.end_s, duration_s) if end is not None), default=segment.start_s)
        values |= {"start_s": segment.start_s, "end_s": max(segment.start_s, end_s), "n_segments": n_segments}
    return AnswerRow(**values | _failure(error, work))


def _common(work: WorkItem, question: Question, identity: Identity, settings: str) -> dict[str, Any]:
    """Return all columns; those that depend on the answer are null."""
    nulls = dict.fromkeys(AnswerRow.__dataclass_fields__)
    return nulls | {
        "media_id": work.media_id,
        "path": work.item.rel,
        "root": work.item.root,
        "question_id": question.id,
        "question": question.text,
        "model": identity.model,
        "model_id": identity.model_id,
        "encoder_id": identity.encoder_id,
        "settings_id": settings,
        "vidqa_version": identity.vidqa_version,
        "created_at": datetime.now(UTC),
    }


def _facts(facts: MediaFacts) -> dict[str, Any]:
    values: dict[str, Any] = {"width": facts.width, "height": facts.height, "codec": facts.codec}
    for name in ("duration_s", "fps"):
        value = getattr(facts, name)  # a damaged header may state infinity, which JSON cannot hold
        values[name] = value if value is not None and math.isfinite(value) else None
    return values | {"media_note": "; ".join(facts.notes) or None}


def _failure(error: ItemError, work: WorkItem) -> dict[str, Any]:
    return {"status": "failed", "error_kind": error.kind, "error": message_without_path(error, work.item.path)}
