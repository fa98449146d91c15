"""A chat about images and videos: the media are prefilled once, and each later turn prefills only its own text.

Every question is written as one prompt with all turns so far, exactly as `generate` would receive it. Only the part
that differs from the cached tokens is computed. An answer therefore equals that of the full prompt, token for token (in
float32), in every chat format, even if a format rewrites earlier answers.

Scope: one model and one chat. Files and terminals are handled by pipeline and cli.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidqa.common.devices import is_out_of_memory
from vidqa.common.display import plural
from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate.kv_cache.chat_cache import ChatKVCache, common_prefix_length
from vidqa.generate.requests import GenerationSettings, not_finite_error
from vidqa.generate.sampling import NOT_FINITE, RandomStream, content_of, pick_greedy, pick_sampled
from vidqa.generate.stop_strings import Stopper, eos_ids
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import build_prompt
from vidqa.prompts.chat_formats import Turn
from vidqa.records import Features, Prompt


@dataclass(frozen=True)
class ChatTurn:
    """One question of a chat and the model's answer."""

    question: str  # as it was asked
    text: str  # of the answer
    finish_reason: Literal["eos", "stop", "length", "interrupted"]  # why the answer ends
    n_visual_tokens: int  # of the prompt
    n_prompt_tokens: int  # prompt of the whole chat, including visual tokens
    n_answer_tokens: int  # of the answer
    n_computed_tokens: int  # prompt tokens that were prefilled; the rest was in the KV cache

    @property
    def status(self) -> Literal["ok", "truncated", "empty"]:
        """Completeness of the answer, as in the table."""
        if not self.text:
            return "empty"
        return "ok" if self.finish_reason in ("eos", "stop") else "truncated"


class ChatSession:
    """Several questions about the same images and videos, each with all earlier turns.

    Threads may share a session: each waits until the answer of another one is complete.

    Args:
        model: the model, in evaluation mode.
        features: features of the chat's media, in order; may be empty.
        settings: decoding settings.

    Raises:
        UsageError: the model was not fine-tuned for chats.
    """

    def __init__(
        self, model: VideoLlava, features: Sequence[Features], settings: GenerationSettings | None = None
    ) -> None:
        if model.chat.kind == "plain":
            raise UsageError("this model only writes captions: its chat format has no turns", hint="vidqa ask")
        self.model, self.settings = model, settings or GenerationSettings()
        self.turns: list[tuple[str, str]] = []
        self.last: ChatTurn | None = None  # set when `stream` ends
        self._features = tuple(features)
        self._shapes = [model.media_shape(f) for f in features]
        self._turn = threading.Lock()  # held while an answer is generated
        self._streaming_thread: int | None = None  # that last asked for a piece of the answer
        with model.lock, torch.inference_mode():
            self._visual = model.visual_tokens(self._features)
        stops = (*model.chat.stop, *self.settings.stop)
        self._stops = tuple(s for s in stops if s)
        self._stopper = Stopper(model.tokenizer, stops, model.chat.answer_prefixes)
        self._eos_ids = eos_ids(model.llm, model.tokenizer, stops)
        self._kv_cache = ChatKVCache(model)

    def __repr__(self) -> str:
        """Return the number of images and videos, and of turns."""
        media, n_turns = plural(len(self._features), "media item"), plural(len(self.turns), "turn")
        return f"<ChatSession: {media}, {n_turns}>"

    def warm(self) -> None:
        """Prefill the common prefix of all first questions, if the chat format puts the media in it."""
        with self._own_turn(), self.model.lock:
            one, other = self._prompt("a", ()), self._prompt("b", ())
            n = common_prefix_length(one, other)
            if n and one.slots[:n].sum() == one.n_slots:
                self._kv_cache.prefill(Prompt(one.ids[:n], one.slots[:n]), self._visual)

    def ask(self, question: str) -> ChatTurn:
        """Ask a question and wait for the whole answer.

        Raises:
            PromptTooLongError: chat and answer do not fit into the context; the chat is unchanged.
            TypeError: the question is not a string.
            UsageError: the question is empty or not valid Unicode, or this thread has not finished a stream.
            ItemError: (`out_of_memory`) the chat does not fit into the memory of the device; (`not_finite`) the LLM
                returned NaN or infinity. The chat is unchanged.
        """
        stream = self.stream(question)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                turn: ChatTurn = end.value
                return turn

    def stream(self, question: str) -> Generator[str, None, ChatTurn]:
        r"""Ask a question and yield the answer in pieces.

        The pieces together are the text of the answer, unless it contains a broken character (\ufffd). If the iterator
        is closed or interrupted by Ctrl-C, the text generated until then is the answer of the turn. A question without
        any answer is not added to the chat. `last` holds the turn afterwards. From the first piece on, other threads
        wait until the iterator ends or is closed.

        Raises:
            TypeError: see `ask`; raised at once.
            PromptTooLongError: see `ask`; raised at once.
            UsageError: see `ask`; raised at once.
            ItemError: see `ask`; raised during iteration.
        """
        if not isinstance(question, str):
            raise TypeError(f"question must be a str, not {type(question).__name__}")
        with self._own_turn():
            self.last = None
            self._fitting_prompt(question)
        return self._stream(question)

    def reset(self) -> None:
        """Drop all turns. Media stay in the KV cache if the chat format puts them before the first question."""
        with self._own_turn():
            self.turns.clear()

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        """Wait for the answer that another thread is generating, and keep others from starting one."""
        if self._streaming_thread == threading.get_ident():  # waiting would never end
            raise UsageError("an answer of this chat is still being streamed", hint="read it to its end, or close it")
        with self._turn:
            try:
                yield
            finally:
                self._streaming_thread = None

    def _prompt(self, question: str, turns: Sequence[Turn]) -> Prompt:
        with self.model.lock:  # some tokenizers cannot be used by two threads at once
            return build_prompt(self.model.tokenizer, self.model.chat, [*turns, (question, None)], self._shapes)

    def _fitting_prompt(self, question: str) -> Prompt:
        if not question.strip():
            raise UsageError("the question is empty")
        prompt, new = self._prompt(question, self.turns), self.settings.max_new_tokens
        over = len(prompt.ids) + new - self.model.context
        if over > 0:
            what = (
                f"the chat is full: with this question it has {len(prompt.ids)} tokens ({prompt.n_slots} visual), "
                f"and the answer may take {new}: {over} more than the context of {self.model.context}"
            )
            raise PromptTooLongError(what, hint="start again (/reset), or allow shorter answers (--max-new-tokens)")
        return prompt

    def _stream(self, question: str) -> Generator[str, None, ChatTurn]:
        """Yield the pieces and leave KV cache and turns consistent, however the iteration ends."""
        with self._own_turn():
            prompt = self._fitting_prompt(question)  # again: another thread may have added turns
            output = _Output(prompt, len(prompt.ids) - self._kv_cache.reusable_length(prompt))
            try:
                for piece in self._decode(output):
                    self._streaming_thread = threading.get_ident()
                    yield piece
            except (GeneratorExit, KeyboardInterrupt):
                output.finish_reason = output.finish_reason or "interrupted"
                raise
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    raise
                what = f"not enough memory for a chat of {len(output.prompt.ids)} tokens"
                raise ItemError("out_of_memory", what, hint="start again (/reset), or use a smaller model") from e
            finally:
                self._kv_cache.truncate()
                if output.finish_reason:
                    self._add_turn(question, output)
            assert self.last is not None
            return self.last

    def _decode(self, output: _Output) -> Iterator[str]:
        """Yield the pieces of an answer; the model is free for other threads whenever a piece is yielded."""
        pick = self._token_picker(output.prompt)
        with self.model.lock:
            logits = self._kv_cache.prefill(output.prompt, self._visual)
        while output.finish_reason is None:
            with self.model.lock:
                token = int(pick(logits))
                piece = self._append(output, token)
            if piece:
                yield piece
            if output.finish_reason is None:
                with self.model.lock:
                    logits = self._kv_cache.decode_step(token)

    def _append(self, output: _Output, token: int) -> str:
        """Add a token to an answer, and return the text to yield next."""
        if token == NOT_FINITE:
            self._kv_cache.clear()
            raise not_finite_error(len(output.ids))
        if token in self._eos_ids:
            output.finish_reason = "eos"
        else:
            output.ids.append(token)
            if self._stopper.has_stop_string(output.ids):
                output.finish_reason = "stop"
            elif len(output.ids) >= self.settings.max_new_tokens:
                output.finish_reason = "length"
        return self._new_text(output, is_final=output.finish_reason is not None)

    def _new_text(self, output: _Output, is_final: bool = False) -> str:
        """Return the text to yield next; holds back a possible start of a stop string and incomplete characters."""
        text = self._stopper.text(output.ids)
        if not is_final:
            text = text.rstrip("\ufffd")
            held = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
            text = text[: len(text) - max(held, default=0)].rstrip()
            if any(prefix.startswith(text) for prefix in self.model.chat.answer_prefixes):  # it may still be removed
                return ""
        if not text.startswith(output.yielded):
            return ""
        piece, output.yielded = text[len(output.yielded) :], text
        return piece

    def _token_picker(self, prompt: Prompt) -> Callable[[Tensor], Tensor]:
        s = self.settings
        if s.temperature == 0:
            return pick_greedy
        stream = RandomStream(s.seed, content_of(prompt, self._features))

        def pick(logits: Tensor) -> Tensor:
            random_sample = torch.tensor([stream.next()], dtype=torch.float64, device=logits.device)
            return pick_sampled(logits, s.temperature, s.top_p, random_sample)

        return pick

    def _add_turn(self, question: str, output: _Output) -> None:
        assert output.finish_reason is not None
        text, prompt = self._stopper.text(output.ids), output.prompt
        n_prompt, n_answer = len(prompt.ids), len(output.ids)
        self.last = ChatTurn(
            question, text, output.finish_reason, prompt.n_slots, n_prompt, n_answer, output.n_computed_tokens
        )
        if text:
            self.turns.append((question, text))


@dataclass
class _Output:
    """An answer that is being generated."""

    prompt: Prompt
    n_computed_tokens: int
    ids: list[int] = field(default_factory=list)
    yielded: str = ""
    finish_reason: Literal["eos", "stop", "length", "interrupted"] | None = None
