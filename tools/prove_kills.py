"""Kill a run at random instants, and show that nothing is lost: `python tools/prove_kills.py --count 100`.

Makes some clips and lets one run describe them undisturbed. Then runs over the same clips are killed with signal 9,
with all their processes, each after a random time; the next one goes on. After each kill the table must be absent or
whole and the cache sound; when a run comes to its end, the table must hold the rows of the undisturbed one: none lost,
none twice. In the second half of each round some clips are renamed, copied and new. `--model` gives the answers. Runs
are forked from one process that has loaded the packages, and killed from the moment when they hold their lock.
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

#: Rows of a part, so few that a short run writes several.
PART_ROWS = 3
TELLING = ["media_id", "path", "start_s", "question", "status", "answer"]

#: Loads what a run needs once; then each line on stdin, a JSON list of arguments, is a run in a forked process.
SERVER = """
import json, os, sys
import vidqa.pipeline.run.bookkeeping as ledger
from vidqa.cli.main import run
import vidqa.pipeline.describe, vidqa.generate.engine, vidqa.encoders.encoder, vidqa.model.video_llava, vidqa.tables.table
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
    """What must not happen, happened."""


def make_clip(path: Path, seed: int) -> None:
    """Twelve frames of a moving pattern, as small as a clip can be."""
    picture = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def second_half(clips: Path) -> None:
    """What may happen to an archive between two nights."""
    names = sorted(clips.iterdir())
    names[0].rename(clips / "renamed.mp4")
    shutil.copy(names[1], clips / "copied.mp4")
    make_clip(clips / "new.mp4", 999)


class Run:
    """One run of `vidqa describe`: a process group of its own, a child of the server."""

    def __init__(self, server: subprocess.Popen[bytes], arguments: list[str]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self._said = server.stdout
        self._status: int | None = None
        server.stdin.write(json.dumps(arguments).encode() + b"\n")  # not buffered, nor is what comes back
        self.pid = int(self._said.readline())

    def ended(self) -> bool:
        """True when it has ended by itself."""
        return self._status is not None or bool(select.select([self._said], [], [], 0)[0])

    def wait(self) -> int:
        """Status as the system gives it; 0 is success."""
        if self._status is None:
            self._status = int(self._said.readline())
        return self._status

    def kill(self) -> None:
        """Signal 9 to the run and all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@dataclass(frozen=True)
class Place:
    """Where runs work, and with what."""

    server: subprocess.Popen[bytes]
    clips: Path
    work: Path
    out: str
    model: str

    @property
    def table(self) -> Path:
        """The table, file or folder."""
        return self.work / self.out.rstrip("/")

    def start(self) -> Run:
        """Begin a run and wait until it holds its lock, that is until it works."""
        lock = self.work / f".{self.table.name}.lock"
        before = lock.read_bytes() if lock.exists() else b""
        arguments = ["describe", str(self.clips), "--out", f"{self.work}/{self.out}", "--model", self.model]
        arguments += ["--cache-dir", str(self.work / "cache"), "--batch-size", "2", "--quiet"]
        run = Run(self.server, arguments)
        while not run.ended() and (not lock.exists() or lock.read_bytes() in (before, b"")):
            time.sleep(0.005)
        return run

    def finish(self) -> float:
        """A whole run, which must succeed; its seconds from the lock to the end."""
        run, begin = self.start(), time.monotonic()
        if run.wait():
            raise Broken(f"a run that nobody killed ended with status {run.wait()}")
        return time.monotonic() - begin


def rows(table: Path) -> Counter[tuple[object, ...]]:
    """The rows by what tells them apart; raises where the table is not whole."""
    return Counter(read_table(table).select(TELLING).iter_rows())


def look(place: Place) -> None:
    """Hold what a kill left to the promises: a whole table or none, no row twice, no damaged entry in the cache."""
    if place.table.exists() and max(rows(place.table).values(), default=1) > 1:
        raise Broken("after a kill, the table holds a row twice")
    if (place.work / "cache").exists() and (damaged := verify(place.work / "cache").damaged):
        raise Broken(f"after a kill, the cache holds damaged entries: {damaged}")


def undisturbed(place: Place) -> tuple[list[Counter[tuple[object, ...]]], float]:
    """Both halves without a kill: their rows, and how long a run works in seconds."""
    place.work.mkdir()
    tables, seconds = [], []
    for half in (1, 2):
        if half == 2:
            second_half(place.clips)
        seconds.append(place.finish())
        tables.append(rows(place.table))
    return tables, seconds[0]


def disturbed(place: Place, n_kills: int, run_s: float, chance: random.Random, seen: Counter[str]) -> None:
    """Kill some runs, look at what each leaves, and let the last one come to its end."""
    for _ in range(n_kills):
        run = place.start()
        time.sleep(chance.uniform(0, run_s))
        seen["ended before the kill" if run.ended() else "killed"] += 1
        run.kill()
        parts = place.work / (place.table.name + ".parts")
        seen["left parts"] += parts.exists() and any(parts.glob("0*"))
        seen["left a table"] += place.table.exists()
        look(place)
    place.finish()
    seen["compared"] += 1
    strange = [p.name for p in place.work.iterdir() if ".parts" in p.name or p.name.endswith((".part", ".lock"))]
    if strange:
        raise Broken(f"a run that ended left {strange}")


def prove(home: Path, server: subprocess.Popen[bytes], args: argparse.Namespace) -> dict[str, object]:
    """Kill as many runs as asked for.

    Returns:
        What was seen, as numbers.

    Raises:
        Broken: a promise does not hold.
    """
    chance, seen = random.Random(args.seed), Counter[str]()
    for i in range(args.clips):
        make_clip(home / "first" / f"clip{i:02d}.mp4", i)
    shutil.copytree(home / "first", home / "clips")
    expected, run_s = undisturbed(Place(server, home / "clips", home / "whole", args.out, args.model))
    place = Place(server, home / "clips", home / "work", args.out, args.model)
    while seen["killed"] < args.count:
        shutil.rmtree(place.clips)
        shutil.copytree(home / "first", place.clips)
        place.work.mkdir()
        for half in (0, 1):
            if half:
                second_half(place.clips)
            left = args.count - seen["killed"]
            disturbed(place, min(left, chance.randrange(2, 6)), run_s, chance, seen)
            if rows(place.table) != expected[half]:
                raise Broken(f"rows differ from those of the undisturbed run after {seen['killed']} kills")
        shutil.rmtree(place.work)
        print(f"{seen['killed']} of {args.count} killed: {dict(seen)}", file=sys.stderr, flush=True)
    return {"rows": [sum(table.values()) for table in expected], "run_s": round(run_s, 2), **seen}


def main() -> None:
    """Parse, prove, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="kills [100]")
    parser.add_argument("--seed", type=int, default=0, help="of the instants [0]")
    parser.add_argument("--out", default="t.parquet", help="name of the table; `set/` for a data set [t.parquet]")
    parser.add_argument("--model", default="demo", help="bundle that answers [demo]")
    parser.add_argument("--clips", type=int, default=12, help="clips of the archive [12]")
    args = parser.parse_args()
    begin = time.monotonic()
    command = [sys.executable, "-c", SERVER, str(PART_ROWS)]
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
    print(json.dumps({"proof": "kills", "seed": args.seed, "wall_s": round(time.monotonic() - begin, 1), **seen}))


if __name__ == "__main__":
    main()
