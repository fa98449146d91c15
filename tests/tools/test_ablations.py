"""The compared arms differ only in what the ablation is about, and the table is correct."""

import tomllib

import pytest
import torch
from ablations.plan import ARMS, COMPARED, Sizes, language_recipe, recipe
from ablations.starts import MaskedAutoencoder
from ablations.table import figures, most_frequent, table
from demo_world.language import Pair
from demo_world.scene import make_scene

from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.training.recipe.consistency import inconsistencies
from vidqa.training.recipe.definition import Recipe

BY_NAME = {arm.name: tomllib.loads(recipe(arm, 1, Sizes())) for arm in ARMS}


@pytest.mark.parametrize("name", BY_NAME)
def test_recipes_are_valid(name):
    assert not list(inconsistencies(Recipe.model_validate(BY_NAME[name])))
    assert not list(inconsistencies(Recipe.model_validate(tomllib.loads(language_recipe(Sizes())))))


def test_compared_arms_differ_in_one_respect():
    united, separated = BY_NAME["joint, united"], BY_NAME["joint, separated"]
    assert separated | {"model": united["model"]} == united
    same_steps, same_clips = BY_NAME["video only, same steps"], BY_NAME["video only, same clips"]
    for one in (same_steps, same_clips):
        assert one["model"] == united["model"]
        assert {d["name"] for d in one["data"]} == {"clips", "clips_captions"}
    steps = {name: [stage["steps"] for stage in arm["stage"]] for name, arm in BY_NAME.items()}
    assert steps["video only, same steps"] == steps["joint, united"] == steps["joint, separated"]
    assert [2 * n for n in steps["video only, same clips"]] == steps["joint, united"]
    assert {arm for _, one, other in COMPARED for arm in (one, other)} == set(BY_NAME)


def scores(right):
    topics = ("clip colour", "clip motion", "clip caption", "image colour", "image caption")
    return {topic: {"right": right + n} for n, topic in enumerate(topics)} | {"clip caption, x": {"right": 0.0}}


def test_table_has_means_spreads_and_differences():
    assert figures(scores(10))["clip questions, mean of topics"] == 10.5
    lines = table({ARMS[0].name: [scores(10), scores(14)], ARMS[1].name: [scores(10), scores(10)]}).splitlines()
    assert "| clip questions, mean of topics | 12.5 ± 2.8 | 10.5 ± 0.0 |" in lines
    last = lines[-1].split(" | ")
    assert last[:2] == ["| united vs. separated", "+2.0 ± 2.8 (+0.0, +4.0)"]
    assert "joint" not in lines[-1]  # arms that did not run are not compared


def test_most_frequent_answer_is_counted_by_kind_and_topic():
    scenes = {"a": make_scene(1), "b": make_scene(2), "c": make_scene(3, still=True)}
    asked = {
        name: [Pair("colour", "?", answer), Pair("caption", "?", name)]
        for name, answer in zip("abc", "xyy", strict=True)
    }
    asked["a"].append(Pair("colour", "??", "x"))
    found = {topic: round(score["right"], 1) for topic, score in most_frequent(scenes, asked).items()}
    assert found == {"clip colour": 66.7, "clip caption": 50.0, "image colour": 100.0, "image caption": 100.0}
    guess = {topic: {"right": 20.0} for topic in scores(0)}
    first = table({ARMS[0].name: [scores(10)]}, guess).splitlines()
    assert (
        first[0].endswith("| most frequent answer |") and first[2] == "| clip questions, mean of topics | 10.5 | 20.0 |"
    )


def test_masked_autoencoder_reconstructs_all_patches():
    torch.manual_seed(0)
    model = MaskedAutoencoder(VisionTower(VisionConfig(8, 4, 16, 32, 2, 2, 8)))
    pixels = torch.randn(3, 3, 8, 8)
    model(pixels).backward()
    assert all(p.grad is not None for p in model.head.parameters())
    with torch.no_grad():
        model.head[1].weight.zero_(), model.head[1].bias.zero_()
        assert model(pixels).item() == pytest.approx(float((pixels**2).mean() / pixels.var()), rel=1e-5)
