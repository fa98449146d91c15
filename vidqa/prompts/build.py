"""Turns + shapes of the media -> token ids with slots for visual tokens, and labels for training.

Knows chat formats and a tokenizer that is handed in. Does not know models, and holds no number of visual tokens: that
comes with each medium.

Inside this module a medium stands in the text as one NUL character, so that a user may write `<image>` in a question
without making room for a picture.

Facts: Video-LLaVA 984e65b, videollava/mm_utils.py (tokenizer_image_token), videollava/train/train.py (preprocess_v1).
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
"""Label of a position that the loss leaves out."""

_MARK = "\0"
_TAG = re.compile("<(image|video)>")


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it. `hf` needs the second, `chat_template` the third."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str) -> Any: ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


@dataclass(frozen=True)
class LabelledPrompt:
    """A whole dialogue for training.

    `labels` are the ids to learn, `IGNORE_INDEX` where there is no loss: on everything but the answers and their closing
    mark. `problem` says why nothing of the sample can be learned (then all labels are `IGNORE_INDEX`).
    """

    prompt: Prompt
    labels: np.ndarray  # int64 [S]
    problem: str | None = None
    ignored_rows: np.ndarray | None = None  # int64 [S]: which answers the loss leaves out there, 0 for none


def build_prompt(
    tokenizer: Tokenizer,
    chat: ChatFormat,
    turns: Sequence[Turn],
    media: Sequence[tuple[MediaKind, int, int] | MediaShape] = (),
) -> Prompt:
    """Token ids of a dialogue whose last turn is open.

    The media stand together, in the given order, before the first question (behind it where the format says so).

    Args:
        tokenizer: the LLM's own.
        chat: format that the model was tuned with.
        turns: questions and answers, the last answer None.
        media: (kind, n_frames, tokens_per_frame) of each picture or clip.

    Raises:
        ValueError: no turn, an answer missing in the middle, or a medium of no tokens.
        UsageError: a question holds a text that the format reserves.
    """
    if not turns:
        raise ValueError("a prompt needs at least one turn")
    shapes = [MediaShape(*m) for m in media]
    text = _Writer(tokenizer, chat).write(_media_first(chat, turns, len(shapes)))[0]
    return _tokenise(tokenizer, chat, text, shapes)


def build_labels(
    tokenizer: Tokenizer,
    chat: ChatFormat,
    turns: Sequence[Turn],
    media: Sequence[tuple[MediaKind, int, int] | MediaShape] = (),
) -> LabelledPrompt:
    """Token ids and labels of a dialogue for training.

    Where a question holds `<image>` or `<video>` (the LLaVA conversation layout), the media stand there; otherwise
    at the first question. With the format `plain` the questions are left out: media, then the answer.

    Args:
        tokenizer: the LLM's own.
        chat: format to tune with.
        turns: questions and answers.
        media: (kind, n_frames, tokens_per_frame) of each picture or clip, in the order of their tags.

    Raises:
        ValueError: the tags do not name the media one by one, or an answer is missing in the middle.
        UsageError: a question holds a text that the format reserves.
    """
    shapes = [MediaShape(*m) for m in media]
    marked = _media_at_tags(turns, shapes) if any(_TAG.search(q) for q, _ in turns) else None
    writer = _Writer(tokenizer, chat)
    text, spans = writer.write(_media_first(chat, turns, len(shapes)) if marked is None else marked, learn=True)
    prompt = _tokenise(tokenizer, chat, text, shapes)
    labels = np.full_like(prompt.ids, IGNORE_INDEX)
    if problem := _problem(chat, turns):
        return LabelledPrompt(prompt, labels, problem)
    for span in spans:
        start, end = (_tokenise(tokenizer, chat, text[:at], shapes) for at in span)
        if not np.array_equal(prompt.ids[: len(end.ids)], end.ids) or not np.array_equal(
            end.ids[: len(start.ids)], start.ids
        ):
            labels[:] = IGNORE_INDEX
            return LabelledPrompt(prompt, labels, "a token reaches across the border of an answer")
        labels[len(start.ids) : len(end.ids)] = prompt.ids[len(start.ids) : len(end.ids)]
    labels[prompt.slots] = IGNORE_INDEX
    return LabelledPrompt(prompt, labels)


@dataclass(frozen=True)
class _Writer:
    """Turns -> text and answer spans, for every kind of format."""

    tokenizer: Tokenizer
    chat: ChatFormat

    def write(self, turns: Sequence[Turn], learn: bool = False) -> tuple[str, list[tuple[int, int]]]:
        if self.chat.kind == "template":
            return self._by_template(turns)
        if self.chat.kind == "plain" and learn:
            return self._captions(turns)
        return render_spans(self.chat, turns)

    def _captions(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        text, spans = "", []
        for question, answer in turns:
            text += _MARK * question.count(_MARK)
            start = len(text)
            text += f"{answer or ''}{self.chat.answer_end}"
            spans.append((start, len(text)))
        return text, spans

    def _by_template(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        check_turns(turns)
        messages = [{"role": "system", "content": self.chat.system}] if self.chat.system else []
        text, spans = "", []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            text = self._apply(messages, True)
            if answer:
                messages.append({"role": "assistant", "content": answer})
                closed = self._apply(messages, False)
                # Templates end a turn with white space that the model never has to say.
                spans.append((len(text), len(closed.rstrip())))
                text = closed
        return text, spans

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


def _media_first(chat: ChatFormat, turns: Sequence[Turn], n_media: int) -> list[Turn]:
    _refuse_reserved(chat, turns)
    if not n_media or not turns:
        return list(turns)
    question, answer = turns[0]
    media = _MARK * n_media
    return [(f"{question}\n{media}" if chat.question_first else f"{media}\n{question}", answer), *turns[1:]]


def _media_at_tags(turns: Sequence[Turn], shapes: Sequence[MediaShape]) -> list[Turn]:
    kinds = [kind for question, _ in turns for kind in _TAG.findall(question)]
    if kinds != [s.kind for s in shapes]:
        raise ValueError(f"the tags in the text ask for {kinds}, the sample has {[s.kind for s in shapes]}")
    return [(_TAG.sub(_MARK, question), answer) for question, answer in turns]


def _refuse_reserved(chat: ChatFormat, turns: Sequence[Turn]) -> None:
    tokens = ("<image>", "<video>") if chat.media == "tokens" else ()
    reserved = (_MARK, *tokens, *(word for marks in chat.special_tokens for word in marks))
    for part in (p for turn in turns for p in turn if p):
        for word in reserved:
            if word in part:
                raise UsageError(f"the text {part[:60]!r} holds {word!r}, which the chat format {chat.name} reserves")


def _problem(chat: ChatFormat, turns: Sequence[Turn]) -> str | None:
    """Why the original tuning code would leave the whole sample out of the loss, as this one does."""
    if not turns or any(not answer for _, answer in turns):
        return "an answer is empty"
    if chat.kind == "roles":
        for text in (p for turn in turns for p in turn if p):
            for word in (chat.cue, chat.answer_end):
                if word in text:
                    return f"the text holds {word!r}, which the chat format {chat.name} uses between turns"
    return None


def _tokenise(tokenizer: Tokenizer, chat: ChatFormat, text: str, shapes: Sequence[MediaShape]) -> Prompt:
    """Ids and slots of a text whose marks are the first of `shapes`, in order."""
    chunks = text.split(_MARK)
    used = shapes[: len(chunks) - 1]
    if len(used) != len(chunks) - 1:
        raise ValueError(f"{len(chunks) - 1} places for media but {len(shapes)} media")
    if bad := [s for s in used if min(s.lengths) < 1]:
        raise ValueError(f"a medium needs at least one token, got {bad[0]}")
    if chat.media == "marks":
        return _by_marks(tokenizer, chat, chunks, used)
    pieces = _pieces_by_token(tokenizer, chunks, used) if chat.media == "tokens" else None
    if pieces is None:
        pieces = [tokenizer.encode(c, add_special_tokens=False) if c else [] for c in chunks]
        # A chat template writes the first token of a text itself.
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


def _by_marks(tokenizer: Tokenizer, chat: ChatFormat, chunks: Sequence[str], shapes: Sequence[MediaShape]) -> Prompt:
    """Tokenise the whole text with a token for each place of a visual token."""
    text = chunks[0] + "".join(chat.media_text(s.lengths) + c for s, c in zip(shapes, chunks[1:], strict=True))
    ids = np.array(_first_ids(tokenizer) + tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    slots = np.isin(ids, [tokenizer.convert_tokens_to_ids(m.patch) for m in chat.special_tokens])
    if slots.sum() != sum(sum(s.lengths) for s in shapes):
        names = ", ".join(word for marks in chat.special_tokens for word in marks)
        raise ValueError(f"the tokenizer lacks one of {names}, which the chat format {chat.name} needs")
    return Prompt(ids, slots)


def _pieces_by_token(tokenizer: Tokenizer, chunks: Sequence[str], shapes: Sequence[MediaShape]) -> list[list[int]]:
    """Tokenise the whole text with one placeholder token a medium, then cut it there."""
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
    """What the tokenizer puts before every text: the beginning token, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [bos] else []
