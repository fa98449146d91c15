"""How long merging into a table of N rows takes, and how much memory it needs: `python tools/bench_merge.py`.

Makes a table of so many rows, and a night's run beside it (new rows, renamed files, retried failures, copies). Then a
process of its own reads what the table has and merges. Seconds are those of the processor. `keys MB` is what the
process holds of the table after reading it, `load MB` the most that it took meanwhile, `merge MB` the most that merging
took on top of the keys: resident sizes, less what the process had at its start. Memory that does not grow with the
table shows in the last column.
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
    """A content like no other, that looks like a digest."""
    return f"{file * 0x9E3779B97F4A7C15 % (1 << 128):032x}"


def row(file: int, k: int, **changes: object) -> AnswerRow:
    """Row `k` of a file."""
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
    """The rows of a table, made from one frame by arithmetic."""
    base = rows_to_frame(row(0, k) for k in range(per_file))
    for start in range(0, n_rows, STEP):
        files = range(start // per_file, min(start + STEP, n_rows) // per_file)
        ids = pl.DataFrame({"media_id": [media_id(f) for f in files]})
        names = pl.Series("path", [f"shelf{f % 1000:03d}/clip{f:08d}.mp4" for f in files])
        answers = pl.Series("scene", [str(f) for f in files])
        new = ids.with_columns(names, answers).join(base.drop("media_id", "path"), how="cross")
        answer = pl.col("answer").str.replace("scene 0", pl.format("scene {}", pl.col("scene")), literal=True)
        yield new.with_columns(answer).select(*SCHEMA)


def night(table: Table, n_files: int, per_file: int) -> None:
    """What a run brings, part by part: of 10 files 7 are new, and one each was renamed, asked again and copied."""
    for k in range(n_files):
        old, new = k * 7, 1_000_000_000 + k
        item = MediaItem(f"/archive/n/{k}.mp4", "/archive", f"n/{k}.mp4", 1, 1)
        if k % 10 == 7:
            table.update_paths([(media_id(old), item)], exists=lambda place: False)
        elif k % 10 == 8:
            table.add(row(old, i, answer="Asked again.") for i in range(per_file))
        elif k % 10 == 9:
            table.update_paths([(media_id(old), item)], exists=lambda place: True)
        else:
            table.add(row(new, i) for i in range(per_file))
        if k % 50 == 49:
            table.checkpoint()
    table.checkpoint()


def resident_mb() -> float:
    """Resident size of this process now, in MB (Linux)."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Peak:
    """The highest resident size inside a block, and the processor's seconds of the block."""

    def __enter__(self) -> Peak:
        self.mb, self._done, self._begin = resident_mb(), threading.Event(), time.process_time()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.seconds = time.process_time() - self._begin
        self._done.set()
        self._thread.join()
        self.mb = max(self.mb, resident_mb())

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.mb = max(self.mb, resident_mb())


def measure(path: str) -> dict[str, float]:
    """Load the table and merge; in the process that was started for it."""
    begin_mb = resident_mb()
    with Peak() as load:
        table = Table(path).load()
    keys_mb = resident_mb()
    with Peak() as merge:
        table.recover()
    return {
        "load_s": load.seconds, "merge_s": merge.seconds, "start_mb": begin_mb, "keys_mb": keys_mb - begin_mb,
        "load_mb": load.mb - begin_mb, "merge_mb": merge.mb - keys_mb,
    }  # fmt: skip


def main() -> None:
    """Parse, make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000], help="sizes of the table")
    parser.add_argument("--per-file", type=int, default=10, help="rows of a file: segments and questions [10]")
    parser.add_argument("--new", type=int, default=2_000, help="files that the night brings [2000]")
    parser.add_argument("--out", default="t.parquet", help="name of the table; `set/` for a data set [t.parquet]")
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
            night(Table(out).load(), args.new, args.per_file)
            said = subprocess.run([sys.executable, __file__, "--measure", out], capture_output=True, check=True).stdout
            found = json.loads(said) | {"rows": n_rows, "table_mb": os.path.getsize(first) / 1e6}
        results.append(found)
        columns = (found[k] for k in ("table_mb", "load_s", "merge_s", "keys_mb", "load_mb", "merge_mb"))
        print(f"{n_rows:>10} " + " ".join(f"{v:>{w}.1f}" for v, w in zip(columns, (9, 7, 8, 8, 8, 9), strict=True)))
    where = {"python": platform.python_version(), "polars": pl.__version__, "cpus": os.cpu_count()}
    asked = {"out": args.out, "per_file": args.per_file, "new_files": args.new}
    print(json.dumps({"bench": "merge"} | asked | {"results": results} | where))


if __name__ == "__main__":
    main()
