"""FeatureStore: bit-exact entries, damage detection, folder errors."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors

from vidqa.cache import entry
from vidqa.cache.feature_store import FeatureStore, cache_error
from vidqa.cache.key import CacheKey
from vidqa.errors import CacheError
from vidqa.records import EncodedSegment, Features, MediaFacts

Make = Callable[..., EncodedSegment]
KEY = CacheKey("0" * 32, "whole", "enc1")


def assert_same(a: EncodedSegment, b: EncodedSegment) -> None:
    assert a.features.tokens.tobytes() == b.features.tokens.tobytes()
    assert a.features.tokens.shape == b.features.tokens.shape
    assert a.features.embedding.tobytes() == b.features.embedding.tobytes()
    assert (a.features.keep_cls, a.features.kind) == (b.features.keep_cls, b.features.kind)
    assert replace(a, features=b.features) == b


def test_an_entry_is_read_bit_for_bit(tmp_path: Path, segment: Make) -> None:
    store, value = FeatureStore(tmp_path / "cache"), segment()
    assert store.get(KEY) is None and not store.has(KEY)
    store.put(KEY, value)
    assert store.has(KEY)
    found = FeatureStore(tmp_path / "cache").get(KEY)
    assert found is not None
    assert_same(found, value)
    found.features.tokens[0, 0, 0] = 1  # torch.from_numpy needs writable arrays
    assert not store.damaged


def test_an_image_without_duration_and_a_strided_array(tmp_path: Path) -> None:
    tokens = np.arange(2 * 6 * 4, dtype=np.float16).reshape(2, 6, 4)[:1, ::2, ::-1]
    value = EncodedSegment(
        MediaFacts("image", "png", 5, 7, None, None), 0.0, 0.0, (0.0,), (False,),
        Features(tokens, np.zeros(3, np.float32), False, "image"),
    )  # fmt: skip
    store = FeatureStore(tmp_path)
    store.put(KEY, value)
    found = store.get(KEY)
    assert found is not None
    assert_same(found, value)


def test_an_entry_is_standard_safetensors_and_deterministic(tmp_path: Path, segment: Make) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, segment())
    path = store.path(KEY)
    assert path.relative_to(tmp_path).parts[:2] == ("features", "enc1")
    assert path.parent.name == path.name[:2]
    first = path.read_bytes()
    with safetensors.safe_open(path, framework="np") as f:
        assert sorted(f.keys()) == ["embedding", "tokens"]
        assert json.loads(f.metadata()["vidqa"])["key"]["segment_key"] == "whole"
    store.put(KEY, segment())
    assert path.read_bytes() == first


@pytest.mark.parametrize("part", ["media_id", "segment_key", "encoder_id"])
def test_every_part_of_the_key_changes_the_digest(part: str) -> None:
    assert replace(KEY, **{part: "other"}).digest != KEY.digest


def test_key_parts_are_separated() -> None:
    assert CacheKey("ab", "c", "e").digest != CacheKey("a", "bc", "e").digest
    for bad in ("", "../up", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="encoder_id"):
            CacheKey("m", "whole", bad)


def test_every_flipped_bit_is_detected(tmp_path: Path, segment: Make) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, segment())
    whole = store.path(KEY).read_bytes()
    assert len(whole) > 1000
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << (i % 8)
        with pytest.raises(CacheError):
            entry.unpack(bytes(damaged), KEY)


def test_every_truncation_is_detected(tmp_path: Path, segment: Make) -> None:
    whole = entry.pack(KEY, segment())
    for n in range(len(whole)):
        with pytest.raises(CacheError):
            entry.unpack(whole[:n], KEY)
    with pytest.raises(CacheError):
        entry.unpack(whole + b"\0", KEY)


def with_valid_checksum(data: bytes) -> bytes:
    """Recompute the checksum of an entry."""
    at = data.index(b'{\\"crc32\\":\\"') + len(b'{\\"crc32\\":\\"')
    blank = data[:at] + b"00000000" + data[at + 8 :]
    return blank[:at] + f"{zlib.crc32(blank):08x}".encode() + blank[at + 8 :]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape":[4,5,16]', b'"shape":[4,5,17]'),  # more data than there is
        (b'"shape":[4,5,16]', b'"shape":[5,4,16]'),  # frames and times differ in number
        (b'"F16"', b'"F64"'),
        (b'"F16"', b'"I16"'),
        (b'"tokens"', b'"tokenz"'),
        (b"frame_times_s", b"frame_times_x"),
        (b"pixel_aspect", b"pixel_aspecT"),
        (b'\\"format\\":1', b'\\"format\\":2'),
        (b'\\"kind\\"', b'\\"kinf\\"'),
    ],
)
def test_a_wrong_header_with_a_valid_checksum_is_detected(segment: Make, old: bytes, new: bytes) -> None:
    whole = entry.pack(KEY, segment())
    assert old in whole
    entry.unpack(with_valid_checksum(whole), KEY)
    with pytest.raises(CacheError):
        entry.unpack(with_valid_checksum(whole.replace(old, new, 1)), KEY)


def test_a_header_length_of_exabytes_is_rejected(segment: Make) -> None:
    with pytest.raises(CacheError, match="wrong length in the header"):
        entry.unpack((2**62).to_bytes(8, "little") + entry.pack(KEY, segment())[8:], KEY)


def test_a_damaged_entry_is_logged_removed_and_can_be_replaced(
    tmp_path: Path, segment: Make, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, segment())
    path = store.path(KEY)
    with path.open("r+b") as f:
        f.truncate(500)
    assert store.get(KEY) is None
    assert [d.path for d in store.damaged] == [path]
    assert str(path) in caplog.text and "truncated" in store.damaged[0].reason
    assert not path.exists()
    store.put(KEY, segment())
    assert store.get(KEY) is not None and len(store.damaged) == 1


@pytest.mark.parametrize(("part", "value"), [("tokens", np.nan), ("tokens", -np.inf), ("embedding", np.nan)])
def test_values_that_are_not_finite_are_never_written_or_returned(
    tmp_path: Path, segment: Make, overflowed: Callable[..., bytes], part: str, value: float
) -> None:
    store, whole = FeatureStore(tmp_path), segment()
    store.put(KEY, whole)
    store.path(KEY).write_bytes(overflowed(KEY, part, value))
    assert store.get(KEY) is None and not store.has(KEY)
    assert [d.reason for d in store.damaged] == ["the features contain NaN or infinity"]
    getattr(whole.features, part).flat[0] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        store.put(KEY, whole)


def test_a_misplaced_entry_is_rejected(tmp_path: Path, segment: Make) -> None:
    store, other = FeatureStore(tmp_path), replace(KEY, media_id="f" * 32)
    store.put(KEY, segment())
    store.path(other).parent.mkdir(parents=True, exist_ok=True)
    store.path(KEY).rename(store.path(other))
    assert store.get(other) is None
    assert "another key" in store.damaged[0].reason
    assert store.get(KEY) is None and len(store.damaged) == 1


def test_time_of_last_use_is_updated_at_most_once_an_hour(tmp_path: Path, segment: Make) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, segment())
    path, long_ago, just_now = store.path(KEY), time.time() - 86400, time.time() - 60
    os.utime(path, (long_ago, long_ago))
    store.get(KEY)
    assert abs(path.stat().st_mtime - time.time()) < 60
    os.utime(path, (just_now, just_now))
    store.get(KEY)
    assert path.stat().st_mtime == pytest.approx(just_now)


def test_the_folder_is_tagged_as_a_cache(tmp_path: Path) -> None:
    FeatureStore(tmp_path / "deep" / "cache")
    text = (tmp_path / "deep" / "cache" / "CACHEDIR.TAG").read_text()
    assert text.startswith("Signature: 8a477f597d28d172789f06886806bc55")


WRITER = """
import sys
sys.path[:0] = {path!r}
from cache_conftest import make_segment
from vidqa.cache.key import CacheKey
from vidqa.cache.feature_store import FeatureStore
store = FeatureStore(sys.argv[1])
wrong = 0
for _ in range(8):
    for i in range(15):
        key = CacheKey(f"{{i:032x}}", "whole", "enc1")
        store.put(key, make_segment(i))
        found = store.get(key)
        wrong += found is None or found.features.tokens.tobytes() != make_segment(i).features.tokens.tobytes()
sys.exit(wrong + len(store.damaged))
"""


def child(tmp_path: Path, code: str, *arguments: str) -> list[str]:
    """Return a command that runs `code`, which can import this repository and this folder's make_segment."""
    (tmp_path / "cache_conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    repository = str(Path(__file__).parents[2])
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(code).format(path=[repository, str(tmp_path)]))
    return [sys.executable, str(script), *arguments]


@pytest.mark.slow
def test_three_processes_share_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = child(tmp_path, WRITER, str(cache))
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [w.wait(120) for w in writers] == [0, 0, 0]
    assert len(list(cache.glob("features/enc1/*/*.safetensors"))) == 15
    assert not list(cache.rglob("*.part"))


def test_a_file_size_limit_is_reported_with_the_folder_and_a_hint(tmp_path: Path, segment: Make) -> None:
    store = FeatureStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CacheError) as caught:
            store.put(KEY, segment())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in caught.value.what and "File too large" in caught.value.what
    assert "ulimit -f" in str(caught.value) and "--cache-dir" in str(caught.value)
    assert not store.has(KEY) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_the_folder_and_a_hint(tmp_path: Path, number: int) -> None:
    error = cache_error(tmp_path, OSError(number, os.strerror(number)))
    assert f"{tmp_path} is full: {os.strerror(number)}" in error.what
    assert "--max-size" in str(error) and "--cache-dir" in str(error)


READ_ONLY = """
import os, sys
sys.path[:0] = {path!r}
from cache_conftest import make_segment
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.cache.feature_store import FeatureStore
from vidqa.errors import CacheError
if os.getuid() == 0:
    os.setuid(65534)
store = FeatureStore(sys.argv[1])
assert store.get(CacheKey("0" * 32, "whole", "enc1")) is not None
for action in (lambda: store.put(CacheKey("1" * 32, "whole", "enc1"), make_segment()), lambda: MediaIndex(sys.argv[1])):
    try:
        action()
    except CacheError as error:
        assert sys.argv[1] in error.what and "--cache-dir" in error.hint, str(error)
    else:
        sys.exit("the write succeeded")
"""


def test_a_read_only_cache_can_be_read_and_writing_is_a_clear_error(tmp_path: Path, segment: Make) -> None:
    cache = tmp_path / "cache"
    FeatureStore(cache).put(KEY, segment())
    command = child(tmp_path, READ_ONLY, str(cache))
    folders = [cache, *(p for p in cache.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    ours = (above for above in (tmp_path, *tmp_path.parents) if "pytest-" in str(above))
    for above in ours:  # the other user needs access to pytest's folders
        above.chmod(above.stat().st_mode | 0o055)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    if done.returncode and not all(p.stat().st_mode & 0o005 == 0o005 for p in Path(sys.prefix).resolve().parents):
        pytest.skip("another user cannot read this Python installation")
    assert done.returncode == 0, done.stderr


def test_a_file_instead_of_the_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(CacheError, match="cannot use the cache folder"):
        FeatureStore(tmp_path / "cache")
