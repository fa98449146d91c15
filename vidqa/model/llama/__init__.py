"""vidqa's own Llama: the inference part of LlamaForCausalLM without importing transformers.

loader.py         LLM folder -> Llama and tokenizer, or None if transformers has to read it
model.py          token ids or embeddings -> logits; KV caches and attention functions are exchangeable
weights.py        published weight names <-> our fused ones
packed_linear.py  weights in the block order of a CPU
fused_ops.py      rotary embedding and SiLU gate as GPU kernels; kernel_check.py decides whether kernels are used
"""
