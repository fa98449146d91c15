"""Attention of several questions over one shared beginning, as a function that LLMs call in their layers.

Knows tensors and the arguments of transformers' attention functions. Does not know clips, prompts or who keeps the
keys and values.

The keys of a line (one prompt that is being answered) lie in two places: those of its beginning, which all questions of
a clip share and which is stored once, and its own. The queries of all lines of a clip are stacked, so that the shared
part is one matrix product a clip; the two parts are attended apart and joined exactly through their log-sum-exp:

    softmax(q [K_shared, K_own]) [V_shared, V_own]  =  e^(l_s - l) out_shared + e^(l_o - l) out_own,
    l_s, l_o = log-sum-exp of the scores of a part,  l = log(e^l_s + e^l_o)

(the identity behind FlashAttention's blocks, https://arxiv.org/abs/2205.14135, and Hydragen, 2402.05099).

Letters: n lines, C clips, Q most lines of a clip, H query heads, G key heads, R = H / G, S new tokens of a line,
P positions of the longest beginning, T of a line's own part, d width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidqa.model.llama.kernel_check import proven
from vidqa.model.llama.model import plain_attention

#: Does all this in two kernels on a GPU.
KERNELS = "vidqa.generate.attention.triton_kernels"


@dataclass(frozen=True)
class PrefixSpan:
    """Some lines and the clips that they belong to, for one product.

    Clips stand side by side from `first_clip`; lines side by side, in the order of the parts.
    """

    first_clip: int
    n_clips: int  # C
    n_places: int  # Q
    n_positions: int  # P
    where: Tensor  # int64 [n]: clip * Q + place among the clip's lines; C * Q for a line that does not count
    hidden: Tensor | None  # bool [C, 1, P], True behind the end of a shorter beginning; None where all are as long
    in_order: bool = False  # known to have no gaps: `where` is 0, 1, 2, ... C * Q - 1
    lines: Tensor | None = None  # int64 [C * Q], the line at each place, -1 for none; None where they are in order
    lengths: Tensor | None = None  # int64 [C], of the beginnings; None where all are as long


@dataclass(frozen=True)
class SuffixSpan:
    """Which columns of its own part a line looks at: from `start` to that of the token which looks."""

    start: Tensor  # int64 [n]
    now: Tensor  # int64 [n]
    opening: bool  # the new tokens end before the column `now`; else the only one stands there


@dataclass(frozen=True)
class SharedPrefix:
    """The shared beginnings as one run of the model sees them: buffers of a layer [all clips * G, *, d]."""

    prefixes: Sequence[tuple[Tensor, Tensor]]
    n_clips: int  # that the buffers have room for
    parts: tuple[PrefixSpan, ...]
    own: SuffixSpan | None = None  # what the mask says, for kernels that read no mask

    def of(self, part: PrefixSpan, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the part's clips, [C * G, P, d] each; nothing is copied."""
        keys, values = self.prefixes[layer]
        groups = keys.shape[0] // self.n_clips
        some = slice(part.first_clip * groups, (part.first_clip + part.n_clips) * groups)
        return keys[some, : part.n_positions], values[some, : part.n_positions]


def shared_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared: SharedPrefix | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What an attention layer calls once its keys and values are stored.

    Args:
        module: the layer; its `layer_idx` picks the beginnings.
        query: [n, H, S, d].
        key: own keys [n, G, T, d].
        value: own values [n, G, T, d].
        attention_mask: bool [n, 1, S, T], True where a query may look at an own key.
        scaling: of the scores; None is 1 / sqrt(d).
        shared: None is ordinary attention.
        rest: not used.

    Returns:
        [n, S, H, d], and None for the weights.
    """
    if shared is None:
        return plain_attention(module, query, key, value, attention_mask, scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernels = proven(KERNELS, query.device, query.dtype, query.shape[-1])
    if kernels is not None and shared.own is not None:
        return kernels.attend(query, key, value, shared, shared.own, module.layer_idx, scale), None
    assert attention_mask is not None
    return plainly(query, key, value, attention_mask, shared, module.layer_idx, scale), None


def plainly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shared: SharedPrefix, layer: int, scale: float
) -> Tensor:
    """`shared_attention` by torch's own functions, on any device and in any precision."""
    begun, l_begun = _over_parts(query, shared, layer, scale)
    own, l_own = over_own(query, key, value, mask, scale)
    # e^(l_s - l) is the logistic function of l_s - l_o, and the other factor is what is left of 1.
    out = own.lerp(begun, (l_begun - l_own).sigmoid_()[..., None])
    return out.to(query.dtype).transpose(1, 2).contiguous()


def _over_parts(query: Tensor, shared: SharedPrefix, layer: int, scale: float) -> tuple[Tensor, Tensor]:
    if len(shared.parts) == 1:
        return over_beginnings(query, *shared.of(shared.parts[0], layer), shared.parts[0], scale)
    queries = query.split([len(part.where) for part in shared.parts])
    done = [
        over_beginnings(q, *shared.of(part, layer), part, scale) for q, part in zip(queries, shared.parts, strict=True)
    ]
    return torch.cat([out for out, _ in done]), torch.cat([lse for _, lse in done])


def over_beginnings(
    query: Tensor, keys: Tensor, values: Tensor, part: PrefixSpan, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to the shared beginnings, all lines of a clip in one product.

    Args:
        query: [n, H, S, d].
        keys: [C * G, P, d].
        values: [C * G, P, d].
        part: C, Q and where each line stands.
        scale: of the scores.

    Returns:
        Float32 [n, H, S, d] and log-sum-exp float32 [n, H, S]. Lines that do not count get something finite.
    """
    n, n_heads, n_new, d = query.shape
    n_clips, n_places = part.n_clips, part.n_places
    n_groups = keys.shape[0] // n_clips
    ratio = n_heads // n_groups
    grid = query * scale
    if not part.in_order:
        # One row more than there are places: lines that do not count write there.
        places = query.new_zeros(n_clips * n_places + 1, n_heads, n_new, d)
        grid = places.index_copy_(0, part.where, grid)[:-1]
    stacked = grid.reshape(n_clips, n_places, n_groups, ratio * n_new, d).transpose(1, 2).flatten(2, 3)
    hidden = None if part.hidden is None else part.hidden[:, None]
    out, lse = _attend(
        stacked, keys.unflatten(0, (n_clips, n_groups)), values.unflatten(0, (n_clips, n_groups)), hidden
    )
    out = out.view(n_clips, n_groups, n_places, ratio * n_new, -1).transpose(1, 2).flatten(0, 1)
    lse = lse.view(n_clips, n_groups, n_places, ratio * n_new).transpose(1, 2).flatten(0, 1)
    if not part.in_order:
        back = part.where.clamp(max=n_clips * n_places - 1)
        out, lse = out[back], lse[back]
    return out.reshape(n, n_heads, n_new, -1), lse.reshape(n, n_heads, n_new)


def over_own(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend to each line's own part. Arguments as of `shared_attention`, result as of `over_beginnings`."""
    n, n_heads, n_new, d = query.shape
    n_groups = key.shape[1]
    ratio = n_heads // n_groups
    stacked = (query * scale).reshape(n, n_groups, ratio * n_new, d)
    hidden = ~mask if ratio == 1 or n_new == 1 else ~mask.repeat(1, 1, ratio, 1)
    out, lse = _attend(stacked, key, value, hidden)
    return out.reshape(n, n_heads, n_new, -1), lse.reshape(n, n_heads, n_new)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scaled queries [B, G, M, d], keys and values [B, G, K, d] -> float32 [B, G, M, d], log-sum-exp [B, G, M].

    `hidden` is bool [B, 1, 1 or M, K], True where a query must not look. It is given the least finite number, not -inf:
    a padded query sees nothing, and must not give NaN.
    """
    if _fuses(query.device.type, query.dtype):
        least = torch.finfo(query.dtype).min
        mask = None if hidden is None else query.new_zeros(hidden.shape).masked_fill_(hidden, least)
        out, lse = _FUSED(query, key, value, attn_mask=mask, scale=1.0)
        return out, lse
    scores = _product(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).unflatten(0, query.shape[:2])
    if hidden is not None:
        scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = weights.to(value.dtype) @ value
    return out.float() / total, (total.log() + highest)[..., 0]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, d] x [B, d, P] -> float32 [B, M, P]. Half precision is not rounded to half on the way where torch can."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if _mixes(a.device.type, a.dtype):
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()


@functools.cache
def _mixes(device: str, dtype: torch.dtype) -> bool:
    """Whether half-precision products can be had in float32 on a kind of device."""
    one = torch.ones(1, 16, 16, device=device, dtype=dtype)
    try:
        return bool(torch.bmm(one, one, out_dtype=torch.float32)[0, 0, 0] == 16)
    except (RuntimeError, TypeError):  # not on this device, or not in this version
        return False


#: One pass over keys and values that gives the log-sum-exp, too; what `scaled_dot_product_attention` calls on a CPU. It
#: is not documented by itself, so it is used only where it proves right; see `_fuses`.
_FUSED: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@functools.cache
def _fuses(device: str, dtype: torch.dtype) -> bool:
    """Whether `_FUSED` is there and does what is asked of it; half precision would be rounded before the parts join."""
    if device != "cpu" or dtype != torch.float32 or _FUSED is None:
        return False
    query, key = torch.arange(12.0).view(1, 2, 3, 2) / 10, torch.arange(16.0).view(1, 2, 4, 2) / 10
    mask = torch.tensor([0.0, 0.0, 0.0, torch.finfo(dtype).min]).view(1, 1, 1, 4)
    scores = query @ key.transpose(2, 3) + mask
    try:
        out, lse = _FUSED(query, key, key, attn_mask=mask, scale=1.0)
    except (RuntimeError, TypeError):  # another signature in this version
        return False
    same = torch.allclose(out, scores.softmax(-1) @ key, atol=1e-5)
    return same and lse.shape == (1, 2, 3) and torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)
