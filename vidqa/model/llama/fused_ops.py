"""Fused GPU kernels for small operations of a Llama; see `kernel_check`.

Letters: n sequences, S new tokens, H heads, d head_dim, M intermediate size of the MLP.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

_BLOCK_SIZE = 1024
_HEADS = 8


def apply_rotary_emb_(heads: Tensor, n_rotated: int, cos: Tensor, sin: Tensor) -> None:
    """Apply the rotary embedding to the first heads, in place.

    Args:
        heads: [n, S, H, d], contiguous.
        n_rotated: number of heads to rotate.
        cos: [n, 1, S, d]; both halves are equal.
        sin: [n, 1, S, d]; the first half is the negated second half.
    """
    n, n_new, n_heads, d = heads.shape
    blocks = -(-n_rotated // _HEADS)
    _rotary_kernel[n * n_new, blocks](
        heads, cos, sin, n_heads * d, n_rotated, half_dim=d // 2, block_rows=_HEADS, num_warps=2
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu of the first half times the second: [n, S, 2 M] -> [n, S, M]."""
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = out.numel() // width
    _silu_mul_kernel[rows, -(-width // _BLOCK_SIZE)](gate_up, out, width, block_size=_BLOCK_SIZE, num_warps=4)
    return out


def max_difference(device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """Run both kernels and return the largest difference from torch's own functions."""
    generator = torch.Generator("cpu").manual_seed(0)
    heads = torch.randn(2, 3, 10, head_dim, generator=generator).to(device, dtype)
    angles = torch.rand(2, 1, 3, head_dim // 2, generator=generator).to(device) * 6
    cos = torch.cat([angles.cos(), angles.cos()], -1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    expected = heads.clone().float()
    first, second = expected[:, :, :9].chunk(2, -1)
    rotated = torch.cat([second, first], -1) * sin.float().transpose(1, 2)
    expected[:, :, :9] = expected[:, :, :9] * cos.float().transpose(1, 2) + rotated
    apply_rotary_emb_(heads, 9, cos, sin)
    difference = (heads.float() - expected).abs().max()
    gate_up = torch.randn(3, 2, 2 * 1500, generator=generator).to(device, dtype)
    gate, up = gate_up.float().chunk(2, -1)
    expected = functional.silu(gate) * up
    return float(torch.maximum(difference, (silu_mul(gate_up).float() - expected).abs().max()))


@triton.jit
def _rotary_kernel(heads, cos, sin, token_stride, n_rotated, half_dim: tl.constexpr, block_rows: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    dim = tl.arange(0, half_dim)
    valid = (head < n_rotated)[:, None] & (dim < half_dim)[None, :]
    at = heads + token * token_stride + head[:, None] * (2 * half_dim) + dim[None, :]
    first = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    second = tl.load(at + half_dim, mask=valid, other=0.0).to(tl.float32)
    c = tl.load(cos + token * (2 * half_dim) + dim).to(tl.float32)[None, :]
    s = tl.load(sin + token * (2 * half_dim) + half_dim + dim).to(tl.float32)[None, :]
    tl.store(at, (first * c - second * s).to(heads.dtype.element_ty), mask=valid)
    tl.store(at + half_dim, (second * c + first * s).to(heads.dtype.element_ty), mask=valid)


@triton.jit
def _silu_mul_kernel(gate_up, out, width, block_size: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block_size + tl.arange(0, block_size)
    valid = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=valid, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=valid)
