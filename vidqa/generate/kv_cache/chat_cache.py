"""KV cache of a chat: one token sequence; a new prompt is computed only from its first different token on.

Letters: S positions, L LLM hidden size, N vocabulary size.

Scope: token sequences. Turns, text and stopping criteria are handled by chat_session.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidqa.generate.llm_adapter import cache_argument, new_cache
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt


class ChatKVCache:
    """KV cache of one token sequence, together with the tokens; empty at first.

    Args:
        model: the model, in evaluation mode.
    """

    def __init__(self, model: VideoLlava) -> None:
        self._model = model
        # Logits of a whole prompt are larger than the model's activations; most LLMs can skip them.
        takes_logits_to_keep = "logits_to_keep" in signature(model.llm.forward).parameters
        self._last_logits_only = {"logits_to_keep": 1} if takes_logits_to_keep else {}
        self._cache = new_cache(model.llm)
        self._tokens = Prompt(np.empty(0, np.int64), np.empty(0, np.bool_))

    def reusable_length(self, prompt: Prompt) -> int:
        """Return how many leading tokens of a prompt are cached; never all, because the last one yields the logits."""
        return min(common_prefix_length(self._tokens, prompt), len(prompt.ids) - 1)

    def prefill(self, prompt: Prompt, visual: Sequence[Tensor]) -> Tensor:
        """Replace the sequence by this prompt, reusing the common prefix.

        Args:
            prompt: ids and slots [S].
            visual: visual tokens float [V_i, L] of each media item, in the prompt's order.

        Returns:
            Logits float32 [1, N] of the next token.
        """
        n = self.reusable_length(prompt)
        self._tokens = Prompt(self._tokens.ids[:n], self._tokens.slots[:n])
        self.truncate()
        with torch.inference_mode():
            embeds = self._model.embed_prompt(prompt, visual)[n:]
        return self._run(prompt, embeds)

    def decode_step(self, token: int) -> Tensor:
        """Append one token; return the logits float32 [1, N] of the next one."""
        ids = np.append(self._tokens.ids, np.int64(token))
        longer = Prompt(ids, np.append(self._tokens.slots, np.False_))
        with torch.inference_mode():
            embeds = self._model.embed_prompt(Prompt(ids[-1:], longer.slots[-1:]))
        return self._run(longer, embeds)

    def clear(self) -> None:
        """Drop the sequence and its K and V."""
        self._cache = new_cache(self._model.llm)
        self._tokens = Prompt(np.empty(0, np.int64), np.empty(0, np.bool_))

    def truncate(self) -> None:
        """Drop K and V past the sequence: those of a replaced prompt, or of an interrupted step."""
        n = len(self._tokens.ids)
        for layer in self._cache.layers:
            if layer.keys is not None and layer.keys.dim() > 2:
                layer.keys, layer.values = layer.keys[..., :n, :], layer.values[..., :n, :]

    def _run(self, longer: Prompt, embeds: Tensor) -> Tensor:
        """Compute the tokens that `longer` adds, given as embeddings float [S, L]; return the next token's logits."""
        n, device = len(longer.ids), embeds.device
        with torch.inference_mode():
            out: Any = self._model.llm(
                inputs_embeds=embeds[None],
                position_ids=torch.arange(n - len(embeds), n, device=device)[None],
                **cache_argument(self._model.llm, self._cache),
                use_cache=True,
                **self._last_logits_only,
            )
            logits: Tensor = out.logits[:, -1].float()
        self._tokens = longer
        return logits


def common_prefix_length(one: Prompt, other: Prompt) -> int:
    """Return the length of the common prefix of two prompts; the ids in visual slots do not matter."""
    n = min(len(one.ids), len(other.ids))
    same = (one.slots[:n] == other.slots[:n]) & ((one.ids[:n] == other.ids[:n]) | one.slots[:n])
    return n if same.all() else int(same.argmin())
