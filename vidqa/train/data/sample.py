"""The values of training data: a sample with its media, and why a record is no sample. Does not know files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vidqa.errors import VidqaError
from vidqa.records import WHOLE, MediaKind, Segment

#: Every reason for which a record is left out of training, with what it means to a user.
REJECT_KINDS: dict[str, str] = {
    "bad_json": "the record is not a JSON object",
    "bad_record": "a key is missing, of the wrong type, or the layout is none that is known",
    "bad_roles": "the turns do not alternate between human and gpt",
    "answerless": "a question has no answer, or an empty one",
    "placeholder_mismatch": "the <image> and <video> tags in the questions do not name the media one by one",
    "bad_span": "the stretch to cut out of the clip ends before it begins, or lies outside the clip",
    "media_missing": "a picture or clip is not where the record says",
    "media_unreadable": "a picture or clip is there but cannot be decoded, or is of the other kind",
    "reserved_text": "the text holds what the chat format uses between turns, so that the loss could not be placed",
    "too_long": "the sample does not fit the length that the recipe allows; nothing is ever cut",
}


class SampleError(VidqaError):
    """A record that cannot be trained on.

    Args:
        kind: one of `REJECT_KINDS`.
        what: one sentence for the column `message`.
    """

    def __init__(self, kind: str, what: str) -> None:
        if kind not in REJECT_KINDS:
            raise ValueError(f"unknown reject kind {kind!r}; known: {', '.join(REJECT_KINDS)}")
        super().__init__(what)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:  # crosses process borders whole
        return type(self), (self.kind, self.what)


@dataclass(frozen=True)
class MediaRef:
    """One picture or clip of a sample, or a stretch of a clip in seconds from its first frame."""

    path: str  # absolute, or as the file of conversations has it where nobody gave a media folder
    kind: MediaKind
    start_s: float | None = None  # None: from the first frame
    end_s: float | None = None  # None: to the end

    def __post_init__(self) -> None:
        if not self.path or self.kind not in ("image", "video"):
            raise ValueError(f"a medium needs a path and a kind, got {self.path=} {self.kind=}")
        if self.kind == "image" and (self.start_s is not None or self.end_s is not None):
            raise ValueError("a picture has no stretch of time")
        _ = self.segment

    @property
    def segment(self) -> Segment:
        """The stretch as the feature cache names it."""
        if self.start_s is None and self.end_s is None:
            return WHOLE
        return Segment(self.start_s or 0.0, self.end_s)


@dataclass(frozen=True)
class Sample:
    """One conversation about its own media.

    The questions hold one `<image>` or `<video>` tag for each medium, and `media` is in the order of these tags.
    """

    id: str
    media: tuple[MediaRef, ...]
    turns: tuple[tuple[str, str], ...]  # (question, answer)
    source: str = ""  # the file it was read from
    record: int = 0  # its place in that file, from 0


def by_media(samples: Iterable[Sample]) -> list[tuple[Sample, ...]]:
    """Group the samples by their media, in the order of first mention; each text-only sample stays alone."""
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.media or (sample.id, len(groups)), []).append(sample)
    return [tuple(group) for group in groups.values()]
