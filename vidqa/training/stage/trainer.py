"""transformers' Trainer for one stage: packed batches, exact losses, atomic checkpoints, exact resume.

Its inputs are a model, a dataset and the settings of a stage. It trains the model in place and returns the trained
weights. It resumes from the latest checkpoint in its folder.

Scope: no recipe files, corpora or bundles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from vidqa.common.devices import is_out_of_memory
from vidqa.errors import TrainError
from vidqa.model.video_llava import VideoLlava
from vidqa.training.batching.dataset import TrainingDataset, to_batch
from vidqa.training.data.rejects import RejectLog
from vidqa.training.distributed import is_first, training_arguments, wait_for_all
from vidqa.training.recipe.definition import Hardware, Logging, Output, Stage
from vidqa.training.stage import checkpoints
from vidqa.training.stage.batch_size import find_per_device_batch_size
from vidqa.training.stage.callbacks import RESTART_HINT, Interrupted, Listener, Silent, StageCallback
from vidqa.training.stage.loss import PackedLoss
from vidqa.training.stage.memory import enable_gradient_checkpointing, out_of_memory_error, peak_memory_bytes
from vidqa.training.stage.metrics import MetricsFile, StageTotals
from vidqa.training.stage.trainable import (
    checkpoint_bytes,
    load_weights,
    non_finite_weights,
    parameter_groups,
    save_weights,
    set_trainable,
    trained_weights,
)

_WEIGHTS, _REJECTS, _TOTALS = "trained.safetensors", "rejects.parquet", "totals.json"

#: (model as the Trainer wraps it, model, step) -> held-out metrics.
Evaluate = Callable[[Any, VideoLlava, int], dict[str, float]]


@dataclass(frozen=True)
class StageResult:
    """Result of a stage."""

    weights: dict[str, Tensor]  # the trained weights by name; empty in all processes except the first
    names: tuple[str, ...]
    n_steps: int
    n_samples: int
    n_tokens: int  # positions that are not padding
    mean_loss: float | None  # over the steps; None if all samples were rejected
    seconds: float  # including those before a resume
    peak_bytes: int  # memory of the GPU if there is one, otherwise of this process
    per_device: int  # batch size per device


class StageTrainer(Trainer):
    """Trains one stage.

    Args:
        model: modified in place.
        data: the sequences of the stage's plan.
        stage: what to train, and how.
        folder: folder of the checkpoints.
        metrics: receives a line for every step.
        listener: receives messages and progress.
        rejects: receives rejected samples; None only counts them.
        number: number of the stage, from 1.
        hardware: precision, sharding and data loading.
        output: how often to save, and how many checkpoints to keep.
        logging: how often to log, and where.
        seed: seed for dropout.
        device: device to train on, if a model that will be sharded is not there yet; None is the model's device.
        evaluate: computes the held-out metrics; None never evaluates.
        eval_steps: steps between two evaluations; None evaluates only at the end of the stage.
        report: receives the metrics of every `logging_steps`-th step.
        should_stop: returns True if the run is asked to save a checkpoint and stop; called once per step.

    Raises:
        UsageError: the model lacks a part that the stage trains, or the processes cannot share the batch.
        TrainError: not even one sequence fits into memory.
    """

    optimizer: Any

    def __init__(
        self,
        model: VideoLlava,
        data: TrainingDataset,
        stage: Stage,
        folder: Path,
        *,
        metrics: MetricsFile,
        listener: Listener | None = None,
        rejects: RejectLog | None = None,
        number: int = 1,
        hardware: Hardware | None = None,
        output: Output | None = None,
        logging: Logging | None = None,
        seed: int = 0,
        device: str | None = None,
        evaluate: Evaluate | None = None,
        eval_steps: int | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        listener, hardware = listener or Silent(), hardware or Hardware()
        output, logging = output or Output(), logging or Logging()
        if hardware.gradient_checkpointing:
            enable_gradient_checkpointing(model.llm)
        self.names = tuple(set_trainable(model, stage))
        per_device = stage.per_device_batch_size
        if per_device == "auto":
            per_device = find_per_device_batch_size(model, data, stage, listener)
        super().__init__(
            model=PackedLoss(model, data.ignored_tokens),
            args=training_arguments(
                stage,
                n_steps=data.plan.n_steps,
                per_device_batch_size=per_device,
                hardware=hardware,
                logging=logging,
                seed=seed,
                folder=folder,
                device=torch.device(device) if device else model.device,
            ),
            train_dataset=data,
            data_collator=to_batch,
        )
        self.video_llava, self.stage, self.folder = model, stage, folder
        self.save_total_limit = output.save_total_limit
        self.callback = StageCallback(
            number=number,
            title=stage.title,
            plan=data.plan,
            logging_steps=logging.logging_steps,
            save_steps=output.save_steps,
            eval_steps=eval_steps,
            metrics=metrics,
            rejects=rejects,
            listener=listener,
            evaluate=(lambda step: evaluate(self.model_wrapped, model, step)) if evaluate else None,
            log=self.log,
            report=report,
            should_stop=should_stop,
        )
        self._part: Path | None = None  # temporary folder of the checkpoint that is being written
        # The losses are already divided by the targets of the whole step; both settings keep the Trainer from
        # dividing again.
        self.loss_is_scaled_for_ga, self.compute_loss_func = True, _already_divided
        self.add_callback(self.callback)
        self.remove_callback(PrinterCallback)  # it writes to stdout, which is reserved for results

    def run(self) -> StageResult:
        """Train from the latest checkpoint, or from the start, to the end of the stage.

        Afterwards the model is in evaluation mode, without gradients.

        Raises:
            TrainError: the loss is not finite, disk or memory is full, or too many samples are rejected.
            Interrupted: the run was asked to stop, and has saved a checkpoint.
        """
        callback, n_steps = self.callback, self.callback.n_steps
        if is_first():
            checkpoints.remove_incomplete(self.folder)
        found = checkpoints.list_checkpoints(self.folder)
        step, checkpoint = found[-1] if found else (0, None)
        self._restore_logs(step, checkpoint)
        self.video_llava.train()
        try:
            with callback.listener.progress(n_steps, "step", step, phase="train"):
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory_error(self.stage, self.args.per_device_train_batch_size, error) from error
        finally:
            with suppress(OSError):  # a full disk, which the error that ended the run reports
                callback.metrics.flush()
        if callback.is_stopping and self.state.global_step < n_steps:
            callback.listener.message(
                f"{self.stage.title}: stopped after step {self.state.global_step}, saved {callback.last_checkpoint}; "
                "run the same command again to resume"
            )
            raise Interrupted
        weights = self.weights()
        if self.args.deepspeed:
            unset_hf_deepspeed_config()  # otherwise transformers would load the next model sharded (ZeRO-3)
        self.video_llava.eval().requires_grad_(False)
        totals = callback.totals
        return StageResult(
            weights if is_first() else {},
            self.names,
            n_steps,
            totals.n_samples,
            totals.n_filled,
            totals.mean_loss,
            totals.seconds,
            peak_memory_bytes(),
            int(self.args.per_device_train_batch_size),
        )

    def _restore_logs(self, step: int, checkpoint: Path | None) -> None:
        """Set metrics, rejects and totals back to those of the checkpoint to resume from."""
        callback = self.callback
        if checkpoint is not None:
            try:
                callback.totals = StageTotals(**json.loads((checkpoint / _TOTALS).read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise TrainError(f"{checkpoint / _TOTALS} cannot be read: {error}") from error
            callback.last_checkpoint = str(checkpoint)
        callback.metrics.truncate(callback.number, step if checkpoint else -1)  # step 0 is the evaluation before it
        if callback.rejects is not None:
            callback.rejects.restore(checkpoint / _REJECTS if checkpoint else None)
        if checkpoint is not None:
            callback.listener.message(f"{self.stage.title}: resuming from step {step}")

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # the plan is already in random order

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        n = torch.tensor(sum(b["batch"].n_targets for b in batch_samples), dtype=torch.float64, device=device)
        if self.args.world_size > 1:
            distributed.all_reduce(n)
        return n.clamp(min=1)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Divide the summed loss by the targets of the whole step.

        It is multiplied by the number of processes, because gradients are averaged over them.
        """
        loss = model(**inputs)["loss"]
        self.callback.add_batch(inputs["batch"], loss)
        scaled = (loss / num_items_in_batch * self.args.world_size).to(loss.dtype)
        return (scaled, {}) if return_outputs else scaled

    def create_optimizer(self, model: Any = None) -> Any:
        """Create AdamW with the parameter groups of the stage."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(parameter_groups(model or self.model, self.stage), **settings)
        return self.optimizer

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.callback.grad_norm = None if norm is None else float(norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the Trainer's checkpoint under a temporary name and rename it when it is complete."""
        step, callback = self.state.global_step, self.callback
        self._part = checkpoints.temporary_path(self.folder, step)
        inside = self._part / f"checkpoint-{step}"
        what = f"the checkpoint of step {step}"
        if self.is_world_process_zero():
            checkpoints.require_disk_space(self.folder, checkpoint_bytes(self.model), what)
            if bad := non_finite_weights(self.model):
                raise TrainError(
                    f"{self.stage.title}: some weights are not finite ({', '.join(bad[:3])}); not saved, "
                    f"{callback.last_checkpoint_text}",
                    hint=f"lower learning_rate or raise warmup_ratio; {RESTART_HINT}",
                )
        with checkpoints.removed_if_disk_full(self._part, what):
            super()._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                (inside / _TOTALS).write_text(json.dumps(callback.totals.as_dict()))
                if callback.rejects is not None:
                    callback.rejects.save(inside / _REJECTS)
        wait_for_all()
        if self.is_world_process_zero():
            callback.metrics.flush()
            published = checkpoints.publish(inside, self.folder, step, self.save_total_limit)
            callback.last_checkpoint = str(published)
            self._part.rmdir()
        self._part = None
        wait_for_all()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._part or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save only the trainable parameters: all others are those of the base."""
        if not self.args.should_save:
            return
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        save_weights(self.weights(state_dict), target / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            unwrapped = self.accelerator.unwrap_model(model or self.model).model
            load_weights(unwrapped, Path(resume_from_checkpoint, _WEIGHTS))

    def weights(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the trainable parameters by their names in the VideoLlava, gathered if the model is sharded."""
        if state_dict is None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            state_dict = self.accelerator.get_state_dict(self.model_wrapped)
        if state_dict is None:
            return trained_weights(self.accelerator.unwrap_model(self.model).model, self.names)
        if not self.is_world_process_zero():
            return {}  # shards are gathered in the first process only
        return {name: state_dict[f"model.{name}"].cpu().contiguous() for name in self.names}


def _already_divided(*_: Any, **__: Any) -> None:
    """Placeholder for a loss function of the Trainer: `compute_loss` computes the loss."""
