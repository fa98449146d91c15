"""What happens beside the steps: counts, metrics, evaluation, the moment to save, and reasons to stop.

Hears from the Trainer. Does not compute losses and does not write checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback

from vidqa.errors import TrainError
from vidqa.train.data import Rejected, RejectLog
from vidqa.train.metrics import MetricsFile, StepTally, Totals, summed
from vidqa.train.sequences import Batch

ANEW = "with another recipe a run begins anew: --resume never, or another --out"


class Listener(Protocol):
    """Who hears what a run has to say; the pipeline's Reporter is one."""

    def say(self, text: str, *, level: int = 1) -> None: ...
    def progress(self, total: int, unit: str) -> AbstractContextManager[None]: ...
    def advance(self, n: int = 1) -> None: ...


@dataclass(frozen=True)
class Rhythm:
    """After how many steps what happens; None means never before the end."""

    log: int = 10
    save: int | None = None
    evaluate: int | None = None


class Watch(TrainerCallback):
    """One stage under way.

    Args:
        number: of the stage, from 1.
        title: of the stage, for messages.
        n_steps: of the whole stage.
        epochs: that these steps cover.
        rhythm: when to log, save and evaluate.
        metrics: gets a line for every step.
        rejects: hears of samples that were left out, and stops the run when they are too many; None only counts.
        listener: hears what people want to know.
    """

    def __init__(
        self,
        number: int,
        title: str,
        n_steps: int,
        epochs: float,
        rhythm: Rhythm,
        metrics: MetricsFile,
        rejects: RejectLog | None,
        listener: Listener,
    ) -> None:
        self.number, self.title, self.n_steps, self.epochs, self.rhythm = number, title, n_steps, epochs, rhythm
        self.metrics, self.rejects, self.listener = metrics, rejects, listener
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
        self._rate, self._since = Totals(), 0

    def take(self, batch: Batch, loss: Tensor) -> None:
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
        self.totals.since = Totals().since
        self.listener.advance(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up what all processes saw, and stop before a step that would spoil the weights."""
        self._lr = float(kwargs["optimizer"].param_groups[-1]["lr"])
        values = torch.tensor(self._local.values(), dtype=torch.float64, device=args.device)
        if self._loss is not None:
            values[0] = self._loss
        if args.world_size > 1:
            distributed.all_reduce(values)
        self.tally = summed(values.tolist())
        rejected, self._loss, self._local, self._rejected = self._rejected, None, StepTally(), []
        if self.tally.n_rejected:
            self._note(_of_all(rejected) if args.world_size > 1 else rejected)
        if not self.tally.is_finite:
            self.metrics.flush()
            kept = f"the last good checkpoint is {self.last_good}" if self.last_good else "there is no checkpoint yet"
            raise TrainError(
                f"{self.title}: the loss of step {state.global_step + 1} is {self.tally.loss}; training stops, {kept}",
                hint=f"a lower lr, more warmup, or precision bf16 in place of fp16; {ANEW}",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Write down the step; every so often say it, evaluate, save."""
        step, tally = state.global_step, self.tally
        seconds = self.totals.add(tally)
        line: dict[str, Any] = {"stage": self.number, "name": self.title, "step": step}
        line |= {"loss": tally.mean_loss, "lr": self._lr}
        line |= {"epoch": self.epochs * step / self.n_steps, "padding": round(tally.padding, 4)}
        line |= {"tokens_per_s": round(tally.n_filled / max(seconds, 1e-9), 1), "seconds": round(seconds, 4)}
        line["rejected"] = tally.n_rejected
        is_last = step >= self.n_steps
        if self.evaluate and (is_last or (self.rhythm.evaluate and step % self.rhythm.evaluate == 0)):
            line |= self.evaluate(step)
            self.totals.since = Totals().since  # evaluation is no training
        self.metrics.add(line)
        self.listener.advance()
        if is_last or step % self.rhythm.log == 0 or "eval_loss" in line:
            self.metrics.flush()
            self._say(line)
        if self.rhythm.save and step % self.rhythm.save == 0 and not is_last:
            control.should_save = True
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
        text = f"{self.title}: step {line['step']}/{self.n_steps}, loss {line['loss']:.4f}, lr {line['lr']:.2e}"
        text += f", {rate:.0f} tokens/s, {padding:.0%} padding"
        if "eval_loss" in line:
            text += f", held-out loss {line['eval_loss']:.4f}"
        self.listener.say(text)
        if self.report is not None:
            self.report({**line, "of": self.n_steps})
        if self.log is not None:
            shown = {k: v for k, v in line.items() if isinstance(v, float) and k != "epoch" and math.isfinite(v)}
            self.log(shown | {"tokens_per_s": rate, "padding": padding})


def _of_all(rejected: list[Rejected]) -> list[Rejected]:
    """The rejects of all processes, in each of them."""
    gathered: list[list[Rejected]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, rejected)
    return [one for part in gathered for one in part]
