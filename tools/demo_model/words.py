"""Connector + patch labels -> a connector whose tokens are close to the language model's word embeddings.

The target of a visual token is a scaled-down copy of the connector's previous output plus the embeddings of the words
for what the patch shows (color, shape, size, position, motion). This solves two problems. Visual tokens get the norm of
word embeddings; otherwise they grow twenty times as large, and what the layers of the language model add to them is
lost. And "square" in a question is close to the patches of squares, as it is close to the word "square" in a text.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from demo_world.alignment import GROUPS
from demo_world.language import POSITIONS
from demo_world.scene import COLOURS, MOTIONS, SHAPES, SIZES
from torch import Tensor, nn
from torch.nn import functional as F

from demo_model.plan import Plan, log, save
from demo_model.tuning import new_model
from vidqa.encoders.encoder import Encoder
from vidqa.encoders.preprocess import PreprocessSpec, preprocess
from vidqa.model.video_llava import VideoLlava
from vidqa.records import FrameBatch, MediaKind

WORDS = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "place": POSITIONS, "motion": MOTIONS}
OLD_SIZE = 3.0  # mean norm of the scaled-down old tokens, about that of a word embedding
STEPS, TOKENS, PEAK_LR = 3000, (1024, 512), 3e-3  # tokens per step: of objects, of background


def step_words(plan: Plan, work: Path) -> None:
    """Train the connector to output the word embeddings of what patches show."""
    model = new_model(plan, work)
    model.load_state_dict(torch.load(work / "more_instruct.pt", weights_only=True, map_location="cpu"))
    tables = word_tables(model)
    tokens, words_sum = seen(plan, work, tables)
    with torch.no_grad():
        old = model.connector(tokens)
        scale = OLD_SIZE / old.norm(dim=-1).mean()
        last = [m for m in model.connector.modules() if isinstance(m, nn.Linear)][-1]
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        target = old * scale + words_sum
    regress(model.connector, tokens, target, words_sum.abs().sum(1) > 0)
    save(model, work / "words.pt")


def word_tables(model: VideoLlava) -> dict[int, Tensor]:
    """Return embeddings [phrases, width] by label group; those of several words (`top left`) are summed."""
    embeddings = model.llm.get_input_embeddings().weight.detach()

    def embed(words: str) -> Tensor:
        return sum(
            (embeddings[model.tokenizer(f" {w}", add_special_tokens=False).input_ids[-1]] for w in words.split()),
            torch.zeros(embeddings.shape[1]),
        )

    return {GROUPS.index(group): torch.stack([embed(w) for w in words]) for group, words in WORDS.items()}


def seen(plan: Plan, work: Path, tables: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Return tokens [N, D] of some training files, and the sum of the embeddings of their correct words [N, L]."""
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
            words_sum = torch.zeros(*tokens.shape[:2], width)
            patches = words_sum[:, -truth.shape[1] :]  # the class token, if there is one, has no label
            for group, table in tables.items():
                labels = torch.from_numpy(truth[..., group].astype(np.int64))
                patches[labels >= 0] += table[labels[labels >= 0]]
            found.append(tokens.flatten(0, 1))
            sums.append(words_sum.flatten(0, 1))
    return torch.cat(found), torch.cat(sums)


def regress(connector: nn.Module, tokens: Tensor, target: Tensor, thing: Tensor) -> None:
    """Fit the connector by least squares with AdamW; objects are sampled more often than background."""
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
            log(f"words, step {step}: {float(loss / target.var()):.3f} of the variance unexplained")
    connector.requires_grad_(False)
