"""MediaIndex: unchanged files are not read again, and changed ones always are."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from vidqa.cache import media_index
from vidqa.cache.media_index import INDEX_NAME, MediaIndex
from vidqa.errors import CacheError, MediaError
from vidqa.records import EncodedSegment, MediaFacts, MediaItem

REPOSITORY = str(Path(__file__).parents[2])


def item(path: Path | str) -> MediaItem:
    s = os.stat(path)
    return MediaItem(str(path), os.path.dirname(path), os.path.basename(path), s.st_size, s.st_mtime_ns)


def old_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def test_an_indexed_file_is_not_read_again(tmp_path: Path) -> None:
    f = old_file(tmp_path / "a.mp4", b"one")
    index = MediaIndex(tmp_path / "cache")
    assert index.media_id(item(f)) == digest(b"one")
    seen = item(f)
    f.unlink()  # reading it would fail
    assert index.media_id(seen) == digest(b"one")
    assert MediaIndex(tmp_path / "cache").media_id(seen) == digest(b"one")
    assert index.n_hashed == 1 and index.n_files() == 1


def test_another_size_time_or_path_is_read_again(tmp_path: Path) -> None:
    f = old_file(tmp_path / "a.mp4", b"one")
    index = MediaIndex(tmp_path / "cache")
    index.media_id(item(f))
    old_file(f, b"longer")
    assert index.media_id(item(f)) == digest(b"longer")
    f.write_bytes(b"LONGER")
    assert index.media_id(item(f)) == digest(b"LONGER")
    g = old_file(tmp_path / "b.mp4", b"LONGER")
    assert index.media_id(item(g)) == digest(b"LONGER")
    assert index.n_hashed == 4


def test_a_recently_modified_file_is_read_again(tmp_path: Path) -> None:
    """Same size and, with a coarse clock, the same mtime: only the two-second rule detects the change."""
    f, now = tmp_path / "a.mp4", time.time_ns()
    f.write_bytes(b"one")
    os.utime(f, ns=(now, now))
    index = MediaIndex(tmp_path / "cache")
    assert index.media_id(item(f)) == digest(b"one")
    f.write_bytes(b"two")
    os.utime(f, ns=(now, now))
    assert index.media_id(item(f)) == digest(b"two")


def test_a_modification_time_in_the_future_is_not_read_every_time(tmp_path: Path) -> None:
    f = tmp_path / "a.mp4"
    f.write_bytes(b"one")
    os.utime(f, (4_000_000_000, 4_000_000_000))
    index = MediaIndex(tmp_path / "cache")
    index.media_id(item(f))
    index.media_id(item(f))
    assert index.n_hashed == 1


YEAR_NS = 31_556_952 * 10**9


# Years 1970, 1969, 1601, 2262 and 2400, and values that only a broken file system returns.
@pytest.mark.parametrize("mtime_ns", [0, -1, -369 * YEAR_NS, 2**63 - 1, 2**63, 430 * YEAR_NS, -(2**70), 10**30])
def test_any_modification_time_can_be_stored(
    tmp_path: Path, mtime_ns: int, segment: Callable[..., EncodedSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    f, facts = old_file(tmp_path / "a.mp4", b"one"), segment().facts
    monkeypatch.setattr(media_index, "_digest_stable", lambda path: (3, mtime_ns, digest(b"one")))
    seen = replace(item(f), mtime_ns=mtime_ns)
    with closing(MediaIndex(tmp_path / "cache")) as index:
        assert index.media_id(seen) == index.media_id(seen) == digest(b"one")
        assert index.n_hashed == 1
        assert index.cached_media_id(replace(seen, mtime_ns=mtime_ns + 1)) is None
        index.store_probed_facts(str(f), 3, mtime_ns, time.time_ns(), facts)
        assert index.probed_facts(str(f), 3, mtime_ns) == facts
        assert index.probed_facts(str(f), 3, mtime_ns + 1) is None


def test_a_clock_in_the_far_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f = old_file(tmp_path / "a.mp4", b"one")
    monkeypatch.setattr(time, "time_ns", lambda: 430 * YEAR_NS)
    with closing(MediaIndex(tmp_path / "cache")) as index:
        assert index.media_id(item(f)) == index.media_id(item(f)) and index.n_hashed == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_names_of_any_bytes(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path / "cache")
    names = [b"caf\xe9.mp4", b"caf\xff.mp4", b"new\nline.mp4", b"quo'te\".mp4", "\u043a\u0438\u043d\u043e.mp4".encode()]
    for i, name in enumerate(names):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as f:
            f.write(b"%d" % i)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    for _ in range(2):
        ids = [index.media_id(item(os.fsdecode(os.path.join(os.fsencode(tmp_path), n)))) for n in names]
        assert ids == [digest(b"%d" % i) for i in range(len(names))]
    assert index.n_hashed == len(names)


def test_error_kinds_of_unreadable_files(tmp_path: Path) -> None:
    index, f = MediaIndex(tmp_path / "cache"), old_file(tmp_path / "a.mp4", b"one")
    seen = item(f)
    f.unlink()
    with pytest.raises(MediaError) as caught:
        index.media_id(seen)
    assert caught.value.kind == "missing"
    os.mkfifo(f)  # opening must not wait for a writer
    with pytest.raises(MediaError) as caught:
        index.media_id(seen)
    assert caught.value.kind == "not_media"
    f.unlink()
    f.mkdir()
    with pytest.raises(MediaError) as caught:
        index.media_id(seen)
    assert caught.value.kind in ("unreadable", "not_media")
    assert index.n_files() == 0


def test_a_growing_file_has_no_digest(tmp_path: Path) -> None:
    f, done = tmp_path / "a.mp4", threading.Event()
    f.write_bytes(b"x" * (8 << 20))

    def grow() -> None:  # by 4 MB at most
        with f.open("ab", buffering=0) as g:
            for _ in range(4000):
                if done.wait(0.0005):
                    return
                g.write(b"more" * 256)

    index, writer = MediaIndex(tmp_path / "cache"), threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(MediaError, match="keeps changing") as caught:
            index.media_id(item(f))
    finally:
        done.set()
        writer.join()
    assert caught.value.kind == "changed"
    assert index.media_id(item(f)) == hashlib.sha256(f.read_bytes()).hexdigest()[:32]


def test_facts_are_restored(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    facts = MediaFacts("video", "hevc", 1920, 1080, 12.345678901234567, 30000 / 1001, 270, Fraction(4, 3), 370, 371, 2)
    assert index.facts("a" * 32) is None
    index.store_facts("a" * 32, facts)
    assert MediaIndex(tmp_path).facts("a" * 32) == facts
    image = MediaFacts("image", "png", 3, 2, None, None)
    index.store_facts("a" * 32, image)
    assert index.facts("a" * 32) == image


def test_facts_of_another_version_are_ignored(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    index.store_facts("a" * 32, MediaFacts("image", "png", 3, 2, None, None))
    with sqlite3.connect(tmp_path / INDEX_NAME) as db:
        db.execute('UPDATE facts SET facts = \'{"codec": "png"}\'')
    assert index.facts("a" * 32) is None
    index.store_facts("a" * 32, MediaFacts("image", "png", 3, 2, None, None))
    with sqlite3.connect(tmp_path / INDEX_NAME) as db:
        db.execute("UPDATE facts SET revision = revision - 1")
    assert index.facts("a" * 32) is None


@pytest.mark.parametrize("damage", ['"duration_s": NaN', '"fps": 1e999', '"pixel_aspect": "1/0"', '"width": "wide"'])
def test_damaged_facts_are_ignored(tmp_path: Path, damage: str) -> None:
    index = MediaIndex(tmp_path)
    index.store_facts("a" * 32, MediaFacts("image", "png", 3, 2, None, None))
    with sqlite3.connect(tmp_path / INDEX_NAME) as db:
        db.execute("UPDATE facts SET facts = substr(facts, 1, length(facts) - 1) || ?", (f", {damage}}}",))
    assert index.facts("a" * 32) is None


def test_a_damaged_index_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / INDEX_NAME).write_bytes(b"this is no database, " * 400)
    f = old_file(tmp_path / "a.mp4", b"one")
    assert MediaIndex(tmp_path).media_id(item(f)) == digest(b"one")
    assert "damaged index" in caplog.text


def test_a_foreign_database_is_not_changed(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / INDEX_NAME) as db:
        db.execute("CREATE TABLE files (holiday TEXT)")
    with pytest.raises(CacheError, match="index of the cache folder"):
        MediaIndex(tmp_path)
    with sqlite3.connect(tmp_path / INDEX_NAME) as db:
        assert db.execute("SELECT count(*) FROM files").fetchone() == (0,)


WRITER = """
import sys
sys.path.insert(0, {repository!r})
from vidqa.cache.media_index import MediaIndex
from vidqa.records import EncodedSegment, MediaFacts, MediaItem
import os
index, folder, name = MediaIndex(sys.argv[1]), sys.argv[2], sys.argv[3]
i = 0
while True:
    path = os.path.join(folder, f"{{name}}{{i % 50}}")
    with open(path, "w") as f:
        f.write(f"{{name}} {{i % 50}}")
    os.utime(path, (1600000000 + i, 1600000000 + i))
    s = os.stat(path)
    index.media_id(MediaItem(path, folder, os.path.basename(path), s.st_size, s.st_mtime_ns))
    i += 1
    print(i, flush=True)
"""


def test_two_writers_and_kill_9(tmp_path: Path) -> None:
    """Digests that a process has stored survive when it and a second writer are killed."""
    script, cache = tmp_path / "writer.py", tmp_path / "cache"
    script.write_text(WRITER.format(repository=REPOSITORY))
    (tmp_path / "files").mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, str(script), str(cache), str(tmp_path / "files"), name], stdout=subprocess.PIPE
        )
        for name in "ab"
    ]
    for w in writers:
        assert w.stdout is not None
        while int(w.stdout.readline()) < 120:
            pass
    for w in writers:
        w.send_signal(signal.SIGKILL)
        w.wait()
        assert w.stdout is not None
        w.stdout.close()
    index = MediaIndex(cache)
    assert index.n_files() == 100
    with sqlite3.connect(cache / INDEX_NAME) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for path in (tmp_path / "files").iterdir():
        if path.stat().st_size:  # one may have been killed between truncation and write
            assert index.media_id(item(path)) == digest(path.read_bytes())
    assert index.n_hashed <= 2


def test_lookups_use_the_primary_key_and_read_no_file(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    rows = [(f"/archive/{i:06d}.mp4".encode(), i, i, f"{i:032x}", 10**18) for i in range(5_000)]
    with sqlite3.connect(tmp_path / INDEX_NAME) as db:
        db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)
        (plan,) = db.execute("EXPLAIN QUERY PLAN SELECT * FROM files WHERE path = x'00'").fetchall()
    assert "SEARCH" in plan[-1]  # a table scan would need n * n steps for n files
    items = [MediaItem(f"/archive/{i:06d}.mp4", "/archive", f"{i:06d}.mp4", i, i) for i in range(5_000)]
    assert [index.media_id(it) for it in items] == [f"{i:032x}" for i in range(5_000)]
    assert index.n_hashed == 0


@pytest.mark.parametrize("limit", [100, 10_000, 60_000])
def test_a_file_size_limit_is_reported_as_such(tmp_path: Path, limit: int) -> None:
    """Not as damage, which would suggest to remove the index."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    MediaIndex(tmp_path / "cache").close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(CacheError, match=r"cannot write to the cache folder .*: File too large") as caught:
            index = MediaIndex(tmp_path / "cache")
            for number in range(1000):
                index.store_facts(f"{number}", MediaFacts("video", "h264", 1, 1, 1.0, 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "ulimit -f" in (caught.value.hint or "") and "remove" not in (caught.value.hint or "")
