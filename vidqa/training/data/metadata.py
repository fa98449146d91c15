"""Per-record metadata for packing: which samples may share a sequence, how long they are, and their media.

Reading 560,000 records takes two minutes, so the result is cached next to the index of the file's records. A second
stage on the same file, a resumed run, and the other processes of torchrun read the cache. An entry is valid for one
content of the file, one media folder and one format. Records that could not be read are read again each time, because
their media files may have been added since.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidqa.cache.feature_store import mark_used
from vidqa.common import atomic_io
from vidqa.training.data.sample import MediaRef, Sample, SampleError

log = logging.getLogger(__name__)

#: Version of format and meaning of the cached data.
REVISION = 1
_TAG = re.compile("<(?:image|video)>")
#: A rough estimate; lengths are only compared with each other.
_CHARS_PER_TOKEN = 4
_VISUAL_TOKENS = {"video": 2048, "image": 256}


@dataclass(frozen=True)
class TokenStats:
    """Metadata of some records."""

    groups: np.ndarray  # int64 [N]: equal for samples whose prompts share their prefix; 0 for samples without a group
    lengths: np.ndarray  # int64 [N]: estimated tokens; 0 if the sample could not be read
    media: tuple[MediaRef, ...]  # each once, in the order of first occurrence


def group_of(sample: Sample) -> Hashable | None:
    """Return a key that is equal for samples that can be packed together; None if a sample cannot be packed.

    Such samples share the prefix of their prompts. With media, it consists of the media and the text of the first
    question before them. Without media, it is the passage of the first question: everything except its last line.
    """
    first = sample.turns[0][0]
    if not sample.media:
        passage = first.rpartition("\n")[0]
        return ("text", passage) if passage else None
    tags = list(_TAG.finditer(first))
    if tags and len(tags) != len(sample.media):
        return None  # a later question has media, too
    return (sample.media, first[: tags[-1].end()] if tags else "")


def length_of(sample: Sample) -> int:
    """Estimate the length of a sample in tokens, to compare it with others: video is longest, then image, then text."""
    n_chars = sum(len(part) for turn in sample.turns for part in turn)
    return n_chars // _CHARS_PER_TOKEN + sum(_VISUAL_TOKENS[ref.kind] for ref in sample.media)


def read_token_stats(
    n: int,
    read: Callable[[int], Sample],
    cached: Path,
    sha256: str,
    advance: Callable[[int], object] = lambda n: None,
) -> TokenStats:
    """Read the metadata of all records of one file, from the cache if possible.

    Args:
        n: number of records.
        read: returns the sample of a record, counted from 0; may raise SampleError.
        cached: path of an .npz file in the cache folder; it need not exist.
        sha256: digest of the file of conversations; cached data of other content is ignored.
        advance: called with the number of records that were read.
    """
    found = _load(cached, n, sha256)
    if found is None:
        groups, lengths = np.zeros(n, np.int64), np.full(n, -1, np.int64)  # -1: could not be read
        media: dict[MediaRef, None] = {}
        todo: Iterable[int] = range(n)
    else:
        groups, lengths, refs = found
        media, todo = dict.fromkeys(refs), np.flatnonzero(lengths < 0).tolist()
        advance(n - len(todo))
    is_updated = False
    for number in todo:
        with suppress(SampleError):
            sample = read(number)
            groups[number], lengths[number] = _number_of(group_of(sample)), length_of(sample)
            media.update(dict.fromkeys(sample.media))
            is_updated = True
        advance(1)
    if is_updated or found is None:
        _save(cached, groups, lengths, tuple(media), sha256)
    return TokenStats(groups, np.maximum(lengths, 0), tuple(media))


def join_token_stats(parts: Sequence[TokenStats]) -> TokenStats:
    """Concatenate the metadata of several files. Samples of different files with the same media are in one group."""
    media = dict.fromkeys(ref for part in parts for ref in part.media)
    groups, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("groups", "lengths"))
    return TokenStats(groups, lengths, tuple(media))


def _number_of(group: Hashable | None) -> int:
    """Map a group to 63 bits of its digest, and None to 0."""
    if group is None:
        return 0
    return (
        int.from_bytes(hashlib.blake2b(repr(group).encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1 or 1
    )


def _load(cached: Path, n: int, sha256: str) -> tuple[np.ndarray, np.ndarray, list[MediaRef]] | None:
    try:
        with np.load(cached, allow_pickle=False) as stored:
            if (str(stored["sha256"]), int(stored["revision"])) != (sha256, REVISION):
                return None
            groups, lengths = stored["groups"], stored["lengths"]
            refs = [MediaRef(*fields) for fields in json.loads(stored["media"].tobytes())]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, EOFError) as e:
        log.warning("damaged cache file %s (%s): reading all records again", cached, e)
        return None
    mark_used(cached)
    return (groups, lengths, refs) if groups.shape == lengths.shape == (n,) else None


def _save(cached: Path, groups: np.ndarray, lengths: np.ndarray, media: tuple[MediaRef, ...], sha256: str) -> None:
    refs = json.dumps([(ref.path, ref.kind, ref.start_s, ref.end_s) for ref in media]).encode()
    try:
        with atomic_io.atomic_write(cached) as f:
            np.savez(
                f,
                groups=groups,
                lengths=lengths,
                media=np.frombuffer(refs, np.uint8),
                sha256=np.array(sha256),
                revision=np.array(REVISION),
            )
    except OSError as e:  # only makes the next start slower
        log.warning("cannot cache the metadata of records in %s: %s", cached.parent, e.strerror or e)
