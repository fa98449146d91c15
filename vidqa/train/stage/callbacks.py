"""What happens beside the steps: counts, metrics, evaluation, the moment to save, and reasons to stop.

Hears from the Trainer. Does not compute losses and does not write checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback

from vidqa.errors import TrainError
from vidqa.train.batching.dataset import TrainingBatch
from vidqa.train.data import Rejected, RejectLog
from vidqa.train.stage.metrics import MetricsFile, StepTally, Totals, summed

GO_ON = "the same command goes on from there"
ANEW = "with another recipe a run begins anew: --resume never, or another --out"


class Interrupted(Exception):
    """Somebody asked the run to stop; it stands at a checkpoint."""


class Listener(Protocol):
    """Who hears what a run has to say; the pipeline's Reporter is one."""

    def say(self, text: str, *, level: int = 1) -> None: ...
    def progress(self, total: int, unit: str, done: int = 0) -> AbstractContextManager[None]: ...
    def advance(self, n: int = 1) -> None: ...


@dataclass(frozen=True)
class Intervals:
    """After how many steps what happens; None means never before the end."""

    log: int = 10
    save: int | None = None
    evaluate: int | None = None


@dataclass(frozen=True)
class StageProgress:
    """Which stage is under way, and how long it is."""

    number: int  # from 1
    title: str  # for messages
    n_steps: int
    epochs: float  # that these steps cover


class StageCallback(TrainerCallback):
    """One stage under way.

    Args:
        course: which stage.
        rhythm: when to log, save and evaluate.
        metrics: gets a line for every step.
        rejects: hears of samples that were left out, and stops the run when they are too many; None only counts.
        listener: hears what people want to know.
        stopping: says whether somebody wants the run to stop; looked at once a step.
    """

    def __init__(
        self,
        course: StageProgress,
        rhythm: Intervals,
        metrics: MetricsFile,
        rejects: RejectLog | None,
        listener: Listener,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.course, self.rhythm = course, rhythm
        self.metrics, self.rejects, self.listener, self.stopping = metrics, rejects, listener, stopping
        self.evaluate: Callable[[int], dict[str, float]] | None = None
        self.log: Callable[[dict[str, float]], None] | None = None
        self.report: Callable[[dict[str, Any]], None] | None = None
        self.totals = Totals()
        self.tally = StepTally()
        self.last_good: str | None = None
        self._loss: Tensor | None = None
        self._local = StepTally()
        self._lr = 0.0
        self._rejected: list[Rejected] = []
        self._rate = Totals()
        self.grad_norm: float | None = None  # of the step, before it was cut to max_grad_norm
        self.is_stopping = False  # agreed on by all processes
        self._began, self._first = time.perf_counter(), 0

    def take(self, batch: TrainingBatch, loss: Tensor) -> None:
        """Count one micro-batch; its summed loss stays on the device until the step is made."""
        loss = loss.detach().double()
        self._loss = loss if self._loss is None else self._loss + loss
        filled, positions = batch.n_positions
        self._local.n_learned += batch.n_learned
        self._local.n_filled += filled
        self._local.n_positions += positions
        self._local.n_samples += batch.n_samples
        self._local.n_rejected += len(batch.rejected)
        self._rejected += batch.rejected

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.totals.since = self._began = time.perf_counter()
        self._first = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up what all processes saw, and stop before a step that would spoil the weights."""
        self._lr = float(kwargs["optimizer"].param_groups[-1]["lr"])
        values = torch.tensor([*self._local.values(), self.stopping()], dtype=torch.float64, device=args.device)
        if self._loss is not None:
            values[0] = self._loss
        if args.world_size > 1:
            distributed.all_reduce(values)
        *sums, stopping = values.tolist()
        self.tally, self.is_stopping = summed(sums), stopping > 0
        rejected, self._loss, self._local, self._rejected = self._rejected, None, StepTally(), []
        if self.tally.n_rejected:
            self._note(_of_all(rejected) if args.world_size > 1 else rejected)
        # With fp16 a norm without end is usual: the scaler lets such a step pass without effect.
        bad_gradient = self.grad_norm is not None and not math.isfinite(self.grad_norm) and not args.fp16
        if not self.tally.is_finite or bad_gradient:
            found = f"the norm of the gradient of step {state.global_step + 1} is {self.grad_norm}"
            if not self.tally.is_finite:
                found = f"the loss of step {state.global_step + 1} is {self.tally.loss}"
            self.metrics.flush()
            kept = f"the last good checkpoint is {self.last_good}" if self.last_good else "there is no checkpoint yet"
            raise TrainError(
                f"{self.course.title}: {found}; training stops, {kept}",
                hint=f"a lower lr, more warmup, or precision bf16 in place of fp16; {ANEW}",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Write down the step; every so often say it, evaluate, save."""
        step, tally = state.global_step, self.tally
        seconds = self.totals.add(tally)
        line: dict[str, Any] = {"stage": self.course.number, "name": self.course.title, "step": step}
        line |= {"loss": tally.mean_loss, "lr": self._lr}
        if self.grad_norm is not None:
            line["grad_norm"] = self.grad_norm if math.isfinite(self.grad_norm) else None
        line |= {"epoch": self.course.epochs * step / self.course.n_steps, "padding": round(tally.padding, 4)}
        line |= {"tokens_per_s": round(tally.n_filled / max(seconds, 1e-9), 1), "seconds": round(seconds, 4)}
        line["rejected"] = tally.n_rejected
        is_last = step >= self.course.n_steps
        if self.evaluate and (is_last or (self.rhythm.evaluate and step % self.rhythm.evaluate == 0)):
            line |= self.evaluate(step)
            self.totals.since = Totals().since  # evaluation is no training
        self.metrics.add(line)
        self.listener.advance()
        stops_here = self.is_stopping and not is_last
        if is_last or stops_here or step % self.rhythm.log == 0 or "eval_loss" in line:
            self.metrics.flush()
            self._say(line)
        if stops_here or (self.rhythm.save and step % self.rhythm.save == 0 and not is_last):
            control.should_save = True
            control.should_training_stop = stops_here
        return control

    def _note(self, rejected: list[Rejected]) -> None:
        for one in rejected:
            self.listener.say(f"rejected: {one.source}, record {one.record}: {one.kind}: {one.message}", level=2)
        if self.rejects is not None:
            self.rejects.add(*rejected)

    def _say(self, line: dict[str, Any]) -> None:
        n, seconds = self.totals.n_filled - self._rate.n_filled, self.totals.seconds - self._rate.seconds
        padding = 1 - n / max(1, self.totals.n_positions - self._rate.n_positions)
        self._rate = Totals(**self.totals.as_dict())
        rate = n / max(seconds, 1e-9)
        course = self.course
        text = f"{course.title}: step {line['step']}/{course.n_steps}, loss {line['loss']:.4f}, lr {line['lr']:.2e}"
        text += f", {rate:.0f} tokens/s, {padding:.0%} padding"
        if "eval_loss" in line:
            text += f", held-out loss {line['eval_loss']:.4f}"
        if left := course.n_steps - line["step"]:  # with what evaluation and checkpoints take
            each = (time.perf_counter() - self._began) / (line["step"] - self._first)
            text += f", {in_time(left * each)} left"
        self.listener.say(text)
        if self.report is not None:
            self.report({**line, "of": self.course.n_steps})
        if self.log is not None:
            shown = {k: v for k, v in line.items() if isinstance(v, float) and k != "epoch" and math.isfinite(v)}
            self.log(shown | {"tokens_per_s": rate, "padding": padding})


def in_time(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 36 else f"{hours // 24} d {hours % 24} h"


def _of_all(rejected: list[Rejected]) -> list[Rejected]:
    """The rejects of all processes, in each of them."""
    gathered: list[list[Rejected]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, rejected)
    return [one for part in gathered for one in part]
