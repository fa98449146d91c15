"""Features + prompts -> what the language model reads: connector, splice and any causal LLM of transformers.

Knows tensors and one tokenizer. Does not know videos, encoders, the cache or how answers are searched for.

Letters: B prompts, S positions of a prompt, V visual tokens, D encoder width, L LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.model.splice import fill_slots
from vidqa.prompts.formats import ChatFormat
from vidqa.records import Features, Prompt


class VideoLlava(nn.Module):
    """A connector in front of a causal LLM.

    Args:
        connector: maps [..., D] to [..., L].
        llm: a causal LLM of transformers that accepts `inputs_embeds`.
        tokenizer: the LLM's own.
        chat: format that the LLM was tuned with.
        context: longest sequence, visual tokens and answer included.
    """

    def __init__(self, connector: nn.Module, llm: nn.Module, tokenizer: Any, chat: ChatFormat, context: int) -> None:
        super().__init__()
        self.connector = connector
        self.llm: Any = llm
        self.tokenizer = tokenizer
        self.chat = chat
        self.context = context

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.llm.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the LLM's weights."""
        return self.llm.get_input_embeddings().weight.dtype

    def visual_tokens(self, features: Sequence[Features]) -> list[Tensor]:
        """Project the tokens of several pictures or clips.

        Args:
            features: tokens [T, P, D] each, of any T and P.

        Returns:
            One float [T * P, L] for each, frame after frame.

        Raises:
            ValueError: a width D that the connector does not take.
        """
        if not features:
            return []
        weight = next(self.connector.parameters())
        flat = [torch.from_numpy(f.tokens).flatten(0, 1) for f in features]
        if bad := [len(t[0]) for t in flat if t.shape[1] != weight.shape[1]]:
            raise ValueError(f"the connector takes tokens of width {weight.shape[1]}, got {bad[0]}")
        # One product for all clips: the split below undoes the join.
        joined = self.connector(torch.cat(flat).to(weight.device, weight.dtype))
        return list(joined.split([len(t) for t in flat]))

    def embed(self, ids: Tensor, slots: Tensor, visual: Tensor) -> Tensor:
        """Look ids up and put the visual tokens in their slots.

        Args:
            ids: int64 [B, S] or [S]; what stands in a slot does not matter.
            slots: bool, like ids.
            visual: float [V, L], of all prompts one after another.

        Returns:
            float [B, S, L] or [S, L].

        Raises:
            ValueError: slots and visual tokens differ in number.
        """
        table = self.llm.get_input_embeddings()
        return fill_slots(table(ids.masked_fill(slots, 0)), slots, visual)

    def embed_prompt(self, prompt: Prompt, visual: Sequence[Tensor] = ()) -> Tensor:
        """Embed one prompt with its own media.

        Args:
            prompt: ids and slots [S].
            visual: float [V_i, L] of each medium, in the prompt's order.

        Returns:
            float [S, L].

        Raises:
            ValueError: slots and visual tokens differ in number.
        """
        ids, slots = torch.from_numpy(prompt.ids).to(self.device), torch.from_numpy(prompt.slots).to(self.device)
        width = self.llm.get_input_embeddings().weight.shape[1]
        joined = torch.cat(list(visual)) if visual else torch.empty(0, width, device=self.device, dtype=self.dtype)
        return self.embed(ids, slots, joined)

    def forward(
        self, ids: Tensor, slots: Tensor, visual: Tensor, mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        """Logits of whole sequences, and the loss where labels are given (for training).

        Args:
            ids: int64 [B, S], padded on the right.
            slots: bool [B, S].
            visual: float [V, L], of all prompts one after another.
            mask: int64 or bool [B, S], 0 on padding; None where nothing is padded.
            labels: int64 [B, S], -100 where there is no loss.

        Returns:
            The LLM's output: `.logits` float [B, S, vocabulary], `.loss`.
        """
        embeds = self.embed(ids, slots, visual)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)
