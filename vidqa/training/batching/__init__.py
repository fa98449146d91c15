"""Batching: a corpus of samples -> padded batches of packed sequences.

Reading order: sampler.py (which samples each step sees, in which order), packing.py (conversations about the same
media share one sequence; padding; attention mask), dataset.py (reads samples and features, tokenizes, packs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.training.batching.dataset import TrainingBatch, TrainingDataset
    from vidqa.training.batching.sampler import BatchPlan, plan_batches

__all__ = ["BatchPlan", "TrainingBatch", "TrainingDataset", "plan_batches"]

__getattr__ = lazy_exports(
    __name__,
    {"BatchPlan": "sampler", "TrainingBatch": "dataset", "TrainingDataset": "dataset", "plan_batches": "sampler"},
)
