"""Requests -> answers: many clips and questions in batches, results in the order asked.

The seam for every way of answering: `Request` in, `Answer` or `ItemError` out, and nothing else is known outside. What
is behind it may change; that a batch gives what one-by-one gives may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate.decode import Choose, Continuation, Row, decode
from vidqa.generate.memory import is_out_of_memory, rows_that_fit
from vidqa.generate.sampling import Draws, content_of, pick_greedy, pick_sampled
from vidqa.generate.stop import Stopper, end_ids
from vidqa.model.llava import VideoLlava
from vidqa.prompts.build import build_prompt
from vidqa.prompts.formats import Turn
from vidqa.records import Answer, Features, Prompt


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are searched for.

    `temperature` 0 is greedy: always the likeliest token. Above 0 tokens are drawn from the likeliest ones that hold
    `top_p` of the probability; `seed` and the request itself fix the draw, whatever else is in the batch.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if problems:
            raise UsageError("\n".join(problems))


@dataclass(frozen=True)
class Request:
    """One question about pictures or clips, or about nothing.

    `turns` are (question, answer) pairs whose last answer is None; the media stand before the first question.
    `max_new_tokens` None takes the one of the settings.
    """

    features: tuple[Features, ...]
    turns: tuple[Turn, ...]
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class _Job:
    number: int  # place of the request in the caller's list
    request: Request
    prompt: Prompt
    max_new_tokens: int

    @property
    def order(self) -> tuple[int, tuple[int, ...], int]:
        """Long ones first; questions about the same media side by side, so that a batch can share them."""
        return -self.prompt.n_slots, tuple(id(f) for f in self.request.features), -len(self.prompt.ids)


def generate(
    model: VideoLlava, requests: Sequence[Request], settings: GenerationSettings, batch_size: int | None = None
) -> list[Answer | ItemError]:
    """Answer all requests.

    In float32 an answer does not depend on the batch it was part of, token for token.

    Args:
        model: in evaluation mode.
        requests: questions with the features of what they are about.
        settings: for all requests.
        batch_size: most requests at once; None takes what the memory is likely to hold. Where it does not hold, the
            batch is halved until it does.

    Returns:
        An answer for each request, in order, or the error of that request alone: `prompt_too_long` says by how many
        tokens, `out_of_memory` means that the request does not fit even on its own.

    Raises:
        UsageError: a question holds a text that the chat format reserves.
    """
    out: list[Answer | ItemError | None] = [None] * len(requests)
    jobs = []
    for i, request in enumerate(requests):
        job = _plan(model, i, request, settings)
        if isinstance(job, ItemError):
            out[i] = job
        else:
            jobs.append(job)
    jobs.sort(key=lambda job: job.order)
    for batch in _batches(model, jobs, batch_size):
        for job, answer in zip(batch, _answer(model, batch, settings), strict=True):
            out[job.number] = answer
    return [answer for answer in out if answer is not None]


def _plan(model: VideoLlava, number: int, request: Request, settings: GenerationSettings) -> _Job | ItemError:
    """Write the prompt and see whether it fits."""
    shapes = [model.media_shape(f) for f in request.features]
    prompt = build_prompt(model.tokenizer, model.chat, request.turns, shapes)
    new = settings.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
    over = len(prompt.ids) + new - model.context
    if over <= 0:
        return _Job(number, request, prompt, new)
    return PromptTooLongError(
        f"the prompt has {len(prompt.ids)} tokens ({prompt.n_slots} visual) and the answer may take {new}: "
        f"{over} more than the context of {model.context}"
    )


def _batches(model: VideoLlava, jobs: Sequence[_Job], batch_size: int | None) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    limit = 0
    for job in jobs:
        if not batch:
            # Sorted: the first is about the longest of its batch.
            limit = batch_size or rows_that_fit(model, len(job.prompt.ids) + job.max_new_tokens)
        batch.append(job)
        if len(batch) >= limit:
            yield batch
            batch = []
    if batch:
        yield batch


def _answer(model: VideoLlava, batch: Sequence[_Job], settings: GenerationSettings) -> list[Answer | ItemError]:
    """Answer one batch, in halves where the memory does not hold it."""
    try:
        return _answer_at_once(model, batch, settings)
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
    # Outside of the handler: the error's traceback would keep the tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        n = len(batch[0].prompt.ids)
        return [ItemError("out_of_memory", f"no memory for a prompt of {n} tokens, even on its own")]
    half = len(batch) // 2
    return _answer(model, batch[:half], settings) + _answer(model, batch[half:], settings)


def _answer_at_once(model: VideoLlava, batch: Sequence[_Job], settings: GenerationSettings) -> list[Answer | ItemError]:
    distinct = {id(f): f for job in batch for f in job.request.features}
    with torch.inference_mode():
        visual = dict(zip(distinct, model.visual_tokens(list(distinct.values())), strict=True))
    rows = [Row(job.prompt, tuple(visual[id(f)] for f in job.request.features), job.max_new_tokens) for job in batch]
    stops = (*model.chat.stop, *settings.stop)
    stopper = Stopper(model.tokenizer, stops, model.chat.leads)
    said = decode(model, rows, end_ids(model.llm, model.tokenizer, stops), _chooser(batch, settings), stopper.stops)
    return [_to_answer(job, one, stopper) for job, one in zip(batch, said, strict=True)]


def _to_answer(job: _Job, said: Continuation, stopper: Stopper) -> Answer:
    text = stopper.text(said.ids)
    reason = said.reason or "length"
    return Answer(
        text=text,
        status="empty" if not text else "truncated" if reason == "length" else "ok",
        finish_reason=reason,
        n_visual_tokens=job.prompt.n_slots,
        n_prompt_tokens=len(job.prompt.ids),
        n_answer_tokens=len(said.ids),
    )


def _chooser(batch: Sequence[_Job], settings: GenerationSettings) -> Choose:
    if settings.temperature == 0:
        return lambda logits, rows: pick_greedy(logits)
    draws = [Draws(settings.seed, content_of(job.prompt, job.request.features)) for job in batch]

    def choose(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        numbers = torch.tensor([draws[i].next() for i in rows], dtype=torch.float64)
        return pick_sampled(logits, settings.temperature, settings.top_p, numbers.to(logits.device))

    return choose
