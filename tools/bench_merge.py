"""Benchmark the merge of one run into a table of N rows: time and memory. Usage: `python tools/bench_merge.py`.

Writes a table with N rows and the journal of one run (new rows, renamed files, retried failures, copies). A separate
process then loads the table's keys and merges. Times are CPU seconds. Memory is resident memory beyond that of the
empty process: `keys MB` is held after loading, `load MB` is the peak while loading, and `merge MB` is the peak of the
merge on top of the keys. If memory does not grow with the table, `merge MB` stays the same in all lines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from vidqa.records import AnswerRow, MediaItem
from vidqa.tables import formats
from vidqa.tables.schema import SCHEMA, rows_to_frame
from vidqa.tables.table import Table

STEP = 50_000


def media_id(file: int) -> str:
    """Return a unique string that looks like a content digest."""
    return f"{file * 0x9E3779B97F4A7C15 % (1 << 128):032x}"


def row(file: int, k: int, **changes: object) -> AnswerRow:
    """Return row `k` of a file."""
    values: dict[str, object] = dict.fromkeys(SCHEMA)
    values |= {
        "media_id": media_id(file), "path": f"shelf{file % 1000:03d}/clip{file:08d}.mp4", "root": "/archive",
        "start_s": 10.0 * k, "end_s": 10.0 * k + 10, "frame_times_s": tuple(10.0 * k + i for i in range(8)),
        "question_id": "caption", "question": "Describe the video.", "status": "ok",
        "answer": f"A person walks through scene {file} and picks up object {k}, then turns to the camera.",
        "duration_s": 100.0, "width": 1920, "height": 1080, "fps": 25.0, "codec": "h264", "model": "demo",
        "model_id": "m" * 16, "encoder_id": "e" * 16, "settings_id": "s" * 16, "vidqa_version": "0.1.0",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    return AnswerRow(**(values | changes))  # type: ignore[arg-type]


def frames(n_rows: int, per_file: int) -> Iterator[pl.DataFrame]:
    """Yield the rows of a table in batches, derived from one template frame."""
    base = rows_to_frame(row(0, k) for k in range(per_file))
    for start in range(0, n_rows, STEP):
        files = range(start // per_file, min(start + STEP, n_rows) // per_file)
        ids = pl.DataFrame({"media_id": [media_id(f) for f in files]})
        names = pl.Series("path", [f"shelf{f % 1000:03d}/clip{f:08d}.mp4" for f in files])
        answers = pl.Series("scene", [str(f) for f in files])
        new = ids.with_columns(names, answers).join(base.drop("media_id", "path"), how="cross")
        answer = pl.col("answer").str.replace("scene 0", pl.format("scene {}", pl.col("scene")), literal=True)
        yield new.with_columns(answer).select(*SCHEMA)


def add_run(table: Table, n_files: int, per_file: int) -> None:
    """Journal the changes of one run: of 10 files, 7 are new, one was renamed, one retried and one copied."""
    for k in range(n_files):
        old, new = k * 7, 1_000_000_000 + k
        item = MediaItem(f"/archive/n/{k}.mp4", "/archive", f"n/{k}.mp4", 1, 1)
        if k % 10 == 7:
            table.update_paths([(media_id(old), item)], exists=lambda path: False)
        elif k % 10 == 8:
            table.add(row(old, i, answer="Asked again.") for i in range(per_file))
        elif k % 10 == 9:
            table.update_paths([(media_id(old), item)], exists=lambda path: True)
        else:
            table.add(row(new, i) for i in range(per_file))
        if k % 50 == 49:
            table.checkpoint()
    table.checkpoint()


def resident_mb() -> float:
    """Return the current resident memory of this process in MB (Linux)."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Peak:
    """Measure the peak resident memory and the CPU seconds of a `with` block."""

    def __enter__(self) -> Peak:
        self.mb, self._done, self._start = resident_mb(), threading.Event(), time.process_time()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.seconds = time.process_time() - self._start
        self._done.set()
        self._thread.join()
        self.mb = max(self.mb, resident_mb())

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.mb = max(self.mb, resident_mb())


def measure(path: str) -> dict[str, float]:
    """Load the table and merge; runs in the separate process."""
    start_mb = resident_mb()
    with Peak() as load:
        table = Table(path).load()
    keys_mb = resident_mb()
    with Peak() as merge:
        table.recover()
    return {
        "load_s": load.seconds, "merge_s": merge.seconds, "start_mb": start_mb, "keys_mb": keys_mb - start_mb,
        "load_mb": load.mb - start_mb, "merge_mb": merge.mb - keys_mb,
    }  # fmt: skip


def main() -> None:
    """Write the tables, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000, 2_000_000], help="table sizes in rows [1000000 2000000]"
    )
    parser.add_argument("--per-file", type=int, default=10, help="rows per file: segments times questions [10]")
    parser.add_argument("--new", type=int, default=2_000, help="files that the run changes [2000]")
    parser.add_argument(
        "--out", default="t.parquet", help="name of the table; `set/` for a folder of files [t.parquet]"
    )
    parser.add_argument("--work", type=Path, help="folder for the tables [a temporary one]")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    results = []
    print(f"{'rows':>10} {'table MB':>9} {'load s':>7} {'merge s':>8} {'keys MB':>8} {'load MB':>8} {'merge MB':>9}")
    for n_rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            out = f"{folder}/{args.out}"
            first = f"{folder}/set/part-000001.parquet" if out.endswith("/") else out
            Path(first).parent.mkdir(exist_ok=True)
            formats.write_batches(frames(n_rows, args.per_file), first)
            add_run(Table(out).load(), args.new, args.per_file)
            command = [sys.executable, __file__, "--measure", out]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout) | {
                "rows": n_rows,
                "table_mb": os.path.getsize(first) / 1e6,
            }
        results.append(found)
        columns = (found[k] for k in ("table_mb", "load_s", "merge_s", "keys_mb", "load_mb", "merge_mb"))
        print(f"{n_rows:>10} " + " ".join(f"{v:>{w}.1f}" for v, w in zip(columns, (9, 7, 8, 8, 8, 9), strict=True)))
    versions = {"python": platform.python_version(), "polars": pl.__version__, "cpus": os.cpu_count()}
    settings = {"out": args.out, "per_file": args.per_file, "new_files": args.new}
    print(json.dumps({"bench": "merge"} | settings | {"results": results} | versions))


if __name__ == "__main__":
    main()
