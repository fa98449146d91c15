"""Memory of a stage: gradient checkpointing, peak usage, and advice when memory runs out."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from vidqa.errors import TrainError
from vidqa.training.recipe.definition import Stage


def enable_gradient_checkpointing(llm: Any) -> None:
    """Recompute activations in the backward pass instead of storing them.

    The non-reentrant variant also works if the embeddings need no gradient.
    """
    settings = {"use_reentrant": False}
    if hasattr(llm, "activation_checkpointing_enable"):  # the name in later releases of transformers 5
        llm.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def peak_memory_bytes() -> int:
    """Return the peak memory so far in bytes: of the GPU if there is one, otherwise of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def out_of_memory_error(stage: Stage, batch_size: int, error: RuntimeError) -> TrainError:
    """Return the error for a stage that does not fit into memory, with settings that reduce its memory.

    Args:
        stage: the stage that ran out of memory.
        batch_size: sequences per forward pass.
        error: the error that torch raised.
    """
    lower = "per_device_batch_size is 1 already"
    if batch_size > 1:
        lower = f"lower per_device_batch_size (now {batch_size})"
    settings = [lower, *([f"lower packing (now {stage.packing})"] if stage.packing > 1 else [])]
    settings += [
        "hardware.gradient_checkpointing = true",
        "LoRA instead of full training",
        "hardware.fsdp over several GPUs",
    ]
    reason = str(error).splitlines()[0]
    return TrainError(f"{stage.title}: out of memory: {reason}\n  in the recipe: {'; '.join(settings)}")
