"""Plan + corpus + features -> packed sequences, and what had to be left out. What the Trainer calls the dataset.

A sample that cannot be trained on is left out of its sequence and comes along as a reject: never another in its place,
never a cut. Knows samples and chat formats; does not know where features come from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from vidqa.errors import TrainError
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import IGNORE_INDEX, LabelledPrompt
from vidqa.prompts.chat_formats import ChatFormat
from vidqa.records import Features
from vidqa.train.batching.packing import Packed, PackedBatch, collate, pack
from vidqa.train.batching.sampler import BatchPlan, Survey
from vidqa.train.data import MediaRef, Rejected, Sample, SampleError, labelled
from vidqa.train.data.metadata import group_of, length_of
from vidqa.train.data.unseen_pairs import IgnoredTokens, UnseenPairs

_ANEW = "remove the folder `records` in the cache folder: it is made anew; then run again"


class Samples(Protocol):
    """What is asked of a corpus."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def rejected(self, index: int, error: SampleError, id: str | None = None) -> Rejected: ...


class FeatureSource(Protocol):
    """Where features come from."""

    def __call__(self, ref: MediaRef) -> Features:
        """Features of one medium. Raises SampleError where there are none."""
        ...

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """These will be asked for next."""
        ...


@dataclass(frozen=True)
class Item:
    """One sequence with its features in the order of the slots; empty where nothing could be learned."""

    packed: Packed
    features: tuple[Features, ...]
    n_samples: int  # asked for, rejects included
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class TrainingBatch:
    """What one process computes at once."""

    packed: PackedBatch
    features: tuple[Features, ...]
    n_samples: int
    rejected: tuple[Rejected, ...]

    @property
    def n_learned(self) -> int:
        """Positions with a loss."""
        return int((self.packed.labels[:, 1:] != IGNORE_INDEX).sum())

    @property
    def n_positions(self) -> tuple[int, int]:
        """(positions that hold something, all of them)."""
        return int((self.packed.branch >= 0).sum()), self.packed.ids.numel()


class TrainingDataset(torch.utils.data.Dataset[Item]):
    """The sequences of a plan, by their place in it.

    Args:
        corpus: gives samples by number.
        plan: which samples each sequence holds.
        features: reads the features of a medium.
        label: sample and shapes of its media -> token ids and labels; raises SampleError.
        left_out: token ids that the loss leaves out, by the rows that the labels name.
    """

    def __init__(
        self,
        corpus: Samples,
        plan: BatchPlan,
        features: FeatureSource,
        label: Callable[[Sample, Sequence[Features]], LabelledPrompt],
        left_out: Sequence[Sequence[int]] = (),
    ) -> None:
        self.corpus, self.plan, self.features, self.label = corpus, plan, features, label
        self.left_out = left_out

    @classmethod
    def of_model(
        cls,
        model: VideoLlava,
        corpus: Samples,
        plan: BatchPlan,
        features: FeatureSource,
        unseen: UnseenPairs | None = None,
    ) -> TrainingDataset:
        """For a model, in its own chat format and as long as its context.

        Args:
            model: that learns, or is scored.
            corpus, plan, features: as for the class.
            unseen: pairs that the loss leaves out where they would answer.
        """
        left_out = IgnoredTokens(unseen, model.tokenizer) if unseen else None
        label = labeller(model, model.chat, model.context, left_out)
        return cls(corpus, plan, features, label, left_out.rows if left_out else ())

    def __len__(self) -> int:
        return len(self.plan.sequences)

    def __getitem__(self, place: int) -> Item:
        numbers = self.plan.sequences[place]
        made: list[LabelledPrompt] = []
        rejected: list[Rejected] = []
        seen: tuple[Features, ...] = ()
        media: tuple[MediaRef, ...] | None = None
        for number in numbers:
            try:
                sample = self.corpus[number]
                if media is not None and sample.media != media:  # another's features must never stand in
                    raise TrainError(
                        f"{sample.source}: media were renamed since the records were looked at", hint=_ANEW
                    )
                features = tuple(self.features(ref) for ref in sample.media)
                made.append(self.label(sample, features))
                seen, media = features, sample.media
            except SampleError as error:
                rejected.append(self.corpus.rejected(number, error))
        return Item(pack(made) if made else EMPTY, seen, len(numbers), tuple(rejected))

    def __getitems__(self, places: Sequence[int]) -> list[Item]:
        """Several at once: their media are announced together, so that they can be read together."""
        refs: dict[MediaRef, None] = {}
        for number in (number for place in places for number in self.plan.sequences[place]):
            try:
                refs.update(dict.fromkeys(self.corpus[number].media))
            except SampleError:
                continue  # becomes a reject when it is asked for
        self.features.prefetch(list(refs))
        return [self[place] for place in places]


#: A sequence of one position with nothing to learn.
EMPTY = Packed(
    np.zeros(1, np.int64),
    np.zeros(1, np.bool_),
    np.full(1, IGNORE_INDEX, np.int64),
    np.zeros(1, np.int64),
    np.zeros(1, np.int64),
    np.zeros(1, np.int64),
)


def labeller(
    model: VideoLlava, chat: ChatFormat, max_tokens: int, left_out: IgnoredTokens | None = None
) -> Callable[[Sample, Sequence[Features]], LabelledPrompt]:
    """How a model's samples become tokens.

    Args:
        model: gives the tokenizer, and how much room a medium takes.
        chat: format to tune with.
        max_tokens: longest sample, visual tokens included; a longer one is rejected.
        left_out: answers about media that the loss leaves out.
    """
    tokenizer, shape = model.tokenizer, model.media_shape

    def label(sample: Sample, features: Sequence[Features]) -> LabelledPrompt:
        made = labelled(sample, tokenizer, chat, [shape(f) for f in features], max_tokens)
        # Text may speak of anything: what media never show counts for answers about media alone.
        return replace(made, ignored_rows=left_out.where(made)) if left_out and sample.media else made

    return label


def to_batch(items: Sequence[Item]) -> dict[str, Any]:
    """Pad and stack; a dict, because that is what the Trainer hands around."""
    joined = TrainingBatch(
        collate([item.packed for item in items]),
        tuple(f for item in items for f in item.features),
        sum(item.n_samples for item in items),
        tuple(r for item in items for r in item.rejected),
    )
    return {"batch": joined}


def survey(corpus: Samples) -> Survey:
    """Look at samples that lie in memory; a `Corpus` keeps what its own look told. Those that cannot be read stay
    alone, and are rejected when their turn comes."""
    groups: list[Hashable] = []
    lengths: list[int] = []
    for number in range(len(corpus)):
        try:
            sample = corpus[number]
            groups.append(group_of(sample))
            lengths.append(length_of(sample))
        except SampleError:
            groups.append(None)
            lengths.append(0)
    return Survey(groups, lengths)
