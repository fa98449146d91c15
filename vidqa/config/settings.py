"""Defaults for the options of every command, from vidqa.toml and VIDQA_* variables.

An option on the command line overrides the variable, and the variable overrides the file. An example file:

    model = "/models/video-llava-7b"     # at the top: for every command that has the option
    cache-dir = "/data/vidqa"
    [describe]                           # for this command only
    questions = ["caption", "traffic.toml"]
    [cache.prune]
    max-size = "500GB"

Variables are named after the options (`--batch-size`: VIDQA_BATCH_SIZE), except that `--cache-dir` is VIDQA_CACHE.
Lists in a variable are separated by commas; VIDQA_ASK has one question per line. Relative paths in a file are relative
to the folder of that file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.config.toml_lines import TomlFile, did_you_mean, dotted, read_toml
from vidqa.errors import UsageError

FILE_NAME = "vidqa.toml"
#: Variables that are not options: the path of the settings file, and a switch of the test suite.
OTHER_VARIABLES = ("VIDQA_CONFIG", "VIDQA_REQUIRE_GPU")


@dataclass(frozen=True)
class Setting:
    """The value of an option, and what sets it: `FILE:LINE`, or `variable NAME`."""

    value: Any
    source: str


@dataclass(frozen=True)
class OptionType:
    """The type of an option's value."""

    description: str  # valid values, for messages
    accepts: Callable[[Any], bool]
    from_text: Callable[[str], Any] = str  # parses the text of a variable; raises ValueError


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


TEXT = OptionType("a non-empty string", _is_text)
PATH = OptionType("a path", _is_text)
FLAG = OptionType("true or false", lambda v: isinstance(v, bool), _flag)
COUNT = OptionType("a whole number of at least 1", _is_count, int)
SECONDS = OptionType("a positive number of seconds", _is_seconds, float)
SEGMENT = OptionType(
    'a positive number of seconds or "whole"', lambda v: v == "whole" or _is_seconds(v), _or_word("whole", float)
)
BATCH = OptionType(
    'a whole number of at least 1 or "auto"', lambda v: v == "auto" or _is_count(v), _or_word("auto", int)
)
SETS = OptionType("a list of names or files", _is_texts, lambda text: [part.strip() for part in text.split(",")])
TEXTS = OptionType("a list of questions", _is_texts, lambda text: [line for line in text.splitlines() if line.strip()])
PATTERNS = OptionType("a list of patterns", _is_texts, lambda text: [part.strip() for part in text.split(",")])
PATH_OR_STDIN = OptionType("a path, or - for stdin", _is_text)
DURATION = OptionType("a number of seconds or a text such as 1h30m", lambda v: _is_text(v) or _is_seconds(v))
SEED = OptionType("a whole number of at least 0", lambda v: v is not False and (v == 0 or _is_count(v)), int)
ENCODE = OptionType('"cache" or "on-the-fly"', lambda v: v in ("cache", "on-the-fly"))
RESUME = OptionType('"auto" or "never"', lambda v: v in ("auto", "never"))
RETRY = OptionType('"failed" or "all"', lambda v: v in ("failed", "all"))
PROGRESS = OptionType("auto, bar, lines or none", lambda v: v in ("auto", "bar", "lines", "none"))
COMPAT = OptionType('"fixed" or "original"', lambda v: v in ("fixed", "original"))
DTYPE = OptionType("float32, float16 or bfloat16", lambda v: v in ("float32", "float16", "bfloat16"))
QUANTIZE = OptionType('"8bit" or "4bit"', lambda v: v in ("8bit", "4bit"))

_OUTPUT = {"as_json": FLAG, "quiet": FLAG, "verbose": FLAG}
_CACHE = {"cache_dir": PATH, **_OUTPUT}
_READ = {"model": TEXT, "device": TEXT, "timeout": SECONDS, **_CACHE}
_WORK = {"segment": SEGMENT, "batch_size": BATCH, **_READ}
_FILES = {
    **{"exclude": PATTERNS, "include": PATTERNS, "newer_than": TEXT, "older_than": TEXT, "files_from": PATH_OR_STDIN},
    **{"min_duration": DURATION, "max_duration": DURATION, "null": FLAG, "limit": COUNT, "sample": COUNT, "seed": SEED},
}
_PRECISION = {"dtype": DTYPE, "quantize": QUANTIZE}
#: Command -> its options by parameter name. Options that are not listed here can only be set on the command line.
OPTIONS: dict[str, dict[str, OptionType]] = {
    "describe": {
        **{"out": PATH, "questions": SETS, "ask": TEXTS, "max_new_tokens": COUNT, "retry": RETRY, "dry_run": FLAG},
        **{"prune_missing": FLAG, "spreadsheet": FLAG, "strict": FLAG, "log": PATH, "log_json": FLAG, "metrics": PATH},
        "progress": PROGRESS,
        **_PRECISION,
        **_WORK,
        **_FILES,
    },
    "ask": {"out": PATH, "spreadsheet": FLAG, "strict": FLAG, "max_new_tokens": COUNT, **_PRECISION, **_WORK},
    "chat": {"max_new_tokens": COUNT, **_PRECISION, **_READ},
    "search": {"out": PATH, "spreadsheet": FLAG, "top": COUNT, "progress": PROGRESS, **_WORK, **_FILES},
    "encode": {"strict": FLAG, "progress": PROGRESS, **_WORK, **_FILES},
    "train": {
        "out": PATH,
        "encode": ENCODE,
        "resume": RESUME,
        "check_data": FLAG,
        "device": TEXT,
        "progress": PROGRESS,
        **_CACHE,
    },
    "cache stats": _CACHE,
    "cache verify": {"delete": FLAG, **_CACHE},
    "cache prune": {"max_size": TEXT, "older_than": TEXT, "dry_run": FLAG, **_CACHE},
    "table head": {"as_json": FLAG},
    "table info": {"as_json": FLAG},
    "table show": {"as_json": FLAG},
    "table prune": _OUTPUT,
    "table merge": {"spreadsheet": FLAG, **_OUTPUT},
    "table convert": {"spreadsheet": FLAG, **_OUTPUT},
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
    "examples": _OUTPUT,
    "config show": _OUTPUT,
    "completion": {},
    "models list": _OUTPUT,
    "models show": _OUTPUT,
    "models verify": _OUTPUT,
    "models set-default": _OUTPUT,
    "models rm": _OUTPUT,
    "models convert": {"compat": COMPAT, **_OUTPUT},
    "models pull": {"compat": COMPAT, **_OUTPUT},
}
#: Options that remove data, and that other commands have too: only the table of the command itself sets them.
_OWN_TABLE_ONLY = {("cache prune", "older_than")}
_TYPES = {name: option for options in OPTIONS.values() for name, option in options.items()}


def load_settings(toml_path: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return defaults for the options of every command, in the form of click's `default_map`.

    Args:
        toml_path: the settings file, which must exist. None: the file named by VIDQA_CONFIG, else `vidqa.toml` in the
            current folder, else `vidqa.toml` in the user's settings folder, else no file.
        environ: the environment variables; None means those of the process.

    Returns:
        Command -> parameter -> value, for values that are set; commands of a group are nested in the group's mapping:
        `{"describe": {"model": "demo"}, "cache": {"prune": {"max_size": "9GB"}}}`.

    Raises:
        UsageError: lists all problems in the file and the variables, each with its location.
    """
    nested: dict[str, Any] = {}
    for command, settings in find_settings(toml_path, environ).items():
        group = nested
        for word in command.split()[:-1]:
            group = group.setdefault(word, {})
        if settings:
            group[command.split()[-1]] = {parameter: setting.value for parameter, setting in settings.items()}
    return nested


def find_settings(
    toml_path: Path | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, dict[str, Setting]]:
    """Return what the file and the variables set, and where: command -> parameter -> setting.

    Args:
        toml_path: as in `load_settings`.
        environ: as in `load_settings`.

    Raises:
        UsageError: as in `load_settings`.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    path = toml_path or settings_file(environ)
    found: dict[str, dict[str, Setting]] = {command: {} for command in OPTIONS}
    if path is not None:
        _from_file(read_toml(path), found, problems)
    _from_variables(environ, found, problems)
    if problems:
        raise UsageError("\n".join(problems))
    return found


def option_name(parameter: str) -> str:
    """Return the name of a parameter in a file and after `--`: `max_new_tokens` is `max-new-tokens`."""
    return parameter.removeprefix("as_").replace("_", "-")


def variable_name(parameter: str) -> str:
    """Return the name of the variable for a parameter: VIDQA_BATCH_SIZE for `batch_size`."""
    return "VIDQA_CACHE" if parameter == "cache_dir" else "VIDQA_" + option_name(parameter).replace("-", "_").upper()


def settings_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the settings file that is read, or None if there is none.

    Args:
        environ: as in `load_settings`.
    """
    environ = os.environ if environ is None else environ
    if environ.get("VIDQA_CONFIG"):
        return Path(environ["VIDQA_CONFIG"])
    from platformdirs import user_config_path  # imported late: not needed when vidqa.toml is in the current folder

    here = Path(FILE_NAME)
    there = user_config_path("vidqa", appauthor=False) / FILE_NAME
    return here if here.is_file() else there if there.is_file() else None


def _from_file(file: TomlFile, found: dict[str, dict[str, Setting]], problems: list[str]) -> None:
    """Fill in the values of the file: the top level first, so that the tables of commands override it."""
    for key_path, table in _tables(file.values, (), problems, file):
        commands = [c for c in OPTIONS if c.split()[: len(key_path)] == list(key_path)]
        options = {option_name(p): p for c in commands for p in OPTIONS[c]}
        inner = {c.split()[len(key_path)] for c in commands if len(c.split()) > len(key_path)}
        for key, value in table.items():
            parameter = options.get(key.replace("_", "-"))
            if parameter is None:
                suggestion = did_you_mean(key, [*options, *inner])
                problems.append(f"{file.where(*key_path, key)}: unknown key `{dotted((*key_path, key))}`{suggestion}")
            elif not _TYPES[parameter].accepts(value):
                problems.append(
                    f"{file.where(*key_path, key)}: `{key}` must be {_TYPES[parameter].description}, not {value!r}"
                )
            else:
                setting = Setting(_relative_to_file(file.path, parameter, value), file.where(*key_path, key))
                for command in commands:
                    is_own = " ".join(key_path) == command or (command, parameter) not in _OWN_TABLE_ONLY
                    if parameter in OPTIONS[command] and is_own:
                        found[command][parameter] = setting


def _tables(
    values: dict[str, Any], key_path: tuple[str, ...], problems: list[str], file: TomlFile
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield (key path, own values) for the file and for each table in it that is named after a command or group."""
    inner = {
        c.split()[len(key_path)]
        for c in OPTIONS
        if len(c.split()) > len(key_path) and c.split()[: len(key_path)] == [*key_path]
    }
    # A few names are commands and options. In a file, a table belongs to the command and any other value to the option.
    tables = {n for n in inner & values.keys() if isinstance(values[n], dict) or n not in _TYPES}
    yield key_path, {k: v for k, v in values.items() if k not in tables}
    for name in tables:
        if isinstance(values[name], dict):
            yield from _tables(values[name], (*key_path, name), problems, file)
        else:
            problems.append(f"{file.where(*key_path, name)}: `{name}` is a command and must be a table: [{name}]")


def _from_variables(environ: Mapping[str, str], found: dict[str, dict[str, Setting]], problems: list[str]) -> None:
    variables = {variable_name(p): p for p in _TYPES}
    for variable in sorted(v for v in environ if v.startswith("VIDQA_") and v not in OTHER_VARIABLES):
        parameter, text = variables.get(variable), environ[variable]
        if parameter is None:
            problems.append(f"unknown variable {variable}{did_you_mean(variable, variables)}")
            continue
        if not text:
            continue  # an empty variable counts as not set
        option = _TYPES[parameter]
        try:
            value = option.from_text(text)
            valid = option.accepts(value)
        except ValueError:
            valid = False
        if not valid:
            problems.append(f"variable {variable} must be {option.description}, not {text!r}")
            continue
        for command, options in OPTIONS.items():
            if parameter in options and (command, parameter) not in _OWN_TABLE_ONLY:
                found[command][parameter] = Setting(value, f"variable {variable}")


def _relative_to_file(file: Path, parameter: str, value: Any) -> Any:
    """Resolve a relative path against the folder of the settings file; `demo` and `caption` are names, not paths."""
    if isinstance(value, list):
        return [_relative_to_file(file, parameter, one) for one in value]
    is_path = (
        _TYPES[parameter] is PATH
        or (parameter == "files_from" and value != "-")
        or (parameter in ("model", "questions") and ("/" in value or os.sep in value or value.endswith(".toml")))
    )
    return str(file.parent / os.path.expanduser(value)) if is_path else value
