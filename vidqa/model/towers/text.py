"""The LanguageBind (CLIP) text tower in torch: token ids -> one pooled embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidqa.model.towers.vit import Attention, HiddenAct, Mlp


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text tower."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    max_positions: int
    projection_dim: int
    hidden_act: HiddenAct = "gelu"
    layer_norm_eps: float = 1e-5


class TextEmbeddings(nn.Module):
    """Token and position embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size)


class TextLayer(nn.Module):
    """Pre-norm block with causal attention."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.hidden_size, config.n_heads)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]; mask bool [B, 1, S, S], True where a query attends to a key."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class TextTransformer(nn.Module):
    """The stack of layers."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.n_layers))


class TextModel(nn.Module):
    """Embeddings, layers, final norm; pools the state at the end-of-text token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextTransformer(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Run the tower.

        Args:
            ids: int64 [B, S].
            attention_mask: [B, S], 1 for real tokens; None if all are.

        Returns:
            Hidden states before each layer and after the last, the normalized last state [B, S, D], and the pooled
            state [B, D]: at the first position of the largest id, which is the end-of-text token of CLIP's vocabulary.
        """
        b, s = ids.shape
        allowed = torch.ones(s, s, dtype=torch.bool, device=ids.device).tril().expand(b, 1, s, s)
        if attention_mask is not None:
            allowed = allowed & attention_mask.bool()[:, None, None, :]
            # A query without visible keys (leading padding) would become NaN, so it attends to itself.
            own = torch.eye(s, dtype=torch.bool, device=ids.device)
            allowed = allowed | (own & ~allowed.any(dim=-1, keepdim=True))
        e = self.embeddings
        x = e.token_embedding(ids) + e.position_embedding.weight[:s]
        states = [x]
        for layer in self.encoder.layers:
            x = layer(x, allowed)
            states.append(x)
        last = self.final_layer_norm(x)
        return states, last, last[torch.arange(b, device=ids.device), ids.argmax(dim=-1)]


class TextTower(nn.Module):
    """A text model with its projection into the space shared with images and videos."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """int64 [B, S] -> embedding [B, E], not normalized."""
        return self.text_projection(self.text_model(ids, attention_mask)[2])
