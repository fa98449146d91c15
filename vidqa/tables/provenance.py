"""What the digests of a table stand for: its settings, models and questions. Stored once per table, not in every row.

In Parquet it is in the metadata of the file, under the key `vidqa`; next to a table of another format it is in
`TABLE.provenance.json`. Tables of earlier versions do not have it.

    settings    settings_id -> segment_s, max_new_tokens, type, choices ...: what the id is a digest of
    models      model_id -> name, `--model` argument, precision, and the digest of every part
    questions   id, text, type and choices of each question
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from vidqa.common.atomic_io import atomic_write
from vidqa.common.display import display_path

log = logging.getLogger(__name__)

#: Key in the metadata of a Parquet file.
METADATA_KEY = "vidqa"
_FORMAT = 1
_Record = Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Settings, models and questions of a table. All values can be represented in JSON."""

    settings: Mapping[str, _Record] = field(default_factory=dict)
    models: Mapping[str, _Record] = field(default_factory=dict)
    questions: tuple[_Record, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.settings or self.models or self.questions)

    def __or__(self, newer: Provenance) -> Provenance:
        """Return both together. A model keeps its newest record, because its folder may have moved."""
        questions = [*self.questions, *(one for one in newer.questions if one not in self.questions)]
        return Provenance({**self.settings, **newer.settings}, {**self.models, **newer.models}, tuple(questions))

    def restricted(self, keys: Iterable[tuple[str, str, str]]) -> Provenance:
        """Return what rows with some keys need.

        Args:
            keys: (question, model_id, settings_id).
        """
        used = list(keys)
        texts, models, settings = ({key[i] for key in used} for i in range(3))
        return Provenance(
            {name: value for name, value in self.settings.items() if name in settings},
            {name: value for name, value in self.models.items() if name in models},
            tuple(one for one in self.questions if one["text"] in texts),
        )

    def to_json(self) -> str:
        """Return ASCII text; equal values have equal text."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Provenance:
        """Return what `to_json` stored. Text that is damaged or of a later version is ignored with a warning.

        Args:
            text: from a file.
            source: name of the file, for the warning.
        """
        try:
            data = json.loads(text)
            found = cls(data["settings"], data["models"], tuple(data["questions"]))
            records = [*found.settings.values(), *found.models.values(), *found.questions]
            if data["format"] != _FORMAT or not all(isinstance(one, dict) for one in records):
                raise ValueError("another format")
            if not all(isinstance(one["text"], str) for one in found.questions):
                raise ValueError("a question without text")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("%s: settings and models of the table cannot be read: %s", display_path(source), error)
            return cls()
        return found

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a Parquet file."""
        return {METADATA_KEY: self.to_json()} if self else {}


def read_provenance(path: Path, table: Path | None = None) -> Provenance:
    """Read the provenance of one file of a table. It is empty for files of earlier versions.

    Args:
        path: the file, which has a valid suffix.
        table: for other formats than Parquet, the table whose sidecar file is read; by default `path`.
    """
    try:
        if path.suffix.lower() != ".parquet":
            source = sidecar_path(table or path)
            return Provenance.from_json(source.read_bytes(), str(source))
        with open(path, "rb") as f:  # polars does not accept names that are not UTF-8
            text = pl.read_parquet_metadata(f).get(METADATA_KEY)
    except FileNotFoundError:
        return Provenance()
    except (OSError, pl.exceptions.PolarsError) as error:  # a damaged table is reported when its rows are read
        log.warning("%s: settings and models of the table cannot be read: %s", display_path(str(path)), error)
        return Provenance()
    return Provenance() if text is None else Provenance.from_json(text, str(path))


def sidecar_path(table: str | os.PathLike[str]) -> Path:
    """Return the file that has the provenance of a table that is not Parquet."""
    path = Path(table)
    return path.with_name(f"{path.name}.provenance.json")


def write_sidecar(table: Path, provenance: Provenance) -> None:
    """Write the provenance of a table that is not Parquet, before the table is replaced: then it is never missing.

    Args:
        table: path of the table.
        provenance: of all its rows; if it is empty, no file is created.

    Raises:
        OSError: the file cannot be written.
    """
    path = sidecar_path(table)
    text = (json.dumps({"format": _FORMAT, **asdict(provenance)}, sort_keys=True, indent=1) + "\n").encode()
    try:
        is_current = path.read_bytes() == text
    except FileNotFoundError:
        is_current = not provenance
    if not is_current:
        with atomic_write(path) as f:
            f.write(text)
