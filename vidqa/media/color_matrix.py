"""Color matrix of a video: how luma and chroma become red, green and blue.

FFmpeg's scaler converts with the matrix that the frame is tagged with, and with BT.601 if there is no tag. It refuses
frames with some rarer tags; they are converted with the closest matrix that it supports.
"""

from __future__ import annotations

from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace

#: Tags that FFmpeg's scaler accepts: the numbers are those of ITU-T H.273. 0 is RGB, 2 means that there is no tag.
_SUPPORTED = (0, 1, 2, 3, 4, 5, 6, 7, 9)
#: Names of the others. Those from 10 to 15 come with the primaries of BT.2020.
_NAMES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "derived from the primaries",
    13: "derived from the primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
_BT_2020 = range(10, 16)


def make_convertible(frame: VideoFrame) -> None:
    """Change the tag of a frame, unless FFmpeg's scaler supports it."""
    if frame.colorspace not in _SUPPORTED:
        frame.colorspace = Colorspace.BT2020 if frame.colorspace in _BT_2020 else Colorspace.ITU601


def color_notes(frame: VideoFrame) -> tuple[str, ...]:
    """Return a note if the colors of a frame, tagged as decoded, are converted with another matrix."""
    if frame.colorspace in _SUPPORTED:
        return ()
    used = "BT.2020" if frame.colorspace in _BT_2020 else "BT.601"
    name = _NAMES.get(frame.colorspace, f"number {frame.colorspace}")
    return (f"colors converted with {used}, not with their matrix ({name})",)
