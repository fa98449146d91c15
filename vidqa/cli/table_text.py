"""Text and JSON of the commands `vidqa table ...`: first rows, one row, counts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vidqa.common.display import display_path, display_text, human_bytes, plural
from vidqa.common.text_layout import columns_of_text, wrap_text
from vidqa.pipeline.table.row_address import segment_text

if TYPE_CHECKING:  # imports polars
    from vidqa.pipeline.table.reproduce import RowOrigin
    from vidqa.tables.provenance import Provenance
    from vidqa.tables.reader import TableReader
    from vidqa.tables.statistics import TableStatistics

#: Columns that `head` reads to show file, segment, question, status and answer.
DEFAULT_COLUMNS = (
    *("row", "path", "start_s", "end_s", "n_segments", "question_id"),
    *("status", "answer", "error_kind", "error"),
)
#: Longest cell where the output is not a terminal.
_MAX_CELL = 200
_LABEL_WIDTH = 18


def terminal_width() -> int | None:
    """Return the columns of the terminal, or of the variable COLUMNS; None if stdout is neither."""
    if (sys.stdout is not None and sys.stdout.isatty()) or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size((80, 24)).columns
    return None


def head_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None, width: int | None) -> str:
    """Return the first rows of a table.

    Args:
        rows: with the values of `columns`, or of `DEFAULT_COLUMNS`.
        columns: to show; None for file, segment, question, status and answer, as far as they vary.
        width: of the terminal; None if it is not limited.
    """
    if columns is None:
        header, cells = _default_cells(rows)
    else:
        header, cells = list(columns), [[_cell(name, row[name]) for name in columns] for row in rows]
    if width is None:
        cells = [[cell if len(cell) <= _MAX_CELL else f"{cell[:_MAX_CELL]}…" for cell in row] for row in cells]
    return columns_of_text(header, cells, width)


def row_text(row: Mapping[str, Any], origin: RowOrigin, width: int | None) -> str:
    """Return everything about one row.

    Args:
        row: column -> value, with `row` and `current`.
        origin: of the row.
        width: of the terminal; None if it is not limited.
    """
    lines: list[str] = []
    for name, value in row.items():
        lines += _labeled(name, _cell(name, value) if name != "answer" else value or "", width)
    for label, record in (("settings", origin.settings), ("model", origin.model), ("question", origin.question)):
        values = dict(_flat(record or {}))
        lines += ["", f"{label}:"] if values else []
        label_width = max(map(len, values), default=0)
        for name, value in values.items():
            lines += [f"  {line}" for line in _labeled(name, _value(value), width and width - 2, label_width)]
    lines += ["", *(f"unknown: {display_text(text)}" for text in origin.unknown)] if origin.unknown else []
    lines.append("")
    if origin.command is None:
        lines.append("The command that reproduces this row is unknown.")
    else:  # on one line, so that it can be copied
        lines += ["To reproduce this row:", f"  {origin.command}"]
    return "\n".join(lines) + "\n"


def row_as_dict(row: Mapping[str, Any], origin: RowOrigin) -> dict[str, Any]:
    """Return everything about one row for JSON: its columns, then `provenance`, `unknown` and `command`.

    Args:
        row: as for `row_text`.
        origin: as for `row_text`.
    """
    provenance = {"settings": origin.settings, "model": origin.model, "question": origin.question}
    return {**row, "provenance": provenance, "unknown": list(origin.unknown), "command": origin.command}


def info_as_dict(reader: TableReader, found: TableStatistics, n_pending: int) -> dict[str, Any]:
    """Return the counts of a table for JSON.

    Args:
        reader: the table.
        found: its counts.
        n_pending: rows that are only in its journal.
    """
    provenance = reader.provenance
    return {
        "path": str(reader.path),
        "format": reader.format,
        "bytes": reader.n_bytes,
        "rows": found.n_rows,
        "files": found.n_files,
        "pending_rows": n_pending,
        "noted_rows": found.n_noted,
        "status": dict(found.statuses),
        "error_kinds": dict(found.error_kinds),
        "questions": [
            {"question_id": question_id, "question": text, "rows": n}
            for (question_id, text), n in found.questions.most_common()
        ],
        "models": [
            {"model": name, "model_id": model_id, "rows": n, "record": provenance.models.get(model_id)}
            for (name, model_id), n in found.models.most_common()
        ],
        "settings": [
            {"settings_id": settings_id, "rows": n, "record": provenance.settings.get(settings_id)}
            for settings_id, n in found.settings.most_common()
        ],
        "age": dict(found.ages),
        "oldest": found.oldest,
        "newest": found.newest,
        "superseded": dict(found.superseded),
    }


def info_text(reader: TableReader, found: TableStatistics, n_pending: int, width: int | None) -> str:
    """Return the counts of a table.

    Args:
        reader: as for `info_as_dict`.
        found: as for `info_as_dict`.
        n_pending: as for `info_as_dict`.
        width: of the terminal; None if it is not limited.
    """
    from vidqa.tables.statistics import AGES, OLDER, UNKNOWN

    name, provenance = display_path(reader.name), reader.provenance
    size = f"{plural(found.n_rows, 'row')} about {plural(found.n_files, 'file')}, {human_bytes(reader.n_bytes)}"
    rows = [("status", status, n) for status, n in found.statuses.most_common()]
    rows += [("error", kind, n) for kind, n in found.error_kinds.most_common()]
    rows += [("note", "with a media_note", found.n_noted)] if found.n_noted else []
    rows += [("question", f"{question_id}: {text}", n) for (question_id, text), n in found.questions.most_common()]
    for (model, model_id), n in found.models.most_common():
        rows.append(("model", f"{model} {model_id}{_model_note(provenance, model_id)}", n))
    for settings_id, n in found.settings.most_common():
        rows.append(("settings", f"{settings_id} {settings_text(provenance, settings_id)}", n))
    rows += [("age", age, found.ages[age]) for age in (*AGES, OLDER, UNKNOWN) if found.ages[age]]
    reasons = {"content": "about older content of a path", "model": "by a replaced model"}
    rows += [("superseded", reasons[reason], n) for reason, n in sorted(found.superseded.items())]
    lines = [f"{name}: {reader.format}, {size}\n\n"]
    lines.append(columns_of_text(["", "", "rows"], [[label, text, f"{n:,}"] for label, text, n in rows], width))
    if found.oldest and found.newest:
        lines.append(f"\ncreated from {_minutes(found.oldest)} to {_minutes(found.newest)} UTC\n")
    if n_pending:
        lines.append(f"\n{plural(n_pending, 'row')} of these are of a running or interrupted run, in {name}.parts\n")
    if found.superseded:
        lines.append(f"\nto see what could be dropped: vidqa table prune {name} --superseded\n")
    return "".join(lines)


def settings_text(provenance: Provenance, settings_id: str) -> str:
    """Return the settings that an id stands for, in a few words.

    Args:
        provenance: of the table.
        settings_id: of some rows.
    """
    values = provenance.settings.get(settings_id)
    if values is None:
        return "(unknown: not recorded)"
    segment_s = values.get("segment_s")
    words = ["whole videos" if segment_s is None else f"segments of {segment_s:g} s"]
    others = {name: value for name, value in values.items() if name != "segment_s" and value not in (None, [])}
    words += [f"{name.replace('_', ' ')} {_value(value)}" for name, value in sorted(others.items())]
    return f"({', '.join(words)})"


def _model_note(provenance: Provenance, model_id: str) -> str:
    record = provenance.models.get(model_id)
    if record is None:
        return " (unknown: not recorded)"
    return "" if record.get("model") == record.get("name") else f" ({record.get('model')})"


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a record that are set; those of inner records with a dot in their name."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif name == "segment_s" or value not in (None, []):
            yield prefix + name, "whole video" if name == "segment_s" and value is None else value


def _default_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells. The answer comes last: after it, text from right to left cannot move other columns."""
    several_questions = len({row["question_id"] for row in rows}) > 1
    segmented = any((row["n_segments"] or 1) > 1 or (row["start_s"] or 0) > 0 for row in rows)
    header = ["row", "path", *["segment"] * segmented, *["question_id"] * several_questions, "status", "answer"]
    cells = []
    for row in rows:
        answer = row["answer"] or (f"[{row['error_kind']}] {row['error'] or ''}" if row["error_kind"] else "")
        optional = [segment_text(dict(row))] * segmented + [row["question_id"]] * several_questions
        cells.append([str(row["row"]), display_path(row["path"]), *optional, row["status"], answer])
    return header, cells


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in ("path", "root"):
        return display_path(value)
    return _value(value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else str(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return "" if value is None else str(value)


def _labeled(label: str, text: str, width: int | None, label_width: int = _LABEL_WIDTH) -> list[str]:
    """Return a value after its label; its lines are wrapped and stay separate lines."""
    label = display_text(label).ljust(label_width)
    text_width = None if width is None else max(20, width - len(label) - 1)
    parts: Iterable[str] = map(display_text, text.splitlines() or [""])
    lines = [line for part in parts for line in (wrap_text(part, text_width) if text_width else [part])]
    return [f"{label if number == 0 else ' ' * len(label)} {line}".rstrip() for number, line in enumerate(lines)]


def _minutes(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"
