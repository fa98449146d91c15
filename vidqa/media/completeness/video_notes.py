"""Frame index of a video -> notes: whether its end is missing, frames are damaged, or its clock jumps."""

from __future__ import annotations

from vidqa.media.completeness import note_wording
from vidqa.media.completeness.truncation import has_fragment_list, is_truncated
from vidqa.media.container import OpenVideo
from vidqa.media.frame_index.frame_index import FrameIndex

#: A file whose structure is intact counts as truncated if at least this fraction, and this many seconds, of what the
#: header claims are missing: the rest of a download that reserved its space, or a damaged index.
_MIN_MISSING, _MIN_MISSING_S = 0.1, 1.0
#: Smaller differences between header and frames are due to rounding.
_TOLERANCE_S = 0.1
#: Containers whose header states a duration. For others (MPEG, Ogg, raw streams), FFmpeg estimates it from the file.
_WITH_DURATION = ("mov", "matroska", "avi", "flv", "asf", "ivf", "rm", "mxf")


def completeness_notes(video: OpenVideo, index: FrameIndex, readable_s: float) -> tuple[str, ...]:
    """Return the notes about a video; a sound one has none.

    Args:
        video: the open video.
        index: its frame index.
        readable_s: duration of all its packets in seconds.
    """
    truncated = _truncation_note(video, readable_s, n_frames=len(index))
    notes = [truncated] if truncated else []
    if index.unreadable_s > (_TOLERANCE_S if truncated else 0.0):  # the last frame of a truncated file is often damaged
        notes.append(note_wording.damaged(index.unreadable_s, index.duration_s))
    if index.jump_s:
        notes.append(note_wording.clock_jumps(index.jump_s))
    return tuple(notes)


def _truncation_note(video: OpenVideo, readable_s: float, n_frames: int) -> str | None:
    own_s, file_s = _promised_s(video) if video.demuxer in _WITH_DURATION else (None, None)
    # The sample table of a fragmented MP4 describes the first fragment at most. Without a list of all fragments,
    # FFmpeg's duration is that of the fragments in the file.
    fragmented = video.demuxer == "mov" and n_frames > video.stream.frames
    if fragmented and not has_fragment_list(video.path):
        own_s = file_s = None
    promised_s = own_s or file_s
    if is_truncated(video.path, video.demuxer):
        if promised_s is None or readable_s < promised_s - _TOLERANCE_S:
            return note_wording.truncated(readable_s, promised_s)
        return note_wording.truncated(readable_s, None) if fragmented else None
    if own_s is None or (video.demuxer == "mov" and not fragmented):
        return None
    is_far_shorter = readable_s < min((1 - _MIN_MISSING) * own_s, own_s - _MIN_MISSING_S)
    return note_wording.truncated(readable_s, own_s) if is_far_shorter else None


def _promised_s(video: OpenVideo) -> tuple[float | None, float | None]:
    """Return how many seconds the header claims for the video stream, and for the whole file; None if nothing."""
    stream, file_s = video.stream, video.file_duration_s
    own_s = float(stream.duration * video.time_base) if stream.duration else None
    if video.demuxer == "avi":  # FFmpeg derives the duration of a truncated AVI from the size of the file
        own_s = float(stream.frames / video.average_rate) if stream.frames and video.average_rate else None
    elif video.demuxer in ("matroska", "flv"):
        if file_s is not None:  # the time at which the last frame ends, even if the first one starts late
            file_s -= max(0.0, video.file_start_s)
        own_s = file_s if len(video.container.streams) == 1 else None
    return own_s, file_s
