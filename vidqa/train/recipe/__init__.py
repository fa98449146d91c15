"""Training recipes: a TOML file and `--set` overrides -> a checked, immutable Recipe.

Reading order: definition.py (keys and defaults), load.py (reads the file, reports all problems at once),
overrides.py (`--set PATH=VALUE`), consistency.py (keys that exclude or require each other), requirements.py (packages,
devices and disk space that a recipe needs).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.train.recipe.definition import Recipe, Stage
    from vidqa.train.recipe.load import read_recipe

__all__ = ["Recipe", "Stage", "read_recipe"]

_MODULES = {"Recipe": "definition", "Stage": "definition", "read_recipe": "load"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
