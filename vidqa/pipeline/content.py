"""Which content a file has, and whether it still has it: a row and a cache entry must speak of what was really read.

A file may grow, be replaced or vanish between the moment when its content is named (hashed) and the moment when its
last frame is decoded. Knows files and the index; does not know models or tables.
"""

from __future__ import annotations

import os
from dataclasses import replace

from vidqa.cache.index import MediaIndex
from vidqa.errors import ItemError, MediaError
from vidqa.media.files import file_error, show
from vidqa.pipeline.options import Work
from vidqa.records import DecodedMedia, MediaItem

_TRIES = 3


def identify(index: MediaIndex, item: MediaItem) -> tuple[MediaItem, str]:
    """Name the content of a file.

    Args:
        index: remembers contents.
        item: as the scan found it, perhaps hours ago.

    Returns:
        The file with the size and time that belong to the content, and the content's media_id.

    Raises:
        MediaError: gone, not readable, or it keeps changing.
    """
    for _ in range(_TRIES):
        n_read = index.n_read
        media_id = index.media_id(item)
        if index.n_read == n_read:  # size and time of the scan are those of the content: no look at the disk
            return item, media_id
        try:
            now = os.stat(item.path)
        except OSError as error:
            raise file_error(item.path, error) from error
        if (now.st_size, now.st_mtime_ns) == (item.size, item.mtime_ns):
            return item, media_id
        item = replace(item, size=now.st_size, mtime_ns=now.st_mtime_ns)
    raise changed(item.path)


def confirm(work: Work, result: DecodedMedia | ItemError) -> tuple[Work, DecodedMedia | ItemError]:
    """What was decoded, if the file is still the one whose content was named; else why it does not count.

    Args:
        work: the file, as `identify` gave it.
        result: of decoding it; also a failure may be that of another content.

    Returns:
        Work without a media_id where the content is not known any more: its row says so, and gives way to true ones
        as soon as the file can be read whole.
    """
    try:
        now = os.stat(work.item.path)
    except OSError as error:
        return replace(work, media_id=None), file_error(work.item.path, error)
    if (now.st_size, now.st_mtime_ns) == (work.item.size, work.item.mtime_ns):
        return work, result
    return replace(work, media_id=None), changed(work.item.path)


def changed(path: str) -> MediaError:
    """A file that somebody writes."""
    return MediaError(
        "changed", f"{show(path)}: the file changed while it was read", hint="run again when it is complete"
    )
