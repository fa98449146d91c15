"""CI workflow, `tools/check`, pre-commit hooks and issue forms parse, and run the same commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_ci_runs_the_test_command_on_every_supported_python() -> None:
    workflow = load(".github/workflows/ci.yml")
    assert {"push", "pull_request"} == set(workflow[True])  # YAML 1.1 reads the key `on` as true
    (job,) = workflow["jobs"].values()
    versions = job["strategy"]["matrix"]["python-version"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert versions == re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    first_unsupported = f"3.{int(versions[-1].removeprefix('3.')) + 1}"
    assert f'requires-python = ">={versions[0]},<{first_unsupported}"' in project
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert python["cache"] == "pip" and (ROOT / python["cache-dependency-path"]).is_file()


#: Stands for the Python of the machine and of virtual environments; logs its arguments.
STUB = """#!/bin/sh
echo "$0 $*" >> "{log}"
case "$*" in
    *version_info.minor*) echo {minor} ;;
    *-m\\ venv*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip" ;;
    *-m\\ pytest*) echo "smoke tests"; exit {smoke} ;;
esac
"""


@pytest.mark.parametrize(
    ("newer", "smoke", "suite", "status"),
    [(True, 0, 0, 0), (True, 1, 0, 1), (True, 0, 1, 1), (True, 1, 1, 1), (False, 1, 0, 0), (False, 0, 1, 1)],
)
def test_ci_fails_with_the_smoke_tests_and_with_the_suite(
    tmp_path: Path, newer: bool, smoke: int, suite: int, status: int
) -> None:
    clone, programs, log = tmp_path / "clone", tmp_path / "bin", tmp_path / "log"
    for folder in (clone / ".ci", programs):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", clone / ".ci" / "run")
    shutil.copy(ROOT / "pyproject.toml", clone)
    (clone / "README.md").write_text(f"<!-- test command -->\n```sh\necho suite in .venv && exit {suite}\n```\n")
    for name, minor in (("python3", 11), *([("python3.13", 13), ("python3.12", 12)] if newer else [])):
        (programs / name).write_text(STUB.format(log=log, minor=minor, smoke=smoke))
        (programs / name).chmod(0o755)
    for name in ("chmod", "cp", "dirname", "grep", "mkdir", "mktemp", "rm", "sed", "sh", "sort"):
        (programs / name).symlink_to(str(shutil.which(name)))  # no other Python is on PATH
    environment = {"PATH": str(programs), "PYENV_ROOT": str(tmp_path / "pyenv"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([clone / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("suite in ") and lines[-1].endswith("/venv") and ".venv" not in lines[-1]
    assert ("smoke tests" in lines) == newer and ("no smoke tests: " in done.stdout) != newer
    assert ("THE SMOKE TESTS FAILED" in done.stdout) == (newer and smoke == 1)
    assert f"{programs}/python3.12" not in log.read_text()  # the newest is used
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "clone", "log"]  # nothing is left behind


def checks(folder: Path, *options: str) -> list[str]:
    """Return the commands that `tools/check` runs, from a Python that only prints its arguments."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nprintf "[%s]" "$@"\necho\n')
    python.chmod(0o755)
    command = [str(ROOT / "tools" / "check"), *options]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_check_command_passes_options_to_pytest(tmp_path: Path) -> None:
    *linters, words, tests = checks(tmp_path, "-k", "cache or table", "-x")
    assert linters == ["[-m][ruff][check][.]", "[-m][ruff][format][--check][.]", "[-m][mypy]"]
    assert words == "[tools/check_words.py][-q]"
    assert tests == "[-m][pytest][-q][-n][2][--dist][loadfile][-k][cache or table][-x]"
    assert (
        checks(tmp_path, "-x", "--fast")[-1]
        == "[-m][pytest][-q][-n][2][--dist][loadfile][-m][not slow and not parity][-x]"
    )
    assert "--fast" in "".join(checks(tmp_path, "--help"))


def test_pre_commit_hooks_are_local_and_match_tools_check() -> None:
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "mypy", "words"}
    check = (ROOT / "tools" / "check").read_text(encoding="utf-8")
    for name, words in (("ruff", "-m ruff check"), ("ruff-format", "-m ruff format"), ("mypy", "-m mypy")):
        assert words in hooks[name]["entry"] and words in check
    for hook in hooks.values():
        assert hook["language"] == "system" and shlex.split(hook["entry"])[0] == "python"
    assert "--strict" not in hooks["words"]["entry"] and hooks["words"]["verbose"]


@pytest.mark.parametrize("name", ["bug_report.yml", "feature_request.yml"])
def test_issue_forms_are_complete(name: str) -> None:
    form = load(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) >= 3
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])
    assert any(field["validations"]["required"] for field in form["body"])


def test_the_pull_request_template_names_commands_that_exist() -> None:
    text = (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
    tools = set(re.findall(r"tools/\w+(?:\.py)?", text))
    assert tools and all((ROOT / tool).is_file() for tool in tools)
