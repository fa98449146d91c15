"""One line of tokens with its keys and values: what is asked for next is computed only where it differs.

Knows a causal LLM of transformers and embedded prompts. Does not know dialogues, text or where a line ends.

Letters: S positions, L LLM width, N vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidqa.generate.llm_adapter import new_cache, stored_in
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt


class ChatKVCache:
    """Keys and values of one line of tokens, and which tokens these are; empty at first."""

    def __init__(self, model: VideoLlava) -> None:
        self._model = model
        # Logits of a whole prompt are larger than the model's activations; most LLMs can leave them out.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.llm.forward).parameters else {}
        self._cache = new_cache(model.llm)
        self._known = Prompt(np.empty(0, np.int64), np.empty(0, np.bool_))

    def n_common(self, prompt: Prompt) -> int:
        """Tokens at the beginning of a prompt that need not be computed; never all: the last one gives the logits."""
        return min(n_common(self._known, prompt), len(prompt.ids) - 1)

    def take_in(self, prompt: Prompt, visual: Sequence[Tensor]) -> Tensor:
        """Become this prompt; logits float32 [1, N] of what follows it."""
        n = self.n_common(prompt)
        self._known = Prompt(self._known.ids[:n], self._known.slots[:n])
        self.settle()
        with torch.inference_mode():
            embeds = self._model.embed_prompt(prompt, visual)[n:]
        return self._run(prompt, embeds)

    def step(self, token: int) -> Tensor:
        """Add one token; logits float32 [1, N] of what follows it."""
        ids = np.append(self._known.ids, np.int64(token))
        longer = Prompt(ids, np.append(self._known.slots, np.False_))
        with torch.inference_mode():
            embeds = self._model.embed_prompt(Prompt(ids[-1:], longer.slots[-1:]))
        return self._run(longer, embeds)

    def settle(self) -> None:
        """Drop keys and values of tokens that are not known: of an end that was cut off, or of a broken-off step."""
        n = len(self._known.ids)
        for layer in self._cache.layers:
            if layer.keys is not None and layer.keys.dim() > 2:
                layer.keys, layer.values = layer.keys[..., :n, :], layer.values[..., :n, :]

    def _run(self, longer: Prompt, embeds: Tensor) -> Tensor:
        """Compute the tokens by which `longer` is longer, float [S, L]."""
        n, device = len(longer.ids), embeds.device
        with torch.inference_mode():
            out: Any = self._model.llm(
                inputs_embeds=embeds[None],
                position_ids=torch.arange(n - len(embeds), n, device=device)[None],
                **stored_in(self._model.llm, self._cache),
                use_cache=True,
                **self._last_only,
            )
            logits: Tensor = out.logits[:, -1].float()
        self._known = longer
        return logits


def n_common(one: Prompt, other: Prompt) -> int:
    """Length of the common beginning of two prompts; what id stands in a slot does not matter."""
    n = min(len(one.ids), len(other.ids))
    same = (one.slots[:n] == other.slots[:n]) & ((one.ids[:n] == other.ids[:n]) | one.slots[:n])
    return n if same.all() else int(same.argmin())
