"""The working folder is not on the import path, in whatever form it was there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidqa import import_path
from vidqa.import_path import child_environment, python_command, safe_path

pytestmark = pytest.mark.smoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that end the process."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("pickle", "struct", "numpy", "sitecustomize"):
        (folder / f"{name}.py").write_text("import os; os._exit(99)")
    monkeypatch.chdir(folder)
    return folder


def test_the_working_folder_is_left_out_in_every_form(here: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(here)
    forms = ["", ".", "./", str(here), f"{here}/", str(link), "../here", f"{here}/../here"]
    assert safe_path([*forms, "/usr/lib/python3"]) == ["/usr/lib/python3"]


def test_folders_inside_stay(here: Path) -> None:
    """For example a virtual environment. Relative entries become absolute."""
    packages = f"{here}/.venv/lib/python3/site-packages"
    assert safe_path([packages, "lib", ".."]) == [packages, f"{here}/lib", f"{here}/.."]


def test_the_folder_of_vidqa_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone in which vidqa runs without being installed."""
    monkeypatch.setattr(import_path, "_HOME", str(here.resolve()))
    assert safe_path(["", str(here)]) == [f"{here}/", str(here)]


def test_a_working_folder_that_was_removed(here: Path) -> None:
    for file in here.iterdir():
        file.unlink()
    here.rmdir()
    assert safe_path(["", "lib", "/usr/lib/python3"]) == ["/usr/lib/python3"]


@pytest.mark.parametrize("variable", ["", ".", ":", ":/nowhere", None])
def test_a_child_process_imports_nothing_from_it(
    here: Path, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend("")
    if variable is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", variable)
    more = str(here.parent / "more: a")  # an entry that a variable could not hold
    monkeypatch.setattr(sys, "path", [*sys.path, more])
    command = python_command("import numpy, pickle, struct; print(sys.path, numpy.__file__)")
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert more in done.stdout and f"'{here}'" not in done.stdout


def test_python_that_a_child_process_starts_ignores_it_too(here: Path) -> None:
    code = "import os, subprocess; subprocess.run([sys.executable, '-c', 'import pickle'], check=True)"
    done = subprocess.run(python_command(code), env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_import_path_of_a_program_that_uses_vidqa_stays(here: Path) -> None:
    code = "import sys; before = sys.path[:]; import vidqa; assert sys.path == before, sys.path"
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(import_path.__file__))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
