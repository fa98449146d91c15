"""Packed batch -> summed cross entropy over the tokens to learn. What the Trainer calls the model.

The sum and not the mean: the Trainer divides by the tokens of the whole step, whichever process and micro-batch they
lie in, so that batch size, accumulation and number of processes do not change what is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.model.llava import VideoLlava
from vidqa.prompts.build import IGNORED
from vidqa.train.packing import attention_mask
from vidqa.train.sequences import Batch


class PackedLoss(nn.Module):
    """A model with its loss."""

    def __init__(self, model: VideoLlava) -> None:
        super().__init__()
        self.model = model
        #: Layers that are cut into pieces one by one: accelerate looks for their names here.
        self._no_split_modules = getattr(model.llm, "_no_split_modules", None)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Summed loss of one batch, float32; 0 where nothing is to be learned."""
        model = self.model
        packed = batch.packed.to(model.device)
        table = model.llm.get_input_embeddings().weight
        visual = model.visual_tokens(batch.features)
        joined = torch.cat(visual) if visual else torch.empty(0, table.shape[1], device=table.device)
        embeds = model.embed(packed.ids, packed.slots, joined)
        if not visual:
            embeds = embeds + _touched(model.connector, embeds)
        states = model.llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=attention_mask(packed.branch),
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        learn = packed.labels[:, 1:] != IGNORED  # position i says what stands at i + 1
        logits = model.llm.get_output_embeddings()(states[:, :-1][learn])
        loss = F.cross_entropy(logits.float(), packed.labels[:, 1:][learn], reduction="sum")
        # Without tokens to learn there is no logit: the sum over the states keeps every weight in the graph.
        return {"loss": loss + 0.0 * states.float().sum() if not learn.any() else loss}


def _touched(connector: nn.Module, like: Tensor) -> Tensor:
    """Zero, by way of every weight of the connector.

    A process whose batch holds text only must run what the others run: weights in pieces (FSDP, ZeRO-3) are gathered by
    all processes together, and a process that stays away leaves the others waiting.
    """
    total = torch.zeros((), device=like.device, dtype=like.dtype)
    first = next(connector.parameters(), None)
    if first is None or not torch.is_grad_enabled():
        return total
    width = getattr(connector, "in_size", first.shape[-1])
    total = total + 0.0 * connector(torch.zeros(1, width, device=first.device, dtype=first.dtype)).sum()
    for parameter in connector.parameters():
        if parameter.requires_grad:
            total = total + 0.0 * parameter.sum()
    return total
