"""A Llama for inference that needs torch only, so that a standard bundle needs no heavier imports.

It replaces transformers' LlamaForCausalLM, with the same logits and the same arguments and results where vidqa uses
them. It has fewer and larger matmuls, with less overhead around them: query, key and value are fused, and so are gate
and up (`weights.py` maps the published weight names). A prefill of shared prefixes stops in the last layer as soon as
K and V are computed. KV caches and attention functions are exchangeable; they live in `vidqa.generate`.

Letters: n sequences, S new tokens, T keys, H query heads, G KV heads, d head_dim, L hidden size, N vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidqa.model.llama.kernel_check import checked_kernels
from vidqa.model.llama.packed_linear import Linear, supports_packing

#: (layer, query [n, H, S, d], key [n, G, T, d], value, mask, scaling=, ...) -> ([n, S, H, d], None), the signature of
#: transformers' attention functions.
AttentionFunction = Callable[..., tuple[Tensor, None]]
#: Module of fused GPU kernels for some of these operations.
KERNELS = "vidqa.model.llama.fused_ops"


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, by the names that transformers uses."""

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
    """End-of-sequence ids from the LLM folder."""

    eos_token_id: int | list[int] | None = None


@dataclass
class Logits:
    """Result of a forward pass: float [n, S, N], or of the last tokens only."""

    logits: Tensor


@dataclass
class LayerKV:
    """KV cache of one layer, both tensors [n, G, T, d]."""

    keys: Tensor
    values: Tensor


@dataclass
class DynamicKVCache:
    """KV cache that grows with every forward pass."""

    layers: list[LayerKV] = field(default_factory=list)

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append K and V [n, G, S, d] to a layer; return all of the layer."""
        if layer_idx == len(self.layers):
            self.layers.append(LayerKV(key, value))
        else:
            layer = self.layers[layer_idx]
            layer.keys, layer.values = torch.cat([layer.keys, key], 2), torch.cat([layer.values, value], 2)
        return self.layers[layer_idx].keys, self.layers[layer_idx].values


class Llama(nn.Module):
    """A causal LLM.

    Args:
        config: sizes.
        ends: end-of-sequence ids.
        device: device of the weights; `meta` if they are assigned later.
    """

    inv_freq: Tensor  # float32 [d / 2], radians per position

    def __init__(self, config: LlamaConfig, ends: SequenceEnds | None = None, device: str | None = None) -> None:
        super().__init__()
        self.config, self.generation_config = config, ends or SequenceEnds()
        self.attend: AttentionFunction = sdpa_attention
        self.packed = False
        self.model = _Decoder(config, device)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, device)
        # On the CPU even if the device is `meta`: it is not one of the weights that are assigned later.
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
        self.register_buffer("inv_freq", 1.0 / config.rope_theta**steps, persistent=False)
        if config.tie_word_embeddings:
            self.tie()

    def tie(self) -> None:
        """Make the head share the embedding table."""
        self.lm_head.weight = self.model.embed_tokens.weight

    def pack(self) -> None:
        """Reorder the weights for fast matmuls on a CPU, if they are float32 and torch supports it.

        Packed weights can only be multiplied with: they can no longer be moved to a device or saved.
        """
        table = self.model.embed_tokens.weight
        if table.device.type != "cpu" or table.dtype != torch.float32 or not supports_packing():
            return
        self.packed = True
        for module in self.modules():
            if isinstance(module, Linear) and module.weight is not table:
                module.pack()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding table [N, L]."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """Return the head, weights [N, L]."""
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
        kv_only: bool = False,
        **rest: Any,
    ) -> Logits:
        """Compute the logits of new tokens.

        Args:
            input_ids: int64 [n, S], or None if `inputs_embeds` is given.
            inputs_embeds: float [n, S, L].
            attention_mask: bool [n, 1, S, T], True where a query attends to a key; None is causal, after all cached
                tokens.
            position_ids: int64 [n, S].
            past_key_values: KV cache; its `update` stores K and V and returns those that the mask covers.
            use_cache: must be True.
            logits_to_keep: number of last tokens to compute logits for; 0 is all.
            kv_only: stop once the K and V of all layers are stored; the logits are empty then.
            rest: passed to the attention function.
        """
        assert use_cache
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rotary = self._rotary_emb(position_ids, x.dtype)
        last = len(self.model.layers) - 1
        for i, layer in enumerate(self.model.layers):
            assert isinstance(layer, _Layer)
            query, key, value = layer.self_attn.project(layer.input_layernorm(x), rotary)
            key, value = past_key_values.update(key, value, i)
            if kv_only and i == last:
                return Logits(x.new_empty(len(x), 0, self.config.vocab_size))
            if logits_to_keep and i == last:  # K and V of the other tokens are already stored
                x, query = x[:, -logits_to_keep:], query[:, :, -logits_to_keep:]
                attention_mask = None if attention_mask is None else attention_mask[:, :, -logits_to_keep:]
            x = layer(x, query, key, value, attention_mask, self.attend, rest)
        return Logits(self.lm_head(self.model.norm(x)))

    def _rotary_emb(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines, [n, 1, S, d] each."""
        angles = positions[:, None, :, None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


class _Embedding(nn.Embedding):
    """Embedding table that is uninitialized until weights are assigned, like `Linear`."""

    def reset_parameters(self) -> None:
        """Skip the random initialization."""


class _Decoder(nn.Module):
    def __init__(self, c: LlamaConfig, device: str | None) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(c.vocab_size, c.hidden_size, device=device)
        self.layers = nn.ModuleList(_Layer(c, i, device) for i in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, device=device)


class _Attention(nn.Module):
    def __init__(self, c: LlamaConfig, layer_idx: int, device: str | None) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = layer_idx, c.head_dim
        self.n_heads, self.n_kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.qkv_proj = Linear(c.hidden_size, (self.n_heads + 2 * self.n_kv_heads) * c.head_dim, device)
        self.o_proj = Linear(self.n_heads * c.head_dim, c.hidden_size, device)

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """[n, S, L] -> query [n, H, S, d], key and value [n, G, S, d]; query and key with rotary embedding."""
        n, n_new, _ = x.shape
        heads = self.qkv_proj(x).view(n, n_new, -1, self.head_dim)
        if (kernels := checked_kernels(KERNELS, x.device, x.dtype, self.head_dim)) is not None:
            kernels.apply_rotary_emb_(heads, self.n_heads + self.n_kv_heads, *rotary)
            return heads.transpose(1, 2).split([self.n_heads, self.n_kv_heads, self.n_kv_heads], 1)
        heads = heads.transpose(1, 2)
        query, key = apply_rotary_emb(heads[:, : -self.n_kv_heads], rotary).split([self.n_heads, self.n_kv_heads], 1)
        return query, key, heads[:, -self.n_kv_heads :]


class _Mlp(nn.Module):
    def __init__(self, c: LlamaConfig, device: str | None) -> None:
        super().__init__()
        self.head_dim = c.head_dim  # the kernels are checked per head_dim
        self.gate_up_proj = Linear(c.hidden_size, 2 * c.intermediate_size, device)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, device)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x)
        if (kernels := checked_kernels(KERNELS, x.device, x.dtype, self.head_dim)) is not None:
            return self.down_proj(kernels.silu_mul(gate_up))
        gate, up = gate_up.chunk(2, -1)
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
        attend: AttentionFunction,
        rest: dict[str, Any],
    ) -> Tensor:
        """Run attention and MLP, given query, K and V: [n, S, L] -> [n, S, L]."""
        out, _ = attend(self.self_attn, query, key, value, mask, scaling=query.shape[-1] ** -0.5, **rest)
        x = x + self.self_attn.o_proj(out.flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


def sdpa_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Compute standard attention; without a mask it is causal, with the queries at the last positions of the keys.

    Args:
        module: the attention layer; not used.
        query: [n, H, S, d].
        key: [n, G, T, d].
        value: [n, G, T, d].
        attention_mask: bool [n, 1, S, T], True where a query attends to a key; None is causal.
        scaling: factor of the scores; None is 1 / sqrt(d).
        rest: ignored.

    Returns:
        [n, S, H, d], and None for the attention weights.
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


def apply_rotary_emb(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate heads [n, heads, S, d] by their positions; dimensions i and i + d / 2 form a pair."""
    cos, sin = rotary
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([second, first], -1) * sin
