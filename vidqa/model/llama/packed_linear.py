"""Weights of a product in the order in which a CPU reads them: oneDNN's blocks.

A step of answering multiplies a few rows with every weight of the model. An ordinary matrix is then fetched from memory
in pieces that the processor does not see coming: 5 GB a second where it could do 25. Packed once, it is read in one go,
which takes half the time (docs/performance.md), and long prompts gain a tenth. Does not know models.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Smaller weights stay in the processor's caches, where the way of calling costs more than packing gains.
LEAST_WEIGHTS = 1 << 16
#: Rows that the blocks are chosen for. The same blocks serve any number: measured from 1 to 2,056 rows.
_ROWS = 8

# What torch.compile makes of linear layers on a CPU. They are not documented by themselves, so they are used only where
# they prove right; see `packs`.
_OPS: Any = torch.ops.mkldnn


@functools.cache
def packs() -> bool:
    """Whether this torch can pack, and multiplies rightly with what it packed."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight, rows = torch.arange(96.0).view(8, 12) / 96, torch.arange(24.0).view(1, 2, 12) / 24
    try:
        out = packed_linear(rows, pack(weight))
    except (RuntimeError, TypeError, AttributeError):  # not in this build, or another signature in this version
        return False
    return torch.allclose(out, functional.linear(rows, weight), atol=1e-5)


def pack(weight: Tensor) -> Tensor:
    """A copy in blocks.

    Args:
        weight: float32 [N, K] on the CPU.

    Returns:
        [N, K] for `packed_linear`; nothing else reads it.
    """
    with torch.no_grad():
        packed: Tensor = _OPS._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return packed


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """float32 [*, K] -> [*, N]."""
    out: Tensor = _OPS._linear_pointwise(x, packed, None, "none", [], "")
    return out


class Linear(nn.Linear):
    """A product without a bias whose weights may be packed.

    It has no numbers until they are given: drawing them on `meta` would import torch's compiler, a second's work.
    """

    def __init__(self, n_in: int, n_out: int, device: str | None = None) -> None:
        super().__init__(n_in, n_out, bias=False, device=device)
        self._packed = False

    def reset_parameters(self) -> None:
        """Leave them be."""

    def pack(self) -> None:
        """Put blocks in the place of the weights, float32 [N, K] on the CPU, where that is worth it."""
        if self.weight.numel() >= LEAST_WEIGHTS:
            self.weight, self._packed = nn.Parameter(pack(self.weight), requires_grad=False), True

    def forward(self, x: Tensor) -> Tensor:
        """[*, K] -> [*, N]."""
        return packed_linear(x, self.weight) if self._packed else functional.linear(x, self.weight)
