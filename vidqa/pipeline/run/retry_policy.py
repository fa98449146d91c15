"""When failed rows are tried again: counts of failed runs, kept in a file next to the table.

A failed row is counted once per run that asked for it, independent of the clock. After three failed runs in a row it is
quarantined: `--retry failed` skips it, and tries it again only after 7, then 14, then every 28 further runs. A file
that changes has new content and starts from zero; `--retry all` ignores the counts. Files that cannot be read have no
media_id to count under; they are tried in every run, which costs almost nothing. Rows that failed as `partial` count as
failed in runs with `--strict` only; other runs answer them, which resets their counts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vidqa.common import atomic_io
from vidqa.common.display import display_path
from vidqa.records import AnswerRow

log = logging.getLogger(__name__)

#: Failed runs in a row after which a row is quarantined.
QUARANTINE_AFTER = 3
#: Runs with `--retry failed` that skip it before it is tried again: after the third failure, the fourth, ...
BACK_OFF = (7, 14, 28)

_FORMAT = 1

#: What identifies a row: media_id, question text, model_id, settings_id.
Key = tuple[str, str, str, str]


@dataclass
class Failure:
    """One row that failed when it was last asked for. The fields are those of the JSON file."""

    media_id: str
    question: str
    model_id: str
    settings_id: str
    path: str  # for people; where the file was last found
    error_kind: str
    n_failed: int = 0  # runs in a row
    n_skipped: int = 0  # runs that skipped it since then

    @property
    def key(self) -> Key:
        """What identifies the row."""
        return self.media_id, self.question, self.model_id, self.settings_id

    @property
    def is_valid(self) -> bool:
        """Whether all values, which come from a file, have the right types."""
        texts, numbers = (*self.key, self.path, self.error_kind), (self.n_failed, self.n_skipped)
        return all(isinstance(text, str) for text in texts) and all(isinstance(n, int) and n >= 0 for n in numbers)

    @property
    def is_quarantined(self) -> bool:
        """Whether it has failed too often to be tried in every run."""
        return self.n_failed >= QUARANTINE_AFTER


class RetryPolicy:
    """The failure counts of one table. Without a usable file all counts are zero: rows are tried a few more times.

    Args:
        table: path of the table. The counts are in `TABLE.failures.json` next to it; the file is removed when no row
            fails any more.
    """

    def __init__(self, table: str | os.PathLike[str]) -> None:
        table = Path(os.path.realpath(table))
        self.path = table.with_name(f"{table.name}.failures.json")
        self._failures: dict[Key, Failure] = {}
        self._changed = False

    def load(self) -> RetryPolicy:
        """Read the counts of earlier runs. Returns the object itself."""
        try:
            data = json.loads(self.path.read_bytes())
            failures = [Failure(**one) for one in data["failures"]]
            if data["format"] != _FORMAT or not all(f.is_valid for f in failures):
                raise ValueError("another format")
        except FileNotFoundError:
            return self
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be used (%s): failures are counted from zero", display_path(str(self.path)), error)
            return self
        self._failures = {failure.key: failure for failure in failures}
        return self

    def is_quarantined(self, key: Key) -> bool:
        """Return whether a row is quarantined.

        Args:
            key: of the row.
        """
        failure = self._failures.get(key)
        return failure is not None and failure.is_quarantined

    def n_failed(self, key: Key) -> int:
        """Return in how many runs in a row a row has failed.

        Args:
            key: of the row.
        """
        failure = self._failures.get(key)
        return 0 if failure is None else failure.n_failed

    def skip(self, key: Key) -> bool:
        """Return whether `--retry failed` skips a row in this run; if so, the skip is counted.

        Args:
            key: of the row.
        """
        failure = self._failures.get(key)
        if failure is None or not failure.is_quarantined:
            return False
        wait = BACK_OFF[min(failure.n_failed - QUARANTINE_AFTER, len(BACK_OFF) - 1)]
        if failure.n_skipped >= wait:
            return False
        failure.n_skipped += 1
        self._changed = True
        return True

    def record(self, rows: Iterable[AnswerRow]) -> None:
        """Count the outcome of one run.

        Args:
            rows: all rows of one file. A question counts as failed if one of its segments failed.
        """
        outcome: dict[Key, AnswerRow] = {}
        for row in rows:
            if row.media_id is not None:
                key = (row.media_id, row.question, row.model_id, row.settings_id)
                if key not in outcome or row.status == "failed":
                    outcome[key] = row
        for key, row in outcome.items():
            if row.status != "failed":
                self._changed |= self._failures.pop(key, None) is not None
                continue
            failure = self._failures.setdefault(key, Failure(*key, row.path, str(row.error_kind)))
            failure.path, failure.error_kind = row.path, str(row.error_kind)
            failure.n_failed, failure.n_skipped = failure.n_failed + 1, 0
            self._changed = True

    def drop_unless(self, has_rows: Callable[[Key], bool]) -> None:
        """Drop the counts of rows that are no longer in the table.

        Args:
            has_rows: returns whether the table has rows for a key.
        """
        dropped = [key for key in self._failures if not has_rows(key)]
        for key in dropped:
            del self._failures[key]
        self._changed |= bool(dropped)

    def save(self) -> None:
        """Write the counts if they changed. Call it after the table is written: a kill in between loses one count.

        If the file cannot be written, a warning is logged and the run continues.
        """
        if not self._changed:
            return
        try:
            if self._failures:
                data = {"format": _FORMAT, "failures": [asdict(failure) for failure in self._failures.values()]}
                with atomic_io.atomic_write(self.path) as f:
                    f.write(json.dumps(data, indent=0).encode())
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be written: %s", display_path(str(self.path)), error.strerror or error)
        self._changed = False
