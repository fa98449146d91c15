"""Turns and media shapes -> token ids with slots for visual tokens, and labels for training.

Scope: tokenizer and chat format are arguments, and the number of visual tokens comes with each media item.

In this module's intermediate text, one NUL character stands for a media item, so a user may write `<image>` in a
question without inserting an image.

Sources: Video-LLaVA 984e65b, videollava/mm_utils.py (tokenizer_image_token), videollava/train/train.py (preprocess_v1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vidqa.errors import UsageError
from vidqa.prompts.chat_formats import ChatFormat, Turn, check_turns, render_spans
from vidqa.records import MediaKind, MediaShape, Prompt

IGNORE_INDEX = -100
"""Label of a position that the loss ignores."""

_MEDIA = "\0"
_TAG = re.compile("<(image|video)>")


class Tokenizer(Protocol):
    """The part of the transformers tokenizer interface that prompts need."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """Return the id of a token. Not needed for `media="split"`."""
        ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        """Return a conversation as text. Only needed for `chat_template`."""
        ...


@dataclass(frozen=True)
class LabeledPrompt:
    """A complete conversation for training."""

    prompt: Prompt
    labels: np.ndarray  # int64 [S]; target ids of the answers and their end, `IGNORE_INDEX` elsewhere
    problem: str | None = None  # why the sample has no targets; then all labels are `IGNORE_INDEX`


def build_prompt(
    tokenizer: Tokenizer,
    chat: ChatFormat,
    turns: Sequence[Turn],
    media: Sequence[tuple[MediaKind, int, int] | MediaShape] = (),
) -> Prompt:
    """Return the token ids of a conversation whose last turn is open.

    All media come before the first question (after it if `chat.question_first`), in the given order.

    Args:
        tokenizer: tokenizer of the LLM.
        chat: chat format that the model was trained with.
        turns: questions and answers; the last answer is None.
        media: shape of each image or video.

    Raises:
        ValueError: no turn, an earlier turn without an answer, or a media item without tokens.
        UsageError: a question contains a string that the chat format reserves.
    """
    if not turns:
        raise ValueError("a prompt needs at least one turn")
    shapes = [MediaShape(*m) for m in media]
    text = _Writer(tokenizer, chat).write(_media_first(chat, turns, len(shapes)))[0]
    return _tokenize(tokenizer, chat, text, shapes)


def build_labels(
    tokenizer: Tokenizer,
    chat: ChatFormat,
    turns: Sequence[Turn],
    media: Sequence[tuple[MediaKind, int, int] | MediaShape] = (),
) -> LabeledPrompt:
    """Return the token ids and labels of a conversation for training.

    If questions contain `<image>` or `<video>` tags (the LLaVA conversation layout), the media replace the tags;
    otherwise they come with the first question. The format `plain` omits the questions: media, then the answer.

    Args:
        tokenizer: tokenizer of the LLM.
        chat: chat format to train with.
        turns: questions and answers.
        media: shape of each image or video, in the order of the tags.

    Raises:
        ValueError: the tags do not match the media, or an earlier turn has no answer.
        UsageError: a question contains a string that the chat format reserves.
    """
    shapes = [MediaShape(*m) for m in media]
    tagged = _media_at_tags(turns, shapes) if any(_TAG.search(q) for q, _ in turns) else None
    writer = _Writer(tokenizer, chat)
    text, spans = writer.write(_media_first(chat, turns, len(shapes)) if tagged is None else tagged, training=True)
    prompt = _tokenize(tokenizer, chat, text, shapes)
    labels = np.full_like(prompt.ids, IGNORE_INDEX)
    if problem := _problem(chat, turns):
        return LabeledPrompt(prompt, labels, problem)
    for span in spans:
        start, end = (_tokenize(tokenizer, chat, text[:at], shapes) for at in span)
        if not np.array_equal(prompt.ids[: len(end.ids)], end.ids) or not np.array_equal(
            end.ids[: len(start.ids)], start.ids
        ):
            labels[:] = IGNORE_INDEX
            return LabeledPrompt(prompt, labels, "a token crosses the boundary of an answer")
        labels[len(start.ids) : len(end.ids)] = prompt.ids[len(start.ids) : len(end.ids)]
    labels[prompt.slots] = IGNORE_INDEX
    return LabeledPrompt(prompt, labels)


@dataclass(frozen=True)
class _Writer:
    """Renders turns as text with answer spans, for every kind of chat format."""

    tokenizer: Tokenizer
    chat: ChatFormat

    def write(self, turns: Sequence[Turn], training: bool = False) -> tuple[str, list[tuple[int, int]]]:
        if self.chat.kind == "template":
            return self._with_template(turns)
        if self.chat.kind == "plain" and training:
            return self._captions(turns)
        return render_spans(self.chat, turns)

    def _captions(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        text, spans = "", []
        for question, answer in turns:
            text += _MEDIA * question.count(_MEDIA)
            start = len(text)
            text += f"{answer or ''}{self.chat.answer_end}"
            spans.append((start, len(text)))
        return text, spans

    def _with_template(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        check_turns(turns)
        messages = [{"role": "system", "content": self.chat.system}] if self.chat.system else []
        text, spans = "", []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            text = self._apply(messages, True)
            if answer:
                messages.append({"role": "assistant", "content": answer})
                closed = self._apply(messages, False)
                # Templates end a turn with white space that the model does not generate.
                spans.append((len(text), len(closed.rstrip())))
                text = closed
        return text, spans

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


def _media_first(chat: ChatFormat, turns: Sequence[Turn], n_media: int) -> list[Turn]:
    _check_reserved(chat, turns)
    if not n_media or not turns:
        return list(turns)
    question, answer = turns[0]
    media = _MEDIA * n_media
    return [(f"{question}\n{media}" if chat.question_first else f"{media}\n{question}", answer), *turns[1:]]


def _media_at_tags(turns: Sequence[Turn], shapes: Sequence[MediaShape]) -> list[Turn]:
    kinds = [kind for question, _ in turns for kind in _TAG.findall(question)]
    if kinds != [s.kind for s in shapes]:
        raise ValueError(f"the tags in the text are {kinds}, but the media are {[s.kind for s in shapes]}")
    return [(_TAG.sub(_MEDIA, question), answer) for question, answer in turns]


def _check_reserved(chat: ChatFormat, turns: Sequence[Turn]) -> None:
    placeholders = ("<image>", "<video>") if chat.media == "placeholder" else ()
    reserved = (_MEDIA, *placeholders, *(word for tokens in chat.special_tokens for word in tokens))
    for part in (p for turn in turns for p in turn if p):
        for word in reserved:
            if word in part:
                raise UsageError(
                    f"the text {part[:60]!r} contains {word!r}, which the chat format {chat.name} reserves"
                )


def _problem(chat: ChatFormat, turns: Sequence[Turn]) -> str | None:
    """Return why a sample has no targets, by the rules of the original training code; None if it has targets."""
    if not turns or any(not answer for _, answer in turns):
        return "an answer is empty"
    if chat.kind == "roles":
        for text in (p for turn in turns for p in turn if p):
            for word in (chat.answer_cue, chat.answer_end):
                if word in text:
                    return f"the text contains {word!r}, which the chat format {chat.name} uses between turns"
    return None


def _tokenize(tokenizer: Tokenizer, chat: ChatFormat, text: str, shapes: Sequence[MediaShape]) -> Prompt:
    """Tokenize a text whose NUL characters stand for the first of `shapes`, in order."""
    chunks = text.split(_MEDIA)
    used = shapes[: len(chunks) - 1]
    if len(used) != len(chunks) - 1:
        raise ValueError(f"{len(chunks) - 1} media tags, but {len(shapes)} media")
    if bad := [s for s in used if min(s.lengths) < 1]:
        raise ValueError(f"a media item needs at least one token, got {bad[0]}")
    if chat.media == "special_tokens":
        return _with_special_tokens(tokenizer, chat, chunks, used)
    pieces = _split_at_placeholders(tokenizer, chunks, used) if chat.media == "placeholder" else None
    if pieces is None:
        pieces = [tokenizer.encode(c, add_special_tokens=False) if c else [] for c in chunks]
        # A chat template contains the BOS token itself.
        if chat.kind != "template":
            pieces[0] = [*_first_ids(tokenizer), *pieces[0]]
    ids: list[int] = []
    slots: list[bool] = []
    for i, piece in enumerate(pieces):
        ids += piece
        slots += [False] * len(piece)
        if i < len(used):
            n = sum(used[i].lengths)
            ids += [0] * n
            slots += [True] * n
    return Prompt(np.array(ids, dtype=np.int64), np.array(slots, dtype=np.bool_))


def _with_special_tokens(
    tokenizer: Tokenizer, chat: ChatFormat, chunks: Sequence[str], shapes: Sequence[MediaShape]
) -> Prompt:
    """Tokenize the text with one placeholder token per visual token."""
    text = chunks[0] + "".join(chat.media_text(s.lengths) + c for s, c in zip(shapes, chunks[1:], strict=True))
    ids = np.array(_first_ids(tokenizer) + tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    slots = np.isin(ids, [tokenizer.convert_tokens_to_ids(m.patch) for m in chat.special_tokens])
    if slots.sum() != sum(sum(s.lengths) for s in shapes):
        names = ", ".join(word for tokens in chat.special_tokens for word in tokens)
        raise ValueError(f"the tokenizer lacks one of {names}, which the chat format {chat.name} needs")
    return Prompt(ids, slots)


def _split_at_placeholders(
    tokenizer: Tokenizer, chunks: Sequence[str], shapes: Sequence[MediaShape]
) -> list[list[int]]:
    """Tokenize the text with one placeholder token per media item, and split the ids there."""
    text = chunks[0] + "".join(f"<{s.kind}>{c}" for s, c in zip(shapes, chunks[1:], strict=True))
    ids = _first_ids(tokenizer) + tokenizer.encode(text, add_special_tokens=False)
    pieces: list[list[int]] = []
    rest = ids
    for shape in shapes:
        token = tokenizer.convert_tokens_to_ids(f"<{shape.kind}>")
        if token not in rest:
            raise ValueError(f"the tokenizer has no token <{shape.kind}>, which the chat format needs")
        at = rest.index(token)
        pieces.append(rest[:at])
        rest = rest[at + 1 :]
    return [*pieces, rest]


def _first_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the BOS token that the tokenizer adds before a text, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [bos] else []
