"""Files are whole or absent, whatever ends the writer."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vidqa.common import atomic_io

REPOSITORY = str(Path(__file__).parents[1])


def test_the_name_appears_only_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_io.atomic_write(path) as f:
        f.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(RuntimeError), atomic_io.atomic_write(path) as f:
        f.write(b"two")
        raise RuntimeError
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_the_users(tmp_path: Path) -> None:
    path, before = tmp_path / "a.txt", os.umask(0o027)
    try:
        with atomic_io.atomic_write(path) as f:
            f.write(b"one")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    with atomic_io.atomic_write(path) as f:
        f.write(b"two")
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_bytes() == b"two"


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
@pytest.mark.parametrize(
    "name", ["-x", "a b\n\"'", "\u0444" * 120 + ".p", "\U0001f4fc" * 60, os.fsdecode(b"caf\xe9.txt")]
)
def test_any_name_that_the_system_takes(tmp_path: Path, name: str) -> None:
    with atomic_io.atomic_write(tmp_path / name) as f:
        f.write(b"one")
    assert os.listdir(tmp_path) == [name]


def test_many_writers_of_one_name(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom vidqa.common import atomic_io\n"
        "for i in range(40):\n with atomic_io.atomic_write(sys.argv[2]) as f:\n"
        "  for _ in range(50): f.write(sys.argv[3].encode() * 1000)\n"
    )
    path = tmp_path / "a.bin"
    writers = [subprocess.Popen([sys.executable, "-c", code, REPOSITORY, str(path), c]) for c in "abc"]
    seen = set()
    while any(w.poll() is None for w in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 50_000 and len(set(content)) == 1
            seen.add(content[0])
    assert [w.returncode for w in writers] == [0, 0, 0]
    assert seen and os.listdir(tmp_path) == ["a.bin"]


def test_kill_9_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\nfrom vidqa.common import atomic_io\n"
        "with atomic_io.atomic_write(sys.argv[2]) as f:\n"
        " f.write(b'n' * 100000); f.flush(); print('in', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, REPOSITORY, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"in\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes() == b"old"
    assert next(n for n in os.listdir(tmp_path) if n != "a.bin").endswith(".part")


def test_digest_file(tmp_path: Path) -> None:
    for content in (b"", b"x" * (3 << 20)):
        (tmp_path / "a").write_bytes(content)
        assert atomic_io.sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_missing_folder_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_io.atomic_write(tmp_path / "none" / "a"):
        pass
    atomic_io.fsync_folder(tmp_path / "none")
