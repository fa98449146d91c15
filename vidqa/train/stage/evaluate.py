"""A held-out file while training goes on: its loss, and what the model answers, in a table.

Draws no random number, so that a run with looks in between is the run without them. Knows sequences and models; does
not know files of conversations.
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
from vidqa.errors import ItemError, UsageError
from vidqa.generate.engine import GenerationSettings, Request, generate
from vidqa.model.video_llava import VideoLlava
from vidqa.train.batching.dataset import EMPTY, Item, TrainingDataset, to_batch
from vidqa.train.batching.sampler import BatchPlan
from vidqa.train.data import Sample, SampleError
from vidqa.train.distributed import is_first, processes, wait_for_all

_TAG = re.compile(r"<(?:image|video)>\n?")


@dataclass(frozen=True)
class SampleRow:
    """One answer of a model under way, beside what the file says. The fields are the columns of samples.parquet."""

    stage: int
    step: int
    id: str
    media: str | None
    question: str
    truth: str
    answer: str


class Evaluator:
    """Looks at a held-out set.

    Args:
        data: its sequences, in a plan of one conversation each.
        at_once: sequences computed together.
        samples: how many of the conversations are answered.
        max_new_tokens: of an answer.
        table: gets the answers.
        stage: number of the stage, from 1.
    """

    def __init__(
        self, data: TrainingDataset, *, at_once: int, samples: int, max_new_tokens: int, table: Path, stage: int
    ) -> None:
        self.data, self.at_once, self.stage, self.table = data, at_once, stage, table
        self.settings, self.shown = GenerationSettings(max_new_tokens=max_new_tokens), samples

    def __call__(self, wrapped: Any, model: VideoLlava, step: int) -> dict[str, float]:
        """The figures of a step.

        Args:
            wrapped: the loss module as the Trainer runs it, in several processes perhaps.
            model: the model inside.
            step: for the table.

        Returns:
            eval_loss (mean per token) and eval_rejected.
        """
        was_training = wrapped.training
        wrapped.eval()
        try:
            with torch.no_grad():
                figures = self._loss(wrapped, model.device)
            if self.shown and is_first():
                self._answer(model, step)
            wait_for_all()
        finally:
            wrapped.train(was_training)
        return figures

    def _loss(self, wrapped: Any, device: torch.device) -> dict[str, float]:
        n, world = len(self.data), processes()
        rank = distributed.get_rank() if world > 1 else 0
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        stride = self.at_once * world
        for start in range(0, n, stride):  # as many rounds in every process, the last ones perhaps of nothing
            places = [i for i in range(start + rank * self.at_once, start + (rank + 1) * self.at_once) if i < n]
            batch = to_batch(self.data.__getitems__(places) or [Item(EMPTY, (), 0, ())])["batch"]
            totals[0] += wrapped(batch=batch)["loss"].double()
            totals[1] += batch.n_learned
            totals[2] += len(batch.rejected)
        if world > 1:
            distributed.all_reduce(totals)
        loss, tokens, rejected = totals.tolist()
        return {"eval_loss": loss / max(1.0, tokens), "eval_rejected": rejected}

    def _answer(self, model: VideoLlava, step: int) -> None:
        asked: list[Sample] = []
        requests: list[Request] = []
        for numbers in self.data.plan.sequences:
            if len(asked) == self.shown:
                break
            try:
                for sample in (self.data.corpus[i] for i in numbers):
                    features = tuple(self.data.features(ref) for ref in sample.media)
                    requests.append(Request(features, ((_question(sample), None),)))
                    asked.append(sample)
            except SampleError:
                continue  # counted with the losses
        answers = generate(model, requests, self.settings, batch_size=self.at_once)
        rows = []
        for sample, answer in zip(asked, answers, strict=True):
            text = f"[{answer.kind}]" if isinstance(answer, ItemError) else answer.text
            media = ", ".join(ref.path for ref in sample.media) or None
            rows.append(SampleRow(self.stage, step, sample.id, media, _question(sample), sample.turns[0][1], text))
        add_rows(self.table, rows)


def held_out(n: int) -> BatchPlan:
    """One conversation a sequence, in the order of the file."""
    return BatchPlan(tuple((i,) for i in range(n)), 1, 1.0)


def add_rows(path: Path, rows: Sequence[SampleRow]) -> None:
    """Put rows into the table; those of the same stage and step or later ones, of a run that was broken, go."""
    import polars as pl

    names = list(SampleRow.__annotations__)
    schema = {name: pl.Int64 if name in ("stage", "step") else pl.String for name in names}
    table = pl.DataFrame([asdict(row) for row in rows], schema=schema)
    if path.exists() and rows:
        try:
            old = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UsageError(f"{path}: cannot be read as a table of samples: {error}") from error
        now = rows[0]
        before = (pl.col("stage") < now.stage) | ((pl.col("stage") == now.stage) & (pl.col("step") < now.step))
        table = pl.concat([old.filter(before), table])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as f:
        table.write_parquet(f)


def _question(sample: Sample) -> str:
    """The first question without the places of its media: they go before it."""
    return _TAG.sub("", sample.turns[0][0]).strip()
