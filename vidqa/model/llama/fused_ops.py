"""Small steps of a Llama in one kernel each, for a GPU; see `proof`.

Letters: n lines, S new tokens, H heads, d width of a head, M width of the feed-forward part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

_COLUMNS = 1024
_HEADS = 8


def turn_(heads: Tensor, n_turned: int, cos: Tensor, sin: Tensor) -> None:
    """Rotary embedding of the first heads, in place.

    Args:
        heads: [n, S, H, d], contiguous.
        n_turned: how many heads are turned.
        cos: [n, 1, S, d], both halves alike.
        sin: [n, 1, S, d], the second half that of the angles, the first its negative.
    """
    n, n_new, n_heads, d = heads.shape
    blocks = -(-n_turned // _HEADS)
    _turn_kernel[n * n_new, blocks](heads, cos, sin, n_heads * d, n_turned, half=d // 2, n_rows=_HEADS, num_warps=2)


def gated(both: Tensor) -> Tensor:
    """silu of the first half times the second: [n, S, 2 M] -> [n, S, M]."""
    width = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    rows = out.numel() // width
    _gate_kernel[rows, -(-width // _COLUMNS)](both, out, width, n_columns=_COLUMNS, num_warps=4)
    return out


def difference(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Largest difference from torch's own functions."""
    drawn = torch.Generator("cpu").manual_seed(0)
    heads = torch.randn(2, 3, 10, width, generator=drawn).to(device, dtype)
    angles = torch.rand(2, 1, 3, width // 2, generator=drawn).to(device) * 6
    cos = torch.cat([angles.cos(), angles.cos()], -1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    want = heads.clone().float()
    first, second = want[:, :, :9].chunk(2, -1)
    turned = torch.cat([second, first], -1) * sin.float().transpose(1, 2)
    want[:, :, :9] = want[:, :, :9] * cos.float().transpose(1, 2) + turned
    turn_(heads, 9, cos, sin)
    far = (heads.float() - want).abs().max()
    both = torch.randn(3, 2, 2 * 1500, generator=drawn).to(device, dtype)
    gate, up = both.float().chunk(2, -1)
    return float(torch.maximum(far, (gated(both).float() - functional.silu(gate) * up).abs().max()))


@triton.jit
def _turn_kernel(heads, cos, sin, by_token, n_turned, half: tl.constexpr, n_rows: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * n_rows + tl.arange(0, n_rows)
    column = tl.arange(0, half)
    counts = (head < n_turned)[:, None] & (column < half)[None, :]
    at = heads + token * by_token + head[:, None] * (2 * half) + column[None, :]
    first = tl.load(at, mask=counts, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=counts, other=0.0).to(tl.float32)
    c = tl.load(cos + token * (2 * half) + column).to(tl.float32)[None, :]
    s = tl.load(sin + token * (2 * half) + half + column).to(tl.float32)[None, :]
    tl.store(at, (first * c - second * s).to(heads.dtype.element_ty), mask=counts)
    tl.store(at + half, (second * c + first * s).to(heads.dtype.element_ty), mask=counts)


@triton.jit
def _gate_kernel(both, out, width, n_columns: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * n_columns + tl.arange(0, n_columns)
    counts = column < width
    gate = tl.load(both + row * 2 * width + column, mask=counts, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * width + width + column, mask=counts, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=counts)
