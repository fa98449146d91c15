"""`--set PATH=VALUE` in a recipe: what it may say, and what is said when it is wrong."""

import pytest

from vidqa.errors import UsageError
from vidqa.train.recipe.load import as_written, read_recipe

RECIPE = """\
seed = 7
[model]
base = "demo"
[[data]]
file = "llava.v1.5.json"
weight = 3.0
[[data]]
file = "other.json"
name = "2024"
[[stage]]
kind = "connector"
steps = 5
[[stage]]
kind = "instruct"
batch_size = 8
per_device = 4
"""


@pytest.fixture
def path(tmp_path):
    for name in ("llava.v1.5.json", "other.json", "third.json"):
        (tmp_path / name).write_text("[]")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def refused(path, *overrides):
    with pytest.raises(UsageError) as error:
        read_recipe(path, overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seed=1", lambda r: r.seed == 1),
        ("stage.2.lr=2e-5", lambda r: r.stage[1].lr == 2e-5 and r.stage[0].lr is None),
        (" stage.2.lr = 1 ", lambda r: r.stage[1].lr == 1.0),
        ("data.1.weight=0.5", lambda r: [d.weight for d in r.data] == [0.5, 1.0]),
        ("data.llava.v1.5.weight=2", lambda r: [d.weight for d in r.data] == [2.0, 1.0]),
        ("data.2024.weight=2", lambda r: [d.weight for d in r.data] == [3.0, 2.0]),
        ("data.2.file=third.json", lambda r: r.data[1].file.endswith("/third.json")),
        ("stage.1.prompt=plain", lambda r: r.stage[0].prompt == "plain"),
        ('stage.1.prompt="plain"', lambda r: r.stage[0].prompt == "plain"),
        ('stage.2.train=["connector"]', lambda r: r.stage[1].parts == {"connector"}),
        ("stage.2.lora.r=8", lambda r: r.stage[1].lora.r == 8 and r.stage[1].parts == {"connector", "lora"}),
        ("stage.2.lora={r=8, alpha=16}", lambda r: (r.stage[1].lora.r, r.stage[1].lora.alpha) == (8, 16.0)),
        ("hardware.tf32=false", lambda r: r.hardware.tf32 is False),
        ("eval={file='other.json', every=3}", lambda r: r.eval.every == 3),
        ("model.name=a=b#c", lambda r: r.model.name == "a=b#c"),
    ],
)
def test_an_override_is_read_as_if_the_file_had_it(path, override, found):
    assert found(read_recipe(path, [override]))
    assert path.read_text() == RECIPE


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.2.lrr=1", "unknown key `stage.lrr`; did you mean `lr`?"),
        ("sed=1", "unknown key `sed`; did you mean `seed`?"),
        ("seed.x=1", "`seed` is no table"),
        ("seed.=1", "`seed` is no table"),
        ("stage.3.lr=1", "there is no stage `3`; there are: 1, 2"),
        ("stage.0.lr=1", "there is no stage `0`"),
        ("stage.connector.lr=1", "there is no stage `connector`"),
        ("data.x.weight=1", "there is no source `x`; there are: 1 (llava.v1.5), 2 (2024)"),
        ("seed", "PATH=VALUE is wanted"),
        ("=1", "PATH=VALUE is wanted"),
        ("seed=", "there is no value"),
        ("seed=one", "`seed`: input should be a valid integer, got 'one'"),
        ("seed=1.0", "`seed`: input should be a valid integer"),
        ("seed=1 # two", "`seed`: input should be a valid integer, got '1 # two'"),
        ("seed=1 ]\nmax_reject_rate = [ 1", "`seed`: input should be a valid integer"),
        ("seed=1, 2", "`seed`: input should be a valid integer, got '1, 2'"),
        ("seed=" + "9" * 30, "does not fit 64 bits"),
        ("seed=" + "9" * 5000, "`seed`: input should be a valid integer"),
        ("data.2.file=gone.json", "`data.file`: no such file: "),
        ("model.base=gone", "`model.base`: no model at gone"),
        ("stage.2.train=[connector]", "not a TOML value; texts in lists and tables need quotes"),
        ("eval.every=3", "`eval.file` is missing"),
        ("stage.2.lora.r=0", "`stage.lora.r`: input should be greater than or equal to 1"),
        ("stage.2.per_device=3", "`batch_size` 8 is not a multiple of `per_device` 3"),
        ("stage.1.epochs=1", "both `epochs` and `steps` are given"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(path, override, words):
    said = refused(path, override)
    assert len(said) == 1 and words in said[0], said
    given = override if "\n" not in override else override.replace("\n", "\\n")
    assert f"--set {given}" in said[0].replace('"', "")


def test_a_contradiction_with_the_file_names_the_line_and_the_options_that_made_it(path):
    (said,) = refused(path, "seed=3", "stage.2.batch_size=6")
    assert said.startswith(f"{path}:16: `stage.per_device`: ") and said.endswith("(with --set stage.2.batch_size=6)")
    (said,) = refused(path, "stage.2.batch_size=6", "stage.2.per_device=5")
    assert said.startswith("--set stage.2.per_device=5: ") and "(with --set stage.2.batch_size=6)" in said


def test_all_problems_of_file_and_options_are_named_at_once(path):
    path.write_text(RECIPE.replace("steps = 5", "steps = 0\nepoch = 1").replace("batch_size = 8", "batch_size = 6"))
    said = refused(path, "stage.2.lr=fast", "stage.9.lr=1", "nothing", "seed=1", "seed=2", "stage.2.steps=1.5")
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in said[:3]] == ["12", "13", "17"], said
    assert sorted(line.split(":")[0] for line in said[3:]) == [
        "--set nothing",
        "--set seed=2",
        "--set stage.2.lr=fast",
        "--set stage.2.steps=1.5",
        "--set stage.9.lr=1",
    ]
    assert "set twice, also by --set seed=1" in "\n".join(said)
    assert "(with" not in "\n".join(said)  # the contradiction is the file's own


@pytest.mark.parametrize("second", ["stage.2.lora.r=4", "stage.2.lora={r=4}"])
def test_a_table_and_what_is_in_it_are_not_both_set(path, second):
    (said,) = refused(path, "stage.2.lora={r=8}", second)
    assert said.startswith(f"--set {second}: ") and "set twice, also by --set stage.2.lora={r=8}" in said


def test_a_name_that_is_the_number_of_another_source_is_refused(path):
    path.write_text(RECIPE.replace('"2024"', '"1"'))
    (said,) = refused(path, "data.1.weight=2")
    assert "`1` could be several sources: 1, 2" in said
    assert read_recipe(path, ["data.2.weight=2"]).data[1].weight == 2


def test_the_report_has_what_was_set_as_it_was_set(path):
    given = ["data.2.file=third.json", "seed=3"]
    told = as_written(read_recipe(path, given), path, given)
    assert told["seed"] == 3 and [d["file"] for d in told["data"]] == ["llava.v1.5.json", "third.json"]
