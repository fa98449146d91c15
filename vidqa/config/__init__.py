"""Settings: vidqa.toml and VIDQA_ variables -> options of commands; TOML with line numbers; the settings digest."""

from __future__ import annotations

from vidqa.config.digest import settings_id
from vidqa.config.settings import load_settings

__all__ = ["load_settings", "settings_id"]
