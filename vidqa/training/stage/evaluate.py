"""Evaluation on a held-out file during training: its loss, and generated answers in `samples.parquet`.

It uses no random numbers, so a run is bit-identical with and without evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from vidqa.common.atomic_io import atomic_write
from vidqa.common.disk_space import os_errors
from vidqa.errors import ItemError, UsageError
from vidqa.generate.engine import GenerationSettings, Request, generate
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.plain_text import check_text
from vidqa.training.batching.dataset import EMPTY, Item, TrainingDataset, to_batch
from vidqa.training.batching.sampler import BatchPlan
from vidqa.training.data.sample import Sample, SampleError
from vidqa.training.distributed import is_first, processes, wait_for_all

_TAG = re.compile(r"<(?:image|video)>\n?")


@dataclass(frozen=True)
class SampleRow:
    """A generated answer next to the reference answer. The fields are the columns of samples.parquet."""

    stage: int
    step: int
    id: str
    media: str | None
    question: str
    truth: str
    answer: str


class Evaluator:
    """Evaluates a model on a held-out set.

    Args:
        data: the held-out set, one conversation per sequence.
        batch_size: sequences per forward pass.
        samples: number of conversations whose answers are generated.
        max_new_tokens: maximum length of an answer.
        table: path of samples.parquet.
        stage: number of the stage, from 1.
    """

    def __init__(
        self, data: TrainingDataset, *, batch_size: int, samples: int, max_new_tokens: int, table: Path, stage: int
    ) -> None:
        self.data, self.batch_size, self.stage, self.table = data, batch_size, stage, table
        self.settings, self.n_samples = GenerationSettings(max_new_tokens=max_new_tokens), samples

    def __call__(self, wrapped: Any, model: VideoLlava, step: int) -> dict[str, float]:
        """Evaluate after a step.

        Args:
            wrapped: the loss module as the Trainer runs it, possibly wrapped for several processes.
            model: the model inside.
            step: number of the step, for the table.

        Returns:
            `eval_loss` (mean per target token; missing if all samples were rejected) and `eval_rejected` (number of
            rejected samples).
        """
        was_training = wrapped.training
        wrapped.eval()
        try:
            with torch.no_grad():
                metrics = self._loss(wrapped, model.device)
            if self.n_samples and is_first():
                self._generate_samples(model, step)
            wait_for_all()
        finally:
            wrapped.train(was_training)
        return metrics

    def _loss(self, wrapped: Any, device: torch.device) -> dict[str, float]:
        n, world = len(self.data), processes()
        rank = distributed.get_rank() if world > 1 else 0
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        stride = self.batch_size * world
        for start in range(0, n, stride):  # the same number of rounds in every process; the last may be empty
            first = start + rank * self.batch_size
            indices = [i for i in range(first, first + self.batch_size) if i < n]
            batch = to_batch(self.data.__getitems__(indices) or [Item(EMPTY, (), 0, ())])["batch"]
            totals[0] += wrapped(batch=batch)["loss"].double()
            totals[1] += batch.n_targets
            totals[2] += len(batch.rejected)
        if world > 1:
            distributed.all_reduce(totals)
        loss, n_targets, rejected = totals.tolist()
        return ({"eval_loss": loss / n_targets} if n_targets else {}) | {"eval_rejected": rejected}

    def _generate_samples(self, model: VideoLlava, step: int) -> None:
        chosen: list[Sample] = []
        requests: list[Request] = []
        for numbers in self.data.plan.sequences:
            if len(chosen) == self.n_samples:
                break
            try:
                for sample in (self.data.corpus[i] for i in numbers):
                    check_text(_question(sample))
                    features = tuple(self.data.features(ref) for ref in sample.media)
                    requests.append(Request(features, ((_question(sample), None),)))
                    chosen.append(sample)
            except (SampleError, UsageError):
                continue  # already counted by `_loss`
        answers = generate(model, requests, self.settings, batch_size=self.batch_size)
        rows = []
        for sample, answer in zip(chosen, answers, strict=True):
            text = f"[{answer.kind}]" if isinstance(answer, ItemError) else answer.text
            media = ", ".join(ref.path for ref in sample.media) or None
            rows.append(SampleRow(self.stage, step, sample.id, media, _question(sample), sample.turns[0][1], text))
        add_rows(self.table, rows)


def held_out_plan(n: int) -> BatchPlan:
    """Plan one conversation per sequence, in the order of the file."""
    return BatchPlan(tuple((i,) for i in range(n)), 1, 1.0)


def add_rows(path: Path, rows: Sequence[SampleRow]) -> None:
    """Add rows to the table and remove those of the same or later steps, which an interrupted run may have left."""
    import polars as pl

    names = list(SampleRow.__annotations__)
    schema = {name: pl.Int64 if name in ("stage", "step") else pl.String for name in names}
    table = pl.DataFrame([asdict(row) for row in rows], schema=schema)
    if path.exists() and rows:
        try:
            old = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UsageError(f"{path}: not a readable table of samples: {error}") from error
        now = rows[0]
        earlier = (pl.col("stage") < now.stage) | ((pl.col("stage") == now.stage) & (pl.col("step") < now.step))
        table = pl.concat([old.filter(earlier), table])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as f, os_errors(f, pl.exceptions.PolarsError):
        table.write_parquet(f)


def _question(sample: Sample) -> str:
    """Return the first question without its media tags: generation puts the media in front of it."""
    return _TAG.sub("", sample.turns[0][0]).strip()
