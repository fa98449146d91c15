"""What all runs start from: a small world, a language model trained on text only, and two sets of encoders.

The united set is that of the demo model: image and video encoder are aligned with the same text encoder, and the video
encoder was initialized from the image encoder. The separated set has the same video encoder and an image encoder of the
same shape that was trained without text: it reconstructs images with half of their patches masked, like the paper's
MAE.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from demo_model.align import initialise
from demo_model.plan import Plan, log
from demo_world.render import render
from demo_world.scene import make_scene
from demo_world.write import parallel, write_captions, write_texts, write_world
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.plan import Sizes
from vidqa.encoders.preprocess import CLIP_MEAN, CLIP_STD
from vidqa.model.bundle.bundle import Bundle, load_bundle, save_bundle
from vidqa.model.connector import build_connector
from vidqa.model.llm import load_tokenizer
from vidqa.model.onnx.export import export_tower
from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.model.video_llava import VideoLlava, save_parts
from vidqa.prompts.chat_formats import get_format

_FIRST_PIXELS = 3_000_000  # first seed of the images for the encoder trained without language
_PIXEL_BATCH, _PIXEL_LR = 48, 1e-3


def build_once(target: Path, make: Callable[[Path], None]) -> None:
    """Create a folder atomically with `make`, unless it exists."""
    if target.exists():
        return
    log(f"{target.name}: building")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    make(part)
    os.replace(part, target)


def make_world(folder: Path, sizes: Sizes) -> None:
    """Write clips and images with captions and conversations, and scenes described in text."""
    for name, still, first in (("clips", False, 0), ("stills", True, sizes.clips)):
        write_world(folder / name, range(first, first + sizes.clips), still=still)
        write_captions(folder / name, sizes.clips)
    write_texts(folder / "told.jsonl", sizes.told, held_out=True)


def make_blank(folder: Path, sizes: Sizes) -> None:
    """Write a bundle with the demo model's encoders and a random language model and connector."""
    from transformers import AutoConfig, LlamaForCausalLM

    demo = load_bundle("demo")
    config = AutoConfig.from_pretrained(demo.llm_folder)
    heads = sizes.llm_width // config.head_dim
    for key, value in {
        "hidden_size": sizes.llm_width,
        "intermediate_size": 14 * sizes.llm_width // 5,
        "num_hidden_layers": sizes.llm_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "initializer_range": 0.7 * sizes.llm_width**-0.5,
    }.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    connector = replace(demo.spec.connector, out_size=sizes.llm_width)
    model = VideoLlava(
        build_connector(connector.type, connector.in_size, connector.out_size),
        LlamaForCausalLM(config),
        load_tokenizer(demo.llm_folder),
        get_format(demo.spec.prompt.format, demo.spec.prompt.system),
        demo.spec.llm.context,
    )

    def fill(part: Path) -> None:
        shutil.copytree(demo.folder / "encoders", part / "encoders")
        save_parts(model, part / connector.file, part / demo.spec.llm.folder)

    spec = replace(demo.spec, name="blank", connector=connector, notice=None)
    save_bundle(folder / "blank", spec, fill)
    _move_up(folder, "blank")


def make_united(folder: Path, read: Path) -> None:
    """Write the united bundle: the text-only language model with the demo model's encoders."""
    _bundle(folder, load_bundle(read), "united", None)


def make_separated(folder: Path, read: Path, image_graph: Path) -> None:
    """Write the separated bundle: the same with the image encoder trained without language."""
    _bundle(folder, load_bundle(read), "separated", image_graph)


def _bundle(folder: Path, read: Bundle, name: str, image_graph: Path | None) -> None:
    def fill(part: Path) -> None:
        shutil.copytree(read.folder / "encoders", part / "encoders")
        if image_graph is not None:
            shutil.copy2(image_graph, part / read.spec.encoders.image.file)
        shutil.copytree(read.llm_folder, part / read.spec.llm.folder)
        shutil.copy2(read.connector_file, part / read.spec.connector.file)

    save_bundle(folder / name, replace(read.spec, name=name), fill)
    _move_up(folder, name)


def _move_up(folder: Path, name: str) -> None:
    for file in (folder / name).iterdir():
        os.replace(file, folder / file.name)
    (folder / name).rmdir()


class MaskedAutoencoder(nn.Module):
    """A tower whose input has half of the patches masked, and a linear head that reconstructs all of them.

    All patches count in the loss, not only the masked ones: without a separate decoder, the tower would otherwise have
    no reason to keep the visible content in the tokens that the language model reads.
    """

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower, self.size = tower, tower.config.patch_size
        width = tower.config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * self.size**2))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the unexplained share of the pixel variance for pixels float [N, 3, H, W]."""
        target = F.unfold(pixels, self.size, stride=self.size).transpose(1, 2)  # [N, patches, 3 * size * size]
        hidden = torch.rand(target.shape[:2]) < 0.5
        shown = target.masked_fill(hidden[..., None], 0.0).transpose(1, 2)
        seen = F.fold(shown, pixels.shape[-2:], self.size, stride=self.size)
        states, _ = self.tower.vision_model(seen[:, None])
        return F.mse_loss(self.head(states[-1][:, 0, 1:]), target) / target.var()


def make_pixels(folder: Path, sizes: Sizes) -> None:
    """Train the image encoder without language and export it as image.onnx."""
    plan = Plan()
    torch.manual_seed(1)
    tower = VisionTower(
        VisionConfig(
            plan.image_size, plan.patch_size, plan.width, 4 * plan.width, plan.layers, plan.heads, plan.embedding
        )
    )
    initialise(tower)
    model, rng = MaskedAutoencoder(tower), np.random.default_rng(1)
    n = max(_PIXEL_BATCH, 4 * sizes.clips)
    images = np.stack(list(parallel(_image, range(_FIRST_PIXELS, _FIRST_PIXELS + n))))
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (CLIP_MEAN, CLIP_STD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PIXEL_LR, weight_decay=0.0)
    left: list[float] = []
    for step in range(sizes.pixel_steps):
        for group in optimizer.param_groups:
            group["lr"] = _PIXEL_LR * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / sizes.pixel_steps)) / 2
        batch = torch.from_numpy(images[rng.integers(n, size=_PIXEL_BATCH)]).permute(0, 3, 1, 2)
        loss = model((batch.float() - mean) / std)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        left.append(loss.item())
        if step % 100 == 0:
            log(f"pixels, step {step}: {np.mean(left[-50:]):.3f} of the variance unexplained")
    export_tower(tower.eval(), folder / "image.onnx", 1)
    (folder / "facts.json").write_text(json.dumps({"steps": sizes.pixel_steps, "left": float(np.mean(left[-50:]))}))


def _image(seed: int) -> np.ndarray:
    """Return one frame of a clip or image of the training world: uint8 [H, W, 3]."""
    scene = make_scene(seed)
    frames = render(scene)
    return frames[int(np.random.default_rng(seed).integers(len(frames)))]
