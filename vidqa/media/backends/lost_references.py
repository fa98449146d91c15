"""Packets of a stream, and which of them fail -> frames that may look wrong because their references are lost."""

from __future__ import annotations

from typing import Any


class LostReferences:
    """Follows a decoder. After a failed packet, everything up to the next keyframe is lost.

    So are the frames that are stored after that keyframe and shown before it. Frames without pts are never lost.
    """

    def __init__(self) -> None:
        self.n_failed = 0  # packets that could not be decoded
        self.restart()

    def restart(self) -> None:
        """Discard the packets so far: decoding continues elsewhere in the stream."""
        self._is_lost = False
        self._shown_from: int | None = None  # pts of the keyframe that ended the last loss
        self._lost: set[int] = set()  # pts

    def add(self, packet: Any) -> None:
        """Follow a packet before it is decoded."""
        if packet.is_keyframe:
            self._shown_from = packet.pts if self._is_lost else None
            self._is_lost = False
        if packet.pts is not None and (
            self._is_lost or (self._shown_from is not None and packet.pts < self._shown_from)
        ):
            self._lost.add(packet.pts)

    def fail(self) -> None:
        """Report that the last packet could not be decoded."""
        self.n_failed += 1
        self._is_lost = True

    def is_intact(self, frame: Any) -> bool:
        """Return whether a frame was decoded with all its references."""
        return not frame.is_corrupt and frame.pts not in self._lost
