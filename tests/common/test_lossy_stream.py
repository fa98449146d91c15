"""Messages that cannot be written are lost; anything else behaves like the stream itself."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

import pytest

from vidqa.common.lossy_stream import lossy


def test_what_can_be_written_is_written() -> None:
    stream = io.StringIO()
    lossy(stream).write("a")
    lossy(stream).writelines(["b", "c"])
    lossy(stream).flush()
    assert stream.getvalue() == "abc"
    assert lossy(lossy(stream)) is not stream and not lossy(stream).isatty()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_full_disk() -> None:
    stream = open("/dev/full", "w")  # noqa: SIM115 - closing it fails
    lost = lossy(stream)
    assert lost.write("hello\n" * 10_000) == 60_000
    lost.flush()
    assert lost.fileno() == stream.fileno()
    with suppress(OSError):
        stream.close()


def test_closed_pipe_and_closed_stream() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", buffering=1)  # noqa: SIM115 - closing it fails
    for _ in range(2):
        print("hello", file=lossy(stream), flush=True)
    with suppress(OSError):
        stream.close()
    print("after the end", file=lossy(stream), flush=True)


def test_mistakes_of_the_caller_are_still_errors() -> None:
    with pytest.raises(UnicodeEncodeError):
        lossy(io.TextIOWrapper(io.BytesIO(), "ascii")).write("\u00e9")
    with pytest.raises(TypeError):
        lossy(io.StringIO()).write(b"bytes")  # type: ignore[arg-type]
