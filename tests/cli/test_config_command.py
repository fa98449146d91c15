"""`vidqa config show`: every setting, its value, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vidqa.cli.main import run
from vidqa.config.settings import OPTIONS, option_name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_a, **_k: tmp_path / "user")
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Return the other cells of each printed line by the first one."""
    assert run(["config", "show"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    return {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}


def test_defaults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = shown(capsys)
    assert table["SETTING"] == ["VALUE", "FROM"]
    assert table["model"] == ["demo", "default"] and table["batch-size"] == ["auto", "default"]
    assert table["bench.max-new-tokens"] == ["64", "default"]
    assert table["cache-dir"][0].endswith("vidqa") and table["quiet"] == ["false", "default"]
    assert table["log"] == ["not set", "default"]


def test_files_and_variables(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "vidqa.toml").write_text(
        'timeout = 5\n[describe]\n\nquestions = ["caption", "detail"]\nsegment = 10\n[cache.prune]\nmax-size = "9GB"\n'
    )
    monkeypatch.setenv("VIDQA_MODEL", "other")
    table = shown(capsys)
    assert table["timeout"] == ["5", "vidqa.toml:1"]
    assert table["questions"] == ["caption, detail", "vidqa.toml:4"]
    assert table["describe.segment"] == ["10", "vidqa.toml:5"] and table["ask.segment"] == ["whole", "default"]
    assert table["max-size"] == ["9GB", "vidqa.toml:7"]
    assert table["model"] == ["other", "variable VIDQA_MODEL"]


def test_json_has_every_setting_of_every_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "vidqa.toml").write_text("[ask]\nstrict = true\n")
    assert run(["config", "show", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    listed = {(one["command"], one["setting"]) for one in found}
    assert listed == {(command, option_name(name)) for command, options in OPTIONS.items() for name in options}
    (strict,) = [one for one in found if (one["command"], one["setting"]) == ("ask", "strict")]
    assert strict["value"] is True and strict["source"] == "vidqa.toml:2"


def test_invalid_settings_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "vidqa.toml").write_text("modle = 1\n")
    assert run(["config", "show"]) == 2
    assert "vidqa.toml:1: unknown key `modle`; did you mean `model`?" in capsys.readouterr().err
