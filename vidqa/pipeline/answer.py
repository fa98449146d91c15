"""Encoded files and their questions -> rows: batches that clips and questions share, one row each, whatever happens.

Knows the LLM; does not know where features come from or where rows go.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vidqa.errors import ItemError
from vidqa.generate.engine import GenerationSettings, Request, generate
from vidqa.pipeline.loaded import LoadedModel
from vidqa.pipeline.options import Encoded, Identity, RunOptions, Work, settings_of
from vidqa.pipeline.progress import StageClock
from vidqa.pipeline.rows import answered_row, failed_row
from vidqa.records import AnswerRow, EncodedSegment, Question

#: Prompts that go to the LLM together unless the user says otherwise.
DEFAULT_BATCH = 16
#: A batch that is not full goes after so long, so that slow decoding does not keep finished work from the table.
MAX_WAIT_S = 20.0


@dataclass(frozen=True)
class Answered:
    """A file with the rows of all its questions: complete, in order of question and time."""

    work: Work
    rows: tuple[AnswerRow, ...]
    cached: bool


def answer_works(
    encoded: Iterable[Encoded], model: LoadedModel, options: RunOptions, clock: StageClock
) -> Iterator[Answered]:
    """Ask every file its questions.

    Args:
        encoded: files with their features, or with the error that stopped them.
        model: its LLM is loaded when the first file with features arrives.
        options: how the run is done.
        clock: hears the seconds of `generate`.

    Returns:
        One `Answered` a file; as many rows as questions times segments, or one a question where there is no segment.
    """
    full = options.batch_size or DEFAULT_BATCH
    waiting: list[Encoded] = []
    n_waiting, since = 0, time.monotonic()
    for one in encoded:
        if one.error is not None:
            yield Answered(one.work, _failed_rows(one.work, one.error, model.identity, options), one.cached)
            continue
        waiting.append(one)
        n_waiting += len(one.segments) * len(one.work.questions)
        if n_waiting >= full or time.monotonic() - since > MAX_WAIT_S:
            yield from _answer_batch(waiting, model, options, clock)
            waiting, n_waiting, since = [], 0, time.monotonic()
    yield from _answer_batch(waiting, model, options, clock)


def _answer_batch(
    batch: Sequence[Encoded], model: LoadedModel, options: RunOptions, clock: StageClock
) -> Iterator[Answered]:
    cells = [(one, question, segment) for one in batch for question in one.work.questions for segment in one.segments]
    if not cells:
        yield from (Answered(one.work, (), one.cached) for one in batch)
        return
    with clock.stage("load"):
        llava = model.llava
    with clock.stage("generate"):
        requests = [_request(question, segment, options) for _, question, segment in cells]
        answers = generate(llava, requests, generation_settings(model, options), batch_size=options.batch_size)
    rows: dict[int, list[AnswerRow]] = {id(one): [] for one in batch}
    for (one, question, segment), answer in zip(cells, answers, strict=True):
        settings = settings_of(options, question)
        rows[id(one)].append(answered_row(one.work, question, segment, answer, model.identity, settings))
    yield from (Answered(one.work, tuple(rows[id(one)]), one.cached) for one in batch)


def generation_settings(model: LoadedModel, options: RunOptions) -> GenerationSettings:
    """What the bundle says, with what the user changed."""
    spec = model.bundle.spec.generation
    return GenerationSettings(
        max_new_tokens=options.max_new_tokens or spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        stop=spec.stop,
    )


def _request(question: Question, segment: EncodedSegment, options: RunOptions) -> Request:
    return Request(
        features=(segment.features,),
        turns=((question.text, None),),
        max_new_tokens=question.max_new_tokens or options.max_new_tokens,
    )


def _failed_rows(work: Work, error: ItemError, who: Identity, options: RunOptions) -> tuple[AnswerRow, ...]:
    return tuple(failed_row(work, q, error, who, settings_of(options, q)) for q in work.questions)
