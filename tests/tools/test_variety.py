"""Augmented batches: their labels stay correct, and held-out pairs stay unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from demo_model.align import IGNORE
from demo_world.alignment import GROUPS, PHRASES, Arrays, Phrasebook, build_arrays, candidate_phrases
from demo_world.language import caption
from demo_world.scene import COLOURS, HELD_OUT, MOTIONS, SHAPES, make_scene
from demo_world.variety import Variety, backwards, never_shown, played_backwards, turn
from demo_world.write import write_world
from transformers import AutoTokenizer

import vidqa

MOTION, WHEN = GROUPS.index("motion"), GROUPS.index("when")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, range(36))
    build_arrays(folder, range(36), folder / "arrays", 4)
    tokenizer = AutoTokenizer.from_pretrained(Path(vidqa.__file__).parent / "demo" / "llm")
    return Arrays(folder / "arrays", Phrasebook(tokenizer), [0.5] * 3, [0.25] * 3)


def test_backwards_reverses_motions_and_times() -> None:
    truth = np.full((8, 2, len(GROUPS)), IGNORE, np.int8)
    truth[..., 0, MOTION], truth[..., 1, MOTION] = MOTIONS.index("appears"), MOTIONS.index("leaves")
    truth[..., 0, WHEN] = 5 - 1  # visible in frames 5, 6, 7
    found = backwards(truth)
    assert {MOTIONS[m] for m in found[..., 0, MOTION].ravel()} == {"disappears"}
    assert set(found[..., 0, WHEN].ravel()) == {3 - 1}  # disappears in frame 3
    assert (found[..., 1, :] == IGNORE).all()  # there is no phrase for entering


def test_captions_of_reversed_scenes() -> None:
    scenes = [make_scene(s) for s in range(60)]
    for scene in scenes:
        back = played_backwards(scene)
        assert (back is None) == any(t.motion == "leaves" for t in scene.things)
        if back:
            again = played_backwards(back)
            assert again is not None and caption(again) == caption(scene)
    up = next(s for s in scenes if [t.motion for t in s.things] == ["left"])
    assert "moves right" in caption(played_backwards(up) or up)


def test_no_hue_shift_shows_a_held_out_pair() -> None:
    def never(colour: str, shape: str, degrees: float) -> bool:
        return bool(never_shown(degrees)[list(COLOURS).index(colour), SHAPES.index(shape)])

    assert never("orange", "star", -33)  # an orange star that turns red
    assert not never("orange", "circle", -33)
    assert not any(never("white", shape, d) for shape in SHAPES for d in range(0, 360, 10))
    for colour, shape in HELD_OUT:
        assert never(colour, shape, 0)
        assert not never(colour, shape, 120)
    grey = np.array(COLOURS["red"]) @ turn(90, 0.0)
    assert np.ptp(grey) < 1e-9


def test_held_out_pairs_are_not_candidates() -> None:
    phrases = [(group, p) for group, ps in PHRASES.items() for p in ps]
    truth = torch.full((len(COLOURS), len(SHAPES), len(GROUPS)), IGNORE)
    truth[..., GROUPS.index("colour")] = torch.arange(len(COLOURS))[:, None]
    truth[..., GROUPS.index("shape")] = torch.arange(len(SHAPES))
    closed = ~candidate_phrases(truth)
    for i, colour in enumerate(COLOURS):
        for j, shape in enumerate(SHAPES):
            found = {phrases[k] for k in closed[i, j].nonzero()[:, 0].tolist()}
            assert found == {("shape", s) for c, s in HELD_OUT if c == colour} | {
                ("colour", c) for c, s in HELD_OUT if s == shape
            }
    assert candidate_phrases(torch.full((2, len(GROUPS)), IGNORE)).all()


@pytest.mark.slow
def test_clips_are_paired_with_their_reverse(arrays: Arrays) -> None:
    batch = Variety(arrays).clips(4)
    there, back = batch.pixels.chunk(2)
    torch.testing.assert_close(there, back.flip(1))
    assert int(batch.captioned.sum()) >= 2
    first, second = batch.truth.chunk(2)
    assert torch.equal(first[..., 0], second[..., 0].flip(1))


def test_hue_shifts_keep_shape_labels_and_remove_color_labels(arrays: Arrays) -> None:
    variety, colour, shape = Variety(arrays), GROUPS.index("colour"), GROUPS.index("shape")
    n_turned = 0
    for _ in range(12):
        batch = variety.frames(4)
        for truth, captioned in zip(batch.truth, batch.captioned, strict=True):
            if (truth[..., shape] != IGNORE).any() and (truth[..., colour] == IGNORE).all():
                n_turned += 1
                assert not captioned or int(batch.captioned.sum()) == len(batch.captioned)
    assert n_turned >= 8
