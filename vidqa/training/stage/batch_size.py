"""`per_device_batch_size = "auto"`: finds, with accelerate, how many of the longest sequences fit into memory.

A trial is one forward and one backward pass, with memory reserved for the moments of the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from torch import distributed

from vidqa.errors import TrainError
from vidqa.model.video_llava import VideoLlava
from vidqa.training.batching.dataset import Item, TrainingDataset, to_batch
from vidqa.training.distributed import processes, wait_for_all
from vidqa.training.recipe.definition import Stage
from vidqa.training.stage.callbacks import Listener
from vidqa.training.stage.loss import PackedLoss

#: Number of sequences from which the longest one is chosen.
_N_CANDIDATES = 64
_MAX_BATCH_SIZE = 64


def find_per_device_batch_size(model: VideoLlava, data: TrainingDataset, stage: Stage, listener: Listener) -> int:
    """Halve the batch size until a forward and backward pass fits into memory.

    Args:
        model: the model, with gradients enabled for everything that the stage trains.
        data: the longest of its first sequences is repeated to fill the trial batch.
        stage: the first trial uses the share of its `batch_size` that one process has.
        listener: receives a message with the result.

    Returns:
        At least 1; the minimum over all processes.

    Raises:
        TrainError: not even one sequence fits.
    """
    share = max(1, min(_MAX_BATCH_SIZE, stage.global_batch_size // processes()))
    longest = max((data[i] for i in range(min(len(data), _N_CANDIDATES))), key=lambda item: len(item.packed.ids))

    tried: list[int] = []

    @find_executable_batch_size(starting_batch_size=share, reduce_batch_size_fn=lambda: tried[-1] // 2)
    def search(n: int) -> int:
        tried.append(n)
        _try(model, longest, n, data.ignored_tokens)
        return n

    try:
        found = int(search())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise TrainError(
            f"{stage.title}: not even one sequence of {len(longest.packed.ids)} tokens fits into memory",
            hint="hardware.gradient_checkpointing = true, a smaller packing, LoRA, or hardware.fsdp over several GPUs",
        ) from error
    if distributed.is_available() and distributed.is_initialized():
        least = torch.tensor(found, device=model.device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        found = int(least)
    wait_for_all()
    listener.message(f"{stage.title}: per_device_batch_size = {found} fits into memory")
    return found


def _try(model: VideoLlava, item: Item, n: int, ignored_tokens: Sequence[Sequence[int]]) -> None:
    """Run one pass over `n` sequences while memory for the optimizer state is reserved."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    moments: list[Any] = [torch.empty_like(p, dtype=torch.float32) for p in trainable for _ in range(2)]
    rng_state = torch.random.get_rng_state()  # dropout uses random numbers; the training run must not change
    try:
        PackedLoss(model, ignored_tokens)(to_batch([item] * n)["batch"])["loss"].backward()
    finally:
        model.zero_grad(set_to_none=True)
        torch.random.set_rng_state(rng_state)
        moments.clear()
