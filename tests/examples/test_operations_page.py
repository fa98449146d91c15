"""docs/operations.md: every test that it names is there, every kind and code has its line, and its command works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from vidqa.config.settings import OPTIONS, option_name
from vidqa.errors import ERROR_KINDS
from vidqa.pipeline.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_kind_of_error_and_every_exit_code_has_its_line():
    assert set(re.findall(r"^\| `(\w+)` \| ", PAGE.split("## Kinds of error")[1].split("##")[0], re.M)) == set(
        ERROR_KINDS
    )
    codes = re.findall(r"^\| (\d[\d, ]*)", PAGE.split("## Exit codes")[1].split("##")[0], re.M)
    assert {int(code) for line in codes for code in re.findall(r"\d+", line)} >= {0, 1, 2, 3, 4, 130, 143}


def test_options_files_and_metrics_that_it_names_exist():
    known = {f"--{option_name(parameter)}" for options in OPTIONS.values() for parameter in options}
    known |= {"--files"}  # of the tool
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
    for file in re.findall(r"`((?:examples|tools|docs)/[\w./-]+)`", PAGE):
        assert (ROOT / file).exists(), file
    assert set(re.findall(r"vidqa_[a-z_]+", PAGE)) <= set(METRICS)
    (command,) = re.findall(r"```sh\n(.*)\n```", PAGE)
    assert shlex.split(command)[:2] == ["vidqa", "describe"]
