"""Keys and values of everything that is being answered, in buffers that are made once and filled again and again.

Knows tensors and which line belongs to which clip. Does not know tokens, prompts or why a line ends.

    prefixes   [C * G, P, d] a layer: one beginning a clip, from column 0
    own        [B, G, T, d] a layer: what follows it in each line; questions that come in together are padded on the
               left to one length, so a line's part lies in the columns from `start` up to `now`

Lines and clips are kept without gaps: when some leave, the last ones take their places.

Letters: B lines at most, n lines now, C clips at most, P longest beginning, T longest own part, G key heads, d width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from vidqa.generate.attention.shared_prefix import KERNELS, PrefixSpan, SharedPrefix, SuffixSpan
from vidqa.generate.kv_cache.buffers import Buffers, CacheCapacity, numbers
from vidqa.model.llama.kernel_check import proven


class KVPool:
    """Buffers of one model on one device, with the method of a transformers cache that attention layers call.

    Args:
        room: how much is kept; buffers are made when the first keys and values tell heads, widths and type.
        n_layers: of the model.
        device: of all of it.
        static: run every step over whole buffers and rounded numbers of lines and clips, so that few different shapes
            occur and every tensor keeps its address, which is what CUDA graphs ask for.
    """

    def __init__(self, room: CacheCapacity, n_layers: int, device: torch.device, static: bool = False) -> None:
        self.room, self.static, self.device = room, static, device
        # Steps of fixed shapes read what nothing was stored in.
        self._buffers = Buffers(room, n_layers, cleared=static)
        self.prefixes, self.own = self._buffers.prefixes, self._buffers.own
        self.lengths: list[int] = []  # of the beginnings
        self._arriving = range(0)  # clips whose keys and values come now
        self._clean: list[int] = []  # of each beginning: positions that hold finite numbers
        self.clip_of: list[int] = []  # of each line
        self.ends: list[int] = []  # of each line: the column that its next token goes into, as `now`
        #: Lines, clips and lines a clip that a step runs over.
        self.shape = (0, 0, 0)
        self.in_order = False  # see `PrefixSpan`; steps of one shape differ in what they do by this alone
        zeros = torch.zeros(room.n_lines, dtype=torch.int64, device=self.device)
        self.start = zeros.clone()  # first own column of a line
        self.now = zeros.clone()  # the column that its next token goes into
        self.positions = zeros.clone()  # of that token in the whole sequence
        self._where = zeros.clone()
        #: The same the other way round, and the lengths of the beginnings, for kernels that find their own way.
        self._lines = torch.full((room.n_lines * room.n_clips,), -1, dtype=torch.int64, device=self.device)
        self._lengths = torch.zeros(room.n_clips, dtype=torch.int64, device=self.device)
        self._rows = torch.arange(room.n_lines, device=self.device)
        self._steps = torch.arange(max(room.n_own, room.n_prefix), device=self.device)
        self._hidden = torch.zeros(room.n_clips, 1, room.n_prefix, dtype=torch.bool, device=self.device)
        self._any_hidden = False
        self._column: int | None = None  # that all lines write, where it is one
        self._target: slice | None = None  # lines that a first run writes; None for a step

    def begin(self, lengths: Sequence[int]) -> list[int]:
        """Take in new beginnings, of so many positions; gives their clips. `hold` gets their keys and values."""
        self._arriving = range(len(self.lengths), len(self.lengths) + len(lengths))
        self.lengths += lengths
        self._clean += lengths
        return list(self._arriving)

    def hold(self, key: Tensor, value: Tensor, layer_idx: int) -> None:
        """Store keys and values of the new beginnings in one layer, [*, G, longest, d]: layer after layer, so that no
        more than one of them lies beside the buffers.
        """
        if layer_idx == len(self.prefixes):
            self._buffers.add_layer(key, value)
        for row, clip in enumerate(self._arriving):
            n = self.lengths[clip]
            self._buffers.store_beginning(layer_idx, clip, key[row, :, :n], value[row, :, :n])

    def keep(self, lines: Sequence[int], clips: Collection[int] = ()) -> dict[int, int]:
        """Drop all lines but some, and the clips that have no line left.

        Args:
            lines: numbers of those that stay, in their new order (see `packed`).
            clips: numbers of those that stay without a line.

        Returns:
            New number of each clip that stays.
        """
        for new, old in enumerate(lines):
            if old != new:
                self._buffers.move_line(old, new, self.ends[old])
        index = numbers(lines, self.device)
        for values in (self.start, self.now, self.positions):
            values[: len(lines)] = values[index]
        self.clip_of = [self.clip_of[old] for old in lines]
        self.ends = [self.ends[old] for old in lines]
        order = packed([clip in self.clip_of or clip in clips for clip in range(len(self.lengths))])
        for new, old in enumerate(order):
            if old != new:
                self._buffers.move_clip(old, new, self.lengths[old])
        self.lengths = [self.lengths[old] for old in order]
        self._clean = list(self.lengths)
        moved = {old: new for new, old in enumerate(order)}
        self.clip_of = [moved[clip] for clip in self.clip_of]
        self._arrange()
        return moved

    def open(self, clips: Sequence[int], n_tokens: Sequence[int]) -> tuple[Tensor, Tensor, SharedPrefix]:
        """Take in new lines behind the others, and be ready for the first run over their questions.

        Args:
            clips: clip of each new line; those of one clip side by side.
            n_tokens: each question's length; shorter ones are padded on the left to the longest, S.

        Returns:
            Positions int64 [n, S], mask of their own part bool [n, 1, S, S], and the beginnings.
        """
        first, longest = len(self.clip_of), max(n_tokens)
        new = slice(first, first + len(clips))
        begun = numbers([self.lengths[clip] for clip in clips], self.device)
        pad = longest - numbers(n_tokens, self.device)
        self.start[new], self.now[new], self.positions[new] = pad, longest, begun + longest - pad
        self._clean_up()
        self.clip_of += clips
        self.ends += [longest] * len(clips)
        self._arrange()
        self._target = new
        steps = self._steps[:longest]
        mask = (steps >= pad[:, None, None]) & (steps <= steps[:, None])
        places = [
            PrefixSpan(clip, 1, n, self.lengths[clip], self._rows[:n], None, in_order=True)
            for clip, n in Counter(clips).items()
        ]
        own = SuffixSpan(self.start[new], self.now[new], opening=True)
        shared = SharedPrefix(self.prefixes, self.room.n_clips, tuple(places), own)
        return begun[:, None] + (steps - pad[:, None]).clamp(min=0), mask[:, None], shared

    def step(self) -> tuple[Tensor, Tensor, SharedPrefix]:
        """Be ready for one more token of every line; `advance` when it is done. See `open`."""
        n, n_clips, n_places = self.shape
        self._target = None
        steps = self._steps[: self._n_columns()]
        mask = (steps >= self.start[:n, None]) & (steps <= self.now[:n, None])
        n_positions = self._n_positions()
        hidden = self._hidden[:n_clips, :, :n_positions] if self._any_hidden or self.static else None
        part = PrefixSpan(
            0,
            n_clips,
            n_places,
            n_positions,
            self._where[:n],
            hidden,
            self.in_order,
            None if self.in_order else self._lines[: n_clips * n_places],
            None if hidden is None else self._lengths[:n_clips],
        )
        # Lines that came together write one column; a graph, which is recorded once, must not rely on it.
        self._column = None if self.static or len(set(self.ends)) > 1 else self.ends[0]
        shared = SharedPrefix(
            self.prefixes, self.room.n_clips, (part,), SuffixSpan(self.start[:n], self.now[:n], opening=False)
        )
        return self.positions[:n, None], mask[:, None, None], shared

    def advance(self) -> None:
        """One token of every line has been stored."""
        n = len(self.clip_of)
        self.now[:n] += 1
        self.positions[:n] += 1
        self.ends = [end + 1 for end in self.ends]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values [n, G, S, d] of a layer; gives those of the own columns that the mask is about."""
        kernels = proven(KERNELS, self.device, key.dtype, key.shape[-1])
        if kernels is not None and self._target is None and self._column is None:
            keys, values = self.own[layer_idx]
            kernels.store(keys, values, (key, value), self.now)
            n, columns = len(key), self._n_columns()
            return keys[:n, :, :columns], values[:n, :, :columns]
        out = []
        for buffer, new in zip(self.own[layer_idx], (key, value), strict=True):
            if self._target is not None:
                buffer[self._target, :, : new.shape[2]] = new
                out.append(buffer[self._target, :, : new.shape[2]])
            else:
                n = len(new)
                if self._column is not None:
                    buffer[:n, :, self._column] = new[:, :, 0]
                else:
                    buffer[self._rows[:n], :, self.now[:n]] = new[:, :, 0]
                out.append(buffer[:n, :, : self._n_columns()])
        return out[0], out[1]

    def _n_columns(self) -> int:
        return self.room.n_own if self.static else max(self.ends) + 1

    def _n_positions(self) -> int:
        return self.room.n_prefix if self.static else max(self.lengths)

    def _clean_up(self) -> None:
        """Zeros behind the ends of shorter beginnings: what is hidden has no weight, but 0 times NaN is NaN."""
        n = self._n_positions()
        for clip, clean in enumerate(self._clean):
            if clean < n:
                self._buffers.clear(clip, clean, n)
                self._clean[clip] = n

    def _arrange(self) -> None:
        """Learn the shape of the next steps, and tell the device where each line stands."""
        n, counts = len(self.clip_of), Counter(self.clip_of)
        exact = (n, len(self.lengths), max(counts.values(), default=0))
        n_most = (self.room.n_lines, self.room.n_clips, self.room.n_lines)
        self.shape = tuple(map(_rounded, exact, n_most)) if self.static else exact  # type: ignore[assignment]
        _, n_clips, n_places = self.shape
        seen: Counter[int] = Counter()
        where = []
        for clip in self.clip_of:
            where.append(clip * n_places + seen[clip])
            seen[clip] += 1
        self.in_order = where == list(range(n_clips * n_places)) and n == self.shape[0]
        where += [n_clips * n_places] * (self.shape[0] - n)  # lines that fill up a rounded number do not count
        self._where[: len(where)] = numbers(where, self.device)
        lines = [-1] * (n_clips * n_places)
        for line, place in enumerate(where[:n]):
            lines[place] = line
        self._lines[: len(lines)] = numbers(lines, self.device)
        for values in (self.start, self.now, self.positions):
            values[n:] = 0
        lengths = numbers(self.lengths + [0] * (n_clips - len(self.lengths)), self.device)
        self._lengths[:n_clips] = lengths
        self._hidden[:n_clips] = (self._steps[: self.room.n_prefix] >= lengths[:, None])[:, None]
        self._any_hidden = len(set(self.lengths)) > 1


def packed(staying: Sequence[bool]) -> list[int]:
    """Numbers of those that stay, the last ones moved into the gaps: [yes, no, yes, yes] gives [0, 3, 2]."""
    order = [i for i, stays in enumerate(staying) if stays]
    n = len(order)
    late = [i for i in order if i >= n]
    return [i if staying[i] else late.pop() for i in range(n)]


def _rounded(n: int, most: int) -> int:
    """The next power of two, so that few different shapes occur."""
    return min(most, 1 << max(0, n - 1).bit_length())
