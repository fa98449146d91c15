#!/usr/bin/env python3
"""Benchmark `vidqa describe` over N short clips: does the time per clip or the peak memory grow with the archive?

    python tools/bench_describe.py --clips 10 --clips 1000
    python tools/bench_describe.py --tiny --clips 10 --clips 100 --clips 1000 --clips 10000 -- --max-new-tokens 8

Each run is a separate process with an empty cache. The clips show a few moving images; a number at the end of each file
makes all contents differ. `ms/clip more` is the additional time over the line above, divided by the additional clips,
so it excludes start-up and loading; the CPU time next to it also holds on a busy machine. Peak memory is the largest
sum of resident memory of vidqa and its decode processes, sampled every 50 ms; shared pages count once per process.
Without /proc only the main process is measured. Prints a table; the last line is one JSON object.
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


#: Number of different images; more of them would only take longer to encode.
N_IMAGES = 16


def make_clips(folder: Path, n_clips: int, n_frames: int, size: int) -> None:
    """Write clips that all have different contents, so that none is a duplicate."""
    folder.mkdir(parents=True)
    originals = [_encoded(number, n_frames, size) for number in range(min(n_clips, N_IMAGES))]
    for number in range(n_clips):
        # An MP4 box that players ignore: 16 bytes, of which the last eight are the number.
        box = struct.pack(">I4sQ", 16, b"free", number)
        (folder / f"{number:06d}.mp4").write_bytes(originals[number % N_IMAGES] + box)


def _encoded(number: int, n_frames: int, size: int) -> bytes:
    rng = np.random.default_rng(number)
    image = np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((size // 8, size // 8, 1), np.uint8))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(image, 2 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and all its descendants; shared pages count once per process."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # the process has exited meanwhile
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
    """Return the CPU seconds of all child processes that have exited."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def run(clips: Path, folder: Path, arguments: list[str]) -> dict[str, object]:
    """Describe one folder in a new process and sample its memory."""
    folder.mkdir()
    command = [
        sys.executable,
        "-P",
        "-m",
        "vidqa",
        "describe",
        str(clips),
        "--out",
        str(folder / "table.parquet"),
        "--json",
    ]
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
        "bottleneck": summary["bottleneck"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, action="append", help="number of clips; repeatable [10 and 1000]")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip [16]")
    parser.add_argument("--size", type=int, default=96, help="width and height, a multiple of 8 [96]")
    parser.add_argument("--tiny", action="store_true", help="use a tiny random model instead of the demo model")
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="options for vidqa describe, after --")
    arguments = parser.parse_args()
    runs: list[dict[str, object]] = []
    head = ("clips", "seconds", "ms/clip", "ms/clip more", "CPU ms more", "peak MB", "main MB")
    print("{:>8} {:>9} {:>10} {:>15} {:>12} {:>9} {:>9}  bottleneck".format(*head), flush=True)
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
    print(f"growth of peak memory from the first to the last line: {growth:.1f} MB")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    machine["load"] = round(os.getloadavg()[0], 1)
    settings = {"model": "tiny" if arguments.tiny else "demo", "rest": arguments.rest, "vidqa": __version__}
    print(json.dumps({"bench": "describe", **settings, **machine, "growth_mb": round(growth, 1), "runs": runs}))


if __name__ == "__main__":
    main()
