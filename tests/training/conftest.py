from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.records import Features
from vidqa.training.api import FeaturesByPath, SamplesInMemory
from vidqa.training.batching.dataset import TrainingDataset, model_tokenizer, sample_stats
from vidqa.training.batching.sampler import Packing, plan_batches
from vidqa.training.data.sample import MediaRef, Sample
from vidqa.training.distributed import is_first
from vidqa.training.recipe.definition import Logging, Output, Stage
from vidqa.training.stage.metrics import MetricsFile, read_metrics
from vidqa.training.stage.trainer import StageResult, StageTrainer

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
    "<vid_start>",
    "<vid_end>",
]


class WordTokenizer:
    """Splits at white space; ids are indices into WORDS, and unknown words share the last id."""

    bos_token_id, pad_token_id, eos_token_id = 1, 0, 2
    added_tokens_decoder: ClassVar = {2: AddedToken("</s>", special=True)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        words = text.replace("</s>", " </s> ").replace(":", " : ").split()
        ids = [2 if w == "</s>" else 3 + (WORDS.index(w) if w in WORDS else len(WORDS)) for w in words]
        return [1, *ids] if add_special_tokens else ids

    def convert_tokens_to_ids(self, tokens: str) -> int:
        return 2 if tokens == "</s>" else 3 + WORDS.index(tokens)

    def convert_ids_to_tokens(self, ids: int) -> str:
        return f"▁{WORDS[ids - 3]}" if 3 <= ids < 3 + len(WORDS) else f"<{ids}>"

    def get_vocab(self) -> dict[str, int]:
        return {word: 3 + n for n, word in enumerate(WORDS)}


@pytest.fixture
def tiny_model() -> VideoLlava:
    return make_model()


def make_model(connector: str = "mlp2x_gelu", compressor: CompressorSpec | None = None) -> VideoLlava:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    llm = LlamaForCausalLM(config)
    built = build_connector(connector, 8, 24, compressor)
    return VideoLlava(built, llm, WordTokenizer(), get_format("vicuna_v1", None), 128)


def make_features(seed: int, t: int = 2, p: int = 3) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        rng.normal(size=(t, p, 8)).astype(np.float16), np.zeros(4, np.float32), t > 1, "video" if t > 1 else "image"
    )


def features_by_name(path: str) -> Features:
    return make_features(int(path.split(".")[0]), t=2 if path.endswith("mp4") else 1)


@pytest.fixture
def features_of():
    return features_by_name


def make_sample(n: int, media: str | None = None, answer: str = "yes b", question: str = "What is it ?") -> Sample:
    """A conversation about `3.mp4`, `2.png` or without media."""
    if media is None:
        return Sample(str(n), (), ((question, answer),))
    kind = "video" if media.endswith("mp4") else "image"
    return Sample(str(n), (MediaRef(media, kind),), ((f"<{kind}>\n{question}", answer),))


SAMPLES = [
    make_sample(0, "1.mp4"),
    make_sample(1, "1.mp4", "a b c"),
    make_sample(2, "2.png"),
    make_sample(3),
    make_sample(4, "3.mp4", "no"),
    make_sample(5, "4.png", "d"),
    make_sample(6, "5.mp4", "c d"),
]


@dataclass(frozen=True)
class TrainedStage:
    """Result and metrics of a stage."""

    result: StageResult
    lines: list[dict[str, Any]]


def train_samples(
    model: VideoLlava,
    folder: Path,
    stage: Stage,
    samples: Sequence[Sample] = SAMPLES,
    *,
    shuffled: bool = True,
    features: Callable[[str], Features] = features_by_name,
    **options: Any,
) -> TrainedStage:
    """Run a stage on samples in memory, with checkpoints in `folder`; `options` go to the StageTrainer."""
    corpus = SamplesInMemory([(sample,) for sample in samples], seed=3)
    order = corpus.epoch_order if shuffled else lambda epoch: np.arange(len(samples))
    plan = plan_batches(
        order,
        stage.global_batch_size,
        epochs=stage.epochs or (None if stage.steps else 1.0),
        steps=stage.steps,
        packing=Packing(stage.packing, stage.sequences_per_media, stage.group_by_length),
        stats=sample_stats(corpus),
    )
    data = TrainingDataset(corpus, plan, FeaturesByPath(features), model_tokenizer(model))
    metrics = MetricsFile(folder / "metrics.jsonl", active=is_first())
    result = StageTrainer(model, data, stage, folder, metrics=metrics, **options).run()
    return TrainedStage(result, read_metrics(metrics.path) if is_first() else [])


def save_every(steps: int, save_total_limit: int = 2) -> dict[str, Any]:
    """Options of the StageTrainer that save and log often."""
    return {
        "output": Output(save_steps=steps, save_total_limit=save_total_limit),
        "logging": Logging(logging_steps=1),
    }


@pytest.fixture
def lab() -> SimpleNamespace:
    """The helpers of this file for tests that run stages."""
    return SimpleNamespace(
        make_model=make_model,
        make_features=make_features,
        make_sample=make_sample,
        samples=SAMPLES,
        train=train_samples,
        save_every=save_every,
    )
