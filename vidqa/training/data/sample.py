"""Values of training data: a sample with its media, and the reasons for rejecting a record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vidqa.errors import VidqaError
from vidqa.records import WHOLE, MediaKind, Segment

#: Reason for rejecting a record -> its explanation for users.
REJECT_KINDS: dict[str, str] = {
    "bad_json": "the record is not a JSON object",
    "bad_record": "a key is missing or of the wrong type, or the layout is unknown",
    "bad_roles": "the turns do not alternate between questions and answers (human and gpt, or user and assistant)",
    "answerless": "a question has no answer, or an empty one",
    "placeholder_mismatch": "the <image> and <video> tags in the questions do not match the media of the record",
    "bad_span": "the segment of the video ends before it starts, or is outside the video",
    "media_remote": "an image or video is a URL or inline data instead of a local file",
    "media_missing": "an image or video file does not exist",
    "media_unreadable": "an image or video file cannot be decoded, or is of the other kind",
    "reserved_text": "the text has a character that cannot be in a prompt, or an answer contains the end of answers",
    "too_long": "the sample exceeds the context length; samples are never truncated",
}


class SampleError(VidqaError):
    """A record that cannot be trained on.

    Args:
        kind: one of `REJECT_KINDS`.
        what: one sentence for the column `message`.
    """

    def __init__(self, kind: str, what: str) -> None:
        if kind not in REJECT_KINDS:
            raise ValueError(f"unknown reject kind {kind!r}; valid: {', '.join(REJECT_KINDS)}")
        super().__init__(what)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:  # keeps `kind` when pickled
        return type(self), (self.kind, self.what)


@dataclass(frozen=True)
class MediaRef:
    """One image or video of a sample, or a segment of a video in seconds from its first frame."""

    path: str  # absolute, or as in the file of conversations if there is no media folder
    kind: MediaKind
    start_s: float | None = None  # None: from the first frame
    end_s: float | None = None  # None: to the end

    def __post_init__(self) -> None:
        if not self.path or self.kind not in ("image", "video"):
            raise ValueError(f"a media item needs a path and a kind, got {self.path=} {self.kind=}")
        if self.kind == "image" and (self.start_s is not None or self.end_s is not None):
            raise ValueError("an image has no segments")
        _ = self.segment

    @property
    def segment(self) -> Segment:
        """The segment as in the keys of the feature cache."""
        if self.start_s is None and self.end_s is None:
            return WHOLE
        return Segment(self.start_s or 0.0, self.end_s)


@dataclass(frozen=True)
class Sample:
    """One conversation with its media.

    The questions contain one `<image>` or `<video>` tag per media item, and `media` is in the order of these tags.
    """

    id: str
    media: tuple[MediaRef, ...]
    turns: tuple[tuple[str, str], ...]  # (question, answer)
    source: str = ""  # file of conversations
    record: int = 0  # index in that file, from 0


def by_media(samples: Iterable[Sample]) -> list[tuple[Sample, ...]]:
    """Group samples by their media, in the order of first occurrence; each text-only sample is its own group."""
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.media or (sample.id, len(groups)), []).append(sample)
    return [tuple(group) for group in groups.values()]
