from pathlib import Path

import pytest

from vidqa.errors import UsageError
from vidqa.training.recipe import load
from vidqa.training.recipe.load import read_recipe

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"


def write(folder, text):
    (folder / "data.json").write_text("[]")
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


GOOD = """\
[model]
base = "demo"
[[data]]
file = "data.json"
[[stage]]
kind = "connector"
[[stage]]
kind = "instruct"
"""


def test_defaults_are_those_of_the_paper(tmp_path):
    recipe = read_recipe(write(tmp_path, GOOD))
    one, two = recipe.stage
    assert (one.parts, one.peak_learning_rate, one.global_batch_size) == ({"connector"}, 1e-3, 256)
    assert (two.parts, two.peak_learning_rate, two.global_batch_size) == ({"connector", "llm"}, 2e-5, 128)
    assert (two.schedule, two.warmup_ratio, two.weight_decay) == ("cosine", 0.03, 0.0)
    assert recipe.data[0].file == str(tmp_path / "data.json")
    assert recipe.max_reject_rate == 0.01


def test_all_problems_are_reported_at_once_with_file_line_and_key(tmp_path):
    text = GOOD.replace('kind = "connector"', 'kind = "conector"\nlearning_rat = 1').replace(
        'file = "data.json"', 'file = "data.json"\nwieght = 2\nweight = -1'
    )
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    problems = str(error.value).splitlines()
    assert len(problems) == 4
    for line, words in (
        (5, "unknown key `data.wieght`; did you mean `weight`?"),
        (6, "`data.weight`: input should be greater than 0, got -1"),
        (8, "`stage.kind`"),
        (9, "unknown key `stage.learning_rat`; did you mean `learning_rate`?"),
    ):
        assert any(f"{path}:{line}: " in one and words in one for one in problems), (line, words, problems)


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("stage", "per_device = 4", "`per_device_batch_size`"),
        ("stage", "lr = 1e-3", "`learning_rate`"),
        ("stage", "connector_lr = 1e-3", "`connector_learning_rate`"),
        ("stage", "warmup = 0.1", "`warmup_ratio`"),
        ("stage", 'order = "length"', "`group_by_length`"),
        ("stage", 'visits = "draw"', "`sequences_per_media`"),
        ("output", "save_every = 100", "`save_steps`"),
        ("output", "keep = 1", "`save_total_limit`"),
        ("eval", "every = 10", "`eval_steps`"),
        ("logging", "every = 10", "`logging_steps`"),
    ],
)
def test_a_former_key_is_rejected_with_its_new_name(tmp_path, table, old, new):
    key = old.partition(" ")[0]
    text = GOOD + (f"{old}\n" if table == "stage" else f"[{table}]\n{old}\n")
    path = write(tmp_path, text + ('file = "data.json"\n' if table == "eval" else ""))
    line = text.splitlines().index(old) + 1
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}:{line}: `{table}.{key}` is now {new}"), error.value
    assert len(str(error.value).splitlines()) == 1


def test_a_former_key_has_no_follow_up_errors(tmp_path):
    path = write(tmp_path, GOOD.replace('"instruct"', '"instruct"\nbatch_size = 8\nper_device = 4'))
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    assert str(error.value) == f"{path}:10: `stage.per_device` is now `per_device_batch_size`"


def test_the_former_value_of_connector_is_rejected_with_the_new_one(tmp_path):
    path = write(tmp_path, GOOD.replace('"demo"', '"demo"\nconnector = "fresh"'))
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    assert str(error.value) == f'{path}:3: `model.connector`: "fresh" is now "reinitialize"'


def test_inconsistencies_are_reported_together_with_unknown_keys(tmp_path):
    path = write(tmp_path, GOOD.replace('"instruct"', '"instruct"\nepochs = 1\nsteps = 2\nbatchsize = 4'))
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    problems = str(error.value).splitlines()
    assert (
        len(problems) == 2
        and f"{path}:10: " in problems[0]
        and "`epochs` and `steps` cannot both be set" in problems[0]
        and "`batch_size`" in problems[1]
    )


def test_inconsistencies_are_reported_together_with_invalid_values(tmp_path):
    text = GOOD.replace('"instruct"', '"instruct"\nlearning_rate = "2e-5"\nbetas = [0.9, 2.0]\nepochs = 1\nsteps = 2')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text.replace('"demo"', '"demo"\nconnector = "new"')))
    problems = str(error.value).splitlines()
    assert [line.split("`")[1] for line in problems] == [
        "model.connector",
        "stage.learning_rate",
        "stage.betas",
        "stage.steps",
    ], problems


def test_follow_up_errors_of_an_invalid_value_are_not_reported(tmp_path):
    text = GOOD.replace('"instruct"', '"instruct"\ntrain = ["lorra"]\n[stage.lora]')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1 and "`stage.train`" in str(error.value)


@pytest.mark.parametrize("base", ["demoo", "models/none", "x" * 5000])
def test_a_missing_base_is_reported_with_the_other_problems(tmp_path, base):
    text = GOOD.replace('"demo"', f'"{base}"').replace('"data.json"', '"gone.json"')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    problems = str(error.value).splitlines()
    assert "recipe.toml:2: `model.base`: no model at " in problems[0] and "one of these names: demo" in problems[0]
    assert "`data.file`: no such file" in problems[1]


def test_missing_files_and_folders_are_reported_with_the_other_problems(tmp_path):
    text = GOOD.replace('file = "data.json"', 'file = "gone.json"\nmedia = "nowhere"\nname = 3')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    problems = str(error.value)
    assert f"recipe.toml:4: `data.file`: no such file: {tmp_path / 'gone.json'}" in problems
    assert f"recipe.toml:5: `data.media`: no such folder: {tmp_path / 'nowhere'}" in problems
    assert "recipe.toml:6: `data.name`" in problems


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (('"instruct"', '"instruct"\nepochs = 1\nsteps = 2'), 10, "`epochs` and `steps` cannot both be set"),
        (('"instruct"', '"instruct"\ntrain = ["lora", "llm"]\n[stage.lora]'), 9, "exclude each other"),
        (
            ('"instruct"', '"instruct"\ntrain = ["connector"]\n[stage.lora]\nr = 4'),
            10,
            "LoRA settings in a stage that trains",
        ),
        (('"instruct"', '"instruct"\ntrain = ["lora"]'), 9, "requires a table [stage.lora]"),
        (('"instruct"', '"instruct"\nembedding_tokens = ["<a>"]'), 9, "requires `embeddings`"),
        (('"connector"', '"connector"\nprompt = "plain"\npacking = 2'), 8, "cannot be packed"),
        (('"instruct"', '"language"'), 8, "a `language` stage cannot follow a `connector` stage"),
        (('"connector"', '"connector"\ntrain = ["llm"]'), 7, "does not train the LLM"),
        (('"connector"', '"connector"\ndata = ["other"]'), 7, "no source is named `other`; available: data"),
        (('"connector"', '"connector"\nbatch_size = 10\nper_device_batch_size = 4'), 8, "not a multiple"),
        (('"connector"', '"connector"\nfreeze = ["connector"]'), 7, "nothing is left to train"),
        (("[[stage]]", "[output]\nmerge_lora = true\n[[stage]]"), 6, "requires a stage that trains `lora`"),
        (("[[stage]]", '[hardware]\nfsdp_config = "data.json"\n[[stage]]'), 6, "`fsdp_config` requires `fsdp`"),
        (('"demo"', '"demo"\n[[data]]\nfile = "data.json"'), 5, "another source is already named `data`"),
    ],
)
def test_inconsistencies_are_reported(tmp_path, change, line, words):
    path = write(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    problems = [one for one in str(error.value).splitlines() if words in one]
    assert problems, error.value
    assert problems[0].startswith(f"{path}:{line}: "), problems


def test_the_default_per_device_batch_size_fits_any_batch_size(tmp_path):
    path = write(tmp_path, GOOD.replace('"instruct"', '"instruct"\nbatch_size = 4'))
    assert read_recipe(path).stage[-1].batch_size == 4


def test_the_shipped_recipes_are_valid(monkeypatch):
    monkeypatch.setattr(load, "_missing", lambda *_: [])  # their data is hundreds of gigabytes
    found = {path.stem: read_recipe(path) for path in sorted(RECIPES.glob("*.toml"))}
    assert len(found) == 7
    for name in ("video_llava_stage1", "video_llava_stage2", "video_llava_stage2_lora"):
        (stage,) = found[name].stage
        assert stage.epochs == 1 and stage.warmup_ratio == 0.03 and stage.weight_decay == 0 and stage.prompt == "v1"
        assert found[name].hardware.gradient_checkpointing and found[name].hardware.precision == "bf16"
    assert found["video_llava_stage1"].stage[0].parts == {"connector"}
    assert (
        found["video_llava_stage1"].stage[0].global_batch_size,
        found["video_llava_stage1"].stage[0].peak_learning_rate,
    ) == (
        256,
        1e-3,
    )
    assert (
        found["video_llava_stage2"].stage[0].global_batch_size,
        found["video_llava_stage2"].stage[0].peak_learning_rate,
    ) == (
        128,
        2e-5,
    )
    lora = found["video_llava_stage2_lora"].stage[0]
    assert lora.parts == {"connector", "lora"} and (lora.lora.r, lora.lora.alpha) == (128, 256)
    assert found["video_chatgpt"].stage[0].embedding_tokens == ("<vid_start>", "<vid_end>")
    assert found["valley_stage1"].stage[0].freeze == ("temporal", "lm_head")
