"""Decoder processes: whatever a file does to one, its row says so and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import worker_hooks
from PIL import Image

from vidqa.errors import MediaError
from vidqa.media.decode import decode
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.records import DecodedMedia, SamplingSpec

GOOD, SEGFAULT, HANG, GREEDY, STRANGE, EXIT, NOISY, BUSY, LEAN = 8, 16, 17, 18, 19, 20, 21, 22, 23


@pytest.fixture
def picture(tmp_path: Path):
    def make(width: int, name: str = "") -> str:
        path = tmp_path / (name or f"{width}.png")
        Image.new("RGB", (width, 4), (width, 0, 0)).save(path)
        return str(path)

    return make


def outcomes(pool: DecodePool, paths: list[str]) -> dict[str, str]:
    """Path -> kind of error, or ok."""
    return {j.path: r.kind if isinstance(r, MediaError) else "ok" for j, r in pool.run(DecodeJob(p) for p in paths)}


def children() -> set[int]:
    """Processes started by any thread of this one; zombies count."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for one in lists for pid in one.read_text().split()}


def gone(pid: int, within_s: float = 10.0) -> bool:
    """True once a process is no more; a zombie of a foreign parent does not count as alive."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_same_as_in_process(clip: Path, picture) -> None:
    jobs = [
        DecodeJob(str(clip), 1.0, SamplingSpec("linspace", 4), tag=("a", 1)),
        DecodeJob(picture(GOOD), tag=object()),
    ]
    with DecodePool(2) as pool:
        results = dict(pool.run(jobs))
    assert set(results) == set(jobs)  # the very jobs, with their tags
    there, here = results[jobs[0]], decode(str(clip), 1.0, video=SamplingSpec("linspace", 4))
    assert isinstance(there, DecodedMedia) and there.facts == here.facts
    for a, b in zip(there.segments, here.segments, strict=True):
        assert (a.segment, a.start_s, a.end_s) == (b.segment, b.start_s, b.end_s)
        assert np.array_equal(a.frames.pixels, b.frames.pixels) and np.array_equal(a.frames.pts_s, b.frames.pts_s)
        a.frames.pixels[:] = 0  # whole and writable on this side


def test_each_failure_costs_one_row(picture, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    good = [picture(GOOD, f"good{i}.png") for i in range(6)]
    bad = [picture(w) for w in (SEGFAULT, GREEDY, STRANGE, EXIT)]
    before = children()
    with DecodePool(2, memory_bytes=1 << 30, transform=worker_hooks.misbehave) as pool:
        found = outcomes(pool, [good[0], *bad, *good[1:], str(tmp_path / "text.png"), str(tmp_path / "gone.png")])
        assert 1 <= len(children() - before) <= 2
    assert [found[p] for p in good] == ["ok"] * 6
    assert [found[p] for p in bad] == ["crashed", "out_of_memory", "crashed", "crashed"]
    assert found[str(tmp_path / "text.png")] == "not_media" and found[str(tmp_path / "gone.png")] == "missing"
    assert children() == before


def test_anything_may_be_asked_with_the_same_care(picture, tmp_path: Path) -> None:
    sizes = (0, 1, 2, 300)
    for size in sizes:
        (tmp_path / str(size)).write_bytes(bytes(size))
    with DecodePool(2) as pool:
        told = dict(pool.map_unordered(worker_hooks.ask_size, (str(tmp_path / str(size)) for size in sizes)))
        assert outcomes(pool, [picture(GOOD)]) == {picture(GOOD): "ok"}  # the same processes decode as well
    found = {Path(path).name: r.kind if isinstance(r, MediaError) else r for path, r in told.items()}
    assert found == {"0": "crashed", "1": "unreadable", "2": 2, "300": 300}


def test_a_hanging_file_costs_its_time_limit_and_one_row(picture) -> None:
    before, began = children(), time.monotonic()
    with DecodePool(2, timeout_s=4.0, transform=worker_hooks.misbehave) as pool:
        results = {j.path: r for j, r in pool.run(DecodeJob(picture(w)) for w in (HANG, BUSY, GOOD))}
    hang, busy, good = (results[picture(w)] for w in (HANG, BUSY, GOOD))
    for late in (hang, busy):
        assert isinstance(late, MediaError) and late.kind == "timeout" and "4 s" in late.what
    assert isinstance(good, DecodedMedia)
    assert 4 <= time.monotonic() - began < 60 and children() == before


def test_sentences_say_how(picture) -> None:
    with DecodePool(1, transform=worker_hooks.misbehave) as pool:
        said = {j.path: str(r) for j, r in pool.run(DecodeJob(picture(w)) for w in (SEGFAULT, EXIT, STRANGE))}
    assert "SIGSEGV" in said[picture(SEGFAULT)] and "exit code 3" in said[picture(EXIT)]
    assert "IndexError: a strange file" in said[picture(STRANGE)]


def test_noise_stays_in_the_worker(picture, capfd: pytest.CaptureFixture[str]) -> None:
    with DecodePool(1, transform=worker_hooks.misbehave) as pool:
        assert set(outcomes(pool, [picture(NOISY), picture(LEAN)]).values()) == {"ok"}
    assert capfd.readouterr() == ("", "")


def test_jobs_are_pulled_as_needed(picture) -> None:
    pulled = 0
    path = picture(GOOD)

    def source() -> Iterator[DecodeJob]:
        nonlocal pulled
        for i in range(1000):
            pulled += 1
            yield DecodeJob(path, tag=i)

    with DecodePool(2) as pool:
        results = pool.run(source())
        assert pulled == 0
        seen = {next(results)[0].tag for _ in range(5)}
        assert len(seen) == 5 and pulled <= 5 + 4
        results.close()  # type: ignore[attr-defined]
        assert pulled <= 5 + 4
        assert len(list(pool.run(DecodeJob(path, tag=i) for i in range(3)))) == 3  # the pool is still good


def test_a_worker_that_died_idle_costs_nothing(picture) -> None:
    before = children()
    with DecodePool(1) as pool:
        assert outcomes(pool, [picture(GOOD)]) == {picture(GOOD): "ok"}
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert outcomes(pool, [picture(GOOD)]) == {picture(GOOD): "ok"}


def test_a_worker_that_dies_before_it_takes_a_file_costs_nothing(picture) -> None:
    before = children()
    with DecodePool(1) as pool:
        assert outcomes(pool, [picture(GOOD)]) == {picture(GOOD): "ok"}
        (pid,) = children() - before
        os.kill(pid, signal.SIGSTOP)  # it counts as alive and does not read: the job waits in the pipe
        clock = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        clock.start()
        assert outcomes(pool, [picture(GOOD)]) == {picture(GOOD): "ok"}
        clock.join()
        assert pid not in children()


def test_leaving_early_leaves_nothing(picture, tmp_path: Path) -> None:
    before = children()
    note = tmp_path / "pids"
    began = time.monotonic()
    transform = partial(worker_hooks.misbehave, note=str(note))
    with pytest.raises(ZeroDivisionError), DecodePool(2, timeout_s=300, transform=transform) as pool:
        for _ in pool.run(DecodeJob(p) for p in [picture(GOOD), picture(HANG), picture(BUSY)]):
            while len(note.read_text().split()) < 3:
                time.sleep(0.02)
            raise ZeroDivisionError
    assert time.monotonic() - began < 60 and children() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(pool.run([DecodeJob(picture(GOOD))]))


SCRIPT = """
import sys
sys.path[:0] = sys.argv[3:]
from functools import partial
import worker_hooks
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
if len(sys.argv) > 1:  # no __main__ guard: workers must not run this script again
    with DecodePool(2, 300, transform=partial(worker_hooks.misbehave, note=sys.argv[2])) as pool:
        for _ in pool.run([DecodeJob(sys.argv[1]), DecodeJob(sys.argv[1])]):
            pass
"""


@pytest.mark.parametrize(("how", "what"), [(signal.SIGKILL, BUSY), (signal.SIGTERM, HANG), (signal.SIGINT, HANG)])
def test_workers_do_not_outlive_the_run(how: int, what: int, picture, tmp_path: Path) -> None:
    script, note = tmp_path / "run.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    here = [str(Path(worker_hooks.__file__).parent), str(Path(__file__).parents[2])]
    run = subprocess.Popen(
        [sys.executable, str(script), picture(what), str(note), *here],
        stderr=subprocess.PIPE,
        # Started in the background of a script, the tests ignore Ctrl-C, and so would the run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (note.exists() and len(note.read_text().split()) == 2):
            time.sleep(0.05)
        pids = [int(p) for p in note.read_text().split()]
        assert len(pids) == 2
        run.send_signal(how)
        run.wait(30)
    finally:
        run.kill()
        said = run.communicate()[1].decode()
    assert all(gone(pid) for pid in pids)
    assert "KeyboardInterrupt" in said if how == signal.SIGINT else said == ""


def test_what_cannot_start_is_told(picture) -> None:
    def local(frames: object) -> object:
        return frames

    with DecodePool(1, transform=local) as pool, pytest.raises(RuntimeError):  # type: ignore[arg-type]
        next(pool.run([DecodeJob(picture(GOOD))]))
    for wrong in ({"n_workers": 0}, {"n_workers": 1, "timeout_s": 0}):
        with pytest.raises(ValueError):
            DecodePool(**wrong)  # type: ignore[arg-type]
