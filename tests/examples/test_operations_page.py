"""Check docs/operations.md against the code, and that the tests named in docs/notes/robustness.md exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from vidqa.config.settings import OPTIONS, option_name
from vidqa.errors import ERROR_KINDS
from vidqa.pipeline.monitor.prometheus import METRICS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ROBUSTNESS = (ROOT / "docs" / "notes" / "robustness.md").read_text(encoding="utf-8")


def test_named_tests_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", ROBUSTNESS)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_error_kind_and_exit_code_is_listed():
    assert set(re.findall(r"^\| `(\w+)` \| ", PAGE.split("## Error kinds")[1].split("##")[0], re.M)) == set(ERROR_KINDS)
    codes = re.findall(r"^\| (\d[\d, ]*)", PAGE.split("## Exit codes")[1].split("##")[0], re.M)
    assert {int(code) for line in codes for code in re.findall(r"\d+", line)} >= {0, 1, 2, 3, 4, 130, 143}


def test_named_options_files_and_metrics_exist():
    known = {f"--{option_name(parameter)}" for options in OPTIONS.values() for parameter in options}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
    for file in re.findall(r"`((?:examples|tools|docs)/[\w./-]+)`", PAGE):
        assert (ROOT / file).exists(), file
    assert set(re.findall(r"vidqa_[a-z_]+", PAGE)) <= set(METRICS)
    (command,) = re.findall(r"```sh\n(.*)\n```", PAGE)
    assert shlex.split(command)[:2] == ["vidqa", "describe"]
