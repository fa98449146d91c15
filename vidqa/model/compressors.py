"""Compressors: the tokens of all frames -> the tokens of one video, in Video-ChatGPT and Valley.

Letters: T frames, P patches of a frame (class token not counted), D encoder width, L LLM hidden size, V visual tokens.

Reference code: Video-ChatGPT 659e04b, video_chatgpt/inference.py; Valley 83d794f, valley/model/valley_model.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.model.bundle.spec import CompressorSpec


class SpatioTemporal(nn.Module):
    """Video-ChatGPT: the mean of each frame, then the mean of each patch over time; before the projector.

    Args:
        n_frames: minimum number of frame means; fewer frames are padded with zeros, which the projector turns into its
            bias, as in the original.
    """

    before_projector = True
    needs_cls = False
    n_patches = 1  # minimum per frame

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames

    def runs(self, n_frames: int, n_tokens: int) -> tuple[int, ...]:
        """Return the lengths of the runs of visual tokens: (V,)."""
        return (max(n_frames, self.n_frames) + n_tokens,)

    def forward(self, x: Tensor) -> Tensor:
        """Compress [T, P, D] to float16 [max(T, n_frames) + P, D]; the original stored its features in float16."""
        x = x.float()
        frame_means = F.pad(x.mean(dim=1), (0, 0, 0, max(0, self.n_frames - len(x))))
        return torch.cat([frame_means, x.mean(dim=0)]).half()


class Valley(nn.Module):
    """Valley v1: the mean of each patch over time, then the class token of each frame; after the projector."""

    before_projector = False
    needs_cls = True
    n_patches = 1  # minimum per frame

    def runs(self, n_frames: int, n_tokens: int) -> tuple[int, ...]:
        """Return the lengths of the runs of visual tokens: (P, T), the patches and the class tokens."""
        return (n_tokens - 1, n_frames)

    def pool(self, x: Tensor) -> Tensor:
        """Average the frames: float [T, P, L] -> [P, L]."""
        return x.mean(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Compress float [T, 1 + P, L], class token first, to [P + T, L]."""
        return torch.cat([self.pool(x[:, 1:]), x[:, 0]])


class WeightedValley(Valley):
    """Valley v2: a weighted mean of the frames.

    Args:
        size: L, hidden size of the LLM.
        n_patches: P; the weight of a frame is a linear function of all its tokens.
    """

    def __init__(self, size: int, n_patches: int) -> None:
        super().__init__()
        self.n_patches = n_patches
        self.pooling_layer = nn.Linear(size * n_patches, 1)

    def frame_weights(self, x: Tensor) -> Tensor:
        """Return the weights of the frames: float [T, P, L] -> [T, 1], summing to 1."""
        return self.pooling_layer(x.flatten(1)).softmax(dim=0)

    def pool(self, x: Tensor) -> Tensor:
        """Average the frames by weight: float [T, P, L] -> [P, L]."""
        return (x * self.frame_weights(x)[:, :, None]).sum(dim=0)


class DeltaValley(Valley):
    """Valley v3: the mean, plus the output of a small transformer over time at the last frame of each patch.

    Args:
        size: L, hidden size of the LLM.
        n_frames: rows of the position table, the maximum number of frames.
        n_heads: attention heads.
        inner_size: hidden size of the MLP.
    """

    def __init__(self, size: int, n_frames: int, n_heads: int, inner_size: int) -> None:
        super().__init__()
        self.register_buffer("position_matrix", torch.zeros(n_frames, size))
        layer = nn.TransformerEncoderLayer(size, n_heads, inner_size, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)

    def pool(self, x: Tensor) -> Tensor:
        """Encode over time and add the mean: float [T, P, L] -> [P, L].

        Raises:
            ValueError: there are more frames than positions.
        """
        table = self.get_buffer("position_matrix")
        if len(x) > len(table):
            raise ValueError(f"the connector takes at most {len(table)} frames, got {len(x)}")
        over_time = (x + table[: len(x), None]).transpose(0, 1)  # [P, T, L]
        return self.encoder(over_time)[:, -1] + x.mean(dim=0)


def build_compressor(spec: CompressorSpec, size: int) -> SpatioTemporal | Valley:
    """Build a compressor with initial weights.

    Args:
        spec: type and sizes.
        size: L, hidden size of the LLM.
    """
    builders: dict[str, Callable[[], SpatioTemporal | Valley]] = {
        "video_chatgpt": lambda: SpatioTemporal(spec.n_frames),
        "valley_v1": Valley,
        "valley_v2": lambda: WeightedValley(size, spec.n_patches),
        "valley_v3": lambda: DeltaValley(size, spec.n_frames, spec.n_heads, spec.inner_size),
    }
    return builders[spec.type]()
