"""Requests -> jobs with their prompts, and what the model said -> answers.

Knows one request at a time. Does not know batches, memory or devices.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate.fallback_decode import Continuation
from vidqa.generate.sampling import RandomStream, content_of
from vidqa.generate.stop_strings import Stopper
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import build_prompt
from vidqa.prompts.chat_formats import Turn
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
class PlannedRequest:
    """A request with its prompt, cut where its own part begins."""

    tag: object  # comes back with the answer
    request: Request
    prompt: Prompt
    max_new_tokens: int
    n_shared: int = field(init=False)  # positions of the beginning

    def __post_init__(self) -> None:
        p = self.prompt
        # Up to the last visual token, or the first token of a prompt without any. The rest must have a token whose
        # logits say how to go on.
        last = int(p.slots.nonzero()[0][-1]) + 1 if p.n_slots else 1
        object.__setattr__(self, "n_shared", min(last, len(p.ids) - 1))

    @cached_property
    def key(self) -> Hashable:
        """Equal for jobs that have the same beginning. Asked for in every step, and some 20 KB to copy and hash."""
        p, n = self.prompt, self.n_shared
        return p.ids[:n].tobytes(), p.slots[:n].tobytes(), tuple(id(f) for f in self.request.features)

    @property
    def head(self) -> Prompt:
        """The beginning."""
        return Prompt(self.prompt.ids[: self.n_shared], self.prompt.slots[: self.n_shared])

    @property
    def tail(self) -> Prompt:
        """What follows it: no visual tokens."""
        return Prompt(self.prompt.ids[self.n_shared :], self.prompt.slots[self.n_shared :])

    @property
    def n_own(self) -> int:
        """Positions of the tail and the longest answer."""
        return len(self.prompt.ids) - self.n_shared + self.max_new_tokens

    def draws(self, settings: GenerationSettings) -> RandomStream | None:
        """Its random numbers from the first; None where nothing is drawn."""
        if settings.temperature == 0:
            return None
        return RandomStream(settings.seed, content_of(self.prompt, self.request.features))


def plan_job(
    model: VideoLlava, tag: object, request: Request, settings: GenerationSettings
) -> PlannedRequest | ItemError:
    """Write the prompt and see whether it fits.

    Raises:
        UsageError: a question holds a text that the chat format reserves.
    """
    shapes = [model.media_shape(f) for f in request.features]
    prompt = build_prompt(model.tokenizer, model.chat, request.turns, shapes)
    new = settings.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
    over = len(prompt.ids) + new - model.context
    if over <= 0:
        return PlannedRequest(tag, request, prompt, new)
    return PromptTooLongError(
        f"the prompt has {len(prompt.ids)} tokens ({prompt.n_slots} visual) and the answer may take {new}: "
        f"{over} more than the context of {model.context}"
    )


def to_answer(job: PlannedRequest, said: Continuation, stopper: Stopper) -> Answer:
    """What the model said, for people."""
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
