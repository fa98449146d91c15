"""Attention over shared prefixes and suffixes in two GPU kernels, equal to `shared_prefix.attend_with_torch`.

    prefix_kernel   one program per prefix, KV head and KV split: K and V are read once for all questions about
                    the media, and not at all past the end of a shorter prefix
    merge_kernel    one program per sequence and KV head: attends to the suffix and merges the result with those of the
                    KV splits by their log-sum-exp

Both read K and V block by block with a running maximum, as FlashAttention does
(https://arxiv.org/abs/2205.14135). Scores are in units of log2(e), because the hardware computes exp2.
The module is imported only if Triton is installed; see `vidqa.model.llama.kernel_check`.

Letters as in `shared_prefix`; U KV splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidqa.generate.attention.shared_prefix import PrefixSpan, SharedPrefix, SuffixSpan, attend_with_torch

_LOG2E = 1.4426950408889634
#: Rows of a matmul: the minimum that the matrix units support, and the maximum per program.
_MIN_ROWS, _MAX_ROWS = 16, 64
#: Positions per block: of a prefix, of a suffix.
_PREFIX_BLOCK, _SUFFIX_BLOCK = 64, 32
#: Warps of a program and pipelined loads: as many as the smaller current GPUs have registers and shared memory for.
_WARPS, _STAGES = 4, 2
#: Programs that keep a GPU of a few hundred multiprocessors busy, and the maximum number of KV splits.
_PROGRAMS, _MAX_SPLITS = 1024, 16
#: Minimum length of a KV split.
_MIN_SPLIT_LENGTH = 128


def attend(
    query: Tensor, key: Tensor, value: Tensor, shared_prefix: SharedPrefix, suffix: SuffixSpan, layer: int, scale: float
) -> Tensor:
    """Attend to the prefixes and to each sequence's suffix.

    Args:
        query: half precision [n, H, S, d], d a power of two from 16 to 256.
        key: keys of the suffixes, [n, G, T, d].
        value: values of the suffixes, [n, G, T, d].
        shared_prefix: the prefixes, with spans in the order of the sequences.
        suffix: columns that each sequence attends to.
        layer: index of the layer.
        scale: factor of the scores.

    Returns:
        [n, S, H, d], dtype of the query. Finite but meaningless for padding sequences.
    """
    n, n_heads, n_new, d = query.shape
    n_kv_heads = key.shape[1]
    most = max(_n_splits(span, n_kv_heads, n_heads // n_kv_heads * n_new) for span in shared_prefix.spans)
    out = torch.empty(most, n, n_heads, n_new, d, dtype=torch.float32, device=query.device)
    lse = torch.empty(most, n, n_heads, n_new, dtype=torch.float32, device=query.device)
    first = 0
    for span in shared_prefix.spans:
        _attend_to_prefixes(query, span, *shared_prefix.kv_of(span, layer), (out, lse), first, scale)
        first += len(span.cell_of)
    return _attend_to_suffixes(query, key, value, shared_prefix, suffix, (out, lse), scale)


def _n_splits(span: PrefixSpan, n_kv_heads: int, n_rows: int) -> int:
    """Number of KV splits per prefix, a power of two, so that there are enough programs for the GPU."""
    programs = span.n_prefixes * n_kv_heads * -(-span.n_columns * n_rows // _MAX_ROWS)
    n = 1
    while n < _MAX_SPLITS and programs * n < _PROGRAMS and span.length >= 2 * n * _MIN_SPLIT_LENGTH:
        n *= 2
    return n


def _block_rows(n_rows: int) -> int:
    """Rows of one program, given the total: a power of two."""
    return min(_MAX_ROWS, max(_MIN_ROWS, 1 << (n_rows - 1).bit_length()))


def _attend_to_prefixes(
    query: Tensor,
    span: PrefixSpan,
    keys: Tensor,
    values: Tensor,
    into: tuple[Tensor, Tensor],
    first: int,
    scale: float,
) -> None:
    """Attend to the prefixes of a span.

    The queries are those from sequence `first` on. The result of each KV split is written to `into`: the output
    [U, n, H, S, d] and its log-sum-exp [U, n, H, S].
    """
    (out, lse), n_prefixes = into, span.n_prefixes
    n_heads, n_new, d = query.shape[1:]
    n_kv_heads = keys.shape[0] // n_prefixes
    n_rows = span.n_columns * (n_heads // n_kv_heads) * n_new
    block_rows = _block_rows(n_rows)
    unused = span.cell_of  # has the right dtype and is not read
    prefix_kernel[-(-n_rows // block_rows), n_prefixes * n_kv_heads, len(out)](
        query,
        keys,
        values,
        out,
        lse,
        unused if span.sequence_at is None else span.sequence_at,
        unused if span.prefix_lengths is None else span.prefix_lengths,
        scale * _LOG2E,
        query.stride(0),
        query.stride(1),
        query.stride(2),
        keys.stride(0),
        keys.stride(1),
        len(query),
        n_heads,
        n_new,
        span.n_columns,
        span.length,
        first,
        n_kv_heads=n_kv_heads,
        head_dim=d,
        block_rows=block_rows,
        block_size=_PREFIX_BLOCK,
        has_sequence_at=span.sequence_at is not None,
        has_lengths=span.prefix_lengths is not None,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )


def _attend_to_suffixes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared_prefix: SharedPrefix,
    suffix: SuffixSpan,
    splits: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Attend to the suffixes and merge the result with those of the KV splits; return [n, S, H, d]."""
    n, n_heads, n_new, d = query.shape
    n_kv_heads = key.shape[1]
    n_rows = n_heads // n_kv_heads * n_new
    block_rows = _block_rows(n_rows)
    result = query.new_empty(n, n_new, n_heads, d)
    span, only_one = shared_prefix.spans[0], len(shared_prefix.spans) == 1
    merge_kernel[n * n_kv_heads, -(-n_rows // block_rows)](
        query,
        key,
        value,
        *splits,
        result,
        span.cell_of,
        suffix.first_column,
        suffix.next_column,
        n_new if suffix.is_prefill else 0,
        scale * _LOG2E,
        query.stride(0),
        query.stride(1),
        query.stride(2),
        key.stride(0),
        key.stride(1),
        key.stride(2),
        n,
        n_heads,
        n_new,
        span.n_prefixes * span.n_columns if only_one else n,
        len(splits[0]),
        n_kv_heads=n_kv_heads,
        head_dim=d,
        block_rows=block_rows,
        block_size=_SUFFIX_BLOCK,
        has_padding=only_one,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return result


def store(keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor], next_column: Tensor) -> None:
    """Write one token's K and V of each sequence into its column.

    Args:
        keys: keys of the suffixes, [B, G, T, d].
        values: values of the suffixes, [B, G, T, d], with the strides of `keys`.
        new: K and V [n, G, 1, d]; the elements of a head are contiguous.
        next_column: int64 [n], the column of each sequence's token.
    """
    n, n_kv_heads, _, d = new[0].shape
    block_rows = min(16, 1 << (n_kv_heads - 1).bit_length())
    store_kernel[n, -(-n_kv_heads // block_rows)](
        keys,
        values,
        *new,
        next_column,
        *keys.stride()[:3],
        *new[0].stride()[:2],
        *new[1].stride()[:2],
        n_kv_heads,
        head_dim=d,
        block_rows=block_rows,
        num_warps=2,
    )


def max_difference(device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """Run a decode step and a prefill that fills whole programs; return the largest difference from plain torch."""
    generator = torch.Generator("cpu").manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    def indices(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    prefix_kv, columns = (some(4, 600, head_dim), some(4, 600, head_dim)), torch.arange(40, device=device)
    suffix_kv, lengths = (some(3, 2, 40, head_dim), some(3, 2, 40, head_dim)), indices(600, 300)
    padding = (torch.arange(600, device=device) >= lengths[:, None])[:, None]
    span = PrefixSpan(0, 2, 2, 600, indices(2, 0, 1), padding, sequence_at=indices(1, 2, 0, -1), prefix_lengths=lengths)
    first_column, largest = indices(0, 2, 1), 0.0
    for n_new, next_column in ((1, indices(3, 39, 4)), (40, indices(40, 40, 40))):
        is_prefill = n_new > 1
        suffix = SuffixSpan(first_column, next_column, is_prefill)
        shared_prefix = SharedPrefix([prefix_kv], 2, (span,), suffix)
        last = columns[None] if is_prefill else next_column[:, None]
        mask = ((columns >= first_column[:, None, None]) & (columns <= last[:, :, None]))[:, None]
        query, scale = some(3, 4, n_new, head_dim), head_dim**-0.5
        expected = attend_with_torch(query, *suffix_kv, mask, shared_prefix, 0, scale).float()
        actual = attend(query, *suffix_kv, shared_prefix, suffix, 0, scale).float()
        largest = max(largest, float((actual - expected).abs().max()))
    return largest


# `do_not_specialize` lists the arguments that change from call to call, so that a kernel is not compiled again when a
# number happens to be 1 or a multiple of 16, or when a slice of indices starts at another address.


@triton.jit
def store_kernel(  # type: ignore[no-untyped-def]
    keys, values, new_keys, new_values, next_column, sequence_stride, head_stride, column_stride,
    new_k_sequence_stride, new_k_head_stride, new_v_sequence_stride, new_v_head_stride, n_kv_heads,
    head_dim: tl.constexpr, block_rows: tl.constexpr,
):  # fmt: skip
    """Write the new K and V of one sequence and up to `block_rows` KV heads."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    dim = tl.arange(0, head_dim)
    valid = (head < n_kv_heads)[:, None] & (dim < head_dim)[None, :]
    column = tl.load(next_column + sequence)
    to = sequence * sequence_stride + column * column_stride + head[:, None] * head_stride + dim[None, :]
    key = new_keys + sequence * new_k_sequence_stride + head[:, None] * new_k_head_stride + dim[None, :]
    value = new_values + sequence * new_v_sequence_stride + head[:, None] * new_v_head_stride + dim[None, :]
    tl.store(keys + to, tl.load(key, mask=valid, other=0.0), mask=valid)
    tl.store(values + to, tl.load(value, mask=valid, other=0.0), mask=valid)


@triton.jit
def add_block(q, keys, values, offset, inside, visible, scale, dim, highest, total, sums):  # type: ignore[no-untyped-def]
    """Add one block of K and V to the running softmax."""
    k = tl.load(keys + dim[:, None] + offset[None, :], mask=inside[None, :], other=0.0)
    scores = tl.where(visible, tl.dot(q, k) * scale, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)  # a padding token attends to nothing in its suffix
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(highest - shift)
    v = tl.load(values + offset[:, None] + dim[None, :], mask=inside[:, None], other=0.0)
    sums = sums * decay[:, None] + tl.dot(weights.to(v.dtype), v)
    return higher, total * decay + tl.sum(weights, 1), sums


@triton.jit(do_not_specialize=["sequence_at", "n", "n_columns", "prefix_length", "first"])
def prefix_kernel(  # type: ignore[no-untyped-def]
    query, keys, values, means, lse, sequence_at, lengths, scale, sequence_stride, head_stride, token_stride,
    kv_head_stride, position_stride, n, n_heads, n_new, n_columns, prefix_length, first,
    n_kv_heads: tl.constexpr, head_dim: tl.constexpr, block_rows: tl.constexpr, block_size: tl.constexpr,
    has_sequence_at: tl.constexpr, has_lengths: tl.constexpr,
):  # fmt: skip
    """Attend from up to `block_rows` queries to one KV split of one prefix and KV head."""
    prefix, kv_head = tl.program_id(1) // n_kv_heads, tl.program_id(1) % n_kv_heads
    split, n_splits = tl.program_id(2), tl.num_programs(2)
    length = prefix_length
    if has_lengths:
        length = tl.load(lengths + prefix).to(tl.int32)
    # A row is one query: a column of the prefix's grid row, a query head of the KV head, and a new token.
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    ratio = n_heads // n_kv_heads
    column, head, token = row // (ratio * n_new), kv_head * ratio + (row // n_new) % ratio, row % n_new
    valid = column < n_columns
    sequence = prefix * n_columns + column
    if has_sequence_at:
        sequence = tl.load(sequence_at + sequence, mask=valid, other=-1).to(tl.int32)
        valid = valid & (sequence >= 0)
    sequence = first + sequence
    dim = tl.arange(0, head_dim)
    at_query = sequence.to(tl.int64) * sequence_stride + head * head_stride + token * token_stride
    q = tl.load(query + at_query[:, None] + dim[None, :], mask=valid[:, None], other=0.0)
    split_length = tl.cdiv(tl.cdiv(length, n_splits), block_size) * block_size
    start = split * split_length
    end = tl.minimum(start + split_length, length)
    base = tl.program_id(1).to(tl.int64) * kv_head_stride
    highest = tl.full([block_rows], float("-inf"), tl.float32)
    total = tl.zeros([block_rows], tl.float32)
    sums = tl.zeros([block_rows, head_dim], tl.float32)
    for at in range(start, end, block_size):
        position = at + tl.arange(0, block_size)
        inside = position < end
        highest, total, sums = add_block(
            q, keys + base, values + base, position * position_stride, inside, inside[None, :], scale, dim,
            highest, total, sums,
        )  # fmt: skip
    not_empty = total > 0
    at_out = ((split * n + sequence).to(tl.int64) * n_heads + head) * n_new + token
    total = tl.where(not_empty, total, 1.0)
    tl.store(lse + at_out, tl.where(not_empty, highest + tl.log2(total), float("-inf")), mask=valid)
    tl.store(means + at_out[:, None] * head_dim + dim[None, :], sums / total[:, None], mask=valid[:, None])


@triton.jit(do_not_specialize=["cell_of", "first_column", "next_column", "n", "n_prefilled", "n_cells", "n_splits"])
def merge_kernel(  # type: ignore[no-untyped-def]
    query, keys, values, means, lse, result, cell_of, first_column, next_column, n_prefilled, scale, sequence_stride,
    head_stride, token_stride, suffix_sequence_stride, suffix_head_stride, suffix_column_stride, n, n_heads, n_new,
    n_cells, n_splits,
    n_kv_heads: tl.constexpr, head_dim: tl.constexpr, block_rows: tl.constexpr, block_size: tl.constexpr,
    has_padding: tl.constexpr,
):  # fmt: skip
    """Attend from one sequence and KV head to its suffix and merge the result with the KV splits of its prefix."""
    sequence, kv_head = tl.program_id(0) // n_kv_heads, tl.program_id(0) % n_kv_heads
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    ratio = n_heads // n_kv_heads
    head, token = kv_head * ratio + row // n_new, row % n_new
    valid = row < ratio * n_new
    dim = tl.arange(0, head_dim)
    at_query = sequence.to(tl.int64) * sequence_stride + head * head_stride + token * token_stride
    q = tl.load(query + at_query[:, None] + dim[None, :], mask=valid[:, None], other=0.0)
    start = tl.load(first_column + sequence).to(tl.int32)
    last = tl.load(next_column + sequence).to(tl.int32) - n_prefilled  # column of the first new token
    end = last + n_new
    base = sequence.to(tl.int64) * suffix_sequence_stride + kv_head * suffix_head_stride
    highest = tl.full([block_rows], float("-inf"), tl.float32)
    total = tl.zeros([block_rows], tl.float32)
    sums = tl.zeros([block_rows, head_dim], tl.float32)
    for at in range(start, end, block_size):
        position = at + tl.arange(0, block_size)
        inside = position < end
        visible = inside[None, :] & (position[None, :] <= (last + token)[:, None])
        highest, total, sums = add_block(
            q, keys + base, values + base, position * suffix_column_stride, inside, visible, scale, dim,
            highest, total, sums,
        )  # fmt: skip
    in_prefix = valid
    if has_padding:
        in_prefix = valid & (tl.load(cell_of + sequence + 0 * row) < n_cells)
    for split in range(n_splits):
        at_split = ((split * n + sequence).to(tl.int64) * n_heads + head) * n_new + token
        split_lse = tl.load(lse + at_split, mask=in_prefix, other=float("-inf"))
        mean = tl.load(means + at_split[:, None] * head_dim + dim[None, :], mask=in_prefix[:, None], other=0.0)
        higher = tl.maximum(highest, split_lse)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        decay, weight = tl.exp2(highest - shift), tl.exp2(split_lse - shift)
        sums = sums * decay[:, None] + mean * weight[:, None]
        total = total * decay + weight
        highest = higher
    sums = sums / tl.where(total > 0, total, 1.0)[:, None]
    at_result = (sequence * n_new + token).to(tl.int64) * n_heads + head
    tl.store(
        result + at_result[:, None] * head_dim + dim[None, :], sums.to(result.dtype.element_ty), mask=valid[:, None]
    )
