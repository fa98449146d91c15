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

from vidqa.config.toml_lines import did_you_mean, dotted, read_toml
from vidqa.errors import UsageError
from vidqa.prompts.build import IGNORE_INDEX, LabelledPrompt

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
                raise ValueError(f"pair {a} {b}: no word {wrong!r} in its group{did_you_mean(wrong, group)}")
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
            said = f"`{dotted(place)}`: {text[:1].lower()}{text[1:]}" if place else text
            if one["type"] == "extra_forbidden":
                said = f"unknown key `{dotted(place)}`{did_you_mean(str(place[-1]), UnseenPairs.model_fields)}"
            lines.append(f"{file.where(*place)}: {said}")
        raise UsageError("\n".join(lines)) from error


class PairMention(NamedTuple):
    """A listed word in an answer whose partner was said before."""

    at: int  # position of its first token
    word: int  # in `UnseenPairs.words`
    form: int  # in `_FORMS`
    partner: int  # in `UnseenPairs.words`


class IgnoredTokens:
    """What the loss leaves out, and where.

    Args:
        unseen: words and pairs.
        tokenizer: the LLM's own, with `convert_ids_to_tokens` as those of transformers have it.
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
        self._rows_of: dict[PairMention, tuple[int, ...]] = {}  # a word, as if at 0 -> row of each of its tokens
        numbers: dict[tuple[int, ...], int] = {(): 0}
        for partner, never in self._never.items():
            for word in (n for n in self._others(partner) if never and n not in never):
                for form in range(len(_FORMS)):
                    left_out = self._left_out(partner, word, form)
                    for ids in left_out:
                        if numbers.setdefault(ids, len(self.rows)) == len(self.rows):
                            self.rows.append(ids)
                    self._rows_of[PairMention(0, word, form, partner)] = tuple(numbers[ids] for ids in left_out)

    def _partners(self, number: int) -> frozenset[int]:
        """Words that never go with this one."""
        words = self.unseen.words
        pairs = [(words.index(a), words.index(b)) for a, b in self.unseen.pairs]
        return frozenset(b if a == number else a for a, b in pairs if number in (a, b))

    def _others(self, number: int) -> list[int]:
        """Words of the other group."""
        return [n for n, group in enumerate(self._group_of) if group != self._group_of[number]]

    def _left_out(self, partner: int, word: int, form: int) -> list[tuple[int, ...]]:
        """Token ids to leave out at each token of a word: they would go on with a word that never goes with the
        partner, and with none that may."""
        ids, never = self._ids[word][form], self._never[partner]
        found = []
        for n in range(len(ids)):
            next_of: dict[bool, set[int]] = {True: set(), False: set()}  # by whether it never goes with the partner
            for other in self._others(partner):
                its = self._ids[other][form]
                if len(its) > n and its[:n] == ids[:n]:
                    next_of[other in never].add(its[n])
            found.append(tuple(sorted(next_of[True] - next_of[False])))
        return found

    def where(self, made: LabelledPrompt) -> np.ndarray:
        """Row of `rows` for each position of a conversation, int64 [S]; 0 where nothing is left out.

        A word of several tokens has a row for each: rivals are left out where they part from it. A target is never left
        out: where an answer says one of the pairs after all, the loss is the ordinary one.
        """
        found = np.zeros(len(made.labels), np.int64)
        for said in self.answers(made):
            rows = self._rows_of.get(said._replace(at=0), ())
            found[said.at : said.at + len(rows)] = rows
        return found

    def answers(self, made: LabelledPrompt) -> Iterator[PairMention]:
        """Listed words in the answers of a conversation that have a partner."""
        waiting: int | None = None  # the last word that has no partner yet
        for at, word, form in self._words(made):
            if waiting is None or self._group_of[waiting] == self._group_of[word]:
                waiting = word
                continue
            if made.labels[at] != IGNORE_INDEX:
                yield PairMention(at, word, form, waiting)
            waiting = None

    def is_unseen(self, said: PairMention) -> bool:
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
