#!/usr/bin/env python3
"""Time and peak memory of `vidqa describe` over N short clips: do time a clip or memory grow with the archive?

    python tools/bench_describe.py --clips 10 --clips 1000
    python tools/bench_describe.py --tiny --clips 10 --clips 100 --clips 1000 --clips 10000 -- --max-new-tokens 8

Each run is a process of its own with an empty cache; the clips are a few pictures in motion, each file with a number
at its end, so that all contents differ. `ms a clip more` is the time beyond that of the line above, divided by the
clips that it has more: starting and loading are not in it; the CPU's time stands beside it, which holds on a busy
machine, too. Peak memory is the largest sum of resident memory over vidqa and its decode processes that sampling (every
50 ms) sees; pages that processes share count once for each. On systems without /proc it is that of the main process
alone. Prints a table for people and one JSON line last.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from vidqa import __version__

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


#: Different pictures; more of them would only take longer to encode.
N_PICTURES = 16


def make_clips(folder: Path, n_clips: int, n_frames: int, size: int) -> None:
    """Write clips whose contents differ, so that none is done twice by its digest."""
    folder.mkdir(parents=True)
    originals = [_encoded(number, n_frames, size) for number in range(min(n_clips, N_PICTURES))]
    for number in range(n_clips):
        # A box of MP4 that players pass over: 16 bytes, the last eight of them the number.
        box = struct.pack(">I4sQ", 16, b"free", number)
        (folder / f"{number:06d}.mp4").write_bytes(originals[number % N_PICTURES] + box)


def _encoded(number: int, n_frames: int, size: int) -> bytes:
    rng = np.random.default_rng(number)
    picture = np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((size // 8, size // 8, 1), np.uint8))
    held = io.BytesIO()
    with av.open(held, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return held.getvalue()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants; pages shared between them count once for each."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended while we looked
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    family = {pid}
    while more := {one for one, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for one in family:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE
    return total


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def run(clips: Path, folder: Path, arguments: list[str]) -> dict[str, object]:
    """Describe one folder in a new process and watch it."""
    folder.mkdir()
    command = [sys.executable, "-m", "vidqa", "describe", str(clips), "--out", str(folder / "table.parquet"), "--json"]
    command += ["--cache-dir", str(folder / "cache"), "--quiet", *arguments]
    start, cpu = time.perf_counter(), cpu_seconds()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = peak_main = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        with contextlib.suppress(OSError, ValueError):
            peak_main = max(peak_main, int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE)
        time.sleep(0.05)
    wall_s = time.perf_counter() - start
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    summary = json.loads(output)
    return {
        "clips": summary["clips"]["done"],
        "rows": summary["rows"],
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_seconds() - cpu, 2),
        "peak_mb": round(peak / 1e6, 1),
        "peak_main_mb": round(peak_main / 1e6, 1),
        "seconds": summary["seconds"],
        "limit": summary["limit"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, action="append", help="how many; may be given again [10 and 1000]")
    parser.add_argument("--frames", type=int, default=16, help="frames of each clip [16]")
    parser.add_argument("--size", type=int, default=96, help="rows and columns, a multiple of 8 [96]")
    parser.add_argument("--tiny", action="store_true", help="a tiny model with random weights, not the demo model")
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="options for vidqa describe, after --")
    arguments = parser.parse_args()
    runs: list[dict[str, object]] = []
    head = ("clips", "seconds", "ms a clip", "ms a clip more", "CPU ms more", "peak MB", "main MB")
    print("{:>8} {:>9} {:>10} {:>15} {:>12} {:>9} {:>9}  limited by".format(*head), flush=True)
    with tempfile.TemporaryDirectory() as name:
        rest = list(arguments.rest)
        if arguments.tiny:
            from bench_model import make_bundle

            rest += ["--model", str(make_bundle("tiny", Path(name, "model")))]
        for n_clips in arguments.clips or [10, 1000]:
            clips = Path(name, f"clips{n_clips}")
            make_clips(clips, n_clips, arguments.frames, arguments.size)
            done = run(clips, Path(name, f"run{n_clips}"), rest)
            wall_s, more = float(str(done["wall_s"])), ["", ""]
            if runs and (further := n_clips - int(str(runs[-1]["clips"]))) > 0:
                for i, clock in enumerate(("wall", "cpu")):
                    spent = float(str(done[f"{clock}_s"])) - float(str(runs[-1][f"{clock}_s"]))
                    done[f"{clock}_ms_a_clip_more"] = round(spent / further * 1e3, 2)
                    more[i] = f"{spent / further * 1e3:.1f}"
            runs.append(done)
            line = f"{n_clips:>8} {wall_s:>9.2f} {wall_s / n_clips * 1e3:>10.1f} {more[0]:>15} {more[1]:>12}"
            print(f"{line} {done['peak_mb']:>9} {done['peak_main_mb']:>9}  {done['limit']}", flush=True)
            shutil.rmtree(clips)
            shutil.rmtree(Path(name, f"run{n_clips}"))
    growth = float(str(runs[-1]["peak_mb"])) - float(str(runs[0]["peak_mb"]))
    print(f"growth of the peak from the first to the last line: {growth:.1f} MB")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    machine["load"] = round(os.getloadavg()[0], 1)
    settings = {"model": "tiny" if arguments.tiny else "demo", "rest": arguments.rest, "vidqa": __version__}
    print(json.dumps({"bench": "describe", **settings, **machine, "growth_mb": round(growth, 1), "runs": runs}))


if __name__ == "__main__":
    main()
