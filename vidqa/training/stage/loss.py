"""Packed batch -> cross entropy, summed over the target tokens: the module that the Trainer calls as its model.

It is a sum and not a mean, because `StageTrainer` divides by the number of target tokens of the whole step. So the loss
does not depend on per-device batch size, gradient accumulation and number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import IGNORE_INDEX
from vidqa.training.batching.dataset import TrainingBatch
from vidqa.training.batching.packing import attention_mask


class PackedLoss(nn.Module):
    """A model with its loss.

    Args:
        model: connector and LLM.
        ignored_tokens: sets of token ids that the softmax ignores at the positions whose `ignored_rows` refer to them;
            the first set is empty. Without sets this is the ordinary cross entropy everywhere.
    """

    def __init__(self, model: VideoLlava, ignored_tokens: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.model, self.ignored_tokens = model, ignored_tokens
        self._ignored_mask: Tensor | None = None
        #: Names of the layers that accelerate must not split when it shards the model.
        self._no_split_modules = getattr(model.llm, "_no_split_modules", None)

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the summed loss of one batch as `loss`, a float32 scalar; it is 0 without targets."""
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
        targets = packed.labels[:, 1:] != IGNORE_INDEX  # position i predicts the token at i + 1
        logits = model.llm.get_output_embeddings()(states[:, :-1][targets]).float()
        if self.ignored_tokens:
            logits = logits.masked_fill(self._mask(logits)[packed.ignored_rows[:, 1:][targets]], -torch.inf)
        loss = F.cross_entropy(logits, packed.labels[:, 1:][targets], reduction="sum")
        # Without targets there are no logits: adding 0 times the states keeps every weight in the autograd graph.
        return {"loss": loss + 0.0 * states.float().sum() if not targets.any() else loss}

    def _mask(self, logits: Tensor) -> Tensor:
        """Return the R sets of ignored tokens as bool [R, vocabulary] on the device of the logits; created once."""
        if self._ignored_mask is None or self._ignored_mask.device != logits.device:
            mask = torch.zeros(len(self.ignored_tokens), logits.shape[-1], dtype=torch.bool)
            for row, ids in zip(mask, self.ignored_tokens, strict=True):
                row[list(ids)] = True
            self._ignored_mask = mask.to(logits.device)
        return self._ignored_mask
