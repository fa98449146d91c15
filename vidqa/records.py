"""Values passed between stages: frozen dataclasses that check their shapes and dtypes, with units in field names.

Axis letters, unless a module defines its own: B batch, T frames, H rows, W columns, P visual tokens per frame,
D feature dimension, E embedding dimension, S prompt tokens, V visual tokens of a prompt.

`frozen` prevents assignment to a field; it does not prevent writes into an array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from fractions import Fraction
from numbers import Integral
from typing import Literal, NamedTuple, get_args

import numpy as np

from vidqa.errors import ItemError

MediaKind = Literal["image", "video"]
QuestionType = Literal["text", "yes_no", "choice", "number"]
MAX_ID_LENGTH = 64
Status = Literal["ok", "truncated", "empty", "failed", "skipped"]


@dataclass(frozen=True)
class MediaItem:
    """A media file of a run.

    Undecodable bytes in file names are kept as surrogate escapes, as Python returns them.
    """

    path: str  # absolute
    root: str  # absolute; the folder or glob root that was searched, or the parent of a file that the user named
    rel: str  # path relative to root
    size: int  # bytes
    mtime_ns: int  # modification time in ns since 1970
    named: bool = False  # True if the user named this file itself; such a file always has rows

    def __post_init__(self) -> None:
        if not self.path or not self.rel:
            raise ValueError(f"path and rel must not be empty, got {self.path=} {self.rel=}")


@dataclass(frozen=True)
class MediaFacts:
    """Properties of a file that are available without decoding all of it.

    Width and height are in pixels, after rotation and after scaling to square pixels.
    """

    kind: MediaKind
    codec: str
    width: int
    height: int
    duration_s: float | None  # None for images, and if neither header nor content has a duration
    fps: float | None  # average rate
    rotation_deg: int = 0  # clockwise rotation that was applied: 0, 90, 180 or 270
    pixel_aspect: Fraction = Fraction(1)  # of the stored pixels
    n_frames_from_header: int | None = None  # as the header states; may be wrong
    n_frames_from_content: int | None = None  # None if the frames have not been counted
    stream_index: int = 0
    #: Problems of a file that can be read all the same, each a phrase that contains one word of `NOTE_KINDS`.
    notes: tuple[str, ...] = ()
    last_frame_s: float | None = None  # pts of the last frame; None if not counted, or counted by an earlier version
    pauses: tuple[tuple[float, float], ...] = ()  # pts of a frame shown for long, and of the next; see media/segments


@dataclass(frozen=True)
class Segment:
    """A time range of a video, in seconds from its first frame; `end_s` None means to the end."""

    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise ValueError(f"need 0 <= start_s < end_s, got {self.start_s=} {self.end_s=}")

    @property
    def key(self) -> str:
        """Stable text for cache keys: `whole` or `0.000-10.000`."""
        if self.start_s == 0.0 and self.end_s is None:
            return "whole"
        end = "end" if self.end_s is None else f"{self.end_s:.3f}"
        return f"{self.start_s:.3f}-{end}"


WHOLE = Segment()


@dataclass(frozen=True)
class SamplingSpec:
    """Which frames of a segment are sampled. Part of the cache key.

    Attributes:
        rule: `linspace`: n_frames evenly spaced, first and last frame included (Video-LLaVA, LanguageBind).
            `arange`: n_frames in steps of N/n_frames from the first of N frames (the transformers port).
            `segments`: midpoints of equal parts, at most n_frames (Video-ChatGPT).
            `fps`: `rate` frames per second, at most n_frames.
        n_frames: number of frames, or the maximum.
        rate: frames per second, for `fps` only.
    """

    rule: Literal["linspace", "arange", "segments", "fps"] = "linspace"
    n_frames: int = 8
    rate: float | None = None


@dataclass(frozen=True)
class FrameBatch:
    """Frames of one video or image in display order; an image has one frame."""

    pixels: np.ndarray  # uint8 RGB, [T, H, W, 3], upright, square pixels
    pts_s: np.ndarray  # float64 [T]; seconds from the first frame of the stream
    repeated: np.ndarray  # bool [T]; True where a short video repeats a frame to reach n_frames
    kind: MediaKind = "video"

    def __post_init__(self) -> None:
        p = self.pixels
        if p.ndim != 4 or p.shape[3] != 3 or p.dtype != np.uint8 or p.shape[0] < 1:
            raise ValueError(f"pixels must be uint8 [T>=1, H, W, 3], got {p.dtype} {p.shape}")
        for name, dtype in (("pts_s", np.float64), ("repeated", np.bool_)):
            a = getattr(self, name)
            if a.shape != (p.shape[0],) or a.dtype != dtype:
                raise ValueError(f"{name} must be {np.dtype(dtype)} [{p.shape[0]}], got {a.dtype} {a.shape}")


@dataclass(frozen=True)
class EncoderInput:
    """A preprocessed FrameBatch: the input of an encoder graph."""

    values: np.ndarray  # float32 [T, 3, H, W]; H = W = the image size of the encoder
    pts_s: np.ndarray  # float64 [T], as in FrameBatch
    repeated: np.ndarray  # bool [T], as in FrameBatch
    kind: MediaKind

    def __post_init__(self) -> None:
        v = self.values
        if v.ndim != 4 or v.shape[1] != 3 or v.dtype != np.float32:
            raise ValueError(f"values must be float32 [T, 3, H, W], got {v.dtype} {v.shape}")


@dataclass(frozen=True)
class DecodedSegment:
    """One segment with its frames, or with the encoder input if the decoder process preprocessed them."""

    segment: Segment
    start_s: float
    end_s: float  # never None, even if that of `segment` is; equals start_s for an image
    frames: FrameBatch | EncoderInput


@dataclass(frozen=True)
class DecodedMedia:
    """The decoded segments of one file, or a part of them: those that were decoded since the part before."""

    facts: MediaFacts
    segments: tuple[DecodedSegment, ...]
    backend: str  # `pyav`, `decord`, or `pillow` for images
    seconds: float  # wall time spent decoding
    planned: tuple[Segment, ...] = ()  # all segments of the file
    is_last: bool = True  # False: more parts of the file follow


@dataclass(frozen=True)
class Features:
    """Encoder output for one segment: the visual tokens for the LLM, and the embedding for search."""

    tokens: np.ndarray  # float16 [T, P, D], hidden states of each frame
    embedding: np.ndarray  # float32 [E], pooled and projected, not normalized
    keep_cls: bool  # True if tokens[:, 0] is the class token
    kind: MediaKind

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.dtype != np.float16:
            raise ValueError(f"tokens must be float16 [T, P, D], got {self.tokens.dtype} {self.tokens.shape}")
        if self.embedding.ndim != 1 or self.embedding.dtype != np.float32:
            raise ValueError(f"embedding must be float32 [E], got {self.embedding.dtype} {self.embedding.shape}")

    @property
    def is_finite(self) -> bool:
        """Whether there is neither NaN nor infinity in tokens and embedding."""
        # The exponent of NaN and infinity is all ones. np.isfinite of float16 takes five times longer.
        exponents = self.tokens.view(np.uint16) & 0x7C00
        return bool((exponents != 0x7C00).all() and np.isfinite(self.embedding).all())


@dataclass(frozen=True)
class EncodedSegment:
    """Features of one segment, with the facts that its rows need. This is the content of a cache entry."""

    facts: MediaFacts
    start_s: float
    end_s: float
    frame_times_s: tuple[float, ...]
    repeated: tuple[bool, ...]  # as in FrameBatch
    features: Features


class MediaShape(NamedTuple):
    """Number of visual tokens of one image or video.

    Attributes:
        kind: image or video.
        n_frames: number of frames; 1 for an image.
        tokens_per_frame: visual tokens per frame.
        runs: lengths of its runs of visual tokens, for chat formats that put text between them; empty for one run of
            `n_frames * tokens_per_frame`.
    """

    kind: MediaKind
    n_frames: int
    tokens_per_frame: int
    runs: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the runs."""
        return self.runs or (self.n_frames * self.tokens_per_frame,)


@dataclass(frozen=True)
class Question:
    """One question of a question set.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: `id` is not a word, `text` is empty or not valid Unicode, `max_new_tokens` is below 1, or `choices`
            do not fit the type.
    """

    id: str  # a word of at most 64 characters
    text: str  # as the model receives it
    type: QuestionType = "text"  # form of the answer; every type is asked as free text in this version
    choices: tuple[str, ...] = ()  # at least two, for the type `choice` only
    max_new_tokens: int | None = None  # None: the limit of the run

    def __post_init__(self) -> None:
        for name in ("id", "text"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"{name} must be a str, not {type_name(value)}")
        if not isinstance(self.choices, tuple | list) or not all(isinstance(choice, str) for choice in self.choices):
            raise TypeError(f"choices must be a tuple of strings, not {self.choices!r:.80}")
        new = self.max_new_tokens
        if new is not None and (not isinstance(new, Integral) or isinstance(new, bool)):
            raise TypeError(f"max_new_tokens must be an int or None, not {type_name(new)}")
        object.__setattr__(self, "choices", tuple(self.choices))
        object.__setattr__(self, "max_new_tokens", None if new is None else int(new))
        if problem := self._problem():
            raise ValueError(f"question {self.id!r:.80}: {problem}")

    def _problem(self) -> str | None:
        if not self.id.isprintable() or not 0 < len(self.id) <= MAX_ID_LENGTH or " " in self.id:
            return f"id must be a word of at most {MAX_ID_LENGTH} characters without spaces"
        if problem := text_problem(self.text):
            return f"text {problem}"
        if self.type not in get_args(QuestionType):
            return f"type must be one of {', '.join(get_args(QuestionType))}, not {self.type!r:.80}"
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            return f"max_new_tokens must be at least 1, got {self.max_new_tokens}"
        if (self.type == "choice") != bool(self.choices):
            return "choices are needed with the type `choice`, and valid with no other"
        distinct = {choice.strip().casefold() for choice in self.choices}
        if self.choices and (len(distinct) < 2 or len(distinct) < len(self.choices) or "" in distinct):
            return f"choices must be at least two different strings, not {self.choices!r:.80}"
        return None


def text_problem(text: str) -> str | None:
    """Return why a text cannot be a question, as a phrase that follows its name; None if it can."""
    return "is empty" if not text.strip() else character_problem(text)


def character_problem(text: str) -> str | None:
    """Return which character of a text cannot be part of a prompt, as a phrase; None if all can."""
    if "\0" in text:
        return "contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which is how Python passes on bytes that are not UTF-8
        return f"is not valid Unicode at character {error.start + 1}"
    return None


def type_name(value: object) -> str:
    """Return the name of the type of an argument, for error messages."""
    return "None" if value is None else type(value).__name__


@dataclass(frozen=True)
class AnsweredSegments:
    """The segments of a file that already have a row for a question, because an earlier run answered them."""

    n_segments: int  # of the file, as the rows state
    starts_s: frozenset[float]


@dataclass(frozen=True)
class WorkItem:
    """One file and the questions that are still pending for it."""

    item: MediaItem
    media_id: str | None  # digest of the file's content; None only if the file could not be read
    questions: tuple[Question, ...] = ()
    segments: tuple[Segment, ...] | None = None  # None: split as the options of the run require
    read_features: bool = True  # False: features need to be in the cache, but are not read into memory
    #: By text of the question, if some segments are answered.
    answered: Mapping[str, AnsweredSegments] = field(default_factory=dict)

    def is_answered(self, question: Question, segment_start_s: float, n_segments: int) -> bool:
        """Return whether an earlier run has answered a question about a segment.

        Args:
            question: of the run.
            segment_start_s: start of the segment.
            n_segments: number of segments that the file has now. If the rows state another number, the file was split
                differently, and all of them are answered again.
        """
        rows = self.answered.get(question.text)
        return rows is not None and rows.n_segments == n_segments and segment_start_s in rows.starts_s

    def needs(self, segment_start_s: float, n_segments: int) -> bool:
        """Return whether the features of a segment are needed: not if all questions about it are answered.

        Args:
            segment_start_s: start of the segment.
            n_segments: number of segments that the file has now.
        """
        questions = self.questions
        return not questions or not all(self.is_answered(q, segment_start_s, n_segments) for q in questions)


@dataclass(frozen=True)
class EncodedItem:
    """A file, or a part of it, on its way from the encoder to the LLM: segments in order of time, or an error."""

    work: WorkItem
    segments: tuple[EncodedSegment, ...] = ()
    facts: MediaFacts | None = None  # None if the file could not be read
    error: ItemError | None = None
    failed: tuple[Segment, ...] = ()  # the segments that `error` is about; empty if it is about the file
    cached: bool = False  # True if no frame had to be decoded
    decode_s: float = 0.0  # time that a decoder process spent on it
    n_segments: int | None = None  # of the file; None if the file could not be read
    is_last: bool = True  # False: more parts of the file follow


@dataclass(frozen=True)
class Prompt:
    """Token ids with slots for visual tokens.

    Where `slots` is True, the id is a placeholder that a visual token replaces.
    """

    ids: np.ndarray  # int64 [S]
    slots: np.ndarray  # bool [S]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != np.int64:
            raise ValueError(f"ids must be int64 [S], got {self.ids.dtype} {self.ids.shape}")
        if self.slots.shape != self.ids.shape or self.slots.dtype != np.bool_:
            raise ValueError(f"slots must be bool {self.ids.shape}, got {self.slots.dtype} {self.slots.shape}")

    @property
    def n_slots(self) -> int:
        """Number of slots for visual tokens."""
        return int(self.slots.sum())


@dataclass(frozen=True)
class Answer:
    """The model's answer to one prompt."""

    text: str
    status: Literal["ok", "truncated", "empty"]
    finish_reason: Literal["eos", "stop", "length"]
    n_visual_tokens: int
    n_prompt_tokens: int  # including visual tokens
    n_answer_tokens: int


@dataclass(frozen=True)
class AnswerRow:
    """One row of the table: the answer to one question about one segment. Fields are in the order of the columns."""

    media_id: str | None  # digest of the content; None if the file could not be read
    path: str  # relative to root
    root: str  # absolute
    start_s: float | None  # of the segment; None if the file could not be decoded
    end_s: float | None  # as start_s
    n_segments: int | None  # of the file; None if it could not be decoded, and in older tables
    frame_times_s: tuple[float, ...] | None  # pts of the frames that the model saw
    n_repeated_frames: int | None  # of the sampled frames; None if no frame was decoded, and in older tables
    question_id: str  # id of the question in its set
    question: str  # text of the question
    answer: str | None  # None if there is none: see status
    value: str | None  # the answer of a typed question; empty in this version
    confidence: float | None  # of value; empty in this version
    media_note: str | None  # problems of a file that can be read all the same, joined by `; `
    status: Status  # ok, truncated, empty, failed or skipped
    error_kind: str | None  # why the row failed, as one word
    error: str | None  # why the row failed, as a sentence
    n_visual_tokens: int | None  # of the prompt
    n_prompt_tokens: int | None  # including visual tokens
    n_answer_tokens: int | None  # of the answer
    finish_reason: str | None  # eos, stop or length
    duration_s: float | None  # of the file; None for images
    width: int | None  # in pixels, upright
    height: int | None  # in pixels, upright
    fps: float | None  # average frames per second
    codec: str | None  # of the video stream or image
    model: str  # name of the model
    model_id: str  # digest of everything in the model that changes answers
    encoder_id: str  # digest of everything in the model that changes features
    settings_id: str  # digest of the settings that change the answer
    vidqa_version: str  # that computed the row
    created_at: datetime  # UTC

    def __post_init__(self) -> None:
        if (self.status == "failed") != (self.error_kind is not None):
            raise ValueError(f"failed rows, and no others, have an error kind, got {self.status=} {self.error_kind=}")
        if self.status in ("failed", "skipped") and self.answer is not None:
            raise ValueError(f"a row with status {self.status!r} must not have an answer, got {self.answer!r}")

    def __repr__(self) -> str:
        """Return what a person looks for first; `dataclasses.asdict` has all fields."""
        names = ["path", "start_s", "end_s", "question", "answer", "status", "media_note", "error_kind", "error"]
        shown = [name for name in names if getattr(self, name) is not None or name == "answer"]
        return f"AnswerRow({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


ROW_COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(AnswerRow))
