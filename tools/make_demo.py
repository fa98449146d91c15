"""Make the bundled demo model from nothing: world, tokenizer, encoders, language model, two tuning stages, bundle.

    python tools/make_demo.py --work build/demo

Each step leaves its result in the work folder; a step whose result is there is not done again, so that a stopped run
goes on where it was. Runs on two cores; every budget is in minutes of wall-clock time or epochs and stands in `Plan`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from demo_world.alignment import Arrays, Phrasebook, build_arrays, forever
from demo_world.language import CAPTION_QUESTIONS, DETAIL_QUESTIONS, summary
from demo_world.scene import make_scene
from demo_world.tokens import train_tokenizer
from demo_world.write import N_LOOKED_AT, turns, write_world
from torch import nn

from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.encoders.session import OnnxSession
from vidqa.model.bundle import save_bundle
from vidqa.model.connector import build_connector
from vidqa.model.export import export_text, export_tower
from vidqa.model.llava import VideoLlava, save_parts
from vidqa.model.spec import (
    BundleSpec,
    ConnectorSpec,
    EncoderSpec,
    EncodersSpec,
    GenerationSpec,
    LlmSpec,
    PromptSpec,
    TextEncoderSpec,
    VideoEncoderSpec,
)
from vidqa.model.text import TextConfig, TextTower
from vidqa.model.vit import VisionConfig, VisionTower
from vidqa.prompts.formats import get_format
from vidqa.records import Features, SamplingSpec
from vidqa.train.align import Aligner, align, initialise, insert_temporal
from vidqa.train.data import Sample, by_media, read_conversations
from vidqa.train.tune import TuneSettings, tune

#: CLIP's, as everywhere in this model family.
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class Plan:
    """Sizes and budgets. The defaults made the shipped bundle."""

    n_scenes: int = 24000
    image_size: int = 96
    patch_size: int = 24
    width: int = 160
    layers: int = 6
    heads: int = 5
    embedding: int = 128
    picture_batch: int = 40  # in each process
    clip_batch: int = 10
    clip_pictures: int = 24  # single frames beside each batch of clips
    picture_minutes: float = 9.0
    clip_minutes: float = 26.0
    align_lr: float = 1e-3
    clip_lr: float = 2e-4  # of what the pictures have taught already
    temporal_lr: float = 1e-3
    more_clip_minutes: float = 25.0
    more_clip_lr: float = 5e-4
    more_temporal_lr: float = 7e-4
    llm_width: int = 160
    llm_layers: int = 4
    llm_heads: int = 5
    llm_inner: int = 448
    context: int = 768
    n_texts: int = 6000
    tune_batch: int = 8  # packed sequences in each process
    language_lr: float = 2e-3
    connector_epochs: float = 0.15
    connector_lr: float = 2e-3
    instruct_epochs: float = 1.2
    instruct_lr: float = 1e-3
    conversations: int = 8  # about one medium in one packed sequence
    seed: int = 0


def log(text: str) -> None:
    """One line with the time of day, on stderr; only the first process speaks."""
    if rank():
        return
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def rank() -> int:
    """Number of this process under torchrun."""
    return int(os.environ.get("RANK", 0))


def save(module: nn.Module, path: Path) -> None:
    """Weights, whole or absent; written by the first process."""
    if rank():
        return
    part = path.with_suffix(".part")
    torch.save(module.state_dict(), part)
    os.replace(part, path)


def make_aligners(plan: Plan, work: Path) -> tuple[Aligner, Aligner, Phrasebook]:
    """The picture aligner and the clip aligner that shares its spatial weights and its text tower."""
    from transformers import AutoTokenizer

    torch.manual_seed(plan.seed)  # the same start in every process
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    book = Phrasebook(tokenizer)
    vision = VisionTower(
        VisionConfig(
            plan.image_size, plan.patch_size, plan.width, 4 * plan.width, plan.layers, plan.heads, plan.embedding
        )
    )
    text = TextTower(TextConfig(len(tokenizer), 128, 256, 2, 4, 64, plan.embedding))
    initialise(vision)
    initialise(text)
    pictures = Aligner(vision, text, book.phrases())
    clips = Aligner(insert_temporal(vision, N_LOOKED_AT), text, book.phrases())
    return pictures, clips, book


def reporter(every: int = 100) -> Callable[[int, float, dict[str, float]], None]:
    """Prints the mean of the last four reports."""
    kept: list[dict[str, float]] = []

    def report(step: int, share: float, figures: dict[str, float]) -> None:
        kept.append(figures)
        if step % every == 0:
            last = kept[-4:]
            means = {k: round(sum(f.get(k, 0.0) for f in last) / len(last), 3) for k in sorted(figures)}
            log(f"step {step}, {share:.0%}: {json.dumps(means)}")

    return report


def step_world(plan: Plan, work: Path) -> None:
    """Clips, pictures and conversations for training."""
    write_world(work / "world", range(plan.n_scenes))


def step_tokenizer(plan: Plan, work: Path) -> None:
    """The tokenizer of text tower and language model."""
    train_tokenizer(work / "tokenizer")


def step_arrays(plan: Plan, work: Path) -> None:
    """Frames and truths as arrays."""
    build_arrays(work / "world", range(plan.n_scenes), work / "arrays", plan.image_size // plan.patch_size)


def step_pictures(plan: Plan, work: Path) -> None:
    """Image tower and text tower, aligned on single frames."""
    pictures, _, book = make_aligners(plan, work)
    arrays = Arrays(work / "arrays", book, MEAN, STD, plan.seed + 100 * rank())
    batches = forever(lambda: arrays.frames(plan.picture_batch, last=200))
    align(pictures, batches, seconds=60 * plan.picture_minutes, lr=plan.align_lr, report=reporter())
    save(pictures, work / "pictures.pt")


def step_clips(plan: Plan, work: Path) -> None:
    """Video tower: temporal attention inserted into the shared spatial weights, trained on clips and pictures."""
    run_clips(plan, work, "pictures", "clips", plan.clip_minutes, plan.clip_lr, plan.temporal_lr)


def step_more_clips(plan: Plan, work: Path) -> None:
    """A second, shorter round on clips from where the first one cooled down."""
    run_clips(plan, work, "clips", "more_clips", plan.more_clip_minutes, plan.more_clip_lr, plan.more_temporal_lr)


def run_clips(
    plan: Plan, work: Path, start: str, result: str, minutes: float, spatial_lr: float, temporal_lr: float
) -> None:
    """Train both aligners on clips and pictures, from `start`.pt to `result`.pt."""
    pictures, clips, book = make_aligners(plan, work)
    both = nn.ModuleList([pictures, clips])
    weights = torch.load(work / f"{start}.pt", weights_only=True)
    if start == "pictures":
        pictures.load_state_dict(weights)
        clips.vision = insert_temporal(pictures.vision, N_LOOKED_AT)  # anew: its attention starts as a copy
        for name in ("patch_norm", "patch_projection"):
            getattr(clips, name).load_state_dict(getattr(pictures, name).state_dict())
    else:
        both.load_state_dict(weights)
    arrays = Arrays(work / "arrays", book, MEAN, STD, sum(map(ord, result)) + 100 * rank())
    batches = forever(
        lambda: arrays.frames(plan.clip_pictures, last=200), lambda: arrays.batch("clips", plan.clip_batch, last=200)
    )

    def lr(name: str) -> float:
        return temporal_lr if "temporal" in name else spatial_lr

    align(both, batches, seconds=60 * minutes, lr=lr, report=reporter())
    save(both, work / f"{result}.pt")


def step_features(plan: Plan, work: Path) -> None:
    """Both towers as ONNX; what they see of every training medium, as float16 arrays."""
    pictures, clips, _ = make_aligners(plan, work)
    nn.ModuleList([pictures, clips]).load_state_dict(torch.load(work / "more_clips.pt", weights_only=True))
    encoders = work / "encoders"
    encoders.mkdir(exist_ok=True)
    for name, aligner, n_frames in (("image", pictures, 1), ("video", clips, N_LOOKED_AT)):
        report = export_tower(aligner.vision, encoders / f"{name}.onnx", n_frames)
        log(f"{name}.onnx: largest difference to torch {report.max_abs_error:.1e}")
    export_text(pictures.text, encoders / "text.onnx")
    mean, std = (np.array(v, np.float32)[:, None, None] * 255 for v in (MEAN, STD))
    (work / "features").mkdir(exist_ok=True)
    for name, graph, first in (("stills", "image", 1), ("clips", "video", 0)):
        pixels = np.load(work / "arrays" / f"{name}.npy", mmap_mode="r")
        session = OnnxSession(encoders / f"{graph}.onnx", "cpu")
        out: Any = None
        for i in range(0, len(pixels), 16):
            values = (pixels[i : i + 16].transpose(0, 1, 4, 2, 3).astype(np.float32) - mean) / std
            tokens = np.asarray(session.run(np.ascontiguousarray(values))[0], np.float16)[:, :, first:]
            if out is None:
                shape = (len(pixels), *tokens.shape[1:])
                out = np.lib.format.open_memmap(work / "features" / f"{name}.npy", "w+", np.float16, shape)
            out[i : i + 16] = tokens
        out.flush()


class FeatureArrays:
    """Media file name -> Features, out of the arrays of `step_features`."""

    def __init__(self, plan: Plan, work: Path) -> None:
        stills = [make_scene(s).still for s in range(plan.n_scenes)]
        self.place = {s: (still, sum_before) for s, still, sum_before in _numbered(stills)}
        self.tokens = {n: np.load(work / "features" / f"{n}.npy", mmap_mode="r") for n in ("stills", "clips")}

    def __call__(self, media: str) -> Features:
        still, row = self.place[int(Path(media).stem)]
        tokens = np.array(self.tokens["stills" if still else "clips"][row])
        return Features(tokens, np.zeros(1, np.float32), not still, "image" if still else "video")


def _numbered(stills: list[bool]) -> Iterator[tuple[int, bool, int]]:
    counts = {True: 0, False: 0}
    for seed, still in enumerate(stills):
        yield seed, still, counts[still]
        counts[still] += 1


def new_model(plan: Plan, work: Path) -> VideoLlava:
    """A language model and a connector with random weights."""
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
    return VideoLlava(connector, LlamaForCausalLM(config), tokenizer, get_format("vicuna_v1", ""), plan.context)


def run_stage(
    plan: Plan, work: Path, groups: list[tuple[Sample, ...]], settings: TuneSettings, start: str | None
) -> None:
    """One stage of tuning from the weights of `start` to `<stage>.pt`."""
    model = new_model(plan, work)
    if start:
        model.load_state_dict(torch.load(work / f"{start}.pt", weights_only=True))
    features = FeatureArrays(plan, work) if settings.stage != "language" else no_features
    figures = tune(model, groups, features, settings, folder=work / "trainer", report=lambda f: log(json.dumps(f)))
    log(f"{settings.stage}: {json.dumps(figures)}")
    save(model, work / f"{settings.stage}.pt")


def no_features(media: str) -> Features:
    """For text."""
    raise ValueError(f"a text-only stage has no features of {media}")


def step_language(plan: Plan, work: Path) -> None:
    """Teach the language model to talk and reason about scenes written out as words."""
    groups = []
    for seed in range(1_000_000, 1_000_000 + plan.n_texts):
        scene, rng = make_scene(seed), np.random.default_rng(seed)
        said = summary(scene, rng)
        found = []
        for k, conversation in enumerate(turns(scene, 1)):
            (question, answer), *rest = [(p.question, p.answer) for p in conversation]
            found.append(Sample(f"{seed}-{k}", None, None, ((f"{said}\n{question}", answer), *rest)))
        groups.append(tuple(found))
    settings = TuneSettings("language", 1.0, plan.tune_batch, plan.language_lr, max_conversations=plan.conversations)
    run_stage(plan, work, groups, settings, None)


def read_world(plan: Plan, work: Path) -> list[tuple[Sample, ...]]:
    """The conversations of the training world, by medium."""
    return by_media(read_conversations(work / "world" / "conversations.json"))


def step_connector(plan: Plan, work: Path) -> None:
    """First stage: the connector alone, on captions and descriptions."""
    captions = [
        tuple(s for s in group if s.turns[0][0].split("\n", 1)[1] in CAPTIONING) for group in read_world(plan, work)
    ]
    settings = TuneSettings("connector", plan.connector_epochs, plan.tune_batch, plan.connector_lr)
    run_stage(plan, work, [c for c in captions if c], settings, "language")


def step_instruct(plan: Plan, work: Path) -> None:
    """Second stage: connector and language model, on all conversations."""
    settings = TuneSettings(
        "instruct", plan.instruct_epochs, plan.tune_batch, plan.instruct_lr, max_conversations=plan.conversations
    )
    run_stage(plan, work, read_world(plan, work), settings, "connector")


NOTICE = (
    "The demo model knows only its demo world: one to three coloured shapes that move over a plain ground. On other "
    "videos its answers mean nothing. For a real model, put a converted checkpoint in a folder and use --model DIR."
)


def step_bundle(plan: Plan, work: Path) -> None:
    """Write the bundle."""
    model = new_model(plan, work)
    model.load_state_dict(torch.load(work / "instruct.pt", weights_only=True))
    patches = (plan.image_size // plan.patch_size) ** 2
    common: dict[str, Any] = {
        "layer": -2,
        "hidden_size": plan.width,
        "embedding_size": plan.embedding,
        "n_patches": patches,
    }
    common["preprocess"] = PreprocessSpec("original", plan.image_size, tuple(MEAN), tuple(STD))
    spec = BundleSpec(
        name="demo",
        encoders=EncodersSpec(
            image=EncoderSpec(file="encoders/image.onnx", n_frames=1, keep_cls=False, **common),
            video=VideoEncoderSpec(
                file="encoders/video.onnx", n_frames=N_LOOKED_AT, keep_cls=True, sampling=SamplingSpec(), **common
            ),
            text=TextEncoderSpec(file="encoders/text.onnx", embedding_size=plan.embedding, max_length=64),
        ),
        connector=ConnectorSpec("connector.safetensors", "mlp2x_gelu", plan.width, plan.llm_width),
        llm=LlmSpec("llm", plan.context),
        prompt=PromptSpec("vicuna_v1", ""),
        generation=GenerationSpec(max_new_tokens=96),
        notice=NOTICE,
    )

    def fill(folder: Path) -> None:
        shutil.copytree(work / "encoders", folder / "encoders")
        save_parts(model, folder / "connector.safetensors", folder / "llm")

    save_bundle(work / "bundle", spec, fill)


STEPS: dict[str, tuple[Callable[[Plan, Path], None], str]] = {
    "world": (step_world, "world/conversations.json"),
    "tokenizer": (step_tokenizer, "tokenizer/tokenizer.json"),
    "arrays": (step_arrays, "arrays/stills_captions.json"),
    "pictures": (step_pictures, "pictures.pt"),
    "clips": (step_clips, "clips.pt"),
    "more_clips": (step_more_clips, "more_clips.pt"),
    "features": (step_features, "features/clips.npy"),
    "language": (step_language, "language.pt"),
    "connector": (step_connector, "connector.pt"),
    "instruct": (step_instruct, "instruct.pt"),
    "bundle": (step_bundle, "bundle/bundle.json"),
}
#: Steps that two processes share.
PARALLEL = ("pictures", "clips", "more_clips", "language", "connector", "instruct")
CAPTIONING = {q for asked in (CAPTION_QUESTIONS, DETAIL_QUESTIONS) for still in asked.values() for q in still}


def main() -> None:
    """Run the steps whose result is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made on the way")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated; default all: %(default)s")
    for f in fields(Plan):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)
    args: Any = parser.parse_args()
    plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan)})
    args.work.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    spent = args.work / "seconds.json"
    seconds = json.loads(spent.read_text()) if spent.exists() else {}
    log(f"plan: {json.dumps(asdict(plan))}")
    for name in args.steps.split(","):
        run, result = STEPS[name]
        if (args.work / result).exists():
            log(f"{name}: there already")
            continue
        log(f"{name}: {run.__doc__}")
        start = time.monotonic()
        run(plan, args.work)
        if rank():
            continue
        seconds[name] = round(time.monotonic() - start, 1)
        spent.write_text(json.dumps(seconds, indent=1))
        log(f"{name}: {seconds[name]} s")


if __name__ == "__main__":
    main()
