"""A film's own list of its frames -> which frame is shown when, without reading the film.

MP4 and MOV list all their frames in front: when each is decoded, and where it lies. When it is shown is not in what
PyAV gives of that list, but follows for a steady rate: frames are then decoded at equal distances, and shown at the
same distances, from the first frame's time on. Reading the packets instead takes 0.3 s an hour, and the whole file.
"""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np

from vidqa.media.container import OpenVideo, read_packets
from vidqa.media.frame_index.from_packets import FrameIndex, IndexMismatchError

#: Frames of a film that is worth it; packets of a shorter one are read in a few milliseconds.
LEAST_FRAMES = 2000
#: Packets behind the last keyframe that are read to see whether the list tells the truth there.
_MOST_CHECKED = 1500
#: Codecs that show each frame which they store.
_SHOWN = ("h264", "hevc", "mpeg4")


def index_from_container(opened: OpenVideo, first_pts: int | None) -> FrameIndex | None:
    """The index by the file's own list; None where that cannot tell.

    It is a guess that whoever reads the frames must confirm: a frame that does not come at its time says that the
    packets must be asked (`guessed`). The last group of pictures is read here: the file may be cut, or go on.

    Args:
        opened: at any place.
        first_pts: time of the first frame, as decoded, in ticks.

    Raises:
        IndexMismatchError: the last group is not as the list says; the file is somewhere near its end.
    """
    stream, codec = opened.stream, opened.stream.codec_context.codec.canonical_name
    if not opened.container.format.name.startswith("mov") or codec not in _SHOWN or first_pts is None:
        return None
    entries = stream.index_entries
    n = len(entries)
    if n < LEAST_FRAMES or n != stream.frames:  # frames in fragments are not in the list
        return None
    flat = np.fromiter((v for e in entries for v in (e.timestamp, e.flags, e.pos + e.size)), np.int64, 3 * n)
    dts, flags, ends = flat.reshape(n, 3).T
    steps, keys = np.diff(dts), np.flatnonzero(flags & 1)
    step = int(steps[0])
    if (flags > 1).any():  # frames left out by an edit list
        return None
    if step <= 0 or (steps != step).any() or not len(keys) or keys[0] or n - keys[-1] > _MOST_CHECKED:
        return None
    if ends.max() > os.path.getsize(opened.path):
        return None
    index = FrameIndex(
        pts=first_pts + step * np.arange(n, dtype=np.int64),
        keys=dts[keys] + (first_pts - dts[0]),
        time_base=Fraction(opened.time_base),
        last_duration=step,
        guessed=True,
    )
    if not _ends_so(opened, index, n - int(keys[-1])):
        raise IndexMismatchError("the last frames are not those of the list")
    return index


def _ends_so(opened: OpenVideo, index: FrameIndex, n_last: int) -> bool:
    """Whether the packets from the last keyframe on are as many as promised, at the promised times."""
    try:
        opened.container.seek(int(index.keys[-1]), stream=opened.stream, backward=True, any_frame=False)
        times = [packet.pts for packet in read_packets(opened) if packet.size and not packet.is_corrupt]
    except av.error.FFmpegError:
        return False
    return None not in times and sorted(times) == index.pts[-n_last:].tolist()  # type: ignore[type-var]
