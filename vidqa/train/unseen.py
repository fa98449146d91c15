"""Word pairs that the media never show together -> answers that the loss of a stage leaves out.

Who has seen stars, and red things, but no red star, learns from a softmax over all words that what looks red is no
star: after each `red` of an answer, `star` was one of the wrong words. A word that could not have been right tells
nothing, so it takes no part there: a softmax balanced by the prior of each word, which is zero here (Ren et al. 2020,
arXiv:2007.10740; Menon et al. 2020, arXiv:2007.07314).

Words are paired in the order in which a conversation says them, question or answer: a word belongs to the word of the
other group that was said before it and has no partner yet. So `red` and `star` are a pair in "a red star" and in "What
colour is the star? It is red.", and `star` and `blue` are none in "a red star and a blue ring".

Knows words and a tokenizer that is handed in. Does not know recipes or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vidqa.config.toml import meant, read_toml, title
from vidqa.errors import UsageError
from vidqa.prompts.build import IGNORED, LabelledPrompt

#: How vocabularies write white space: byte-level ones as letters, those of sentencepiece as a low line.
_WHITE = str.maketrans("Ġ▁Ċĉ", "  \n\t")

#: Forms of a word, the usual one first: (text before it, white space that belongs to its token, capitalised).
_FORMS = tuple(
    (before, between, capital) for capital in (False, True) for before, between in (("a", " "), ("a\n", ""), ("", ""))
)


class UnseenPairs(BaseModel):
    """The file: two groups of words, and the pairs of them that no medium of the data shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: dict[str, tuple[str, ...]]
    pairs: tuple[tuple[str, str], ...]

    @model_validator(mode="after")
    def _consistent(self) -> UnseenPairs:
        if len(self.groups) != 2:
            raise ValueError(f"two groups of words are needed, there are {len(self.groups)}")
        words = self.words
        if twice := sorted({w for w in words if words.count(w) > 1}):
            raise ValueError(f"in the groups twice: {', '.join(twice)}")
        if bad := [w for w in words if w.split() != [w] or w != w.lower()]:
            raise ValueError(f"words are single ones in lower case, not {', '.join(map(repr, bad))}")
        first, second = self.groups.values()
        for a, b in self.pairs:
            if a not in first or b not in second:
                wrong, group = (a, first) if a not in first else (b, second)
                raise ValueError(f"pair {a} {b}: no word {wrong!r} in its group{meant(wrong, group)}")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """Of the first group, then of the second."""
        return tuple(word for group in self.groups.values() for word in group)


def read_unseen(path: Path) -> UnseenPairs:
    """Read and check a file of pairs.

    Raises:
        UsageError: it cannot be read or is wrong; names file, line and key.
    """
    file = read_toml(path)
    try:
        return UnseenPairs.model_validate(file.values)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False):
            place = tuple(one["loc"])
            text = str(one["msg"]).removeprefix("Value error, ")
            said = f"`{title(place)}`: {text[:1].lower()}{text[1:]}" if place else text
            if one["type"] == "extra_forbidden":
                said = f"unknown key `{title(place)}`{meant(str(place[-1]), UnseenPairs.model_fields)}"
            lines.append(f"{file.where(*place)}: {said}")
        raise UsageError("\n".join(lines)) from error


class Said(NamedTuple):
    """A listed word in an answer whose partner was said before."""

    at: int  # position of its first token
    word: int  # in `UnseenPairs.words`
    form: int  # in `_FORMS`
    partner: int  # in `UnseenPairs.words`


class LeftOut:
    """What the loss leaves out, and where.

    Args:
        unseen: words and pairs.
        tokenizer: the LLM's own, with `convert_ids_to_tokens` as those of transformers have it.

    Raises:
        UsageError: a word that is to be left out begins with the same token as one that is not.
    """

    def __init__(self, unseen: UnseenPairs, tokenizer: Any) -> None:
        self.unseen, self._tokenizer = unseen, tokenizer
        self._group_of = [n for n, group in enumerate(unseen.groups.values()) for _ in group]
        self._ids = [[_ids_of(tokenizer, word, form) for form in _FORMS] for word in unseen.words]
        self._texts: dict[int, str] = {}  # of tokens that stood beside a word
        known: dict[tuple[int, ...], tuple[int, int]] = {}
        for word, forms in enumerate(self._ids):
            for form, ids in enumerate(forms):
                known.setdefault(ids, (word, form))
        self._by_first: dict[int, list[tuple[int, ...]]] = {}
        for ids in sorted(filter(None, known), key=len, reverse=True):
            self._by_first.setdefault(ids[0], []).append(ids)
        self._known = known
        self._never = {n: self._partners(n) for n in range(len(unseen.words))}
        #: Token ids that each row leaves out; row 0 leaves out nothing.
        self.rows: list[tuple[int, ...]] = [()]
        self._row_of: dict[tuple[int, int], int] = {}  # (partner, form) -> row
        for partner in self._never:
            for form in range(len(_FORMS)):
                if ids := self._first_tokens(partner, form):
                    self._row_of[partner, form] = len(self.rows)
                    self.rows.append(ids)

    def _partners(self, number: int) -> frozenset[int]:
        """Words that never go with this one."""
        words = self.unseen.words
        pairs = [(words.index(a), words.index(b)) for a, b in self.unseen.pairs]
        return frozenset(b if a == number else a for a, b in pairs if number in (a, b))

    def _first_tokens(self, partner: int, form: int) -> tuple[int, ...]:
        """Tokens that begin a word that never goes with this one, and none that may."""
        words, never = self.unseen.words, self._never[partner]
        others = [n for n in range(len(words)) if self._group_of[n] != self._group_of[partner] and n not in never]
        kept = {self._ids[n][form][0]: n for n in others if self._ids[n][form]}
        gone = {self._ids[n][form][0]: n for n in sorted(never) if self._ids[n][form]}
        if form == 0 and (both := kept.keys() & gone.keys()):
            one = min(both)
            raise UsageError(
                f"unseen pairs: {words[gone[one]]!r} never goes with {words[partner]!r}, but begins with the same "
                f"token of this model as {words[kept[one]]!r}, which does",
                hint="take the pair out of the file: the loss leaves out single tokens",
            )
        return tuple(sorted(gone.keys() - kept.keys()))

    def where(self, made: LabelledPrompt) -> np.ndarray:
        """Row of `rows` for each position of a conversation, int64 [S]; 0 where nothing is left out.

        A target is never left out: where an answer says one of the pairs after all, the loss is the ordinary one.
        """
        found = np.zeros(len(made.labels), np.int64)
        for said in self.answers(made):
            if said.word not in self._never[said.partner]:
                found[said.at] = self._row_of.get((said.partner, said.form), 0)
        return found

    def answers(self, made: LabelledPrompt) -> Iterator[Said]:
        """Listed words in the answers of a conversation that have a partner."""
        waiting: int | None = None  # the last word that has no partner yet
        for at, word, form in self._words(made):
            if waiting is None or self._group_of[waiting] == self._group_of[word]:
                waiting = word
                continue
            if made.labels[at] != IGNORED:
                yield Said(at, word, form, waiting)
            waiting = None

    def is_unseen(self, said: Said) -> bool:
        """Whether it is one of the pairs that were not to be there."""
        return said.word in self._never[said.partner]

    def _words(self, made: LabelledPrompt) -> Iterator[tuple[int, int, int]]:
        """(position of its first token, word, form) of each listed word, in their order."""
        ids, slots = made.prompt.ids.tolist(), made.prompt.slots.tolist()
        for at, first in enumerate(ids):
            for wanted in () if slots[at] else self._by_first.get(first, ()):
                end = at + len(wanted)
                if tuple(ids[at:end]) != wanted:
                    continue
                word, form = self._known[wanted]
                goes_on = end < len(ids) and not slots[end] and self._text(ids[end])[:1].isalnum()
                is_inside = (
                    not self._text(first)[:1].isspace()
                    and at > 0
                    and not slots[at - 1]
                    and self._text(ids[at - 1])[-1:].isalnum()
                )
                if not goes_on and not is_inside:
                    yield at, word, form
                    break

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.convert_ids_to_tokens(token)).translate(_WHITE)
        return self._texts[token]


def _ids_of(tokenizer: Any, word: str, form: tuple[str, str, bool]) -> tuple[int, ...]:
    """Tokens of a word in one of its forms; none where they cannot be told from those before it."""
    before, between, capital = form
    text = between + (word.capitalize() if capital else word)
    lead = tokenizer.encode(before, add_special_tokens=False) if before else []
    whole = tokenizer.encode(before + text, add_special_tokens=False)
    return tuple(whole[len(lead) :]) if whole[: len(lead)] == lead else ()


def rows_mask(rows: Iterable[Sequence[int]], n_vocabulary: int) -> np.ndarray:
    """Rows of token ids as bool [R, n_vocabulary]."""
    listed = list(rows)
    mask = np.zeros((len(listed), n_vocabulary), np.bool_)
    for row, ids in zip(mask, listed, strict=True):
        row[list(ids)] = True
    return mask
