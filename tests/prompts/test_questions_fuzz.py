"""Damaged question sets: the result is a set, or an error that names the file; never a traceback."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidqa.errors import UsageError
from vidqa.prompts.questions import load_questions

GOOD = """[[question]]
id = "what"
text = "What happens?"

[[question]]
id = "many"
text = "How many?"
type = "choice"
choices = ["one", "two"]
max_new_tokens = 16
"""
VALUES = [
    "1",
    "-1",
    "true",
    "1e999",
    "nan",
    "[]",
    '""',
    '"x"',
    "{a = 1}",
    "1979-05-27",
    '["a", 1]',
    "[[1]]",
    '"\\u0000"',
    "1" * 5000,
    "0x" + "f" * 5000,
    "[" * 9000 + "]" * 9000,
]
KEYS = ["id", "text", "type", "choices", "max_new_tokens", "color", "question", '""', '"a.b"', '"two\\nlines"']

QUICK = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def load(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        questions = load_questions(path)
    except UsageError as error:
        assert "fuzz.toml" in error.what
    else:
        assert questions and all(q.id and q.text for q in questions)


@QUICK
@given(lines=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=4))
def test_any_value_under_any_key(lines: list[tuple[int, str, str]], tmp_path: Path) -> None:
    text = GOOD.splitlines()
    for at, key, value in lines:
        text.insert(at, f"{key} = {value}")
    load(tmp_path / "fuzz.toml", "\n".join(text).encode())


@QUICK
@given(seed=st.integers(0, 2**32), piece=st.binary(max_size=6))
@example(seed=0, piece=b"\xff\xfe")
def test_any_damage(seed: int, piece: bytes, tmp_path: Path) -> None:
    chance, data = random.Random(seed), bytearray(GOOD.encode())
    for _ in range(chance.randrange(1, 4)):
        a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        data[a : chance.choice((a, min(b, a + 9)))] = piece
    load(tmp_path / "fuzz.toml", bytes(data))


@QUICK
@given(key=st.sampled_from([*KEYS[:5], "color"]), value=st.sampled_from(VALUES))
def test_an_invalid_value_is_reported_with_its_key(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.toml"
    lines = {"id": '"a"', "text": '"What?"'} | {key: value}
    path.write_text("[[question]]\n" + "\n".join(f"{k} = {v}" for k, v in lines.items()))
    try:
        load_questions(path)
    except UsageError as error:
        assert "fuzz.toml" in error.what
        assert f"{key}`" in error.what or "nested too deeply" in error.what or "not TOML" in error.what
