"""A recipe on disk -> Recipe, or all that is wrong with it at once, each with file, line and key.

Knows TOML and paths. Does not open data or models: it only looks whether they are there.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vidqa.config.toml_lines import TomlFile, did_you_mean, dotted, printable, read_toml
from vidqa.errors import UsageError
from vidqa.model.bundle.registry import BUNDLE_FILE, built_in_bundles, find_bundle, pulled_models
from vidqa.train.data.unseen_pairs import read_unseen
from vidqa.train.recipe.consistency import Place, contradictions
from vidqa.train.recipe.definition import Recipe, keys_at
from vidqa.train.recipe.overrides import FLAG, overridden

#: Keys that hold a path, by the table that they stand in.
_FILES = {"data": ("file",), "eval": ("file",), "hardware": ("fsdp_config", "deepspeed"), "stage": ("unseen_pairs",)}
#: Without these, what is said of other keys would not be true.
_OTHERS_HANG_ON = {"kind", "train", "freeze", "lora", "name", "file", "data", "stage"}
_LINE = re.compile(r":(\d+): ")
_FOLDERS = {"data": ("media",), "eval": ("media",)}


def read_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; paths in it start from its own folder and come out absolute.

    Args:
        path: a TOML file.
        overrides: `PATH=VALUE`: settings to be read as if the file had them (`vidqa.train.recipe.overrides`).

    Returns:
        The recipe, free of contradictions, whose files and folders exist.

    Raises:
        UsageError: names every problem with file, line and key, or with the override as it was given.
    """
    original = read_toml(Path(path))
    file, problems = overridden(original, overrides)
    values = _beside(file)
    files = _missing(file, values) + _wrong_inside(values)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_sentence(file, one) for one in error.errors(include_url=False)]
        rest = _without_wrong(file, values, error)
        problems += (
            _missing(file, values)
            + _wrong_inside(values)
            + (_contradictory(file, rest, original, overrides) if rest else [])
        )
        raise UsageError(_listed(problems)) from error
    if problems := problems + _contradictory(file, recipe, original, overrides) + files:
        raise UsageError(_listed(problems))
    return recipe


def _contradictory(file: TomlFile, recipe: Recipe, original: TomlFile, overrides: Sequence[str]) -> list[str]:
    problems = []
    for place, sentence in contradictions(recipe):
        where = file.where(*_known(file, place))
        owed = [o for o in _owed_to(original, overrides, (place, sentence)) if o != where] if overrides else []
        with_them = f" (with {', '.join(owed)})" if owed else ""
        problems.append(f"{where}: `{dotted(place)}`: {sentence}{with_them}")
    return problems


def _owed_to(original: TomlFile, overrides: Sequence[str], problem: tuple[Place, str]) -> list[str]:
    """The overrides, as given, without which a contradiction would not be there: those of which each alone would
    end it, or all where it takes more than one of them away."""

    def there(chosen: Sequence[str]) -> bool:
        file, _ = overridden(original, chosen)
        values = _beside(file)
        recipe: Recipe | None
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            recipe = _without_wrong(file, values, error)
        return recipe is None or problem in contradictions(recipe)  # None: it cannot be known

    alone = [o for n, o in enumerate(overrides) if not there([*overrides[:n], *overrides[n + 1 :]])]
    return [f"{FLAG} {printable(o)}" for o in alone or ([] if there([]) else overrides)]


def _without_wrong(file: TomlFile, values: dict[str, Any], error: ValidationError) -> Recipe | None:
    """The recipe as it is without the settings that are wrong by themselves; None where others hang on one of them."""
    left = copy.deepcopy(values)
    places = set()
    for one in error.errors(include_url=False):
        place = _known(file, tuple(one["loc"]))
        while len(place) > 1 and isinstance(place[-1], int):  # one entry of a list: the list is wrong
            place = place[:-1]
        if one["type"] == "missing" or place[-1] in _OTHERS_HANG_ON:
            return None
        places.add(place)
    for place in places:
        table: Any = left
        for part in place[:-1]:
            table = table[part]
        del table[place[-1]]
    try:
        return Recipe.model_validate(left)
    except ValidationError:
        return None


def as_written(recipe: Recipe, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """All settings of a recipe, defaults included, with the paths as its file has them, or the overrides: a report
    names no machine."""
    settings: dict[str, Any] = recipe.model_dump(mode="json")
    written = overridden(read_toml(Path(path)), overrides)[0].values
    for table, keys in (_both() | {"model": ("base",)}).items():
        given, told = written.get(table), settings[table]
        pairs = zip(given, told, strict=True) if isinstance(given, list) else [(given, told)] if given else []
        for mine, theirs in pairs:
            theirs |= {key: mine[key] for key in keys if key in mine}
    return settings


def where_set(path: str | os.PathLike[str], overrides: Sequence[str], *place: str | int) -> str:
    """Where a setting of a recipe stands, for messages: `FILE:LINE`, or the override that set it."""
    return overridden(read_toml(Path(path)), overrides)[0].where(*place)


def _listed(problems: list[str]) -> str:
    """One a line, in the order of the file; then what options got wrong."""

    def line(said: str) -> float:
        found = None if said.startswith(f"{FLAG} ") else _LINE.search(said)
        return int(found[1]) if found else math.inf

    return "\n".join(sorted(dict.fromkeys(problems), key=line))


def _beside(file: TomlFile) -> dict[str, Any]:
    """The values with paths made absolute. A model that is no path stays a name."""
    folder = file.path.absolute().parent

    def absolute(value: Any) -> Any:
        return os.path.normpath(folder / os.path.expanduser(value)) if isinstance(value, str) and value else value

    values = dict(file.values)
    for table, keys in _both().items():
        if isinstance(values.get(table), dict):
            values[table] = {k: absolute(v) if k in keys else v for k, v in values[table].items()}
        elif isinstance(values.get(table), list):
            values[table] = [
                {k: absolute(v) if k in keys else v for k, v in one.items()} if isinstance(one, dict) else one
                for one in values[table]
            ]
    model = values.get("model")
    if isinstance(model, dict) and isinstance(base := model.get("base"), str) and _is_path(folder, base):
        values["model"] = model | {"base": absolute(base)}
    return values


def _is_path(folder: Path, base: str) -> bool:
    """Whether the base is a folder, and not the name of a bundle that comes with the package."""
    return "/" in base or os.sep in base or (bool(base) and os.path.isfile(folder / base / BUNDLE_FILE))


def _is_model(base: str) -> bool:
    try:
        return os.path.isfile(find_bundle(base) / BUNDLE_FILE)
    except (OSError, ValueError):  # no name of this system
        return False


def _both() -> dict[str, tuple[str, ...]]:
    return {table: (*_FILES.get(table, ()), *_FOLDERS.get(table, ())) for table in (*_FILES, *_FOLDERS)}


def _missing(file: TomlFile, values: dict[str, Any]) -> list[str]:
    """Files and folders that are not there."""
    problems = []
    model = values.get("model")
    if isinstance(model, dict) and isinstance(base := model.get("base"), str) and not _is_model(base):
        known = ", ".join([*built_in_bundles(), *pulled_models()])
        where = f"{file.where('model', 'base')}: `model.base`"
        problems.append(
            f"{where}: no model at {printable(base)}; give a folder with {BUNDLE_FILE}, or a name of: {known}"
        )
    for table in _both():
        found = values.get(table)
        for number, one in enumerate(found if isinstance(found, list) else [found]):
            if not isinstance(one, dict):
                continue
            place: Place = (table, number) if isinstance(found, list) else (table,)
            for key, value in one.items():
                if not isinstance(value, str):
                    continue
                where = f"{file.where(*place, key)}: `{dotted((*place, key))}`"
                # os.path, unlike Path, answers for names that no system could have
                if key in _FILES.get(table, ()) and not os.path.isfile(value):
                    problems.append(f"{where}: no such file: {printable(value)}")
                if key in _FOLDERS.get(table, ()) and not os.path.isdir(value):
                    problems.append(f"{where}: no such folder: {printable(value)}")
    return problems


def _wrong_inside(values: dict[str, Any]) -> list[str]:
    """What is wrong with files of pairs that are there."""
    problems: list[str] = []
    stages = values.get("stage")
    for stage in stages if isinstance(stages, list) else []:
        path = stage.get("unseen_pairs") if isinstance(stage, dict) else None
        if isinstance(path, str) and os.path.isfile(path):
            try:
                read_unseen(Path(path))
            except UsageError as error:
                problems += error.what.splitlines()
    return problems


def _sentence(file: TomlFile, error: Any) -> str:
    """One problem that pydantic found, in our words."""
    place: Place = tuple(error["loc"])
    known = _known(file, place)
    where = file.where(*known)
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key `{dotted(known)}`{did_you_mean(str(place[-1]), keys_at(place[:-1]))}"
    if kind == "missing":
        return f"{where}: `{dotted(place)}` is missing"
    text = str(error["msg"])
    return f"{where}: `{dotted(known)}`: {text[:1].lower()}{text[1:]}, got {given!r:.60}"


def _known(file: TomlFile, place: Place) -> Place:
    """A place without what pydantic adds to it (the branch of a union) and the file does not have."""
    found: Any = file.values
    kept: list[str | int] = []
    for part in place:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            break
        kept.append(part)
    return tuple(kept) if kept else place[:1]
