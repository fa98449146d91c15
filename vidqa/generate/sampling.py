"""Logits -> the next token of each row.

Knows one step. A row's choice depends on its own logits and its own random number, so the company it has in a batch
changes nothing.

Letters: B rows, N vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidqa.records import Features, Prompt


def pick_greedy(logits: Tensor) -> Tensor:
    """The likeliest token. float [B, N] -> int64 [B]."""
    return logits.argmax(dim=-1)


def pick_sampled(logits: Tensor, temperature: float, top_p: float, draws: Tensor) -> Tensor:
    """Draw a token from the nucleus.

    The nucleus is the smallest set of likeliest tokens that hold at least `top_p` of the probability.

    Args:
        logits: float [B, N].
        temperature: above 0; below 1 sharpens.
        top_p: in (0, 1]; 1 keeps every token.
        draws: float64 [B] in [0, 1), one random number a row.

    Returns:
        int64 [B].
    """
    # float64: with many tokens the running sum of float32 ends visibly off 1.
    p = torch.softmax(logits.double() / temperature, dim=-1)
    p, order = p.sort(dim=-1, descending=True, stable=True)
    before = p.cumsum(dim=-1) - p  # probability of all likelier tokens
    p = p.masked_fill(before >= top_p, 0.0)
    until = p.cumsum(dim=-1)
    # `draws` may hit the last sum exactly; tokens behind it have no probability and must not be picked.
    last = (p > 0).sum(dim=-1, keepdim=True) - 1
    rank = torch.searchsorted(until, draws.to(until)[:, None] * until[:, -1:], right=True)
    return order.gather(-1, torch.minimum(rank, last))[:, 0]


class RandomStream:
    """Random numbers of one request, the same in whatever batch it runs.

    Args:
        seed: the user's.
        content: bytes that tell the request from others, so that two questions do not share their luck.
    """

    def __init__(self, seed: int, content: bytes) -> None:
        digest = hashlib.sha256(seed.to_bytes(16, "big", signed=True) + content).digest()
        self._rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))

    def next(self) -> float:
        """The next number in [0, 1)."""
        return float(self._rng.random())


def content_of(prompt: Prompt, features: Sequence[Features]) -> bytes:
    """What tells one request from others, for `RandomStream`."""
    return prompt.ids.tobytes() + b"".join(np.ascontiguousarray(f.tokens).tobytes() for f in features)
