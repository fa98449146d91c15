"""Static batching for models that cannot use shared-prefix attention: each batch runs until its last sequence ends.

It has the same interface as `scheduler.Scheduler`. Prompts with the same prefix (several questions about one video)
compute it once per batch; each continues from a copy of its KV cache. Sequences are padded on the left, twice:

    mask of a sequence   [pad 0 0][prefix 1 1 1][pad 0][suffix 1 1][new tokens 1 1 1 ...]

Positions count real tokens only, so a sequence's values do not depend on the rest of the batch.

Letters: B sequences, S positions, V visual tokens, L LLM hidden size, N vocabulary size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from vidqa.generate.kv_cache.capacity import unshared_batch_size
from vidqa.generate.llm_adapter import cache_argument
from vidqa.generate.requests import (
    Continuation,
    GenerationSettings,
    PlannedRequest,
    StoppingCriteria,
    prefix_length,
)
from vidqa.generate.running_batch import EngineStats
from vidqa.generate.sampling import pick_greedy, pick_sampled
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt

#: Logits float [B, N] and the indices of their sequences -> the next token ids, int64 [B].
TokenPicker = Callable[[Tensor, Sequence[int]], Tensor]

#: Finished sequences are evicted when no more than this share is still running: eviction copies the KV cache, which
#: costs about as much as a decode step.
_EVICT_BELOW = 0.75


class FallbackEngine:
    """Queue of waiting requests, answered batch by batch.

    Args:
        model: the model, in evaluation mode.
        settings: decoding settings.
        criteria: determine when a sequence is finished.
        batch_size: maximum number of sequences; None is as many as are likely to fit into memory.
    """

    def __init__(
        self,
        model: VideoLlava,
        settings: GenerationSettings,
        criteria: StoppingCriteria,
        batch_size: int | None,
    ) -> None:
        self.stats = EngineStats()
        self._model, self._settings, self._criteria, self._batch_size = model, settings, criteria, batch_size
        self._waiting: list[PlannedRequest] = []
        self._n_tried = 0  # requests in the current batch

    @property
    def n_waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """True while requests wait."""
        return bool(self._waiting)

    def submit(self, planned: PlannedRequest) -> None:
        """Append a request to the queue."""
        self._waiting.append(planned)

    def drop_waiting(self) -> None:
        """Empty the queue."""
        self._waiting.clear()

    def step(self) -> list[tuple[PlannedRequest, Continuation]]:
        """Answer the next batch.

        Raises:
            torch.OutOfMemoryError: call `back_off`, then continue.
        """
        longest = max(len(planned.prompt.ids) + planned.max_new_tokens for planned in self._waiting)
        self._n_tried = min(self._batch_size or unshared_batch_size(self._model, longest), len(self._waiting))
        batch = self._waiting[: self._n_tried]
        start = time.perf_counter()
        distinct = {id(f): f for planned in batch for f in planned.request.features}
        with torch.inference_mode():
            visual = dict(zip(distinct, self._model.visual_tokens(list(distinct.values())), strict=True))
        sequences = [
            PromptSequence(p.prompt, tuple(visual[id(f)] for f in p.request.features), p.max_new_tokens) for p in batch
        ]
        outputs = decode(self._model, sequences, self._criteria, self._token_picker(batch))
        del self._waiting[: len(batch)]
        self.stats.decode_s += time.perf_counter() - start
        self.stats.decode_tokens += sum(len(output.ids) for output in outputs)
        self.stats.answers += len(outputs)
        return list(zip(batch, outputs, strict=True))

    def back_off(self) -> PlannedRequest | None:
        """Recover from running out of memory: halve the batch size.

        Returns:
            The request that does not fit even alone; it is dropped. None if there is none.
        """
        self._batch_size = max(1, self._n_tried // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._waiting.pop(0) if self._n_tried == 1 else None

    def _token_picker(self, batch: Sequence[PlannedRequest]) -> TokenPicker:
        settings = self._settings
        streams = [planned.random_stream(settings) for planned in batch]

        def pick(logits: Tensor, sequences: Sequence[int]) -> Tensor:
            if settings.temperature == 0:
                return pick_greedy(logits)
            samples = [stream.next() for i in sequences if (stream := streams[i]) is not None]
            random_samples = torch.tensor(samples, dtype=torch.float64, device=logits.device)
            return pick_sampled(logits, settings.temperature, settings.top_p, random_samples)

        return pick


@dataclass(frozen=True)
class PromptSequence:
    """A prompt with its visual tokens.

    `visual` holds the tokens [V_i, L] of each media item. Sequences with identical tensor objects and the same
    leading ids share their prefix.
    """

    prompt: Prompt
    visual: tuple[Tensor, ...]
    max_new_tokens: int


@torch.inference_mode()
def decode(
    model: VideoLlava, sequences: Sequence[PromptSequence], criteria: StoppingCriteria, pick: TokenPicker
) -> list[Continuation]:
    """Continue several prompts as one batch, with transformers' own KV cache.

    Args:
        model: the model, in evaluation mode.
        sequences: prompts of at least two tokens.
        criteria: determine when a sequence is finished; each also ends at its `max_new_tokens`.
        pick: chooses the next token of each sequence.

    Returns:
        One continuation per prompt, in order.

    Raises:
        ValueError: slots and visual tokens of a prompt differ in number.
        torch.OutOfMemoryError: the batch is too large for the device.
    """
    batch = _prefill(model, sequences)
    outputs = [Continuation() for _ in sequences]
    in_batch = list(range(len(sequences)))  # index of the sequence in each row of the batch
    while True:
        picked = pick(batch.logits, in_batch)
        for i, token in zip(in_batch, picked.tolist(), strict=True):
            if outputs[i].finish_reason is None:
                outputs[i].append(token, criteria, sequences[i].max_new_tokens)
        running = [row for row, i in enumerate(in_batch) if outputs[i].finish_reason is None]
        if not running:
            return outputs
        if len(running) <= _EVICT_BELOW * len(in_batch):
            batch.keep(running)
            picked = picked[torch.tensor(running, device=picked.device)]
            in_batch = [in_batch[row] for row in running]
        batch.decode_step(picked.clamp(min=0))  # a row whose output was not finite may still be in the batch


class _StaticBatch:
    """KV cache, mask and next position of each sequence, and the logits of the last step."""

    def __init__(self, llm: Any, cache: Any, mask: Tensor, positions: Tensor) -> None:
        self.llm = llm
        # Logits of a whole prompt are larger than the model's activations; most LLMs can skip them.
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(llm.forward).parameters else {}
        self.cache = cache
        self.mask = mask  # int64 [B, S], every cached column
        self.positions = positions  # int64 [B], of the next token
        self.logits = torch.empty(0)  # float32 [B, N]

    def keep(self, rows: Sequence[int]) -> None:
        """Select rows, in the given order; rows may be repeated."""
        index = torch.tensor(rows)  # on the CPU: layers may be on several devices
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]

    def prefill(self, embeds: Tensor, mask: Tensor) -> None:
        """Append embeddings [B, S, L], padded on the left, with their mask int64 [B, S]."""
        positions = self.positions[:, None] + (mask.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self._forward(positions, inputs_embeds=embeds)
        self.positions = self.positions + mask.sum(1)

    def decode_step(self, ids: Tensor) -> None:
        """Append one token per row, int64 [B]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        self._forward(self.positions[:, None], input_ids=ids[:, None])
        self.positions = self.positions + 1

    def _forward(self, positions: Tensor, **inputs: Tensor) -> None:
        out = self.llm(
            **inputs,
            **self.last_only,
            attention_mask=self.mask,
            position_ids=positions,
            **cache_argument(self.llm, self.cache),
            use_cache=True,
        )
        self.logits = out.logits[:, -1].float()


def _prefill(model: VideoLlava, sequences: Sequence[PromptSequence]) -> _StaticBatch:
    """Prefill all prompts, shared prefixes once."""
    from transformers import DynamicCache

    groups: dict[object, int] = {}
    group_of, first = [], []
    for i, sequence in enumerate(sequences):
        n = prefix_length(sequence.prompt)
        ids, slots = sequence.prompt.ids[:n], sequence.prompt.slots[:n]
        key = (ids.tobytes(), slots.tobytes(), tuple(id(v) for v in sequence.visual))
        if key not in groups:
            groups[key] = len(groups)
            first.append(i)
        group_of.append(groups[key])
    prefixes, suffixes = [], []
    for i, sequence in enumerate(sequences):
        n, prompt = prefix_length(sequence.prompt), sequence.prompt
        if i in first:
            prefixes.append(model.embed_prompt(Prompt(prompt.ids[:n], prompt.slots[:n]), sequence.visual))
        suffixes.append(model.embed_prompt(Prompt(prompt.ids[n:], prompt.slots[n:])))
    device = model.device
    no_mask = torch.zeros(len(prefixes), 0, dtype=torch.int64, device=device)
    positions = torch.zeros(len(prefixes), dtype=torch.int64, device=device)
    batch = _StaticBatch(model.llm, DynamicCache(), no_mask, positions)
    batch.prefill(*_pad_left(prefixes))
    if group_of != list(range(len(prefixes))):
        batch.keep(group_of)
    batch.prefill(*_pad_left(suffixes))
    return batch


def _pad_left(embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences [S_i, L] -> [B, S, L] with zeros in front, and the mask int64 [B, S]."""
    longest = max(len(e) for e in embeds)
    out = embeds[0].new_zeros(len(embeds), longest, embeds[0].shape[1])
    mask = torch.zeros(len(embeds), longest, dtype=torch.int64, device=out.device)
    for i, e in enumerate(embeds):
        out[i, longest - len(e) :] = e
        mask[i, longest - len(e) :] = 1
    return out, mask
