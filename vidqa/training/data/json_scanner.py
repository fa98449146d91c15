"""File of JSON records -> start and end offset of each record; the file is read chunk by chunk.

JSON is not parsed here: numpy finds brackets, commas and strings of a whole chunk at once. A record is parsed when it
is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vidqa.common.display import plural
from vidqa.errors import UsageError

Layout = Literal["array", "lines", "parquet"]
CHUNK = 1 << 18

_QUOTE, _OPEN, _CLOSE, _COMMA = 1, 2, 3, 4
_KIND = np.zeros(256, np.uint8)
for _letters, _kind in ((b'"', _QUOTE), (b"[{", _OPEN), (b"]}", _CLOSE), (b",", _COMMA)):
    _KIND[list(_letters)] = _kind
_BACKSLASH, _NEWLINE, _SPACE = 0x5C, 0x0A, 0x20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Scanned:
    """Offsets of the records of a file."""

    spans: np.ndarray  # int64 [N, 2]: byte offsets of start and end (exclusive) of each record
    sha256: str  # digest of the whole file
    size: int  # size of the file in bytes


def layout_of(path: Path) -> Layout:
    """Detect how a file stores records, by its first bytes.

    Raises:
        UsageError: it cannot be read, or has none of the three layouts.
    """
    try:
        with path.open("rb") as f:
            head = f.read(4096)
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror or e}") from e
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith(b"["):
        return "array"
    if text.startswith(b"{"):
        return "lines"
    what = "is empty" if not text else "is not a JSON list, JSON lines or a Parquet file"
    raise UsageError(f"{path}: {what}")


def scan_json(
    path: Path, layout: Layout, *, chunk: int = CHUNK, advance: Callable[[int], object] | None = None
) -> Scanned:
    """Find the records of a JSON list (`array`) or of JSON lines.

    Args:
        path: path of the file.
        layout: its layout, from `layout_of`.
        chunk: bytes read at a time.
        advance: called after each chunk with its number of bytes.

    Raises:
        UsageError: the file cannot be read, or the list is not closed, closed twice, or followed by text.
    """
    scanner: _Array | _Lines = _Array(path) if layout == "array" else _Lines()
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as f:
            while data := f.read(chunk):
                digest.update(data)
                scanner.feed(np.frombuffer(data, np.uint8), size)
                size += len(data)
                if advance:
                    advance(len(data))
            spans = scanner.spans(size)
            # `[ ]`, and a byte order mark before an empty line, look like one empty record.
            if len(spans) and (layout == "lines" or len(spans) == 1):
                f.seek(int(spans[0, 0]))
                if not f.read(int(spans[0, 1] - spans[0, 0])).removeprefix(_BOM).strip():
                    spans = spans[1:]
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror or e}") from e
    return Scanned(spans, digest.hexdigest(), size)


class _Array:
    """Splits a JSON list at its top-level commas. The state is carried over from chunk to chunk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.escaped = False  # the first byte of the next chunk is escaped by a backslash
        self.in_string = False
        self.depth = 0
        self.closed = False
        self.cuts: list[np.ndarray] = []  # offsets of `[`, the top-level commas, and `]`

    def feed(self, data: np.ndarray, offset: int) -> None:
        kinds = _KIND[data]
        self._ignore_escaped(data, kinds)
        at = np.flatnonzero(kinds)
        what = kinds[at]
        n_quotes = np.cumsum(what == _QUOTE) + int(self.in_string)
        outside = (what != _QUOTE) & (n_quotes % 2 == 0)
        if len(at):
            self.in_string = bool(n_quotes[-1] % 2)
        at, what = at[outside], what[outside]
        depth = self.depth + np.cumsum((what == _OPEN).astype(np.int64) - (what == _CLOSE))
        is_cut = (depth == 1) & ((what == _COMMA) | (what == _OPEN)) | (depth == 0)
        # `[[1], [2]]`: a bracket that opens depth 1 is that of the list; those of records reach depth 2.
        self._check(data, at, depth, offset)
        self.cuts.append(at[is_cut].astype(np.int64) + offset)
        if len(at):
            self.depth = int(depth[-1])

    def _ignore_escaped(self, data: np.ndarray, kinds: np.ndarray) -> None:
        """Clear `kinds` for characters after an odd run of backslashes."""
        slashes = np.flatnonzero(data == _BACKSLASH)
        if self.escaped:
            kinds[0] = 0
            slashes = slashes[slashes != 0]
        self.escaped = False
        if not len(slashes):
            return
        first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)  # starts of the runs
        length = np.diff(first, append=len(slashes))
        after = (slashes[first] + length)[length % 2 == 1]
        self.escaped = bool(len(after) and after[-1] == len(data))
        kinds[after[after < len(data)]] = 0

    def _check(self, data: np.ndarray, at: np.ndarray, depth: np.ndarray, offset: int) -> None:
        """Reject text after the end of the list."""
        start = 0
        if not self.closed:
            ends = np.flatnonzero(depth <= 0)
            if not len(ends):
                return
            self.closed, start = True, int(at[ends[0]]) + 1
        if len(rest := np.flatnonzero(data[start:] > _SPACE)):
            raise UsageError(f"{self.path}: byte {offset + start + int(rest[0])}: text after the end of the list")

    def spans(self, size: int) -> np.ndarray:
        """Return start and end of each record, int64 [N, 2]."""
        if not self.closed:
            where = "inside a string" if self.in_string else f"with {plural(self.depth, 'open bracket')}"
            raise UsageError(f"{self.path}: the list is truncated: the file ends at byte {size} {where}")
        cuts = np.concatenate(self.cuts)
        return np.stack([cuts[:-1] + 1, cuts[1:]], axis=1)


class _Lines:
    """Splits JSON lines at line breaks; empty lines are not records."""

    def __init__(self) -> None:
        self.start = 0  # offset of the line that the next chunk continues
        self.n_seen = 0  # number of its bytes so far that are not white space
        self.found: list[np.ndarray] = []

    def feed(self, data: np.ndarray, offset: int) -> None:
        ends = np.flatnonzero(data == _NEWLINE)
        seen = np.cumsum(data > _SPACE, dtype=np.int64)
        if not len(ends):
            self.n_seen += int(seen[-1])
            return
        until = seen[ends]
        n_seen = np.diff(until, prepend=0)
        n_seen[0] += self.n_seen
        starts = np.concatenate([[self.start], ends[:-1] + 1 + offset])
        self.found.append(np.stack([starts, ends + offset], axis=1)[n_seen > 0].astype(np.int64))
        self.start, self.n_seen = int(ends[-1]) + 1 + offset, int(seen[-1] - until[-1])

    def spans(self, size: int) -> np.ndarray:
        """Return start and end of each record, int64 [N, 2]."""
        last = np.array([[self.start, size]] if self.n_seen else [], np.int64).reshape(-1, 2)
        return np.concatenate([*self.found, last])
