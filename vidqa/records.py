"""The values that cross a border between two stages. Frozen, with units in their names; they check themselves.

Letters used everywhere for axes: B clips in a batch, T frames, H rows, W columns, P visual tokens per frame, D feature
width, E width of the pooled embedding, S prompt tokens, V visual tokens of a prompt.

`frozen` stops a field from being bound anew; it does not stop writes into an array.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from fractions import Fraction
from typing import Literal

import numpy as np

MediaKind = Literal["image", "video"]
Status = Literal["ok", "truncated", "empty", "failed", "skipped"]


@dataclass(frozen=True)
class MediaItem:
    """One file that the run will answer for.

    Undecodable bytes in names are kept as Python keeps them (surrogateescape).
    """

    path: str  # absolute; opened with this
    root: str  # the folder named by the user, or the one that a file named by the user lies in; absolute
    rel: str  # path relative to root
    size: int  # bytes
    mtime_ns: int
    named: bool = False  # True when the user named this very file (then it always gets rows)

    def __post_init__(self) -> None:
        if not self.path or not self.rel:
            raise ValueError(f"path and rel must not be empty, got {self.path=} {self.rel=}")


@dataclass(frozen=True)
class MediaFacts:
    """What is known of a file without decoding it whole. Sizes are as displayed: upright, square pixels."""

    kind: MediaKind
    codec: str
    width: int
    height: int
    duration_s: float | None  # None for stills and where neither header nor content tells
    fps: float | None  # average rate
    rotation_deg: int = 0  # clockwise turn that was applied to get upright: 0, 90, 180, 270
    pixel_aspect: Fraction = Fraction(1)  # of the stored pixels
    n_frames_from_header: int | None = None  # what the file claims; may be wrong
    n_frames_from_content: int | None = None  # counted; None until somebody counted
    stream_index: int = 0


@dataclass(frozen=True)
class Segment:
    """A stretch of a clip in seconds from its first frame; `end_s` None means to the end."""

    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise ValueError(f"need 0 <= start_s < end_s, got {self.start_s=} {self.end_s=}")

    @property
    def key(self) -> str:
        """Stable text for cache keys and for telling rows apart: `whole` or `0.000-10.000`."""
        if self.start_s == 0.0 and self.end_s is None:
            return "whole"
        end = "end" if self.end_s is None else f"{self.end_s:.3f}"
        return f"{self.start_s:.3f}-{end}"


WHOLE = Segment()


@dataclass(frozen=True)
class SamplingSpec:
    """Which frames of a segment are looked at. Part of the cache key.

    rule:
        `linspace`: n_frames spread over the clip, both ends included (Video-LLaVA, LanguageBind).
        `arange`: n_frames at steps of N/n_frames from the first (the transformers port).
        `segments`: midpoints of equal parts, at most n_frames (Video-ChatGPT).
        `fps`: a fixed rate, `rate` frames a second, at most n_frames.
    """

    rule: Literal["linspace", "arange", "segments", "fps"] = "linspace"
    n_frames: int = 8
    rate: float | None = None


@dataclass(frozen=True)
class FrameBatch:
    """Frames of one clip in playing order. A still image is a batch of one."""

    pixels: np.ndarray  # uint8 RGB, [T, H, W, 3], upright, square pixels
    pts_s: np.ndarray  # float64 [T]; seconds from the first frame of the stream
    repeated: np.ndarray  # bool [T]; True where a short clip had to show a frame again
    kind: MediaKind = "video"

    def __post_init__(self) -> None:
        p = self.pixels
        if p.ndim != 4 or p.shape[3] != 3 or p.dtype != np.uint8 or p.shape[0] < 1:
            raise ValueError(f"pixels must be uint8 [T>=1, H, W, 3], got {p.dtype} {p.shape}")
        for name, want in (("pts_s", np.float64), ("repeated", np.bool_)):
            a = getattr(self, name)
            if a.shape != (p.shape[0],) or a.dtype != want:
                raise ValueError(f"{name} must be {np.dtype(want)} [{p.shape[0]}], got {a.dtype} {a.shape}")


@dataclass(frozen=True)
class EncoderInput:
    """A FrameBatch after preprocessing: what an encoder graph takes."""

    values: np.ndarray  # float32 [T, 3, H, W], H = W = the encoder's image size
    pts_s: np.ndarray  # float64 [T], as in FrameBatch
    repeated: np.ndarray  # bool [T], as in FrameBatch
    kind: MediaKind

    def __post_init__(self) -> None:
        v = self.values
        if v.ndim != 4 or v.shape[1] != 3 or v.dtype != np.float32:
            raise ValueError(f"values must be float32 [T, 3, H, W], got {v.dtype} {v.shape}")


@dataclass(frozen=True)
class DecodedSegment:
    """One segment with its frames (or, where the decode worker preprocessed them, the encoder's input)."""

    segment: Segment
    start_s: float  # resolved, seconds
    end_s: float  # resolved: never None; equals start_s for a still
    frames: FrameBatch | EncoderInput


@dataclass(frozen=True)
class DecodedMedia:
    """What the decode stage gives for one file."""

    facts: MediaFacts
    segments: tuple[DecodedSegment, ...]
    backend: str  # `pyav`, `decord` or (stills) `pillow`
    seconds: float  # wall time spent decoding


@dataclass(frozen=True)
class Features:
    """What the encoder saw of one segment: all that the LLM and the search need."""

    tokens: np.ndarray  # float16 [T, P, D], layer tokens of each frame
    embedding: np.ndarray  # float32 [E], pooled and projected, not normalised
    keep_cls: bool  # True when tokens[:, 0] is the class token
    kind: MediaKind

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.dtype != np.float16:
            raise ValueError(f"tokens must be float16 [T, P, D], got {self.tokens.dtype} {self.tokens.shape}")
        if self.embedding.ndim != 1 or self.embedding.dtype != np.float32:
            raise ValueError(f"embedding must be float32 [E], got {self.embedding.dtype} {self.embedding.shape}")


@dataclass(frozen=True)
class EncodedSegment:
    """Features of one segment with the facts that a row needs; this is what the cache stores."""

    facts: MediaFacts
    start_s: float
    end_s: float
    frame_times_s: tuple[float, ...]
    repeated: tuple[bool, ...]
    features: Features


@dataclass(frozen=True)
class Question:
    """One question of a set."""

    id: str
    text: str
    type: Literal["text", "yes_no", "choice", "number"] = "text"
    choices: tuple[str, ...] = ()
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Prompt:
    """Token ids with room for visual tokens.

    `ids` holds the tokenizer's ids; where `slots` is True the id is meaningless and a visual token takes the place.
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
        """Number of visual tokens that the prompt makes room for."""
        return int(self.slots.sum())


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt."""

    text: str
    status: Literal["ok", "truncated", "empty"]
    finish_reason: Literal["eos", "stop", "length"]
    n_visual_tokens: int
    n_prompt_tokens: int  # visual tokens included
    n_answer_tokens: int


@dataclass(frozen=True)
class AnswerRow:
    """One row of the table: one (media, segment, question). The order of the fields is the order of the columns."""

    media_id: str | None
    path: str
    root: str
    start_s: float | None
    end_s: float | None
    frame_times_s: tuple[float, ...] | None
    question_id: str
    question: str
    answer: str | None
    value: str | None
    confidence: float | None
    status: Status
    error_kind: str | None
    error: str | None
    n_visual_tokens: int | None
    n_prompt_tokens: int | None
    n_answer_tokens: int | None
    finish_reason: str | None
    duration_s: float | None
    width: int | None
    height: int | None
    fps: float | None
    codec: str | None
    model: str
    model_id: str
    encoder_id: str
    settings_id: str
    vidqa_version: str
    created_at: datetime  # UTC

    def __post_init__(self) -> None:
        if (self.status == "failed") != (self.error_kind is not None):
            raise ValueError(
                f"a failed row and only a failed row has an error kind, got {self.status=} {self.error_kind=}"
            )
        if self.status in ("failed", "skipped") and self.answer is not None:
            raise ValueError("a row without an answer must not carry one: an error is never a caption")


ROW_COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(AnswerRow))
