"""Run the GPU kernels in Triton's interpreter on a CPU and compare them with plain torch.

test_triton_kernels.py runs this in a process of its own, because Triton reads TRITON_INTERPRET when it is imported.
Prints one JSON object: case -> largest difference.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from vidqa.generate.attention import triton_kernels
from vidqa.generate.attention.shared_prefix import PrefixSpan, SharedPrefix, SuffixSpan, attend_with_torch
from vidqa.model.llama import fused_ops


def attention(
    n_prefixes: int,
    n_columns: int,
    heads: tuple[int, int],
    n_new: int,
    lengths: list[int],
    cells: list[int],
    prefill_length: int = 0,
) -> float:
    """Largest difference over the sequences that are not padding; infinite if any value is not finite.

    `cells` is each sequence's cell of the grid, n_prefixes * n_columns for a padding sequence. `prefill_length` is the
    length of suffixes that are prefilled; queries are their last `n_new` tokens. 0 is a decode step.
    """
    torch.manual_seed(0)
    (n_heads, n_kv_heads), d, n, longest = heads, 16, len(cells), max(lengths)
    n_suffix_columns = prefill_length or 40

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).half()

    prefix_kv = (some(n_prefixes * n_kv_heads, longest, d), some(n_prefixes * n_kv_heads, longest, d))
    suffix_kv = (some(n, n_kv_heads, n_suffix_columns, d), some(n, n_kv_heads, n_suffix_columns, d))
    query = some(n, n_new, n_heads, d).transpose(1, 2)
    cell_of, prefix_lengths = torch.tensor(cells), torch.tensor(lengths)
    sequence_at = torch.full((n_prefixes * n_columns,), -1)
    for i, cell in enumerate(cells):
        if cell < len(sequence_at):
            sequence_at[cell] = i
    first_column, next_column = torch.randint(0, 4, (n,)), torch.randint(6, 39, (n,))
    columns = torch.arange(n_suffix_columns)
    last = next_column[:, None]
    if prefill_length:
        next_column[:] = prefill_length
        last = torch.arange(prefill_length - n_new, prefill_length)[None]
    mask = ((columns >= first_column[:, None, None]) & (columns <= last[:, :, None]))[:, None]
    padding = (torch.arange(longest) >= prefix_lengths[:, None])[:, None]
    span = PrefixSpan(
        0, n_prefixes, n_columns, longest, cell_of, padding, sequence_at=sequence_at, prefix_lengths=prefix_lengths
    )
    suffix = SuffixSpan(first_column, next_column, bool(prefill_length))
    shared_prefix = SharedPrefix([prefix_kv], n_prefixes, (span,), suffix)
    exact = SharedPrefix([(prefix_kv[0].float(), prefix_kv[1].float())], n_prefixes, (span,))
    scale = d**-0.5
    expected = attend_with_torch(query.float(), suffix_kv[0].float(), suffix_kv[1].float(), mask, exact, 0, scale)
    actual = triton_kernels.attend(query, *suffix_kv, shared_prefix, suffix, 0, scale).float()
    if not torch.isfinite(actual).all():
        return float("inf")
    not_padding = [i for i, cell in enumerate(cells) if cell < n_prefixes * n_columns]
    return float((actual - expected)[not_padding].abs().max())


def storing(n_kv_heads: int, d: int) -> float:
    """Difference between the store kernel and an indexed write."""
    torch.manual_seed(0)
    keys, values = torch.zeros(5, n_kv_heads, 9, d), torch.zeros(5, n_kv_heads, 9, d)
    next_column = torch.tensor([3, 0, 8])
    heads = torch.randn(3, 1, 3 * n_kv_heads, d).transpose(1, 2)
    new = heads[:, :n_kv_heads], heads[:, -n_kv_heads:]
    expected = torch.zeros(2, 5, n_kv_heads, 9, d)
    for buffer, one in zip(expected, new, strict=True):
        buffer[torch.arange(3), :, next_column] = one[:, :, 0]
    triton_kernels.store(keys, values, new, next_column)
    return float((torch.stack([keys, values]) - expected).abs().max())


if __name__ == "__main__":
    cpu, half = torch.device("cpu"), torch.float16
    eight = list(range(8))
    differences = {
        "self check": triton_kernels.max_difference(cpu, half, 32),
        "self check of the Llama's kernels": fused_ops.max_difference(cpu, half, 64),
        "out of order, unequal lengths": attention(2, 2, (4, 2), 1, [600, 300], [2, 0, 1]),
        "one prefix, eight questions": attention(1, 8, (4, 4), 1, [700], eight),
        "some sequences are padding": attention(4, 2, (2, 2), 1, [256, 100, 1, 30], [0, 1, 2, 4, 6, 8, 8, 8]),
        "prefill": attention(2, 4, (4, 2), 9, [300, 300], eight, prefill_length=9),
        "prefill, last token only": attention(2, 4, (4, 2), 1, [300, 200], eight, prefill_length=9),
        "more rows than one program takes": attention(1, 16, (8, 2), 9, [130], list(range(16)), prefill_length=9),
        "store": max(storing(2, 16), storing(3, 32), storing(32, 64)),
    }
    print(json.dumps(differences))
