"""A package that is not installed is named with its extra, before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from vidqa.common.extras import CONVERT_MODULES, install_hint


class Done(Protocol):
    """Exit code and output of a command, from the fixture `vidqa`."""

    code: int
    out: str
    err: str


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Function that makes modules appear to be missing."""

    def block(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return block


def is_refused(done: Done, hint: str, *packages: str) -> bool:
    """Return whether a command did nothing but name the missing packages and the command that installs them."""
    assert done.code == 2, done.err
    lines = done.err.splitlines()
    assert all(f"requires the package {name}, which is not installed" in done.err for name in packages), done.err
    return lines[-1] == f"  try: {hint}" and len(lines) == 1 + len(packages)


@pytest.mark.parametrize("missing", ["pydantic", "accelerate"])
@pytest.mark.parametrize("option", [(), ("--check-data",)])
def test_train(
    missing: str, option: tuple[str, ...], vidqa: Callable[..., Done], without: Callable[..., None], tmp_path: Path
) -> None:
    without(missing)
    done = vidqa("train", tmp_path / "recipe.toml", "--out", tmp_path / "o", *option)  # before the recipe is read
    assert is_refused(done, install_hint("train"), missing)


@pytest.mark.parametrize("missing", CONVERT_MODULES)
def test_pull(
    missing: str,
    vidqa: Callable[..., Done],
    without: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*_: object) -> None:
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr("vidqa.conversion.published._fetch", download)
    without(missing)
    done = vidqa("models", "pull", "video-llava-7b", "--out", tmp_path / "model")
    assert is_refused(done, install_hint("convert"), missing.replace("google.protobuf", "protobuf"))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_convert(missing: str, vidqa: Callable[..., Done], without: Callable[..., None], tmp_path: Path) -> None:
    without(missing)
    (tmp_path / "checkpoint").mkdir()
    done = vidqa("models", "convert", tmp_path / "checkpoint", "--out", tmp_path / "model")
    assert is_refused(done, install_hint("convert"), missing)


@pytest.mark.parametrize(
    ("options", "packages", "extra"),
    [
        (("--quantize", "4bit"), ("bitsandbytes", "accelerate"), "quantize"),
        (("--quantize", "8bit"), ("accelerate",), "quantize"),
        (("--device", "map"), ("accelerate",), "map"),
    ],
)
@pytest.mark.parametrize("command", ["describe", "dry-run", "ask", "chat"])
def test_options_of_the_language_model(
    command: str,
    options: tuple[str, ...],
    packages: tuple[str, ...],
    extra: str,
    clips: Path,
    vidqa: Callable[..., Done],
    without: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)  # appears to be installed
    without(*packages)
    table = tmp_path / "t.parquet"
    arguments = {
        "describe": ("describe", clips, "--out", table),
        "dry-run": ("describe", clips, "--out", table, "--dry-run"),
        "ask": ("ask", clips / "a.mp4", "What?"),
        "chat": ("chat", clips / "a.mp4"),
    }[command]
    assert is_refused(vidqa(*arguments, *options), install_hint(extra), *packages)
    assert not (tmp_path / "cache").exists() and not table.exists()


def test_an_adapter(
    tiny_bundle: Path,
    clips: Path,
    vidqa: Callable[..., Done],
    without: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bundle whose LoRA adapter is not merged."""
    monkeypatch.setattr("vidqa.pipeline.run.loaded_model.ADAPTER_FOLDER", ".")  # a folder that exists
    without("peft")
    done = vidqa("ask", clips / "a.mp4", "What?")
    assert is_refused(done, install_hint("train"), "peft")
    assert vidqa("encode", clips / "a.mp4").code == 0
