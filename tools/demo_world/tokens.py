"""The tokenizer of the demo language model: byte-level BPE trained on the sentences of the demo world.

Every byte is in the vocabulary, so any question can be encoded; the words of the world are one token each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo_world.language import summary
from demo_world.scene import make_scene
from demo_world.write import turns

VOCAB_SIZE = 800
END_OF_TEXT = "<|endoftext|>"  # pooled by the text tower, which takes the largest id: it must be the last one


def train_tokenizer(folder: Path, n_scenes: int = 3000) -> None:
    """Write a transformers tokenizer folder (tokenizer.json, tokenizer_config.json)."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(n_scenes), trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
    fast.save_pretrained(folder)


def _sentences(n_scenes: int) -> Iterator[str]:
    for seed in range(n_scenes):
        scene = make_scene(seed, held_out=True)
        yield "USER: " + summary(scene, np.random.default_rng(seed))
        for conversation in turns(scene):
            for pair in conversation:
                yield f"USER: {pair.question} ASSISTANT: {pair.answer}"
                yield f"\n{pair.question} ASSISTANT: {pair.answer}"
