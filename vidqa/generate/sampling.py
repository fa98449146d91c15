"""Sampling: logits -> the next token id of each sequence.

The choice depends on the sequence's own logits and its own random sample only, so it does not change with the rest of
the batch.

Letters: B sequences, N vocabulary size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidqa.records import Features, Prompt

#: In place of a token where the LLM's output is not finite. It reaches the host together with the tokens.
NOT_FINITE = -1
#: Seeds are whole numbers from -SEED_LIMIT to below SEED_LIMIT.
SEED_LIMIT = 1 << 127
#: Below it float32 logits divided by the temperature could overflow float64; above it they are as good as greedy.
_MIN_TEMPERATURE = 1e-200


def pick_greedy(logits: Tensor) -> Tensor:
    """Pick the most likely token. float [B, N] -> int64 [B]; `NOT_FINITE` where the logits have NaN or +inf."""
    picked, finite = _most_likely(logits)
    return picked.masked_fill(~finite, NOT_FINITE)


def pick_sampled(logits: Tensor, temperature: float, top_p: float, random_samples: Tensor) -> Tensor:
    """Sample a token from the nucleus (top-p sampling).

    The nucleus is the smallest set of most likely tokens that hold at least `top_p` of the probability.

    Args:
        logits: float [B, N].
        temperature: above 0; below 1 sharpens the distribution.
        top_p: in (0, 1]; 1 keeps every token.
        random_samples: float64 [B] in [0, 1), one per sequence.

    Returns:
        int64 [B]; `NOT_FINITE` where the logits have NaN or +inf.
    """
    finite = _most_likely(logits)[1]
    logits = logits.masked_fill(~finite[:, None], 0.0)
    # float64: over a large vocabulary a cumulative sum in float32 ends visibly off 1.
    p = torch.softmax(logits.double() / max(temperature, _MIN_TEMPERATURE), dim=-1)
    p, order = p.sort(dim=-1, descending=True, stable=True)
    before = p.cumsum(dim=-1) - p  # probability of all more likely tokens
    p = p.masked_fill(before >= top_p, 0.0)
    until = p.cumsum(dim=-1)
    # A sample may hit the last sum exactly; tokens past the nucleus have probability 0 and must not be picked.
    last = (p > 0).sum(dim=-1, keepdim=True) - 1
    rank = torch.searchsorted(until, random_samples.to(until)[:, None] * until[:, -1:], right=True)
    return order.gather(-1, torch.minimum(rank, last))[:, 0].masked_fill(~finite, NOT_FINITE)


def _most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most likely token and whether its logit is finite, [B] each. `argmax` prefers NaN, then +inf."""
    picked = logits.argmax(dim=-1)
    return picked, logits.gather(-1, picked[:, None])[:, 0].isfinite()


class RandomStream:
    """RNG stream of one request: the same numbers in whatever batch the request runs.

    Args:
        seed: the user's seed; see `SEED_LIMIT`.
        content: bytes that identify the request, so that two questions get different numbers.
    """

    def __init__(self, seed: int, content: bytes) -> None:
        digest = hashlib.sha256(seed.to_bytes(16, "big", signed=True) + content).digest()
        self._rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))

    def next(self) -> float:
        """Return the next random sample in [0, 1)."""
        return float(self._rng.random())


def content_of(prompt: Prompt, features: Sequence[Features]) -> bytes:
    """Return the bytes that identify a request for its `RandomStream`: prompt ids and features."""
    return prompt.ids.tobytes() + b"".join(np.ascontiguousarray(f.tokens).tobytes() for f in features)
