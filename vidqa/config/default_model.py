"""Which model is the default: one line of the user's vidqa.toml, changed without touching the others.

Knows TOML as lines. Does not know models.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

from vidqa.common.atomic_io import atomic_write
from vidqa.config.settings import FILE_NAME
from vidqa.errors import UsageError

_MODEL = re.compile(r"\s*(model|\"model\"|'model')\s*=")
#: A plain text as the value, and what stands behind it.
_COMMENT = re.compile(r"[^=]*=\s*(?:\"[^\"\\]*\"|'[^']*')(\s*#.*)")
_TABLE = re.compile(r"\s*\[")


def user_settings_file() -> Path:
    """The user's own vidqa.toml, there or not."""
    from platformdirs import user_config_path  # here: see `vidqa.config.settings`

    return user_config_path("vidqa", appauthor=False) / FILE_NAME


def set_default_model(folder: Path) -> tuple[Path, str | None]:
    """Write `model = "<folder>"` at the top of the user's settings; all other lines stay as they are.

    Returns:
        The file, and what beats it here and now (another settings file or a variable), if anything does.

    Raises:
        UsageError: the file is no sound TOML, before or after.
    """
    path = user_settings_file()
    content = path.read_bytes() if path.is_file() else b""
    newline = "\r\n" if b"\r\n" in content else "\n"
    try:
        lines = content.decode().replace("\r\n", "\n").removesuffix("\n").split("\n") if content else []
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not sound TOML ({e}), so it was not changed") from e
    line = f"model = {json.dumps(str(folder.absolute()), ensure_ascii=False)}"  # JSON's texts are TOML's
    end = next((i for i, text in enumerate(lines) if _TABLE.match(text)), len(lines))
    at = next((i for i in range(end) if _MODEL.match(lines[i])), None)
    if at is None:
        changed = [line, *lines]
    else:
        behind = _COMMENT.fullmatch(lines[at])
        changed = [*lines[:at], line + (behind[1] if behind else ""), *lines[at + 1 :]]
    text = "\n".join(changed) + "\n"
    try:
        before, after = tomllib.loads("\n".join(lines)), tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path} is not sound TOML ({e}), so it was not changed", hint=f"write into it: {line}") from e
    if before | {"model": str(folder.absolute())} != after:
        raise UsageError(f"{path}: the line of `model` could not be found, so it was not changed", hint=line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.resolve()) as f:  # a link into a folder of settings stays one
        f.write(text.replace("\n", newline).encode())
    return path, _what_beats(path)


def _what_beats(path: Path) -> str | None:
    if os.environ.get("VIDQA_MODEL"):
        return "the variable VIDQA_MODEL"
    if os.environ.get("VIDQA_CONFIG") and Path(os.environ["VIDQA_CONFIG"]) != path:
        return f"{os.environ['VIDQA_CONFIG']} (VIDQA_CONFIG)"
    here = Path(FILE_NAME)
    return str(here.absolute()) if here.is_file() and here.absolute() != path.absolute() else None
