"""Sample table of an MP4 or MOV file -> its frame index, without reading the packets.

The sample table lists dts and file position of every frame. PyAV does not expose the composition offsets, from which
the pts follow. For a constant frame rate they are not needed: dts and pts have the same constant spacing, and the first
pts comes from decoding. Reading the packets instead takes 0.3 s per hour of video and reads the whole file.
"""

from __future__ import annotations

import os

import av
import numpy as np

from vidqa.media.container import OpenVideo, read_packets
from vidqa.media.frame_index.frame_index import FrameIndex, IndexMismatchError

#: Number of frames from which this is worthwhile; the packets of a shorter video are read in a few milliseconds.
MIN_FRAMES = 2000
#: Maximum number of packets after the last keyframe that are read to check the table.
_MAX_CHECKED = 1500
#: Codecs that show every stored frame.
_CODECS = ("h264", "hevc", "mpeg4")


def index_from_container(video: OpenVideo, first_pts: int | None) -> FrameIndex | None:
    """Build the index from the sample table.

    The result is `unverified`: if the decoder does not return a frame at its pts, the packets have to be read. The last
    GOP is checked here, because the file may be truncated or continue in fragments.

    Args:
        video: the open video, at any position.
        first_pts: pts of the first decoded frame in ticks.

    Returns:
        The index; None for other containers, variable frame rates, edit lists, or short videos.

    Raises:
        IndexMismatchError: the last GOP differs from the table. The read position is then near the end of the file.
    """
    stream, codec = video.stream, video.stream.codec_context.codec.canonical_name
    if not video.container.format.name.startswith("mov") or codec not in _CODECS or first_pts is None:
        return None
    entries = stream.index_entries
    n = len(entries)
    if n < MIN_FRAMES or n != stream.frames:  # the table does not include fragments
        return None
    flat = np.fromiter((v for e in entries for v in (e.timestamp, e.flags, e.pos + e.size)), np.int64, 3 * n)
    dts, flags, ends = flat.reshape(n, 3).T
    steps, keys = np.diff(dts), np.flatnonzero(flags & 1)
    step = int(steps[0])
    if (flags > 1).any():  # frames that an edit list discards
        return None
    if step <= 0 or (steps != step).any() or not len(keys) or keys[0] or n - keys[-1] > _MAX_CHECKED:
        return None
    if ends.max() > os.path.getsize(video.path):
        return None
    index = FrameIndex(
        pts=first_pts + step * np.arange(n, dtype=np.int64),
        keys=dts[keys] + (first_pts - dts[0]),
        time_base=video.time_base,
        last_duration=step,
        unverified=True,
    )
    if not _last_gop_matches(video, index, n - int(keys[-1])):
        raise IndexMismatchError("the last frames differ from the sample table")
    return index


def _last_gop_matches(video: OpenVideo, index: FrameIndex, n_last: int) -> bool:
    """Return whether the packets from the last keyframe on have the expected number and pts."""
    try:
        video.container.seek(int(index.keys[-1]), stream=video.stream, backward=True, any_frame=False)
        times = [packet.pts for packet in read_packets(video) if packet.size and not packet.is_corrupt]
    except av.error.FFmpegError:
        return False
    return None not in times and sorted(times) == index.pts[-n_last:].tolist()  # type: ignore[type-var]
