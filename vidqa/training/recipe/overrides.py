"""Overrides: `--set PATH=VALUE` changes the values of a recipe, for example in hyperparameter sweeps.

Scope: finds the key and parses the value. The type of the value is checked later, together with those of the file.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidqa.config.toml_lines import KeyPath, TomlFile, did_you_mean, dotted, invalid_values, printable
from vidqa.training.recipe.definition import renamed_key, table_keys

FLAG = "--set"  # the option of `vidqa train` that messages name
_LISTS = {"data": "source", "stage": "stage"}  # array of tables -> noun for one of its entries


class _InvalidOverride(ValueError):
    """An override that cannot be applied, for the reason in the text."""


def apply_overrides(file: TomlFile, overrides: Sequence[str]) -> tuple[TomlFile, list[str]]:
    """Apply overrides to the values of a recipe.

    Args:
        file: the recipe; it is not modified.
        overrides: `PATH=VALUE`. A path consists of keys separated by dots, such as `stage.2.learning_rate`. Stages and
            sources are selected by number from 1; sources also by name. A value is TOML; a bare word that is not valid
            TOML is a string.

    Returns:
        The recipe with all valid overrides applied and recorded as the source of their settings, and one sentence for
        each invalid override.
    """
    values, lines, options = copy.deepcopy(file.values), file.lines, dict(file.options)
    problems: list[str] = []
    applied: dict[KeyPath, str] = {}
    for given in overrides:
        option = f"{FLAG} {printable(given)}"
        try:
            path, value = _parse(given, file.values)
            for earlier, other in applied.items():
                if earlier[: len(path)] == path[: len(earlier)]:
                    raise _InvalidOverride(f"`{dotted(path)}` is set twice, also by {other}")
            options |= dict.fromkeys(_put(values, path, value), option)
        except _InvalidOverride as error:
            problems.append(f"{option}: {error}")
            continue
        applied[path] = options[path] = option
        lines = {where: line for where, line in lines.items() if where[: len(path)] != path}
    return replace(file, values=values, lines=lines, options=options), problems


def _parse(given: str, values: Mapping[str, Any]) -> tuple[KeyPath, Any]:
    text_path, equals, text = (part.strip() for part in given.partition("="))
    if not equals or not text_path:
        raise _InvalidOverride("expected PATH=VALUE, such as stage.2.learning_rate=2e-5")
    path = _parse_path(text_path, values)
    value = _parse_value(text)
    for _, fault in invalid_values(value, path):
        raise _InvalidOverride(f"`{dotted(path)}`: {fault}")
    return path, value


def _parse_path(text: str, values: Mapping[str, Any]) -> KeyPath:
    """Split a path into keys and indices; `stage.2.learning_rate` is `("stage", 1, "learning_rate")`."""
    path: KeyPath = ()
    rest: str | None = text
    while rest is not None:
        if len(path) == 1 and path[0] in _LISTS:
            number, rest = _parse_entry(str(path[0]), rest, values.get(path[0]))
            path = (*path, number)
            continue
        key, dot, after = rest.partition(".")
        keys = table_keys(path)
        if path and not keys:
            raise _InvalidOverride(f"`{dotted(path)}` is not a table, so `{printable(text)}` does not exist")
        if key not in keys:
            now = renamed_key(dotted(path), key)
            reason = f"`{dotted((*path, key))}` is now {now}" if now else None
            raise _InvalidOverride(reason or f"unknown key `{dotted((*path, key))}`{did_you_mean(key, keys)}")
        path, rest = (*path, key), after if dot else None
    return path


def _parse_entry(table: str, rest: str, entries: Any) -> tuple[int, str | None]:
    """Find the entry of an array of tables that a path continues with.

    Returns:
        Its index, and the rest of the path.
    """
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise _InvalidOverride(f"the recipe has no [[{table}]]")
    names = [_source_name(one) if table == "data" else None for one in entries]
    head, dot, tail = rest.partition(".")
    found: dict[int, str | None] = {}
    if head.isascii() and head.isdigit() and len(head) < 9 and 1 <= int(head) <= len(entries):
        found[int(head) - 1] = tail if dot else None
    matching = [name for name in names if name and f"{rest}.".startswith(f"{name}.")]
    for i, name in enumerate(names):
        if matching and name == max(matching, key=len):  # names may contain dots: the longest match wins
            found[i] = rest[len(name) + 1 :] if len(rest) > len(name) else None
    if len(found) == 1:
        return found.popitem()
    if found:
        numbers = ", ".join(str(i + 1) for i in sorted(found))
        raise _InvalidOverride(f"`{printable(head)}` matches several sources: {numbers}")
    available = ", ".join(
        str(i) if name is None else f"{i} ({printable(name)})" for i, name in enumerate(names, start=1)
    )
    raise _InvalidOverride(f"there is no {_LISTS[table]} `{printable(head)}`; available: {available or 'none'}")


def _source_name(source: Mapping[str, Any]) -> str | None:
    """Return the name by which stages select a source, like `definition.Data.title`."""
    name = source.get("name") or Path(str(source.get("file", ""))).stem
    return name if isinstance(name, str) else None


def _parse_value(text: str) -> Any:
    """Return a TOML value, or the text itself if it is a bare word."""
    try:
        # In brackets, because a comment after a bare value would go unnoticed.
        found = tomllib.loads(f"x = [ {text} ]")
    except (ValueError, RecursionError):
        found = {}
    if found.keys() == {"x"} and len(found["x"]) == 1 and not text.endswith(","):
        return found["x"][0]
    if not text:
        raise _InvalidOverride('the value is missing; an empty string is ""')
    if text[0] in "\"'[{":
        raise _InvalidOverride("not a TOML value; strings in lists and tables need quotes that survive the shell")
    return text


def _put(values: dict[str, Any], path: KeyPath, value: Any) -> list[KeyPath]:
    """Set a value.

    Returns:
        The paths of the tables that were created for it.
    """
    created: list[KeyPath] = []
    table: Any = values
    for n, key in enumerate(path[:-1], start=1):
        if isinstance(key, str) and key not in table:
            table[key] = {}
            created.append(path[:n])
        table = table[key]
        if not isinstance(table, list if n < len(path) and isinstance(path[n], int) else dict):
            raise _InvalidOverride(f"`{dotted(path[:n])}` is not a table in the recipe")
    table[path[-1]] = value
    return created
