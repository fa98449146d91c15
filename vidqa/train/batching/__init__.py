"""Batching: a corpus of samples -> padded batches of packed sequences.

Reading order: sampler.py (which samples each step sees, in which order), packing.py (conversations about the same
media share one sequence; padding; attention mask), dataset.py (reads samples and features, tokenizes, packs).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.train.batching.dataset import TrainingBatch, TrainingDataset
    from vidqa.train.batching.sampler import BatchPlan, plan_batches

__all__ = ["BatchPlan", "TrainingBatch", "TrainingDataset", "plan_batches"]

_MODULES = {"BatchPlan": "sampler", "TrainingBatch": "dataset", "TrainingDataset": "dataset", "plan_batches": "sampler"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
