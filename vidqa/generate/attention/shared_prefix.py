"""Attention of several sequences over one shared prefix, as an attention function that LLM layers call.

The KV cache of a sequence is in two parts: that of its prefix, which all questions about the same media share and which
is stored once, and that of its suffix. The queries of all sequences of a prefix are stacked, so that attention over the
prefix is one matmul per prefix. Attention over the prefix and over the suffix is computed separately, and the two
results are merged exactly with their log-sum-exp:

    softmax(q [K_prefix, K_suffix]) [V_prefix, V_suffix]  =  e^(l_p - l) out_prefix + e^(l_s - l) out_suffix,
    l_p, l_s = log-sum-exp of the scores of a part,  l = log(e^l_p + e^l_s)

(the identity used by FlashAttention between blocks, https://arxiv.org/abs/2205.14135, and by Hydragen, 2402.05099).

Letters: n sequences, C prefixes, Q largest number of sequences per prefix, H query heads, G KV heads, S new tokens of a
sequence, P length of the longest prefix, T columns of a suffix, d head_dim.

Scope: tensors and the signature of transformers' attention functions. The KV cache itself is in kv_cache/.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidqa.model.llama.kernel_check import checked_kernels
from vidqa.model.llama.model import sdpa_attention

#: Module that does all this in two GPU kernels.
KERNELS = "vidqa.generate.attention.triton_kernels"


@dataclass(frozen=True)
class PrefixSpan:
    """Consecutive sequences and the consecutive prefixes that they belong to, handled in one matmul.

    The queries form a grid with one row per prefix and Q columns; a sequence takes one cell of its prefix's row.
    """

    first_prefix: int
    n_prefixes: int  # C
    n_columns: int  # Q
    length: int  # P
    cell_of: Tensor  # int64 [n]: prefix * Q + column; C * Q for a padding sequence, whose result is not used
    padding: Tensor | None  # bool [C, 1, P], True past the end of a shorter prefix; None if all have the same length
    is_dense: bool = False  # the grid has no gaps and is in order: `cell_of` is 0, 1, 2, ... C * Q - 1
    sequence_at: Tensor | None = None  # int64 [C * Q], sequence in each cell, -1 if empty; None if `is_dense`
    prefix_lengths: Tensor | None = None  # int64 [C]; None if all have the same length


@dataclass(frozen=True)
class SuffixSpan:
    """The columns of its own suffix that each sequence attends to, from `first_column` to that of the query."""

    first_column: Tensor  # int64 [n]
    next_column: Tensor  # int64 [n]
    is_prefill: bool  # the new tokens end before `next_column`; otherwise the only one is in that column


@dataclass(frozen=True)
class SharedPrefix:
    """The shared prefixes of one forward pass."""

    kv: Sequence[tuple[Tensor, Tensor]]  # K and V per layer, [capacity * G, at least P, d]
    capacity: int  # number of prefixes that the buffers can hold
    spans: tuple[PrefixSpan, ...]
    suffix: SuffixSpan | None = None  # the content of the attention mask, for kernels that read no mask

    def kv_of(self, span: PrefixSpan, layer: int) -> tuple[Tensor, Tensor]:
        """Return K and V of a span's prefixes, [C * G, P, d] each, as views."""
        keys, values = self.kv[layer]
        n_kv_heads = keys.shape[0] // self.capacity
        rows = slice(span.first_prefix * n_kv_heads, (span.first_prefix + span.n_prefixes) * n_kv_heads)
        return keys[rows, : span.length], values[rows, : span.length]


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: SharedPrefix | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention function of a layer, called after its K and V are in the KV cache.

    Args:
        module: the attention layer; its `layer_idx` selects the prefixes' K and V.
        query: [n, H, S, d].
        key: keys of the suffixes, [n, G, T, d].
        value: values of the suffixes, [n, G, T, d].
        attention_mask: bool [n, 1, S, T], True where a query attends to a key of its suffix.
        scaling: factor of the scores; None is 1 / sqrt(d).
        shared_prefix: the prefixes of the sequences; None is standard attention.
        rest: ignored.

    Returns:
        [n, S, H, d], and None for the attention weights.
    """
    if shared_prefix is None:
        return sdpa_attention(module, query, key, value, attention_mask, scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernels = checked_kernels(KERNELS, query.device, query.dtype, query.shape[-1])
    if kernels is not None and shared_prefix.suffix is not None:
        suffix, layer = shared_prefix.suffix, module.layer_idx
        return kernels.attend(query, key, value, shared_prefix, suffix, layer, scale), None
    assert attention_mask is not None
    return attend_with_torch(query, key, value, attention_mask, shared_prefix, module.layer_idx, scale), None


def attend_with_torch(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shared_prefix: SharedPrefix, layer: int, scale: float
) -> Tensor:
    """Compute `shared_prefix_attention` with plain torch, on any device and in any precision."""
    prefix, prefix_lse = _attend_to_spans(query, shared_prefix, layer, scale)
    suffix, suffix_lse = suffix_attention(query, key, value, mask, scale)
    # e^(l_p - l) is the logistic function of l_p - l_s, and the other weight is 1 minus it.
    out = suffix.lerp(prefix, (prefix_lse - suffix_lse).sigmoid_()[..., None])
    return out.to(query.dtype).transpose(1, 2).contiguous()


def _attend_to_spans(query: Tensor, shared_prefix: SharedPrefix, layer: int, scale: float) -> tuple[Tensor, Tensor]:
    spans = shared_prefix.spans
    if len(spans) == 1:
        return prefix_attention(query, *shared_prefix.kv_of(spans[0], layer), spans[0], scale)
    queries = query.split([len(span.cell_of) for span in spans])
    parts = [
        prefix_attention(q, *shared_prefix.kv_of(span, layer), span, scale)
        for q, span in zip(queries, spans, strict=True)
    ]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def prefix_attention(
    query: Tensor, keys: Tensor, values: Tensor, span: PrefixSpan, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to the shared prefixes, with all sequences of a prefix in one matmul.

    Args:
        query: [n, H, S, d].
        keys: [C * G, P, d].
        values: [C * G, P, d].
        span: assigns the sequences to the cells of the grid.
        scale: factor of the scores.

    Returns:
        Float32 [n, H, S, d] and log-sum-exp float32 [n, H, S]. Both are finite but meaningless for padding sequences.
    """
    n, n_heads, n_new, d = query.shape
    n_prefixes, n_columns = span.n_prefixes, span.n_columns
    n_kv_heads = keys.shape[0] // n_prefixes
    ratio = n_heads // n_kv_heads
    grid = query * scale
    if not span.is_dense:
        # One cell more than the grid has: padding sequences are written there.
        cells = query.new_zeros(n_prefixes * n_columns + 1, n_heads, n_new, d)
        grid = cells.index_copy_(0, span.cell_of, grid)[:-1]
    stacked = grid.reshape(n_prefixes, n_columns, n_kv_heads, ratio * n_new, d).transpose(1, 2).flatten(2, 3)
    hidden = None if span.padding is None else span.padding[:, None]
    out, lse = _attend(
        stacked, keys.unflatten(0, (n_prefixes, n_kv_heads)), values.unflatten(0, (n_prefixes, n_kv_heads)), hidden
    )
    out = out.view(n_prefixes, n_kv_heads, n_columns, ratio * n_new, -1).transpose(1, 2).flatten(0, 1)
    lse = lse.view(n_prefixes, n_kv_heads, n_columns, ratio * n_new).transpose(1, 2).flatten(0, 1)
    if not span.is_dense:
        cell_of = span.cell_of.clamp(max=n_prefixes * n_columns - 1)
        out, lse = out[cell_of], lse[cell_of]
    return out.reshape(n, n_heads, n_new, -1), lse.reshape(n, n_heads, n_new)


def suffix_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend to each sequence's suffix.

    Args:
        query: [n, H, S, d].
        key: [n, G, T, d].
        value: [n, G, T, d].
        mask: bool [n, 1, S, T], True where a query attends to a key.
        scale: factor of the scores.

    Returns:
        Float32 [n, H, S, d] and log-sum-exp float32 [n, H, S].
    """
    n, n_heads, n_new, d = query.shape
    n_kv_heads = key.shape[1]
    ratio = n_heads // n_kv_heads
    stacked = (query * scale).reshape(n, n_kv_heads, ratio * n_new, d)
    hidden = ~mask if ratio == 1 or n_new == 1 else ~mask.repeat(1, 1, ratio, 1)
    out, lse = _attend(stacked, key, value, hidden)
    return out.reshape(n, n_heads, n_new, -1), lse.reshape(n, n_heads, n_new)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scaled queries [B, G, M, d], K and V [B, G, K, d] -> float32 [B, G, M, d], log-sum-exp [B, G, M].

    `hidden` is bool [B, 1, 1 or M, K], True where a query must not attend. Hidden scores become the lowest finite
    number, not -inf: a padding query attends to nothing, and its result must not be NaN.
    """
    if _has_cpu_flash_attention(query.device.type, query.dtype):
        lowest = torch.finfo(query.dtype).min
        mask = None if hidden is None else query.new_zeros(hidden.shape).masked_fill_(hidden, lowest)
        out, lse = _CPU_FLASH_ATTENTION(query, key, value, attn_mask=mask, scale=1.0)
        return out, lse
    scores = _bmm_float32(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).unflatten(0, query.shape[:2])
    if hidden is not None:
        scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = weights.to(value.dtype) @ value
    return out.float() / total, (total.log() + highest)[..., 0]


def _bmm_float32(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, d] x [B, d, P] -> float32 [B, M, P], accumulated and returned in float32 where torch supports it."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if _bmm_has_float32_output(a.device.type, a.dtype):
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()


@functools.cache
def _bmm_has_float32_output(device: str, dtype: torch.dtype) -> bool:
    """Return True if torch can return half-precision matmuls in float32 on this kind of device."""
    one = torch.ones(1, 16, 16, device=device, dtype=dtype)
    try:
        return bool(torch.bmm(one, one, out_dtype=torch.float32)[0, 0, 0] == 16)
    except (RuntimeError, TypeError):  # not on this device, or not in this version
        return False


#: What `scaled_dot_product_attention` calls on a CPU: one pass over K and V that also returns the log-sum-exp.
#: It is an undocumented operator, so it is used only after a check of its result; see `_has_cpu_flash_attention`.
_CPU_FLASH_ATTENTION: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@functools.cache
def _has_cpu_flash_attention(device: str, dtype: torch.dtype) -> bool:
    """Check that the operator exists and is correct; float32 only, as half precision is rounded before the merge."""
    if device != "cpu" or dtype != torch.float32 or _CPU_FLASH_ATTENTION is None:
        return False
    query, key = torch.arange(12.0).view(1, 2, 3, 2) / 10, torch.arange(16.0).view(1, 2, 4, 2) / 10
    mask = torch.tensor([0.0, 0.0, 0.0, torch.finfo(dtype).min]).view(1, 1, 1, 4)
    scores = query @ key.transpose(2, 3) + mask
    try:
        out, lse = _CPU_FLASH_ATTENTION(query, key, key, attn_mask=mask, scale=1.0)
    except (RuntimeError, TypeError):  # another signature in this version
        return False
    same = torch.allclose(out, scores.softmax(-1) @ key, atol=1e-5)
    return same and lse.shape == (1, 2, 3) and torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)
