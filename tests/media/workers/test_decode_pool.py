"""Decoder processes: a file that crashes or hangs one fails alone, and the pool continues."""

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
from vidqa.records import DecodedMedia, SamplingSpec, Segment

pytestmark = pytest.mark.smoke

GOOD, SEGFAULT, HANG, GREEDY, STRANGE, EXIT, NOISY, BUSY, LEAN = 8, 16, 17, 18, 19, 20, 21, 22, 23


@pytest.fixture
def make_image(tmp_path: Path):
    def make(width: int, name: str = "") -> str:
        path = tmp_path / (name or f"{width}.png")
        Image.new("RGB", (width, 4), (width, 0, 0)).save(path)
        return str(path)

    return make


def outcomes(pool: DecodePool, paths: list[str]) -> dict[str, str]:
    """Return the error kind, or `ok`, of each path."""
    return {j.path: r.kind if isinstance(r, MediaError) else "ok" for j, r in pool.run(DecodeJob(p) for p in paths)}


def children() -> set[int]:
    """Return the ids of all child processes, including zombies."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for one in lists for pid in one.read_text().split()}


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Return whether a process ends in time; a zombie counts as ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_same_result_as_decoding_in_this_process(clip: Path, make_image) -> None:
    jobs = [
        DecodeJob(str(clip), 1.0, SamplingSpec("linspace", 4), tag=("a", 1)),
        DecodeJob(make_image(GOOD), tag=object()),
    ]
    with DecodePool(2) as pool:
        results = dict(pool.run(jobs))
    assert set(results) == set(jobs)  # the same objects, with their tags
    pooled, local = results[jobs[0]], decode(str(clip), 1.0, video=SamplingSpec("linspace", 4))
    assert isinstance(pooled, DecodedMedia) and pooled.facts == local.facts
    for a, b in zip(pooled.segments, local.segments, strict=True):
        assert (a.segment, a.start_s, a.end_s) == (b.segment, b.start_s, b.end_s)
        assert np.array_equal(a.frames.pixels, b.frames.pixels) and np.array_equal(a.frames.pts_s, b.frames.pts_s)
        a.frames.pixels[:] = 0  # writable


@pytest.mark.slow
def test_each_failure_affects_one_file(make_image, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    good = [make_image(GOOD, f"good{i}.png") for i in range(6)]
    bad = [make_image(w) for w in (SEGFAULT, GREEDY, STRANGE, EXIT)]
    before = children()
    with DecodePool(2, memory_bytes=1 << 30, transform=worker_hooks.misbehave) as pool:
        found = outcomes(pool, [good[0], *bad, *good[1:], str(tmp_path / "text.png"), str(tmp_path / "gone.png")])
        assert 1 <= len(children() - before) <= 2
    assert [found[p] for p in good] == ["ok"] * 6
    assert [found[p] for p in bad] == ["crashed", "out_of_memory", "crashed", "crashed"]
    assert found[str(tmp_path / "text.png")] == "not_media" and found[str(tmp_path / "gone.png")] == "missing"
    assert children() == before


def test_map_unordered_calls_any_function(make_image, tmp_path: Path) -> None:
    sizes = (0, 1, 2, 300)
    for size in sizes:
        (tmp_path / str(size)).write_bytes(bytes(size))
    with DecodePool(2) as pool:
        results = dict(pool.map_unordered(worker_hooks.file_size, (str(tmp_path / str(size)) for size in sizes)))
        assert outcomes(pool, [make_image(GOOD)]) == {make_image(GOOD): "ok"}  # the same processes also decode
    found = {Path(path).name: r.kind if isinstance(r, MediaError) else r for path, r in results.items()}
    assert found == {"0": "crashed", "1": "unreadable", "2": 2, "300": 300}


@pytest.mark.slow
def test_a_hanging_file_is_killed_after_the_time_limit(make_image) -> None:
    before, started = children(), time.monotonic()
    with DecodePool(2, timeout_s=4.0, transform=worker_hooks.misbehave) as pool:
        results = {j.path: r for j, r in pool.run(DecodeJob(make_image(w)) for w in (HANG, BUSY, GOOD))}
    hang, busy, good = (results[make_image(w)] for w in (HANG, BUSY, GOOD))
    for outcome in (hang, busy):
        assert isinstance(outcome, MediaError) and outcome.kind == "timeout" and "4 s" in outcome.what
    assert isinstance(good, DecodedMedia)
    assert 4 <= time.monotonic() - started < 60 and children() == before


@pytest.mark.slow
def test_the_limit_is_on_time_without_progress(make_image) -> None:
    with DecodePool(1, timeout_s=1.5) as pool:
        assert dict(pool.map_unordered(worker_hooks.slow, [make_image(GOOD)])) == {make_image(GOOD): make_image(GOOD)}


def test_segments_arrive_as_they_are_decoded_and_are_kept_if_the_rest_hangs(clip: Path, make_image) -> None:
    """The clip lasts four seconds. The other worker continues meanwhile."""
    with DecodePool(2, timeout_s=4.0, transform=worker_hooks.hang_in_third_segment) as pool:
        jobs = [DecodeJob(str(clip), 1.0), *(DecodeJob(make_image(GOOD), tag=n) for n in range(5))]
        results = list(pool.stream(jobs))
    video = [outcome for job, outcome in results if job is jobs[0]]
    assert results[-1][1] is video[-1], "the images did not wait for the video"
    assert isinstance(video[-1], MediaError) and video[-1].kind == "timeout"
    parts = [part for part in video if isinstance(part, DecodedMedia)]
    assert [part.segments[0].start_s for part in parts] == [0.0, 1.0]
    assert not any(part.is_last for part in parts) and {len(part.planned) for part in parts} == {4}
    assert sum(isinstance(outcome, DecodedMedia) and outcome.is_last for _, outcome in results) == 5


def test_waiting_for_the_caller_does_not_count(clip: Path) -> None:
    with DecodePool(1, timeout_s=1.0) as pool:
        results = pool.stream([DecodeJob(str(clip), 0.5, SamplingSpec("linspace", 2))])
        parts = [next(results)[1]]
        time.sleep(3)
        parts += [outcome for _, outcome in results]
    assert len(parts) == 8 and all(isinstance(part, DecodedMedia) for part in parts)
    assert [part.is_last for part in parts] == [False] * 7 + [True]  # type: ignore[union-attr]


def test_skipped_segments_are_not_decoded(clip: Path) -> None:
    skip = frozenset({Segment(0.0, 1.0), Segment(2.0, 3.0)})
    with DecodePool(1) as pool:
        (job,) = jobs = [DecodeJob(str(clip), 1.0, skip=skip)]
        ((_, media),) = pool.run(jobs)
    assert isinstance(media, DecodedMedia) and [s.start_s for s in media.segments] == [1.0, 3.0]
    assert media.segments[1].end_s == decode(str(clip), 1.0).segments[3].end_s and job.skip == skip


def test_error_messages_have_the_reason(make_image) -> None:
    with DecodePool(1, transform=worker_hooks.misbehave) as pool:
        messages = {j.path: str(r) for j, r in pool.run(DecodeJob(make_image(w)) for w in (SEGFAULT, EXIT, STRANGE))}
    assert "SIGSEGV" in messages[make_image(SEGFAULT)] and "exit code 3" in messages[make_image(EXIT)]
    assert "IndexError: a strange file" in messages[make_image(STRANGE)]


def test_output_of_libraries_is_discarded(make_image, capfd: pytest.CaptureFixture[str]) -> None:
    with DecodePool(1, transform=worker_hooks.misbehave) as pool:
        assert set(outcomes(pool, [make_image(NOISY), make_image(LEAN)]).values()) == {"ok"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_jobs_are_taken_on_demand(make_image) -> None:
    n_taken = 0
    path = make_image(GOOD)

    def source() -> Iterator[DecodeJob]:
        nonlocal n_taken
        for i in range(1000):
            n_taken += 1
            yield DecodeJob(path, tag=i)

    with DecodePool(2) as pool:
        results = pool.run(source())
        assert n_taken == 0
        seen = {next(results)[0].tag for _ in range(5)}
        assert len(seen) == 5 and n_taken <= 5 + 4
        results.close()  # type: ignore[attr-defined]
        assert n_taken <= 5 + 4
        assert len(list(pool.run(DecodeJob(path, tag=i) for i in range(3)))) == 3  # the pool is still usable


def test_an_idle_worker_that_died_is_replaced(make_image) -> None:
    before = children()
    with DecodePool(1) as pool:
        assert outcomes(pool, [make_image(GOOD)]) == {make_image(GOOD): "ok"}
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert outcomes(pool, [make_image(GOOD)]) == {make_image(GOOD): "ok"}


def test_a_worker_that_dies_before_it_accepts_a_job_is_replaced(make_image) -> None:
    before = children()
    with DecodePool(1) as pool:
        assert outcomes(pool, [make_image(GOOD)]) == {make_image(GOOD): "ok"}
        (pid,) = children() - before
        os.kill(pid, signal.SIGSTOP)  # alive, but not reading: the job waits in the pipe
        timer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        timer.start()
        assert outcomes(pool, [make_image(GOOD)]) == {make_image(GOOD): "ok"}
        timer.join()
        assert pid not in children()


def test_leaving_the_pool_early_ends_all_processes(make_image, tmp_path: Path) -> None:
    before = children()
    note = tmp_path / "pids"
    started = time.monotonic()
    transform = partial(worker_hooks.misbehave, note=str(note))
    with pytest.raises(ZeroDivisionError), DecodePool(2, timeout_s=300, transform=transform) as pool:
        for _ in pool.run(DecodeJob(p) for p in [make_image(GOOD), make_image(HANG), make_image(BUSY)]):
            while len(note.read_text().split()) < 3:
                time.sleep(0.02)
            raise ZeroDivisionError
    assert time.monotonic() - started < 60 and children() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(pool.run([DecodeJob(make_image(GOOD))]))


SCRIPT = """
import sys
sys.path[:0] = sys.argv[3:]
from functools import partial
import worker_hooks
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
if len(sys.argv) > 1:  # no __main__ guard: workers must not import this script
    with DecodePool(2, 300, transform=partial(worker_hooks.misbehave, note=sys.argv[2])) as pool:
        for _ in pool.run([DecodeJob(sys.argv[1]), DecodeJob(sys.argv[1])]):
            pass
"""


@pytest.mark.parametrize(
    ("signum", "behavior"), [(signal.SIGKILL, BUSY), (signal.SIGTERM, HANG), (signal.SIGINT, HANG)]
)
def test_workers_do_not_outlive_the_run(signum: int, behavior: int, make_image, tmp_path: Path) -> None:
    script, note = tmp_path / "run.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    import_paths = [str(Path(worker_hooks.__file__).parent), str(Path(__file__).parents[3])]
    run = subprocess.Popen(
        [sys.executable, str(script), make_image(behavior), str(note), *import_paths],
        stderr=subprocess.PIPE,
        # In the background of a script the tests ignore SIGINT, and the run would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (note.exists() and len(note.read_text().split()) == 2):
            time.sleep(0.05)
        pids = [int(p) for p in note.read_text().split()]
        assert len(pids) == 2
        run.send_signal(signum)
        run.wait(30)
    finally:
        run.kill()
        stderr = run.communicate()[1].decode()
    assert all(gone(pid) for pid in pids)
    assert "KeyboardInterrupt" in stderr if signum == signal.SIGINT else stderr == ""


def test_a_pool_that_cannot_start_raises(make_image) -> None:
    def local(frames: object) -> object:
        return frames

    with DecodePool(1, transform=local) as pool, pytest.raises(RuntimeError):  # type: ignore[arg-type]
        next(pool.run([DecodeJob(make_image(GOOD))]))
    for wrong in ({"n_workers": 0}, {"n_workers": 1, "timeout_s": 0}):
        with pytest.raises(ValueError):
            DecodePool(**wrong)  # type: ignore[arg-type]
