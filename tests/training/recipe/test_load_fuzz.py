"""Random recipes are either valid, or an error with file, line and key; never a traceback."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidqa.errors import UsageError
from vidqa.training.recipe.definition import Recipe
from vidqa.training.recipe.load import read_recipe

GOOD = """\
seed = 1
[model]
base = "demo"
connector = "keep"
[[data]]
file = "data.json"
media = "clips"
weight = 0.5
[eval]
file = "data.json"
eval_steps = 10
[hardware]
precision = "fp32"
[output]
save_steps = 50
[logging]
logging_steps = 5
[[stage]]
kind = "connector"
steps = 10
betas = [0.9, 0.95]
[[stage]]
kind = "instruct"
train = ["connector", "lora"]
data = ["data"]
per_device_batch_size = "auto"
[stage.lora]
r = 4
targets = ["q_proj"]
"""
LINES = GOOD.splitlines()
KEYS = sorted(
    {line.split(" = ")[0] for line in LINES if " = " in line}
    | {"model", "data", "stage", "eval", "hardware", "output", "logging", "lora", "name", "prompt", "freeze", "format"}
    | {"epochs", "batch_size", "fsdp", "fsdp_config", "deepspeed", "embedding_tokens", "packing", "max_reject_rate"}
    | {"colour", '""', '"a.b"', '"\\u0000"', '"two\\nlines"', "stage.lora.r", "model.base"}
)
VALUES = [
    *("0", "1", "-1", "true", "1e999", "nan", "1" * 30, "1" * 5000, "0x" + "f" * 40, "0x" + "f" * 5000),
    *('""', '"x"', '"auto"', "'''a\nb'''", "[" * 90 + "]" * 90, "[" * 9000 + "]" * 9000),
    *("[]", "[[]]", '["a", 1]', "[1, 2, 3]", "{}", "{a = 1}", "[{}]", '[{file = "data.json"}, 7]'),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '"\\u0000"', '"a\\u0000b"', '"\\u001b[2J"', '"ü"', '"🎬"'),
    *('"~no-such-user/x"', '"../.."', '"/"', f'"{"x" * 300}"', f'"{"d/" * 3000}"', '"data.json/x"', '"clips"'),
    *('"connector"', '["connector", "llm"]', '["lora"]', '"bf16"', "{kind = 'connector', lora = {r = 0, q = 1}}"),
]  # fmt: skip
QUICK = settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)


def read(folder: Path, data: bytes) -> list[str]:
    """The problems of a recipe; empty if it is valid."""
    (folder / "clips").mkdir(exist_ok=True)
    (folder / "data.json").write_text("[]")
    path = folder / "fuzz.toml"
    path.write_bytes(data)
    try:
        recipe = read_recipe(path)
    except UsageError as error:
        problems = error.what.split("\n")
        for line in problems:
            match = re.match(rf"{re.escape(str(path))}:(\d+): .*(`|not TOML|not UTF-8|nested)", line)
            assert match and 1 <= int(match[1]) <= data.count(b"\n") + 1, error.what
        return problems
    assert isinstance(recipe, Recipe) and recipe.stage and recipe.data
    for name in recipe.stage_names():  # folders of the run
        (folder / name).mkdir(exist_ok=True)
    return []


def test_the_recipe_that_is_modified_below_is_valid(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.encode()) == []


@QUICK
@given(
    lines=st.lists(
        st.tuples(st.integers(0, len(LINES)), st.sampled_from(KEYS), st.sampled_from(VALUES)), min_size=1, max_size=3
    )
)
def test_any_value_under_any_key(lines: list[tuple[int, str, str]], tmp_path: Path) -> None:
    text = list(LINES)
    for at, key, value in lines:
        text.insert(at, f"{key} = {value}")
    read(tmp_path, "\n".join(text).encode())


@QUICK
@given(at=st.sampled_from([i for i, line in enumerate(LINES) if " = " in line]), value=st.sampled_from(VALUES))
def test_an_invalid_value_is_reported_with_its_key(at: int, value: str, tmp_path: Path) -> None:
    text = list(LINES)
    key = text[at].split(" = ")[0]
    text[at] = f"{key} = {value}"
    problems = read(tmp_path, "\n".join(text).encode())
    # A valid value may be inconsistent with another key, which is reported with it.
    if problems:
        assert any(key in line or "nested" in line or "not TOML" in line for line in problems), problems


@QUICK
@given(seed=st.integers(0, 2**32), piece=st.binary(max_size=6) | st.sampled_from([b"[[", b"\r", b"\0", b'"""', b"."]))
@example(seed=0, piece=b"\xff\xfe")
def test_any_damage(seed: int, piece: bytes, tmp_path: Path) -> None:
    chance, data = random.Random(seed), bytearray(GOOD.encode())
    for _ in range(chance.randrange(1, 4)):
        a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        data[a : chance.choice((a, min(b, a + 30)))] = piece
    read(tmp_path, bytes(data))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_encoding_and_line_end(encoding: str, end: str, tmp_path: Path) -> None:
    problems = read(tmp_path, ("# Übung\n" + GOOD).replace("\n", end).encode(encoding))
    assert bool(problems) == (encoding != "utf-8-sig" or end == "\r")
