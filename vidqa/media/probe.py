"""Path -> facts of a media file, by opening it and decoding one frame, or counting all. Does not sample."""

from __future__ import annotations

from vidqa.errors import MediaError
from vidqa.media.container import decode_first_frame, facts_from_header, open_video
from vidqa.media.decode import open_reader
from vidqa.media.files import identify
from vidqa.records import MediaFacts


def has_video_stream(path: str) -> bool:
    """True where a container opens and has a video stream that is no cover picture."""
    try:
        with open_video(path):
            return True
    except MediaError as e:
        return e.kind == "unsupported"


def probe(path: str, *, count: bool = False) -> MediaFacts:
    """Facts of one file.

    Args:
        path: of the file.
        count: count the frames (reads the file, decodes next to nothing); then duration and rate are the true ones.

    Raises:
        MediaError: the file gives no picture; the kind says why.
    """
    if count:
        with open_reader(path) as reader:
            return reader.facts
    signature = identify(path)
    if signature.family == "image" and signature.container != "heif":
        from vidqa.media.backends.image import probe_image

        return probe_image(path)
    with open_video(path, signature) as opened:
        return facts_from_header(opened, decode_first_frame(opened))
