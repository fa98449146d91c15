"""Features + conversations -> language model and connector, in three stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from demo_world.language import CAPTION_QUESTIONS, DETAIL_QUESTIONS, summary
from demo_world.scene import COLOURS, HELD_OUT, SHAPES, make_scene
from demo_world.write import turns, write_alike, write_captions, write_lookups, write_texts, write_unseen

from demo_model.plan import Plan, device, log, save
from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.records import Features
from vidqa.training.api import TrainingSettings, train_stage
from vidqa.training.data.record_formats import read_conversations
from vidqa.training.data.sample import Sample, by_media
from vidqa.training.data.unseen_pairs import UnseenPairs

CAPTIONING = {q for asked in (CAPTION_QUESTIONS, DETAIL_QUESTIONS) for still in asked.values() for q in still}

UNSEEN = UnseenPairs(groups={"colour": tuple(COLOURS), "shape": SHAPES}, pairs=tuple(sorted(HELD_OUT)))


class FeatureArrays:
    """Maps a media file name to its Features, from the arrays of `step_features`."""

    def __init__(self, plan: Plan, work: Path) -> None:
        stills = [make_scene(s).still for s in range(plan.n_scenes)]
        self.rows = {s: (still, sum_before) for s, still, sum_before in _numbered(stills)}
        self.tokens = {n: np.load(work / "features" / f"{n}.npy", mmap_mode="r") for n in ("stills", "clips")}

    def __call__(self, media: str) -> Features:
        still, row = self.rows[int(Path(media).stem)]
        tokens = np.array(self.tokens["stills" if still else "clips"][row])
        return Features(tokens, np.zeros(1, np.float32), not still, "image" if still else "video")


def _numbered(stills: list[bool]) -> Iterator[tuple[int, bool, int]]:
    counts = {True: 0, False: 0}
    for seed, still in enumerate(stills):
        yield seed, still, counts[still]
        counts[still] += 1


def new_model(plan: Plan, work: Path) -> VideoLlava:
    """Return a language model and a connector with random weights."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=plan.llm_width,
        intermediate_size=plan.llm_inner,
        num_hidden_layers=plan.llm_layers,
        num_attention_heads=plan.llm_heads,
        num_key_value_heads=plan.llm_heads,
        max_position_embeddings=plan.context,
        initializer_range=0.7 * plan.llm_width**-0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    connector = build_connector("mlp2x_gelu", plan.width, plan.llm_width)
    model = VideoLlava(connector, LlamaForCausalLM(config), tokenizer, get_format("vicuna_v1", ""), plan.context)
    return model.to(device())


def run_stage(
    plan: Plan,
    work: Path,
    groups: list[tuple[Sample, ...]],
    settings: TrainingSettings,
    start: str | None,
    result: str | None = None,
) -> None:
    """Train one stage from the weights of `start` to `<result>.pt`, by default named after the stage."""
    model = new_model(plan, work)
    if start:
        model.load_state_dict(torch.load(work / f"{start}.pt", weights_only=True, map_location=device()))
    features = FeatureArrays(plan, work) if settings.stage != "language" else no_features
    figures = train_stage(
        model, groups, features, settings, folder=work / "trainer", report=lambda f: log(json.dumps(f))
    )
    log(f"{settings.stage}: {json.dumps(figures)}")
    save(model, work / f"{result or settings.stage}.pt")


def no_features(media: str) -> Features:
    """Stand in for the features of text-only stages, which must not request any."""
    raise ValueError(f"a text-only stage has no features of {media}")


def step_language(plan: Plan, work: Path) -> None:
    """Train the language model on text: conversations about scenes described in words."""
    groups = []
    for seed in range(1_000_000, 1_000_000 + plan.n_texts):
        scene, rng = make_scene(seed), np.random.default_rng(seed)
        text = summary(scene, rng)
        found = []
        for k, conversation in enumerate(turns(scene, 1)):
            (question, answer), *rest = [(p.question, p.answer) for p in conversation]
            found.append(Sample(f"{seed}-{k}", (), ((f"{text}\n{question}", answer), *rest)))
        groups.append(tuple(found))
    settings = TrainingSettings(
        "language", 1.0, plan.tune_batch, plan.language_lr, max_conversations=plan.conversations
    )
    run_stage(plan, work, groups, settings, None)


def read_world(plan: Plan, work: Path) -> list[tuple[Sample, ...]]:
    """Return the conversations of the training world, grouped by media file."""
    return by_media(read_conversations(work / "world" / "conversations.json"))


def step_connector(plan: Plan, work: Path) -> None:
    """First stage: train only the connector, on captions and descriptions."""
    captions = [
        tuple(s for s in group if s.turns[0][0].split("\n", 1)[1] in CAPTIONING) for group in read_world(plan, work)
    ]
    settings = TrainingSettings(
        "connector", plan.connector_epochs, plan.tune_batch, plan.connector_lr, unseen_pairs=UNSEEN
    )
    run_stage(plan, work, [c for c in captions if c], settings, "language")


def step_instruct(plan: Plan, work: Path) -> None:
    """Second stage: train connector and language model on all conversations."""
    settings = TrainingSettings(
        "instruct",
        plan.instruct_epochs,
        plan.tune_batch,
        plan.instruct_lr,
        max_conversations=plan.conversations,
        unseen_pairs=UNSEEN,
    )
    run_stage(plan, work, read_world(plan, work), settings, "connector")


def step_more_instruct(plan: Plan, work: Path) -> None:
    """Repeat the second stage from its end, with another random sample of the same conversations."""
    settings = TrainingSettings(
        "instruct",
        plan.more_instruct_epochs,
        plan.tune_batch,
        plan.more_instruct_lr,
        max_conversations=plan.conversations,
        seed=plan.seed + 1,
        unseen_pairs=UNSEEN,
    )
    run_stage(plan, work, read_world(plan, work), settings, "instruct", "more_instruct")


def step_conversations(plan: Plan, work: Path) -> None:
    """Write captions and lookups for the first stages of `vidqa train`, and text-only scenes for the last."""
    write_captions(work / "world", plan.n_captioned)
    write_lookups(work / "world", plan.n_looked_up)
    write_alike(work / "world", plan.n_alike)
    write_unseen(work / "world" / "unseen.toml")
    write_texts(work / "world" / "texts.jsonl", plan.n_told, held_out=True)


def step_tune(plan: Plan, work: Path) -> None:
    """Run `vidqa train` with recipe.toml; files that are not in the cache are encoded first."""
    shutil.copy2(Path(__file__).with_name("recipe.toml"), work / "recipe.toml")
    command = [sys.executable, "-m", "vidqa", "train", "recipe.toml", "--out", "tuned", "--cache-dir", "cache"]
    if device().type == "cpu":  # two processes with one thread each, as in the other steps
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=work, check=True, env=environment)
