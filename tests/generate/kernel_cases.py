"""The kernels by Triton's interpreter, on a CPU, against the plain functions.

Run by test_kernels.py in a process of its own, because Triton decides at its import. Prints one JSON object of largest
differences.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from vidqa.generate.attention import triton_kernels
from vidqa.generate.attention.shared_prefix import PrefixSpan, SharedPrefix, SuffixSpan, plainly
from vidqa.model.llama import fused_ops as model_kernels


def attention(
    n_clips: int,
    n_places: int,
    heads: tuple[int, int],
    n_new: int,
    lengths: list[int],
    order: list[int],
    opening: int = 0,
) -> float:
    """Largest difference over the lines that count, infinite where anything is not finite.

    `order` is each line's place, n_clips * n_places for a line that does not count; `opening` is the length of the
    questions that come in, of which the last `n_new` tokens are asked for.
    """
    torch.manual_seed(0)
    (n_heads, n_groups), d, n, longest = heads, 16, len(order), max(lengths)
    n_columns = opening or 40

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).half()

    begun = (some(n_clips * n_groups, longest, d), some(n_clips * n_groups, longest, d))
    own = (some(n, n_groups, n_columns, d), some(n, n_groups, n_columns, d))
    query = some(n, n_new, n_heads, d).transpose(1, 2)
    where, length = torch.tensor(order), torch.tensor(lengths)
    lines = torch.full((n_clips * n_places,), -1)
    for i, place in enumerate(order):
        if place < len(lines):
            lines[place] = i
    start, now = torch.randint(0, 4, (n,)), torch.randint(6, 39, (n,))
    columns = torch.arange(n_columns)
    last = now[:, None]
    if opening:
        now[:] = opening
        last = torch.arange(opening - n_new, opening)[None]
    mask = ((columns >= start[:, None, None]) & (columns <= last[:, :, None]))[:, None]
    hidden = (torch.arange(longest) >= length[:, None])[:, None]
    part = PrefixSpan(0, n_clips, n_places, longest, where, hidden, lines=lines, lengths=length)
    shared = SharedPrefix([begun], n_clips, (part,), SuffixSpan(start, now, bool(opening)))
    assert shared.own is not None
    exact = SharedPrefix([(begun[0].float(), begun[1].float())], n_clips, (part,))
    want = plainly(query.float(), own[0].float(), own[1].float(), mask, exact, 0, d**-0.5)
    got = triton_kernels.attend(query, *own, shared, shared.own, 0, d**-0.5).float()
    if not torch.isfinite(got).all():
        return float("inf")
    counted = [i for i, place in enumerate(order) if place < n_clips * n_places]
    return float((got - want)[counted].abs().max())


def storing(n_groups: int, d: int) -> float:
    """Difference from writing by index."""
    torch.manual_seed(0)
    keys, values, now = torch.zeros(5, n_groups, 9, d), torch.zeros(5, n_groups, 9, d), torch.tensor([3, 0, 8])
    heads = torch.randn(3, 1, 3 * n_groups, d).transpose(1, 2)
    new = heads[:, :n_groups], heads[:, -n_groups:]
    want = torch.zeros(2, 5, n_groups, 9, d)
    for buffer, one in zip(want, new, strict=True):
        buffer[torch.arange(3), :, now] = one[:, :, 0]
    triton_kernels.store(keys, values, new, now)
    return float((torch.stack([keys, values]) - want).abs().max())


if __name__ == "__main__":
    cpu, half = torch.device("cpu"), torch.float16
    every = list(range(8))
    found = {
        "self check": triton_kernels.difference(cpu, half, 32),
        "self check of the model's": model_kernels.difference(cpu, half, 64),
        "out of order, unequal lengths": attention(2, 2, (4, 2), 1, [600, 300], [2, 0, 1]),
        "one clip, eight questions": attention(1, 8, (4, 4), 1, [700], every),
        "some lines do not count": attention(4, 2, (2, 2), 1, [256, 100, 1, 30], [0, 1, 2, 4, 6, 8, 8, 8]),
        "questions come in": attention(2, 4, (4, 2), 9, [300, 300], every, opening=9),
        "of questions the last token": attention(2, 4, (4, 2), 1, [300, 200], every, opening=9),
        "more rows than a program takes": attention(1, 16, (8, 2), 9, [130], list(range(16)), opening=9),
        "stored": max(storing(2, 16), storing(3, 32), storing(32, 64)),
    }
    print(json.dumps(found))
