"""The demo world is consistent: frames, captions and questions agree, and the same seed creates the same scene."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("av")

from demo_world.alignment import GROUPS, patch_truth
from demo_world.language import (
    NUMBERS,
    POSITIONS,
    SAYINGS,
    caption,
    checks,
    claims,
    detail,
    lookups,
    names,
    pairs,
    plain,
    position_of,
    share_a_colour,
    truth,
)
from demo_world.render import cover, render
from demo_world.scene import COLOURS, HELD_OUT, MOTIONS, SHAPES, SIZE, make_scene, path_of
from demo_world.write import (
    all_records,
    decode_frames,
    media_bytes,
    write_alike,
    write_lookups,
    write_unseen,
    write_world,
)


def test_the_world_has_enough_variety():
    scenes = [make_scene(s) for s in range(400)]
    things = [t for scene in scenes for t in scene.things]
    assert len(SHAPES) >= 6
    assert len(COLOURS) >= 8
    assert {t.motion for t in things} == set(MOTIONS)
    assert {t.shape for t in things} == set(SHAPES)
    assert {len(s.things) for s in scenes} == {1, 2, 3}
    assert any(s.still for s in scenes)
    assert any(np.hypot(*s.pan) > 3 for s in scenes)


def test_held_out_pairs_are_in_evaluation_scenes_only():
    assert not any((t.colour, t.shape) in HELD_OUT for s in range(600) for t in make_scene(s).things)
    assert any((t.colour, t.shape) in HELD_OUT for s in range(100) for t in make_scene(s, held_out=True).things)


@pytest.mark.slow
def test_no_answer_about_training_media_names_a_held_out_pair(tmp_path):
    """Checked with the file of pairs, as `vidqa train` reads it."""
    from vidqa.model.bundle.registry import find_bundle
    from vidqa.model.llm import load_tokenizer
    from vidqa.prompts.build import build_labels
    from vidqa.prompts.chat_formats import FORMATS
    from vidqa.training.data.unseen_pairs import IgnoredTokens, read_unseen_pairs

    write_unseen(tmp_path / "unseen.toml")
    unseen = read_unseen_pairs(tmp_path / "unseen.toml")
    assert set(unseen.pairs) == HELD_OUT
    tokenizer = load_tokenizer(find_bundle("demo") / "llm")
    found, n_positions = IgnoredTokens(unseen, tokenizer), 0
    for record in (r for seed in range(20) for r in all_records(make_scene(seed))):
        values = [turn["value"] for turn in record["conversations"]]
        kind = "image" if "image" in record else "video"
        made = build_labels(
            tokenizer, FORMATS["vicuna_v1"], list(zip(values[::2], values[1::2], strict=True)), [(kind, 1, 2)]
        )
        assert not any(found.is_unseen(mention) for mention in found.mentions(made)), values
        n_positions += int((found.row_indices(made) > 0).sum())
    assert n_positions > 100


def test_same_seed_same_frames():
    assert np.array_equal(render(make_scene(5)), render(make_scene(5)))
    assert not np.array_equal(render(make_scene(5)), render(dataclasses.replace(make_scene(5), seed=6)))


@pytest.mark.parametrize("seed", range(40))
def test_claims_of_a_caption_in_any_wording_match_the_scene(seed):
    scene = make_scene(seed, held_out=True)
    for k in range(4):
        assert claims(caption(scene, np.random.default_rng(k))) == truth(scene)
    assert claims("A small red moon flies.") == set()


def test_a_caption_names_objects_by_color_then_shape():
    for seed in range(60):
        scene = make_scene(seed)
        names = [t.name for t in sorted(scene.things, key=lambda t: (list(COLOURS).index(t.colour), t.shape))]
        if len({t.colour for t in scene.things}) < len(scene.things):
            continue  # the order of shapes is not alphabetical
        for text in (caption(scene), detail(scene)):
            assert sorted(names, key=text.index) == names, text


def test_objects_move_as_described():
    seen = Counter()
    for seed in range(300):
        for t in make_scene(seed, still=False).things:
            x, y, r, angle, visible = path_of(t, np.linspace(0, 1, 8))
            way = {"left": (x, -1), "right": (x, 1), "up": (y, -1), "down": (y, 1), "grows": (r, 1), "shrinks": (r, -1)}
            if t.motion in way:
                values, sign = way[t.motion]
                assert (np.diff(values) * sign > 0).all()
            elif t.motion in ("appears", "disappears"):
                assert 0 < visible.sum() < 8
                assert visible[-1] == (t.motion == "appears")
            elif t.motion == "blinks":
                assert (np.diff(visible.astype(int)) != 0).all()
            elif t.motion == "leaves":
                assert min(x[-1], y[-1]) < -r[-1] or max(x[-1], y[-1]) > SIZE + r[-1]
            elif t.motion == "spins":
                assert abs(angle[-1] - angle[0]) > 2
            seen[t.motion] += 1
    assert set(seen) == set(MOTIONS)


def test_objects_have_their_color_where_they_cover():
    for seed in range(20):
        scene = make_scene(seed, still=True)
        frame, where = render(scene)[0], cover(scene, np.zeros(1, int), SIZE)[0]
        for k, t in enumerate(scene.things):
            inside = frame[where[k] > 0.99].astype(float).mean(axis=0)
            assert np.abs(inside - np.array(t.rgb)).max() < 6


def test_yes_and_no_are_balanced_and_counts_are_correct():
    answers = Counter()
    for seed in range(200):
        scene = make_scene(seed)
        for pair in pairs(scene, np.random.default_rng(seed)):
            if pair.topic == "yes_no":
                answers[pair.answer] += 1
            if pair.topic == "count":
                assert pair.answer.lower() == f"{NUMBERS[len(scene.things)]}."
    assert answers["Yes."] == answers["No."] == 200


def test_answers_to_claims_are_correct_and_false_claims_fit_other_objects():
    answers, borrowed = Counter(), 0
    for seed in range(300):
        scene = make_scene(seed)
        names = {t.name: t for t in scene.things}
        for pair in checks(scene, np.random.default_rng(seed)):
            if pair.question.startswith(("Which", "What")):
                assert pair.answer == f"The {first_of(scene, pair.question).name}.", pair
                continue
            (name,) = re.findall(f"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})", pair.question)
            if pair.question.startswith("Is it true"):
                wording = pair.question.removeprefix(f"Is it true that the {name} ").removesuffix("?")
                (motion,) = [m for m, sayings in SAYINGS.items() if wording in sayings]
                assert pair.answer == ("Yes." if names[name].motion == motion else "No."), pair
                borrowed += pair.answer == "No." and motion in {t.motion for t in scene.things}
            else:
                assert pair.answer == ("Yes." if name in names else "No."), pair
            answers[pair.answer] += 1
    assert 0.4 < answers["No."] / answers.total() < 0.55
    assert borrowed > 100  # false for this object, true for another one


def first_of(scene, question):
    """Return which of two named objects appears or disappears first."""
    timed = [t for t in scene.things if t.name in question and t.motion in ("appears", "disappears")]
    assert len(timed) == 2
    return min(timed, key=lambda t: t.at)


def test_patch_labels_have_the_position_of_static_objects():
    seen = Counter()
    for seed in range(120):
        scene = make_scene(seed, still=True)
        labels = patch_truth(scene, np.zeros(1, int), 4)[0]
        for k, t in enumerate(scene.things):
            own = cover(scene, np.zeros(1, int), 4)[0].reshape(len(scene.things), -1)
            patches = labels[(own.argmax(0) == k) & (own.max(0) >= 0.1)]
            where = position_of(t)
            assert set(patches[:, GROUPS.index("place")]) == {POSITIONS.index(where) if where else -1}
            if where in ("top left", "bottom right"):
                assert (t.start[0] < SIZE / 2) == (t.start[1] < SIZE / 2) == (where == "top left")
            seen[where] += 1
    assert set(seen) == {*POSITIONS, None}


@pytest.mark.slow
def test_alike_has_scenes_with_two_objects_of_the_same_color(tmp_path):
    write_world(tmp_path, range(40))
    write_alike(tmp_path, 3)
    made = json.loads((tmp_path / "alike.json").read_text())
    seeds = {int((r.get("video") or r["image"])[:6]) for r in made}
    assert 1 <= len(seeds) <= 3 and all(share_a_colour(make_scene(s)) for s in seeds)
    assert {r["topic"] for r in made} == {"caption", "detail"}


def test_lookups_identify_one_object_and_are_correct():
    answers = Counter()
    for seed in range(300):
        scene, rng = make_scene(seed), np.random.default_rng(seed)
        for pair in lookups(scene, rng):
            there = [t for t in scene.things if re.search(rf"\b{t.shape}\b", pair.question)]
            by_shape = bool(there)
            if not by_shape:
                there = [t for t in scene.things if re.search(f"{t.colour} (thing|object)", pair.question)]
            assert len(there) == 1, pair
            (t,) = there
            if pair.answer in ("Yes.", "No."):
                assert (pair.answer == "Yes.") == pair.question.endswith(f" {t.colour}?"), pair
                answers[len(scene.things), pair.answer] += 1
            elif "colour" in pair.question:
                assert by_shape and pair.answer in (f"It is {t.colour}.", f"The {t.shape} is {t.colour}.")
            else:
                assert pair.answer in (f"It is a {t.shape}.", f"It is {t.size}.", f"It {SAYINGS[t.motion][0]}.")
    assert 0.3 < answers[2, "Yes."] / (answers[2, "Yes."] + answers[2, "No."]) < 0.7


def test_plain_questions_have_one_correct_answer():
    """`it` refers to the only object; questions about all objects and colors list all of them."""
    asked = Counter()
    for seed in range(300):
        scene = make_scene(seed)
        for pair in plain(scene, np.random.default_rng(seed)):
            words = re.findall(r"[a-z]+", pair.question.lower())
            asked[" ".join(words[:2]), len(scene.things) > 1] += 1
            if "it" in words or "this" in words:
                (t,) = scene.things
                true = {f"It is a {t.shape}.", f"It is {t.colour}.", f"It is {t.size}.", f"It {SAYINGS[t.motion][0]}."}
                assert pair.answer in true or claims(pair.answer) == {(t.size, t.colour, t.shape, None)}, pair
            elif "colours" in words or "colors" in words:
                assert set(re.findall("|".join(COLOURS), pair.answer.lower())) == {t.colour for t in scene.things}
            else:
                assert claims(pair.answer) == {(t.size, t.colour, t.shape, None) for t in scene.things}, pair
    assert asked["what is", False] > 20 and asked["what is", True] == 0
    assert min(asked["which objects", True], asked["what shapes", True], asked["which colours", True]) > 20


@pytest.mark.slow
def test_training_does_not_ask_about_held_out_pairs():
    """The answer would always be no."""
    n = 0
    for seed in range(400):
        for record in all_records(make_scene(seed)):
            for turn in record["conversations"]:
                assert not names(turn["value"]) & HELD_OUT, turn
                n += len(names(turn["value"]))
    assert n > 1000


def test_lookups_are_written_for_scenes_with_several_objects(tmp_path):
    write_world(tmp_path, range(12))
    write_lookups(tmp_path, 3)
    several = [s for s in range(12) if len(make_scene(s).things) > 1][:3]
    made = json.loads((tmp_path / "lookups.json").read_text())
    assert {int(r["id"].split("-")[0]) for r in made} == set(several)
    assert {r["topic"] for r in made} == {"lookup", "check", "position"}


def test_written_clips_match_the_rendered_frames(tmp_path):
    scene = dataclasses.replace(make_scene(3, still=False), noise=0.0, crf=18)
    frames, index = decode_frames(media_bytes(scene), False)
    assert frames.shape == (8, SIZE, SIZE, 3)
    assert index[0] == 0
    assert index[-1] == scene.n_frames - 1
    assert np.abs(frames.astype(int) - render(scene, index).astype(int)).mean() < 6


def test_a_world_folder_is_training_data_in_the_llava_format(tmp_path):
    from vidqa.training.data.record_formats import read_conversations
    from vidqa.training.data.sample import by_media

    write_world(tmp_path, range(6))
    samples = read_conversations(tmp_path / "conversations.json")
    assert len(samples) == sum(len(all_records(make_scene(s))) for s in range(6))
    groups = by_media(samples)
    assert len(groups) == 6
    assert all((tmp_path / "media" / g[0].media[0].path).is_file() for g in groups)
    topics = {r["topic"] for r in json.loads((tmp_path / "conversations.json").read_text())}
    assert {"caption", "detail", "colour", "shape", "count", "yes_no", "dialogue"} <= topics
