"""Events of a run -> one line each, for the morning after. Knows lines and streams; knows no stage.

As text, the fields stand in fixed order between tabs: time, stage, outcome, seconds, media, note (`cut -f5` gives the
names); as JSON, each line is an object with these keys. Times are UTC. Names with line breaks or undecodable bytes are
written with escapes, so a line is always one event.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TextIO

from vidqa.common.display import display_path
from vidqa.common.path_text import escape_surrogates


class EventLog:
    """Lines on a stream; each is flushed, so that a killed run has said all it did.

    Args:
        stream: text, opened for appending where it is a file.
        as_json: objects instead of tab-separated fields.
    """

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        self._stream, self._as_json = stream, as_json

    def write(
        self, stage: str, outcome: str, *, media: str | None = None, seconds: float | None = None, note: str = ""
    ) -> None:
        """Add one line.

        Args:
            stage: run, scan, read, decode, cache, answer, write or quarantine; see docs/operations.md.
            outcome: `ok`, `failed`, ...
            media: path of the file that it is about.
            seconds: that it took.
            note: one more thing to know: an error, a count.

        Raises:
            OSError: the stream takes no more.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        name = None if media is None else display_path(media)
        if self._as_json:
            fields = {"time": time, "stage": stage, "outcome": outcome, "seconds": None, "media": name}
            fields["note"] = escape_surrogates(note)
            if seconds is not None:
                fields["seconds"] = round(seconds, 3)  # type: ignore[assignment]
            line = json.dumps(fields)  # ASCII: any reader of lines can take it
        else:
            took = "" if seconds is None else f"{seconds:.3f}"
            line = "\t".join((time, stage, outcome, took, name or "", display_path(note)))
        self._stream.write(line + "\n")
        self._stream.flush()
