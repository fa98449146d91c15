"""What a recipe needs is looked for before anything begins."""

import json

import pytest

from vidqa.errors import UsageError
from vidqa.train.recipe.definition import Recipe
from vidqa.train.recipe.requirements import check_deepspeed


def recipe(path):
    words = {"model": {"base": "demo"}, "data": [{"file": "d.json"}], "stage": [{"kind": "connector"}]}
    return Recipe.model_validate(words | {"hardware": {"deepspeed": str(path)}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps({"zero_optimization": {"stage": 3}}), "with stage 3 the weights could not be put together"),
        ("{", "cannot be read as DeepSpeed's settings"),
        ("[]", "cannot be read as DeepSpeed's settings"),
    ],
)
def test_settings_of_deepspeed_that_would_end_a_stage_in_an_error_are_refused_first(tmp_path, text, words):
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        check_deepspeed(recipe(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "zero", [{"stage": 2}, {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}, {"stage": 0}]
)
def test_others_pass(tmp_path, zero):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    check_deepspeed(recipe(path))
