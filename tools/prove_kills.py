"""Kill a run at random instants, and show that nothing is lost: `python tools/prove_kills.py --count 100`.

Makes some clips and lets one run describe them undisturbed. Then runs over the same clips are killed with signal 9,
with all their processes, each after a random time; the next one goes on. After each kill the table must be absent or
whole and the cache sound; when a run comes to its end, the table must hold the rows of the undisturbed one: none lost,
none twice. In the second half of each round some clips are renamed, copied and new. `--model` gives the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import av
import numpy as np

from vidqa.cache.maintain import verify
from vidqa.tables.schema import read_table

#: Rows of a part, so few that a short run writes several.
PART_ROWS = 3
TELLING = ["media_id", "path", "start_s", "question", "status", "answer"]

CHILD = """
import sys
import vidqa.pipeline.ledger as ledger
from vidqa.cli.main import run
ledger.COMMIT_ROWS = int(sys.argv[1])
sys.exit(run(sys.argv[2:]))
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


def start(clips: Path, work: Path, out: str, model: str) -> subprocess.Popen[bytes]:
    """A run as a process group of its own."""
    command = [sys.executable, "-c", CHILD, str(PART_ROWS), "describe", str(clips), "--out", str(work / out)]
    command += ["--model", model, "--cache-dir", str(work / "cache"), "--batch-size", "2", "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run that must succeed."""
    _, said = process.communicate()
    if process.returncode:
        raise Broken(f"a run ended with {process.returncode}: {said.decode(errors='replace')}")


def until_lock(process: subprocess.Popen[bytes], work: Path, out: str) -> None:
    """Wait until the run holds its lock, that is until it works."""
    lock = work / f".{out.rstrip('/')}.lock"
    before = lock.read_bytes() if lock.exists() else b""
    while process.poll() is None and (not lock.exists() or lock.read_bytes() in (before, b"")):
        time.sleep(0.01)


def rows(table: Path) -> Counter[tuple[object, ...]]:
    """The rows by what tells them apart; raises where the table is not whole."""
    return Counter(read_table(table).select(TELLING).iter_rows())


def look(work: Path, out: str, allowed: set[tuple[object, ...]]) -> None:
    """Hold what a kill left to the promises."""
    table = work / out.rstrip("/")
    if table.exists():
        found = rows(table)
        if max(found.values(), default=1) > 1 or not found.keys() <= allowed:
            raise Broken("after a kill, the table holds rows twice or rows that it should not")
    if (work / "cache").exists() and (damaged := verify(work / "cache").damaged):
        raise Broken(f"after a kill, the cache holds damaged entries: {damaged}")


def undisturbed(clips: Path, work: Path, out: str, model: str) -> tuple[list[Counter[tuple[object, ...]]], float]:
    """Both halves without a kill: their rows, and how long a run works in seconds."""
    work.mkdir()
    tables, seconds = [], 0.0
    for half in (1, 2):
        if half == 2:
            second_half(clips)
        process = start(clips, work, out, model)
        until_lock(process, work, out)
        begin = time.monotonic()
        finish(process)
        seconds = max(seconds, time.monotonic() - begin)
        tables.append(rows(work / out.rstrip("/")))
    return tables, seconds


def prove(count: int, seed: int, out: str, model: str, n_clips: int) -> dict[str, object]:
    """Kill `count` runs.

    Returns:
        What was seen, as numbers.

    Raises:
        Broken: a promise does not hold.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="vidqa-kills-") as folder:
        home = Path(folder)
        for i in range(n_clips):
            make_clip(home / "first" / f"clip{i:02d}.mp4", i)
        clips = home / "clips"
        shutil.copytree(home / "first", clips)
        expected, run_s = undisturbed(clips, home / "whole", out, model)
        allowed = set(expected[0]) | set(expected[1])
        while seen["killed"] < count:
            shutil.rmtree(clips)
            shutil.copytree(home / "first", clips)
            work = home / "work"
            work.mkdir()
            for half in (0, 1):
                if half:
                    second_half(clips)
                # Half of the kills that are left, so that both halves get theirs; then one run that may end.
                left = count - seen["killed"]
                for _ in range(min(left if half else (left + 1) // 2, chance.randrange(1, 5))):
                    process = start(clips, work, out, model)
                    until_lock(process, work, out)
                    time.sleep(chance.uniform(0, run_s))
                    seen["ended before the kill" if process.poll() is not None else "killed"] += 1
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    parts = work / (out.rstrip("/") + ".parts")
                    seen["with parts beside the table"] += parts.exists() and any(parts.glob("[0-9]*"))
                    look(work, out, allowed)
                process = start(clips, work, out, model)
                finish(process)
                if rows(work / out.rstrip("/")) != expected[half]:
                    raise Broken(f"rows differ from the undisturbed run (seed {seed}, {seen['killed']} kills)")
                left_over = {p.name for p in work.iterdir()} - {"cache", out.rstrip("/")}
                strange = [n for n in left_over if ".parts" in n or n.endswith((".part", ".lock"))]
                if strange:
                    raise Broken(f"a run that ended left {strange}")
                seen["compared"] += 1
            shutil.rmtree(work)
            print(f"{seen['killed']} of {count} killed", file=sys.stderr, flush=True)
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
    try:
        seen = prove(args.count, args.seed, args.out, args.model, args.clips)
    except Broken as error:
        sys.exit(f"BROKEN: {error}")
    print(json.dumps({"proof": "kills", "seed": args.seed, "wall_s": round(time.monotonic() - begin, 1), **seen}))


if __name__ == "__main__":
    main()
