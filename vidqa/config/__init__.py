"""Settings: vidqa.toml and VIDQA_* variables become defaults for the options of commands.

settings.py        read the file and the variables, check them, return click's `default_map`
toml_lines.py      TOML files with the line number of every key, for error messages
default_model.py   change the default model in the user's vidqa.toml
digest.py          `settings_id` of a row: a digest of everything that can change an answer
"""

from __future__ import annotations

from vidqa.config.digest import settings_id
from vidqa.config.settings import load_settings

__all__ = ["load_settings", "settings_id"]
