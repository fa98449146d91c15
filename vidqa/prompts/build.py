"""Turns and media shapes -> token ids with slots for visual tokens, and labels for training.

Scope: tokenizer and chat format are arguments, and the number of visual tokens comes with each media item.

In the intermediate text one NUL character stands for a media item, and the parts that users wrote are marked, so a user
may write `<image>` or `</s>` in a question without inserting an image or ending the prompt.

Sources: Video-LLaVA 984e65b, videollava/mm_utils.py (tokenizer_image_token), videollava/train/train.py (preprocess_v1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidqa.prompts.chat_formats import MEDIA, ChatFormat, RenderedText, Turn, render
from vidqa.prompts.chat_template import chat_template
from vidqa.prompts.plain_text import Tokenizer, check_text, plain_text_encoder
from vidqa.records import MediaKind, MediaShape, Prompt

IGNORE_INDEX = -100
"""Label of a position that the loss ignores."""

_TAG = re.compile("<(image|video)>")


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
        UsageError: a text is not valid Unicode or contains a NUL character, or the chat template fails.
    """
    if not turns:
        raise ValueError("a prompt needs at least one turn")
    shapes = [MediaShape(*m) for m in media]
    turns = _media_first(chat, turns, len(shapes))
    text = chat_template(tokenizer).render(chat.system, turns) if chat.kind == "template" else render(chat, turns)
    return _Tokens(tokenizer, chat, text, shapes).prompt


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
        UsageError: a text is not valid Unicode or contains a NUL character, or the chat template cannot be used for
            training.
    """
    shapes = [MediaShape(*m) for m in media]
    has_tags = any(_TAG.search(question) for question, _ in turns)
    with_media = _media_at_tags(turns, shapes) if has_tags else _media_first(chat, turns, len(shapes))
    problem = _problem(chat, turns)
    if chat.kind == "plain":
        text = _captions(chat, with_media)
    elif chat.kind == "template":
        template = chat_template(tokenizer)
        write = template.render if problem else template.render_answered
        text = write(chat.system, with_media)
    else:
        text = render(chat, with_media)
    tokens = _Tokens(tokenizer, chat, text, shapes)
    prompt, labels = tokens.prompt, np.full_like(tokens.prompt.ids, IGNORE_INDEX)
    for start, end in () if problem else text.answers:
        before, until = tokens.ids_until(start), tokens.ids_until(end)
        if prompt.ids[: len(until)].tolist() != until or until[: len(before)] != before:
            labels[:] = IGNORE_INDEX
            return LabeledPrompt(prompt, labels, "a token crosses the boundary of an answer")
        labels[len(before) : len(until)] = prompt.ids[len(before) : len(until)]
    labels[prompt.slots] = IGNORE_INDEX
    return LabeledPrompt(prompt, labels, problem)


def format_problem(tokenizer: Any, chat: ChatFormat) -> str | None:
    """Return why prompts of a chat format cannot be written for a tokenizer, as a phrase; None if they can.

    Args:
        tokenizer: tokenizer of the LLM.
        chat: the chat format.
    """
    if chat.kind == "template":
        if not tokenizer.chat_template:
            return "the tokenizer has no chat template"
        if problem := chat_template(tokenizer).problem(chat.system):
            return f"the chat template of the tokenizer cannot be used: {problem}"
    tags = (
        ("<image>", "<video>")
        if chat.media == "placeholder"
        else tuple(word for marks in chat.special_tokens for word in marks)
    )
    for tag in tags:
        if tokenizer.encode(tag, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(tag)]:
            return f"the tokenizer has no token {tag}"
    return None


def training_problem(tokenizer: Any, chat: ChatFormat) -> str | None:
    """Return why a chat format cannot be trained with a tokenizer, as a phrase; None if it can.

    Args:
        tokenizer: tokenizer of the LLM.
        chat: the chat format.
    """
    if (problem := format_problem(tokenizer, chat)) or chat.kind != "template":
        return problem
    if problem := chat_template(tokenizer).training_problem(chat.system):
        return f"the chat template of the tokenizer cannot be used for training: {problem}"
    return None


def _captions(chat: ChatFormat, turns: Sequence[Turn]) -> RenderedText:
    """Return the text of captions: the media of each question, then the answer."""
    out = RenderedText()
    for question, answer in turns:
        out.add(MEDIA * question.count(MEDIA))
        start = len(out.text)
        out.add_user_text(answer or "")
        out.add(chat.answer_end)
        out.answers.append((start, len(out.text)))
    return out


def _media_first(chat: ChatFormat, turns: Sequence[Turn], n_media: int) -> list[Turn]:
    _check_texts(turns)
    if not n_media or not turns:
        return list(turns)
    question, answer = turns[0]
    media = MEDIA * n_media
    return [(f"{question}\n{media}" if chat.question_first else f"{media}\n{question}", answer), *turns[1:]]


def _media_at_tags(turns: Sequence[Turn], shapes: Sequence[MediaShape]) -> list[Turn]:
    _check_texts(turns)
    kinds = [kind for question, _ in turns for kind in _TAG.findall(question)]
    if kinds != [s.kind for s in shapes]:
        raise ValueError(f"the tags in the text are {kinds}, but the media are {[s.kind for s in shapes]}")
    return [(_TAG.sub(MEDIA, question), answer) for question, answer in turns]


def _check_texts(turns: Sequence[Turn]) -> None:
    for text in (part for turn in turns for part in turn if part):
        check_text(text)


def _problem(chat: ChatFormat, turns: Sequence[Turn]) -> str | None:
    """Return why a sample has no targets; None if it has targets."""
    if not turns or any(not answer for _, answer in turns):
        return "an answer is empty"
    for stop in chat.stop if chat.kind == "roles" else ():
        if any(stop in answer for _, answer in turns if answer):
            return f"an answer contains {stop!r}, which ends answers in the chat format {chat.name}"
    return None


class _Tokens:
    """The ids of a rendered conversation.

    Args:
        tokenizer: tokenizer of the LLM.
        chat: the chat format.
        text: the conversation, with `MEDIA` for each media item.
        shapes: of the media.

    Raises:
        ValueError: text and shapes have different numbers of media, or the tokenizer lacks a token of the format.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat: ChatFormat, text: RenderedText, shapes: Sequence[MediaShape]
    ) -> None:
        if (n_media := text.text.count(MEDIA)) != len(shapes):
            raise ValueError(f"{n_media} media in the text, but {len(shapes)} media")
        if bad := [s for s in shapes if min(s.lengths) < 1]:
            raise ValueError(f"a media item needs at least one token, got {bad[0]}")
        self._tokenizer, self._chat, self._shapes = tokenizer, chat, shapes
        self._text, self._encoder = text.text, plain_text_encoder(tokenizer)
        self._chunks = self._split(text)
        self._encoded = [self._encoder.encode(chunk.text, chunk.user_text) for chunk in self._chunks]
        self.prompt = self._join([encoded.ids for encoded in self._encoded], len(shapes))

    def ids_until(self, end: int) -> list[int]:
        """Return the ids of the start of the text, 0 in slots.

        Args:
            end: position in the text.
        """
        before = self._text[:end]
        n_media = before.count(MEDIA)
        if self._chat.media == "split":
            number, length = n_media, end - (before.rfind(MEDIA) + 1)
        else:
            number, length = 0, end + sum(len(self._media_text(s)) - 1 for s in self._shapes[:n_media])
        last = self._encoder.encode_start(self._chunks[number].text[:length], self._encoded[number].breaks)
        ids: list[int] = self._join([*(e.ids for e in self._encoded[:number]), last], n_media).ids.tolist()
        return ids

    def _split(self, text: RenderedText) -> list[RenderedText]:
        """Split the text where visual tokens are inserted between ids, or write the media into it."""
        chunks, shapes, at = [RenderedText()], iter(self._shapes), 0
        for start, end in [*text.user_text, (len(text.text), len(text.text))]:
            for i, part in enumerate(text.text[at:start].split(MEDIA)):
                if i and self._chat.media == "split":
                    chunks.append(RenderedText())
                elif i:
                    chunks[-1].add(self._media_text(next(shapes)))
                chunks[-1].add(part)
            chunks[-1].add_user_text(text.text[start:end])
            at = end
        return chunks

    def _media_text(self, shape: MediaShape) -> str:
        return f"<{shape.kind}>" if self._chat.media == "placeholder" else self._chat.media_text(shape.lengths)

    def _join(self, chunks: list[list[int]], n_media: int) -> Prompt:
        """Insert slots for the first media between the ids of the chunks, or find them in the ids."""
        # A chat template contains the BOS token itself.
        first = [] if self._chat.kind == "template" else _first_ids(self._tokenizer)
        chunks, shapes = [[*first, *chunks[0]], *chunks[1:]], self._shapes[:n_media]
        if self._chat.media == "special_tokens":
            return self._with_special_tokens(chunks[0], shapes)
        if self._chat.media == "placeholder":
            chunks = self._split_at_placeholders(chunks[0], shapes)
        ids, slots = list(chunks[0]), [False] * len(chunks[0])
        for shape, chunk in zip(shapes, chunks[1:], strict=True):
            n = sum(shape.lengths)
            ids += [0] * n + chunk
            slots += [True] * n + [False] * len(chunk)
        return Prompt(np.array(ids, dtype=np.int64), np.array(slots, dtype=np.bool_))

    def _with_special_tokens(self, ids: list[int], shapes: Sequence[MediaShape]) -> Prompt:
        """Turn the placeholder token of each visual token into a slot."""
        special_tokens = self._chat.special_tokens
        slots = np.isin(ids, [self._tokenizer.convert_tokens_to_ids(m.patch) for m in special_tokens])
        if slots.sum() != sum(sum(s.lengths) for s in shapes):
            names = ", ".join(word for tokens in special_tokens for word in tokens)
            raise ValueError(f"the tokenizer lacks one of {names}, which the chat format {self._chat.name} needs")
        return Prompt(np.array(ids, dtype=np.int64), slots)

    def _split_at_placeholders(self, ids: list[int], shapes: Sequence[MediaShape]) -> list[list[int]]:
        """Split the ids at the placeholder token of each media item."""
        chunks = []
        for shape in shapes:
            token = self._tokenizer.convert_tokens_to_ids(f"<{shape.kind}>")
            if token not in ids:
                raise ValueError(f"the tokenizer has no token <{shape.kind}>, which the chat format needs")
            at = ids.index(token)
            chunks.append(ids[:at])
            ids = ids[at + 1 :]
        return [*chunks, ids]


def _first_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the BOS token that the tokenizer adds before a text, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [bos] else []
