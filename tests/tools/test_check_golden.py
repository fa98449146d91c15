"""tools/check_golden.py: its output, missing and unexpected files, exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from check_golden import FIXTURES, main

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_prints_a_line_per_fixture_and_lists_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_difference_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((GOLDEN / "frame_indices.json").read_text())
    data["linspace"]["8"]["10"][3] += 1
    (tmp_path / "frame_indices.json").write_text(json.dumps(data))
    assert main([str(tmp_path), "--only", "frame_indices"]) == 1
    out = lines(capsys)
    assert out[0].startswith("MISS  frame_indices")
    assert "differs: linspace n=10 k=8" in out[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"valley.json": "{}"}, "valley.safetensors: missing"),
        ({"frame_indices.json": "{"}, "stopped by JSONDecodeError"),
        ({"frame_indices.json": '{"fixture": "of another layout"}'}, "MISS  frame_indices"),
        ({}, "0 fixtures compared"),
    ],
)
def test_incomplete_fixtures_fail(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main([str(tmp_path)]) == 1
    assert message in "\n".join(lines(capsys))


def test_tensors_that_do_not_match_the_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
