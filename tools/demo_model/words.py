"""Connector + what is true of each patch -> a connector that says it in the language model's own words.

A visual token becomes a small copy of what the connector said before, plus the embeddings of the words for what the
patch shows (colour, shape, size, place, motion). Two things are mended by that: visual tokens come out as large as
words (left alone they grow twenty times as large, and what the layers of the language model add to them is lost), and
"square" in a question stands near the squares of a picture, as it stands near the squares of a text.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from demo_world.alignment import GROUPS
from demo_world.language import PLACES
from demo_world.scene import COLOURS, MOTIONS, SHAPES, SIZES
from torch import Tensor, nn
from torch.nn import functional as F

from demo_model.plan import Plan, log, save
from demo_model.tuning import new_model
from vidqa.encoders.encoder import Encoder
from vidqa.encoders.preprocess import PreprocessSpec, preprocess
from vidqa.model.video_llava import VideoLlava
from vidqa.records import FrameBatch, MediaKind

WORDS = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "place": PLACES, "motion": MOTIONS}
OLD_SIZE = 3.0  # mean length of what stays of the old tokens; about that of a word
STEPS, TOKENS, PEAK_LR = 3000, (1024, 512), 3e-3  # tokens of a step: of things, of background


def step_words(plan: Plan, work: Path) -> None:
    """Teach the connector the language model's own words for what patches show."""
    model = new_model(plan, work)
    model.load_state_dict(torch.load(work / "more_instruct.pt", weights_only=True, map_location="cpu"))
    tables = word_tables(model)
    tokens, said = seen(plan, work, tables)
    with torch.no_grad():
        old = model.connector(tokens)
        scale = OLD_SIZE / old.norm(dim=-1).mean()
        last = [m for m in model.connector.modules() if isinstance(m, nn.Linear)][-1]
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        target = old * scale + said
    regress(model.connector, tokens, target, said.abs().sum(1) > 0)
    save(model, work / "words.pt")


def word_tables(model: VideoLlava) -> dict[int, Tensor]:
    """Number of the group in the truth arrays -> embeddings [sayings, width], sums over words (`top left`)."""
    embeddings = model.llm.get_input_embeddings().weight.detach()

    def saying(words: str) -> Tensor:
        return sum(
            (embeddings[model.tokenizer(f" {w}", add_special_tokens=False).input_ids[-1]] for w in words.split()),
            torch.zeros(embeddings.shape[1]),
        )

    return {GROUPS.index(group): torch.stack([saying(w) for w in words]) for group, words in WORDS.items()}


def seen(plan: Plan, work: Path, tables: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens [N, D] of some training media, and the sum of the words that are true of each [N, L]."""
    spec = PreprocessSpec("original", plan.image_size)
    encoder = Encoder(work / "encoders" / "image.onnx", work / "encoders" / "video.onnx", "cpu")
    width = next(iter(tables.values())).shape[1]
    found, sums = [], []
    kinds: tuple[tuple[str, MediaKind, int], ...] = (("clips", "video", 900), ("stills", "image", 400))
    for name, kind, n in kinds:
        pixels = np.load(work / "arrays" / f"{name}.npy", mmap_mode="r")[:n]
        truths = np.load(work / "arrays" / f"{name}_truth.npy", mmap_mode="r")
        times, repeated = np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1], bool)
        for p, truth in zip(pixels, truths, strict=False):
            inputs = preprocess(FrameBatch(np.array(p), times, repeated, kind), spec, spec)
            tokens = torch.from_numpy(np.asarray(encoder.encode([inputs])[0].tokens)).float()
            said = torch.zeros(*tokens.shape[:2], width)
            patches = said[:, -truth.shape[1] :]  # a class token, where there is one, says nothing new
            for group, table in tables.items():
                known = torch.from_numpy(truth[..., group].astype(np.int64))
                patches[known >= 0] += table[known[known >= 0]]
            found.append(tokens.flatten(0, 1))
            sums.append(said.flatten(0, 1))
    return torch.cat(found), torch.cat(sums)


def regress(connector: nn.Module, tokens: Tensor, target: Tensor, thing: Tensor) -> None:
    """Least squares by AdamW; things are drawn more often than background."""
    connector.requires_grad_(True)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=PEAK_LR, weight_decay=0.0)
    things, ground = thing.nonzero()[:, 0], (~thing).nonzero()[:, 0]
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / STEPS)) / 2
        pick = torch.cat(
            [pool[torch.randint(len(pool), (n,))] for pool, n in zip((things, ground), TOKENS, strict=True)]
        )
        loss = F.mse_loss(connector(tokens[pick]), target[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            log(f"words, step {step}: {float(loss / target.var()):.3f} of the variance left")
    connector.requires_grad_(False)
