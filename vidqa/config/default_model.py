"""The default model, and how to set it: change one line of the user's vidqa.toml and leave all others as they are."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

from vidqa.common.atomic_io import atomic_write
from vidqa.config.settings import FILE_NAME, Setting, find_settings
from vidqa.errors import UsageError

_MODEL = re.compile(r"\s*(model|\"model\"|'model')\s*=")
#: A line whose value is a quoted string; the group is the comment after it.
_COMMENT = re.compile(r"[^=]*=\s*(?:\"[^\"\\]*\"|'[^']*')(\s*#.*)")
_TABLE = re.compile(r"\s*\[")


def user_settings_file() -> Path:
    """Return the path of the user's vidqa.toml, whether or not it exists."""
    from platformdirs import user_config_path  # imported late, as in `vidqa.config.settings`

    return user_config_path("vidqa", appauthor=False) / FILE_NAME


def default_model() -> Setting:
    """Return the model that `vidqa describe` uses without `--model`: a name or a folder.

    Raises:
        UsageError: the settings are invalid.
    """
    return find_settings()["describe"].get("model", Setting("demo", "default"))


def set_default_model(model: Path | str) -> tuple[Path, str | None]:
    """Write `model = "<model>"` at the top of the user's settings; all other lines stay as they are.

    Args:
        model: folder of a bundle, or the name of an included model.

    Returns:
        The settings file, and what currently overrides it: another settings file, a variable, or None.

    Raises:
        UsageError: the file is not valid TOML, before or after the change.
    """
    path = user_settings_file()
    content = path.read_bytes() if path.is_file() else b""
    newline = "\r\n" if b"\r\n" in content else "\n"
    try:
        lines = content.decode().replace("\r\n", "\n").removesuffix("\n").split("\n") if content else []
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not valid TOML ({e}), so it was not changed") from e
    value = model if isinstance(model, str) else str(model.absolute())
    line = f"model = {json.dumps(value, ensure_ascii=False)}"  # a JSON string is a valid TOML string
    end = next((i for i, text in enumerate(lines) if _TABLE.match(text)), len(lines))
    at = next((i for i in range(end) if _MODEL.match(lines[i])), None)
    if at is None:
        changed = [line, *lines]
    else:
        comment = _COMMENT.fullmatch(lines[at])
        changed = [*lines[:at], line + (comment[1] if comment else ""), *lines[at + 1 :]]
    text = "\n".join(changed) + "\n"
    try:
        before, after = tomllib.loads("\n".join(lines)), tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(
            f"{path} is not valid TOML ({e}), so it was not changed", hint=f"add this line by hand: {line}"
        ) from e
    if before | {"model": value} != after:
        raise UsageError(
            f"{path}: cannot find the line that sets `model`, so it was not changed", hint=f"set it by hand: {line}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.resolve()) as f:  # a symbolic link stays a link
        f.write(text.replace("\n", newline).encode())
    return path, _what_overrides(path)


def _what_overrides(path: Path) -> str | None:
    if os.environ.get("VIDQA_MODEL"):
        return "the variable VIDQA_MODEL"
    if os.environ.get("VIDQA_CONFIG") and Path(os.environ["VIDQA_CONFIG"]) != path:
        return f"{os.environ['VIDQA_CONFIG']} (VIDQA_CONFIG)"
    here = Path(FILE_NAME)
    return str(here.absolute()) if here.is_file() and here.absolute() != path.absolute() else None
