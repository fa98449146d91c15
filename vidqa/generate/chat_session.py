"""A dialogue about pictures and clips: their tokens go through the LLM once, a later turn adds its own text only.

Knows one model and one dialogue. Does not know files, terminals or other dialogues.

Every question is written as `generate` would be asked it: one prompt with all turns so far. What this prompt has in
common with the tokens that were computed before is not computed again; the rest is. So an answer is that of the full
prompt, token for token (in float32), in every chat format, also where a format writes an earlier answer otherwise than
the model said it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidqa.common.devices import is_out_of_memory
from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate.engine import GenerationSettings
from vidqa.generate.kv_cache.chat_cache import ChatKVCache, n_common
from vidqa.generate.sampling import RandomStream, content_of, pick_greedy, pick_sampled
from vidqa.generate.stop_strings import Stopper, end_ids
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import build_prompt
from vidqa.prompts.chat_formats import Turn
from vidqa.records import Features, Prompt


@dataclass(frozen=True)
class ChatTurn:
    """One question of a dialogue and what the model said."""

    question: str
    text: str
    finish_reason: Literal["eos", "stop", "length", "interrupted"]
    n_visual_tokens: int
    n_prompt_tokens: int  # of the whole dialogue, visual tokens included
    n_answer_tokens: int
    n_computed_tokens: int  # of the prompt; the others were there from before

    @property
    def status(self) -> Literal["ok", "truncated", "empty"]:
        """As in the table: whether the answer is whole."""
        if not self.text:
            return "empty"
        return "ok" if self.finish_reason in ("eos", "stop") else "truncated"


class ChatSession:
    """Several questions about the same pictures and clips, each with all turns before it.

    Args:
        model: in evaluation mode.
        features: what the dialogue is about, in order; may be empty.
        settings: how answers are searched for.

    Raises:
        UsageError: the model was not tuned for dialogues.
    """

    def __init__(
        self, model: VideoLlava, features: Sequence[Features], settings: GenerationSettings | None = None
    ) -> None:
        if model.chat.kind == "plain":
            raise UsageError("this model only writes captions: its format has no form for a dialogue", hint="vidqa ask")
        self.model, self.settings = model, settings or GenerationSettings()
        self.turns: list[tuple[str, str]] = []
        self.last: ChatTurn | None = None  # what `stream` ended with
        self._features = tuple(features)
        self._shapes = [model.media_shape(f) for f in features]
        with torch.inference_mode():
            self._visual = model.visual_tokens(self._features)
        stops = (*model.chat.stop, *self.settings.stop)
        self._stops = tuple(s for s in stops if s)
        self._stopper = Stopper(model.tokenizer, stops, model.chat.answer_prefixes)
        self._end_ids = end_ids(model.llm, model.tokenizer, stops)
        self._line = ChatKVCache(model)

    def warm(self) -> None:
        """Compute what all first questions begin with, which holds the media unless the format puts them behind."""
        one, other = self._prompt("a", ()), self._prompt("b", ())
        n = n_common(one, other)
        if n and one.slots[:n].sum() == one.n_slots:
            self._line.take_in(Prompt(one.ids[:n], one.slots[:n]), self._visual)

    def ask(self, question: str) -> ChatTurn:
        """Ask, and wait for the whole answer.

        Raises:
            PromptTooLongError: dialogue and answer do not fit the context; the dialogue is as it was before.
            UsageError: the question is empty, or holds a text that the chat format reserves.
            ItemError: (`out_of_memory`) the device cannot hold the dialogue.
        """
        for _ in self.stream(question):
            pass
        assert self.last is not None
        return self.last

    def stream(self, question: str) -> Generator[str]:
        """Ask, and hear the answer piece by piece; together the pieces are its text, if that has no broken character.

        An iterator that is closed, or left by Ctrl-C, ends the answer where it was: what was said until then is the
        turn's answer. A question without any answer is no part of the dialogue. `last` tells how it ended.

        Raises:
            As `ask`; `out_of_memory` while the answer is heard, the others at once.
        """
        self.last = None
        prompt = self._fitting(question)
        return self._heard(question, _Answering(prompt, len(prompt.ids) - self._line.n_common(prompt)))

    def reset(self) -> None:
        """Forget all turns; the media stay, and are not computed again where they stand before the first question."""
        self.turns.clear()

    def _prompt(self, question: str, turns: Sequence[Turn]) -> Prompt:
        return build_prompt(self.model.tokenizer, self.model.chat, [*turns, (question, None)], self._shapes)

    def _fitting(self, question: str) -> Prompt:
        """The prompt of the next turn."""
        if not question.strip():
            raise UsageError("the question is empty")
        prompt, new = self._prompt(question, self.turns), self.settings.max_new_tokens
        over = len(prompt.ids) + new - self.model.context
        if over > 0:
            what = (
                f"the dialogue is full: with this question it has {len(prompt.ids)} tokens ({prompt.n_slots} visual), "
                f"and the answer may take {new}: {over} more than the context of {self.model.context}"
            )
            raise PromptTooLongError(what, hint="begin anew (/reset), or allow shorter answers (--max-new-tokens)")
        return prompt

    def _heard(self, question: str, now: _Answering) -> Generator[str]:
        """The pieces; whatever ends them, line and turns are in order afterwards."""
        try:
            yield from self._say(now)
        except (GeneratorExit, KeyboardInterrupt):
            now.reason = now.reason or "interrupted"
            raise
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            what = f"no memory for a dialogue of {len(now.prompt.ids)} tokens"
            raise ItemError("out_of_memory", what, hint="begin anew (/reset), or a smaller model") from e
        finally:
            self._line.settle()
            if now.reason:
                self._conclude(question, now)

    def _say(self, now: _Answering) -> Generator[str]:
        choose = self._chooser(now.prompt)
        logits = self._line.take_in(now.prompt, self._visual)
        while now.reason is None:
            token = int(choose(logits))
            if token in self._end_ids:
                now.reason = "eos"
                break
            now.ids.append(token)
            if self._stopper.stops(now.ids):
                now.reason = "stop"
            elif len(now.ids) >= self.settings.max_new_tokens:
                now.reason = "length"
            elif piece := self._fresh(now):
                yield piece
            if now.reason is None:
                logits = self._line.step(token)
        if piece := self._fresh(now, whole=True):
            yield piece

    def _fresh(self, now: _Answering, whole: bool = False) -> str:
        """What can be shown and was not: not the beginning of a stop string, nor half a character."""
        text = self._stopper.text(now.ids)
        if not whole:
            text = text.rstrip("\ufffd")
            held = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
            text = text[: len(text) - max(held, default=0)].rstrip()
            if any(lead.startswith(text) for lead in self.model.chat.answer_prefixes):  # it may yet be taken off
                return ""
        if not text.startswith(now.shown):
            return ""
        piece, now.shown = text[len(now.shown) :], text
        return piece

    def _chooser(self, prompt: Prompt) -> Callable[[Tensor], Tensor]:
        s = self.settings
        if s.temperature == 0:
            return pick_greedy
        draws = RandomStream(s.seed, content_of(prompt, self._features))

        def choose(logits: Tensor) -> Tensor:
            number = torch.tensor([draws.next()], dtype=torch.float64, device=logits.device)
            return pick_sampled(logits, s.temperature, s.top_p, number)

        return choose

    def _conclude(self, question: str, now: _Answering) -> None:
        assert now.reason is not None
        text, n = self._stopper.text(now.ids), len(now.prompt.ids)
        self.last = ChatTurn(question, text, now.reason, now.prompt.n_slots, n, len(now.ids), now.n_computed)
        if text:
            self.turns.append((question, text))


@dataclass
class _Answering:
    """An answer that grows."""

    prompt: Prompt
    n_computed: int
    ids: list[int] = field(default_factory=list)
    shown: str = ""
    reason: Literal["eos", "stop", "length", "interrupted"] | None = None
