"""Features + conversations in memory -> a tuned connector and LLM: the stages of a recipe, called from Python.

Stage `connector` trains the connector alone, stage `instruct` the connector and the LLM, stage `language` the LLM alone
on text (for a language model that is made from nothing, as the demo's is). `vidqa train` does the same from files, with
checkpoints; see `vidqa.train.stage.loop`.
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
from vidqa.train.batching.dataset import TrainingDataset
from vidqa.train.batching.sampler import Packing, Survey, plan_run
from vidqa.train.data import MediaRef, Rejected, Sample, SampleError
from vidqa.train.data.unseen_pairs import UnseenPairs
from vidqa.train.distributed import RunConfig, processes
from vidqa.train.recipe.definition import Logging, Stage, StageKind
from vidqa.train.stage.loop import Silent, StageContext, run_stage
from vidqa.train.stage.metrics import MetricsFile


@dataclass(frozen=True)
class TuneSettings:
    """One stage of tuning. Defaults of schedule and optimiser are the paper's (AdamW, cosine, no weight decay)."""

    stage: StageKind
    epochs: float
    batch_size: int  # packed sequences a step, in each process
    lr: float
    warmup_ratio: float = 0.03
    max_conversations: int = 10  # of one medium in one sequence; drawn anew each time the medium comes up
    seed: int = 0
    weight_decay: float = 0.0
    unseen_pairs: UnseenPairs | None = None  # left out of the loss where they would answer


class GivenSamples:
    """Groups of samples as a corpus. A bad one is an error: who made them in memory can mend them."""

    def __init__(self, groups: Sequence[tuple[Sample, ...]], seed: int) -> None:
        self.samples = [sample for group in groups for sample in group]
        self.group_of = [number for number, group in enumerate(groups) for _ in group]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def rejected(self, index: int, error: SampleError, id: str | None = None) -> Rejected:
        """There is no leaving out.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"sample {self.samples[index].id}: {error.what}") from error

    def epoch_order(self, epoch: int) -> np.ndarray:
        """int64 [N], shuffled."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def survey(self) -> Survey:
        """The groups as given; pictures, clips and text of like length meet."""
        kinds = {"video": 2, "image": 1}
        lengths = [kinds[s.media[0].kind] if s.media else 0 for s in self.samples]
        return Survey(self.group_of, lengths)


class ByPath:
    """Features by the path of a medium."""

    def __init__(self, read: Callable[[str], Features]) -> None:
        self.read = read

    def __call__(self, ref: MediaRef) -> Features:
        return self.read(ref.path)

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """Reading is done one by one."""


def tune(
    model: VideoLlava,
    groups: Sequence[tuple[Sample, ...]],
    features: Callable[[str], Features],
    settings: TuneSettings,
    *,
    folder: Path,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Run one stage; the model is changed in place. There are no checkpoints.

    Args:
        model: connector and LLM.
        groups: from `vidqa.train.data.by_media`; the conversations of a group share a sequence.
        features: reads features by media path.
        settings: the stage.
        folder: for the Trainer's own files.
        report: called with step, loss, learning rate every 50 steps.

    Returns:
        Closing figures: train_loss (mean over the steps), train_runtime (seconds), steps.

    Raises:
        UsageError: a sample cannot be trained on.
    """
    batch = settings.batch_size * processes()
    stage = Stage(
        kind=settings.stage,
        epochs=settings.epochs,
        batch_size=batch,
        per_device=settings.batch_size,
        lr=settings.lr,
        warmup=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        packing=settings.max_conversations,
        visits="draw",
    )
    corpus = GivenSamples(groups, settings.seed)
    packing = Packing(settings.max_conversations, "draw", by_length=True)
    plan = plan_run(
        corpus.epoch_order, batch, epochs=settings.epochs, packing=packing, survey=corpus.survey(), seed=settings.seed
    )
    data = TrainingDataset.of_model(model, corpus, plan, ByPath(features), settings.unseen_pairs)
    never = plan.n_steps + 1
    output = RunConfig().output.model_copy(update={"save_every": never})
    common = RunConfig(output=output, logging=Logging(every=50), seed=settings.seed)
    metrics = MetricsFile(folder / "metrics.jsonl", active=False)
    result = run_stage(model, data, stage, StageContext(folder, Silent(), metrics, common, report=report))
    return {"train_loss": result.mean_loss, "train_runtime": result.seconds, "steps": float(result.n_steps)}
