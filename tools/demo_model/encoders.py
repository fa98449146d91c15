"""World -> arrays -> towers aligned with language -> ONNX graphs and the features of all training files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world.alignment import Arrays, Phrasebook, build_arrays, forever
from demo_world.tokens import train_tokenizer
from demo_world.variety import Variety
from demo_world.write import N_FRAMES, write_world
from torch import nn

from demo_model.align import Aligner, align, initialise, insert_temporal
from demo_model.plan import Plan, device, log, rank, save
from vidqa.encoders.encoder import Encoder
from vidqa.encoders.preprocess import CLIP_MEAN, CLIP_STD, PreprocessSpec, preprocess
from vidqa.model.onnx.export import export_text, export_tower
from vidqa.model.towers.text import TextConfig, TextTower
from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.records import FrameBatch, MediaKind


def step_world(plan: Plan, work: Path) -> None:
    """Render clips and images and write conversations for training."""
    write_world(work / "world", range(plan.n_scenes))


def step_tokenizer(plan: Plan, work: Path) -> None:
    """Train the tokenizer of text tower and language model."""
    train_tokenizer(work / "tokenizer")


def step_arrays(plan: Plan, work: Path) -> None:
    """Decode frames and patch labels into arrays."""
    build_arrays(work / "world", range(plan.n_scenes), work / "arrays", plan.image_size // plan.patch_size)


def make_aligners(plan: Plan, work: Path) -> tuple[Aligner, Aligner, Phrasebook]:
    """Return the image aligner, and the clip aligner that shares its spatial weights and its text tower."""
    from transformers import AutoTokenizer

    torch.manual_seed(plan.seed)  # the same initial weights in every process
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
    images = Aligner(vision, text, book.phrases())
    clips = Aligner(insert_temporal(vision, N_FRAMES), text, book.phrases())
    return images.to(device()), clips.to(device()), book


def reporter(every: int = 100) -> Callable[[int, float, dict[str, float]], None]:
    """Return a callback that logs the mean of the last four reports."""
    kept: list[dict[str, float]] = []

    def report(step: int, share: float, figures: dict[str, float]) -> None:
        kept.append(figures)
        if step % every == 0:
            last = kept[-4:]
            means = {k: round(sum(f.get(k, 0.0) for f in last) / len(last), 3) for k in sorted(figures)}
            log(f"step {step}, {share:.0%}: {json.dumps(means)}")

    return report


#: Factor of the learning rate of position embeddings. Patches have a norm of about 17 and position embeddings start at
#: about 1; with the common rate a tower loses the positions of its patches.
POSITION_RATE = 10.0


def rates(spatial: float, temporal: float = 0.0) -> Callable[[str], float]:
    """Return a function from parameter name to learning rate, for `align`."""

    def lr(name: str) -> float:
        if "temporal" in name:
            return temporal
        return spatial * (POSITION_RATE if "vision" in name and "position_embedding" in name else 1.0)

    return lr


def step_pictures(plan: Plan, work: Path) -> None:
    """Align image tower and text tower on single frames."""
    images, _, book = make_aligners(plan, work)
    arrays = Arrays(work / "arrays", book, list(CLIP_MEAN), list(CLIP_STD), plan.seed + 100 * rank())
    batches = forever(lambda: arrays.frames(plan.picture_batch, last=200).to(device()))
    align(images, batches, seconds=60 * plan.picture_minutes, lr=rates(plan.align_lr), report=reporter())
    save(images, work / "pictures.pt")


def step_clips(plan: Plan, work: Path) -> None:
    """Insert temporal attention into the shared spatial weights and train the video tower on clips and images."""
    run_clips(plan, work, "pictures", "clips", plan.clip_minutes, plan.clip_lr, plan.temporal_lr)


def step_more_clips(plan: Plan, work: Path) -> None:
    """Train a second, shorter round on clips, starting from the end of the first."""
    run_clips(plan, work, "clips", "more_clips", plan.more_clip_minutes, plan.more_clip_lr, plan.more_temporal_lr)


def step_variety(plan: Plan, work: Path) -> None:
    """Train a third round with augmentation: clips paired with their reverse, images and clips with shifted hues."""
    images, clips, book = make_aligners(plan, work)
    both = nn.ModuleList([images, clips])
    both.load_state_dict(torch.load(work / "more_clips.pt", weights_only=True, map_location=device()))
    arrays = Arrays(work / "arrays", book, list(CLIP_MEAN), list(CLIP_STD), 3000 + 100 * rank())
    variety = Variety(arrays)
    batches = forever(
        lambda: variety.frames(plan.clip_pictures, last=200).to(device()),
        lambda: variety.clips(plan.clip_batch // 2, last=200).to(device()),
    )
    lr = rates(plan.variety_lr, plan.variety_temporal_lr)
    align(both, batches, seconds=60 * plan.variety_minutes, lr=lr, report=reporter())
    save(both, work / "variety.pt")


def run_clips(
    plan: Plan, work: Path, start: str, result: str, minutes: float, spatial_lr: float, temporal_lr: float
) -> None:
    """Train both aligners on clips and images, from `start`.pt to `result`.pt."""
    images, clips, book = make_aligners(plan, work)
    both = nn.ModuleList([images, clips])
    weights = torch.load(work / f"{start}.pt", weights_only=True, map_location=device())
    if start == "pictures":
        images.load_state_dict(weights)
        # Insert it again: the temporal attention must start from the spatial attention trained on images.
        clips.vision = insert_temporal(images.vision, N_FRAMES).to(device())
        for name in ("patch_norm", "patch_projection"):
            getattr(clips, name).load_state_dict(getattr(images, name).state_dict())
    else:
        both.load_state_dict(weights)
    arrays = Arrays(work / "arrays", book, list(CLIP_MEAN), list(CLIP_STD), sum(map(ord, result)) + 100 * rank())
    batches = forever(
        lambda: arrays.frames(plan.clip_pictures, last=200).to(device()),
        lambda: arrays.batch("clips", plan.clip_batch, last=200).to(device()),
    )
    align(both, batches, seconds=60 * minutes, lr=rates(spatial_lr, temporal_lr), report=reporter())
    save(both, work / f"{result}.pt")


def step_features(plan: Plan, work: Path) -> None:
    """Encode all training files with the towers of the second round into float16 arrays."""
    encoders = work / "features" / "encoders"
    export(plan, work, "more_clips", encoders)
    spec = PreprocessSpec("original", plan.image_size)
    encoder = Encoder(encoders / "image.onnx", encoders / "video.onnx", "cpu")
    kinds: tuple[tuple[str, MediaKind], ...] = (("stills", "image"), ("clips", "video"))
    for name, kind in kinds:
        pixels = np.load(work / "arrays" / f"{name}.npy", mmap_mode="r")
        times, repeated = np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1], bool)  # do not affect the features
        out: Any = None
        for i in range(0, len(pixels), 16):
            frames = [FrameBatch(np.array(p), times, repeated, kind) for p in pixels[i : i + 16]]
            tokens = np.stack([f.tokens for f in encoder.encode([preprocess(b, spec, spec) for b in frames])])
            if out is None:
                shape = (len(pixels), *tokens.shape[1:])
                out = np.lib.format.open_memmap(work / "features" / f"{name}.npy", "w+", np.float16, shape)
            out[i : i + 16] = tokens
        out.flush()


def step_encoders(plan: Plan, work: Path) -> None:
    """Export the towers of the third round to ONNX."""
    export(plan, work, "variety", work / "encoders")


def export(plan: Plan, work: Path, weights: str, folder: Path) -> None:
    """Export the towers of `weights`.pt to image.onnx, video.onnx and text.onnx."""
    images, clips, _ = make_aligners(plan, work)
    nn.ModuleList([images, clips]).load_state_dict(
        torch.load(work / f"{weights}.pt", weights_only=True, map_location=device())
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, aligner, n_frames in (("image", images, 1), ("video", clips, N_FRAMES)):
        report = export_tower(aligner.vision, folder / f"{name}.onnx", n_frames)
        log(f"{name}.onnx: largest difference from torch {report.max_abs_error:.1e}")
    export_text(images.text, folder / "text.onnx")
