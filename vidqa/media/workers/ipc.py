"""Messages between two processes over a pipe: any picklable value, with arrays sent out of band (pickle protocol 5)."""

from __future__ import annotations

import pickle
import struct
from enum import Enum
from typing import IO, Any

_HEAD = struct.Struct("<QI")  # length of the pickle, number of buffers
_SIZE = struct.Struct("<Q")


class Signal(Enum):
    """Messages of a decoder process that are not results."""

    ACCEPTED = "accepted"  # it has received a job and starts it
    PROGRESS = "progress"  # packets or frames of the file have arrived


class PipeClosedError(Exception):
    """The other process has exited or closed the pipe in the middle of a message."""


def send(pipe: IO[bytes], value: object) -> None:
    """Write one value.

    Args:
        pipe: a binary, blocking pipe.
        value: any picklable value.

    Raises:
        OSError: the other process has exited.
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    pipe.write(_HEAD.pack(len(body), len(buffers)) + body)
    for buffer in buffers:
        raw = buffer.raw()
        pipe.write(_SIZE.pack(raw.nbytes))
        pipe.write(raw)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one value; its arrays are writable.

    Args:
        pipe: a binary, blocking pipe.

    Raises:
        PipeClosedError: the other process has exited.
    """
    length, n_buffers = _HEAD.unpack(_read_exactly(pipe, _HEAD.size))
    body = _read_exactly(pipe, length)
    buffers = []
    for _ in range(n_buffers):
        (size,) = _SIZE.unpack(_read_exactly(pipe, _SIZE.size))
        buffers.append(_read_exactly(pipe, size))
    return pickle.loads(body, buffers=buffers)


def _read_exactly(pipe: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        n = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            raise PipeClosedError
        done += n
    return data
