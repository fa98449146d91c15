"""How often in a row a question about a content has failed, kept from night to night beside the table.

A night is a run that asked: clocks do not come into it, so one that is set back changes nothing, and a run by hand
counts as one. After three failed nights a row is in quarantine: `--retry failed` passes it over, and tries it again
only after 7, then 14, then every 28 further runs. A changed file has another content, and so starts anew; `--retry all`
asks everything. Files whose content cannot be read at all have no name to be counted under: they are tried every night,
which costs next to nothing.

Knows contents, questions and one JSON file; does not know the table's rows.
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

#: Failures in a row that put a row into quarantine.
QUARANTINE_AFTER = 3
#: Runs with `--retry failed` that pass it over before it is tried again: after the third failure, the fourth, ...
BACK_OFF = (7, 14, 28)

_FORMAT = 1

#: media_id, question text, model_id, settings_id: what a row is known by.
Key = tuple[str, str, str, str]


@dataclass
class Failure:
    """One row that failed the last time it was asked for."""

    media_id: str
    question: str
    model_id: str
    settings_id: str
    path: str  # for people; as it was found last
    error_kind: str
    n_failed: int = 0  # nights in a row
    n_skipped: int = 0  # runs that passed it over since then

    @property
    def key(self) -> Key:
        """What the row is known by."""
        return self.media_id, self.question, self.model_id, self.settings_id

    @property
    def quarantined(self) -> bool:
        """Whether it has failed too often to be tried every night."""
        return self.n_failed >= QUARANTINE_AFTER


class RetryPolicy:
    """The failures of one table. A missing or damaged file counts as none: files are then tried a few times more.

    Args:
        table: path of the table; the file lies beside it, as `TABLE.failures.json`, and goes when nothing fails.
    """

    def __init__(self, table: str | os.PathLike[str]) -> None:
        table = Path(os.path.realpath(table))
        self.path = table.with_name(f"{table.name}.failures.json")
        self._known: dict[Key, Failure] = {}
        self._changed = False

    def load(self) -> RetryPolicy:
        """Read what earlier runs left."""
        try:
            data = json.loads(self.path.read_bytes())
            known = [Failure(**one) for one in data["failures"]]
            if data["format"] != _FORMAT or not all(isinstance(f.n_failed + f.n_skipped, int) for f in known):
                raise ValueError("another format")
        except FileNotFoundError:
            return self
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning(
                "%s cannot be used (%s): the nights of failure are counted anew", display_path(str(self.path)), error
            )
            return self
        self._known = {failure.key: failure for failure in known}
        return self

    def quarantined(self, key: Key) -> bool:
        """Whether a row is in quarantine."""
        failure = self._known.get(key)
        return failure is not None and failure.quarantined

    def passes_over(self, key: Key) -> bool:
        """Whether a run that asks failed rows again leaves this one out; counts that it did."""
        failure = self._known.get(key)
        if failure is None or not failure.quarantined:
            return False
        wait = BACK_OFF[min(failure.n_failed - QUARANTINE_AFTER, len(BACK_OFF) - 1)]
        if failure.n_skipped >= wait:
            return False
        failure.n_skipped += 1
        self._changed = True
        return True

    def note(self, rows: Iterable[AnswerRow]) -> None:
        """Count the outcome of one night.

        Args:
            rows: all rows of a file and its questions; a question fails when one of its segments does.
        """
        outcome: dict[Key, AnswerRow] = {}
        for row in rows:
            if row.media_id is not None:
                key = (row.media_id, row.question, row.model_id, row.settings_id)
                if key not in outcome or row.status == "failed":
                    outcome[key] = row
        for key, row in outcome.items():
            if row.status != "failed":
                self._changed |= self._known.pop(key, None) is not None
                continue
            failure = self._known.setdefault(key, Failure(*key, row.path, str(row.error_kind)))
            failure.path, failure.error_kind = row.path, str(row.error_kind)
            failure.n_failed, failure.n_skipped = failure.n_failed + 1, 0
            self._changed = True

    def keep(self, has_rows: Callable[[Key], bool]) -> None:
        """Forget the failures of rows that are not in the table any more."""
        gone = [key for key in self._known if not has_rows(key)]
        for key in gone:
            del self._known[key]
        self._changed |= bool(gone)

    def save(self) -> None:
        """Write what changed. To be called after the table has its rows: a kill in between loses one night's count.

        A file that cannot be written costs the counts and not the run.
        """
        if not self._changed:
            return
        try:
            if self._known:
                data = {"format": _FORMAT, "failures": [asdict(failure) for failure in self._known.values()]}
                with atomic_io.atomic_write(self.path) as f:
                    f.write(json.dumps(data, indent=0).encode())
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be written: %s", display_path(str(self.path)), error.strerror or error)
        self._changed = False
