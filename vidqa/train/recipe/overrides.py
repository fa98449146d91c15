"""`PATH=VALUE` texts -> the values of a recipe as they would be if its file said so, for sweeps over one recipe.

Knows TOML and the recipe's keys. Whether a value is of the right type is for the recipe to say, like that of a file.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidqa.config.toml_lines import KeyPath, TomlFile, did_you_mean, dotted, invalid_values, printable
from vidqa.train.recipe.definition import keys_at

FLAG = "--set"  # the option of `vidqa train` that messages name
_LISTS = {"data": "source", "stage": "stage"}  # what their entries are called


class _Wrong(ValueError):
    """An override that cannot be taken; the text says why."""


def overridden(file: TomlFile, overrides: Sequence[str]) -> tuple[TomlFile, list[str]]:
    """Put overrides into the values of a recipe.

    Args:
        file: the recipe; stays as it is.
        overrides: `PATH=VALUE`. A path is keys with dots between them, `stage.2.lr`; stages and sources go by number,
            from 1, and sources also by name, as the file has it. A value is TOML; a bare word that is none is a text.

    Returns:
        The recipe with all that could be taken, whose places name the override that set them; and a sentence for each
        that could not.
    """
    values, lines, options = copy.deepcopy(file.values), file.lines, dict(file.options)
    problems: list[str] = []
    taken: dict[KeyPath, str] = {}
    for given in overrides:
        said = f"{FLAG} {printable(given)}"
        try:
            place, value = _read(given, file.values)
            for earlier, other in taken.items():
                if earlier[: len(place)] == place[: len(earlier)]:
                    raise _Wrong(f"`{dotted(place)}` is set twice, also by {other}")
            options |= dict.fromkeys(_put(values, place, value), said)
        except _Wrong as error:
            problems.append(f"{said}: {error}")
            continue
        taken[place] = options[place] = said
        lines = {where: line for where, line in lines.items() if where[: len(place)] != place}
    return replace(file, values=values, lines=lines, options=options), problems


def _read(given: str, values: Mapping[str, Any]) -> tuple[KeyPath, Any]:
    path, equals, text = (part.strip() for part in given.partition("="))
    if not equals or not path:
        raise _Wrong("PATH=VALUE is wanted, as in stage.2.lr=2e-5")
    place = _place(path, values)
    value = _value(text)
    for _, fault in invalid_values(value, place):
        raise _Wrong(f"`{dotted(place)}`: {fault}")
    return place, value


def _place(path: str, values: Mapping[str, Any]) -> KeyPath:
    """Keys and indices of a path; `stage.2.lr` is `("stage", 1, "lr")`."""
    place: KeyPath = ()
    rest: str | None = path
    while rest is not None:
        if len(place) == 1 and place[0] in _LISTS:
            number, rest = _entry(str(place[0]), rest, values.get(place[0]))
            place = (*place, number)
            continue
        key, dot, after = rest.partition(".")
        known = keys_at(place)
        if place and not known:
            raise _Wrong(f"`{dotted(place)}` is no table, so there is no `{printable(path)}`")
        if key not in known:
            raise _Wrong(f"unknown key `{dotted((*place, key))}`{did_you_mean(key, known)}")
        place, rest = (*place, key), after if dot else None
    return place


def _entry(table: str, rest: str, entries: Any) -> tuple[int, str | None]:
    """The entry of a list that a path goes on with: its index, and what comes behind it."""
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise _Wrong(f"the recipe has no [[{table}]] of which one could be chosen")
    names = [_name(one) if table == "data" else None for one in entries]
    head, dot, tail = rest.partition(".")
    found: dict[int, str | None] = {}
    if head.isascii() and head.isdigit() and len(head) < 9 and 1 <= int(head) <= len(entries):
        found[int(head) - 1] = tail if dot else None
    fitting = [name for name in names if name and f"{rest}.".startswith(f"{name}.")]
    for i, name in enumerate(names):
        if fitting and name == max(fitting, key=len):  # a name may have dots: the longest one is meant
            found[i] = rest[len(name) + 1 :] if len(rest) > len(name) else None
    if len(found) == 1:
        return found.popitem()
    if found:
        raise _Wrong(f"`{printable(head)}` could be several sources: {', '.join(str(i + 1) for i in sorted(found))}")
    there = ", ".join(str(i) if name is None else f"{i} ({printable(name)})" for i, name in enumerate(names, start=1))
    raise _Wrong(f"there is no {_LISTS[table]} `{printable(head)}`; there are: {there or 'none'}")


def _name(source: Mapping[str, Any]) -> str | None:
    """By which stages choose a source, as `recipe.Data.title`."""
    name = source.get("name") or Path(str(source.get("file", ""))).stem
    return name if isinstance(name, str) else None


def _value(text: str) -> Any:
    """A TOML value, or the text itself."""
    try:
        # In brackets: behind a bare value, a comment would go unnoticed.
        found = tomllib.loads(f"x = [ {text} ]")
    except (ValueError, RecursionError):
        found = {}
    if found.keys() == {"x"} and len(found["x"]) == 1 and not text.endswith(","):
        return found["x"][0]
    if not text:
        raise _Wrong('there is no value; an empty text is ""')
    if text[0] in "\"'[{":
        raise _Wrong("not a TOML value; texts in lists and tables need quotes, which the shell must leave alone")
    return text


def _put(values: dict[str, Any], place: KeyPath, value: Any) -> list[KeyPath]:
    """Set a value, and give back the tables that had to be made for it."""
    made: list[KeyPath] = []
    table: Any = values
    for n, key in enumerate(place[:-1], start=1):
        if isinstance(key, str) and key not in table:
            table[key] = {}
            made.append(place[:n])
        table = table[key]
        if not isinstance(table, list if n < len(place) and isinstance(place[n], int) else dict):
            raise _Wrong(f"`{dotted(place[:n])}` is no table in the recipe")
    table[place[-1]] = value
    return made
