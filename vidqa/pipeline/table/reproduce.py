"""What a row was made with, and the command that reproduces it, from the row and the provenance of its table."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidqa.common.path_text import unescape_path
from vidqa.prompts.questions import load_questions, question_sets

if TYPE_CHECKING:  # imports polars
    from vidqa.tables.provenance import Provenance

#: The table that the printed command writes.
OUT = "again.parquet"
_Record = Mapping[str, Any]


@dataclass(frozen=True)
class RowOrigin:
    """What a row was made with. None if the table does not state it."""

    settings: _Record | None
    model: _Record | None
    question: _Record | None
    command: str | None  # for a POSIX shell with `$'...'` (bash, zsh)
    unknown: tuple[str, ...]  # what the table does not state, one sentence each


def row_origin(row: _Record, provenance: Provenance) -> RowOrigin:
    """Return what a row was made with, and the command that reproduces it.

    Args:
        row: column -> value; file names with their original bytes.
        provenance: of the table.
    """
    settings, model = provenance.settings.get(row["settings_id"]), provenance.models.get(row["model_id"])
    unknown = []
    if settings is None:
        unknown.append(f"settings: the table does not record what settings_id {row['settings_id']} stands for")
    if model is None:
        unknown.append(f"model: the table does not record which model has the model_id {row['model_id']}")
    same_text = [one for one in provenance.questions if one["text"] == row["question"]]
    question = next((one for one in reversed(same_text) if one.get("id") == row["question_id"]), None)
    command = _command(row, settings, model) if settings is not None and model is not None else None
    return RowOrigin(settings, model, question, command, tuple(unknown))


def _command(row: _Record, settings: _Record, model: _Record) -> str:
    path, text = os.path.join(row["root"], row["path"]), row["question"]
    options = dict(settings)
    segment_s, kind, choices = options.pop("segment_s", None), options.pop("type", "text"), options.pop("choices", [])
    options |= {"dtype": model.get("dtype"), "quantize": model.get("quantize")}
    question_set, prepare = _set_with(row, settings), ""
    if kind != "text":
        prepare, question_set = _question_file(row, kind, choices)
    elif question_set is not None and settings.get("max_new_tokens") == _own_limit(question_set):
        options.pop("max_new_tokens", None)
    words = [f"--model {_shell_path(unescape_path(str(model.get('model') or model.get('name'))))}"]
    words.append(f"--segment {'whole' if segment_s is None else _number(segment_s)}")
    words += [
        f"--{name.replace('_', '-')} {shell_word(_number(value))}"
        for name, value in options.items()
        if value is not None
    ]
    if row["error_kind"] == "partial":
        words.append("--strict")
    words.append(f"--out {OUT}")
    if question_set is not None:
        return f"{prepare}vidqa describe {shell_word(path)} --questions {question_set} {' '.join(words)}"
    dashes = "-- " if text.startswith("-") else ""
    arguments = f"{dashes}{shell_word(path)} {shell_word(text)}"
    return " ".join(["vidqa ask", *words, arguments] if dashes else ["vidqa ask", arguments, *words])


def _set_with(row: _Record, settings: _Record) -> str | None:
    """Return the built-in question set that consists of the row's question only, or None."""
    for name in question_sets():
        questions = load_questions(name)
        if len(questions) == 1 and (questions[0].id, questions[0].text) == (row["question_id"], row["question"]):
            return name if questions[0].max_new_tokens in (None, settings.get("max_new_tokens")) else None
    return None


def _own_limit(question_set: str) -> int | None:
    return load_questions(question_set)[0].max_new_tokens


def _question_file(row: _Record, kind: str, choices: list[str]) -> tuple[str, str]:
    """Return the command that writes a question file, and the name of that file."""
    lines = ["[[question]]", f"id = {_toml(row['question_id'])}", f"text = {_toml(row['question'])}"]
    lines.append(f"type = {_toml(kind)}")
    if choices:
        lines.append(f"choices = [{', '.join(map(_toml, choices))}]")
    name = f"question-{row['settings_id']}.toml"
    return f"printf '%s\\n' {' '.join(map(shell_word, lines))} > {shell_word(name)} && ", shell_word(name)


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _shell_path(text: str) -> str:
    """Quote a path that may start with `~`, which a shell must expand."""
    return f"~/{shell_word(text[2:])}" if text.startswith("~/") and len(text) > 2 else shell_word(text)


def shell_word(text: str) -> str:
    """Return one word of a shell command that is printable, whatever bytes a file name has.

    Args:
        text: the value; undecodable bytes are surrogate escapes.
    """
    if text.isprintable():
        return shlex.quote(text)
    quoted = "".join(_shell_escape(c) for c in text)
    return f"$'{quoted}'"


def _shell_escape(c: str) -> str:
    if c in "\\'":
        return f"\\{c}"
    return c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
