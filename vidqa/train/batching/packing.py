"""Several conversations about one medium -> one training sequence that holds the visual tokens once.

    [ prefix: visual tokens, first words ][ conversation 1 ][ conversation 2 ] ...

Each conversation sees the prefix and itself, never another one, and counts its positions from the end of the prefix:
its logits are those it would have alone. The visual tokens, most of a prompt, are worked through once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vidqa.prompts.build import IGNORE_INDEX, LabelledPrompt
from vidqa.records import Prompt


@dataclass(frozen=True)
class Packed:
    """One sequence of S positions. `branch` is 0 in the prefix and counts the conversations from 1."""

    ids: np.ndarray  # int64 [S]
    slots: np.ndarray  # bool [S]
    labels: np.ndarray  # int64 [S], IGNORE_INDEX where there is no loss
    positions: np.ndarray  # int64 [S]
    branch: np.ndarray  # int64 [S]
    left_out: np.ndarray  # int64 [S], row of what the loss leaves out at a label (`vidqa.train.data.unseen_pairs`)


def pack(conversations: Sequence[LabelledPrompt]) -> Packed:
    """Join conversations behind the longest beginning that they share; nothing to be learned lies in it.

    One alone may have its media anywhere: in a later question, or right before a caption (the format `plain`).

    Raises:
        ValueError: there is none, or of several conversations one has a slot behind the shared beginning: they are
            about different media.
    """
    if not conversations:
        raise ValueError("nothing to pack")
    head = conversations[0].prompt
    cut = max(0, min(_shared(head, c) for c in conversations))
    if len(conversations) > 1 and any(c.prompt.slots[cut:].any() for c in conversations):
        raise ValueError("the conversations do not share their visual prefix")
    parts = [c.prompt.ids[cut:] for c in conversations]
    sizes = [len(p) for p in parts]
    return Packed(
        ids=np.concatenate([head.ids[:cut], *parts]),
        slots=np.concatenate([head.slots[:cut], *(c.prompt.slots[cut:] for c in conversations)]),
        labels=np.concatenate([np.full(cut, IGNORE_INDEX), *(c.labels[cut:] for c in conversations)]),
        positions=np.concatenate([np.arange(cut), *(np.arange(cut, cut + n) for n in sizes)]),
        branch=np.concatenate([np.zeros(cut, np.int64), *(np.full(n, k + 1) for k, n in enumerate(sizes))]),
        left_out=np.concatenate([np.zeros(cut, np.int64), *(_left_out(c)[cut:] for c in conversations)]),
    )


def _left_out(made: LabelledPrompt) -> np.ndarray:
    return np.zeros(len(made.labels), np.int64) if made.ignored_rows is None else made.ignored_rows


def _shared(head: Prompt, other: LabelledPrompt) -> int:
    """Length of the beginning that `other` shares with `head`, up to the first label less one.

    The position before the first label says it, so it has to stay with its conversation.
    """
    n = min(len(head.ids), len(other.prompt.ids))
    same = (head.ids[:n] == other.prompt.ids[:n]) & (head.slots[:n] == other.prompt.slots[:n])
    learned = np.flatnonzero(other.labels != IGNORE_INDEX)
    limit = int(learned[0]) - 1 if len(learned) else n
    return min(n if same.all() else int(np.argmin(same)), limit)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences padded on the right to one length; padding has branch -1."""

    ids: Tensor  # int64 [B, S]
    slots: Tensor  # bool [B, S]
    labels: Tensor  # int64 [B, S]
    positions: Tensor  # int64 [B, S]
    branch: Tensor  # int64 [B, S]
    left_out: Tensor  # int64 [B, S]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def collate(packed: Sequence[Packed]) -> PackedBatch:
    """Pad and stack."""
    width = max(len(p.ids) for p in packed)

    def stack(name: str, fill: int) -> Tensor:
        rows = [getattr(p, name) for p in packed]
        return torch.from_numpy(np.stack([np.pad(r, (0, width - len(r)), constant_values=fill) for r in rows]))

    return PackedBatch(
        stack("ids", 0),
        stack("slots", False),
        stack("labels", IGNORE_INDEX),
        stack("positions", 0),
        stack("branch", -1),
        stack("left_out", 0),
    )


def attention_mask(branch: Tensor) -> Tensor:
    """Who sees whom: bool [B, 1, S, S], True where position i may look at position j.

    Earlier positions of the same conversation and of the prefix. Padding sees itself, so that no row is empty.
    """
    s = branch.shape[1]
    earlier = torch.ones(s, s, dtype=torch.bool, device=branch.device).tril()
    same = branch[:, :, None] == branch[:, None, :]
    prefix = (branch == 0)[:, None, :] & (branch >= 0)[:, :, None]
    return ((same | prefix) & earlier)[:, None]
