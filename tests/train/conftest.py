from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.records import Features
from vidqa.train.api import ByPath, GivenSamples
from vidqa.train.batching.dataset import TrainingDataset, labeller, survey
from vidqa.train.batching.sampler import Packing, plan_run
from vidqa.train.data import MediaRef, Sample
from vidqa.train.distributed import RunConfig, is_first
from vidqa.train.recipe.definition import Logging, Output, Stage
from vidqa.train.stage.loop import Silent, StageContext, StageResult, run_stage
from vidqa.train.stage.metrics import MetricsFile, read_metrics

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
    """Splits at white space; ids are places in WORDS (unknown words share the last id)."""

    bos_token_id, pad_token_id, eos_token_id = 1, 0, 2

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
    """A conversation about `3.mp4`, `2.png` or nothing."""
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
class Ran:
    """What a stage left."""

    result: StageResult
    lines: list[dict[str, Any]]


def tune_samples(
    model: VideoLlava,
    folder: Path,
    stage: Stage,
    samples: Sequence[Sample] = SAMPLES,
    *,
    common: RunConfig | None = None,
    listener: Any = None,
    shuffled: bool = True,
    evaluate: Any = None,
    features: Callable[[str], Features] = features_by_name,
    stopping: Callable[[], bool] = lambda: False,
    eval_every: int | None = None,
) -> Ran:
    """Run a stage on samples in memory, with checkpoints in `folder`."""
    corpus = GivenSamples([(sample,) for sample in samples], seed=3)
    order = corpus.epoch_order if shuffled else lambda epoch: np.arange(len(samples))
    packing = Packing(stage.packing, stage.visits, stage.order == "length")
    looked = survey(corpus)
    epochs = stage.epochs or (None if stage.steps else 1.0)
    plan = plan_run(order, stage.global_batch, epochs=epochs, steps=stage.steps, packing=packing, survey=looked)
    data = TrainingDataset(corpus, plan, ByPath(features), labeller(model, model.chat, model.context))
    metrics = MetricsFile(folder / "metrics.jsonl", active=is_first())
    more = {"evaluate": evaluate, "eval_every": eval_every, "stopping": stopping}
    around = StageContext(folder, listener or Silent(), metrics, common or RunConfig(), **more)
    result = run_stage(model, data, stage, around)
    return Ran(result, read_metrics(metrics.path) if is_first() else [])


def with_checkpoints(every: int, keep: int = 2) -> RunConfig:
    """Settings that save often."""
    return RunConfig(output=Output(save_every=every, keep=keep), logging=Logging(every=1))


@pytest.fixture
def lab() -> SimpleNamespace:
    """The helpers of this file, for tests that run stages."""
    return SimpleNamespace(
        make_model=make_model,
        make_features=make_features,
        make_sample=make_sample,
        samples=SAMPLES,
        tune=tune_samples,
        saving=with_checkpoints,
    )
