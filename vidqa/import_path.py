"""Keeps the working folder off the import path, because a folder of downloaded videos may hold a `numpy.py`.

Python puts the working folder first on the path for `python -m vidqa`, for `python -c` in a child process, for an empty
entry in PYTHONPATH, and in an interactive session. `vidqa/__init__.py` imports this module before any other, so it may
import only what Python itself has loaded by then: not even `__future__`.
"""

import os
import sys

#: The folder that vidqa is imported from. If vidqa runs from a clone without being installed, it may be the working
#: folder, and then stays on the path.
_HOME = os.path.realpath(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def safe_path(entries: list[str]) -> list[str]:
    """Return the entries of an import path as absolute paths, without the working folder."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return [entry for entry in entries if os.path.isabs(entry)]
    real = os.path.realpath(here)
    absolute = [os.path.join(here, entry) for entry in entries]
    return [entry for entry in absolute if os.path.realpath(entry) != real or real == _HOME]


def child_environment() -> dict[str, str]:
    """Return the environment for a child process that runs Python, in which it ignores the working folder."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if entries := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(safe_path(entries.split(os.pathsep)))
    return environment


def python_command(code: str) -> list[str]:
    """Return a command that runs code with the import path of this process, without the working folder.

    Args:
        code: statements on one line. `sys` is imported.
    """
    path = safe_path([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = sys.argv[1:]; {code}", *path]


def ignore_working_folder() -> None:
    """Take the working folder off the import path of this process and of the Python processes that it starts."""
    sys.path[:] = safe_path(sys.path)
    os.environ.update(child_environment())


def is_program() -> bool:
    """Return True if this process is the command `vidqa` or `python -m vidqa`, not a program that uses the API."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return name in ("vidqa", "vidqa.exe") or (name == "-m" and "vidqa" in sys.orig_argv)
