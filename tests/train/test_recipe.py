from pathlib import Path

import pytest

from vidqa.errors import UsageError
from vidqa.train.recipe import load
from vidqa.train.recipe.load import read_recipe

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


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
    assert (one.parts, one.peak_lr, one.global_batch) == ({"connector"}, 1e-3, 256)
    assert (two.parts, two.peak_lr, two.global_batch) == ({"connector", "llm"}, 2e-5, 128)
    assert (two.schedule, two.warmup, two.weight_decay) == ("cosine", 0.03, 0.0)
    assert recipe.data[0].file == str(tmp_path / "data.json")
    assert recipe.max_reject_rate == 0.01


def test_every_problem_is_named_at_once_with_file_line_and_key(tmp_path):
    text = GOOD.replace('kind = "connector"', 'kind = "conector"\nlearning_rate = 1').replace(
        'file = "data.json"', 'file = "data.json"\nwieght = 2\nweight = -1'
    )
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    said = str(error.value).splitlines()
    assert len(said) == 4
    for line, words in (
        (5, "unknown key `data.wieght`; did you mean `weight`?"),
        (6, "`data.weight`: input should be greater than 0, got -1"),
        (8, "`stage.kind`"),
        (9, "unknown key `stage.learning_rate`"),
    ):
        assert any(f"{path}:{line}: " in one and words in one for one in said), (line, words, said)


def test_contradictions_are_named_beside_unknown_keys(tmp_path):
    path = write(tmp_path, GOOD.replace('"instruct"', '"instruct"\nepochs = 1\nsteps = 2\nbatchsize = 4'))
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    said = str(error.value).splitlines()
    assert (
        len(said) == 2
        and f"{path}:10: " in said[0]
        and "both `epochs` and `steps`" in said[0]
        and "`batch_size`" in said[1]
    )


def test_contradictions_are_named_beside_wrong_values(tmp_path):
    text = GOOD.replace('"instruct"', '"instruct"\nlr = "2e-5"\nbetas = [0.9, 2.0]\nepochs = 1\nsteps = 2')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text.replace('"demo"', '"demo"\nconnector = "new"')))
    said = str(error.value).splitlines()
    assert [line.split("`")[1] for line in said] == ["model.connector", "stage.lr", "stage.betas", "stage.steps"], said


def test_what_hangs_on_a_wrong_value_is_not_named(tmp_path):
    text = GOOD.replace('"instruct"', '"instruct"\ntrain = ["lorra"]\n[stage.lora]')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1 and "`stage.train`" in str(error.value)


@pytest.mark.parametrize("base", ["demoo", "models/none", "x" * 5000])
def test_a_base_that_is_not_there_is_named_with_the_rest(tmp_path, base):
    text = GOOD.replace('"demo"', f'"{base}"').replace('"data.json"', '"gone.json"')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    said = str(error.value).splitlines()
    assert "recipe.toml:2: `model.base`: no model at " in said[0] and "a name of: demo" in said[0]
    assert "`data.file`: no such file" in said[1]


def test_missing_files_and_folders_are_named_together_with_the_rest(tmp_path):
    text = GOOD.replace('file = "data.json"', 'file = "gone.json"\nmedia = "nowhere"\nname = 3')
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    said = str(error.value)
    assert f"recipe.toml:4: `data.file`: no such file: {tmp_path / 'gone.json'}" in said
    assert f"recipe.toml:5: `data.media`: no such folder: {tmp_path / 'nowhere'}" in said
    assert "recipe.toml:6: `data.name`" in said


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (('"instruct"', '"instruct"\nepochs = 1\nsteps = 2'), 10, "both `epochs` and `steps`"),
        (('"instruct"', '"instruct"\ntrain = ["lora", "llm"]\n[stage.lora]'), 9, "exclude each other"),
        (
            ('"instruct"', '"instruct"\ntrain = ["connector"]\n[stage.lora]\nr = 4'),
            10,
            "settings of LoRA, but",
        ),
        (('"instruct"', '"instruct"\ntrain = ["lora"]'), 9, "needs its settings"),
        (('"instruct"', '"instruct"\nembedding_tokens = ["<a>"]'), 9, "without `embeddings`"),
        (('"connector"', '"connector"\nprompt = "plain"\npacking = 2'), 8, "cannot share it"),
        (('"instruct"', '"language"'), 8, "a `language` stage cannot follow a stage of kind `connector`"),
        (('"connector"', '"connector"\ntrain = ["llm"]'), 7, "leaves the LLM alone"),
        (('"connector"', '"connector"\ndata = ["other"]'), 7, "no source is named `other`; there are: data"),
        (('"connector"', '"connector"\nbatch_size = 10\nper_device = 4'), 8, "not a multiple"),
        (('"connector"', '"connector"\nfreeze = ["connector"]'), 7, "nothing is left to train"),
        (("[[stage]]", "[output]\nmerge_lora = true\n[[stage]]"), 6, "without a stage that trains `lora`"),
        (("[[stage]]", '[hardware]\nfsdp_config = "data.json"\n[[stage]]'), 6, "`fsdp_config` without `fsdp`"),
        (('"demo"', '"demo"\n[[data]]\nfile = "data.json"'), 5, "a second source is named `data`"),
    ],
)
def test_contradictions_are_named(tmp_path, change, line, words):
    path = write(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    said = [one for one in str(error.value).splitlines() if words in one]
    assert said, error.value
    assert said[0].startswith(f"{path}:{line}: "), said


def test_the_shipped_recipes_are_sound(monkeypatch):
    monkeypatch.setattr(load, "_missing", lambda *_: [])  # their data are hundreds of gigabytes
    found = {path.stem: read_recipe(path) for path in sorted(RECIPES.glob("*.toml"))}
    assert len(found) == 7
    for name in ("video_llava_stage1", "video_llava_stage2", "video_llava_stage2_lora"):
        (stage,) = found[name].stage
        assert stage.epochs == 1 and stage.warmup == 0.03 and stage.weight_decay == 0 and stage.prompt == "v1"
        assert found[name].hardware.gradient_checkpointing and found[name].hardware.precision == "bf16"
    assert found["video_llava_stage1"].stage[0].parts == {"connector"}
    assert (found["video_llava_stage1"].stage[0].global_batch, found["video_llava_stage1"].stage[0].peak_lr) == (
        256,
        1e-3,
    )
    assert (found["video_llava_stage2"].stage[0].global_batch, found["video_llava_stage2"].stage[0].peak_lr) == (
        128,
        2e-5,
    )
    lora = found["video_llava_stage2_lora"].stage[0]
    assert lora.parts == {"connector", "lora"} and (lora.lora.r, lora.lora.alpha) == (128, 256)
    assert found["video_chatgpt"].stage[0].embedding_tokens == ("<vid_start>", "<vid_end>")
    assert found["valley_stage1"].stage[0].freeze == ("temporal", "lm_head")
