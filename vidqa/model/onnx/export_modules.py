"""The towers as modules that export cleanly: no shapes computed inside the graph, no unused computation.

Operations are in the order that graph optimizers recognize. The values equal those of `vit` and `text` up to rounding,
which the export checks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.model.towers.text import TextTower
from vidqa.model.towers.vit import Attention, VisionLayer, VisionTower


class VisionGraph(nn.Module):
    """A vision tower for a fixed number of frames.

    If the tokens are taken before the last block, that block computes the class token only.

    Args:
        tower: its weights are shared, not copied.
        n_frames: T.
        layer: hidden state that is returned as `tokens`; negative counts from the last.
        fused: make every attention one operator of onnxruntime. Such a module is for export only: in torch its results
            are meaningless.

    Raises:
        ValueError: the tower does not support `layer` or `n_frames`.
    """

    def __init__(self, tower: VisionTower, n_frames: int, layer: int, *, fused: bool = False) -> None:
        super().__init__()
        c = tower.config
        length = c.temporal_length
        if n_frames < 1 or (length and n_frames > length and n_frames % length):
            raise ValueError(f"{n_frames} frames cannot be split into groups of {length}")
        self.tower, self.n_frames, self.fused = tower, n_frames, fused
        self.layer = layer if layer >= 0 else c.n_layers + 1 + layer
        if not 0 <= self.layer <= c.n_layers:
            raise ValueError(f"layer {layer} is not one of the {c.n_layers + 1} hidden states")
        for i, block in enumerate(tower.vision_model.encoder.layers if fused else ()):
            if not self._only_cls(i):
                self._pack(i, block.get_submodule("self_attn"))

    def _only_cls(self, i: int) -> bool:
        """Return True if block `i` needs to compute the class token only."""
        return i + 1 == self.tower.config.n_layers and self.layer <= i

    def _pack(self, i: int, attention: nn.Module) -> None:
        """Concatenate the projections of Q, K and V as the operator expects them: [D, 3D] and [3D]."""
        parts = [attention.get_submodule(f"{name}_proj") for name in "qkv"]
        self.register_buffer(f"packed_{i}", torch.cat([p.get_parameter("weight").T for p in parts], dim=1))
        self.register_buffer(f"packed_{i}_bias", torch.cat([p.get_parameter("bias") for p in parts]))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, T, 3, H, W] -> tokens [B, T, P, D], embedding float32 [B, E]."""
        model, c = self.tower.vision_model, self.tower.config
        x = model.pre_layrnorm(self._embed(pixel_values.reshape(-1, 3, c.image_size, c.image_size)))
        tokens = x
        for i, layer in enumerate(model.encoder.layers):
            assert isinstance(layer, VisionLayer)
            x = self._block(i, layer, x)
            tokens = x if i + 1 == self.layer else tokens
        pooled = model.post_layernorm(x[:, 0])
        pooled = pooled.reshape(-1, self.n_frames, c.hidden_size).mean(dim=1)
        tokens = tokens.reshape(-1, self.n_frames, c.n_patches + 1, c.hidden_size)
        return tokens, self.tower.visual_projection(pooled).float()

    def _embed(self, frames: Tensor) -> Tensor:
        e = self.tower.vision_model.embeddings
        patches = e.patch_embedding(frames.to(e.class_embedding.dtype)).flatten(2).transpose(1, 2)
        # A row of zeros before the patches receives the class token from the table, without an expand to the batch.
        table = e.position_embedding.weight + F.pad(e.class_embedding[None], (0, 0, 0, self.tower.config.n_patches))
        return F.pad(patches, (0, 0, 1, 0)) + table

    def _block(self, i: int, layer: VisionLayer, x: Tensor) -> Tensor:
        """[B*T, P, D] -> [B*T, P, D], or [B*T, 1, D] if only the class token is needed."""
        if layer.temporal_length:
            n, d = x.shape[1:]
            t = min(self.n_frames, layer.temporal_length)
            x = (x.reshape(-1, t, n, d) + layer.temporal_embedding[0, :t, None]).reshape(-1, n, d)
            y = layer.temporal_layer_norm1(x).reshape(-1, t, n, d).transpose(1, 2).reshape(-1, t, d)
            y = attend(layer.temporal_attn, y, y, fused=self.fused)
            x = x + y.reshape(-1, n, t, d).transpose(1, 2).reshape(-1, n, d)
        y = layer.layer_norm1(x)
        if self._only_cls(i):
            x, y = x[:, :1], attend(layer.self_attn, y[:, :1], y, fused=self.fused)
        elif self.fused:
            y = self._attention(i, layer.self_attn, y)
        else:
            y = attend(layer.self_attn, y, y)
        x = x + y
        return x + layer.mlp(layer.layer_norm2(x))

    def _attention(self, i: int, attn: Attention, y: Tensor) -> Tensor:
        """Compute self-attention of [N, L, D] as one node, including the input projections."""
        inputs = [y, self.get_buffer(f"packed_{i}"), self.get_buffer(f"packed_{i}_bias")]
        return attn.out_proj(_node("Attention", inputs, attn.n_heads, y.shape))


class TextGraph(nn.Module):
    """A text tower for texts padded to its maximum length."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower
        s = tower.config.max_positions
        self.register_buffer("future", torch.ones(s, s, dtype=torch.bool).triu(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, S], int64 [B, S] (1 for real tokens) -> embedding float32 [B, E]."""
        model = self.tower.text_model
        # The mask is finite, so that a query without visible keys (leading padding) becomes a mean and not NaN.
        hidden = (attention_mask[:, None, None, :] == 0) | self.get_buffer("future")
        mask = hidden.float() * torch.finfo(torch.float32).min
        # Indexed, not called: the exporter would name the looked-up states `embedding`, the name of our output.
        x = model.embeddings.token_embedding.weight[input_ids] + model.embeddings.position_embedding.weight
        for layer in model.encoder.layers:
            norm1, norm2 = layer.get_submodule("layer_norm1"), layer.get_submodule("layer_norm2")
            attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
            assert isinstance(attention, Attention)
            y = norm1(x)
            x = x + attend(attention, y, y, mask)
            x = x + mlp(norm2(x))
        end = input_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, x.shape[-1])
        return self.tower.text_projection(model.final_layer_norm(x.gather(1, end)[:, 0]))


def attend(attn: Attention, queries: Tensor, x: Tensor, mask: Tensor | None = None, *, fused: bool = False) -> Tensor:
    """Compute attention of `queries` over `x`, without torch's fused function.

    Args:
        attn: the weights.
        queries: [N, Q, D].
        x: [N, L, D].
        mask: added to the scores, [N or 1, 1, Q, L]; not supported with `fused`.
        fused: make it one node, for export only.

    Returns:
        [N, Q, D].
    """
    n_queries, width = queries.shape[1:]
    length, head_dim = x.shape[1], width // attn.n_heads
    q, k, v = attn.q_proj(queries), attn.k_proj(x), attn.v_proj(x)
    if fused:
        return attn.out_proj(_node("MultiHeadAttention", [q, k, v], attn.n_heads, q.shape))
    q = q.reshape(-1, n_queries, attn.n_heads, head_dim).transpose(1, 2)
    k = k.reshape(-1, length, attn.n_heads, head_dim).permute(0, 2, 3, 1)
    v = v.reshape(-1, length, attn.n_heads, head_dim).transpose(1, 2)
    scores = torch.matmul(q, k) / math.sqrt(head_dim)
    if mask is not None:
        scores = scores + mask
    y = torch.matmul(torch.softmax(scores, dim=-1), v)
    return attn.out_proj(y.transpose(1, 2).reshape(-1, n_queries, width))


def _node(name: str, inputs: list[Tensor], n_heads: int, shape: torch.Size) -> Tensor:
    """Create an attention operator of onnxruntime, for export only; its result has `shape` and the inputs' dtype."""
    heads, dtype = {"num_heads": n_heads}, inputs[0].dtype
    node = torch.onnx.ops.symbolic(f"com.microsoft::{name}", inputs, heads, dtype=dtype, shape=shape, version=1)  # type: ignore[arg-type]
    assert isinstance(node, Tensor)
    return node
