import numpy as np
import pytest
import torch

from vidqa.model.connector import build_connector
from vidqa.model.llava import VideoLlava
from vidqa.prompts.formats import get_format
from vidqa.records import Features

WORDS = [
    "USER",
    ":",
    "ASSISTANT",
    "What",
    "is",
    "it",
    "?",
    "a",
    "b",
    "c",
    "d",
    "yes",
    "no",
    ".",
    "Describe",
    "the",
    "clip",
    "<image>",
    "<video>",
]


class WordTokenizer:
    """Splits at white space; ids are places in WORDS (unknown words share the last id)."""

    bos_token_id, pad_token_id, eos_token_id = 1, 0, 2

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        words = text.replace("</s>", " </s> ").replace(":", " : ").split()
        ids = [2 if w == "</s>" else 3 + (WORDS.index(w) if w in WORDS else len(WORDS)) for w in words]
        return [1, *ids] if add_special_tokens else ids

    def convert_tokens_to_ids(self, tokens: str) -> int:
        return 2 if tokens == "</s>" else 3 + WORDS.index(tokens)


@pytest.fixture
def tiny_model() -> VideoLlava:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    llm = LlamaForCausalLM(config)
    return VideoLlava(build_connector("mlp2x_gelu", 8, 24), llm, WordTokenizer(), get_format("vicuna_v1", None), 128)


def make_features(seed: int, t: int = 2, p: int = 3) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        rng.normal(size=(t, p, 8)).astype(np.float16), np.zeros(4, np.float32), t > 1, "video" if t > 1 else "image"
    )


@pytest.fixture
def features_of():
    return lambda path: make_features(int(path.split(".")[0]), t=2 if path.endswith("mp4") else 1)
