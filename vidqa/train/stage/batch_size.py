"""How many sequences fit a device at once: tried out with accelerate, on the longest of them.

Knows memory errors. Does not know the Trainer: a trial is one forward and one backward pass, with room kept for the
optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from torch import distributed

from vidqa.errors import TrainError
from vidqa.model.video_llava import VideoLlava
from vidqa.train.batching.dataset import Item, TrainingDataset, to_batch
from vidqa.train.distributed import processes, wait_for_all
from vidqa.train.recipe.definition import Stage
from vidqa.train.stage.callbacks import Listener
from vidqa.train.stage.loss import PackedLoss

#: Sequences looked at to find a long one.
_LOOKED_AT = 64
_MOST = 64


def find_per_device(model: VideoLlava, data: TrainingDataset, stage: Stage, listener: Listener) -> int:
    """Halve the number of sequences until a pass fits.

    Args:
        model: what the stage trains needs gradients already.
        data: its sequences; the longest of the first ones is taken several times over.
        stage: the largest number tried is the process's whole share of a batch.
        listener: hears what was found.

    Returns:
        At least 1; the least of all processes.

    Raises:
        TrainError: not even one fits.
    """
    each = max(1, min(_MOST, stage.global_batch // processes()))
    longest = max((data[i] for i in range(min(len(data), _LOOKED_AT))), key=lambda item: len(item.packed.ids))

    tried: list[int] = []

    @find_executable_batch_size(starting_batch_size=each, reduce_batch_size_fn=lambda: tried[-1] // 2)
    def search(n: int) -> int:
        tried.append(n)
        _try(model, longest, n, data.left_out)
        return n

    try:
        found = int(search())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise TrainError(
            f"{stage.title}: not even one sequence of {len(longest.packed.ids)} positions fits the memory",
            hint="hardware.gradient_checkpointing = true, a smaller packing, LoRA, or hardware.fsdp over several GPUs",
        ) from error
    if distributed.is_available() and distributed.is_initialized():
        least = torch.tensor(found, device=model.device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        found = int(least)
    wait_for_all()
    listener.say(f"{stage.title}: {found} sequences at once fit each process")
    return found


def _try(model: VideoLlava, item: Item, n: int, left_out: Sequence[Sequence[int]]) -> None:
    """One pass over `n` sequences, beside room for the gradients' companions."""
    learn = [p for p in model.parameters() if p.requires_grad]
    moments: list[Any] = [torch.empty_like(p, dtype=torch.float32) for p in learn for _ in range(2)]
    state = torch.random.get_rng_state()  # dropout draws; the run must not notice
    try:
        PackedLoss(model, left_out)(to_batch([item] * n)["batch"])["loss"].backward()
    finally:
        model.zero_grad(set_to_none=True)
        torch.random.set_rng_state(state)
        moments.clear()
