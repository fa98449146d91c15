"""What a program of each of attention's kernels does; `kernels` says how many there are, and what they are for.

A stretch of a beginning, and a line's own part, are read block by block with a running maximum, as in FlashAttention
(https://arxiv.org/abs/2205.14135); scores are in units of log2(e), for exp2 is what the hardware has.
"""

from __future__ import annotations

import triton
import triton.language as tl

# `do_not_specialize` names what changes from call to call: a kernel is not compiled anew for a number's being 1 or a
# multiple of 16, nor for where a slice of line numbers begins.


@triton.jit
def store_kernel(  # type: ignore[no-untyped-def]
    keys, values, new_keys, new_values, now, by_line, by_group, by_column, by_new_key_line, by_new_key_group,
    by_new_value_line, by_new_value_group, n_groups, d: tl.constexpr, n_rows: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * n_rows + tl.arange(0, n_rows)
    column = tl.arange(0, d)
    counts = (group < n_groups)[:, None] & (column < d)[None, :]
    to = line * by_line + tl.load(now + line) * by_column + group[:, None] * by_group + column[None, :]
    key = new_keys + line * by_new_key_line + group[:, None] * by_new_key_group + column[None, :]
    value = new_values + line * by_new_value_line + group[:, None] * by_new_value_group + column[None, :]
    tl.store(keys + to, tl.load(key, mask=counts, other=0.0), mask=counts)
    tl.store(values + to, tl.load(value, mask=counts, other=0.0), mask=counts)


@triton.jit
def add_block(q, keys, values, at_position, inside, seen, scale, column, highest, total, sums):  # type: ignore[no-untyped-def]
    k = tl.load(keys + column[:, None] + at_position[None, :], mask=inside[None, :], other=0.0)
    scores = tl.where(seen, tl.dot(q, k) * scale, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    zero = tl.where(higher == float("-inf"), 0.0, higher)  # a padded token sees nothing of a line's own part
    weights = tl.exp2(scores - zero[:, None])
    fade = tl.exp2(highest - zero)
    v = tl.load(values + at_position[:, None] + column[None, :], mask=inside[:, None], other=0.0)
    sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v)
    return higher, total * fade + tl.sum(weights, 1), sums


@triton.jit(do_not_specialize=["lines", "n", "n_places", "n_positions", "first"])
def over_beginnings_kernel(  # type: ignore[no-untyped-def]
    query, keys, values, means, lse, lines, lengths, scale, by_line, by_head, by_token, by_group, by_position,
    n, n_heads, n_new, n_places, n_positions, first,
    n_groups: tl.constexpr, d: tl.constexpr, n_rows: tl.constexpr, n_columns: tl.constexpr,
    has_lines: tl.constexpr, has_lengths: tl.constexpr,
):  # fmt: skip
    clip, group = tl.program_id(1) // n_groups, tl.program_id(1) % n_groups
    stretch, n_stretches = tl.program_id(2), tl.num_programs(2)
    length = n_positions
    if has_lengths:
        length = tl.load(lengths + clip).to(tl.int32)
    # Rows are places of the clip, heads of the group, new tokens.
    row = tl.program_id(0) * n_rows + tl.arange(0, n_rows)
    ratio = n_heads // n_groups
    place, head, token = row // (ratio * n_new), group * ratio + (row // n_new) % ratio, row % n_new
    counts = place < n_places
    line = clip * n_places + place
    if has_lines:
        line = tl.load(lines + line, mask=counts, other=-1).to(tl.int32)
        counts = counts & (line >= 0)
    line = first + line
    column = tl.arange(0, d)
    at_query = line.to(tl.int64) * by_line + head * by_head + token * by_token
    q = tl.load(query + at_query[:, None] + column[None, :], mask=counts[:, None], other=0.0)
    each = tl.cdiv(tl.cdiv(length, n_stretches), n_columns) * n_columns
    begin = stretch * each
    end = tl.minimum(begin + each, length)
    base = tl.program_id(1).to(tl.int64) * by_group
    highest = tl.full([n_rows], float("-inf"), tl.float32)
    total = tl.zeros([n_rows], tl.float32)
    sums = tl.zeros([n_rows, d], tl.float32)
    for at in range(begin, end, n_columns):
        position = at + tl.arange(0, n_columns)
        inside = position < end
        highest, total, sums = add_block(
            q, keys + base, values + base, position * by_position, inside, inside[None, :], scale, column,
            highest, total, sums,
        )  # fmt: skip
    some = total > 0
    at_out = ((stretch * n + line).to(tl.int64) * n_heads + head) * n_new + token
    total = tl.where(some, total, 1.0)
    tl.store(lse + at_out, tl.where(some, highest + tl.log2(total), float("-inf")), mask=counts)
    tl.store(means + at_out[:, None] * d + column[None, :], sums / total[:, None], mask=counts[:, None])


@triton.jit(do_not_specialize=["where", "start", "now", "n", "n_before", "n_counted", "n_stretches"])
def join_kernel(  # type: ignore[no-untyped-def]
    query, keys, values, means, lse, result, where, start, now, n_before, scale, by_line, by_head, by_token,
    by_own_line, by_own_group, by_own_column, n, n_heads, n_new, n_counted, n_stretches,
    n_groups: tl.constexpr, d: tl.constexpr, n_rows: tl.constexpr, n_columns: tl.constexpr,
    some_do_not_count: tl.constexpr,
):  # fmt: skip
    line, group = tl.program_id(0) // n_groups, tl.program_id(0) % n_groups
    row = tl.program_id(1) * n_rows + tl.arange(0, n_rows)
    ratio = n_heads // n_groups
    head, token = group * ratio + row // n_new, row % n_new
    counts = row < ratio * n_new
    column = tl.arange(0, d)
    at_query = line.to(tl.int64) * by_line + head * by_head + token * by_token
    q = tl.load(query + at_query[:, None] + column[None, :], mask=counts[:, None], other=0.0)
    begin = tl.load(start + line).to(tl.int32)
    last = tl.load(now + line).to(tl.int32) - n_before  # column of the first new token
    end = last + n_new
    base = line.to(tl.int64) * by_own_line + group * by_own_group
    highest = tl.full([n_rows], float("-inf"), tl.float32)
    total = tl.zeros([n_rows], tl.float32)
    sums = tl.zeros([n_rows, d], tl.float32)
    for at in range(begin, end, n_columns):
        position = at + tl.arange(0, n_columns)
        inside = position < end
        seen = inside[None, :] & (position[None, :] <= (last + token)[:, None])
        highest, total, sums = add_block(
            q, keys + base, values + base, position * by_own_column, inside, seen, scale, column,
            highest, total, sums,
        )  # fmt: skip
    begun = counts
    if some_do_not_count:
        begun = counts & (tl.load(where + line + 0 * row) < n_counted)
    for stretch in range(n_stretches):
        at_out = ((stretch * n + line).to(tl.int64) * n_heads + head) * n_new + token
        level = tl.load(lse + at_out, mask=begun, other=float("-inf"))
        part = tl.load(means + at_out[:, None] * d + column[None, :], mask=begun[:, None], other=0.0)
        higher = tl.maximum(highest, level)
        zero = tl.where(higher == float("-inf"), 0.0, higher)
        fade, weight = tl.exp2(highest - zero), tl.exp2(level - zero)
        sums = sums * fade[:, None] + part * weight[:, None]
        total = total * fade + weight
        highest = higher
    sums = sums / tl.where(total > 0, total, 1.0)[:, None]
    at_result = (line * n_new + token).to(tl.int64) * n_heads + head
    tl.store(result + at_result[:, None] * d + column[None, :], sums.to(result.dtype.element_ty), mask=counts[:, None])
