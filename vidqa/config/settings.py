"""vidqa.toml and VIDQA_ variables -> defaults for the options of every command.

An option on the command line beats the variable, the variable beats the file. A file may hold, for example,

    model = "/models/video-llava-7b"     # top: for every command that has the option
    cache-dir = "/data/vidqa"
    [describe]                           # for this command only
    questions = ["caption", "traffic.toml"]
    [cache.prune]
    max-size = "500GB"

The variables are named after the options (`--batch-size`: VIDQA_BATCH_SIZE); only `--cache-dir` is VIDQA_CACHE. Lists
in a variable are separated by commas. Paths in a file are relative to that file. Knows the names and types of options,
not what they do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.config.toml_lines import TomlFile, meant, read_toml, title
from vidqa.errors import UsageError

FILE_NAME = "vidqa.toml"
#: Variables that are no options: which settings file to read, and a switch of the test suite.
OTHER_VARIABLES = ("VIDQA_CONFIG", "VIDQA_REQUIRE_GPU")


@dataclass(frozen=True)
class Kind:
    """A type of option."""

    says: str  # what is right, for messages
    accepts: Callable[[Any], bool]
    from_text: Callable[[str], Any] = str  # how the text of a variable is read; ValueError when it cannot be


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _or_word(word: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: text if text == word else read(text)


TEXT = Kind("a text", _is_text)
PATH = Kind("a path", _is_text)
FLAG = Kind("true or false", lambda v: isinstance(v, bool), _flag)
COUNT = Kind("a whole number of at least 1", _is_count, int)
SECONDS = Kind("a positive number of seconds", _is_seconds, float)
SEGMENT = Kind(
    'a positive number of seconds or "whole"', lambda v: v == "whole" or _is_seconds(v), _or_word("whole", float)
)
BATCH = Kind('a whole number of at least 1 or "auto"', lambda v: v == "auto" or _is_count(v), _or_word("auto", int))
SETS = Kind("a list of names or files", _is_texts, lambda text: [part.strip() for part in text.split(",")])
ENCODE = Kind('"cache" or "on-the-fly"', lambda v: v in ("cache", "on-the-fly"))
RESUME = Kind('"auto" or "never"', lambda v: v in ("auto", "never"))
RETRY = Kind('"failed" or "all"', lambda v: v in ("failed", "all"))
COMPAT = Kind('"fixed" or "original"', lambda v: v in ("fixed", "original"))
DTYPE = Kind("float32, float16 or bfloat16", lambda v: v in ("float32", "float16", "bfloat16"))
QUANTIZE = Kind('"8bit" or "4bit"', lambda v: v in ("8bit", "4bit"))

_OUTPUT = {"as_json": FLAG, "quiet": FLAG, "verbose": FLAG}
_CACHE = {"cache_dir": PATH, **_OUTPUT}
_READ = {"model": TEXT, "device": TEXT, "timeout": SECONDS, **_CACHE}
_WORK = {"segment": SEGMENT, "batch_size": BATCH, **_READ}
_PRECISION = {"dtype": DTYPE, "quantize": QUANTIZE}
#: Command -> its options, by the names of their parameters. What is not here can be set by flag only.
OPTIONS: dict[str, dict[str, Kind]] = {
    "describe": {
        **{"out": PATH, "questions": SETS, "max_new_tokens": COUNT, "retry": RETRY, "dry_run": FLAG},
        **{"prune_missing": FLAG, "log": PATH, "log_json": FLAG, "metrics": PATH},
        **_PRECISION,
        **_WORK,
    },
    "ask": {"out": PATH, "max_new_tokens": COUNT, **_PRECISION, **_WORK},
    "chat": {"max_new_tokens": COUNT, **_PRECISION, **_READ},
    "search": {"out": PATH, "top": COUNT, **_WORK},
    "encode": _WORK,
    "train": {"out": PATH, "encode": ENCODE, "resume": RESUME, "check_data": FLAG, "device": TEXT, **_CACHE},
    "cache stats": _CACHE,
    "cache verify": {"delete": FLAG, **_CACHE},
    "cache prune": {"max_size": TEXT, "older_than": TEXT, "dry_run": FLAG, **_CACHE},
    "bench": {
        "seconds": SECONDS,
        "n_questions": COUNT,
        "max_new_tokens": COUNT,
        "batch_size": BATCH,
        "model": TEXT,
        "device": TEXT,
        **_OUTPUT,
    },
    "doctor": {"model": TEXT, **_CACHE},
    "models list": _OUTPUT,
    "models verify": _OUTPUT,
    "models convert": {"compat": COMPAT, **_OUTPUT},
    "models pull": {"compat": COMPAT, **_OUTPUT},
}
_KINDS = {name: kind for options in OPTIONS.values() for name, kind in options.items()}


def load_settings(toml_path: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Defaults for the options of every command, in the form of click's `default_map`.

    Args:
        toml_path: the settings file, which must exist. None: the file that VIDQA_CONFIG names, else `vidqa.toml` in the
            current folder, else `vidqa.toml` in the user's settings folder, else none.
        environ: the variables; None takes those of the process.

    Returns:
        Command -> parameter -> value, only for what is set; commands of a group in the group's own mapping:
        `{"describe": {"model": "demo"}, "cache": {"prune": {"max_size": "9GB"}}}`.

    Raises:
        UsageError: lists all that is wrong in file and variables, each with its place.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    path = toml_path or _find_file(environ)
    flat: dict[str, dict[str, Any]] = {command: {} for command in OPTIONS}
    if path is not None:
        _from_file(read_toml(path), flat, problems)
    _from_variables(environ, flat, problems)
    if problems:
        raise UsageError("\n".join(problems))
    nested: dict[str, Any] = {}
    for command, values in flat.items():
        group = nested
        for word in command.split()[:-1]:
            group = group.setdefault(word, {})
        if values:
            group[command.split()[-1]] = values
    return nested


def option_name(parameter: str) -> str:
    """How a parameter is written in a file, and after `--`: `max_new_tokens` is `max-new-tokens`."""
    return parameter.removeprefix("as_").replace("_", "-")


def variable_name(parameter: str) -> str:
    """The variable of a parameter: `batch_size` has VIDQA_BATCH_SIZE."""
    return "VIDQA_CACHE" if parameter == "cache_dir" else "VIDQA_" + option_name(parameter).replace("-", "_").upper()


def _find_file(environ: Mapping[str, str]) -> Path | None:
    if environ.get("VIDQA_CONFIG"):
        return Path(environ["VIDQA_CONFIG"])
    from platformdirs import user_config_path  # here: a command whose settings lie beside it need not load it

    here = Path(FILE_NAME)
    there = user_config_path("vidqa", appauthor=False) / FILE_NAME
    return here if here.is_file() else there if there.is_file() else None


def _from_file(file: TomlFile, flat: dict[str, dict[str, Any]], problems: list[str]) -> None:
    """Fill in what the file says: the top first, so that tables beat it."""
    for place, table in _tables(file.values, (), problems, file):
        commands = [c for c in OPTIONS if c.split()[: len(place)] == list(place)]
        known = {option_name(p): p for c in commands for p in OPTIONS[c]}
        inner = {c.split()[len(place)] for c in commands if len(c.split()) > len(place)}
        for key, value in table.items():
            parameter = known.get(key.replace("_", "-"))
            if parameter is None:
                problems.append(
                    f"{file.where(*place, key)}: unknown key `{title((*place, key))}`{meant(key, [*known, *inner])}"
                )
            elif not _KINDS[parameter].accepts(value):
                problems.append(f"{file.where(*place, key)}: `{key}` must be {_KINDS[parameter].says}, not {value!r}")
            else:
                for command in commands:
                    if parameter in OPTIONS[command]:
                        flat[command][parameter] = _beside(file.path, parameter, value)


def _tables(
    values: dict[str, Any], place: tuple[str, ...], problems: list[str], file: TomlFile
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(place, its own keys) of the file and of each table in it that is named like a command or group."""
    inner = {
        c.split()[len(place)] for c in OPTIONS if len(c.split()) > len(place) and c.split()[: len(place)] == [*place]
    }
    yield place, {k: v for k, v in values.items() if k not in inner}
    for name in inner & values.keys():
        if isinstance(values[name], dict):
            yield from _tables(values[name], (*place, name), problems, file)
        else:
            problems.append(f"{file.where(*place, name)}: `{name}` is a command and must be a table: [{name}]")


def _from_variables(environ: Mapping[str, str], flat: dict[str, dict[str, Any]], problems: list[str]) -> None:
    known = {variable_name(p): p for p in _KINDS}
    for variable in sorted(v for v in environ if v.startswith("VIDQA_") and v not in OTHER_VARIABLES):
        parameter, text = known.get(variable), environ[variable]
        if parameter is None:
            problems.append(f"unknown variable {variable}{meant(variable, known)}")
            continue
        if not text:
            continue  # how a shell says "not set"
        kind = _KINDS[parameter]
        try:
            value = kind.from_text(text)
            right = kind.accepts(value)
        except ValueError:
            right = False
        if not right:
            problems.append(f"variable {variable} must be {kind.says}, not {text!r}")
            continue
        for command, options in OPTIONS.items():
            if parameter in options:
                flat[command][parameter] = value


def _beside(file: Path, parameter: str, value: Any) -> Any:
    """Paths of a settings file mean what they say from where the file lies; `demo` and `caption` are names."""
    if isinstance(value, list):
        return [_beside(file, parameter, one) for one in value]
    is_path = _KINDS[parameter] is PATH or (
        parameter in ("model", "questions") and ("/" in value or os.sep in value or value.endswith(".toml"))
    )
    return str(file.parent / os.path.expanduser(value)) if is_path else value
