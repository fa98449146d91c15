"""Training from Python: features and conversations in memory -> a trained connector and LLM.

Stage `connector` trains the connector, stage `instruct` the connector and the LLM, and stage `language` the LLM on text
(for a language model with random weights, such as that of the demo). `vidqa train` does the same from files, with
checkpoints: see `vidqa.pipeline.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidqa.errors import UsageError
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Features
from vidqa.training.batching.dataset import TrainingDataset
from vidqa.training.batching.sampler import Packing, SampleStats, plan_batches
from vidqa.training.data.rejects import Rejected
from vidqa.training.data.sample import MediaRef, Sample, SampleError
from vidqa.training.data.unseen_pairs import UnseenPairs
from vidqa.training.distributed import processes
from vidqa.training.recipe.definition import Logging, Output, Stage, StageKind
from vidqa.training.stage.metrics import MetricsFile
from vidqa.training.stage.trainer import StageTrainer

_LOGGING_STEPS = 50


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one stage. Schedule and optimizer default to those of the paper (AdamW, cosine, no weight decay)."""

    stage: StageKind
    epochs: float
    batch_size: int  # packed sequences per step, in each process
    learning_rate: float
    warmup_ratio: float = 0.03
    max_conversations: int = 10  # per packed sequence; sampled again in every epoch
    seed: int = 0
    weight_decay: float = 0.0
    unseen_pairs: UnseenPairs | None = None  # ignored in the loss where they would be answers


class SamplesInMemory:
    """A corpus of groups of samples in memory. A bad sample is an error, because the caller can fix it."""

    def __init__(self, groups: Sequence[tuple[Sample, ...]], seed: int) -> None:
        self.samples = [sample for group in groups for sample in group]
        self.group_of = [number for number, group in enumerate(groups) for _ in group]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def rejected(self, index: int, error: SampleError, id: str | None = None) -> Rejected:
        """Raise an error instead of rejecting a sample.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"sample {self.samples[index].id}: {error.what}") from error

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the shuffled sample numbers, int64 [N]."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def stats(self) -> SampleStats:
        """Return the given groups, and lengths that sort samples by kind of media, so that batches have one kind."""
        ranks = {"video": 2, "image": 1}
        lengths = [ranks[s.media[0].kind] if s.media else 0 for s in self.samples]
        return SampleStats(self.group_of, lengths)


class FeaturesByPath:
    """Features by the path of the media item."""

    def __init__(self, read: Callable[[str], Features]) -> None:
        self.read = read

    def __call__(self, ref: MediaRef) -> Features:
        """Read the features of a media item."""
        return self.read(ref.path)

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """Do nothing: features are read one by one."""


def train_stage(
    model: VideoLlava,
    groups: Sequence[tuple[Sample, ...]],
    features: Callable[[str], Features],
    settings: TrainingSettings,
    *,
    folder: Path,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Train one stage without checkpoints.

    Args:
        model: connector and LLM; modified in place.
        groups: groups from `vidqa.training.data.sample.by_media`; the conversations of a group share a sequence.
        features: reads the features of a media path.
        settings: settings of the stage.
        folder: folder for files of the Trainer.
        report: called with the metrics of every 50th step and of the last one.

    Returns:
        `train_loss` (mean over the steps), `train_runtime` (seconds) and `steps`.

    Raises:
        UsageError: a sample cannot be trained on.
    """
    batch = settings.batch_size * processes()
    stage = Stage(
        kind=settings.stage,
        epochs=settings.epochs,
        batch_size=batch,
        per_device_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        packing=settings.max_conversations,
        sequences_per_media="one",
        group_by_length=True,
    )
    corpus = SamplesInMemory(groups, settings.seed)
    plan = plan_batches(
        corpus.epoch_order,
        batch,
        epochs=settings.epochs,
        packing=Packing(stage.packing, stage.sequences_per_media, stage.group_by_length),
        stats=corpus.stats(),
        seed=settings.seed,
    )
    trainer = StageTrainer(
        model,
        TrainingDataset.for_model(model, corpus, plan, FeaturesByPath(features), settings.unseen_pairs),
        stage,
        folder,
        metrics=MetricsFile(folder / "metrics.jsonl", active=False),
        output=Output(save_steps=plan.n_steps + 1),  # never
        logging=Logging(logging_steps=_LOGGING_STEPS),
        seed=settings.seed,
        report=report,
    )
    result = trainer.run()
    assert result.mean_loss is not None  # a sample without targets raises an error here
    return {"train_loss": result.mean_loss, "train_runtime": result.seconds, "steps": float(result.n_steps)}
