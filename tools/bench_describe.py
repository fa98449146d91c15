#!/usr/bin/env python3
"""Time and peak memory of `vidqa describe` over N short synthetic clips: does memory grow with the archive?

    python tools/bench_describe.py --clips 10 --clips 1000

Each run is a process of its own with an empty cache. Peak memory is the largest sum of resident memory over vidqa and
its decode processes that sampling (every 50 ms) sees; on systems without /proc it is that of the main process alone.
Prints a table for people and one JSON line last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from vidqa import __version__

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def make_clips(folder: Path, n_clips: int, n_frames: int, size: int) -> None:
    """Write clips that differ in content, so that none is done twice by its digest."""
    folder.mkdir(parents=True)
    for number in range(n_clips):
        rng = np.random.default_rng(number)
        picture = np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((size // 8, size // 8, 1), np.uint8))
        with av.open(str(folder / f"{number:06d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for i in range(n_frames):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants; pages shared between them count once for each."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ValueError):
            continue  # it ended while we looked
    return total


def run(clips: Path, folder: Path, arguments: list[str]) -> dict[str, object]:
    """Describe one folder in a new process and watch it."""
    folder.mkdir()
    command = [sys.executable, "-m", "vidqa", "describe", str(clips), "--out", str(folder / "table.parquet"), "--json"]
    command += ["--cache-dir", str(folder / "cache"), "--quiet", *arguments]
    start = time.perf_counter()
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
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="options for vidqa describe, after --")
    arguments = parser.parse_args()
    runs = []
    print(f"{'clips':>8} {'seconds':>9} {'clips/s':>8} {'peak MB':>9} {'main MB':>9}  limited by")
    with tempfile.TemporaryDirectory() as name:
        for n_clips in arguments.clips or [10, 1000]:
            clips = Path(name, f"clips{n_clips}")
            make_clips(clips, n_clips, arguments.frames, arguments.size)
            done = run(clips, Path(name, f"run{n_clips}"), arguments.rest)
            runs.append(done)
            rate = n_clips / float(str(done["wall_s"]))
            line = f"{n_clips:>8} {done['wall_s']:>9} {rate:>8.2f} {done['peak_mb']:>9} {done['peak_main_mb']:>9}"
            print(f"{line}  {done['limit']}", flush=True)
    growth = float(str(runs[-1]["peak_mb"])) - float(str(runs[0]["peak_mb"]))
    print(f"growth of the peak from the first to the last line: {growth:.1f} MB")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(
        json.dumps({"bench": "describe", "vidqa": __version__, **machine, "growth_mb": round(growth, 1), "runs": runs})
    )


if __name__ == "__main__":
    main()
