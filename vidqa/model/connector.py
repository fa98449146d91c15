"""Connector: encoder tokens -> visual tokens of the LLM, by a projector with an optional compressor before or after it.

Letters: T frames, P tokens of a frame, D encoder width, L LLM hidden size, V visual tokens.

Reference code: Video-LLaVA 984e65b, videollava/model/multimodal_projector/builder.py.
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
    """A projector, and a compressor if the model has one. `forward` is the projector.

    Its state dict has the keys of the published projectors: `weight` and `bias` (linear), `0.*` and `2.*` (mlp2x_gelu),
    none (identity); those of a compressor start with `compressor.`.
    """

    def __init__(self, type: str, in_size: int, out_size: int, compressor: CompressorSpec | None = None) -> None:
        super().__init__()
        self.projector_type, self.in_size, self.out_size = type, in_size, out_size
        if type == "mlp2x_gelu":
            self.add_module("0", nn.Linear(in_size, out_size))
            self.add_module("2", nn.Linear(out_size, out_size))
        elif type == "linear":
            linear = nn.Linear(in_size, out_size)
            self.weight, self.bias = linear.weight, linear.bias
        self.compressor = build_compressor(compressor, out_size) if compressor else None

    def forward(self, x: Tensor) -> Tensor:
        """Project float [..., D] to [..., L]."""
        if self.projector_type == "mlp2x_gelu":
            return self.get_submodule("2")(F.gelu(self.get_submodule("0")(x)))
        return F.linear(x, self.weight, self.bias) if self.projector_type == "linear" else x

    def runs(self, n_frames: int, n_tokens: int, has_cls: bool) -> tuple[int, ...]:
        """Return how many visual tokens a video yields, as runs that a prompt may separate.

        Args:
            n_frames: T.
            n_tokens: P, including the class token if there is one.
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

    def smallest_input(self) -> Tensor:
        """Return zeros in the shape of the smallest video that the connector takes: float [1, P, D]."""
        compressor = self.compressor
        return torch.zeros(1, 1 if compressor is None else compressor.n_patches + compressor.needs_cls, self.in_size)

    def visual_tokens(self, media: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Compute the visual tokens of several images or videos.

        Args:
            media: encoder tokens, float [T, P, D] for each media item, with any T and P.
            dtype: dtype of the projector's weights.

        Returns:
            Float [V, L] for each media item: all frames in order, or the output of the compressor.

        Raises:
            ValueError: the connector does not accept the width D.
        """
        if bad := [x.shape[-1] for x in media if x.shape[-1] != self.in_size]:
            raise ValueError(f"the connector takes tokens of width {self.in_size}, got {bad[0]}")
        compressor = self.compressor
        if not media:
            return []
        if compressor is None or compressor.before_projector:
            with torch.autocast(media[0].device.type, enabled=False):  # which cannot join float16 tensors on a CPU
                flat = [(x.flatten(0, 1) if compressor is None else compressor(x)) for x in media]
                joined = torch.cat(flat).to(dtype)
            # One matmul for all media; the split undoes the concatenation.
            return list(self(joined).split([len(x) for x in flat]))
        return [compressor(self(x.to(dtype))) for x in media]


def build_connector(type: str, in_size: int, out_size: int, compressor: CompressorSpec | None = None) -> Connector:
    """Build a connector with initial weights.

    Args:
        type: projector: `mlp2x_gelu` (two linear layers with an exact GELU between them), `linear`, or `identity`.
        in_size: D, width of the encoder's tokens.
        out_size: L, hidden size of the LLM.
        compressor: settings of the compressor; None keeps all tokens of all frames.

    Raises:
        ValueError: unknown type, a size below 1, or an identity between two widths.
    """
    if in_size < 1 or out_size < 1:
        raise ValueError(f"sizes must be at least 1, got {in_size=} {out_size=}")
    if type not in CONNECTOR_TYPES:
        raise ValueError(f"unknown connector type {type!r}; use one of {', '.join(CONNECTOR_TYPES)}")
    if type == "identity" and in_size != out_size:
        raise ValueError(f"an identity connector needs equal sizes, got {in_size=} {out_size=}")
    return Connector(type, in_size, out_size, compressor)
