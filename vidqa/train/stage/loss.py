"""Packed batch -> summed cross entropy over the tokens to learn. What the Trainer calls the model.

The sum and not the mean: the Trainer divides by the tokens of the whole step, whichever process and micro-batch they
lie in, so that batch size, accumulation and number of processes do not change what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import IGNORE_INDEX
from vidqa.train.batching.dataset import TrainingBatch
from vidqa.train.batching.packing import attention_mask
from vidqa.train.data.unseen_pairs import rows_mask


class PackedLoss(nn.Module):
    """A model with its loss.

    Args:
        model: connector and LLM.
        left_out: token ids that take no part in the softmax, by the row that a position of the batch names; row 0 is
            empty. Without rows the loss is the ordinary one everywhere.
    """

    def __init__(self, model: VideoLlava, left_out: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.model, self.left_out = model, left_out
        self._rows: Tensor | None = None
        #: Layers that are cut into pieces one by one: accelerate looks for their names here.
        self._no_split_modules = getattr(model.llm, "_no_split_modules", None)

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Summed loss of one batch, float32; 0 where nothing is to be learned."""
        model = self.model
        packed = batch.packed.to(model.device)
        visual = model.visual_tokens(batch.features)
        embeds = model.embed(packed.ids, packed.slots, torch.cat(visual) if visual else model.empty_visual_tokens())
        states = model.llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=attention_mask(packed.branch),
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        learn = packed.labels[:, 1:] != IGNORE_INDEX  # position i says what stands at i + 1
        logits = model.llm.get_output_embeddings()(states[:, :-1][learn]).float()
        if self.left_out:
            logits = logits.masked_fill(self._mask(logits)[packed.left_out[:, 1:][learn]], -torch.inf)
        loss = F.cross_entropy(logits, packed.labels[:, 1:][learn], reduction="sum")
        # Without tokens to learn there is no logit: the sum over the states keeps every weight in the graph.
        return {"loss": loss + 0.0 * states.float().sum() if not learn.any() else loss}

    def _mask(self, logits: Tensor) -> Tensor:
        """Rows that `left_out` names, bool [R, vocabulary], beside the logits; made once."""
        if self._rows is None or self._rows.device != logits.device:
            self._rows = torch.from_numpy(rows_mask(self.left_out, logits.shape[-1])).to(logits.device)
        return self._rows
