"""Published weight names <-> the weights of vidqa's own Llama, which fuses some of them.

It computes query, key and value in one matmul, and gate and up in another.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vidqa.model.llama.model import Llama, LlamaConfig

#: Fused weight -> published ones, concatenated along the rows.
_FUSED = {
    "self_attn.qkv_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


def published_weights(llm: Llama) -> dict[str, Tensor]:
    """Return all weights as views, by their published names; a tied head is not included.

    Raises:
        ValueError: the weights are packed and no longer have their original layout.
    """
    if llm.packed:
        raise ValueError("the weights of a packed model cannot be exported")
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
    """Assign published weights to a Llama, one by one, so that no more than one is in memory twice.

    Args:
        llm: created on `meta`, or with weights to replace.
        weights: by their published names.
        dtype: to convert to; None keeps the dtype of each.
        device: to move to; None keeps the device of each.

    Returns:
        False, with nothing changed, if names or shapes are not those of the model.
    """
    expected = {name: tensor.shape for name, tensor in published_weights(llm).items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        return False
    tied = llm.config.tie_word_embeddings
    state: dict[str, Tensor] = {}
    for name in llm.state_dict():
        if name == "lm_head.weight" and tied:
            continue
        # Converted and concatenated on the target device: a GPU is fast at it and needs the memory anyway.
        parts = [
            weights[part].to(device or weights[part].device, dtype or weights[part].dtype) for part in _parts(name)
        ]
        state[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    llm.load_state_dict(state, strict=False, assign=True)
    if tied:
        llm.tie()
    return True


def _parts(name: str) -> tuple[str, ...]:
    """Return the published names of one weight of `Llama`."""
    for fused, parts in _FUSED.items():
        if name.endswith(fused):
            return tuple(name.removesuffix(fused) + part for part in parts)
    return (name,)


def _rows(c: LlamaConfig, n: int) -> list[int]:
    """Return the rows of the parts of a fused weight: three for attention, two for the MLP."""
    kv_rows = c.num_key_value_heads * c.head_dim
    return [c.num_attention_heads * c.head_dim, kv_rows, kv_rows] if n == 3 else [c.intermediate_size] * 2
