"""Attention over shared beginnings and own parts in two kernels for a GPU: what `attention` does with about twenty.

Knows tensors, as `attention` does, whose plain functions it must equal; see `vidqa.model.llama.kernel_check`.

    over_beginnings   a program for a beginning's head and a stretch of its positions: keys and values are read once for
                      all questions of the clip, and not at all behind the end of a shorter beginning
    join              a program for a line's head: attends to the line's own part, and joins it with what the stretches
                      gave through their log-sum-exp

Letters as in `attention`; U stretches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidqa.generate.attention.shared_prefix import PrefixSpan, SharedPrefix, SuffixSpan, plainly
from vidqa.generate.attention.triton_source import join_kernel, over_beginnings_kernel, store_kernel

_LOG2E = 1.4426950408889634
#: Rows of a product: the least that matrix units take, and the most of one program.
_LEAST_ROWS, _MOST_ROWS = 16, 64
#: Positions that a program looks at together: of a beginning, of a line's own part.
_COLUMNS, _OWN_COLUMNS = 64, 32
#: Warps of a program, and loads that it has under way: as much as the smaller GPUs of today have room for.
_WARPS, _STAGES = 4, 2
#: Programs that keep a GPU of some hundred multiprocessors busy, and the most stretches of a beginning.
_PROGRAMS, _MOST_STRETCHES = 1024, 16
#: A stretch is no shorter.
_LEAST_STRETCH = 128


def attend(
    query: Tensor, key: Tensor, value: Tensor, shared: SharedPrefix, own: SuffixSpan, layer: int, scale: float
) -> Tensor:
    """Attend to the beginnings and to each line's own part.

    Args:
        query: half precision [n, H, S, d], d a power of two from 16 to 256.
        key: own keys [n, G, T, d].
        value: own values [n, G, T, d].
        shared: the beginnings; what is asked of them is in its parts, in the order of the lines.
        own: which columns each line looks at.
        layer: number of the layer.
        scale: of the scores.

    Returns:
        [n, S, H, d], of the query's type. Lines that do not count get something finite.
    """
    n, n_heads, n_new, d = query.shape
    n_groups = key.shape[1]
    most = max(_stretches(part, n_groups, n_heads // n_groups * n_new) for part in shared.parts)
    out = torch.empty(most, n, n_heads, n_new, d, dtype=torch.float32, device=query.device)
    lse = torch.empty(most, n, n_heads, n_new, dtype=torch.float32, device=query.device)
    first = 0
    for part in shared.parts:
        _over_beginnings(query, part, *shared.of(part, layer), (out, lse), first, scale)
        first += len(part.where)
    return _join(query, key, value, shared, own, (out, lse), scale)


def _stretches(part: PrefixSpan, n_groups: int, n_rows: int) -> int:
    """Into how many stretches beginnings are cut, so that there are enough programs: a power of two."""
    programs = part.n_clips * n_groups * -(-part.n_places * n_rows // _MOST_ROWS)
    n = 1
    while n < _MOST_STRETCHES and programs * n < _PROGRAMS and part.n_positions >= 2 * n * _LEAST_STRETCH:
        n *= 2
    return n


def _rows(n_rows: int) -> int:
    """Rows of one program, of so many in all: a power of two."""
    return min(_MOST_ROWS, max(_LEAST_ROWS, 1 << (n_rows - 1).bit_length()))


def _over_beginnings(
    query: Tensor, part: PrefixSpan, keys: Tensor, values: Tensor, into: tuple[Tensor, Tensor], first: int, scale: float
) -> None:
    """Lines from `first` on attend to the beginnings of a part; what each stretch gives goes into [U, n, H, S, (d)]."""
    (out, lse), n_clips = into, part.n_clips
    n_heads, n_new, d = query.shape[1:]
    n_groups = keys.shape[0] // n_clips
    n_rows = part.n_places * (n_heads // n_groups) * n_new
    rows = _rows(n_rows)
    nothing = part.where  # of the right type, not read
    over_beginnings_kernel[-(-n_rows // rows), n_clips * n_groups, len(out)](
        query,
        keys,
        values,
        out,
        lse,
        nothing if part.lines is None else part.lines,
        nothing if part.lengths is None else part.lengths,
        scale * _LOG2E,
        query.stride(0),
        query.stride(1),
        query.stride(2),
        keys.stride(0),
        keys.stride(1),
        len(query),
        n_heads,
        n_new,
        part.n_places,
        part.n_positions,
        first,
        n_groups=n_groups,
        d=d,
        n_rows=rows,
        n_columns=_COLUMNS,
        has_lines=part.lines is not None,
        has_lengths=part.lengths is not None,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )


def _join(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared: SharedPrefix,
    own: SuffixSpan,
    begun: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    n, n_heads, n_new, d = query.shape
    n_groups = key.shape[1]
    n_rows = n_heads // n_groups * n_new
    rows = _rows(n_rows)
    result = query.new_empty(n, n_new, n_heads, d)
    where, one = shared.parts[0].where, len(shared.parts) == 1
    join_kernel[n * n_groups, -(-n_rows // rows)](
        query,
        key,
        value,
        *begun,
        result,
        where,
        own.start,
        own.now,
        n_new if own.opening else 0,
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
        shared.parts[0].n_clips * shared.parts[0].n_places if one else n,
        len(begun[0]),
        n_groups=n_groups,
        d=d,
        n_rows=rows,
        n_columns=_OWN_COLUMNS,
        some_do_not_count=one,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return result


def store(keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor], now: Tensor) -> None:
    """Put one token's keys and values of each line into the line's column.

    Args:
        keys: of own parts, [B, G, T, d].
        values: as `keys`, with the same strides.
        new: keys and values [n, G, 1, d], each head's numbers side by side.
        now: int64 [n], the columns.
    """
    n, n_groups, _, d = new[0].shape
    rows = min(16, 1 << (n_groups - 1).bit_length())
    store_kernel[n, -(-n_groups // rows)](
        keys,
        values,
        *new,
        now,
        *keys.stride()[:3],
        *new[0].stride()[:2],
        *new[1].stride()[:2],
        n_groups,
        d=d,
        n_rows=rows,
        num_warps=2,
    )


def difference(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Largest difference from the plain functions: a step, and questions that take as many rows as a program may."""
    drawn = torch.Generator("cpu").manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn).to(device, dtype)

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    begun, columns = (some(4, 600, width), some(4, 600, width)), torch.arange(40, device=device)
    own, lengths = (some(3, 2, 40, width), some(3, 2, 40, width)), numbers(600, 300)
    hidden = (torch.arange(600, device=device) >= lengths[:, None])[:, None]
    part = PrefixSpan(0, 2, 2, 600, numbers(2, 0, 1), hidden, lines=numbers(1, 2, 0, -1), lengths=lengths)
    start, far = numbers(0, 2, 1), 0.0
    for n_new, now in ((1, numbers(3, 39, 4)), (40, numbers(40, 40, 40))):
        opening = n_new > 1
        own_columns = SuffixSpan(start, now, opening)
        shared = SharedPrefix([begun], 2, (part,), own_columns)
        last = columns[None] if opening else now[:, None]
        mask = ((columns >= start[:, None, None]) & (columns <= last[:, :, None]))[:, None]
        query = some(3, 4, n_new, width)
        want = plainly(query, *own, mask, shared, 0, width**-0.5).float()
        got = attend(query, *own, shared, own_columns, 0, width**-0.5).float()
        far = max(far, float((got - want).abs().max()))
    return far
