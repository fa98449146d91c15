"""Parsed JSON <-> the records of a bundle, strictly: unknown and missing keys are errors.

Fields marked `OPTIONAL` may be missing, and are not written while they have their default.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vidqa.model.bundle.spec import OPTIONAL, BundleSpec


def to_json(record: Any) -> dict[str, Any]:
    """Convert a record to its form in `bundle.json`, without optional defaults. Ids are digests of this form."""
    out = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if f.metadata == OPTIONAL and value == (f.default if f.default is not MISSING else {}):
            continue
        out[f.name] = to_json(value) if is_dataclass(value) else value
    return out


def read_spec(data: object) -> tuple[BundleSpec | None, list[str]]:
    """Check parsed JSON against the records.

    Args:
        data: result of `json.loads`.

    Returns:
        The record (None if there is a problem) and all problems, each starting with the full name of the key.
    """
    problems: list[str] = []
    spec = _read(BundleSpec, data, "", problems)
    return (None if problems else spec), problems


def _read(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return `value` converted to `kind`; append every mismatch to `problems`."""
    if is_dataclass(kind):
        return _read_record(kind, value, where, problems)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        return None if value is None else _read(inner, value, where, problems)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            problems.append(f"{where}: must be one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            problems.append(f"{where}: needs {len(kinds)} values, got {len(value)}")
            return ()
        return tuple(_read(k, v, f"{where}[{i}]", problems) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {k: _read(args[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    accepted = (int, float) if kind is float else (kind,)
    if origin or not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where}: must be {_NAMES.get(origin or kind, kind)}, got {value!r:.80}")
    elif kind in (int, float) and not -_LARGEST < value < _LARGEST:  # Python's JSON accepts NaN, Infinity and 10**400
        problems.append(f"{where}: must be a number of reasonable size, got {value!r:.80}")
    elif kind is float:
        return float(value)
    return value


_LARGEST = 1 << 63

_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    dict: "an object",
}


def _read_record(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where or 'the file'}: must be an object, got {value!r:.80}")
        return None
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    needed = [f.name for f in fields(kind) if f.metadata != OPTIONAL]
    before = len(problems)
    problems += [f"{prefix}{key}: unknown key" for key in value if key not in names]
    problems += [f"{prefix}{name}: missing" for name in needed if name not in value]
    read = {n: _read(hints[n], value[n], f"{prefix}{n}", problems) for n in names if n in value}
    if len(problems) > before:
        return None
    try:
        return kind(**read)
    except ValueError as e:
        problems.append(f"{where or 'the file'}: {e}")
        return None
