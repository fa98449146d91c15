"""Linear layers whose weights are packed into the block order of a CPU's matmul (oneDNN).

A decode step multiplies a few rows with every weight of the model. An ordinary matrix is then fetched from memory in
pieces that the processor cannot prefetch: 5 GB a second instead of 25. A packed matrix is read sequentially, which
takes half the time; long prompts become a tenth faster (docs/notes/performance.md).

Letters: N output features, K input features.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Smaller weights stay in the processor's caches, so that the call overhead exceeds the gain.
MIN_WEIGHTS = 1 << 16
#: Number of rows that the blocks are chosen for. They suit any number; this was measured from 1 to 2,056 rows.
_ROWS = 8

# The operators that torch.compile uses for linear layers on a CPU. They are undocumented, so they are used only after a
# check of their result; see `supports_packing`.
_OPS: Any = torch.ops.mkldnn


@functools.cache
def supports_packing() -> bool:
    """Return True if this torch can pack weights and multiplies correctly with them."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight, rows = torch.arange(96.0).view(8, 12) / 96, torch.arange(24.0).view(1, 2, 12) / 24
    try:
        out = packed_linear(rows, pack(weight))
    except (RuntimeError, TypeError, AttributeError):  # not in this build, or another signature in this version
        return False
    return torch.allclose(out, functional.linear(rows, weight), atol=1e-5)


def pack(weight: Tensor) -> Tensor:
    """Return a copy of a weight in blocks.

    Args:
        weight: float32 [N, K] on the CPU.

    Returns:
        [N, K], for `packed_linear` only.
    """
    with torch.no_grad():
        packed: Tensor = _OPS._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return packed


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """Multiply with a packed weight: float32 [*, K] -> [*, N]."""
    out: Tensor = _OPS._linear_pointwise(x, packed, None, "none", [], "")
    return out


class Linear(nn.Linear):
    """A linear layer without bias whose weights may be packed.

    It is uninitialized until weights are assigned: random initialization on `meta` would import torch's compiler, which
    takes a second.
    """

    def __init__(self, n_in: int, n_out: int, device: str | None = None) -> None:
        super().__init__(n_in, n_out, bias=False, device=device)
        self._packed = False

    def reset_parameters(self) -> None:
        """Skip the random initialization."""

    def pack(self) -> None:
        """Pack the weights, float32 [N, K] on the CPU, if there are enough of them."""
        if self.weight.numel() >= MIN_WEIGHTS:
            self.weight, self._packed = nn.Parameter(pack(self.weight), requires_grad=False), True

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: [*, K] -> [*, N]."""
        return packed_linear(x, self.weight) if self._packed else functional.linear(x, self.weight)
