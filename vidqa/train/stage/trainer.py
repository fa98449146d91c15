"""transformers' Trainer for packed batches: exact losses, whole checkpoints, and nothing on stdout.

Knows the Trainer's ways. Does not know recipes as files, data or bundles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer

from vidqa.errors import TrainError
from vidqa.train.distributed import wait_for_all
from vidqa.train.recipe.definition import Stage
from vidqa.train.stage import checkpoints
from vidqa.train.stage.callbacks import ANEW, StageCallback
from vidqa.train.stage.metrics import Totals
from vidqa.train.stage.trainable import load_weights, parameter_groups, save_weights, trained_weights

WEIGHTS = "trained.safetensors"
REJECTS = "rejects.parquet"
_TOTALS = "totals.json"


class StageTrainer(Trainer):
    """Trainer of one stage.

    Args:
        stage: for the optimizer's groups.
        names: of the weights that learn, by the names that they have in the VideoLlava.
        watch: hears of every micro-batch.
        keep: checkpoints that stay.
        model: a PackedLoss; the rest goes to the Trainer.
    """

    optimizer: Any

    def __init__(self, *, stage: Stage, names: Sequence[str], watch: StageCallback, keep: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage, self.names, self.watch, self.keep = stage, tuple(names), watch, keep
        self._part: Path | None = None
        # The losses come divided already by the tokens of the whole step; these two keep the Trainer from doing more.
        self.loss_is_scaled_for_ga, self.compute_loss_func = True, _divided
        watch.log = self.log
        self.add_callback(watch)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # the plan has its order already

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        n = torch.tensor(sum(b["batch"].n_learned for b in batch_samples), dtype=torch.float64, device=device)
        if self.args.world_size > 1:
            distributed.all_reduce(n)
        return n.clamp(min=1)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed loss over the tokens of the whole step; times the processes, over which gradients are averaged."""
        loss = model(**inputs)["loss"]
        self.watch.take(inputs["batch"], loss)
        scaled = (loss / num_items_in_batch * self.args.world_size).to(loss.dtype)
        return (scaled, {}) if return_outputs else scaled

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with the stage's groups."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(parameter_groups(model or self.model, self.stage), **settings)
        return self.optimizer

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.watch.grad_norm = None if norm is None else float(norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's own checkpoint, under a temporary name until it is whole."""
        folder, step = Path(self.args.output_dir), self.state.global_step
        self._part = checkpoints.part_folder(folder, step)
        what = f"the checkpoint of step {step}"
        if self.is_world_process_zero():
            checkpoints.need_room(folder, self.checkpoint_bytes(), what)
            self._check_weights()
        with checkpoints.explained(self._part, what):
            super()._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                inside = self._part / f"checkpoint-{step}"
                (inside / _TOTALS).write_text(json.dumps(self.watch.totals.as_dict()))
                if self.watch.rejects is not None:
                    self.watch.rejects.save(inside / REJECTS)
        wait_for_all()
        if self.is_world_process_zero():
            inside = self._part / f"checkpoint-{step}"
            self.watch.metrics.flush()
            self.watch.last_good = str(checkpoints.settle(inside, folder, step, self.keep))
            self._part.rmdir()
        self._part = None
        wait_for_all()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._part or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Only what learns: the rest is in the base, and does not change."""
        if not self.args.should_save:
            return
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        save_weights(self.weights(state_dict), target / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(
                self.accelerator.unwrap_model(model or self.model).model, Path(resume_from_checkpoint, WEIGHTS)
            )

    def resume_totals(self, checkpoint: Path) -> None:
        """Take up the counts of an earlier part of the run."""
        try:
            self.watch.totals = Totals(**json.loads((checkpoint / _TOTALS).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise TrainError(f"{checkpoint / _TOTALS} cannot be read: {error}") from error

    def weights(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights that learn, by the names of the VideoLlava, gathered where they lie in pieces."""
        if state_dict is None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            state_dict = self.accelerator.get_state_dict(self.model_wrapped)
        if state_dict is None:
            return trained_weights(self.accelerator.unwrap_model(self.model).model, self.names)
        if not self.is_world_process_zero():
            return {}  # pieces are put together in the first process alone
        return {name: state_dict[f"model.{name}"].cpu().contiguous() for name in self.names}

    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes: the weights that learn and AdamW's two moments of them, with a little to spare."""
        learn = [p for p in self.model.parameters() if p.requires_grad]
        # Under ZeRO-3 a weight itself is empty, and knows how large it is as a whole.
        return int(1.05 * sum(getattr(p, "ds_numel", p.numel()) * (p.element_size() + 8) for p in learn)) + (1 << 20)

    def _check_weights(self) -> None:
        if bad := [n for n, p in self.model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]:
            kept = (
                f"the last good checkpoint is {self.watch.last_good}" if self.watch.last_good else "none is there yet"
            )
            raise TrainError(
                f"{self.watch.course.title}: weights are no numbers any more ({', '.join(bad[:3])}); not saved, {kept}",
                hint=f"a lower lr or more warmup; {ANEW}",
            )


def _divided(*_: Any, **__: Any) -> None:
    """Stands for a loss function in the Trainer's eyes; `compute_loss` does the work."""
