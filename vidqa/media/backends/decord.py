"""Path -> frames by index, with decord.

decord 0.6 is only used where its result can be verified: containers that it reads correctly, a single video stream, as
many frames as packets, and the expected frame size. Other files are rejected. decord applies the rotation itself; the
pixel aspect ratio is applied here. Times come from the packet index, because decord's own can be wrong (-3.7e17 s in an
MXF file).
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
#: Frames decoded per call, to limit memory.
_FRAMES_PER_CALL = 16


class DecordReader:
    """Reads frames of one video by index: facts and index from a `PyavReader`, frames from decord.

    Args:
        source: an open reader of the same file; closed together with this one.

    Raises:
        MediaError: (`unsupported`) decord is not installed, or its result cannot be verified for this file.
    """

    backend = "decord"

    def __init__(self, source: PyavReader) -> None:
        self.path, self.facts, self.pts_s = source.path, source.facts, source.pts_s
        self._exit = ExitStack()
        self._exit.callback(source.close)
        try:
            self._reader = self._open(source)
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

    def _open(self, source: PyavReader) -> object:
        try:
            import decord
        except (ImportError, OSError) as e:
            raise self._rejection("decord is not installed") from e
        if reason := _unsupported_reason(source):
            raise self._rejection(reason)
        decord.logging.set_level(decord.logging.QUIET)
        name = self._exit.enter_context(native_path(self.path))
        try:
            reader = decord.VideoReader(name, num_threads=1)
        except (decord.DECORDError, RuntimeError) as e:
            raise self._rejection("decord cannot open it") from e
        if len(reader) != len(self.pts_s):
            raise self._rejection(f"decord counts {len(reader)} frames, but there are {len(self.pts_s)} packets")
        return reader

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames in the order of `indices`, each a new uint8 RGB array [H, W, 3].

        Raises:
            MediaError: decord fails, or returns frames of an unexpected size.
        """
        import decord

        for start in range(0, len(indices), _FRAMES_PER_CALL):
            part = [int(i) for i in indices[start : start + _FRAMES_PER_CALL]]
            try:
                batch = self._reader.get_batch(part).asnumpy()  # type: ignore[attr-defined]
            except (decord.DECORDError, RuntimeError) as e:
                raise MediaError("unreadable", f"{display_path(self.path)}: decord cannot decode it") from e
            for pixels in batch:
                yield self._to_square_pixels(pixels)

    def _to_square_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Resample one axis to square pixels by linear interpolation."""
        height, width = self.facts.height, self.facts.width
        along = 0 if self.facts.rotation_deg in (90, 270) else 1
        across = (width, height)[along]  # the size of the other axis must already be correct
        if pixels.shape[1 - along] != across or (self.facts.pixel_aspect == 1 and pixels.shape[:2] != (height, width)):
            raise self._rejection(f"decord returns {pixels.shape[1]} x {pixels.shape[0]}, expected {width} x {height}")
        n, n_new = pixels.shape[along], (height, width)[along]
        if n == n_new:
            return pixels
        at = np.clip((np.arange(n_new) + 0.5) * n / n_new - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        weight = (at - low).reshape((-1, 1, 1) if along == 0 else (1, -1, 1))
        mixed = np.take(pixels, low, along) * (1 - weight) + np.take(pixels, high, along) * weight
        return (mixed + 0.5).astype(np.uint8)

    def _rejection(self, reason: str) -> MediaError:
        return MediaError(
            "unsupported", f"{display_path(self.path)}: {reason}", hint="use the backend `pyav` or `auto`"
        )


def _unsupported_reason(source: PyavReader) -> str | None:
    """Return why decord must not be used for a file; None if it may."""
    index, container = source.index, source.video.signature.container
    if index.by_order or not index.one_packet_one_frame:
        return "the packets of this stream do not correspond to frames"
    if container not in _CONTAINERS:
        return f"decord is not used for {container}"
    if index.open_gops:
        return "decord returns wrong frames after seeking to an open GOP"
    if len(source.video.container.streams.video) != 1:
        return "decord cannot select one of several video streams"
    if source.has_alpha:
        return "decord ignores transparency"
    return "decord does not mirror frames" if source.mirrored else None
