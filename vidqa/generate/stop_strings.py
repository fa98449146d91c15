"""Token ids -> text, and what ends it: a stop string, or a token that the model or the tokenizer calls an end.

Knows a tokenizer and a model's own settings. Does not know the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Stopper:
    """Turns an answer's ids into text and watches for stop strings.

    Args:
        tokenizer: the LLM's own.
        stops: strings that end an answer; the answer holds neither them nor what follows. Empty ones are left out.
        leads: strings that a model may put before its answer; they are no part of it, and no end of it either.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), leads: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._leads = tuple(leads)
        self._stops = tuple(dict.fromkeys(s for s in stops if s))
        # A stop string of n characters lies in the last n tokens, if every token has at least one character. Some have
        # none (parts of a character in byte fallback), hence the factor and the margin.
        self._tail = 4 * max((len(s) for s in self._stops), default=0) + 4

    def text(self, ids: Sequence[int]) -> str:
        """Text of an answer, cut at the first stop string, without white space around it."""
        text = self._without_leads(self._decode(ids))
        cuts = [at for s in self._stops if (at := text.find(s)) >= 0]
        return (text[: min(cuts)] if cuts else text).strip()

    def stops(self, ids: Sequence[int]) -> bool:
        """True when the newest token completes a stop string."""
        if not self._stops:
            return False
        tail = self._decode(ids[-self._tail :])
        if self._leads and any(s in tail for s in self._stops):
            tail = self._without_leads(self._decode(ids))
        return any(s in tail for s in self._stops)

    def _without_leads(self, text: str) -> str:
        while self._leads:
            text = text.lstrip()
            lead = next((lead for lead in self._leads if text.startswith(lead)), None)
            if lead is None:
                break
            text = text[len(lead) :]
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def end_ids(llm: Any, tokenizer: Any, stops: Sequence[str]) -> frozenset[int]:
    """Tokens that end an answer: what model and tokenizer call so, and stop strings that are one special token.

    Args:
        llm: a causal LLM of transformers.
        tokenizer: its own.
        stops: strings that end an answer.
    """
    config = getattr(llm, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = {*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id}
    special = set(tokenizer.all_special_tokens)
    ids |= {tokenizer.convert_tokens_to_ids(s) for s in stops if s in special}
    return frozenset(i for i in ids if i is not None)
