"""Weights by the names under which they are published <-> the weights of our own Llama, which joins some of them.

Query, key and value are one product there, gate and up another: fewer and larger products. Knows names and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vidqa.model.llama.model import Llama, LlamaConfig

#: Joined weight -> published ones, one below the other.
_JOINED = {
    "self_attn.qkv_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


def published_weights(llm: Llama) -> dict[str, Tensor]:
    """All weights by their published names, as views; the head of a model that ties it is left out.

    Raises:
        ValueError: the model was packed; its weights are no longer there in the order of their names.
    """
    if llm.packed:
        raise ValueError("the weights of a packed model cannot be taken out")
    out: dict[str, Tensor] = {}
    for name, tensor in llm.state_dict().items():
        if name == "lm_head.weight" and llm.config.tie_word_embeddings:
            continue
        names = _parts(name)
        if len(names) == 1:
            out[name] = tensor
        else:
            out |= zip(names, tensor.split(_rows(llm.config, len(names))), strict=True)
    return out


def load_published(
    llm: Llama, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None, device: torch.device | None = None
) -> bool:
    """Give a Llama its weights, one after another, so that no more than one of them is there twice.

    Args:
        llm: made on `meta`, or with weights that are to be replaced.
        weights: by their published names.
        dtype: that they get; None keeps theirs.
        device: that they are put on; None leaves them where they are.

    Returns:
        False, and nothing is changed, where names or shapes are not those of the model.
    """
    wanted = {name: tensor.shape for name, tensor in published_weights(llm).items()}
    if wanted != {name: tensor.shape for name, tensor in weights.items()}:
        return False
    tied = llm.config.tie_word_embeddings
    state: dict[str, Tensor] = {}
    for name in llm.state_dict():
        if name == "lm_head.weight" and tied:
            continue
        # Changed and joined where they will be: a GPU does it at once, and its memory is where they are to go anyway.
        parts = [
            weights[part].to(device or weights[part].device, dtype or weights[part].dtype) for part in _parts(name)
        ]
        state[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    llm.load_state_dict(state, strict=False, assign=True)
    if tied:
        llm.tie()
    return True


def _parts(name: str) -> tuple[str, ...]:
    """Published names of a weight of ours."""
    for joined, parts in _JOINED.items():
        if name.endswith(joined):
            return tuple(name.removesuffix(joined) + part for part in parts)
    return (name,)


def _rows(c: LlamaConfig, n: int) -> list[int]:
    """Rows of the parts of a joined weight: three of attention, two of the feed-forward part."""
    keys = c.num_key_value_heads * c.head_dim
    return [c.num_attention_heads * c.head_dim, keys, keys] if n == 3 else [c.intermediate_size] * 2
