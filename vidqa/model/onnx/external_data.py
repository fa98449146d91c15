"""ONNX file -> names of the external data files that its weights are in.

A runtime reads these files wherever they are, so the graph of a bundle may refer only to files that the bundle lists.
The file is parsed as protobuf (by the field numbers of onnx.proto, whose meaning never changes), skipping the weights,
so that a graph of gigabytes takes milliseconds. No onnx package is needed and nothing is executed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Message -> field -> type of the field. Fields that cannot contain a tensor are omitted.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
# No model nests graphs in attributes of graphs deeper than this; deeper nesting is an attempt to exhaust the parser.
_DEPTH = 50
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


def external_locations(path: Path) -> set[str]:
    """Return the file names that tensors of a graph refer to, unchanged; empty if all weights are inside.

    Raises:
        ValueError: the file is not ONNX, or is inconsistent.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as f:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if not any(number == 7 for number, _, _, _ in _fields(data, 0, len(data))):
                raise ValueError("no graph inside")
            return set(_locations(data, 0, len(data), "model", 0))


def _locations(data: mmap.mmap, start: int, stop: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEPTH:
        raise ValueError("graphs are nested too deeply")
    for number, wire, a, b in _fields(data, start, stop):
        inside = _INSIDE[kind].get(number)
        if inside is None or wire != _BYTES:
            continue
        if inside == "entry":
            entry = {n: data[x:y] for n, w, x, y in _fields(data, a, b) if w == _BYTES}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode("utf-8", "surrogateescape")
        else:
            yield from _locations(data, a, b, inside, depth + 1)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, first byte, end) of each field of the message in data[start:stop]."""
    at = start
    while at < stop:
        key, at = _varint(data, at, stop)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, end = _varint(data, at, stop)
        elif wire in (_EIGHT, _FOUR):
            end = at + (8 if wire == _EIGHT else 4)
        elif wire == _BYTES:
            length, at = _varint(data, at, stop)
            end = at + length
        else:
            raise ValueError(f"no protobuf message at byte {at}")
        if end > stop or not number:
            raise ValueError(f"a field ends after its message at byte {at}")
        yield number, wire, at, end
        at = end


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number does not end at byte {at}")
