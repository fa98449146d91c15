"""The requirements of a recipe are checked before training starts."""

import json

import pytest

from vidqa.errors import UsageError
from vidqa.training.recipe.definition import Recipe
from vidqa.training.recipe.requirements import check_deepspeed, check_machine


def recipe(path):
    words = {"model": {"base": "demo"}, "data": [{"file": "d.json"}], "stage": [{"kind": "connector"}]}
    return Recipe.model_validate(words | {"hardware": {"deepspeed": str(path)}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps({"zero_optimization": {"stage": 3}}), "ZeRO stage 3 would not gather the weights"),
        ("{", "is not a readable DeepSpeed configuration"),
        ("[]", "is not a readable DeepSpeed configuration"),
    ],
)
def test_deepspeed_configurations_that_would_fail_at_the_end_of_a_stage_are_rejected(tmp_path, text, words):
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        check_deepspeed(recipe(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "zero", [{"stage": 2}, {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}, {"stage": 0}]
)
def test_other_configurations_pass(tmp_path, zero):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    check_deepspeed(recipe(path))


def test_fp16_on_a_cpu_is_refused_instead_of_training_in_float32(tmp_path):
    words = {"model": {"base": "demo"}, "data": [{"file": "d.json"}], "stage": [{"kind": "connector"}]}
    for precision in ("auto", "fp32", "bf16"):
        check_machine(Recipe.model_validate(words | {"hardware": {"precision": precision}}), "cpu")
    with pytest.raises(UsageError, match='"fp16" requires a GPU'):
        check_machine(Recipe.model_validate(words | {"hardware": {"precision": "fp16"}}), "cpu")
