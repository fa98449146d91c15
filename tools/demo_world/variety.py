"""Batches that break two habits of the training world: clips played backwards, and pictures in other hues.

Backwards: a clip and its reverse differ in the order of the frames alone, so what order means is learned at once.
Hues: where some colour never goes with some shape, an encoder learns to read the shape off the colour. Turning all
hues of a picture by one angle gives every shape almost every colour. An angle that would show a held-out pair is not
used: what training never shows stays unseen.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch

from demo_world.alignment import GROUPS, Arrays, told_apart
from demo_world.language import caption
from demo_world.scene import COLOURS, HELD_OUT, MOTIONS, SHAPES, Scene, is_still, make_scene
from vidqa.train.align import IGNORE, AlignBatch

#: What a motion looks like backwards; None: nothing that has a name here.
BACKWARDS: dict[str, str | None] = {
    "left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows",
    "appears": "disappears", "disappears": "appears", "leaves": None,
}  # fmt: skip
HEADINGS = ("left", "right", "up", "down")
NEAR = 22.0  # degrees between hues that could be taken for each other
_COLOUR, _SHAPE, _MOTION, _WHEN = (GROUPS.index(g) for g in ("colour", "shape", "motion", "when"))
_HUES = {c: 360 * colorsys.rgb_to_hsv(*(v / 255 for v in rgb))[0] for c, rgb in COLOURS.items()}
_GREY = {"white", "black"}


def backwards(truth: np.ndarray) -> np.ndarray:
    """The patch truth [T, patches, groups] of a clip played backwards."""
    found = truth[::-1].copy()
    motion, when = found[..., _MOTION], found[..., _WHEN]
    table = [MOTIONS.index(other) if (other := BACKWARDS.get(m, m)) else IGNORE for m in MOTIONS]
    found[..., _MOTION] = np.where(motion == IGNORE, IGNORE, np.array(table)[motion])
    # Gone from frame c on is there from frame T - c on; `when` counts from frame 1.
    found[..., _WHEN] = np.where(when == IGNORE, IGNORE, len(truth) - 2 - when)
    return found


def played_backwards(scene: Scene) -> Scene | None:
    """A scene that speaks of the clip as it looks backwards (not to be rendered); None where there are no words."""
    others = [BACKWARDS.get(t.motion, t.motion) for t in scene.things]
    if None in others:
        return None
    return replace(scene, things=tuple(replace(t, motion=m) for t, m in zip(scene.things, others, strict=True)))


def turn(degrees: float, strength: float = 1.0) -> np.ndarray:
    """Matrix [3, 3] for rows of RGB: hues turned about the grey axis, saturation times `strength`."""
    a = math.radians(degrees)
    cross = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / math.sqrt(3)
    grey = np.full((3, 3), 1 / 3)
    return grey + strength * (math.cos(a) * (np.eye(3) - grey) + math.sin(a) * cross)


def never_shown(degrees: float) -> np.ndarray:
    """bool [colours, shapes]: things that would pass for a held-out pair after the turn."""
    found = np.zeros((len(COLOURS), len(SHAPES)), bool)
    for i, colour in enumerate(COLOURS):
        if colour in _GREY:
            continue
        red, green, blue = np.clip(np.array(COLOURS[colour]) @ turn(degrees), 0, 255) / 255
        hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
        for c, s in HELD_OUT:
            found[i, SHAPES.index(s)] |= abs((hue - _HUES[c] + 180) % 360 - 180) < NEAR
    return found


class Variety:
    """Batches as those of `Arrays`, with half of the pictures and of the pairs of clips in other hues."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, self.rng = arrays, arrays.rng
        pixels, truth, _ = arrays.data["clips"]
        self.seeds = list(islice((s for s in count() if not is_still(s)), len(pixels)))
        ways = [MOTIONS.index(m) for m in HEADINGS]
        self.heading = np.flatnonzero(np.isin(truth[..., _MOTION], ways).any(axis=(1, 2)))

    def frames(self, size: int, last: int = 0) -> AlignBatch:
        """Single frames."""
        return self._in_other_hues(self.arrays.frames(size, last), 1)

    def clips(self, n_pairs: int, last: int = 0) -> AlignBatch:
        """Clips, then the same clips backwards; in half of them something goes left, right, up or down."""
        pixels, truth, _ = self.arrays.data["clips"]
        n = len(pixels) - last
        heading = self.rng.choice(self.heading[self.heading < n], n_pairs)
        pick = np.where(self.rng.random(n_pairs) < 0.5, heading, self.rng.integers(n, size=n_pairs))
        scenes: list[Scene | None] = [make_scene(self.seeds[i]) for i in pick]
        scenes += [played_backwards(s) for s in scenes if s]
        said = [caption(s, self.rng) if s else "" for s in scenes]
        both = np.concatenate([pixels[pick], pixels[pick][:, ::-1]])
        known = np.concatenate([truth[pick], np.stack([backwards(truth[i]) for i in pick])])
        batch = self.arrays.make(both, known, said)
        batch = replace(batch, captioned=torch.tensor([s is not None for s in scenes]))
        return self._in_other_hues(batch, 2)

    def _in_other_hues(self, batch: AlignBatch, copies: int) -> AlignBatch:
        """Turn the hues of half of the batch; the `copies` parts of the batch alike. Colours and captions are not true
        any more there."""
        pixels, truth, captioned = batch.pixels.clone(), batch.truth.clone(), batch.captioned.clone()
        n = len(pixels) // copies
        low, high = (0 - self.arrays.mean) / self.arrays.std, (255 - self.arrays.mean) / self.arrays.std
        apart = batch.told_apart.clone()
        for i in np.flatnonzero(self.rng.random(n) < 0.5):
            strength = self.rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6])
            drawn = ((d, never_shown(d)) for d in self.rng.uniform(20, 340, 8))
            found = next(((d, never) for d, never in drawn if not never[_pairs(truth[i])].any()), None)
            if strength and found is None:
                continue
            degrees, never = found if strength and found else (0.0, np.zeros((len(COLOURS), len(SHAPES)), bool))
            matrix = torch.tensor(turn(degrees, strength), dtype=torch.float32)
            for k in range(int(i), len(pixels), n):
                grey_levels = pixels[k] * self.arrays.std + self.arrays.mean
                turned = torch.einsum("tchw,cd->tdhw", grey_levels, matrix)
                pixels[k] = ((turned - self.arrays.mean) / self.arrays.std).clamp(low, high)
                apart[k] = told_apart(truth[k], never)
                truth[k, ..., _COLOUR], captioned[k] = IGNORE, False
        if int(captioned.sum()) < 2:  # a contrast needs two
            captioned = batch.captioned
        return replace(batch, pixels=pixels, truth=truth, captioned=captioned, told_apart=apart)


def _pairs(truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the colours and of the shapes of the things that are there."""
    there = truth[..., [_COLOUR, _SHAPE]].reshape(-1, 2).unique(dim=0).numpy()
    there = there[(there != IGNORE).all(axis=1)]
    return there[:, 0], there[:, 1]
