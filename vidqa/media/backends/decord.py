"""Path -> frames at exact indices, by decord. Does not choose which frames.

decord 0.6 is believed only where it can be checked: containers it reads well, one video stream, the same number of
frames as the packets hold, the size that is expected. Everything else is refused, never guessed. It turns frames
upright itself; pixel aspect is applied here. Times come from the packet index, because decord's own have been seen
wrong (MXF: -3.7e17 s).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.backends.pyav import PyavReader
from vidqa.media.files import native_path

_CONTAINERS = ("isobmff", "matroska", "avi")
#: Frames decoded by one call: more would only hold more memory.
_CHUNK = 16


class DecordReader:
    """Frames of one video, by index: the decoding of `PyavReader` replaced, its facts and index kept.

    Args:
        known: an open reader of the same file; it is closed together with this one.

    Raises:
        MediaError: unsupported where decord is missing or not proven right for this file.
    """

    backend = "decord"

    def __init__(self, known: PyavReader) -> None:
        self.path, self.facts, self.pts_s = known.path, known.facts, known.pts_s
        self._exit = ExitStack()
        self._exit.callback(known.close)
        try:
            self._reader = self._open(known)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DecordReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._reader = None
        self._exit.close()

    def _open(self, known: PyavReader) -> object:
        try:
            import decord
        except (ImportError, OSError) as e:
            raise self._refused("decord is not installed") from e
        if reason := _unfit(known):
            raise self._refused(reason)
        decord.logging.set_level(decord.logging.QUIET)
        name = self._exit.enter_context(native_path(self.path))
        try:
            reader = decord.VideoReader(name, num_threads=1)
        except (decord.DECORDError, RuntimeError) as e:
            raise self._refused("decord cannot open it") from e
        if len(reader) != len(self.pts_s):
            raise self._refused(f"decord counts {len(reader)} frames, the packets hold {len(self.pts_s)}")
        return reader

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames in the order of `indices`, each a fresh uint8 RGB array [H, W, 3].

        Raises:
            MediaError: decord fails, or gives frames of another size than expected.
        """
        import decord

        for start in range(0, len(indices), _CHUNK):
            part = [int(i) for i in indices[start : start + _CHUNK]]
            try:
                batch = self._reader.get_batch(part).asnumpy()  # type: ignore[attr-defined]
            except (decord.DECORDError, RuntimeError) as e:
                raise MediaError("unreadable", f"{display_path(self.path)}: decord cannot decode it") from e
            for pixels in batch:
                yield self._square(pixels)

    def _square(self, pixels: np.ndarray) -> np.ndarray:
        """Stretch along the one axis on which pixels are not square, by linear interpolation."""
        height, width = self.facts.height, self.facts.width
        along = 0 if self.facts.rotation_deg in (90, 270) else 1
        across = (width, height)[along]  # the axis that must fit already
        if pixels.shape[1 - along] != across or (self.facts.pixel_aspect == 1 and pixels.shape[:2] != (height, width)):
            raise self._refused(f"decord gives {pixels.shape[1]} x {pixels.shape[0]}, expected {width} x {height}")
        n, n_new = pixels.shape[along], (height, width)[along]
        if n == n_new:
            return pixels
        at = np.clip((np.arange(n_new) + 0.5) * n / n_new - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        weight = (at - low).reshape((-1, 1, 1) if along == 0 else (1, -1, 1))
        mixed = np.take(pixels, low, along) * (1 - weight) + np.take(pixels, high, along) * weight
        return (mixed + 0.5).astype(np.uint8)

    def _refused(self, reason: str) -> MediaError:
        return MediaError(
            "unsupported", f"{display_path(self.path)}: {reason}", hint="use the backend `pyav` or `auto`"
        )


def _unfit(known: PyavReader) -> str | None:
    """Why decord must not be trusted with a file; None where nothing speaks against it."""
    index, container = known.index, known.opened.signature.container
    if index.by_order or not index.one_packet_one_frame:
        return "the packets of this stream do not tell its frames"
    if container not in _CONTAINERS:
        return f"decord is not used for {container}"
    if index.open_groups:
        return "decord gives wrong frames after seeking into an open group of pictures"
    if len(known.opened.container.streams.video) != 1:
        return "decord cannot be told which of several video streams to decode"
    return "decord does not mirror frames" if known.mirrored else None
