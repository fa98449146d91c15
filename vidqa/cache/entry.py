"""EncodedSegment <-> bytes of one cache entry. Pure functions without file access.

An entry is a standard safetensors file with the tensors `tokens` (float16 [T, P, D]) and `embedding` (float32 [E]) and
one metadata string, a JSON object: first the checksum, then the key, the times and the facts of the file. Equal keys
and values have equal bytes.

The checksum is the CRC-32 of the whole file with its own eight digits set to zero, so it detects a flipped bit
anywhere: data, times, facts, header or padding. CRC-32 suffices because it guards against disk errors, not against
attackers, and it is fast (4 MB: 1.4 ms; 7 to 11 ms for a cryptographic digest).
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy

from vidqa.cache.key import ENTRY_FORMAT, CacheKey
from vidqa.errors import CacheError
from vidqa.records import EncodedSegment, Features, MediaFacts

_METADATA = "vidqa"
_ZEROS = "00000000"
# The header is JSON and contains the metadata as a string, so the quotation marks of the metadata are escaped.
_CHECKSUM_MARK = b'{\\"crc32\\":\\"'
# More than the times of the longest segment need; prevents a damaged length from allocating all memory.
_MAX_HEADER_BYTES = 64 << 20
_TYPES = {"F16": "<f2", "F32": "<f4"}
_FACTS_FIELDS = {f.name for f in fields(MediaFacts)}
# Fields that earlier versions did not have. They are only written if set, so the bytes of other entries stay equal.
_ADDED_FIELDS: dict[str, Any] = {"notes": (), "last_frame_s": None, "pauses": ()}


def entry_bytes(n_frames: int, n_tokens: int, hidden_size: int, embedding_size: int) -> int:
    """Return an upper bound on the size of an entry in bytes; the entry is at most a few hundred bytes smaller.

    Args:
        n_frames: frames of the segment.
        n_tokens: tokens per frame, including the class token if it is kept.
        hidden_size: width of a token.
        embedding_size: width of the pooled embedding.
    """
    header = 768 + 24 * n_frames  # key, facts, and the time of every frame
    return 2 * n_frames * n_tokens * hidden_size + 4 * embedding_size + header


def pack(key: CacheKey, value: EncodedSegment) -> bytes:
    """Serialize an entry.

    Args:
        key: identity of the segment. It is stored in the entry to detect misplaced files.
        value: the encoded segment.

    Returns:
        The content of a safetensors file.

    Raises:
        ValueError: the features contain NaN or infinity.
    """
    if not value.features.is_finite:
        raise ValueError(f"the features of {key} contain NaN or infinity")
    metadata = {
        "crc32": _ZEROS,
        "format": ENTRY_FORMAT,
        "key": asdict(key),
        "kind": value.features.kind,
        "keep_cls": value.features.keep_cls,
        "start_s": value.start_s,
        "end_s": value.end_s,
        "frame_times_s": list(value.frame_times_s),
        "repeated": [bool(r) for r in value.repeated],
        "facts": facts_to_dict(
            replace(value.facts, last_frame_s=None, pauses=())
        ),  # only segments are planned with them
    }
    tensors = {
        "tokens": np.ascontiguousarray(value.features.tokens),
        "embedding": np.ascontiguousarray(value.features.embedding),
    }
    text = json.dumps(metadata, separators=(",", ":"))  # ASCII only, so that the checksum can be located in the bytes
    data = bytearray(safetensors.numpy.save(tensors, metadata={_METADATA: text}))
    at = _checksum_offset(data, len(data))
    data[at : at + 8] = f"{zlib.crc32(data):08x}".encode()
    return bytes(data)


def unpack(data: bytes | np.ndarray, key: CacheKey | None = None) -> tuple[CacheKey, EncodedSegment]:
    """Deserialize an entry and verify it.

    Args:
        data: content of the file, as bytes or uint8 [n].
        key: expected key; None accepts any.

    Returns:
        The key stored in the entry, and its value. Arrays are views of `data`.

    Raises:
        CacheError: the entry is damaged, or belongs to another key. The message does not name the file.
    """
    raw: Any = data  # arrays support the buffer protocol, but not in the type stubs of every numpy version
    view = memoryview(raw).cast("B")
    metadata, header = _checked_metadata(view)
    try:
        found = CacheKey(**metadata["key"])
        tensors = _tensors(view, header)
        if set(tensors) != {"tokens", "embedding"}:
            raise ValueError(f"tensors {sorted(tensors)}")
        value = EncodedSegment(
            facts=facts_from_dict(metadata["facts"]),
            start_s=float(metadata["start_s"]),
            end_s=float(metadata["end_s"]),
            frame_times_s=tuple(float(t) for t in metadata["frame_times_s"]),
            repeated=tuple(bool(r) for r in metadata["repeated"]),
            features=Features(tensors["tokens"], tensors["embedding"], bool(metadata["keep_cls"]), metadata["kind"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(f"invalid content: {error}") from error
    if not len(value.frame_times_s) == len(value.repeated) == len(value.features.tokens):
        raise CacheError("the number of frame times differs from the number of frames")
    if not value.features.is_finite:
        raise CacheError("the features contain NaN or infinity")
    if key is not None and found != key:
        raise CacheError(f"belongs to another key: {found}")
    return found, value


@dataclass(frozen=True)
class PooledEntry:
    """The part of an entry that a search needs: kilobytes instead of megabytes."""

    embedding: np.ndarray  # float32 [E], not normalized
    start_s: float
    end_s: float
    facts: MediaFacts


def read_pooled(f: BinaryIO, key: CacheKey) -> PooledEntry:
    """Read the embedding and the times of an entry without its tokens.

    The checksum covers the whole entry and is not verified here, so a flipped bit in the embedding may go unnoticed
    unless the value is no longer finite.

    Args:
        f: the open file of the entry, at position 0.
        key: expected key.

    Raises:
        CacheError: the entry is damaged, or belongs to another key.
    """
    length = int.from_bytes(f.read(8), "little")
    try:
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(f.read(length))
        metadata, tensor = json.loads(header.pop("__metadata__")[_METADATA]), header["embedding"]
        if metadata["format"] != ENTRY_FORMAT or CacheKey(**metadata["key"]) != key:
            raise ValueError("format or key")
        start, end = tensor["data_offsets"]
        if not 0 <= start <= end <= start + _MAX_HEADER_BYTES:
            raise ValueError(f"an embedding of {end - start} bytes")
        if f.seek(0, 2) != 8 + length + max(one["data_offsets"][1] for one in header.values()):
            raise ValueError("the length differs from the header")
        f.seek(8 + length + start)
        embedding = np.frombuffer(f.read(end - start), dtype="<f4").astype(np.float32)
        if tensor["dtype"] != "F32" or [len(embedding)] != tensor["shape"] or not np.isfinite(embedding).all():
            raise ValueError("embedding")
        facts = facts_from_dict(metadata["facts"])
        return PooledEntry(embedding, float(metadata["start_s"]), float(metadata["end_s"]), facts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CacheError(f"invalid content: {error}") from error


def facts_to_dict(facts: MediaFacts) -> dict[str, Any]:
    """Convert facts to JSON-compatible values. `facts_from_dict` restores equal facts."""
    values = {**asdict(facts), "pixel_aspect": str(facts.pixel_aspect)}
    for name, default in _ADDED_FIELDS.items():
        if values[name] == default:
            del values[name]
    return values


def facts_from_dict(values: dict[str, Any]) -> MediaFacts:
    """Restore facts from the result of `facts_to_dict`.

    Args:
        values: fields of `MediaFacts`.

    Raises:
        ValueError: a field is missing or unknown (written by another version), or a number is not finite.
    """
    values = {**_ADDED_FIELDS, **values}
    if set(values) != _FACTS_FIELDS:
        raise ValueError(f"fields of the facts differ: {sorted(set(values) ^ _FACTS_FIELDS)}")
    if not all(math.isfinite(values[name] or 0.0) for name in ("duration_s", "fps", "width", "height")):
        raise ValueError("a number of the facts is not finite")
    values = {**values, "pixel_aspect": Fraction(values["pixel_aspect"])}
    values["notes"] = tuple(str(note) for note in values["notes"])
    values["pauses"] = tuple((float(start_s), float(end_s)) for start_s, end_s in values["pauses"])
    return MediaFacts(**values)


def _tensors(view: memoryview, header: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file as views of its bytes; the library's own loader copies them twice."""
    first = 8 + int.from_bytes(view[:8], "little")
    tensors, end = {}, 0
    for name, one in header.items():
        start, stop = one["data_offsets"]
        kind = np.dtype(_TYPES[one["dtype"]])
        tensors[name] = np.frombuffer(view[first + start : first + stop], kind).reshape(one["shape"])
        end = max(end, stop)
    if first + end != len(view):
        raise ValueError("the length differs from the header")
    return tensors


def _checked_metadata(view: memoryview) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verify the checksum of an entry, and return its metadata and tensor table."""
    length = int.from_bytes(view[:8], "little")
    at = _checksum_offset(bytes(view[: 8 + min(length, len(view))]), len(view))
    claimed = bytes(view[at : at + 8])
    actual = zlib.crc32(view[at + 8 :], zlib.crc32(_ZEROS.encode(), zlib.crc32(view[:at])))
    if claimed != f"{actual:08x}".encode():
        raise CacheError("checksum mismatch")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = json.loads(header.pop("__metadata__")[_METADATA])
        if metadata["format"] != ENTRY_FORMAT:
            raise ValueError(f"format {metadata['format']}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CacheError(f"header cannot be read: {error}") from error
    assert isinstance(metadata, dict)
    return metadata, header


def _checksum_offset(data: bytes | bytearray, n_bytes: int) -> int:
    """Return the offset of the checksum's first digit, given the header and the size of the file."""
    length = int.from_bytes(data[:8], "little")
    if n_bytes < 8 or length > n_bytes - 8:
        raise CacheError(f"truncated, or wrong length in the header: {n_bytes} bytes")
    at = data.find(_CHECKSUM_MARK, 8, 8 + length)
    if at < 0:
        raise CacheError("no checksum")
    return at + len(_CHECKSUM_MARK)
