"""What the runs begin with: a small world, a language model that has only read, and two sets of encoders.

The united set is the demo model's: picture and video encoder are aligned with the same text encoder, the video encoder
having begun as the picture encoder. The separated set has the same video encoder beside a picture encoder of the same
shape that never met a text: it learned to fill in the hidden half of pictures, as the paper's MAE did.
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
from vidqa.train.align import initialise

_FIRST_PIXELS = 3_000_000  # seeds of pictures for the encoder that knows no language
_PIXEL_BATCH, _PIXEL_LR = 48, 1e-3


def whole(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder that is there whole or not at all; nothing is done where it is there already."""
    if target.exists():
        return
    log(f"{target.name}: making it")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    make(part)
    os.replace(part, target)


def make_world(folder: Path, sizes: Sizes) -> None:
    """Clips and pictures with captions and conversations, and scenes in words."""
    for name, still, first in (("clips", False, 0), ("stills", True, sizes.clips)):
        write_world(folder / name, range(first, first + sizes.clips), still=still)
        write_captions(folder / name, sizes.clips)
    write_texts(folder / "told.jsonl", sizes.told, held_out=True)


def make_blank(folder: Path, sizes: Sizes) -> None:
    """The demo model's encoders beside a language model and a connector of random weights."""
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

    def fill(place: Path) -> None:
        shutil.copytree(demo.folder / "encoders", place / "encoders")
        save_parts(model, place / connector.file, place / demo.spec.llm.folder)

    spec = replace(demo.spec, name="blank", connector=connector, notice=None)
    save_bundle(folder / "blank", spec, fill)
    _move_up(folder, "blank")


def make_united(folder: Path, read: Path) -> None:
    """What has read, as it is."""
    _bundle(folder, load_bundle(read), "united", None)


def make_separated(folder: Path, read: Path, image_graph: Path) -> None:
    """What has read, with the other picture encoder."""
    _bundle(folder, load_bundle(read), "separated", image_graph)


def _bundle(folder: Path, read: Bundle, name: str, image_graph: Path | None) -> None:
    def fill(place: Path) -> None:
        shutil.copytree(read.folder / "encoders", place / "encoders")
        if image_graph is not None:
            shutil.copy2(image_graph, place / read.spec.encoders.image.file)
        shutil.copytree(read.llm_folder, place / read.spec.llm.folder)
        shutil.copy2(read.connector_file, place / read.spec.connector.file)

    save_bundle(folder / name, replace(read.spec, name=name), fill)
    _move_up(folder, name)


def _move_up(folder: Path, name: str) -> None:
    for file in (folder / name).iterdir():
        os.replace(file, folder / file.name)
    (folder / name).rmdir()


class Fill(nn.Module):
    """A tower that sees half of the patches of a picture, and a linear head that paints all of them.

    All patches count in the loss, not the hidden ones alone: without a decoder of its own behind it, the tower would
    otherwise have no reason to keep what it sees in the tokens that the language model reads.
    """

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower, self.size = tower, tower.config.patch_size
        width = tower.config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * self.size**2))

    def forward(self, pixels: Tensor) -> Tensor:
        """float [N, 3, H, W] -> share of the variance of the pixels that is left."""
        wanted = F.unfold(pixels, self.size, stride=self.size).transpose(1, 2)  # [N, patches, 3 * size * size]
        hidden = torch.rand(wanted.shape[:2]) < 0.5
        shown = wanted.masked_fill(hidden[..., None], 0.0).transpose(1, 2)
        seen = F.fold(shown, pixels.shape[-2:], self.size, stride=self.size)
        states, _ = self.tower.vision_model(seen[:, None])
        return F.mse_loss(self.head(states[-1][:, 0, 1:]), wanted) / wanted.var()


def make_pixels(folder: Path, sizes: Sizes) -> None:
    """The picture encoder that knows no language, as image.onnx."""
    plan = Plan()
    torch.manual_seed(1)
    tower = VisionTower(
        VisionConfig(
            plan.image_size, plan.patch_size, plan.width, 4 * plan.width, plan.layers, plan.heads, plan.embedding
        )
    )
    initialise(tower)
    fill, rng = Fill(tower), np.random.default_rng(1)
    n = max(_PIXEL_BATCH, 4 * sizes.clips)
    pictures = np.stack(list(parallel(_picture, range(_FIRST_PIXELS, _FIRST_PIXELS + n))))
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (CLIP_MEAN, CLIP_STD))
    optimizer = torch.optim.AdamW(fill.parameters(), lr=_PIXEL_LR, weight_decay=0.0)
    left: list[float] = []
    for step in range(sizes.pixel_steps):
        for group in optimizer.param_groups:
            group["lr"] = _PIXEL_LR * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / sizes.pixel_steps)) / 2
        drawn = torch.from_numpy(pictures[rng.integers(n, size=_PIXEL_BATCH)]).permute(0, 3, 1, 2)
        loss = fill((drawn.float() - mean) / std)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(fill.parameters(), 1.0)
        optimizer.step()
        left.append(loss.item())
        if step % 100 == 0:
            log(f"pixels, step {step}: {np.mean(left[-50:]):.3f} of the variance left")
    export_tower(tower.eval(), folder / "image.onnx", 1)
    (folder / "facts.json").write_text(json.dumps({"steps": sizes.pixel_steps, "left": float(np.mean(left[-50:]))}))


def _picture(seed: int) -> np.ndarray:
    """uint8 [H, W, 3]: a frame of a clip or a picture of the training world."""
    scene = make_scene(seed)
    frames = render(scene)
    return frames[int(np.random.default_rng(seed).integers(len(frames)))]
