"""The LanguageBind vision tower in torch: pixels -> hidden states per frame and one pooled embedding.

Module names are those of the published checkpoints (which spell `pre_layrnorm` like this), so that a state dict loads
strictly. The towers are used for training and export to ONNX; a run uses the exported graph.

Reference code: LanguageBind 7070c53, languagebind/video/modeling_video.py. Letters: B videos, T frames, P tokens of a
frame (class token first), D width, E width of the projected embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HiddenAct = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision tower.

    `temporal_length` is the number of trained time positions; 0 is a tower without temporal attention. A
    `projection_dim` of 0 is a tower without projection, as in the checkpoints of some LLMs: its embedding is the pooled
    state itself.
    """

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    projection_dim: int
    hidden_act: HiddenAct = "gelu"
    layer_norm_eps: float = 1e-5
    temporal_length: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )
        if self.hidden_size % self.n_heads:
            raise ValueError(f"hidden_size must be a multiple of n_heads, got {self.hidden_size} and {self.n_heads}")
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise ValueError(f"hidden_act must be gelu or quick_gelu, got {self.hidden_act!r}")

    @property
    def n_patches(self) -> int:
        """Patches per frame, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def embedding_size(self) -> int:
        """E, width of the pooled embedding."""
        return self.projection_dim or self.hidden_size


class Attention(nn.Module):
    """Multi-head attention with biases on all four projections. [N, L, D] -> [N, L, D]."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; mask bool [N or 1, 1, L, L], True where a query attends to a key."""
        n, length, width = x.shape
        q, k, v = (
            proj(x).view(n, length, self.n_heads, width // self.n_heads).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).reshape(n, length, width))


class Mlp(nn.Module):
    """Two linear layers; `gelu` is the exact (erf) form, `quick_gelu` is x * sigmoid(1.702 x) as in OpenAI's CLIP."""

    def __init__(self, width: int, inner: int, act: HiddenAct) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x = self.fc1(x)
        x = F.gelu(x) if self.act == "gelu" else x * torch.sigmoid(1.702 * x)
        return self.fc2(x)


class VisionLayer(nn.Module):
    """Pre-norm block: attention over time (video only), attention over space, then the MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        c = config
        self.self_attn = Attention(c.hidden_size, c.n_heads)
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = Mlp(c.hidden_size, c.intermediate_size, c.hidden_act)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.temporal_length = c.temporal_length
        if c.temporal_length:
            self.temporal_embedding = nn.Parameter(
                torch.randn(1, c.temporal_length, c.hidden_size) * c.hidden_size**-0.5
            )
            self.temporal_attn = Attention(c.hidden_size, c.n_heads)
            self.temporal_layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """[B*T, P, D] -> [B*T, P, D] for videos of `n_frames` frames each."""
        if self.temporal_length:
            bt, n, d = x.shape
            t = min(n_frames, self.temporal_length)  # longer videos are split into groups of temporal_length frames
            # [B*T, P, D] -> [groups*P, t, D]: each patch position attends over time separately
            x = x.view(bt // t, t, n, d).transpose(1, 2).reshape(bt // t * n, t, d)
            x = x + self.temporal_embedding[:, :t]  # stays in the residual stream, once per layer
            x = x + self.temporal_attn(self.temporal_layer_norm1(x))
            x = x.view(bt // t, n, t, d).transpose(1, 2).reshape(bt, n, d)
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):
    """Patch embeddings by a convolution without bias, a class token in front, and position embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(d))
        self.patch_embedding = nn.Conv2d(3, d, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.n_patches + 1, d)

    def forward(self, frames: Tensor) -> Tensor:
        """Embed frames: float [N, 3, H, W] -> [N, P, D]."""
        patches = self.patch_embedding(frames).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(frames.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight


class VisionEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.n_layers))


class VisionModel(nn.Module):
    """Embeddings, layers and the norm of the pooled class token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run the tower.

        Args:
            pixels: float [B, T, 3, H, W], preprocessed.

        Returns:
            Hidden states, one [B, T, P, D] before each layer and one after the last (not normalized), and the pooled
            class token [B, D]: normalized per frame, then averaged over the frames.

        Raises:
            ValueError: T is larger than the number of time positions and not a multiple of it.
        """
        b, t = pixels.shape[:2]
        length = self.config.temporal_length
        if length and t > length and t % length:
            raise ValueError(f"{t} frames cannot be split into groups of {length}; use at most {length} or a multiple")
        x = self.pre_layrnorm(self.embeddings(pixels.flatten(0, 1)))
        states = [x.unflatten(0, (b, t))]
        for layer in self.encoder.layers:
            x = layer(x, t)
            states.append(x.unflatten(0, (b, t)))
        return states, self.post_layernorm(x[:, 0]).unflatten(0, (b, t)).mean(dim=1)


class VisionTower(nn.Module):
    """A vision model with its projection into the space shared with text."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)
        self.visual_projection: Any = nn.Identity()
        if config.projection_dim:
            self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor, layer: int = -2) -> tuple[Tensor, Tensor]:
        """Return tokens [B, T, P, D] of hidden state `layer` (with class token) and embedding [B, E]."""
        states, pooled = self.vision_model(pixels)
        return states[layer], self.visual_projection(pooled)
