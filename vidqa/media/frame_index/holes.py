"""Pauses of a video that are holes in its file: a download or copy that left zeros in place of some packets."""

from __future__ import annotations

import numpy as np

from vidqa.media.container import OpenVideo
from vidqa.media.frame_index.from_packets import PacketIndexBuilder

#: Maximum number of pauses that are examined, and of bytes that are read from each.
_MAX_PAUSES, _MAX_BYTES = 20, 1 << 22
#: Number of zeros in a row that make a hole. Uncompressed audio may contain some, if the file has other streams.
_N_ZEROS, _N_ZEROS_WITH_OTHER_STREAMS = 1 << 12, 1 << 16


def add_holes(builder: PacketIndexBuilder, video: OpenVideo) -> None:
    """Add a damaged packet for every hole. Videos without pauses are not read.

    Args:
        builder: has all packets of the stream.
        video: the open video.
    """
    pts, offsets = np.asarray(builder.pts, np.int64), np.asarray(builder.offsets, np.int64)
    order = np.argsort(pts)
    steps = np.diff(pts[order])
    pauses = np.flatnonzero(steps > 1 / builder.time_base)
    if not len(pauses) or len(pauses) > _MAX_PAUSES:
        return
    n_zeros = _N_ZEROS if len(video.container.streams) == 1 else _N_ZEROS_WITH_OTHER_STREAMS
    with open(video.path, "rb") as f:
        for i in pauses:
            start, end = int(offsets[order[i]]), int(offsets[order[i + 1]])
            if 0 <= start < end:
                f.seek(start)
                if bytes(n_zeros) in f.read(min(end - start, _MAX_BYTES)):
                    builder.damaged_pts.append(int(pts[order[i]]) + max(1, int(np.median(steps))))
