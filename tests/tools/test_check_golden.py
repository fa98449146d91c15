"""tools/check_golden.py as a command: its lines, what it says of missing and unknown files, its exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from check_golden import FIXTURES, main

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_one_line_a_fixture_and_a_word_on_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN / "frame_indices.json", tmp_path)
    (tmp_path / "README.md").touch()
    (tmp_path / "other.json").touch()
    assert main([str(tmp_path)]) == 0
    out = lines(capsys)
    assert sum(line.startswith("ok  ") for line in out) == 1
    assert sum(line.startswith("none  ") for line in out) == len(FIXTURES) - 1
    assert "extra other.json: not a fixture, ignored" in out
    assert not any("README" in line for line in out)
    assert out[-1] == "1 fixtures compared, 0 with differences"


def test_a_difference_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((GOLDEN / "frame_indices.json").read_text())
    data["linspace"]["8"]["10"][3] += 1
    (tmp_path / "frame_indices.json").write_text(json.dumps(data))
    assert main([str(tmp_path), "--only", "frame_indices"]) == 1
    out = lines(capsys)
    assert out[0].startswith("MISS  frame_indices")
    assert "differs: linspace n=10 k=8" in out[1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"valley.json": "{}"}, "valley.safetensors: missing"),
        ({"frame_indices.json": "{"}, "stopped by JSONDecodeError"),
        ({"frame_indices.json": '{"fixture": "of another layout"}'}, "MISS  frame_indices"),
        ({}, "0 fixtures compared"),
    ],
)
def test_half_a_fixture_or_nothing(
    files: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main([str(tmp_path)]) == 1
    assert said in "\n".join(lines(capsys))


def test_tensors_that_are_not_those_of_the_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("preprocess.json", "preprocess.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path)
    data = json.loads((tmp_path / "preprocess.json").read_text())
    (tmp_path / "preprocess.json").write_text(json.dumps(data | {"sha256_safetensors": "0" * 64, "stats": {}}))
    assert main([str(tmp_path)]) == 1
    assert "not the file that preprocess.json describes" in "\n".join(lines(capsys))


def test_wrong_usage(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path / "none")], [str(tmp_path), "--only", "gpt"]):
        with pytest.raises(SystemExit) as e:
            main(arguments)
        assert e.value.code == 2
