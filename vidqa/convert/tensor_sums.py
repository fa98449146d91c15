"""Tensors that are not stored as they are used: a table grown by rows, a difference to another model.

Knows tensors to come (`LazyTensor`). Does not know names of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidqa.convert.lazy_tensors import LazyTensor


@dataclass(frozen=True)
class Grown:
    """A table [N, D] with `n_rows` more at its end, each the mean of those that were there."""

    base: LazyTensor
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.base.shape[0] + self.n_rows, *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def label(self) -> str:
        return f"{self.base.label}, grown by {self.n_rows} rows"

    def read(self) -> Tensor:
        table = self.base.read()
        mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
        return torch.cat([table, mean.expand(self.n_rows, *table.shape[1:])])


@dataclass(frozen=True)
class Difference:
    """What was published as a difference: `delta` plus `base`, which may have fewer rows and columns."""

    delta: LazyTensor
    base: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.delta.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.delta.dtype

    @property
    def label(self) -> str:
        return f"{self.delta.label} + {self.base.label}"

    def read(self) -> Tensor:
        delta, base = self.delta.read(), self.base.read()
        # In float32, rounded once: for two float16 numbers that is what adding them in float16 gives.
        summed = delta.float()
        summed[tuple(slice(n) for n in base.shape)] += base.float()
        return summed.to(delta.dtype)
