"""A tiny model with random weights, and features of several shapes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.records import Features, MediaKind

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
D = 24  # encoder width
CONTEXT = 256


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    return folder


@pytest.fixture
def model(tokenizer_folder: Path) -> VideoLlava:
    torch.manual_seed(3)
    tokenizer = LlamaTokenizer.from_pretrained(tokenizer_folder, add_bos_token=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,  # large, so that answers differ
        eos_token_id=None,
    )
    llm = LlamaForCausalLM(config)
    connector = build_connector("mlp2x_gelu", D, config.hidden_size)
    built = VideoLlava(connector, llm, tokenizer, get_format("v1", "A short header."), CONTEXT)
    return built.eval().requires_grad_(False)


def make_features(seed: int, kind: MediaKind = "video", n_frames: int = 4, n_tokens: int = 5) -> Features:
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((n_frames, n_tokens, D)).astype(np.float16)
    return Features(tokens, rng.standard_normal(8).astype(np.float32), kind == "video", kind)


@pytest.fixture(scope="session")
def clips() -> dict[str, Features]:
    return {
        "video": make_features(1),
        "other": make_features(2),
        "long": make_features(3, n_frames=8, n_tokens=9),
        "image": make_features(4, "image", 1, 16),
        "small": make_features(5, "image", 1, 4),
    }
