"""World folder -> arrays and batches for encoder alignment: frames, captions, and the labels of each patch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_model.align import IGNORE, AlignBatch

from demo_world.language import NUMBERS, POSITIONS, SAYINGS, caption, position_of
from demo_world.render import cover, times
from demo_world.scene import COLOURS, HELD_OUT, MOTIONS, SHAPES, SIZE, SIZES, Scene, make_scene, path_of
from demo_world.tokens import END_OF_TEXT
from demo_world.write import N_FRAMES, decode_frames, media_name, parallel

ORDINALS = ("two", "three", "four", "five", "six", "seven", "eight")
#: The phrases to distinguish, by attribute. `truth` arrays index them in this order.
PHRASES: dict[str, tuple[str, ...]] = {
    "presence": ("background", "an object"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": tuple(f"at the {p}" for p in POSITIONS),  # position of an object that does not move
    "motion": tuple(f"it {SAYINGS[m][0]}" for m in MOTIONS),
    "when": tuple(f"in frame {w}" for w in ORDINALS),  # frame in which it appears or disappears
}
GROUPS = list(PHRASES)
#: bool [colors, shapes]: held-out pairs, which no training scene has.
NEVER_SHOWN = np.array([[(c, s) in HELD_OUT for s in SHAPES] for c in COLOURS])
_N_PHRASES = sum(map(len, PHRASES.values()))
_AT = {
    g: slice(n - len(ps), n)
    for (g, ps), n in zip(PHRASES.items(), np.cumsum([*map(len, PHRASES.values())]), strict=True)
}


def patch_truth(scene: Scene, index: np.ndarray, grid: int) -> np.ndarray:
    """Return the patch labels of the frames `index` of a scene: int8 [T, grid * grid, groups]."""
    masks = cover(scene, index, grid).reshape(len(index), len(scene.things), grid * grid)
    top, best = masks.max(axis=1), masks.argmax(axis=1)
    truth = np.full((*top.shape, len(GROUPS)), IGNORE, np.int8)
    truth[..., 0] = np.where(top >= 0.1, 1, np.where(top <= 0.005, 0, IGNORE))
    u = times(scene, index)
    for k, t in enumerate(scene.things):
        here = (best == k) & (top >= 0.1)
        values = {"colour": list(COLOURS).index(t.colour), "shape": SHAPES.index(t.shape)}
        if t.size:
            values["size"] = list(SIZES).index(t.size)
        if where := position_of(t):
            values["place"] = POSITIONS.index(where)
        if not scene.still:
            values["motion"] = MOTIONS.index(t.motion)
            if t.motion in ("appears", "disappears"):
                seen = path_of(t, u)[4]
                change = int(np.argmax(seen if t.motion == "appears" else ~seen))
                values["when"] = change - 1
        for group, value in values.items():
            truth[here, GROUPS.index(group)] = value
    return truth


def candidate_phrases(truth: torch.Tensor, never: np.ndarray = NEVER_SHOWN) -> torch.Tensor:
    """Return which phrases are candidates for each patch: bool [..., all phrases] for labels [..., groups].

    If training never shows a shape in some color, the shape is not a candidate for objects of that color, and the color
    is not a candidate for objects of that shape. Otherwise every red object would be a negative example for "star", and
    a red star would be misclassified however clearly it is visible. This is balanced softmax (Ren et al. 2020,
    "Balanced Meta-Softmax for Long-Tailed Visual Recognition") with a prior of zero for classes that cannot occur.

    Args:
        truth: int64 [..., groups].
        never: bool [colors, shapes], pairs that do not occur.
    """
    found = torch.ones(*truth.shape[:-1], _N_PHRASES, dtype=torch.bool)
    table = torch.from_numpy(never)
    colour, shape = truth[..., GROUPS.index("colour")], truth[..., GROUPS.index("shape")]
    found[..., _AT["shape"]] &= ~(table[colour] & (colour != IGNORE)[..., None])
    found[..., _AT["colour"]] &= ~(table.T[shape] & (shape != IGNORE)[..., None])
    return found


def build_arrays(world: Path, seeds: range, folder: Path, grid: int) -> None:
    """Decode the world's files into memory-mappable .npy files: clips, images, patch labels and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    is_still = {s: make_scene(s).still for s in seeds}
    clips, stills = ([s for s in seeds if is_still[s] == kind] for kind in (False, True))
    for name, chosen, t in (("clips", clips, N_FRAMES), ("stills", stills, 1)):
        shape = (len(chosen), t, SIZE, SIZE, 3)
        pixels = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
        truth = np.lib.format.open_memmap(
            folder / f"{name}_truth.npy", "w+", np.int8, (len(chosen), t, grid**2, len(GROUPS))
        )
        captions = []
        for i, (frames, labels, sentences) in enumerate(parallel(partial(_arrays_of, world, grid), chosen)):
            pixels[i], truth[i] = frames, labels
            captions.append(sentences)
        (folder / f"{name}_captions.json").write_text(json.dumps(captions))


def _arrays_of(world: Path, grid: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    scene = make_scene(seed)
    frames, index = decode_frames((world / "media" / media_name(scene)).read_bytes(), scene.still)
    rng = np.random.default_rng([seed, 80])
    return frames, patch_truth(scene, index, grid), [caption(scene, rng) for _ in range(3)]


class Phrasebook:
    """Tokenizes sentences for the text tower: padded ids without a start token, with the end-of-text token last."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)

    def ids(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids int64 [B, S] and their mask bool [B, S]."""
        rows = [[*self.tokenizer(s, add_special_tokens=False).input_ids, self.end] for s in sentences]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def phrases(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return ids and mask of each group of PHRASES."""
        return [self.ids(list(group)) for group in PHRASES.values()]


class Arrays:
    """Batches from the memory-mapped arrays, with pixels normalized as in the encoder's preprocessing."""

    def __init__(self, folder: Path, book: Phrasebook, mean: list[float], std: list[float], seed: int = 0) -> None:
        self.data = {n: self._open(folder, n) for n in ("clips", "stills")}
        self.book, self.rng = book, np.random.default_rng(seed)
        self.mean = torch.tensor(mean)[:, None, None] * 255
        self.std = torch.tensor(std)[:, None, None] * 255

    @staticmethod
    def _open(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
        pixels = np.load(folder / f"{name}.npy", mmap_mode="r")
        return pixels, np.load(folder / f"{name}_truth.npy"), json.loads((folder / f"{name}_captions.json").read_text())

    def batch(self, name: str, size: int, last: int = 0) -> AlignBatch:
        """Sample random clips or images; the `last` ones of the data are reserved for validation."""
        pixels, truth, captions = self.data[name]
        pick = np.sort(self.rng.choice(len(pixels) - last, size, replace=False))
        return self.make(pixels[pick], truth[pick], [captions[i][int(self.rng.integers(3))] for i in pick])

    def frames(self, size: int, last: int = 0) -> AlignBatch:
        """Sample single frames: half from clips, captioned by what is visible, and half images."""
        stills = self.batch("stills", size // 2, last)
        pixels, truth, _ = self.data["clips"]
        pick = np.sort(self.rng.choice(len(pixels) - last, size - size // 2, replace=False))
        t = self.rng.integers(0, pixels.shape[1], len(pick))
        labels = truth[pick, t][:, None].copy()
        labels[..., GROUPS.index("motion") :] = IGNORE
        clips = self.make(pixels[pick, t][:, None], labels, [_seen(k) for k in labels[:, 0]])
        width = max(stills.caption_ids.shape[1], clips.caption_ids.shape[1])
        pad = [(b, width - b.caption_ids.shape[1]) for b in (stills, clips)]
        return AlignBatch(
            torch.cat([stills.pixels, clips.pixels]),
            torch.cat([torch.nn.functional.pad(b.caption_ids, (0, n)) for b, n in pad]),
            torch.cat([torch.nn.functional.pad(b.caption_mask, (0, n)) for b, n in pad]),
            torch.cat([stills.truth, clips.truth]),
            torch.cat([stills.captioned, clips.captioned]),
            torch.cat([stills.contrasted, clips.contrasted]),
        )

    def make(self, pixels: np.ndarray, truth: np.ndarray, captions: list[str]) -> AlignBatch:
        """Build a batch from pixels uint8 [B, T, H, W, 3], patch labels and captions."""
        ids, mask = self.book.ids(captions)
        values = (torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 1, 4, 2, 3).float() - self.mean) / self.std
        labels = torch.from_numpy(truth.astype(np.int64))
        return AlignBatch(
            values, ids, mask, labels, torch.ones(len(labels), dtype=torch.bool), candidate_phrases(labels)
        )


def _seen(truth: np.ndarray) -> str:
    """Return a caption of one frame, naming the objects that have patches in its labels [patches, groups]."""
    found: dict[tuple[int, int], int] = {}
    for presence, colour, shape, size, *_ in truth.tolist():
        if presence == 1:
            found[colour, shape] = size
    colours, sizes = list(COLOURS), list(SIZES)
    names = [f"a {sizes[z] + ' ' if z >= 0 else ''}{colours[c]} {SHAPES[s]}" for (c, s), z in sorted(found.items())]
    return (" and ".join(names) if names else f"{NUMBERS[0]} objects").capitalize() + "."


def forever(*makers: Any) -> Iterator[tuple[AlignBatch, ...]]:
    """Yield one batch of each maker, endlessly."""
    while True:
        yield tuple(make() for make in makers)
