"""Path -> facts of a media file: open it and decode one frame, or count all frames."""

from __future__ import annotations

from vidqa.errors import MediaError
from vidqa.media.container import decode_first_frame, facts_from_header, open_video
from vidqa.media.decode import open_reader
from vidqa.media.files import identify
from vidqa.records import MediaFacts


def has_video_stream(path: str) -> bool:
    """Return whether a container opens and has a video stream that is not a cover image."""
    try:
        with open_video(path):
            return True
    except MediaError as e:
        return e.kind == "unsupported"


def probe(path: str, *, count: bool = False) -> MediaFacts:
    """Return the facts of one file.

    Args:
        path: path of the file.
        count: count the frames, for exact duration and rate. Usually reads the packets without decoding them.

    Raises:
        MediaError: no frame can be decoded; `kind` is the reason.
    """
    if count:
        with open_reader(path) as reader:
            return reader.facts
    signature = identify(path)
    if signature.family == "image" and signature.container != "heif":
        from vidqa.media.backends.image import probe_image

        return probe_image(path)
    with open_video(path, signature) as video:
        return facts_from_header(video, decode_first_frame(video))
