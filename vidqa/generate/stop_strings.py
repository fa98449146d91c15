"""Detokenization and stopping criteria: token ids -> text, cut at a stop string; end-of-sequence ids of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Stopper:
    """Decodes the ids of an answer and detects stop strings.

    Args:
        tokenizer: the LLM's tokenizer.
        stops: stop strings; an answer is cut before the first one. Empty strings are ignored.
        answer_prefixes: strings that a model may put before its answer. They are removed and never count as
            stop strings.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), answer_prefixes: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._answer_prefixes = tuple(answer_prefixes)
        self._stops = tuple(dict.fromkeys(s for s in stops if s))
        # The decoder removes special tokens, so a stop string that contains one is looked for before that.
        self._special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._special_stops = tuple(s for s in self._stops if any(token in s for token in self._special))
        # A stop string of n characters is within the last n tokens if every token has at least one character. Some have
        # none (parts of a character in byte fallback), hence the factor and the margin.
        self._window = 4 * max((len(s) for s in self._stops), default=0) + 4

    def text(self, ids: Sequence[int]) -> str:
        """Decode an answer, cut at the first stop string and stripped of surrounding whitespace."""
        text = self._without_prefixes(self._decode(ids) if not self._special_stops else self._until_special_stop(ids))
        cuts = [at for s in self._stops if (at := text.find(s)) >= 0]
        return (text[: min(cuts)] if cuts else text).strip()

    def has_stop_string(self, ids: Sequence[int]) -> bool:
        """Return True if the newest token completes a stop string."""
        if not self._stops:
            return False
        newest = ids[-self._window :]
        if self._special_stops and any(s in self._decode(newest, False) for s in self._special_stops):
            return True
        tail = self._decode(newest)
        if self._answer_prefixes and any(s in tail for s in self._stops):
            tail = self._without_prefixes(self._decode(ids))
        return any(s in tail for s in self._stops)

    def _without_prefixes(self, text: str) -> str:
        while self._answer_prefixes:
            text = text.lstrip()
            prefix = next((prefix for prefix in self._answer_prefixes if text.startswith(prefix)), None)
            if prefix is None:
                break
            text = text[len(prefix) :]
        return text

    def _until_special_stop(self, ids: Sequence[int]) -> str:
        """Decode an answer, cut at the first stop string with special tokens."""
        text = self._decode(ids, False)
        cuts = [at for s in self._special_stops if (at := text.find(s)) >= 0]
        if not cuts:
            return self._decode(ids)
        text = text[: min(cuts)]
        for token in self._special:
            text = text.replace(token, "")
        return text

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def eos_ids(llm: Any, tokenizer: Any, stops: Sequence[str]) -> frozenset[int]:
    """Collect the ids that end an answer.

    Args:
        llm: a causal LLM; its generation config may list end-of-sequence ids.
        tokenizer: the LLM's tokenizer, with its own end-of-sequence id.
        stops: stop strings; those that are one added token, flagged as special or not, are matched by id.
    """
    config = getattr(llm, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = {*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id}
    ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in stops}
    return frozenset(i for i in ids if i is not None)
