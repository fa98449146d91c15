"""vidqa and its child processes import nothing from the working folder, which may hold files from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import vidqa
from vidqa.tables.formats import read_table

pytestmark = pytest.mark.slow

ROOT = Path(vidqa.__file__).parents[1]
#: Text of the console script that pip creates.
SCRIPT = "import sys\nfrom vidqa.cli.main import entry\nsys.exit(entry())\n"


def top_level_modules(code: str, *options: str) -> set[str]:
    """Return the modules that a new Python process has loaded after running some code."""
    command = [sys.executable, *options, "-c", f"{code}; import sys; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


STANDARD = set(sys.stdlib_module_names) | {"sitecustomize", "usercustomize"}
INSTALLED = set(packages_distributions())


@contextmanager
def hostile_folder(folder: Path, names: set[str]) -> Iterator[Path]:
    """Create a folder with modules of these names, and check in the end that none of them was executed."""
    assert {"pickle", "struct", "numpy", "av", "torch", "click", "queue"} <= names
    marks = folder.parent / "executed"
    code = f"open({str(marks)!r}, 'a').write(__name__ + ' ')\nraise SystemExit(99)\n"
    folder.mkdir()
    for name in filter(str.isidentifier, names):
        (folder / f"{name}.py").write_text(code)
    yield folder
    assert not marks.exists(), f"executed: {marks.read_text()}"


@pytest.fixture
def console_script(tmp_path: Path) -> list[str]:
    script = tmp_path / "bin" / "vidqa"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return [sys.executable, str(script)]


def describe(command: list[str], folder: Path, environment: dict[str, str], **variables: str) -> None:
    """Describe the folder from inside, and check that all its files were decoded and answered."""
    table = folder.parent / "table.parquet"
    done = subprocess.run(
        [*command, "describe", ".", "--out", str(table)],
        cwd=folder,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert read_table(table)["status"].to_list() == ["ok"] * 2


@pytest.fixture
def two_clips(make_clip: Callable[..., Path], tmp_path: Path) -> list[Path]:
    return [make_clip(tmp_path / f"{seed}.mp4", seed=seed) for seed in range(2)]


def test_the_console_script(
    tmp_path: Path, environment: dict[str, str], console_script: list[str], two_clips: list[Path]
) -> None:
    with hostile_folder(tmp_path / "downloads", STANDARD | INSTALLED) as folder:
        for clip in two_clips:
            shutil.copy(clip, folder)
        describe(console_script, folder, environment)


def test_python_m_vidqa(tmp_path: Path, environment: dict[str, str], two_clips: list[Path]) -> None:
    """Python itself imports a few modules before it looks for vidqa; `python -P` protects these too."""
    by_python = top_level_modules("import runpy, pkgutil", "-I", "-S") | {"vidqa"}
    with hostile_folder(tmp_path / "downloads", (STANDARD | INSTALLED) - by_python) as folder:
        for clip in two_clips:
            shutil.copy(clip, folder)
        describe([sys.executable, "-m", "vidqa"], folder, environment)


def test_an_empty_entry_in_pythonpath(
    tmp_path: Path, environment: dict[str, str], console_script: list[str], two_clips: list[Path]
) -> None:
    """`PYTHONPATH=$PYTHONPATH:/more` has one if the variable was empty."""
    names = (INSTALLED | {"pickle", "struct", "queue"}) - top_level_modules("pass") - {"vidqa"}
    with hostile_folder(tmp_path / "downloads", names) as folder:
        for clip in two_clips:
            shutil.copy(clip, folder)
        describe(console_script, folder, environment, PYTHONPATH=f":{ROOT}:.")
