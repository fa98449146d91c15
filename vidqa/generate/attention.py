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

from vidqa.model.llama import plain_attention


@dataclass(frozen=True)
class Part:
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


@dataclass(frozen=True)
class Shared:
    """The shared beginnings as one run of the model sees them: buffers of a layer [all clips * G, *, d]."""

    prefixes: Sequence[tuple[Tensor, Tensor]]
    n_clips: int  # that the buffers have room for
    parts: tuple[Part, ...]

    def of(self, part: Part, layer: int) -> tuple[Tensor, Tensor]:
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
    shared: Shared | None = None,
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
    assert attention_mask is not None
    begun, l_begun = _over_parts(query, shared, module.layer_idx, scale)
    own, l_own = over_own(query, key, value, attention_mask, scale)
    # e^(l_s - l) is the logistic function of l_s - l_o, and the other factor is what is left of 1.
    out = own.lerp(begun, (l_begun - l_own).sigmoid_()[..., None])
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


def _over_parts(query: Tensor, shared: Shared, layer: int, scale: float) -> tuple[Tensor, Tensor]:
    if len(shared.parts) == 1:
        return over_beginnings(query, *shared.of(shared.parts[0], layer), shared.parts[0], scale)
    queries = query.split([len(part.where) for part in shared.parts])
    done = [
        over_beginnings(q, *shared.of(part, layer), part, scale) for q, part in zip(queries, shared.parts, strict=True)
    ]
    return torch.cat([out for out, _ in done]), torch.cat([lse for _, lse in done])


def over_beginnings(query: Tensor, keys: Tensor, values: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
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
    stacked = grid.reshape(n_clips, n_places, n_groups, ratio * n_new, d).transpose(1, 2)
    scores = _product(stacked.reshape(n_clips * n_groups, n_places * ratio * n_new, d), keys.transpose(1, 2))
    if part.hidden is not None:
        by_clip = scores.view(n_clips, -1, scores.shape[-1])
        by_clip.masked_fill_(part.hidden, torch.finfo(scores.dtype).min)
    out, lse = _attend(scores, values)
    out = out.view(n_clips, n_groups, n_places, ratio * n_new, -1).transpose(1, 2).flatten(0, 1)
    lse = lse.view(n_clips, n_groups, n_places, ratio * n_new).transpose(1, 2).flatten(0, 1)
    if not part.in_order:
        back = part.where.clamp(max=n_clips * n_places - 1)
        out, lse = out[back], lse[back]
    return out.reshape(n, n_heads, n_new, -1), lse.reshape(n, n_heads, n_new)


def over_own(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend to each line's own part. Arguments as of `shared_attention`, result as of `over_beginnings`."""
    n, n_heads, n_new, d = query.shape
    n_groups, n_own = key.shape[1], key.shape[2]
    ratio = n_heads // n_groups
    scores = (query * scale).reshape(n, n_groups, ratio * n_new, d) @ key.transpose(2, 3)
    scores = scores.view(n, n_groups, ratio, n_new, n_own).float()
    # The least finite number, not -inf: a padded query sees nothing, and must not give NaN.
    scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    out, lse = _attend(scores.view(n, n_groups, ratio * n_new, n_own), value)
    return out.reshape(n, n_heads, n_new, -1), lse.reshape(n, n_heads, n_new)


def _attend(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 scores [..., M, K] (overwritten) and values [..., K, d] -> float32 [..., M, d], log-sum-exp [..., M]."""
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = weights.to(values.dtype) @ values
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
