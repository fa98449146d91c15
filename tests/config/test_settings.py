"""Settings: flag beats variable beats file (the flag's part is click's), and everything wrong is said at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidqa.config import load_settings, settings_id
from vidqa.config.settings import OPTIONS, option_name, variable_name
from vidqa.config.toml_lines import read_toml
from vidqa.errors import UsageError
from vidqa.records import Question


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the user who runs the tests."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("platformdirs.user_config_path", lambda *a, **k: tmp_path / "user")


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_set_gives_nothing() -> None:
    settings = load_settings(environ={})
    assert not settings.get("describe") and not settings.get("cache")


def test_top_table_and_variable_in_this_order(tmp_path: Path) -> None:
    path = written(
        tmp_path / "vidqa.toml",
        """
        timeout = 5
        batch-size = "auto"
        json = true
        [describe]
        timeout = 6.5
        questions = ["caption", "detail"]
        segment = 10
        [cache]
        quiet = true
        [cache.prune]
        max_size = "9GB"
        """,
    )
    settings = load_settings(path, {})
    assert settings["ask"] == {"timeout": 5, "batch_size": "auto", "as_json": True}
    assert settings["describe"] == {
        "timeout": 6.5, "batch_size": "auto", "as_json": True, "questions": ["caption", "detail"], "segment": 10,
    }  # fmt: skip
    assert settings["cache"]["prune"] == {"as_json": True, "quiet": True, "max_size": "9GB"}
    assert settings["cache"]["stats"] == {"as_json": True, "quiet": True}
    changed = load_settings(path, {"VIDQA_TIMEOUT": "7", "VIDQA_QUESTIONS": "scene, x.toml", "VIDQA_QUIET": "no"})
    assert changed["describe"]["timeout"] == changed["ask"]["timeout"] == 7.0
    assert changed["describe"]["questions"] == ["scene", "x.toml"]
    assert changed["cache"]["prune"]["quiet"] is False


def test_every_option_has_a_variable(tmp_path: Path) -> None:
    right = {
        "out": "t.csv", "questions": "caption", "ask": "Why?", "max_new_tokens": "3", "retry": "failed",
        "segment": "whole", "progress": "lines",
        "batch_size": "4", "timeout": "1.5", "model": "demo", "device": "cpu", "cache_dir": "c", "max_size": "1GB",
        "older_than": "3d", "top": "5", "log": "a.log", "metrics": "a.prom", "dtype": "float16", "compat": "original",
        "quantize": "4bit", "encode": "on-the-fly", "resume": "never", "seconds": "2", "n_questions": "4",
        "exclude": "drafts/,*.tmp.mp4", "include": "*.mp4", "newer_than": "1d", "min_duration": "5", "limit": "10",
        "max_duration": "1h30m", "files_from": "-", "sample": "20", "seed": "0",
        **dict.fromkeys(
            (
                "as_json", "check_data", "delete", "dry_run", "log_json", "null", "prune_missing", "quiet",
                "spreadsheet", "strict", "verbose",
            ),
            "true",
        ),
    }  # fmt: skip
    settings = load_settings(environ={variable_name(p): v for p, v in right.items()})
    for command, options in OPTIONS.items():
        found: Any = settings
        for word in command.split():
            found = found.get(word, {})
        own = {"older_than"} if command == "cache prune" else set()  # set by its own table only
        assert set(found) == set(options) - own
    assert settings["describe"]["max_new_tokens"] == 3 and settings["describe"]["verbose"] is True
    assert settings["describe"]["cache_dir"] == "c" and settings["ask"]["batch_size"] == 4
    assert settings["describe"]["exclude"] == ["drafts/", "*.tmp.mp4"] and settings["search"]["seed"] == 0
    assert (option_name("as_json"), variable_name("as_json")) == ("json", "VIDQA_JSON")
    assert (variable_name("cache_dir"), variable_name("batch_size")) == ("VIDQA_CACHE", "VIDQA_BATCH_SIZE")


def test_paths_in_a_file_are_relative_to_it_and_names_stay_names(tmp_path: Path) -> None:
    path = written(
        tmp_path / "user" / "vidqa.toml",
        'model = "demo"\ncache-dir = "cache"\n[describe]\nout = "/abs/t.csv"\nquestions = ["caption", "my.toml"]\n'
        'files-from = "list.txt"\n'
        '[ask]\nmodel = "models/big"\n[encode]\ncache-dir = "~/c"\nfiles-from = "-"\n',
    )
    settings = load_settings(path, {})
    assert settings["describe"]["model"] == "demo"
    assert settings["describe"]["cache_dir"] == str(tmp_path / "user" / "cache")
    assert settings["describe"]["out"] == "/abs/t.csv"
    assert settings["describe"]["questions"] == ["caption", str(tmp_path / "user" / "my.toml")]
    assert settings["ask"]["model"] == str(tmp_path / "user" / "models/big")
    assert settings["encode"]["cache_dir"] == str(Path.home() / "c")
    assert settings["describe"]["files_from"] == str(tmp_path / "user" / "list.txt"), "a list is a path"
    assert settings["encode"]["files_from"] == "-", "but not stdin"


def test_which_file_is_read(tmp_path: Path) -> None:
    written(tmp_path / "user" / "vidqa.toml", "timeout = 1")
    assert load_settings(environ={})["ask"]["timeout"] == 1
    written(tmp_path / "here" / "vidqa.toml", "timeout = 2")
    assert load_settings(environ={})["ask"]["timeout"] == 2
    named = written(tmp_path / "named.toml", "timeout = 3")
    assert load_settings(environ={"VIDQA_CONFIG": str(named)})["ask"]["timeout"] == 3
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings(environ={"VIDQA_CONFIG": str(tmp_path / "none.toml")})


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path / "vidqa.toml",
        """timeout = "soon"
modle = "demo"
[describe]
questions = "caption"
segment = "scenes"
max-new-tokens = true
[ask]
questions = ["caption"]
[descibe]
out = "x.csv"
""",
    )
    with pytest.raises(UsageError) as caught:
        load_settings(path, {"VIDQA_BATCH_SIZE": "many", "VIDQA_MODLE": "demo", "VIDQA_QUIET": "perhaps"})
    assert caught.value.exit_code == 2
    assert sorted(caught.value.what.splitlines()) == sorted(
        [
            f"{path}:1: `timeout` must be a positive number of seconds, not 'soon'",
            f"{path}:2: unknown key `modle`; did you mean `model`?",
            f"{path}:9: unknown key `descibe`; did you mean `describe`?",
            f"{path}:4: `questions` must be a list of names or files, not 'caption'",
            f"{path}:5: `segment` must be a positive number of seconds or \"whole\", not 'scenes'",
            f"{path}:6: `max-new-tokens` must be a whole number of at least 1, not True",
            f"{path}:8: unknown key `ask.questions`",
            "variable VIDQA_BATCH_SIZE must be a whole number of at least 1 or \"auto\", not 'many'",
            "unknown variable VIDQA_MODLE; did you mean `VIDQA_MODEL`?",
            "variable VIDQA_QUIET must be true or false, not 'perhaps'",
        ]
    )


def test_a_command_that_is_no_table(tmp_path: Path) -> None:
    path = written(tmp_path / "vidqa.toml", "\ndescribe = 5\n")
    with pytest.raises(UsageError, match=r":2: `describe` is a command and must be a table: \[describe\]"):
        load_settings(path, {})


def test_questions_by_their_text(tmp_path: Path) -> None:
    """The table `[ask]` has the options of the command `ask`, and the list `ask` is the option of `describe`."""
    path = written(tmp_path / "vidqa.toml", 'ask = ["Is it a car, or a bus?"]\n[describe]\nout = "t.csv"\n')
    assert load_settings(path, {})["describe"]["ask"] == ["Is it a car, or a bus?"]
    written(path, '[describe]\nask = ["Who?", "Why?"]\n[ask]\ntimeout = 5\n')
    settings = load_settings(path, {})
    assert settings["describe"]["ask"] == ["Who?", "Why?"] and settings["ask"] == {"timeout": 5}
    variable = {"VIDQA_ASK": "Is it a car, or a bus?\nWhy?\n"}
    assert load_settings(path, variable)["describe"]["ask"] == ["Is it a car, or a bus?", "Why?"]
    for wrong in ('ask = "Why?"', 'ask = [""]', "ask = 5"):
        written(path, f"[describe]\n{wrong}\n")
        with pytest.raises(UsageError, match="`ask` must be a list of questions"):
            load_settings(path, {})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("TIMEOUT", "0"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "inf"),
        ("SEGMENT", "-1"),
        ("MAX_NEW_TOKENS", "1.5"),
        ("RETRY", "sometimes"),
        ("QUESTIONS", "a,,b"),
    ],
)
def test_bad_variables(name: str, bad: str) -> None:
    with pytest.raises(UsageError, match=f"VIDQA_{name} must be"):
        load_settings(environ={f"VIDQA_{name}": bad})


def test_an_empty_variable_is_not_set() -> None:
    assert not load_settings(environ={"VIDQA_MODEL": "", "VIDQA_REQUIRE_GPU": "1", "OTHER": "x"}).get("describe")


def test_lines_of_keys(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.toml",
        '''# 1
top = """
[no.table]
x = 1
""" # 5
[a.b]  # 6
"quo=ted" = ["""
]""", {z = 1}]
c.d = 2  # 9
[[list]]
[[list]]
k = 'x # y'  # 12
[list.inner]
m = 1  # 14
[[list.deep]]
n = [  # 16
  1,
] ; '''.replace(" ; ", "\n"),
    )
    file = read_toml(path)
    where = {
        ("top",): 2, ("a", "b"): 6, ("a", "b", "quo=ted"): 7, ("a", "b", "c", "d"): 9, ("list", 0): 10, ("list", 1): 11,
        ("list", 1, "k"): 12, ("list", 1, "inner", "m"): 14, ("list", 1, "deep", 0, "n"): 16, ("list", 0, "no"): 10,
        ("nowhere",): 1, ("a", "b", "quo=ted", 1, "z"): 7,
    }  # fmt: skip
    assert {place: int(file.where(*place).rpartition(":")[2]) for place in where} == where
    assert not {("no", "table"), ("x",)} & file.lines.keys()


GENERATION = {"max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop": []}


def test_settings_id_changes_with_what_changes_answers() -> None:
    q = Question("q", "Why?")
    one = settings_id(None, GENERATION, q)
    assert len(one) == 16 and int(one, 16) >= 0
    different = {
        settings_id(10.0, GENERATION, q),
        settings_id(None, GENERATION | {"max_new_tokens": 64}, q),
        settings_id(None, GENERATION | {"stop": ["."]}, q),
        settings_id(None, GENERATION | {"temperature": 0.7}, q),
        settings_id(None, GENERATION | {"temperature": 0.7, "seed": 1}, q),
        settings_id(None, GENERATION, Question("q", "Why?", "yes_no")),
        settings_id(None, GENERATION, Question("q", "Why?", "choice", ("a", "b"))),
        settings_id(None, GENERATION, Question("q", "Why?", "choice", ("b", "a"))),
    }
    assert len(different) == 8 and one not in different


def test_settings_id_stays_with_what_does_not() -> None:
    one = settings_id(None, GENERATION, Question("q", "Why?"))
    assert settings_id(None, dict(reversed(GENERATION.items())), Question("other", "How?")) == one
    assert settings_id(None, GENERATION | {"seed": 7, "top_p": 0.5}, Question("q", "Why?")) == one  # greedy
    assert settings_id(None, GENERATION | {"max_new_tokens": 9}, Question("q", "Why?", max_new_tokens=128)) == one
    assert settings_id(10, GENERATION, Question("q", "?")) == settings_id(10.0, GENERATION, Question("q", "?"))


JUNK = [
    *(
        "0",
        "-1",
        "true",
        "1e999",
        "nan",
        "1" * 30,
        "1" * 5000,
        "0x" + "f" * 5000,
        '""',
        '"x"',
        "[]",
        "[[]]",
        '["a", 1]',
    ),
    *("{}", "{a = 1}", "[{}]", "1979-05-27", '"\\u0000"', '["a\\u0000b"]', '"\\u001b[2J"', "[" * 90 + "]" * 90),
    *('"~nobody-of-this-name/x"', f'"{"x" * 300}"', "{out = 7}", "{prune = {max-size = 1}}"),
]
NAMES = [
    "model",
    "out",
    "questions",
    "batch-size",
    "timeout",
    "describe",
    "cache",
    "log",
    "retry",
    '"two\\nlines"',
    "a.b",
]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    top=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(JUNK), max_size=3),
    inner=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(JUNK), max_size=3),
    table=st.sampled_from(["describe", "cache", "cache.prune", "nothing"]),
)
def test_any_value_under_any_key(top: dict[str, str], inner: dict[str, str], table: str, tmp_path: Path) -> None:
    lines = [f"{k} = {v}" for k, v in top.items()] + [f"[{table}]"] + [f"{k} = {v}" for k, v in inner.items()]
    path = written(tmp_path / "fuzz.toml", "\n".join(lines))
    try:
        load_settings(path, environ={})
    except UsageError as error:
        for line in error.what.split("\n"):
            assert re.match(rf"{re.escape(str(path))}:\d+: .*(`|not TOML|nested)", line), error.what


def test_an_age_of_files_never_becomes_the_age_of_cache_entries_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "vidqa.toml"
    path.write_text('older-than = "1d"\n')
    found = load_settings(path, {"VIDQA_OLDER_THAN": "2d"})
    assert found["describe"]["older_than"] == "2d" and not found["cache"]
    path.write_text('[cache.prune]\nolder-than = "90d"\n')
    assert load_settings(path, {"VIDQA_OLDER_THAN": "2d"})["cache"]["prune"]["older_than"] == "90d"
