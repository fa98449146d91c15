"""Python values over a pipe between two processes, arrays without an extra copy. Does not know what they mean."""

from __future__ import annotations

import pickle
import struct
from typing import IO, Any

_HEAD = struct.Struct("<QI")  # length of the pickle, number of buffers
_SIZE = struct.Struct("<Q")

#: Said by a process that has read a whole job and begins with it.
TAKEN = "taken"


class PipeClosedError(Exception):
    """The other side is gone, or hung up in the middle of a message."""


def send(pipe: IO[bytes], value: object, *, framed: bool = True) -> None:
    """Write one value.

    Args:
        pipe: binary, blocking.
        value: anything that pickles.
        framed: False writes a bare pickle, for a reader that knows nothing but `pickle.load`.

    Raises:
        OSError: the other side is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    if not framed:
        pipe.write(pickle.dumps(value, protocol=5))
        pipe.flush()
        return
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    pipe.write(_HEAD.pack(len(body), len(buffers)) + body)
    for buffer in buffers:
        raw = buffer.raw()
        pipe.write(_SIZE.pack(raw.nbytes))
        pipe.write(raw)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one value; its arrays are writable.

    Raises:
        PipeClosedError: the other side is gone.
    """
    length, n_buffers = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    body = _exactly(pipe, length)
    buffers = []
    for _ in range(n_buffers):
        (size,) = _SIZE.unpack(_exactly(pipe, _SIZE.size))
        buffers.append(_exactly(pipe, size))
    return pickle.loads(body, buffers=buffers)


def _exactly(pipe: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        n = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            raise PipeClosedError
        done += n
    return data
