"""A text stream for messages: what cannot be written is lost, and the program continues.

stderr may disappear during a long run: the terminal is closed, the program at the other end of a pipe exits
(`2>&1 | head -1`), or the disk of the log file is full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO, cast


class LossyStream:
    """Passes everything on to another stream and drops what that stream cannot write.

    Args:
        stream: a text stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text if possible.

        Args:
            text: to write.

        Returns:
            The number of characters, also if they were dropped.
        """
        try:
            return self._stream.write(text)
        except (OSError, RuntimeError):  # RuntimeError: a signal handler has interrupted another write
            return len(text)
        except ValueError:
            if self._stream.closed:
                return len(text)
            raise

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts if possible.

        Args:
            lines: to write.
        """
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream if possible."""
        try:
            self._stream.flush()
        except (OSError, RuntimeError):
            pass
        except ValueError:
            if not self._stream.closed:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lossy(stream: TextIO) -> TextIO:
    """Return a stream that drops what cannot be written.

    Args:
        stream: a text stream, lossy or not.
    """
    return stream if isinstance(stream, LossyStream) else cast(TextIO, LossyStream(stream))
