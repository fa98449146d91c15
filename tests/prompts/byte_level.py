"""A byte-level tokenizer without merges, with the special tokens of several chat formats."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

MARKS = ["<image>", "<video>", "<|im_end|>", "<|im_start|>", "[INST]", "<vid_start>", "<vid_patch>", "<vid_end>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(special: bool = True) -> Any:
    """A tokenizer like those of GPT-2 and Qwen, whose added tokens may not be flagged as special."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="</s>")
    made.add_tokens([AddedToken(text, special=special, normalized=False) for text in MARKS])
    made.add_tokens(["   "])  # runs of spaces are tokens of many vocabularies
    return made
