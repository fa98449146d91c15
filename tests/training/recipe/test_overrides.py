"""`--set PATH=VALUE` overrides: valid ones, and the errors of invalid ones."""

import pytest

from vidqa.errors import UsageError
from vidqa.training.recipe.load import read_recipe, settings_as_written

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
per_device_batch_size = 4
"""


@pytest.fixture
def path(tmp_path):
    for name in ("llava.v1.5.json", "other.json", "third.json"):
        (tmp_path / name).write_text("[]")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def problems_of(path, *overrides):
    with pytest.raises(UsageError) as error:
        read_recipe(path, overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seed=1", lambda r: r.seed == 1),
        ("stage.2.learning_rate=2e-5", lambda r: r.stage[1].learning_rate == 2e-5 and r.stage[0].learning_rate is None),
        (" stage.2.learning_rate = 1 ", lambda r: r.stage[1].learning_rate == 1.0),
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
        ("eval={file='other.json', eval_steps=3}", lambda r: r.eval.eval_steps == 3),
        ("model.name=a=b#c", lambda r: r.model.name == "a=b#c"),
    ],
)
def test_an_override_is_read_as_if_the_file_had_it(path, override, found):
    assert found(read_recipe(path, [override]))
    assert path.read_text() == RECIPE


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.2.learning_rat=1", "unknown key `stage.learning_rat`; did you mean `learning_rate`?"),
        ("stage.2.lr=1", "`stage.lr` is now `learning_rate`"),
        ("eval.every=1", "`eval.every` is now `eval_steps`"),
        ("sed=1", "unknown key `sed`; did you mean `seed`?"),
        ("seed.x=1", "`seed` is not a table"),
        ("seed.=1", "`seed` is not a table"),
        ("stage.3.learning_rate=1", "there is no stage `3`; available: 1, 2"),
        ("stage.0.learning_rate=1", "there is no stage `0`"),
        ("stage.connector.learning_rate=1", "there is no stage `connector`"),
        ("data.x.weight=1", "there is no source `x`; available: 1 (llava.v1.5), 2 (2024)"),
        ("seed", "expected PATH=VALUE"),
        ("=1", "expected PATH=VALUE"),
        ("seed=", "the value is missing"),
        ("seed=one", "`seed`: input should be a valid integer, got 'one'"),
        ("seed=1.0", "`seed`: input should be a valid integer"),
        ("seed=1 # two", "`seed`: input should be a valid integer, got '1 # two'"),
        ("seed=1 ]\nmax_reject_rate = [ 1", "`seed`: input should be a valid integer"),
        ("seed=1, 2", "`seed`: input should be a valid integer, got '1, 2'"),
        ("seed=" + "9" * 30, "does not fit 64 bits"),
        ("seed=" + "9" * 5000, "`seed`: input should be a valid integer"),
        ("data.2.file=gone.json", "`data.file`: no such file: "),
        ("model.base=gone", "`model.base`: no model at gone"),
        ("stage.2.train=[connector]", "not a TOML value; strings in lists and tables need quotes"),
        ("eval.eval_steps=3", "`eval.file` is missing"),
        ("stage.2.lora.r=0", "`stage.lora.r`: input should be greater than or equal to 1"),
        ("stage.2.per_device_batch_size=3", "`batch_size` 8 is not a multiple of `per_device_batch_size` 3"),
        ("stage.1.epochs=1", "`epochs` and `steps` cannot both be set"),
    ],
)
def test_an_invalid_override_is_reported_as_it_was_given(path, override, words):
    problems = problems_of(path, override)
    assert len(problems) == 1 and words in problems[0], problems
    given = override if "\n" not in override else override.replace("\n", "\\n")
    assert f"--set {given}" in problems[0].replace('"', "")


def test_an_inconsistency_with_the_file_has_the_line_and_the_overrides_that_cause_it(path):
    (problem,) = problems_of(path, "seed=3", "stage.2.batch_size=6")
    assert problem.startswith(f"{path}:16: `stage.per_device_batch_size`: ") and problem.endswith(
        "(with --set stage.2.batch_size=6)"
    )
    (problem,) = problems_of(path, "stage.2.batch_size=6", "stage.2.per_device_batch_size=5")
    assert (
        problem.startswith("--set stage.2.per_device_batch_size=5: ") and "(with --set stage.2.batch_size=6)" in problem
    )


def test_all_problems_of_file_and_overrides_are_reported_at_once(path):
    path.write_text(RECIPE.replace("steps = 5", "steps = 0\nepoch = 1").replace("batch_size = 8", "batch_size = 6"))
    problems = problems_of(
        path,
        "stage.2.learning_rate=fast",
        "stage.9.learning_rate=1",
        "nothing",
        "seed=1",
        "seed=2",
        "stage.2.steps=1.5",
    )
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in problems[:3]] == ["12", "13", "17"], problems
    assert sorted(line.split(":")[0] for line in problems[3:]) == [
        "--set nothing",
        "--set seed=2",
        "--set stage.2.learning_rate=fast",
        "--set stage.2.steps=1.5",
        "--set stage.9.learning_rate=1",
    ]
    assert "set twice, also by --set seed=1" in "\n".join(problems)
    assert "(with" not in "\n".join(problems)  # the inconsistency is in the file itself


@pytest.mark.parametrize("second", ["stage.2.lora.r=4", "stage.2.lora={r=4}"])
def test_a_table_and_one_of_its_keys_cannot_both_be_set(path, second):
    (problem,) = problems_of(path, "stage.2.lora={r=8}", second)
    assert problem.startswith(f"--set {second}: ") and "set twice, also by --set stage.2.lora={r=8}" in problem


def test_a_name_that_is_the_number_of_another_source_is_rejected(path):
    path.write_text(RECIPE.replace('"2024"', '"1"'))
    (problem,) = problems_of(path, "data.1.weight=2")
    assert "`1` matches several sources: 1, 2" in problem
    assert read_recipe(path, ["data.2.weight=2"]).data[1].weight == 2


def test_reported_settings_include_overrides_as_given(path):
    given = ["data.2.file=third.json", "seed=3"]
    settings = settings_as_written(read_recipe(path, given), path, given)
    assert settings["seed"] == 3 and [d["file"] for d in settings["data"]] == ["llava.v1.5.json", "third.json"]
