"""The `settings_id` of a row: rows with the same id were answered with the same settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `records` imports numpy, which `--help` does not need
    from vidqa.records import Question


def settings_values(segment_s: float | None, generation: Mapping[str, object], question: Question) -> dict[str, object]:
    """Return everything that can change an answer, except the model and the question text.

    Args:
        segment_s: as for `settings_id`.
        generation: as for `settings_id`.
        question: as for `settings_id`.
    """
    values = {name: value for name, value in generation.items() if value is not None}
    if not values.get("temperature"):  # greedy decoding ignores these
        values = {name: value for name, value in values.items() if name not in ("temperature", "top_p", "seed")}
    if question.max_new_tokens is not None:
        values["max_new_tokens"] = question.max_new_tokens
    if question.type != "text":
        values["type"], values["choices"] = question.type, list(question.choices)
    values["segment_s"] = None if segment_s is None else float(segment_s)
    return values


def settings_id(segment_s: float | None, generation: Mapping[str, object], question: Question) -> str:
    """Return a digest of everything that can change an answer, except the model and the question text.

    Args:
        segment_s: length of the segments in seconds; None for the whole video.
        generation: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop` and any other generation setting, with
            values that JSON can represent. None values are ignored.
        question: the question. Its `max_new_tokens` overrides that of `generation`; its type and choices are part of
            the digest unless the type is `text`.

    Returns:
        16 hex digits.
    """
    values = {name: value for name, value in generation.items() if value is not None}
    if not values.get("temperature"):  # greedy decoding ignores these
        values = settings_values(segment_s, generation, question)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
