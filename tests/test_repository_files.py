"""CI workflow, pre-commit hooks, issue forms: they parse and run the same commands as `tools/check`."""

from __future__ import annotations

import re
import shlex
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
    assert f'requires-python = ">={versions[0]}"' in project
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert python["cache"] == "pip" and (ROOT / python["cache-dependency-path"]).is_file()


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
