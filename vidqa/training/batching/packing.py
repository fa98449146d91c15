"""Sequence packing: several conversations about the same media -> one sequence with one copy of the visual tokens.

    [ shared prefix: visual tokens, first words ][ conversation 1 ][ conversation 2 ] ...

Each conversation attends to the prefix and to itself, never to another conversation, and its positions continue from
the end of the prefix. So its logits are the same as without packing, while the visual tokens, which are most of a
prompt, are processed once for all conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vidqa.prompts.build import IGNORE_INDEX, LabeledPrompt
from vidqa.records import Prompt


@dataclass(frozen=True)
class Packed:
    """One packed sequence of S positions. `branch` is 0 in the prefix and counts the conversations from 1."""

    ids: np.ndarray  # int64 [S]
    slots: np.ndarray  # bool [S]
    labels: np.ndarray  # int64 [S], IGNORE_INDEX where there is no loss
    positions: np.ndarray  # int64 [S]
    branch: np.ndarray  # int64 [S]
    ignored_rows: np.ndarray  # int64 [S]: which set of token ids the softmax of a label ignores; 0: none


def pack(conversations: Sequence[LabeledPrompt], ignored_rows: Sequence[np.ndarray] | None = None) -> Packed:
    """Join conversations after their longest common prefix, which has no loss.

    A single conversation may have media anywhere: in a later question, or directly before a caption (in the format
    `plain`).

    Args:
        conversations: one or more conversations.
        ignored_rows: int64 [S] for each conversation, see `Packed`; None ignores nothing.

    Raises:
        ValueError: there is no conversation, or one of several has a visual token after the common prefix, so they
            are about different media.
    """
    if not conversations:
        raise ValueError("nothing to pack")
    if ignored_rows is None:
        ignored_rows = [np.zeros(len(c.labels), np.int64) for c in conversations]
    head = conversations[0].prompt
    cut = max(0, min(_shared_length(head, c) for c in conversations))
    if len(conversations) > 1 and any(c.prompt.slots[cut:].any() for c in conversations):
        raise ValueError("the conversations do not share their visual prefix")
    suffixes = [c.prompt.ids[cut:] for c in conversations]
    sizes = [len(suffix) for suffix in suffixes]
    return Packed(
        ids=np.concatenate([head.ids[:cut], *suffixes]),
        slots=np.concatenate([head.slots[:cut], *(c.prompt.slots[cut:] for c in conversations)]),
        labels=np.concatenate([np.full(cut, IGNORE_INDEX), *(c.labels[cut:] for c in conversations)]),
        positions=np.concatenate([np.arange(cut), *(np.arange(cut, cut + n) for n in sizes)]),
        branch=np.concatenate([np.zeros(cut, np.int64), *(np.full(n, k + 1) for k, n in enumerate(sizes))]),
        ignored_rows=np.concatenate([np.zeros(cut, np.int64), *(rows[cut:] for rows in ignored_rows)]),
    )


def _shared_length(head: Prompt, other: LabeledPrompt) -> int:
    """Return the length of the prefix that `other` shares with `head`, limited by the first target of `other`.

    The position before that target predicts it, so it has to stay in its conversation.
    """
    n = min(len(head.ids), len(other.prompt.ids))
    same = (head.ids[:n] == other.prompt.ids[:n]) & (head.slots[:n] == other.prompt.slots[:n])
    targets = np.flatnonzero(other.labels != IGNORE_INDEX)
    limit = int(targets[0]) - 1 if len(targets) else n
    return min(n if same.all() else int(np.argmin(same)), limit)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences padded on the right to the same length; padding has branch -1."""

    ids: Tensor  # int64 [B, S]
    slots: Tensor  # bool [B, S]
    labels: Tensor  # int64 [B, S]
    positions: Tensor  # int64 [B, S]
    branch: Tensor  # int64 [B, S]
    ignored_rows: Tensor  # int64 [B, S]

    def to(self, device: torch.device) -> PackedBatch:
        """Copy the batch to another device."""
        return PackedBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def collate(packed: Sequence[Packed]) -> PackedBatch:
    """Pad sequences on the right to the longest one and stack them."""
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
        stack("ignored_rows", 0),
    )


def attention_mask(branch: Tensor) -> Tensor:
    """Compute the attention mask of packed sequences.

    A position attends to the earlier positions of its own conversation and of the prefix. Padding attends to itself,
    so that no row is empty.

    Args:
        branch: int64 [B, S], as in `PackedBatch`.

    Returns:
        bool [B, 1, S, S]: True where position i may attend to position j.
    """
    s = branch.shape[1]
    causal = torch.ones(s, s, dtype=torch.bool, device=branch.device).tril()
    same = branch[:, :, None] == branch[:, None, :]
    prefix = (branch == 0)[:, None, :] & (branch >= 0)[:, :, None]
    return ((same | prefix) & causal)[:, None]
