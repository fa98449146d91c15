"""Keys of tables: numbers for what comes, in little memory, and no two files for one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vidqa.records import AnswerRow
from vidqa.tables.journal import row_keys
from vidqa.tables.journal.interning import Numbering, Texts
from vidqa.tables.journal.row_keys import KEY_COLUMNS, Keys
from vidqa.tables.schema import rows_to_frame

Make = Callable[..., AnswerRow]


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_given_in_the_order_of_coming(seed: int) -> None:
    chance, numbering, known = random.Random(seed), Numbering(), dict[int, int]()
    for _ in range(60):
        hashes = [chance.randrange(1 << 64) if chance.random() < 0.5 else chance.randrange(50) for _ in range(40)]
        hashes = hashes[: chance.randrange(41)]
        fresh = [at for at, h in enumerate(hashes) if h not in known and h not in hashes[:at]]
        numbers, new = numbering.number(np.array(hashes, np.uint64))
        expected = [known.setdefault(h, len(known)) for h in hashes]
        assert numbers.tolist() == expected and new.tolist() == fresh
        assert len(numbering) == len(known)


def test_texts_come_back() -> None:
    texts, given = Texts(), ["", "a.mp4", "\u044f\u0437\u044b\u043a", "nul\0", "\U0001f4fc", "a" * 300, ""]
    for piece in (given, [], ["one more", None]):
        texts.extend(pl.Series(piece, dtype=pl.String))
    assert [texts[i] for i in range(len(texts))] == [*given, "one more", ""]


def test_ids_of_any_kind_are_found(row: Make) -> None:
    """Digests are looked up by arithmetic over all of them at once, other ids one by one."""
    ids = [f"{i:032x}" for i in range(50)] + [letter * 32 for letter in "ghijk"]
    strange = ["", "short", "\u044f" * 16, "long" * 20, "long" * 20 + "er"]
    for some in (ids, ids + strange):
        rows = [row(media_id=m, path=f"{i}.mp4", root=f"/r{i % 3}") for i, m in enumerate(some)]
        rows.append(row(media_id=None, path="unread.mp4", status="failed", error_kind="permission"))
        frame = rows_to_frame(rows).select(KEY_COLUMNS)
        found = Keys(lambda frame=frame: [frame[:7], frame[7:], frame])
        for i, media_id in enumerate(some):
            assert found.files(media_id, "") == [i] and found.rows(i) == [i, i + len(rows)]
            assert found.media_id(i) == media_id and found.place(i) == (f"/r{i % 3}", f"{i}.mp4")
        assert found.files("none", "") == [] and found.media_id(len(some)) is None
        assert found.files(None, "/videos/unread.mp4") == [len(some)] == list(found.unread())


def test_two_files_with_one_hash_stay_two(row: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens once in a million tables of ten million files: the table is then read again with another hash."""
    made: list[Numbering] = []

    class Poor(Numbering):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def number(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return super().number(hashes & np.uint64(3) if len(made) < 3 else hashes)

    monkeypatch.setattr(row_keys, "Numbering", Poor)
    frame = rows_to_frame(row(media_id=f"{i:032x}", path=f"{i}.mp4") for i in range(20)).select(KEY_COLUMNS)
    found = Keys(lambda: [frame[:10], frame[10:]])
    assert len(made) == 3 and found.n_files == 20
    assert [found.place(i)[1] for i in range(20)] == [f"{i}.mp4" for i in range(20)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident size as Linux tells it")
def test_keys_are_small(tmp_path: Path) -> None:
    """400,000 files with one row each: 80 bytes, and not some hundred for every one, also while the keys are made."""
    code = (
        "import resource, polars as pl\n"
        "from vidqa.tables.journal.row_keys import Keys\n"
        "def frames(n):\n"
        "    for a in range(0, n, 50_000):\n"
        "        i = pl.DataFrame({'i': range(a, min(a + 50_000, n))})\n"
        "        media_id = (pl.col('i').hash().cast(pl.String) + '0' * 32).str.slice(0, 32)\n"
        "        path = pl.format('shelf/clip{}.mp4', 1_000_000 + pl.col('i'))\n"
        "        rest = dict(root='/archive', question='What?', model_id='m', settings_id='s', status='ok')\n"
        "        rest = {name: pl.lit(value) for name, value in rest.items()}\n"
        "        yield i.select(media_id=media_id, path=path, **rest)\n"
        "def peak():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "few = Keys(lambda: frames(100_000))\n"
        "before = peak()\n"
        "many = Keys(lambda: frames(500_000))\n"
        "print((peak() - before) / 400_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 320, done.stdout
