"""One look at every record: which may share a sequence, how long they are, and their media. Kept in the cache folder.

Reading 560,000 records takes two minutes; a second stage on the same file, a run that goes on, and the other processes
of torchrun read the result instead. It stands beside the index of the file's records, and is of one content of the
file, one media folder and one format. Records that could not be read are looked at again each time: their media may
have come.
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
from vidqa.train.data.sample import MediaRef, Sample, SampleError

log = logging.getLogger(__name__)

#: Form and meaning of what is kept; raised by one when either changes.
REVISION = 1
_TAG = re.compile("<(?:image|video)>")
#: Letters of one token, roughly; lengths are only compared with each other.
_LETTERS_PER_TOKEN = 4
_VISUAL = {"video": 2048, "image": 256}


@dataclass(frozen=True)
class TokenStats:
    """What a look at some records told."""

    groups: np.ndarray  # int64 [N]: equal where prompts begin with the same; 0 where a sample stands alone
    lengths: np.ndarray  # int64 [N]: grows with the tokens of a sample; 0 where it could not be read
    media: tuple[MediaRef, ...]  # each once, in the order of first mention


def group_of(sample: Sample) -> Hashable | None:
    """Samples with the same group share the beginning of their prompts; None stands alone.

    That is: the same media, behind the same words of the first question. For text, the first question's passage: all
    but its last line.
    """
    first = sample.turns[0][0]
    if not sample.media:
        passage = first.rpartition("\n")[0]
        return ("text", passage) if passage else None
    tags = list(_TAG.finditer(first))
    if tags and len(tags) != len(sample.media):
        return None  # a medium stands in a later question
    return (sample.media, first[: tags[-1].end()] if tags else "")


def length_of(sample: Sample) -> int:
    """Grows with the tokens of a sample: clips are longest, then pictures, then text."""
    letters = sum(len(part) for turn in sample.turns for part in turn)
    return letters // _LETTERS_PER_TOKEN + sum(_VISUAL[ref.kind] for ref in sample.media)


def look(
    n: int,
    read: Callable[[int], Sample],
    kept: Path,
    sha256: str,
    advance: Callable[[int], object] = lambda n: None,
) -> TokenStats:
    """Look at the records of one file, or read what an earlier look told.

    Args:
        n: how many there are.
        read: gives the sample of a number, from 0. May raise SampleError.
        kept: an .npz file in the cache folder, whether it is there or not.
        sha256: of the file of conversations; a look at another content does not count.
        advance: called with the number of records that are done.
    """
    found = _load(kept, n, sha256)
    if found is None:
        groups, lengths = np.zeros(n, np.int64), np.full(n, -1, np.int64)  # -1: could not be read
        media: dict[MediaRef, None] = {}
        todo: Iterable[int] = range(n)
    else:
        groups, lengths, refs = found
        media, todo = dict.fromkeys(refs), np.flatnonzero(lengths < 0).tolist()
        advance(n - len(todo))
    mended = False
    for number in todo:
        with suppress(SampleError):
            sample = read(number)
            groups[number], lengths[number] = _number_of(group_of(sample)), length_of(sample)
            media.update(dict.fromkeys(sample.media))
            mended = True
        advance(1)
    if mended or found is None:
        _save(kept, groups, lengths, tuple(media), sha256)
    return TokenStats(groups, np.maximum(lengths, 0), tuple(media))


def joined(parts: Sequence[TokenStats]) -> TokenStats:
    """The records of several files, one file after another: the same media in two of them are one group."""
    media = dict.fromkeys(ref for part in parts for ref in part.media)
    groups, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("groups", "lengths"))
    return TokenStats(groups, lengths, tuple(media))


def _number_of(group: Hashable | None) -> int:
    """63 bits of a digest; 0 for None."""
    if group is None:
        return 0
    return (
        int.from_bytes(hashlib.blake2b(repr(group).encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1 or 1
    )


def _load(kept: Path, n: int, sha256: str) -> tuple[np.ndarray, np.ndarray, list[MediaRef]] | None:
    try:
        with np.load(kept, allow_pickle=False) as stored:
            if (str(stored["sha256"]), int(stored["revision"])) != (sha256, REVISION):
                return None
            groups, lengths = stored["groups"], stored["lengths"]
            refs = [MediaRef(*fields) for fields in json.loads(stored["media"].tobytes())]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, EOFError) as e:
        log.warning("damaged survey %s (%s): every record is read again", kept, e)
        return None
    mark_used(kept)
    return (groups, lengths, refs) if groups.shape == lengths.shape == (n,) else None


def _save(kept: Path, groups: np.ndarray, lengths: np.ndarray, media: tuple[MediaRef, ...], sha256: str) -> None:
    told = json.dumps([(ref.path, ref.kind, ref.start_s, ref.end_s) for ref in media]).encode()
    try:
        with atomic_io.atomic_write(kept) as f:
            np.savez(
                f,
                groups=groups,
                lengths=lengths,
                media=np.frombuffer(told, np.uint8),
                sha256=np.array(sha256),
                revision=np.array(REVISION),
            )
    except OSError as e:  # costs the next start some time, nothing else
        log.warning("what was learned of the records cannot be kept in %s: %s", kept.parent, e.strerror or e)
