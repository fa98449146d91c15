"""Training recipes: a TOML file and `--set` overrides -> a checked, immutable Recipe.

Reading order: definition.py (keys and defaults), load.py (reads the file, reports all problems at once),
overrides.py (`--set PATH=VALUE`), consistency.py (keys that exclude or require each other), requirements.py (packages,
devices and disk space that a recipe needs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.training.recipe.definition import Recipe, Stage
    from vidqa.training.recipe.load import read_recipe

__all__ = ["Recipe", "Stage", "read_recipe"]

__getattr__ = lazy_exports(__name__, {"Recipe": "definition", "Stage": "definition", "read_recipe": "load"})
