"""Requests and their settings, and the way to an answer: Request -> PlannedRequest -> Continuation -> Answer.

Each request is planned separately: its prompt is built, checked against the context length, and split into a prefix,
which it may share with other requests about the same media, and its own suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Literal

from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate.sampling import NOT_FINITE, SEED_LIMIT, RandomStream, content_of
from vidqa.generate.stop_strings import Stopper
from vidqa.model.bundle.spec import decoding_problems
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import build_prompt
from vidqa.prompts.chat_formats import Turn
from vidqa.records import Answer, Features, Prompt

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class GenerationSettings:
    """Decoding settings of an engine.

    `temperature` 0 is greedy decoding. Above 0, tokens are sampled from the nucleus: the most likely tokens that hold
    `top_p` of the probability. The random numbers depend on `seed` and the request only, not on the rest of the batch.

    Raises:
        UsageError: lists all invalid values.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = decoding_problems(self.max_new_tokens, self.temperature, self.top_p, self.stop)
        is_whole = isinstance(self.seed, Integral) and not isinstance(self.seed, bool)
        if not is_whole or not -SEED_LIMIT <= self.seed < SEED_LIMIT:
            problems.append(f"seed must be a whole number from -2^127 to 2^127 - 1, got {self.seed!r:.80}")
        if problems:
            raise UsageError("\n".join(problems))
        # Numbers of numpy behave differently, for example where they overflow.
        values = {"max_new_tokens": int(self.max_new_tokens), "seed": int(self.seed), "stop": tuple(self.stop)}
        for name, value in {**values, "temperature": float(self.temperature), "top_p": float(self.top_p)}.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class StoppingCriteria:
    """Stopping criteria of one engine: end-of-sequence ids and stop strings."""

    eos_ids: frozenset[int]
    has_stop_string: Callable[[Sequence[int]], bool]  # True if the ids so far complete a stop string


@dataclass
class Continuation:
    """Token ids generated for one sequence; the end-of-sequence token is not among them."""

    ids: list[int] = field(default_factory=list)
    #: None while the sequence is running.
    finish_reason: FinishReason | Literal["not_finite"] | None = None

    def append(self, token: int, criteria: StoppingCriteria, max_new_tokens: int) -> None:
        """Append one token, or `NOT_FINITE`, and set the finish reason if it was the last."""
        if token == NOT_FINITE:
            self.finish_reason = "not_finite"
            return
        if token in criteria.eos_ids:
            self.finish_reason = "eos"
            return
        self.ids.append(token)
        if criteria.has_stop_string(self.ids):
            self.finish_reason = "stop"
        elif len(self.ids) >= max_new_tokens:
            self.finish_reason = "length"


@dataclass(frozen=True)
class Request:
    """One question about images or videos, or about no media.

    `turns` are (question, answer) pairs; the last answer is None. The media come before the first question.
    `max_new_tokens` overrides the engine's setting unless it is None.
    """

    features: tuple[Features, ...]
    turns: tuple[Turn, ...]
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class PlannedRequest:
    """A request with its prompt, split into a shareable prefix and a suffix."""

    tag: object  # returned together with the answer
    request: Request
    prompt: Prompt
    max_new_tokens: int
    n_prefix: int = field(init=False)  # tokens of the prefix

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_prefix", prefix_length(self.prompt))

    @cached_property
    def prefix_key(self) -> Hashable:
        """Key that is equal for requests with the same prefix.

        It is cached, because it copies and hashes about 20 KB and every step reads it.
        """
        p, n = self.prompt, self.n_prefix
        return p.ids[:n].tobytes(), p.slots[:n].tobytes(), tuple(id(f) for f in self.request.features)

    @property
    def prefix(self) -> Prompt:
        """The shareable prefix: the prompt up to and including its last visual token."""
        return Prompt(self.prompt.ids[: self.n_prefix], self.prompt.slots[: self.n_prefix])

    @property
    def suffix(self) -> Prompt:
        """The rest of the prompt; it holds no visual tokens."""
        return Prompt(self.prompt.ids[self.n_prefix :], self.prompt.slots[self.n_prefix :])

    @property
    def max_suffix_length(self) -> int:
        """Maximum length of the suffix in tokens, including the answer."""
        return len(self.prompt.ids) - self.n_prefix + self.max_new_tokens

    def random_stream(self, settings: GenerationSettings) -> RandomStream | None:
        """Return a fresh RNG stream of this request; None for greedy decoding."""
        if settings.temperature == 0:
            return None
        return RandomStream(settings.seed, content_of(self.prompt, self.request.features))


def prefix_length(prompt: Prompt) -> int:
    """Return the number of tokens up to the last visual token, inclusive; 1 for a prompt without visual tokens.

    At least one token is left for the suffix, because its logits predict the first token of the answer.
    """
    last = int(prompt.slots.nonzero()[0][-1]) + 1 if prompt.n_slots else 1
    return min(last, len(prompt.ids) - 1)


def plan_request(
    model: VideoLlava, tag: object, request: Request, settings: GenerationSettings
) -> PlannedRequest | ItemError:
    """Build the prompt and check that prompt and answer fit into the context.

    Args:
        model: provides tokenizer, chat format, token counts of the media and context length.
        tag: any value; returned together with the answer.
        request: the request to plan.
        settings: provides `max_new_tokens` where the request has none.

    Returns:
        The planned request, or the error `prompt_too_long`.

    Raises:
        UsageError: a question contains a string that the chat format reserves.
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


def not_finite_error(n_tokens: int) -> ItemError:
    """Return the error of an answer whose next token could not be chosen.

    Args:
        n_tokens: number of tokens before it.
    """
    what = f"the language model returned NaN or infinity after {n_tokens} tokens of the answer"
    return ItemError("not_finite", what, hint="--dtype float32, or bfloat16 on a GPU")


def to_answer(planned: PlannedRequest, output: Continuation, stopper: Stopper) -> Answer | ItemError:
    """Decode the generated ids into an `Answer` with status and token counts, or return the error `not_finite`."""
    if output.finish_reason == "not_finite":
        return not_finite_error(len(output.ids))
    text = stopper.text(output.ids)
    reason = output.finish_reason or "length"
    return Answer(
        text=text,
        status="empty" if not text else "truncated" if reason == "length" else "ok",
        finish_reason=reason,
        n_visual_tokens=planned.prompt.n_slots,
        n_prompt_tokens=len(planned.prompt.ids),
        n_answer_tokens=len(output.ids),
    )
