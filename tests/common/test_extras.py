"""Extras: messages and pyproject.toml agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vidqa.common.extras import CONVERT_MODULES, EXPORT_MODULES, install_hint, is_installed, require
from vidqa.errors import UsageError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def packages(extra: str) -> set[str]:
    """Return the names of the packages that an extra installs, those of other extras included."""
    found = set()
    for requirement in EXTRAS[extra]:
        match = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement)
        assert match
        if match[1] == PROJECT["name"]:
            found |= set().union(*(packages(inner) for inner in match[2].split(",")))
        else:
            found.add(match[1])
    return found


def test_the_modules_of_the_extras() -> None:
    assert set(EXPORT_MODULES) == packages("export")
    assert {name.replace("google.protobuf", "protobuf") for name in CONVERT_MODULES} == packages("convert")
    assert {"accelerate", "peft", "pydantic", "matplotlib"} <= packages("train")
    assert {"accelerate", "bitsandbytes"} <= packages("quantize") and "accelerate" in packages("map")
    assert {"tensorboard"} == packages("tensorboard") and {"onnxruntime-gpu"} == packages("cuda")


def test_a_module_that_is_missing_or_inside_a_missing_package() -> None:
    assert is_installed("json") and is_installed("google.protobuf")
    assert not is_installed("no_such_module") and not is_installed("no_such_package.module")


def test_all_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("google.protobuf", "peft"):
        monkeypatch.setitem(sys.modules, name, None)
    require("this", "train", "json", "accelerate")
    with pytest.raises(UsageError) as caught:
        require("this", "convert", "google.protobuf", "accelerate", "peft")
    assert str(caught.value) == (
        "this requires the package protobuf, which is not installed\n"
        "this requires the package peft, which is not installed\n"
        "  try: in the clone of vidqa: pip install -e '.[convert]'"
    )


def test_hints() -> None:
    assert install_hint("train", "quantize").endswith("pip install -e '.[train,quantize]'")
    assert install_hint("train", others=["wandb"]).endswith("pip install -e '.[train]' wandb")
    assert install_hint(others=["wandb", "deepspeed"]) == "pip install wandb deepspeed"


def test_there_is_one_way_to_install_vidqa() -> None:
    """The name of another project must not be installed by following a message or the documentation."""
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    for folder, pattern in (("docs", "*.md"), ("examples", "*.*"), ("vidqa", "*.py"), (".github", "*.*")):
        for path in (ROOT / folder).rglob(pattern):
            if path.suffix in (".md", ".py", ".yml", ".toml", ".sh", ".env"):
                texts[path] = path.read_text(encoding="utf-8")
    assert len(texts) > 200
    extras = set()
    for path, text in texts.items():
        assert not re.search(r"pip install[^\n`&]*\bvidqa\b", text.replace("in the clone of vidqa: pip", "pip")), path
        for group in re.findall(r"pip install -e '?\.\[([\w,]+)\]", text):
            extras |= set(group.split(","))
    assert extras <= set(EXTRAS)


def test_the_name_of_the_distribution_is_not_that_of_the_other_project() -> None:
    assert PROJECT["name"] != "vidqa" and set(PROJECT["scripts"]) == {"vidqa"}


@pytest.mark.slow
def test_an_editable_install_can_be_read_by_type_checkers(tmp_path: Path) -> None:
    """It adds the folder to the import path, not an import hook, which type checkers ignore."""
    project = tmp_path / "clone"
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "vidqa/__init__.py",
        "vidqa/import_path.py",
        "vidqa/py.typed",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    code = "import sys, setuptools.build_meta as backend; backend.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=project, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert len(files) == 1 and files[0].endswith(".pth"), files
        assert archive.read(files[0]).decode().strip() == str(project.resolve())
