"""Encoder tokens -> visual tokens of the language model: a projector, and a compressor before or behind it.

Knows layouts of weights by name, and how many visual tokens come out. Does not know prompts or where weights come from.

Letters: T frames, P tokens of a frame, D encoder width, L LLM width, V visual tokens.

Facts: Video-LLaVA 984e65b, videollava/model/multimodal_projector/builder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.compressors import build_compressor

CONNECTOR_TYPES = ("linear", "mlp2x_gelu", "identity")


class Connector(nn.Module):
    """A projector, and a compressor where the model has one. Called, it projects.

    Its keys are those of the published projectors: `weight` and `bias` (linear), `0.*` and `2.*` (mlp2x_gelu), none
    (identity); those of a compressor stand below `compressor.`.
    """

    def __init__(self, type: str, in_size: int, out_size: int, compressor: CompressorSpec | None = None) -> None:
        super().__init__()
        self.layout, self.in_size, self.out_size = type, in_size, out_size
        if type == "mlp2x_gelu":
            self.add_module("0", nn.Linear(in_size, out_size))
            self.add_module("2", nn.Linear(out_size, out_size))
        elif type == "linear":
            linear = nn.Linear(in_size, out_size)
            self.weight, self.bias = linear.weight, linear.bias
        self.compressor = build_compressor(compressor, out_size) if compressor else None

    def forward(self, x: Tensor) -> Tensor:
        """Project float [..., D] to [..., L]."""
        if self.layout == "mlp2x_gelu":
            return self.get_submodule("2")(F.gelu(self.get_submodule("0")(x)))
        return F.linear(x, self.weight, self.bias) if self.layout == "linear" else x

    def runs(self, n_frames: int, n_tokens: int, has_cls: bool) -> tuple[int, ...]:
        """How many visual tokens come of a clip, as runs that a prompt may keep apart.

        Args:
            n_frames: T.
            n_tokens: P, the class token counted where there is one.
            has_cls: whether the first token of a frame is the class token.

        Returns:
            Lengths that add up to V.

        Raises:
            ValueError: the compressor needs the class token, or does not take it.
        """
        if self.compressor is None:
            return (n_frames * n_tokens,)
        if self.compressor.needs_cls != has_cls:
            word = "needs" if self.compressor.needs_cls else "does not take"
            raise ValueError(f"the connector {word} the class token of each frame")
        return self.compressor.runs(n_frames, n_tokens)

    def least(self) -> Tensor:
        """Zeros in the place of the smallest clip that the connector takes: float [1, P, D]."""
        compressor = self.compressor
        return torch.zeros(1, 1 if compressor is None else compressor.n_patches + compressor.needs_cls, self.in_size)

    def visual(self, clips: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Visual tokens of several pictures or clips.

        Args:
            clips: float [T, P, D] each, of any T and P.
            dtype: to project in, that of the weights.

        Returns:
            One float [V, L] for each: frame after frame, or what the compressor makes of them.

        Raises:
            ValueError: a width D that the connector does not take.
        """
        if bad := [x.shape[-1] for x in clips if x.shape[-1] != self.in_size]:
            raise ValueError(f"the connector takes tokens of width {self.in_size}, got {bad[0]}")
        compressor = self.compressor
        if compressor is None or compressor.before_projector:
            flat = [(x.flatten(0, 1) if compressor is None else compressor(x)) for x in clips]
            # One product for all clips: the split undoes the join.
            return list(self(torch.cat(flat).to(dtype)).split([len(x) for x in flat])) if flat else []
        return [compressor(self(x.to(dtype))) for x in clips]


def build_connector(type: str, in_size: int, out_size: int, compressor: CompressorSpec | None = None) -> Connector:
    """Build a connector with fresh weights.

    Args:
        type: of the projector: `mlp2x_gelu` (two linear layers, exact GELU between them), `linear`, or `identity`.
        in_size: D, width of the encoder's tokens.
        out_size: L, width of the LLM's embeddings.
        compressor: what joins the frames; None hands all their tokens on.

    Raises:
        ValueError: unknown type, a size below 1, or an identity between two widths.
    """
    if in_size < 1 or out_size < 1:
        raise ValueError(f"sizes must be at least 1, got {in_size=} {out_size=}")
    if type not in CONNECTOR_TYPES:
        raise ValueError(f"unknown connector type {type!r}; known: {', '.join(CONNECTOR_TYPES)}")
    if type == "identity" and in_size != out_size:
        raise ValueError(f"an identity cannot lead from width {in_size} to {out_size}")
    return Connector(type, in_size, out_size, compressor)
