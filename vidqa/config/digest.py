"""Settings -> the `settings_id` of a row: two rows with the same id were asked in the same way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # records load numpy, which a command that only shows its help does not need
    from vidqa.records import Question


def settings_id(segment_s: float | None, generation: Mapping[str, object], question: Question) -> str:
    """Digest of everything outside model and question text that can change an answer. What cannot is left out.

    Args:
        segment_s: length of the segments in seconds; None for the whole clip.
        generation: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop` and whatever else generation knows; values
            that JSON can carry. None values count as absent.
        question: its own `max_new_tokens` beats that of `generation`; type and choices bind the answer.

    Returns:
        16 hex digits.
    """
    values = {name: value for name, value in generation.items() if value is not None}
    if not values.get("temperature"):  # greedy: the same answer whatever these say
        values = {name: value for name, value in values.items() if name not in ("temperature", "top_p", "seed")}
    if question.max_new_tokens is not None:
        values["max_new_tokens"] = question.max_new_tokens
    if question.type != "text":
        values["type"], values["choices"] = question.type, list(question.choices)
    values["segment_s"] = None if segment_s is None else float(segment_s)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
