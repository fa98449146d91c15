"""Embedded prompts -> new token ids: one batch, one KV cache.

Knows a causal LLM of transformers. Does not know clips, questions, text or errors.

Prompts that begin with the same visual tokens (several questions about one clip) share their beginning: it is computed
once, and each prompt goes on from a copy of its keys and values. Rows are padded on the left, twice:

    mask of a row   [pad 0 0][beginning 1 1 1][pad 0][rest 1 1][new tokens 1 1 1 ...]

Positions count real tokens only, so a row's numbers do not depend on its company.

Letters: B rows, G distinct beginnings, S positions, L LLM width, N vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from vidqa.generate.llm_adapter import stored_in
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Row:
    """One prompt with its own media.

    `visual` are the tokens [V_i, L] of each medium. Rows that hold the very same tensors and begin with the same ids
    share their beginning.
    """

    prompt: Prompt
    visual: tuple[Tensor, ...]
    max_new_tokens: int


@dataclass
class Continuation:
    """What the model said to one row; the end token is not among `ids`."""

    ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None  # None while it goes on


#: Logits float [B, N] of the rows numbered in the second argument -> the next ids, int64 [B].
Choose = Callable[[Tensor, Sequence[int]], Tensor]


@torch.inference_mode()
def decode(
    model: VideoLlava,
    rows: Sequence[Row],
    end_ids: frozenset[int],
    choose: Choose,
    stops: Callable[[Sequence[int]], bool],
) -> list[Continuation]:
    """Continue several prompts at once.

    Args:
        model: in evaluation mode.
        rows: prompts of at least two tokens.
        end_ids: tokens that end an answer; an empty set goes on until `max_new_tokens`.
        choose: picks the next token of each row.
        stops: says whether the ids so far complete a stop string.

    Returns:
        One continuation a row, in order.

    Raises:
        ValueError: slots and visual tokens of a row differ in number.
        torch.OutOfMemoryError: the batch is too large for the device.
    """
    batch = _prefill(model, rows)
    out = [Continuation() for _ in rows]
    alive = list(range(len(rows)))  # number of the row behind each line of the batch
    while True:
        picked = choose(batch.logits, alive)
        for line, token in zip(alive, picked.tolist(), strict=True):
            one = out[line]
            if one.reason is not None:
                continue
            if token in end_ids:
                one.reason = "eos"
                continue
            one.ids.append(token)
            if stops(one.ids):
                one.reason = "stop"
            elif len(one.ids) >= rows[line].max_new_tokens:
                one.reason = "length"
        going = [i for i, line in enumerate(alive) if out[line].reason is None]
        if not going:
            return out
        # Dropping copies the cache once, which is as dear as a step: wait until it pays.
        if len(going) <= 0.75 * len(alive):
            batch.keep(going)
            picked = picked[torch.tensor(going, device=picked.device)]
            alive = [alive[i] for i in going]
        batch.step(picked)


class _Batch:
    """State of a running batch: cache, mask and next position of each line, logits of the last step."""

    def __init__(self, llm: Any, cache: Any, mask: Tensor, positions: Tensor) -> None:
        self.llm = llm
        # Logits of a whole prompt are larger than the model's activations; most LLMs can leave them out.
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(llm.forward).parameters else {}
        self.cache = cache
        self.mask = mask  # int64 [B, S], every cached column
        self.positions = positions  # int64 [B], of the next token
        self.logits = torch.empty(0)  # float32 [B, N]

    def keep(self, lines: Sequence[int]) -> None:
        """Go on with some of the lines (repeats allowed), in the order given."""
        index = torch.tensor(lines)  # of the CPU: layers may lie on several devices
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]

    def feed(self, embeds: Tensor, mask: Tensor) -> None:
        """Take in [B, S, L] padded on the left; mask int64 [B, S]."""
        own = self.positions[:, None] + (mask.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self._run(own, inputs_embeds=embeds)
        self.positions = self.positions + mask.sum(1)

    def step(self, ids: Tensor) -> None:
        """Take in one token a line, int64 [B]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        self._run(self.positions[:, None], input_ids=ids[:, None])
        self.positions = self.positions + 1

    def _run(self, positions: Tensor, **inputs: Tensor) -> None:
        out = self.llm(
            **inputs,
            **self.last_only,
            attention_mask=self.mask,
            position_ids=positions,
            **stored_in(self.llm, self.cache),
            use_cache=True,
        )
        self.logits = out.logits[:, -1].float()


def _prefill(model: VideoLlava, rows: Sequence[Row]) -> _Batch:
    """Run all prompts, shared beginnings once."""
    from transformers import DynamicCache

    groups: dict[object, int] = {}
    member, first = [], []
    for i, row in enumerate(rows):
        n = _n_shared(row.prompt)
        key = (row.prompt.ids[:n].tobytes(), row.prompt.slots[:n].tobytes(), tuple(id(v) for v in row.visual))
        if key not in groups:
            groups[key] = len(groups)
            first.append(i)
        member.append(groups[key])
    heads, tails = [], []
    for i, row in enumerate(rows):
        n = _n_shared(row.prompt)
        if i in first:
            heads.append(model.embed_prompt(Prompt(row.prompt.ids[:n], row.prompt.slots[:n]), row.visual))
        tails.append(model.embed_prompt(Prompt(row.prompt.ids[n:], row.prompt.slots[n:])))
    device = model.device
    none = torch.zeros(len(heads), 0, dtype=torch.int64, device=device)
    batch = _Batch(model.llm, DynamicCache(), none, torch.zeros(len(heads), dtype=torch.int64, device=device))
    batch.feed(*_pad_left(heads))
    if member != list(range(len(heads))):
        batch.keep(member)
    batch.feed(*_pad_left(tails))
    return batch


def _n_shared(prompt: Prompt) -> int:
    """Length of the beginning: up to the last visual token, or the first token of a prompt without any."""
    last = int(prompt.slots.nonzero()[0][-1]) + 1 if prompt.n_slots else 1
    # The rest must have a token whose logits say how to go on.
    return min(last, len(prompt.ids) - 1)


def _pad_left(embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [S_i, L] -> [B, S, L] with zeros in front, and the mask int64 [B, S]."""
    longest = max(len(e) for e in embeds)
    out = embeds[0].new_zeros(len(embeds), longest, embeds[0].shape[1])
    mask = torch.zeros(len(embeds), longest, dtype=torch.int64, device=out.device)
    for i, e in enumerate(embeds):
        out[i, longest - len(e) :] = e
        mask[i, longest - len(e) :] = 1
    return out, mask
