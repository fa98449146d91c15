"""Tensors of a new model that are read only when they are written; their shapes and dtypes are available earlier.

A tensor is stored in a checkpoint as it is, or computed from stored ones: a LoRA merged into its base, delta weights
added to their base, an embedding table with more rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidqa.conversion.sources import WeightSource

#: Buffers that old versions of transformers saved with the weights; all of them follow from the configuration.
IGNORED_KEYS = (r"(.*\.)?rotary_emb\.inv_freq", r"(.*\.)?embeddings\.position_ids")


class LazyTensor(Protocol):
    """A tensor that has not been read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that `read` returns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor that `read` returns."""
        ...

    @property
    def label(self) -> str:
        """File and key, for messages."""
        ...

    def read(self) -> Tensor:
        """Read or compute the values into memory of their own."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a checkpoint stores it."""

    source: WeightSource
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return self.source.tensors[self.key].shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in the file."""
        return self.source.tensors[self.key].dtype

    @property
    def label(self) -> str:
        """File and key."""
        return f"{self.source.tensors[self.key].file}: {self.key}"

    def read(self) -> Tensor:
        """Read the tensor from its file."""
        return self.source.read(self.key)


@dataclass(frozen=True)
class LoraMerged:
    """A weight [O, I] with a LoRA merged in: base + scale * B @ A, computed in float32; A is [r, I] and B is [O, r]."""

    base: LazyTensor
    a: LazyTensor
    b: LazyTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base weight."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base weight."""
        return self.base.dtype

    @property
    def label(self) -> str:
        """Labels of the base weight and of A."""
        return f"{self.base.label} + {self.a.label}"

    def read(self) -> Tensor:
        """Read the three tensors and merge them."""
        update = self.b.read().float() @ self.a.read().float()
        return update.mul_(self.scale).add_(self.base.read()).to(self.dtype)


@dataclass(frozen=True)
class ResizedEmbedding:
    """An embedding table [N, D] with `n_rows` rows appended, each the mean of the existing rows."""

    base: LazyTensor
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[N + n_rows, D]."""
        return (self.base.shape[0] + self.n_rows, *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the table."""
        return self.base.dtype

    @property
    def label(self) -> str:
        """Label of the table."""
        return f"{self.base.label}, with {self.n_rows} more rows"

    def read(self) -> Tensor:
        """Read the table and append the rows."""
        table = self.base.read()
        mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
        return torch.cat([table, mean.expand(self.n_rows, *table.shape[1:])])


@dataclass(frozen=True)
class DeltaApplied:
    """Weights published as a delta: `delta` plus `base`, which may have fewer rows and columns."""

    delta: LazyTensor
    base: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the delta."""
        return self.delta.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the delta."""
        return self.delta.dtype

    @property
    def label(self) -> str:
        """Labels of both tensors."""
        return f"{self.delta.label} + {self.base.label}"

    def read(self) -> Tensor:
        """Read both tensors and add them."""
        delta, base = self.delta.read(), self.base.read()
        # Computed in float32 and rounded once: for float16 inputs this equals a float16 addition.
        total = delta.float()
        total[tuple(slice(n) for n in base.shape)] += base.float()
        return total.to(delta.dtype)


def total_bytes(tensors: Iterable[LazyTensor]) -> int:
    """Return the total size of tensors in bytes, in the dtypes of the checkpoint."""
    return sum(torch.Size(tensor.shape).numel() * tensor.dtype.itemsize for tensor in tensors)


class StateDict:
    """The keys of a source, removed as parts of the model take them; the keys that remain are unexpected.

    Args:
        source: the weights.
        ignored: regular expressions of whole keys that may remain without an error.
    """

    def __init__(self, source: WeightSource, ignored: Sequence[str] = IGNORED_KEYS) -> None:
        self.source = source
        patterns = [re.compile(p) for p in ignored]
        self._remaining = dict.fromkeys(k for k in source.tensors if not any(p.fullmatch(k) for p in patterns))

    def pop_prefix(self, *prefixes: str) -> dict[str, LazyTensor]:
        """Remove and return the tensors under the first prefix that has any, keyed without the prefix."""
        for prefix in prefixes:
            keys = [k for k in self._remaining if k.startswith(prefix)]
            if keys:
                for key in keys:
                    del self._remaining[key]
                return {key[len(prefix) :]: StoredTensor(self.source, key) for key in keys}
        return {}

    def unexpected_keys(self) -> list[str]:
        """Return one message for every key that remains."""
        return [f"{self.source.tensors[key].file}: {key}: unexpected key" for key in self._remaining]


def add_prefix(tensors: Mapping[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return the same tensors with a prefix before their keys."""
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
