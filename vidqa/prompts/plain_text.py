"""Tokenizes prompts so that the text of users never becomes special tokens.

A tokenizer recognizes its added tokens (`</s>`, `<image>`, `<|im_end|>`, ...) wherever their text occurs, also in a
question. Here only the format's own text may contain them. Where one would touch the text of a user, the text is broken
up inside it, and the parts are tokenized one after the other: the ids then spell the characters. All other text is
tokenized in one piece, so ordinary questions have the ids that they would have without this module.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from vidqa.errors import UsageError
from vidqa.records import character_problem

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""

#: Characters that do not occur in questions and merge with no others. One is put before the second part of a text that
#: is broken up, because tokenizers add a space before the start of a text. Its own ids are then removed.
_SEPARATORS = ("\ue000", "\uf8ff", "\u2063", "|")
#: White space, and how SentencePiece writes it. Some vocabularies have added tokens for runs of it, which are text.
_SPACE = " \t\r\n\u2581"


class AddedToken(Protocol):
    """The part of an added token of the tokenizers package that is needed here."""

    content: str
    special: bool


class Tokenizer(Protocol):
    """The part of the transformers tokenizer interface that prompts need."""

    bos_token_id: int | None

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """Tokens that are recognized before the text is tokenized, by id."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """Return the id of a token. Not needed for `media="split"`."""
        ...

    def get_chat_template(self) -> str:
        """Return the chat template. Only needed for `chat_template`."""
        ...

    def apply_chat_template(
        self, conversation: Any, *, chat_template: str, tokenize: bool, add_generation_prompt: bool, date_string: str
    ) -> Any:
        """Return a conversation as text. Only needed for `chat_template`."""
        ...


def check_text(text: str) -> None:
    """Check that a text of a user can be part of a prompt.

    Args:
        text: a question or an answer.

    Raises:
        UsageError: it contains a NUL character, or is not valid Unicode (a lone surrogate: a byte that is not UTF-8).
    """
    if problem := character_problem(text):
        raise UsageError(f"the text {text[:60]!r} {problem}")


def plain_text_encoder(tokenizer: Tokenizer) -> PlainTextEncoder:
    """Return the encoder of a tokenizer; it is created once. The tokenizer must not get more tokens afterwards."""
    encoder = _ENCODERS.get(tokenizer)
    if encoder is None:
        encoder = _ENCODERS[tokenizer] = PlainTextEncoder(tokenizer)
    return encoder


class Encoded(NamedTuple):
    """Ids of a text, and where it was broken up: positions in ascending order, usually none."""

    ids: list[int]
    breaks: list[int]


class PlainTextEncoder:
    """Text with the spans that users wrote -> token ids.

    Args:
        tokenizer: it is not kept alive by this object.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.proxy(tokenizer)
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip(_SPACE)}
        # A single character cannot be broken up. If it is not special either, it was added to the vocabulary as a word.
        self._words = tuple(dict.fromkeys(t.content for t in added.values() if len(t.content) > 1))
        unknown = tokenizer.encode(_SEPARATORS[0], add_special_tokens=False)  # the unknown token may be any character
        self._ids = {i for i, t in added.items() if len(t.content) > 1 or t.special}.difference(unknown)
        self._of_format = functools.lru_cache(maxsize=256)(self._added_ids_of)

    def encode(self, text: str, user_text: Sequence[Span]) -> Encoded:
        """Tokenize a text of the format and of users.

        Args:
            text: the text.
            user_text: the parts that users wrote, not empty and in ascending order; the rest is the format's.

        Raises:
            UsageError: the tokenizer makes a special token of a single character that a user wrote.
        """
        breaks = sorted(self._literal_breaks(text, user_text))
        ids = self.encode_start(text, breaks)
        expected = self._of_format(_without(text, user_text))
        if self._added_ids(ids) == expected:
            return Encoded(ids, breaks)
        # The tokenizer changes text before it looks for tokens: upper case, full-width letters, invisible characters.
        breaks = sorted({at for start, end in user_text for at in range(start, end + 1)} - {0, len(text)})
        ids = self.encode_start(text, breaks)
        if self._added_ids(ids) == expected:
            return Encoded(ids, breaks)
        written = "".join(text[start:end] for start, end in user_text)
        raise UsageError(f"the text {written[:60]!r} has a character that is a special token of the language model")

    def encode_start(self, text: str, breaks: Sequence[int]) -> list[int]:
        """Return the ids of a text, or of the start of one, that is broken up.

        Args:
            text: the text.
            breaks: as in `Encoded`; those past the end of the text do not matter.
        """
        edges = [0, *(at for at in breaks if at < len(text)), len(text)]
        first, *rest = [text[a:b] for a, b in pairwise(edges)]
        ids = self._tokenizer.encode(first, add_special_tokens=False) if first else []
        return [*ids, *(i for part in rest for i in self._continue(part))]

    def _literal_breaks(self, text: str, user_text: Sequence[Span]) -> set[int]:
        """Find a break inside every added token that touches a user's text, and never one inside the format's own."""
        found: set[int] = set()
        for word in self._words:
            at = text.find(word)
            while at >= 0:
                end = at + len(word)
                for span_start, span_end in user_text:
                    inside = range(max(at + 1, span_start), min(end - 1, span_end) + 1)
                    if span_start < end and span_end > at and found.isdisjoint(range(at + 1, end)):
                        found.add(inside[0])
                at = text.find(word, at + 1)
        return found

    def _continue(self, part: str) -> list[int]:
        """Return the ids of a text that continues another one."""
        for separator in _SEPARATORS:
            before = self._tokenizer.encode(separator, add_special_tokens=False)
            ids: list[int] = self._tokenizer.encode(separator + part, add_special_tokens=False)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return list(self._tokenizer.encode(part, add_special_tokens=False))

    def _added_ids_of(self, text: str) -> Counter[int]:
        return self._added_ids(self.encode_start(text, ()))

    def _added_ids(self, ids: Iterable[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self._ids)


_ENCODERS: weakref.WeakKeyDictionary[Tokenizer, PlainTextEncoder] = weakref.WeakKeyDictionary()


def _without(text: str, user_text: Sequence[Span]) -> str:
    """Return the text of the format, with one character in place of each text of a user."""
    parts, end = [], 0
    for start, after in user_text:
        parts += [text[end:start], _SEPARATORS[0]]
        end = after
    return "".join([*parts, text[end:]])
