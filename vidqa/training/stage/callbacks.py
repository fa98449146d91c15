"""What happens around the optimizer steps: counting, metrics, evaluation, when to save, and reasons to stop.

The Trainer calls it. Scope: losses are computed in loss.py, and checkpoints are written by trainer.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback

from vidqa.errors import TrainError
from vidqa.training.batching.dataset import TrainingBatch
from vidqa.training.batching.sampler import BatchPlan
from vidqa.training.data.rejects import Rejected, RejectLog
from vidqa.training.stage.metrics import MetricsFile, StageTotals, StepTotals

RESTART_HINT = "to start from scratch with another recipe: --resume never, or another --out"


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint."""


class Listener(Protocol):
    """Receives messages and progress; the Reporter of the pipeline is one."""

    def message(self, text: str, *, level: int = 1) -> None:
        """Receive a message; level 2 is for verbose output."""

    def progress(self, total: int, unit: str, done: int = 0, *, phase: str) -> AbstractContextManager[None]:
        """Show the progress of a phase, which ends with the context."""
        ...

    def advance(self, n: int = 1) -> None:
        """Advance the progress bar."""


class Silent:
    """A listener that ignores everything."""

    def message(self, text: str, *, level: int = 1) -> None:
        """Ignore a message."""

    def progress(self, total: int, unit: str, done: int = 0, *, phase: str) -> AbstractContextManager[None]:
        """Show no progress bar."""
        return nullcontext()

    def advance(self, n: int = 1) -> None:
        """Ignore progress."""


class StageCallback(TrainerCallback):
    """Counts, logs, evaluates and stops during one stage.

    Args:
        number: number of the stage, from 1.
        title: title of the stage, for messages.
        plan: its numbers of steps and epochs are used.
        logging_steps: steps between two log lines.
        save_steps: steps between two checkpoints.
        eval_steps: steps between two evaluations; None evaluates only at the end of the stage.
        metrics: receives a line for every step.
        rejects: receives rejected samples, and stops the run if there are too many; None only counts them.
        listener: receives messages.
        evaluate: computes the held-out metrics after a step; None never evaluates.
        log: receives the scalars of every log line, for example for TensorBoard.
        report: receives the metrics of every log line.
        should_stop: returns True if the run is asked to stop; called once per step.
    """

    def __init__(
        self,
        *,
        number: int,
        title: str,
        plan: BatchPlan,
        logging_steps: int,
        save_steps: int,
        eval_steps: int | None,
        metrics: MetricsFile,
        rejects: RejectLog | None,
        listener: Listener,
        evaluate: Callable[[int], dict[str, float]] | None,
        log: Callable[[dict[str, float]], None],
        report: Callable[[dict[str, Any]], None] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.number, self.title, self.n_steps, self.epochs = number, title, plan.n_steps, plan.epochs
        self.logging_steps, self.save_steps, self.eval_steps = logging_steps, save_steps, eval_steps
        self.metrics, self.rejects, self.listener = metrics, rejects, listener
        self.evaluate, self.log, self.report, self.should_stop = evaluate, log, report, should_stop
        self.totals = StageTotals()
        self.last_checkpoint: str | None = None
        self.grad_norm: float | None = None  # norm in this step, before clipping to max_grad_norm
        self.is_stopping = False  # agreed on by all processes
        self._step = StepTotals()  # sums over all processes
        self._local = StepTotals()  # sums of this process
        self._loss: Tensor | None = None
        self._lr = 0.0
        self._rejected: list[Rejected] = []
        self._logged = StageTotals()  # totals at the previous log line
        self._start, self._first_step = time.perf_counter(), 0

    def add_batch(self, batch: TrainingBatch, loss: Tensor) -> None:
        """Count one micro-batch; its summed loss stays on the device until the optimizer step."""
        loss = loss.detach().double()
        self._loss = loss if self._loss is None else self._loss + loss
        n_filled, n_positions = batch.n_positions
        self._local.n_targets += batch.n_targets
        self._local.n_filled += n_filled
        self._local.n_positions += n_positions
        self._local.n_samples += batch.n_samples
        self._local.n_rejected += len(batch.rejected)
        self._rejected += batch.rejected

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the model that the run starts from, and start the clock."""
        if self.evaluate and state.global_step == 0 and self.number == 1:
            line = {"stage": self.number, "name": self.title, "step": 0, "loss": None} | self.evaluate(0)
            self.metrics.add(line)
            self.metrics.flush()
            if "eval_loss" in line:
                self.listener.message(f"{self.title}: held-out loss before training {line['eval_loss']:.4f}")
        self.totals.restart_clock()
        self._start, self._first_step = time.perf_counter(), state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up the counts of all processes, and stop before a step that would corrupt the weights."""
        self._lr = float(kwargs["optimizer"].param_groups[-1]["lr"])
        values = torch.tensor([*self._local.values(), self.should_stop()], dtype=torch.float64, device=args.device)
        if self._loss is not None:
            values[0] = self._loss
        if args.world_size > 1:
            distributed.all_reduce(values)
        *sums, n_stopping = values.tolist()
        self._step, self.is_stopping = StepTotals.from_values(sums), n_stopping > 0
        rejected, self._loss, self._local, self._rejected = self._rejected, None, StepTotals(), []
        if self._step.n_rejected:
            self._record_rejects(_gather(rejected) if args.world_size > 1 else rejected)
        # With fp16 an infinite norm is normal: the gradient scaler skips such a step.
        is_bad_gradient = self.grad_norm is not None and not math.isfinite(self.grad_norm) and not args.fp16
        if not self._step.is_finite or is_bad_gradient:
            problem = f"the gradient norm of step {state.global_step + 1} is {self.grad_norm}"
            if not self._step.is_finite:
                problem = f"the loss of step {state.global_step + 1} is {self._step.loss}"
            self.metrics.flush()
            raise TrainError(
                f"{self.title}: {problem}; training stops, {self.last_checkpoint_text}",
                hint=f"lower learning_rate, raise warmup_ratio, or use precision bf16 instead of fp16; {RESTART_HINT}",
            )

    @property
    def last_checkpoint_text(self) -> str:
        """Text for error messages: which checkpoint remains."""
        if self.last_checkpoint is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.last_checkpoint}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Record the metrics of the step; log, evaluate and save when due."""
        step, totals = state.global_step, self._step
        seconds = self.totals.add(totals)
        line: dict[str, Any] = {"stage": self.number, "name": self.title, "step": step}
        line |= {"loss": totals.mean_loss, "lr": self._lr}
        if self.grad_norm is not None:
            line["grad_norm"] = self.grad_norm if math.isfinite(self.grad_norm) else None
        line |= {"epoch": self.epochs * step / self.n_steps, "padding": round(totals.padding, 4)}
        line |= {"tokens_per_s": round(totals.n_filled / max(seconds, 1e-9), 1), "seconds": round(seconds, 4)}
        line["rejected"] = totals.n_rejected
        is_last = step >= self.n_steps
        if self.evaluate and (is_last or (self.eval_steps and step % self.eval_steps == 0)):
            line |= self.evaluate(step)
            self.totals.restart_clock()
        self.metrics.add(line)
        self.listener.advance()
        stops_here = self.is_stopping and not is_last
        if is_last or stops_here or step % self.logging_steps == 0 or "eval_rejected" in line:
            self.metrics.flush()
            self._log_line(line)
        if stops_here or (step % self.save_steps == 0 and not is_last):
            control.should_save = True
            control.should_training_stop = stops_here
        return control

    def _record_rejects(self, rejected: list[Rejected]) -> None:
        for one in rejected:
            self.listener.message(f"rejected: {one.source}, record {one.record}: {one.kind}: {one.message}", level=2)
        if self.rejects is not None:
            self.rejects.add(*rejected)

    def _log_line(self, line: dict[str, Any]) -> None:
        n, seconds = self.totals.n_filled - self._logged.n_filled, self.totals.seconds - self._logged.seconds
        padding = 1 - n / max(1, self.totals.n_positions - self._logged.n_positions)
        self._logged = StageTotals(**self.totals.as_dict())
        rate = n / max(seconds, 1e-9)
        loss = "no loss, as all samples were rejected" if line["loss"] is None else f"loss {line['loss']:.4f}"
        text = f"{self.title}: step {line['step']}/{self.n_steps}, {loss}, lr {line['lr']:.2e}"
        text += f", {rate:.0f} tokens/s, {padding:.0%} padding"
        if "eval_loss" in line:
            text += f", held-out loss {line['eval_loss']:.4f}"
        elif "eval_rejected" in line:
            text += ", no held-out loss, as all samples were rejected"
        if remaining := self.n_steps - line["step"]:  # includes the time of evaluations and checkpoints
            step_seconds = (time.perf_counter() - self._start) / (line["step"] - self._first_step)
            text += f", {duration_text(remaining * step_seconds)} left"
        self.listener.message(text)
        if self.report is not None:
            self.report({**line, "of": self.n_steps})
        scalars = {k: v for k, v in line.items() if isinstance(v, float) and k != "epoch" and math.isfinite(v)}
        self.log(scalars | {"tokens_per_s": rate, "padding": padding})


def duration_text(seconds: float) -> str:
    """Format a rough duration: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 36 else f"{hours // 24} d {hours % 24} h"


def _gather(rejected: list[Rejected]) -> list[Rejected]:
    """Return the rejects of all processes, in every process."""
    gathered: list[list[Rejected]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, rejected)
    return [one for part in gathered for one in part]
