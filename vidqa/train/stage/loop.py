"""One stage: a model, sequences and the words of the stage -> the same model, tuned, and its weights that learned.

Goes on from the last whole checkpoint where there is one. Knows the Trainer; does not know bundles, features or files
of conversations.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from vidqa.common.devices import is_out_of_memory
from vidqa.errors import TrainError
from vidqa.model.video_llava import VideoLlava
from vidqa.train.batching.dataset import TrainingDataset, to_batch
from vidqa.train.data import RejectLog
from vidqa.train.distributed import RunConfig, arguments, is_first
from vidqa.train.recipe.definition import Stage
from vidqa.train.stage import checkpoints
from vidqa.train.stage.batch_size import find_per_device
from vidqa.train.stage.callbacks import GO_ON, Interrupted, Intervals, Listener, StageCallback, StageProgress
from vidqa.train.stage.loss import PackedLoss
from vidqa.train.stage.metrics import MetricsFile
from vidqa.train.stage.trainable import choose
from vidqa.train.stage.trainer import REJECTS, StageTrainer

#: Gives the held-out figures of a step; hears the model as it is wrapped, and as it is.
Evaluate = Callable[[Any, VideoLlava, int], dict[str, float]]


@dataclass(frozen=True)
class StageContext:
    """What a stage works with beside model and data."""

    folder: Path  # for checkpoints; they are looked for here, too
    listener: Listener
    metrics: MetricsFile
    common: RunConfig = field(default_factory=RunConfig)
    rejects: RejectLog | None = None
    evaluate: Evaluate | None = None
    eval_every: int | None = None
    report: Callable[[dict[str, Any]], None] | None = None  # hears the line of every `logging.every`-th step
    number: int = 1  # of the stage
    stopping: Callable[[], bool] = lambda: False  # whether somebody wants the run to stop at a checkpoint
    device: str | None = None  # to compute on, where the model does not lie yet if it is cut up; None: where it lies


@dataclass(frozen=True)
class StageResult:
    """What came of a stage."""

    weights: dict[str, Tensor]  # those that learned, by name; empty in all processes but the first
    names: tuple[str, ...]
    n_steps: int
    n_samples: int
    n_tokens: int
    mean_loss: float  # over the steps
    seconds: float  # over all parts of a broken run
    peak_bytes: int  # of this process, of the GPU where there is one
    per_device: int


def run_stage(model: VideoLlava, data: TrainingDataset, stage: Stage, around: StageContext) -> StageResult:
    """Tune.

    Args:
        model: changed in place; in evaluation mode, without gradients, afterwards.
        data: the sequences of the stage's plan.
        stage: what to train, and how.
        around: folder, metrics, listeners.

    Raises:
        TrainError: the loss is no number, there is no room or no memory, or too many samples are bad.
        Interrupted: the run was asked to stop; a checkpoint of the last step is there.
        UsageError: the model lacks a part that the stage trains, or processes cannot share the batch.
    """
    if around.common.hardware.gradient_checkpointing:
        _save_memory(model.llm)
    names = choose(model, stage)
    per_device = (
        find_per_device(model, data, stage, around.listener) if stage.per_device == "auto" else stage.per_device
    )
    trainer = _trainer(model, data, stage, around, names, per_device)
    if is_first():
        checkpoints.clear_parts(around.folder)
    found = checkpoints.found_in(around.folder)
    start = _resume(trainer, found[-1], around) if found else None
    if start is None:
        around.metrics.take_back(around.number, 0)
        if around.rejects is not None:
            around.rejects.take_back(None)
    model.train()
    try:
        with around.listener.progress(data.plan.n_steps, "step", found[-1][0] if found else 0):
            trainer.train(resume_from_checkpoint=start)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainError(*_too_big(stage, trainer.args, error)) from error
    finally:
        with suppress(OSError):  # a full disk: what ended the run says so
            around.metrics.flush()
    watch, step = trainer.watch, trainer.state.global_step
    if watch.is_stopping and step < data.plan.n_steps:
        around.listener.say(f"{stage.title}: stopped after step {step}, {watch.last_good}; {GO_ON}")
        raise Interrupted
    weights = trainer.weights()
    if around.common.hardware.deepspeed:
        unset_hf_deepspeed_config()  # as long as transformers knows it, the next model is loaded in pieces (ZeRO-3)
    model.eval().requires_grad_(False)
    totals = trainer.watch.totals
    return StageResult(
        weights if is_first() else {},
        tuple(names),
        data.plan.n_steps,
        totals.n_samples,
        totals.n_filled,
        totals.loss / max(1, totals.n_steps),
        totals.seconds,
        peak_bytes(),
        int(trainer.args.per_device_train_batch_size),
    )


def _save_memory(llm: Any) -> None:
    """Compute activations twice instead of keeping them; the way that also works where embeddings need no gradient."""
    ways = {"use_reentrant": False}
    if hasattr(llm, "activation_checkpointing_enable"):  # the name of later releases of transformers 5
        llm.activation_checkpointing_enable(activation_checkpointing_kwargs=ways)
    else:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=ways)


def _trainer(
    model: VideoLlava, data: TrainingDataset, stage: Stage, around: StageContext, names: list[str], per_device: int
) -> StageTrainer:
    common = around.common
    rhythm = Intervals(common.logging.every, common.output.save_every, around.eval_every)
    course = StageProgress(around.number, stage.title, data.plan.n_steps, data.plan.epochs)
    watch = StageCallback(course, rhythm, around.metrics, around.rejects, around.listener, around.stopping)
    device = torch.device(around.device) if around.device else model.device
    trainer = StageTrainer(
        stage=stage,
        names=names,
        watch=watch,
        keep=common.output.keep,
        model=PackedLoss(model, data.left_out),
        args=arguments(stage, common, data.plan.n_steps, per_device, around.folder, device),
        train_dataset=data,
        data_collator=to_batch,
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for results
    watch.report = around.report
    if around.evaluate is not None:
        evaluate = around.evaluate
        watch.evaluate = lambda step: evaluate(trainer.model_wrapped, model, step)
    return trainer


def _resume(trainer: StageTrainer, found: tuple[int, Path], around: StageContext) -> str:
    """Get ready to go on from a checkpoint."""
    step, checkpoint = found
    trainer.resume_totals(checkpoint)
    trainer.watch.last_good = str(checkpoint)
    around.metrics.take_back(around.number, step)
    if around.rejects is not None:
        around.rejects.take_back(checkpoint / REJECTS)
    around.listener.say(f"{trainer.stage.title}: going on from step {step}")
    return str(checkpoint)


def _too_big(stage: Stage, args: Any, error: RuntimeError) -> tuple[str]:
    """What to lower."""
    at_once = args.per_device_train_batch_size
    lower = [f"per_device (now {at_once})" if at_once > 1 else "batch_size is at 1 per process already"]
    if stage.packing > 1:
        lower.append(f"packing (now {stage.packing})")
    tries = (
        "; or hardware.gradient_checkpointing = true, LoRA in place of a full stage, hardware.fsdp over several GPUs"
    )
    first = str(error).splitlines()[0]
    return (f"{stage.title}: out of memory: {first}\n  lower in the recipe: {', '.join(lower)}{tries}",)


def peak_bytes() -> int:
    """Most memory held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Silent:
    """A listener for calls from Python that want no messages."""

    def say(self, text: str, *, level: int = 1) -> None:
        """Say nothing."""

    def progress(self, total: int, unit: str, done: int = 0) -> Any:
        """No bar."""
        from contextlib import nullcontext

        return nullcontext()

    def advance(self, n: int = 1) -> None:
        """Nothing to move."""
