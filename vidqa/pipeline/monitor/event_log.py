"""Events of a run -> one line each, as text or JSON.

Text has six fields separated by tabs: time, stage, outcome, seconds, media, note. JSON lines are objects with these
keys. Times are UTC. Line breaks and undecodable bytes in file names are escaped, so an event is always one line.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TextIO

from vidqa.common.display import display_path
from vidqa.common.path_text import escape_surrogates


class EventLog:
    """Writes events to a stream and flushes each of them, so that the log of a killed run is complete.

    Args:
        stream: text; a file must be open for appending.
        as_json: write JSON objects instead of tab-separated fields.
    """

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        self._stream, self._as_json = stream, as_json

    def write(
        self, stage: str, outcome: str, *, media: str | None = None, seconds: float | None = None, note: str = ""
    ) -> None:
        """Write one event.

        Args:
            stage: run, scan, read, decode, cache, answer, write or quarantine; see docs/operations.md.
            outcome: `ok`, `failed`, ...
            media: path of the file.
            seconds: duration of the step.
            note: more information, such as an error or a count.

        Raises:
            OSError: the stream cannot be written.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        name = None if media is None else display_path(media)
        if self._as_json:
            fields = {"time": time, "stage": stage, "outcome": outcome, "seconds": None, "media": name}
            fields["note"] = escape_surrogates(note)
            if seconds is not None:
                fields["seconds"] = round(seconds, 3)  # type: ignore[assignment]
            line = json.dumps(fields)  # ASCII, which every reader accepts
        else:
            duration = "" if seconds is None else f"{seconds:.3f}"
            line = "\t".join((time, stage, outcome, duration, name or "", display_path(note)))
        self._stream.write(line + "\n")
        self._stream.flush()
