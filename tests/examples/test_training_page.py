"""docs/training.md: its recipes load, and its reference has every key of a recipe."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vidqa.training.recipe.definition import Recipe, table_keys
from vidqa.training.recipe.load import read_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
EXAMPLE, REFERENCE, LORA, SHARDED, PAIRS = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.S | re.M)
#: Keys of each table that the page has outside its reference.
ELSEWHERE: dict[str, set[str]] = {
    "eval": {"max_new_tokens", "max_conversations"},
    "stage": {"name", "steps", "betas", "max_grad_norm", "unseen_pairs", "lora", "connector_learning_rate"},
    "hardware": {"fsdp", "fsdp_config", "deepspeed"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the recipes name."""
    for name in ("train", "captions", "held_out"):
        (tmp_path / f"{name}.json").write_text("[]")
    (tmp_path / "clips").mkdir()
    (tmp_path / "pairs.toml").write_text(PAIRS, encoding="utf-8")
    return tmp_path


def load(folder: Path, text: str) -> Recipe:
    """Read a recipe of the page, with the demo model as its base."""
    file = folder / "recipe.toml"
    file.write_text(text.replace('"video-llava-7b"', '"demo"'), encoding="utf-8")
    return read_recipe(file)


def test_the_example_recipe_trains_an_adapter(folder: Path) -> None:
    (stage,) = load(folder, EXAMPLE).stage
    assert stage.parts == {"connector", "lora"}


def test_the_reference_loads(folder: Path) -> None:
    assert [stage.kind for stage in load(folder, REFERENCE).stage] == ["connector", "instruct"]


def test_the_settings_of_other_sections_load(folder: Path) -> None:
    stage = load(folder, EXAMPLE.partition("[stage.lora]")[0] + 'unseen_pairs = "pairs.toml"\n' + LORA).stage[0]
    assert stage.unseen_pairs and stage.lora and stage.lora.quantize == "4bit"
    assert load(folder, EXAMPLE + SHARDED).hardware.fsdp


def test_the_reference_has_every_key() -> None:
    reference: dict[str, Any] = tomllib.loads(REFERENCE)
    assert set(reference) == set(Recipe.model_fields)
    for name in set(reference) - {"seed", "max_reject_rate"}:
        tables = reference[name] if isinstance(reference[name], list) else [reference[name]]
        assert set().union(*tables) | ELSEWHERE.get(name, set()) == set(table_keys((name,))), name
        assert not [key for key in ELSEWHERE.get(name, set()) if not re.search(rf"\b{key}\b", PAGE)]
    assert {*tomllib.loads(LORA)["stage"]["lora"], "targets"} == set(table_keys(("stage", 0, "lora")))
