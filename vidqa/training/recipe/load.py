"""Recipe file -> Recipe, or a report of everything that is wrong with it, with file, line and key.

Scope: reads the recipe and its `unseen_pairs` files; of data files and models it only checks that they exist.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vidqa.config.toml_lines import KeyPath, TomlFile, did_you_mean, dotted, printable, read_toml
from vidqa.errors import UsageError
from vidqa.model.bundle.registry import BUNDLE_FILE, built_in_bundles, find_bundle, pulled_models
from vidqa.training.data.unseen_pairs import UnseenPairs, read_unseen_pairs
from vidqa.training.recipe.consistency import inconsistencies
from vidqa.training.recipe.definition import RENAMED_VALUES, Recipe, renamed_key, table_keys
from vidqa.training.recipe.overrides import FLAG, apply_overrides

#: Table -> its keys that are paths of files or folders.
_FILES = {"data": ("file",), "eval": ("file",), "hardware": ("fsdp_config", "deepspeed"), "stage": ("unseen_pairs",)}
_FOLDERS = {"data": ("media",), "eval": ("media",)}
_PATHS = {table: (*_FILES.get(table, ()), *_FOLDERS.get(table, ())) for table in (*_FILES, *_FOLDERS)}
#: If one of these keys is invalid, or a former key is used, checks across keys would report follow-up errors.
_OTHERS_DEPEND_ON = {"kind", "train", "freeze", "lora", "name", "file", "data", "stage"}
_LINE = re.compile(r":(\d+): ")


def read_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; relative paths in it are resolved against its own folder.

    Args:
        path: a TOML file.
        overrides: `PATH=VALUE` settings that replace those of the file (see `vidqa.training.recipe.overrides`).

    Returns:
        A consistent recipe whose files and folders exist.

    Raises:
        UsageError: lists every problem with file, line and key, or with the override as it was given.
    """
    original = read_toml(Path(path))
    file, problems = apply_overrides(original, overrides)
    values, file_problems = _resolve(file)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_problem_text(file, one) for one in error.errors(include_url=False)] + file_problems
        if (rest := _without_invalid(file, values, error)) is not None:
            problems += _consistency_problems(file, rest, original, overrides)
        raise UsageError(_in_file_order(problems)) from error
    problems += _consistency_problems(file, recipe, original, overrides) + file_problems
    if problems:
        raise UsageError(_in_file_order(problems))
    return recipe


def settings_as_written(recipe: Recipe, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return all settings of a recipe including defaults, with the paths as written in the file or override.

    A report made from them contains no absolute paths of this machine.
    """
    settings: dict[str, Any] = recipe.model_dump(mode="json")
    written = apply_overrides(read_toml(Path(path)), overrides)[0].values
    for table, keys in (_PATHS | {"model": ("base",)}).items():
        for resolved, given in zip(_tables(settings.get(table)), _tables(written.get(table)), strict=False):
            resolved |= {key: given[key] for key in keys if key in given}
    return settings


def where_set(path: str | os.PathLike[str], overrides: Sequence[str], *key: str | int) -> str:
    """Return where a setting comes from, for messages: `FILE:LINE`, or the override that set it."""
    return apply_overrides(read_toml(Path(path)), overrides)[0].where(*key)


def _consistency_problems(file: TomlFile, recipe: Recipe, original: TomlFile, overrides: Sequence[str]) -> list[str]:
    problems = []
    for key, sentence in inconsistencies(recipe):
        where = file.where(*_path_in_file(file, key))
        causes = [o for o in _causes(original, overrides, (key, sentence)) if o != where] if overrides else []
        suffix = f" (with {', '.join(causes)})" if causes else ""
        problems.append(f"{where}: `{dotted(key)}`: {sentence}{suffix}")
    return problems


def _causes(original: TomlFile, overrides: Sequence[str], problem: tuple[KeyPath, str]) -> list[str]:
    """Find the overrides that cause an inconsistency: each one whose removal resolves it, else all of them."""

    def occurs(chosen: Sequence[str]) -> bool:
        file, _ = apply_overrides(original, chosen)
        values, _ = _resolve(file)
        recipe: Recipe | None
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            recipe = _without_invalid(file, values, error)
        return recipe is None or problem in inconsistencies(recipe)  # None: cannot be determined

    single = [o for n, o in enumerate(overrides) if not occurs([*overrides[:n], *overrides[n + 1 :]])]
    return [f"{FLAG} {printable(o)}" for o in single or ([] if occurs([]) else overrides)]


def _without_invalid(file: TomlFile, values: dict[str, Any], error: ValidationError) -> Recipe | None:
    """Return the recipe without its invalid settings; None if other settings depend on one of them."""
    remaining = copy.deepcopy(values)
    paths = set()
    for one in error.errors(include_url=False):
        path = _path_in_file(file, tuple(one["loc"]))
        while len(path) > 1 and isinstance(path[-1], int):  # an invalid item makes the whole list invalid
            path = path[:-1]
        if one["type"] == "missing" or path[-1] in _OTHERS_DEPEND_ON or _is_renamed(path):
            return None
        paths.add(path)
    for path in paths:
        table: Any = remaining
        for part in path[:-1]:
            table = table[part]
        del table[path[-1]]
    try:
        return Recipe.model_validate(remaining)
    except ValidationError:
        return None


def _is_renamed(path: KeyPath) -> bool:
    return renamed_key(dotted(path[:-1]), str(path[-1])) is not None


def _in_file_order(problems: list[str]) -> str:
    """Join the problems, one per line: those of the file by line number, then those of the overrides."""

    def line(problem: str) -> float:
        match = None if problem.startswith(f"{FLAG} ") else _LINE.search(problem)
        return int(match[1]) if match else math.inf

    return "\n".join(sorted(dict.fromkeys(problems), key=line))


def _tables(value: Any) -> list[Any]:
    """Return the tables under a key: the entries of an array, or the one table."""
    entries = value if isinstance(value, list) else [value]
    return [one for one in entries if isinstance(one, dict)]


def _resolve(file: TomlFile) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a recipe with absolute paths and with the content of its `unseen_pairs` files.

    Returns:
        The values, and what is wrong with the files and folders that they name.
    """
    folder = file.path.absolute().parent
    values = copy.deepcopy(file.values)
    for table, keys in _PATHS.items():
        for one in _tables(values.get(table)):
            one |= {k: _absolute(folder, one[k]) for k in keys if k in one}
    model = values.get("model")
    if isinstance(model, dict) and isinstance(base := model.get("base"), str) and _is_path(folder, base):
        model["base"] = _absolute(folder, base)
    problems = _missing(file, values)
    for stage in _tables(values.get("stage")):
        if isinstance(path := stage.get("unseen_pairs"), str):
            stage["unseen_pairs"] = UnseenPairs.model_construct(groups={}, pairs=())
            if os.path.isfile(path):
                try:
                    stage["unseen_pairs"] = read_unseen_pairs(Path(path))
                except UsageError as error:
                    problems += error.what.splitlines()
    return values, problems


def _absolute(folder: Path, value: Any) -> Any:
    return os.path.normpath(folder / os.path.expanduser(value)) if isinstance(value, str) and value else value


def _is_path(folder: Path, base: str) -> bool:
    """Return True if the base model is given as a folder rather than by the name of a built-in or pulled bundle."""
    return "/" in base or os.sep in base or (bool(base) and os.path.isfile(folder / base / BUNDLE_FILE))


def _is_model(base: str) -> bool:
    try:
        return os.path.isfile(find_bundle(base) / BUNDLE_FILE)
    except (OSError, ValueError):  # not a valid name on this system
        return False


def _missing(file: TomlFile, values: dict[str, Any]) -> list[str]:
    """Report files and folders that do not exist."""
    problems = []
    model = values.get("model")
    if isinstance(model, dict) and isinstance(base := model.get("base"), str) and not _is_model(base):
        names = ", ".join([*built_in_bundles(), *pulled_models()])
        problem = f"no model at {printable(base)}; use a folder with {BUNDLE_FILE}, or one of these names: {names}"
        problems.append(f"{file.where('model', 'base')}: `model.base`: {problem}")
    for table in _PATHS:
        for path, one in _entries(values, table):
            for key, value in one.items():
                if isinstance(value, str):
                    where = f"{file.where(*path, key)}: `{dotted((*path, key))}`"
                    # os.path, unlike Path, also accepts names that no file system could have
                    if key in _FILES.get(table, ()) and not os.path.isfile(value):
                        problems.append(f"{where}: no such file: {printable(value)}")
                    if key in _FOLDERS.get(table, ()) and not os.path.isdir(value):
                        problems.append(f"{where}: no such folder: {printable(value)}")
    return problems


def _entries(values: dict[str, Any], table: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    found = values.get(table)
    for number, one in enumerate(found if isinstance(found, list) else [found]):
        if isinstance(one, dict):
            yield (table, number) if isinstance(found, list) else (table,), one


def _problem_text(file: TomlFile, error: Any) -> str:
    """Describe a problem that pydantic found."""
    path: KeyPath = tuple(error["loc"])
    key = _path_in_file(file, path)
    where, kind, given = file.where(*key), error["type"], error["input"]
    if kind == "extra_forbidden":
        if (now := renamed_key(dotted(key[:-1]), str(path[-1]))) is not None:
            return f"{where}: `{dotted(key)}` is now {now}"
        return f"{where}: unknown key `{dotted(key)}`{did_you_mean(str(path[-1]), table_keys(path[:-1]))}"
    if kind == "missing":
        return f"{where}: `{dotted(path)}` is missing"
    if (now := RENAMED_VALUES.get((dotted(key[:-1]), str(key[-1]), str(given)))) is not None:
        return f'{where}: `{dotted(key)}`: "{given}" is now "{now}"'
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: `{dotted(key)}`: {text[:1].lower()}{text[1:]}, got {given!r:.60}"


def _path_in_file(file: TomlFile, path: KeyPath) -> KeyPath:
    """Return the part of a path that exists in the file: pydantic adds, for example, the branch of a union."""
    found: Any = file.values
    kept: list[str | int] = []
    for part in path:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            break
        kept.append(part)
    return tuple(kept) if kept else path[:1]
