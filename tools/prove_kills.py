"""Kill runs at random times and check that no row is lost: `python tools/prove_kills.py --count 100`.

Writes some clips, one of them long, and asks several questions about each window of them without interruption. Then
further runs over the same clips are killed with SIGKILL, including all their processes, after random times; each run
resumes the one before, often in the middle of a file. After every kill the table must be missing or valid and the cache
undamaged. When a run completes, the table must have the rows of the uninterrupted run: none missing, none duplicated.
In the second half of each round some clips are renamed, copied and added. Runs are forked from a process that has
loaded the packages, and may be killed from the moment they hold the table's lock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from vidqa.cache.maintenance import verify
from vidqa.tables.formats import read_table

#: Rows per journal part: so few that a short run writes several.
PART_ROWS = 3
COMPARED_COLUMNS = ["media_id", "path", "start_s", "end_s", "n_segments", "question", "status", "answer"]
#: Length of a window, and number of questions: most kills then hit a file of which some rows are finished.
WINDOW_S, N_QUESTIONS = 0.6, 2
N_FRAMES, N_FRAMES_OF_LONG_CLIP = 12, 60

#: Imports what a run needs, then forks one run per line on stdin, a JSON list of arguments.
SERVER = """
import json, os, sys
import vidqa.pipeline.run.bookkeeping as ledger
from vidqa.cli.main import run
import vidqa.pipeline.describe, vidqa.generate.engine, vidqa.encoders.encoder
import vidqa.model.video_llava, vidqa.tables.table
import transformers.models.llama.modeling_llama, transformers.models.auto.tokenization_auto
ledger.COMMIT_ROWS = int(sys.argv[1])
for line in sys.stdin:
    if not (pid := os.fork()):
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os._exit(run(json.loads(line)) or 0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Broken(Exception):
    """A guarantee does not hold."""


def make_clip(path: Path, seed: int, n_frames: int = N_FRAMES) -> None:
    """Write a very small clip: frames of a moving pattern, ten per second."""
    image = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(image, i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def second_half(clips: Path) -> None:
    """Change the archive as it may change between two runs: rename, copy and add files."""
    names = sorted(clips.iterdir())
    names[0].rename(clips / "renamed.mp4")
    shutil.copy(names[1], clips / "copied.mp4")
    make_clip(clips / "new.mp4", 999)


class Run:
    """One run of `vidqa describe` in its own process group, forked from the server."""

    def __init__(self, server: subprocess.Popen[bytes], arguments: list[str]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self._output = server.stdout
        self._status: int | None = None
        server.stdin.write(json.dumps(arguments).encode() + b"\n")  # both pipes are unbuffered
        self.pid = int(self._output.readline())

    def ended(self) -> bool:
        """Return whether the run has exited."""
        return self._status is not None or bool(select.select([self._output], [], [], 0)[0])

    def wait(self) -> int:
        """Wait for the run; return its wait status, 0 for success."""
        if self._status is None:
            self._status = int(self._output.readline())
        return self._status

    def kill(self) -> None:
        """Send SIGKILL to the run and all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@dataclass(frozen=True)
class Setup:
    """What all runs of a round share: clips, folder, table and model."""

    server: subprocess.Popen[bytes]
    clips: Path
    work: Path
    out: str
    model: str

    @property
    def table(self) -> Path:
        """Path of the table, a file or a folder."""
        return self.work / self.out.rstrip("/")

    def start(self) -> Run:
        """Start a run and wait until it holds the table's lock."""
        lock = self.work / f".{self.table.name}.lock"
        before = lock.read_bytes() if lock.exists() else b""
        arguments = ["describe", str(self.clips), "--out", f"{self.work}/{self.out}", "--model", self.model]
        arguments += ["--cache-dir", str(self.work / "cache"), "--batch-size", "2", "--quiet"]
        arguments += ["--segment", str(WINDOW_S), "--questions", str(self.clips.parent / "questions.toml")]
        run = Run(self.server, arguments)
        while not run.ended() and (not lock.exists() or lock.read_bytes() in (before, b"")):
            time.sleep(0.005)
        return run

    def finish(self) -> float:
        """Run to completion, which must succeed; return the seconds since it held the lock."""
        run, start = self.start(), time.monotonic()
        if run.wait():
            raise Broken(f"a run that was not killed ended with status {run.wait()}")
        return time.monotonic() - start


def rows(table: Path) -> Counter[tuple[object, ...]]:
    """Count the rows by the compared columns; raises if the table is damaged."""
    return Counter(read_table(table).select(COMPARED_COLUMNS).iter_rows())


def inspect(setup: Setup) -> None:
    """Check the state after a kill: a valid table or none, no duplicate rows, no damaged cache entries."""
    if setup.table.exists() and max(rows(setup.table).values(), default=1) > 1:
        raise Broken("after a kill, the table has a duplicate row")
    if (setup.work / "cache").exists() and (damaged := verify(setup.work / "cache").damaged):
        raise Broken(f"after a kill, the cache has damaged entries: {damaged}")


def uninterrupted(setup: Setup) -> tuple[list[Counter[tuple[object, ...]]], float]:
    """Run both halves without kills; return their rows and the seconds of the first run."""
    setup.work.mkdir()
    tables, seconds = [], []
    for half in (1, 2):
        if half == 2:
            second_half(setup.clips)
        seconds.append(setup.finish())
        tables.append(rows(setup.table))
    return tables, seconds[0]


def interrupted(setup: Setup, n_kills: int, run_s: float, chance: random.Random, seen: Counter[str]) -> None:
    """Kill some runs, inspect the state after each, and let the last run complete."""
    for _ in range(n_kills):
        run = setup.start()
        time.sleep(chance.uniform(0, run_s))
        seen["ended before the kill" if run.ended() else "killed"] += 1
        run.kill()
        parts = setup.work / (setup.table.name + ".parts")
        seen["left parts"] += parts.exists() and any(parts.glob("0*"))
        seen["left a table"] += setup.table.exists()
        inspect(setup)
    setup.finish()
    seen["compared"] += 1
    leftovers = [p.name for p in setup.work.iterdir() if ".parts" in p.name or p.name.endswith((".part", ".lock"))]
    if leftovers:
        raise Broken(f"a completed run left {leftovers}")


def prove(home: Path, server: subprocess.Popen[bytes], args: argparse.Namespace) -> dict[str, object]:
    """Kill the requested number of runs.

    Returns:
        Counts of what was observed.

    Raises:
        Broken: a guarantee does not hold.
    """
    chance, seen = random.Random(args.seed), Counter[str]()
    for i in range(args.clips):
        make_clip(home / "first" / f"clip{i:02d}.mp4", i, N_FRAMES_OF_LONG_CLIP if i == 1 else N_FRAMES)
    questions = (f'[[question]]\nid = "q{i}"\ntext = "Is there a shape of kind {i}?"\n' for i in range(N_QUESTIONS))
    (home / "questions.toml").write_text("".join(questions))
    shutil.copytree(home / "first", home / "clips")
    expected, run_s = uninterrupted(Setup(server, home / "clips", home / "expected", args.out, args.model))
    setup = Setup(server, home / "clips", home / "work", args.out, args.model)
    while seen["killed"] < args.count:
        shutil.rmtree(setup.clips)
        shutil.copytree(home / "first", setup.clips)
        setup.work.mkdir()
        for half in (0, 1):
            if half:
                second_half(setup.clips)
            left = args.count - seen["killed"]
            interrupted(setup, min(left, chance.randrange(2, 6)), run_s, chance, seen)
            if rows(setup.table) != expected[half]:
                raise Broken(f"rows differ from those of the uninterrupted run after {seen['killed']} kills")
        shutil.rmtree(setup.work)
        print(f"{seen['killed']} of {args.count} killed: {dict(seen)}", file=sys.stderr, flush=True)
    return {"rows": [sum(table.values()) for table in expected], "run_s": round(run_s, 2), **seen}


def main() -> None:
    """Kill runs and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="number of kills [100]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times [0]")
    parser.add_argument("--out", default="t.parquet", help="name of the table; `set/` for a folder [t.parquet]")
    parser.add_argument("--model", default="demo", help="name or folder of a bundle [demo]")
    parser.add_argument("--clips", type=int, default=12, help="clips in the archive [12]")
    args = parser.parse_args()
    start = time.monotonic()
    command = [sys.executable, "-P", "-c", SERVER, str(PART_ROWS)]
    with (
        tempfile.TemporaryDirectory(prefix="vidqa-kills-") as home,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as server,
    ):
        try:
            seen = prove(Path(home), server, args)
        except Broken as error:
            sys.exit(f"BROKEN (seed {args.seed}): {error}")
        finally:
            server.terminate()
    print(json.dumps({"proof": "kills", "seed": args.seed, "wall_s": round(time.monotonic() - start, 1), **seen}))


if __name__ == "__main__":
    main()
