#!/usr/bin/env python3
"""Benchmark a run that finds nothing new: `vidqa describe` over N files that are all in the table.

    python tools/bench_scan.py                    100,000 files
    python tools/bench_scan.py --files 1000 --files 10000

The files have a few bytes each and are in folders of 1,000. They are never decoded, because the table has a row for
each of them. Table and media index are filled with vidqa's own code before the measurement. Prints a table; the last
line is one JSON object. Exit code 1 if a run did not find all rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from vidqa.cache.media_index import MediaIndex
from vidqa.media.scan import scan
from vidqa.pipeline.run.loaded_model import load_model
from vidqa.pipeline.run.run_options import RunOptions, settings_of
from vidqa.prompts.questions import load_questions
from vidqa.records import AnswerRow
from vidqa.tables.table import Table

_AN_HOUR_NS = 3600 * 10**9


def make_files(folder: Path, n_files: int) -> None:
    """Write different small files modified an hour ago; a run hashes files again that have just been modified."""
    old = time.time_ns() - _AN_HOUR_NS
    for i in range(n_files):
        inner = folder / f"{i // 1000:04d}"
        if i % 1000 == 0:
            inner.mkdir(parents=True)
        path = inner / f"{i:07d}.mp4"
        path.write_bytes(b"clip %d" % i)
        os.utime(path, ns=(old, old))


def fill(folder: Path, table_path: Path, cache: Path) -> None:
    """Add a row and an entry of the media index for every file."""
    model, options = load_model("demo"), RunOptions(cache)
    (question,) = load_questions("caption")
    who, settings = model.identity, settings_of(options, question)
    index, table = MediaIndex(cache), Table(table_path).load()
    nothing = dict.fromkeys(AnswerRow.__dataclass_fields__)
    same = {"question_id": question.id, "question": question.text, "answer": "A ball.", "status": "ok"}
    same |= {"model": who.model, "model_id": who.model_id, "encoder_id": who.encoder_id, "settings_id": settings}
    same |= {"vidqa_version": who.vidqa_version, "created_at": datetime.now(UTC), "start_s": 0.0, "end_s": 1.0}
    same |= {"finish_reason": "eos", "frame_times_s": tuple(float(i) for i in range(8)), "codec": "h264"}
    for item in scan([str(folder)]).items:
        file = {"media_id": index.media_id(item), "root": item.root, "path": item.rel}
        table.add([AnswerRow(**nothing | same | file)])  # type: ignore[arg-type]
    table.commit()
    index.close()


def measure(folder: Path, table: Path, cache: Path) -> dict[str, float]:
    """Measure one run in a separate process, which reports its own peak memory."""
    code = (
        "import json, resource, sys; from vidqa.cli.main import run; code = run(sys.argv[1:]); "
        "u = resource.getrusage(resource.RUSAGE_SELF); "
        "print(json.dumps([code, u.ru_maxrss * 1024, u.ru_utime + u.ru_stime]))"
    )
    arguments = ["describe", str(folder), "--out", str(table), "--cache-dir", str(cache), "--json", "-q"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    summary, (exit_code, peak, cpu) = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert exit_code == 0, done.stderr
    known = summary["existing"].get("ok", 0)
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak / 1e6, "known": known, "done": summary["clips"]["done"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, action="append", help="number of files; repeatable [100000]")
    args = parser.parse_args()
    lines, right = [], True
    print(f"{'files':>8} {'wall s':>8} {'CPU s':>8} {'peak MB':>9} {'us/file':>10}", flush=True)
    for n_files in args.files or [100_000]:
        with tempfile.TemporaryDirectory() as name:
            folder, table, cache = Path(name, "clips"), Path(name, "table.parquet"), Path(name, "cache")
            make_files(folder, n_files)
            fill(folder, table, cache)
            found = measure(folder, table, cache)
        right &= found["known"] == n_files and found["done"] == 0
        each = found["cpu_s"] / n_files * 1e6
        print(f"{n_files:>8} {found['wall_s']:>8.2f} {found['cpu_s']:>8.2f} {found['peak_mb']:>9.1f} {each:>10.1f}")
        lines.append({"files": n_files, **{key: round(number, 3) for key, number in found.items()}})
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    print(json.dumps({"bench": "scan", "results": lines, **machine}))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
