"""Packages that only some features need: whether they are installed, and how to install them.

pyproject.toml lists them as extras. vidqa is installed from a clone: on the package index, the name `vidqa` belongs to
another project.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from vidqa.errors import UsageError

#: What the extra `export` installs.
EXPORT_MODULES = ("onnx", "onnxscript")
#: What the extra `convert` installs.
CONVERT_MODULES = (*EXPORT_MODULES, "sentencepiece", "google.protobuf", "huggingface_hub")
#: Modules whose package has another name.
_PACKAGES = {"google.protobuf": "protobuf"}


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that contains it is missing
        return False


def require(purpose: str, extra: str, *modules: str) -> None:
    """Check that the modules that a feature needs are installed.

    Args:
        purpose: the feature, as the subject of the message.
        extra: the extra of vidqa that installs them.
        modules: names to import.

    Raises:
        UsageError: some are missing; the message has their packages and the command that installs the extra.
    """
    missing = [_PACKAGES.get(module, module) for module in modules if not is_installed(module)]
    if missing:
        raise UsageError("\n".join(missing_package(purpose, name) for name in missing), hint=install_hint(extra))


def missing_package(purpose: str, package: str) -> str:
    """Return the message for one missing package."""
    return f"{purpose} requires the package {package}, which is not installed"


def install_hint(*extras: str, others: Sequence[str] = ()) -> str:
    """Return the command that installs extras of vidqa, and other packages.

    Args:
        extras: names of extras in pyproject.toml.
        others: names of packages that no extra contains.
    """
    if not extras:
        return f"pip install {' '.join(others)}"
    return " ".join(["in the clone of vidqa: pip install -e", f"'.[{','.join(extras)}]'", *others])
