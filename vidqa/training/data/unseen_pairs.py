"""Unseen pairs: word pairs that no training media shows together, whose tokens the loss ignores as wrong answers.

If the training set contains no red stars, training on it teaches that red objects are never stars: every time an answer
names the shape of a red object, `star` is one of the wrong tokens of the softmax. A word that could not have been
right carries no information, so its tokens are removed from the softmax at that position. This is a softmax balanced
by the prior of each word, which is zero here (Ren et al. 2020, arXiv:2007.10740; Menon et al. 2020, arXiv:2007.07314).

Words are paired in the order in which a conversation mentions them, in questions and answers: a word is paired with
the latest word of the other group that has no partner yet. So `red` and `star` are a pair in "a red star" and in "What
color is the star? It is red.", and `star` and `blue` are not a pair in "a red star and a blue ring".

Only this module handles words and pairs; all others use rows of ignored token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vidqa.config.toml_lines import did_you_mean, dotted, read_toml
from vidqa.errors import UsageError
from vidqa.prompts.build import IGNORE_INDEX, LabeledPrompt

#: How vocabularies write white space: byte-level BPE with letters, SentencePiece with a lower one eighth block.
_WHITESPACE = str.maketrans("Ġ▁Ċĉ", "  \n\t")

#: Forms of a word, the most frequent first: (preceding text, white space that is part of its token, capitalized).
_FORMS = tuple(
    (before, space, capitalized)
    for capitalized in (False, True)
    for before, space in (("a", " "), ("a\n", ""), ("", ""))
)


class UnseenPairs(BaseModel):
    """Content of a pairs file: two groups of words, and the pairs that no media item shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: dict[str, tuple[str, ...]]
    pairs: tuple[tuple[str, str], ...]

    @model_validator(mode="after")
    def _check(self) -> UnseenPairs:
        if len(self.groups) != 2:
            raise ValueError(f"two groups of words are required, not {len(self.groups)}")
        words = self.words
        if duplicates := sorted({w for w in words if words.count(w) > 1}):
            raise ValueError(f"listed twice: {', '.join(duplicates)}")
        if bad := [w for w in words if w.split() != [w] or w != w.lower()]:
            raise ValueError(f"entries must be single words in lower case, not {', '.join(map(repr, bad))}")
        first, second = self.groups.values()
        for a, b in self.pairs:
            if a not in first or b not in second:
                wrong, group = (a, first) if a not in first else (b, second)
                raise ValueError(f"pair {a} {b}: no word {wrong!r} in its group{did_you_mean(wrong, group)}")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the first group, then those of the second."""
        return tuple(word for group in self.groups.values() for word in group)


def read_unseen_pairs(path: Path) -> UnseenPairs:
    """Read and check a pairs file.

    Raises:
        UsageError: it cannot be read or is invalid; the message has file, line and key.
    """
    file = read_toml(path)
    try:
        return UnseenPairs.model_validate(file.values)
    except ValidationError as error:
        problems = []
        for one in error.errors(include_url=False):
            key = tuple(one["loc"])
            text = str(one["msg"]).removeprefix("Value error, ")
            problem = f"`{dotted(key)}`: {text[:1].lower()}{text[1:]}" if key else text
            if one["type"] == "extra_forbidden":
                problem = f"unknown key `{dotted(key)}`{did_you_mean(str(key[-1]), UnseenPairs.model_fields)}"
            problems.append(f"{file.where(*key)}: {problem}")
        raise UsageError("\n".join(problems)) from error


class PairMention(NamedTuple):
    """A listed word in an answer, and the word that it is paired with."""

    position: int  # position of its first token in the sequence
    word: int  # index into `UnseenPairs.words`
    form: int  # index into `_FORMS`
    partner: int  # index into `UnseenPairs.words`


@dataclass
class PairCounts:
    """Counts of unseen pairs in conversations."""

    n_positions: int = 0  # answer tokens whose loss ignores some tokens
    mentions: Counter[str] = field(default_factory=Counter)  # pair -> answers that mention it although it is unseen

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.n_positions + other.n_positions, self.mentions + other.mentions)

    def lines(self) -> list[str]:
        """Return lines for the report of a data check; none if no pair occurs."""
        lines = []
        if self.n_positions or self.mentions:
            lines.append(f"unseen pairs: {self.n_positions} answer tokens whose loss ignores other tokens")
        lines += [
            f"  {pair}: mentioned by {n} answers about media, so it may not be unseen; their loss ignores nothing"
            for pair, n in sorted(self.mentions.items())
        ]
        return lines


class IgnoredTokens:
    """Determines which token ids the loss ignores at which positions.

    Args:
        pairs: content of the pairs file.
        tokenizer: the tokenizer of the LLM, with `convert_ids_to_tokens` as in transformers.
    """

    def __init__(self, pairs: UnseenPairs, tokenizer: Any) -> None:
        self.pairs, self._tokenizer = pairs, tokenizer
        self._group_of = [n for n, group in enumerate(pairs.groups.values()) for _ in group]
        self._ids = [[_token_ids(tokenizer, word, form) for form in _FORMS] for word in pairs.words]
        self._texts: dict[int, str] = {}  # token id -> text, for tokens next to a word
        word_and_form: dict[tuple[int, ...], tuple[int, int]] = {}
        for word, forms in enumerate(self._ids):
            for form, ids in enumerate(forms):
                word_and_form.setdefault(ids, (word, form))
        self._by_first_id: dict[int, list[tuple[int, ...]]] = {}
        for ids in sorted(filter(None, word_and_form), key=len, reverse=True):
            self._by_first_id.setdefault(ids[0], []).append(ids)
        self._word_and_form = word_and_form
        self._unseen_with = {n: self._unseen_partners(n) for n in range(len(pairs.words))}
        #: The distinct sets of ignored token ids; row 0 is empty.
        self.rows: list[tuple[int, ...]] = [()]
        self._rows_of: dict[PairMention, tuple[int, ...]] = {}  # a mention at position 0 -> row of each of its tokens
        numbers: dict[tuple[int, ...], int] = {(): 0}
        for partner, unseen in self._unseen_with.items():
            for word in (n for n in self._other_group(partner) if unseen and n not in unseen):
                for form in range(len(_FORMS)):
                    ignored = self._ignored_ids(partner, word, form)
                    for ids in ignored:
                        if numbers.setdefault(ids, len(self.rows)) == len(self.rows):
                            self.rows.append(ids)
                    self._rows_of[PairMention(0, word, form, partner)] = tuple(numbers[ids] for ids in ignored)

    def row_indices(self, conversation: LabeledPrompt) -> np.ndarray:
        """Find the row of `rows` for each position.

        A word of several tokens has a row for each token: a competing word is ignored at the token where it starts to
        differ. A target is never ignored: where an answer does mention an unseen pair, the loss is the ordinary one.

        Returns:
            int64 [S]; 0 where nothing is ignored.
        """
        found = np.zeros(len(conversation.labels), np.int64)
        for mention in self.mentions(conversation):
            rows = self._rows_of.get(mention._replace(position=0), ())
            found[mention.position : mention.position + len(rows)] = rows
        return found

    def count(self, conversation: LabeledPrompt) -> PairCounts:
        """Count ignored positions and mentions of unseen pairs in one conversation."""
        words = self.pairs.words
        unseen = [mention for mention in self.mentions(conversation) if self.is_unseen(mention)]
        names = (" ".join(words[n] for n in sorted((m.word, m.partner))) for m in unseen)
        return PairCounts(int((self.row_indices(conversation) > 0).sum()), Counter(names))

    def mentions(self, conversation: LabeledPrompt) -> Iterator[PairMention]:
        """Find the listed words in the answers of a conversation that are paired with another word."""
        unpaired: int | None = None  # the latest word without a partner
        for position, word, form in self._words(conversation):
            if unpaired is None or self._group_of[unpaired] == self._group_of[word]:
                unpaired = word
                continue
            if conversation.labels[position] != IGNORE_INDEX:
                yield PairMention(position, word, form, unpaired)
            unpaired = None

    def is_unseen(self, mention: PairMention) -> bool:
        """Return True if a mentioned pair is one of the unseen pairs."""
        return mention.word in self._unseen_with[mention.partner]

    def _unseen_partners(self, number: int) -> frozenset[int]:
        words = self.pairs.words
        pairs = [(words.index(a), words.index(b)) for a, b in self.pairs.pairs]
        return frozenset(b if a == number else a for a, b in pairs if number in (a, b))

    def _other_group(self, number: int) -> list[int]:
        return [n for n, group in enumerate(self._group_of) if group != self._group_of[number]]

    def _ignored_ids(self, partner: int, word: int, form: int) -> list[tuple[int, ...]]:
        """Return the ids to ignore at each token of a word: those that continue only words unseen with the partner."""
        ids, unseen = self._ids[word][form], self._unseen_with[partner]
        found = []
        for n in range(len(ids)):
            next_ids: dict[bool, set[int]] = {True: set(), False: set()}  # by whether the word is unseen
            for other in self._other_group(partner):
                other_ids = self._ids[other][form]
                if len(other_ids) > n and other_ids[:n] == ids[:n]:
                    next_ids[other in unseen].add(other_ids[n])
            found.append(tuple(sorted(next_ids[True] - next_ids[False])))
        return found

    def _words(self, conversation: LabeledPrompt) -> Iterator[tuple[int, int, int]]:
        """Yield (position of its first token, word, form) for each listed word, in order."""
        ids, slots = conversation.prompt.ids.tolist(), conversation.prompt.slots.tolist()
        for start, first in enumerate(ids):
            for word_ids in () if slots[start] else self._by_first_id.get(first, ()):
                end = start + len(word_ids)
                if tuple(ids[start:end]) != word_ids:
                    continue
                word, form = self._word_and_form[word_ids]
                continues = end < len(ids) and not slots[end] and self._text(ids[end])[:1].isalnum()
                is_inside = (
                    not self._text(first)[:1].isspace()
                    and start > 0
                    and not slots[start - 1]
                    and self._text(ids[start - 1])[-1:].isalnum()
                )
                if not continues and not is_inside:
                    yield start, word, form
                    break

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.convert_ids_to_tokens(token)).translate(_WHITESPACE)
        return self._texts[token]


def total_counts(counts: Iterable[PairCounts]) -> PairCounts:
    """Return the sum of the counts of several conversations."""
    return sum(counts, PairCounts())


def _token_ids(tokenizer: Any, word: str, form: tuple[str, str, bool]) -> tuple[int, ...]:
    """Return the token ids of a word in one of its forms; empty if they merge with the preceding text."""
    before, space, capitalized = form
    text = space + (word.capitalize() if capitalized else word)
    lead = tokenizer.encode(before, add_special_tokens=False) if before else []
    ids = tokenizer.encode(before + text, add_special_tokens=False)
    return tuple(ids[len(lead) :]) if ids[: len(lead)] == lead else ()
