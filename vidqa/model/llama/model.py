"""A Llama that only answers, for the plain kind of bundle: no more than tensors, so nothing heavy is imported for it.

Stands in for transformers' LlamaForCausalLM: the same names of weights, the same arguments and results where vidqa uses
them, the same logits. A run of it has less around its products, fewer and larger products (query, key and value are
one, gate and up another; `llama_weights` knows the published names), and the beginnings of clips pass its last layer
only as far as their keys and values are made. Does not know files, prompts or shared beginnings.

Letters: n lines, S new tokens, T keys, H query heads, G key heads, d width of a head, L width, N vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidqa.model.llama.kernel_check import proven
from vidqa.model.llama.packed_linear import Linear, packs

#: (layer, query [n, H, S, d], key [n, G, T, d], value, mask, scaling=, ...) -> ([n, S, H, d], None), as transformers'
#: attention functions.
Attend = Callable[..., tuple[Tensor, None]]
#: Does some of this in fewer steps on a GPU.
KERNELS = "vidqa.model.llama.fused_ops"


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, by transformers' names."""

    vocab_size: int
    hidden_size: int  # L
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # G
    head_dim: int  # d
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool


@dataclass
class SequenceEnds:
    """What ends an answer, as the LLM's folder says it."""

    eos_token_id: int | list[int] | None = None


@dataclass
class Logits:
    """What a run gives: float [n, S, N], or of the last tokens alone."""

    logits: Tensor


@dataclass
class KeyValues:
    """Keys and values of one layer, [n, G, T, d] each."""

    keys: Tensor
    values: Tensor


@dataclass
class GrowingCache:
    """Keys and values of what was run so far, one layer after another."""

    layers: list[KeyValues] = field(default_factory=list)

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append to a layer [n, G, S, d]; gives all of it."""
        if layer_idx == len(self.layers):
            self.layers.append(KeyValues(key, value))
        else:
            layer = self.layers[layer_idx]
            layer.keys, layer.values = torch.cat([layer.keys, key], 2), torch.cat([layer.values, value], 2)
        return self.layers[layer_idx].keys, self.layers[layer_idx].values


class Llama(nn.Module):
    """A causal LLM.

    Args:
        config: its sizes.
        ends: tokens that end an answer.
        device: of the weights; `meta` where they are given later.
    """

    inv_freq: Tensor  # float32 [d / 2]: radians a position

    def __init__(self, config: LlamaConfig, ends: SequenceEnds | None = None, device: str | None = None) -> None:
        super().__init__()
        self.config, self.generation_config = config, ends or SequenceEnds()
        self.attend: Attend = plain_attention
        self.packed = False
        self.model = _Decoder(config, device)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, device)
        # Not stored with the weights: made here even where these are given later.
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
        self.register_buffer("inv_freq", 1.0 / config.rope_theta**steps, persistent=False)
        if config.tie_word_embeddings:
            self.tie()

    def tie(self) -> None:
        """The head reads the table of embeddings."""
        self.lm_head.weight = self.model.embed_tokens.weight

    def pack(self) -> None:
        """Bring the weights into the order in which a CPU reads them, if they are float32 there and that can be had.

        They can then be multiplied with and nothing else: not moved, not written. The model answers all the same.
        """
        table = self.model.embed_tokens.weight
        if table.device.type != "cpu" or table.dtype != torch.float32 or not packs():
            return
        self.packed = True
        for module in self.modules():
            if isinstance(module, Linear) and module.weight is not table:
                module.pack()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of embeddings [N, L]."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head, weights [N, L]."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor,
        past_key_values: Any,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        keys_only: bool = False,
        **rest: Any,
    ) -> Logits:
        """Run over new tokens.

        Args:
            input_ids: int64 [n, S], or
            inputs_embeds: float [n, S, L].
            attention_mask: bool [n, 1, S, T], True where a query may look; None is causal behind what is stored.
            position_ids: int64 [n, S].
            past_key_values: stores keys and values, gives back those that the mask is about.
            use_cache: always.
            logits_to_keep: how many tokens at the end have logits; 0 is all.
            keys_only: stop once the keys and values of all layers are stored; the logits are empty then.
            rest: for the attention function.
        """
        assert use_cache
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        turn = self._turns(position_ids, x.dtype)
        last = len(self.model.layers) - 1
        for i, layer in enumerate(self.model.layers):
            assert isinstance(layer, _Layer)
            query, key, value = layer.self_attn.project(layer.input_layernorm(x), turn)
            key, value = past_key_values.update(key, value, i)
            if keys_only and i == last:
                return Logits(x.new_empty(len(x), 0, self.config.vocab_size))
            if logits_to_keep and i == last:  # the other tokens have left their keys and values
                x, query = x[:, -logits_to_keep:], query[:, :, -logits_to_keep:]
                attention_mask = None if attention_mask is None else attention_mask[:, :, -logits_to_keep:]
            x = layer(x, query, key, value, attention_mask, self.attend, rest)
        return Logits(self.lm_head(self.model.norm(x)))

    def _turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of the rotary embedding, [n, 1, S, d] each."""
        angles = positions[:, None, :, None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


class _Embedding(nn.Embedding):
    """Without numbers until they are given, as `Linear`."""

    def reset_parameters(self) -> None:
        """Leave them be."""


class _Decoder(nn.Module):
    def __init__(self, c: LlamaConfig, device: str | None) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(c.vocab_size, c.hidden_size, device=device)
        self.layers = nn.ModuleList(_Layer(c, i, device) for i in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, device=device)


class _Attention(nn.Module):
    def __init__(self, c: LlamaConfig, layer_idx: int, device: str | None) -> None:
        super().__init__()
        self.layer_idx, self.width = layer_idx, c.head_dim
        self.n_heads, self.n_groups = c.num_attention_heads, c.num_key_value_heads
        self.qkv_proj = Linear(c.hidden_size, (self.n_heads + 2 * self.n_groups) * c.head_dim, device)
        self.o_proj = Linear(self.n_heads * c.head_dim, c.hidden_size, device)

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """[n, S, L] -> query [n, H, S, d], key and value [n, G, S, d], the first two at their positions."""
        n, n_new, _ = x.shape
        heads = self.qkv_proj(x).view(n, n_new, -1, self.width)
        if (kernels := proven(KERNELS, x.device, x.dtype, self.width)) is not None:
            kernels.turn_(heads, self.n_heads + self.n_groups, *turn)
            return heads.transpose(1, 2).split([self.n_heads, self.n_groups, self.n_groups], 1)
        heads = heads.transpose(1, 2)
        query, key = _turned(heads[:, : -self.n_groups], turn).split([self.n_heads, self.n_groups], 1)
        return query, key, heads[:, -self.n_groups :]


class _Mlp(nn.Module):
    def __init__(self, c: LlamaConfig, device: str | None) -> None:
        super().__init__()
        self.width = c.head_dim
        self.gate_up_proj = Linear(c.hidden_size, 2 * c.intermediate_size, device)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, device)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up_proj(x)
        if (kernels := proven(KERNELS, x.device, x.dtype, self.width)) is not None:
            return self.down_proj(kernels.gated(both))
        gate, up = both.chunk(2, -1)
        return self.down_proj(functional.silu(gate).mul_(up))


class _Layer(nn.Module):
    def __init__(self, c: LlamaConfig, layer_idx: int, device: str | None) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(c, layer_idx, device), _Mlp(c, device)
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, device=device)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, device=device)

    def forward(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        attend: Attend,
        rest: dict[str, Any],
    ) -> Tensor:
        """What follows the keys and values: attention and the feed-forward part, [n, S, L]."""
        out, _ = attend(self.self_attn, query, key, value, mask, scaling=query.shape[-1] ** -0.5, **rest)
        x = x + self.self_attn.o_proj(out.flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


def plain_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Ordinary attention; without a mask it is causal, the queries being the last of the keys.

    Args:
        module: the layer.
        query: [n, H, S, d].
        key: [n, G, T, d].
        value: [n, G, T, d].
        attention_mask: bool [n, 1, S, T], True where a query may look; None is causal.
        scaling: of the scores; None is 1 / sqrt(d).
        rest: not used.

    Returns:
        [n, S, H, d], and None for the weights.
    """
    n_new, n_keys = query.shape[2], key.shape[2]
    causal = attention_mask is None and n_new > 1
    if causal and n_new != n_keys:
        ones = torch.ones(n_new, n_keys, dtype=torch.bool, device=query.device)
        attention_mask, causal = ones.tril(n_keys - n_new), False
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Heads [n, *, S, d] at their positions: the second half of a head is the other coordinate of the first."""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([second, first], -1) * sin
