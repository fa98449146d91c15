"""Towers -> the accuracy of the encoders alone on objects of an unseen world, without language model or bundle.

The patches of each object vote by their similarity to the phrases of an attribute. The language model cannot correct
what is wrong here; what is correct here but wrong in the final scores is an error of the language model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from demo_world.alignment import GROUPS, NEVER_SHOWN, Arrays, patch_truth
from demo_world.scene import make_scene
from demo_world.write import decode_frames, media_bytes, parallel
from torch import Tensor, nn

from demo_model.align import IGNORE, Aligner
from demo_model.encoders import make_aligners
from demo_model.plan import Plan, device
from vidqa.encoders.preprocess import CLIP_MEAN, CLIP_STD

FIRST_SEED = 70_000_000  # disjoint from the training seeds and those of tools/eval_demo.py
N_MEDIA = {"clips": 500, "stills": 400}
ATTRIBUTES = ("colour", "shape", "size", "place", "motion", "when")


def step_seen(plan: Plan, work: Path) -> None:
    """Measure what the encoders of the third round alone reveal about objects of an unseen world."""
    images, clips, book = make_aligners(plan, work)
    both = nn.ModuleList([images, clips])
    both.load_state_dict(torch.load(work / "variety.pt", weights_only=True, map_location=device()))
    arrays = Arrays(work / "arrays", book, list(CLIP_MEAN), list(CLIP_STD))
    grid = plan.image_size // plan.patch_size
    found = {}
    for name, aligner in (("clips", clips.eval()), ("stills", images.eval())):
        right: dict[tuple[str, bool], list[bool]] = defaultdict(list)
        seeds = range(FIRST_SEED, FIRST_SEED + N_MEDIA[name])
        media = list(parallel(partial(_render, name == "stills", grid), seeds))
        for i in range(0, len(media), 25):
            pixels, truths = zip(*media[i : i + 25], strict=True)
            batch = arrays.make(np.stack(pixels), np.stack(truths), ["."] * len(pixels))
            for parts, truth in zip(_phrase_logits(aligner, batch.pixels.to(device())), batch.truth, strict=True):
                _count(parts, truth, right)
        found[name] = {
            f"{group}, {'unseen' if unseen else 'seen'} pairs": [round(100 * sum(r) / len(r), 1), len(r)]
            for (group, unseen), r in sorted(right.items())
        }
    (work / "seen.json").write_text(json.dumps(found, indent=1))


def _render(still: bool, grid: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames uint8 [T, SIZE, SIZE, 3] and patch labels [T, patches, groups]; pairs may be held-out ones."""
    scene = make_scene(seed, still=still, held_out=True)
    frames, index = decode_frames(media_bytes(scene), still)
    return frames, patch_truth(scene, index, grid)


@torch.no_grad()
def _phrase_logits(aligner: Aligner, pixels: Tensor) -> list[tuple[Tensor, ...]]:
    """Return logits [T, patches, phrases of the group] for each clip and group."""
    tokens, _ = aligner.vision(pixels, aligner.layer)
    close = aligner.phrase_logits(tokens)
    return [c.cpu().split(aligner.group_sizes, dim=-1) for c in close]


def _count(parts: tuple[Tensor, ...], truth: Tensor, right: dict[tuple[str, bool], list[bool]]) -> None:
    """Append to `right` by attribute and whether the object is a held-out color-shape pair."""
    colour, shape = truth[..., GROUPS.index("colour")], truth[..., GROUPS.index("shape")]
    things = torch.stack([colour, shape], -1).reshape(-1, 2).unique(dim=0)
    for c, s in things[things[:, 0] != IGNORE].tolist():
        for name in ATTRIBUTES:
            group = GROUPS.index(name)
            shown = (colour == c) & (shape == s) & (truth[..., group] != IGNORE)
            if shown.any():
                votes = parts[group][shown].log_softmax(-1).sum(0)
                right[name, bool(NEVER_SHOWN[c, s])].append(int(votes.argmax()) == int(truth[..., group][shown][-1]))
