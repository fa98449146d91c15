"""vidqa's own Llama: the inference part of LlamaForCausalLM without importing transformers.

loader.py         LLM folder -> Llama and tokenizer, or None if transformers has to read it
model.py          token ids or embeddings -> logits; KV caches and attention functions are exchangeable
weights.py        published weight names <-> our fused ones
packed_linear.py  weights in the block order of a CPU
fused_ops.py      rotary embedding and SiLU gate as GPU kernels; kernel_check.py decides whether kernels are used
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.model.llama.loader import load_llama
    from vidqa.model.llama.model import Llama, LlamaConfig

__all__ = ["Llama", "LlamaConfig", "load_llama"]

__getattr__ = lazy_exports(__name__, {"Llama": "model", "LlamaConfig": "model", "load_llama": "loader"})
