"""Room for keys and values: tensors that are made once, of all layers together, in which lines and clips move.

Knows layers, rows and columns. Does not know who they belong to; see `pool`.

Letters as in `pool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CacheCapacity:
    """What there is room for."""

    n_lines: int  # B
    n_clips: int  # C
    n_prefix: int  # P
    n_own: int  # T


class Buffers:
    """Keys and values of beginnings and of what follows them, made layer by layer as the first ones come.

    The layers lie in one block, so that a line or a clip moves in one go, not in two for each of them.

    Args:
        room: for how much.
        n_layers: of the model.
        cleared: whether what nothing was written to must be numbers.
    """

    def __init__(self, room: CacheCapacity, n_layers: int, cleared: bool) -> None:
        self.prefixes: list[tuple[Tensor, Tensor]] = []  # [C * G, P, d] a layer
        self.own: list[tuple[Tensor, Tensor]] = []  # [B, G, T, d] a layer
        self._room, self._n_layers, self._cleared = room, n_layers, cleared
        #: The same, a dimension in front for the layers: keys, values, and then layers that are not like the first.
        self._all_prefixes: list[Tensor] = []
        self._all_own: list[Tensor] = []

    def add_layer(self, *like: Tensor) -> None:
        """Room in the next layer for keys and values like these, [*, G, *, d]."""
        layer, room = len(self.prefixes), self._room
        prefixes, own = [], []
        for role, one in enumerate(like):
            _, groups, _, width = one.shape
            shape = (room.n_clips * groups, room.n_prefix, width)
            at, row = role, layer
            if not layer or self._all_prefixes[role].shape[1:] != shape:  # layers of the usual models are all alike
                n = 1 if layer else self._n_layers
                # On a CPU the system gives a page when it is first written, so room costs nothing by itself.
                new = one.new_zeros if self._cleared else one.new_empty
                self._all_prefixes.append(new(n, *shape))
                self._all_own.append(one.new_zeros(n, room.n_lines, groups, room.n_own, width))
                at, row = -1, 0
            prefixes.append(self._all_prefixes[at][row])
            own.append(self._all_own[at][row])
        self.prefixes.append((prefixes[0], prefixes[1]))
        self.own.append((own[0], own[1]))

    def store_beginning(self, layer: int, clip: int, key: Tensor, value: Tensor) -> None:
        """Keys and values of a clip's beginning in a layer, [G, n, d]."""
        for buffer, new in zip(self.prefixes[layer], (key, value), strict=True):
            groups, n, _ = new.shape
            buffer[clip * groups : (clip + 1) * groups, :n] = new

    def move_line(self, old: int, new: int, n: int) -> None:
        """The first `n` columns of a line's own part go to another line."""
        for buffer in self._all_own:
            buffer[:, new, :, :n] = buffer[:, old, :, :n]

    def move_clip(self, old: int, new: int, n: int) -> None:
        """The first `n` positions of a beginning go to another clip."""
        for buffer in self._all_prefixes:
            buffer[:, self._rows(buffer, new), :n] = buffer[:, self._rows(buffer, old), :n]

    def clear(self, clip: int, start: int, end: int) -> None:
        """Zeros in some positions of a beginning."""
        for buffer in self._all_prefixes:
            buffer[:, self._rows(buffer, clip), start:end] = 0

    def _rows(self, buffer: Tensor, clip: int) -> slice:
        groups = buffer.shape[1] // self._room.n_clips
        return slice(clip * groups, (clip + 1) * groups)


def numbers(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers on a device, [n]. A GPU gets them when it has come so far: Python does not wait for its steps."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
