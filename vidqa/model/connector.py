"""Encoder width -> LLM width: the projector between a tower and the language model.

Knows two layouts of weights by name. Does not know frames, prompts or where the weights come from.

Facts: Video-LLaVA 984e65b, videollava/model/multimodal_projector/builder.py.
"""

from __future__ import annotations

from torch import nn

CONNECTOR_TYPES = ("linear", "mlp2x_gelu")


def build_connector(type: str, in_size: int, out_size: int) -> nn.Module:
    """Build a projector with fresh weights.

    Args:
        type: `mlp2x_gelu` (two linear layers, exact GELU between them; keys `0.*` and `2.*`) or `linear` (keys
            `weight`, `bias`).
        in_size: D, width of the encoder's tokens.
        out_size: L, width of the LLM's embeddings.

    Returns:
        A module that maps float [..., D] to float [..., L].

    Raises:
        ValueError: unknown type, or a size below 1.
    """
    if in_size < 1 or out_size < 1:
        raise ValueError(f"sizes must be at least 1, got {in_size=} {out_size=}")
    if type == "mlp2x_gelu":
        return nn.Sequential(nn.Linear(in_size, out_size), nn.GELU(), nn.Linear(out_size, out_size))
    if type == "linear":
        return nn.Linear(in_size, out_size)
    raise ValueError(f"unknown connector type {type!r}; known: {', '.join(CONNECTOR_TYPES)}")
