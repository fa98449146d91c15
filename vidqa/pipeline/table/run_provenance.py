"""What the digests in the rows of a run stand for: its settings, model and questions, as a table stores them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vidqa.model.bundle.registry import model_argument
from vidqa.model.bundle.spec_json import to_json
from vidqa.model.bundle.validate import part_digests
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.run_options import RunOptions, settings_of, settings_values_of
from vidqa.records import Question
from vidqa.tables.provenance import Provenance


def provenance_of_run(model: LoadedModel, options: RunOptions, questions: Iterable[Question]) -> Provenance:
    """Return the provenance of all rows that a run can add.

    Args:
        model: of the run.
        options: of the run.
        questions: of the run.
    """
    questions = tuple(questions)
    return Provenance(
        settings={settings_of(options, question): settings_values_of(options, question) for question in questions},
        models={model.identity.model_id: _model_record(model)},
        questions=tuple(_question_record(question) for question in questions),
    )


def _model_record(model: LoadedModel) -> dict[str, Any]:
    spec = model.bundle.spec
    return {
        "name": spec.name,
        "model": model_argument(model.bundle.folder),
        "dtype": model.precision.dtype,
        "quantize": model.precision.quantize,
        "encoder_id": model.bundle.encoder_id,
        "architecture": spec.architecture,
        "generation": to_json(spec.generation),
        "parts": part_digests(spec),
    }


def _question_record(question: Question) -> dict[str, Any]:
    record: dict[str, Any] = {"id": question.id, "text": question.text, "type": question.type}
    if question.choices:
        record["choices"] = list(question.choices)
    if question.max_new_tokens is not None:
        record["max_new_tokens"] = question.max_new_tokens
    return record
