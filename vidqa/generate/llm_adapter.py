"""What differs between the kinds of LLM: our own Llama, and the models of transformers that take part by its interface.

Knows how a model is told to attend by another function, and what stores its keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor

from vidqa.generate.attention.shared_prefix import shared_attention
from vidqa.model.llama.model import GrowingCache, Llama

#: The name under which transformers' models find `shared_attention`.
_NAME = "vidqa_shared"


def can_share(llm: Any, context: int) -> bool:
    """Whether a model's attention can be exchanged for ours: ordinary, over all of the sequence, by the interface, and
    on one device.

    Args:
        llm: a causal LLM.
        context: longest sequence; a window that is never reached does not matter.
    """
    if isinstance(llm, Llama):
        return True
    # Layers on several devices: beginnings lie on one. The CPU's and the disk's are computed where the others are.
    if len({str(place) for place in (getattr(llm, "hf_device_map", None) or {}).values()} - {"cpu", "disk"}) > 1:
        return False
    config, takes = llm.config, signature(llm.forward).parameters
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return (
        bool(getattr(llm, "_supports_attention_backend", False))
        and (not kinds or kinds == {"full_attention"})
        and (not window or window >= context)
        and getattr(config, "attn_logit_softcapping", None) is None
        and "logits_to_keep" in takes
        and any(p.kind is p.VAR_KEYWORD for p in takes.values())
    )


@contextmanager
def sharing(llm: Any) -> Iterator[None]:
    """A model that `can_share` attends by `shared_attention` inside the block."""
    if isinstance(llm, Llama):
        usual, llm.attend = llm.attend, shared_attention
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
    """An empty store of keys and values, with `.layers[i].keys` and `.values` once the model has run."""
    if isinstance(llm, Llama):
        return GrowingCache()
    from transformers import DynamicCache

    return DynamicCache()


def handing_on(llm: Any, hold: Callable[[Tensor, Tensor, int], None]) -> Any:
    """An empty store for a first run: it keeps nothing, and hands on what each layer would have it keep.

    Args:
        llm: that runs.
        hold: gets keys and values [n, G, S, d] of a layer, and its number.
    """
    cache = new_cache(llm)

    def update(key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        hold(key, value, layer_idx)
        return key, value

    cache.update = update
    return cache


def stored_in(llm: Any, cache: Any) -> dict[str, Any]:
    """The argument that hands a model its store of keys and values: later releases of transformers 5 renamed it."""
    return {_store_name(type(llm).forward): cache}


@functools.cache
def _store_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def keys_only(llm: Any) -> dict[str, Any]:
    """Arguments of a run that is for keys and values alone: as little else as the model can do."""
    return {"keys_only": True} if isinstance(llm, Llama) else {"logits_to_keep": 1}


@functools.cache
def _register() -> None:
    """Make the function known to transformers, without a mask function: a run without a mask of ours is causal."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, shared_attention)
