"""Where the weights of a new part come from: shape and type now, the values when they are written.

Knows tensors of a source and small sums over them. Does not know names of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidqa.convert.sources import WeightSource

#: Buffers that old versions of transformers saved with the weights; all of them follow from the configuration.
HARMLESS = (r"(.*\.)?rotary_emb\.inv_freq", r"(.*\.)?embeddings\.position_ids")


class LazyTensor(Protocol):
    """A tensor to come."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that `read` gives."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor that `read` gives."""
        ...

    @property
    def label(self) -> str:
        """Where it comes from, for messages."""
        ...

    def read(self) -> Tensor:
        """The values, in memory of their own."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor as a checkpoint holds it."""

    source: WeightSource
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.tensors[self.key].shape

    @property
    def dtype(self) -> torch.dtype:
        return self.source.tensors[self.key].dtype

    @property
    def label(self) -> str:
        return f"{self.source.tensors[self.key].file}: {self.key}"

    def read(self) -> Tensor:
        return self.source.read(self.key)


@dataclass(frozen=True)
class LowRank:
    """A weight [O, I] with a LoRA folded in: base + scale * B @ A, summed in float32. A is [r, I], B is [O, r]."""

    base: LazyTensor
    a: LazyTensor
    b: LazyTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def label(self) -> str:
        return f"{self.base.label} + {self.a.label}"

    def read(self) -> Tensor:
        step = self.b.read().float() @ self.a.read().float()
        return step.mul_(self.scale).add_(self.base.read()).to(self.dtype)


def n_bytes(origins: Iterable[LazyTensor]) -> int:
    """Size of some tensors in the checkpoint's own type."""
    return sum(torch.Size(origin.shape).numel() * origin.dtype.itemsize for origin in origins)


class Claim:
    """Which keys of a source have found their place; what is left in the end is surplus.

    Args:
        source: the weights.
        harmless: regular expressions of whole keys that may be left out without a word.
    """

    def __init__(self, source: WeightSource, harmless: Sequence[str] = HARMLESS) -> None:
        self.source = source
        self._harmless = [re.compile(p) for p in harmless]
        self._free = dict.fromkeys(k for k in source.tensors if not any(p.fullmatch(k) for p in self._harmless))

    def take(self, *prefixes: str) -> dict[str, LazyTensor]:
        """The tensors below the first prefix that has any, by the rest of their keys."""
        for prefix in prefixes:
            keys = [k for k in self._free if k.startswith(prefix)]
            if keys:
                for key in keys:
                    del self._free[key]
                return {key[len(prefix) :]: Stored(self.source, key) for key in keys}
        return {}

    def rest(self) -> list[str]:
        """Keys that nobody took, one problem each."""
        return [f"{self.source.tensors[key].file}: {key}: unknown key" for key in self._free]


def below(tensors: Iterable[tuple[str, LazyTensor]], prefix: str) -> dict[str, LazyTensor]:
    """The same tensors, with a prefix before their names."""
    return {f"{prefix}{name}": origin for name, origin in tensors}
