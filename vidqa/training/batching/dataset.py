"""Batch plan + corpus + features -> packed sequences and rejected samples: the dataset of the Trainer.

A sample that cannot be trained on is skipped and reported as rejected: it is never truncated or replaced by another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vidqa.errors import TrainError
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import IGNORE_INDEX, LabeledPrompt
from vidqa.records import Features
from vidqa.training.batching.packing import Packed, PackedBatch, collate, pack
from vidqa.training.batching.sampler import BatchPlan, SampleStats
from vidqa.training.data.metadata import group_of, length_of
from vidqa.training.data.rejects import Rejected
from vidqa.training.data.sample import MediaRef, Sample, SampleError
from vidqa.training.data.tokenize import tokenize_sample
from vidqa.training.data.unseen_pairs import IgnoredTokens, UnseenPairs

_REREAD_HINT = "remove the folder `records` in the cache folder, which is then rebuilt, and run again"

#: (sample, features of its media) -> token ids and labels. Raises SampleError.
TokenizeSample = Callable[[Sample, Sequence[Features]], LabeledPrompt]


class Samples(Protocol):
    """The part of a Corpus that a dataset uses."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def rejected(self, index: int, error: SampleError, id: str | None = None) -> Rejected:
        """Return the row of a bad sample for the table of rejects."""
        ...


class FeatureSource(Protocol):
    """Provides features of media items."""

    def __call__(self, ref: MediaRef) -> Features:
        """Return the features of a media item. Raise SampleError if they cannot be computed."""
        ...

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """Announce the media items that are requested next."""
        ...


@dataclass(frozen=True)
class Item:
    """One packed sequence, and features in the order of its slots; `EMPTY` if all its samples were rejected."""

    packed: Packed
    features: tuple[Features, ...]
    n_samples: int  # including rejected ones
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class TrainingBatch:
    """The sequences of one forward pass in one process."""

    packed: PackedBatch
    features: tuple[Features, ...]
    n_samples: int
    rejected: tuple[Rejected, ...]

    @property
    def n_targets(self) -> int:
        """Number of positions with a loss."""
        return int((self.packed.labels[:, 1:] != IGNORE_INDEX).sum())

    @property
    def n_positions(self) -> tuple[int, int]:
        """(positions that are not padding, all positions)."""
        return int((self.packed.branch >= 0).sum()), self.packed.ids.numel()


class TrainingDataset(torch.utils.data.Dataset[Item]):
    """The packed sequences of a plan, by their index in it.

    Args:
        corpus: provides samples by number.
        plan: assigns samples to sequences.
        features: provides the features of media items.
        tokenize: tokenizes a sample.
        ignored: tokens that the softmax of the loss ignores in answers about media.
    """

    def __init__(
        self,
        corpus: Samples,
        plan: BatchPlan,
        features: FeatureSource,
        tokenize: TokenizeSample,
        ignored: IgnoredTokens | None = None,
    ) -> None:
        self.corpus, self.plan, self.features = corpus, plan, features
        self.tokenize, self.ignored = tokenize, ignored

    @classmethod
    def for_model(
        cls,
        model: VideoLlava,
        corpus: Samples,
        plan: BatchPlan,
        features: FeatureSource,
        unseen_pairs: UnseenPairs | None = None,
    ) -> TrainingDataset:
        """Create the dataset of a model, with its own tokenizer, chat format and context length."""
        ignored = IgnoredTokens(unseen_pairs, model.tokenizer) if unseen_pairs else None
        return cls(corpus, plan, features, model_tokenizer(model), ignored)

    @property
    def ignored_tokens(self) -> Sequence[Sequence[int]]:
        """The sets of token ids that `ignored_rows` of the sequences refer to."""
        return self.ignored.rows if self.ignored else ()

    def __len__(self) -> int:
        return len(self.plan.sequences)

    def __getitem__(self, index: int) -> Item:
        numbers = self.plan.sequences[index]
        conversations: list[LabeledPrompt] = []
        ignored_rows: list[np.ndarray] = []
        rejected: list[Rejected] = []
        features: tuple[Features, ...] = ()
        media: tuple[MediaRef, ...] | None = None
        for number in numbers:
            try:
                sample = self.corpus[number]
                if media is not None and sample.media != media:  # never train on features of other media
                    raise TrainError(f"{sample.source}: media were renamed after the file was read", hint=_REREAD_HINT)
                sample_features = tuple(self.features(ref) for ref in sample.media)
                conversation = self.tokenize(sample, sample_features)
                conversations.append(conversation)
                ignored_rows.append(self._ignored_rows(sample, conversation))
                features, media = sample_features, sample.media
            except SampleError as error:
                rejected.append(self.corpus.rejected(number, error))
        packed = pack(conversations, ignored_rows) if conversations else EMPTY
        return Item(packed, features, len(numbers), tuple(rejected))

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several sequences, after announcing all their media so that these can be read together."""
        refs: dict[MediaRef, None] = {}
        for number in (number for index in indices for number in self.plan.sequences[index]):
            try:
                refs.update(dict.fromkeys(self.corpus[number].media))
            except SampleError:
                continue  # rejected by __getitem__
        self.features.prefetch(list(refs))
        return [self[index] for index in indices]

    def _ignored_rows(self, sample: Sample, conversation: LabeledPrompt) -> np.ndarray:
        # Text-only samples may mention any pair: unseen pairs are about what media show.
        if self.ignored is None or not sample.media:
            return np.zeros(len(conversation.labels), np.int64)
        return self.ignored.row_indices(conversation)


#: A sequence of one position that has no loss.
EMPTY = Packed(
    np.zeros(1, np.int64),
    np.zeros(1, np.bool_),
    np.full(1, IGNORE_INDEX, np.int64),
    np.zeros(1, np.int64),
    np.zeros(1, np.int64),
    np.zeros(1, np.int64),
)


def model_tokenizer(model: VideoLlava) -> TokenizeSample:
    """Return a function that tokenizes samples for a model: its tokenizer, chat format and context length."""
    tokenizer, chat, shape, max_tokens = model.tokenizer, model.chat, model.media_shape, model.context

    def tokenize(sample: Sample, features: Sequence[Features]) -> LabeledPrompt:
        return tokenize_sample(sample, tokenizer, chat, [shape(f) for f in features], max_tokens)

    return tokenize


def to_batch(items: Sequence[Item]) -> dict[str, Any]:
    """Pad and stack sequences; return a dict, because the Trainer requires one."""
    joined = TrainingBatch(
        collate([item.packed for item in items]),
        tuple(f for item in items for f in item.features),
        sum(item.n_samples for item in items),
        tuple(r for item in items for r in item.rejected),
    )
    return {"batch": joined}


def sample_stats(corpus: Samples) -> SampleStats:
    """Read groups and lengths of samples that are in memory (`Corpus.token_stats` stores those of files).

    A sample that cannot be read has no group; it is rejected when training reaches it.
    """
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
    return SampleStats(groups, lengths)
