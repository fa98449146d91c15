"""Augmentation against two biases of the training world: clips played backwards, and images with shifted hues.

Backwards: a clip and its reverse differ only in the order of the frames, so the encoder must use the order. Hues: if
some color never occurs with some shape, an encoder infers the shape from the color. Shifting all hues of an image by an
angle shows every shape in almost every color. Angles that would show a held-out pair are excluded, so that those pairs
stay unseen.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch
from demo_model.align import IGNORE, AlignBatch

from demo_world.alignment import GROUPS, Arrays, candidate_phrases
from demo_world.language import caption
from demo_world.scene import COLOURS, HELD_OUT, MOTIONS, SHAPES, Scene, is_still, make_scene

#: Motion -> the motion of the reversed clip; None if that has no name here.
BACKWARDS: dict[str, str | None] = {
    "left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows",
    "appears": "disappears", "disappears": "appears", "leaves": None,
}  # fmt: skip
HEADINGS = ("left", "right", "up", "down")
NEAR = 22.0  # degrees between hues that could be confused
_COLOUR, _SHAPE, _MOTION, _WHEN = (GROUPS.index(g) for g in ("colour", "shape", "motion", "when"))
_HUES = {c: 360 * colorsys.rgb_to_hsv(*(v / 255 for v in rgb))[0] for c, rgb in COLOURS.items()}
_GREY = {"white", "black"}


def backwards(truth: np.ndarray) -> np.ndarray:
    """Return the patch labels [T, patches, groups] of a clip played backwards."""
    found = truth[::-1].copy()
    motion, when = found[..., _MOTION], found[..., _WHEN]
    table = [MOTIONS.index(other) if (other := BACKWARDS.get(m, m)) else IGNORE for m in MOTIONS]
    found[..., _MOTION] = np.where(motion == IGNORE, IGNORE, np.array(table)[motion])
    # What disappears in frame c appears in frame T - c of the reversed clip; `when` counts from frame 1.
    found[..., _WHEN] = np.where(when == IGNORE, IGNORE, len(truth) - 2 - when)
    return found


def played_backwards(scene: Scene) -> Scene | None:
    """Return a scene that describes the reversed clip (not for rendering), or None if it cannot be described."""
    others = [BACKWARDS.get(t.motion, t.motion) for t in scene.things]
    if None in others:
        return None
    return replace(scene, things=tuple(replace(t, motion=m) for t, m in zip(scene.things, others, strict=True)))


def turn(degrees: float, strength: float = 1.0) -> np.ndarray:
    """Return the matrix [3, 3] for rows of RGB that rotates hues about the grey axis and scales the saturation."""
    a = math.radians(degrees)
    cross = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / math.sqrt(3)
    grey = np.full((3, 3), 1 / 3)
    return grey + strength * (math.cos(a) * (np.eye(3) - grey) + math.sin(a) * cross)


def never_shown(degrees: float) -> np.ndarray:
    """Return which objects would look like a held-out pair after the rotation: bool [colors, shapes]."""
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
    """Batches like those of `Arrays`, with shifted hues in half of the images and of the pairs of clips."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, self.rng = arrays, arrays.rng
        pixels, truth, _ = arrays.data["clips"]
        self.seeds = list(islice((s for s in count() if not is_still(s)), len(pixels)))
        ways = [MOTIONS.index(m) for m in HEADINGS]
        self.heading = np.flatnonzero(np.isin(truth[..., _MOTION], ways).any(axis=(1, 2)))

    def frames(self, size: int, last: int = 0) -> AlignBatch:
        """Sample single frames, half of them with shifted hues."""
        return self._in_other_hues(self.arrays.frames(size, last), 1)

    def clips(self, n_pairs: int, last: int = 0) -> AlignBatch:
        """Sample clips, followed by the same clips reversed; in at least half an object moves in a direction."""
        pixels, truth, _ = self.arrays.data["clips"]
        n = len(pixels) - last
        heading = self.rng.choice(self.heading[self.heading < n], n_pairs)
        pick = np.where(self.rng.random(n_pairs) < 0.5, heading, self.rng.integers(n, size=n_pairs))
        scenes: list[Scene | None] = [make_scene(self.seeds[i]) for i in pick]
        scenes += [played_backwards(s) for s in scenes if s]
        captions = [caption(s, self.rng) if s else "" for s in scenes]
        both = np.concatenate([pixels[pick], pixels[pick][:, ::-1]])
        labels = np.concatenate([truth[pick], np.stack([backwards(truth[i]) for i in pick])])
        batch = self.arrays.make(both, labels, captions)
        batch = replace(batch, captioned=torch.tensor([s is not None for s in scenes]))
        return self._in_other_hues(batch, 2)

    def _in_other_hues(self, batch: AlignBatch, copies: int) -> AlignBatch:
        """Shift the hues of half of the batch, by the same angle in all `copies` parts of the batch.

        Where hues are shifted, color labels and captions are no longer correct and are removed.
        """
        pixels, truth, captioned = batch.pixels.clone(), batch.truth.clone(), batch.captioned.clone()
        n = len(pixels) // copies
        low, high = (0 - self.arrays.mean) / self.arrays.std, (255 - self.arrays.mean) / self.arrays.std
        apart = batch.contrasted.clone()
        for i in np.flatnonzero(self.rng.random(n) < 0.5):
            strength = self.rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6])
            candidates = ((d, never_shown(d)) for d in self.rng.uniform(20, 340, 8))
            found = next(((d, never) for d, never in candidates if not never[_pairs(truth[i])].any()), None)
            if strength and found is None:
                continue
            degrees, never = found if strength and found else (0.0, np.zeros((len(COLOURS), len(SHAPES)), bool))
            matrix = torch.tensor(turn(degrees, strength), dtype=torch.float32)
            for k in range(int(i), len(pixels), n):
                grey_levels = pixels[k] * self.arrays.std + self.arrays.mean
                turned = torch.einsum("tchw,cd->tdhw", grey_levels, matrix)
                pixels[k] = ((turned - self.arrays.mean) / self.arrays.std).clamp(low, high)
                apart[k] = candidate_phrases(truth[k], never)
                truth[k, ..., _COLOUR], captioned[k] = IGNORE, False
        if int(captioned.sum()) < 2:  # a contrastive loss needs two
            captioned = batch.captioned
        return replace(batch, pixels=pixels, truth=truth, captioned=captioned, contrasted=apart)


def _pairs(truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the color and shape indices of the visible objects."""
    there = truth[..., [_COLOUR, _SHAPE]].reshape(-1, 2).unique(dim=0).numpy()
    there = there[(there != IGNORE).all(axis=1)]
    return there[:, 0], there[:, 1]
