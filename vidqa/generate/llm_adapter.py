"""Adapter for the two kinds of LLM: vidqa's own Llama, and transformers models with an exchangeable attention function.

It hides how the attention function is replaced, which class the KV cache has, and what the cache argument is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor

from vidqa.generate.attention.shared_prefix import shared_prefix_attention
from vidqa.model.llama.model import DynamicKVCache, Llama

#: Name under which transformers models find `shared_prefix_attention`.
_NAME = "vidqa_shared"


def supports_shared_prefix(llm: Any, context: int) -> bool:
    """Return True if a model can run with `shared_prefix_attention`.

    Its attention must be full attention, called through transformers' attention interface, on one device.

    Args:
        llm: a causal LLM.
        context: maximum sequence length; a sliding window of at least this length has no effect.
    """
    if isinstance(llm, Llama):
        return True
    # Prefixes are on one device, so layers must not be on several. Layers offloaded to CPU or disk run on that device.
    if len({str(device) for device in (getattr(llm, "hf_device_map", None) or {}).values()} - {"cpu", "disk"}) > 1:
        return False
    config, parameters = llm.config, signature(llm.forward).parameters
    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    return (
        bool(getattr(llm, "_supports_attention_backend", False))
        and (not layer_types or layer_types == {"full_attention"})
        and (not window or window >= context)
        and getattr(config, "attn_logit_softcapping", None) is None
        and "logits_to_keep" in parameters
        and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    )


@contextmanager
def shared_prefix_enabled(llm: Any) -> Iterator[None]:
    """Make a model that `supports_shared_prefix` use `shared_prefix_attention` inside the block."""
    if isinstance(llm, Llama):
        usual, llm.attend = llm.attend, shared_prefix_attention
        try:
            yield
        finally:
            llm.attend = usual
        return
    _register()
    config = llm.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def new_cache(llm: Any) -> Any:
    """Return an empty KV cache, with `.layers[i].keys` and `.values` once the model has run."""
    if isinstance(llm, Llama):
        return DynamicKVCache()
    from transformers import DynamicCache

    return DynamicCache()


def forwarding_cache(llm: Any, store: Callable[[Tensor, Tensor, int], None]) -> Any:
    """Return a cache for a prefill that stores nothing itself and forwards each layer's K and V.

    Args:
        llm: the LLM that will use the cache.
        store: receives K and V of a layer, [sequences, KV heads, tokens, head_dim], and its index.
    """
    cache = new_cache(llm)

    def update(key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        store(key, value, layer_idx)
        return key, value

    cache.update = update
    return cache


def cache_argument(llm: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword argument that passes a KV cache: later releases of transformers 5 renamed it."""
    return {_cache_parameter(type(llm).forward): cache}


@functools.cache
def _cache_parameter(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def kv_only_arguments(llm: Any) -> dict[str, Any]:
    """Return arguments for a forward pass that only fills the KV cache, with as little other work as possible."""
    return {"kv_only": True} if isinstance(llm, Llama) else {"logits_to_keep": 1}


@functools.cache
def _register() -> None:
    """Register the function with transformers, without a mask function: a forward pass without a mask is causal."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, shared_prefix_attention)
