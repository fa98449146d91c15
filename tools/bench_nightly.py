#!/usr/bin/env python3
"""Benchmark the cost of existing files in a repeated run: CPU time, memory and disk per file and per million files.

    python tools/bench_nightly.py --files 20000

Writes an archive of small files with different contents and a table with one row per file, then runs `describe`, which
finds nothing to do: it only scans, identifies and looks up. Two sizes run in separate processes; their difference is
the cost per file without the fixed cost of a run. Times are CPU seconds, so they exclude waiting for a slow disk and
other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

MILLION = 1_000_000


def main() -> None:
    """Run both sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="files in the larger archive [20000]")
    parser.add_argument("--work", type=Path, help="folder for the archives [a temporary one]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one, options.work)))
        return
    sizes = (max(1, options.files // 5), options.files)
    few, many = (run_apart(size, options.work) for size in sizes)
    per_file = {name: (many[name] - few[name]) / (sizes[1] - sizes[0]) for name in many}
    if options.json:
        print(json.dumps({"files": sizes, "few": few, "many": many, "per_file": per_file}))
        return
    print(f"{sizes[1]} files compared with {sizes[0]}, on {os.cpu_count()} cores")
    print(f"| {'what':38} | per file | one million files |\n| {'-' * 38} | --- | --- |")
    for name, value in per_file.items():
        unit, what = name.split(" ", 1)
        small, large = format_value(unit, value), format_value(unit, value * MILLION)
        print(f"| {what:38} | {small} | {large} |")


def format_value(unit: str, value: float) -> str:
    """Format a number with a readable unit."""
    if unit == "s":
        return f"{value * 1e6:.0f} us" if value < 0.01 else f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
    return f"{value:.0f} B" if value < 1e5 else f"{value / 1e6:.0f} MB" if value < 1e9 else f"{value / 1e9:.1f} GB"


def run_apart(n: int, work: Path | None) -> dict[str, float]:
    """Measure one size in a fresh process, so that its peak memory is not that of the other."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = [sys.executable, __file__, "--one", str(n), "--work", folder]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(n: int, folder: Path) -> dict[str, float]:
    """Measure an archive of `n` files; return seconds and bytes by name."""
    import vidqa
    from vidqa.cache.media_index import MediaIndex
    from vidqa.media.scan import scan
    from vidqa.pipeline.run.run_options import RunOptions, settings_of
    from vidqa.prompts.questions import load_questions
    from vidqa.records import AnswerRow
    from vidqa.tables.table import Table

    archive, table = folder / "archive", folder / "t.parquet"
    make_archive(archive, n)
    options, model = RunOptions(cache_dir=folder / "cache"), vidqa.load_model("demo", "cpu")
    (question,) = load_questions("caption")
    found: dict[str, float] = {}
    began = time.process_time()
    items = scan([str(archive)]).items
    found["s scan"] = time.process_time() - began
    index = MediaIndex(options.cache_dir)
    began = time.process_time()
    named = [(item, index.media_id(item)) for item in items]
    found["s first run: hash (1 kB files)"] = time.process_time() - began
    began = time.process_time()
    for item in items:
        index.media_id(item)
    found["s every run: look up the content"] = time.process_time() - began
    index.close()
    who, settings = model.identity, settings_of(options, question)
    nothing = dict.fromkeys(AnswerRow.__dataclass_fields__)
    new = Table(table).load()
    began = time.process_time()
    new.add(
        AnswerRow(
            **nothing
            | {"media_id": media_id, "path": item.rel, "root": item.root, "question_id": question.id}
            | {"question": question.text, "answer": f"A clip of {media_id[:8]}.", "status": "ok"}
            | {"frame_times_s": tuple(i / 3 for i in range(8)), "model": who.model, "model_id": who.model_id}
            | {"encoder_id": who.encoder_id, "settings_id": settings, "vidqa_version": who.vidqa_version}
            | {"created_at": datetime.now(UTC)}
        )
        for item, media_id in named
    )
    new.commit()
    found["s add rows and write the table"] = time.process_time() - began
    del new, named, items
    began = time.process_time()
    summary = vidqa.describe(str(archive), table, model=model, options=options)
    found["s every run: nothing to do"] = time.process_time() - began
    if not summary.nothing_done or summary.existing["ok"] != n:
        raise SystemExit(f"expected a run with nothing to do: {summary.as_dict()}")
    found["B memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    found["B disk: table"] = float(table.stat().st_size)
    found["B disk: media index"] = float(sum(p.stat().st_size for p in options.cache_dir.glob("index*")))
    return found


def make_archive(folder: Path, n: int) -> None:
    """Write files of 1 kB with different contents, a thousand per folder, all modified an hour ago."""
    hour_ago = time.time() - 3600
    for number in range(n):
        path = folder / f"{number // 1000:04d}" / f"clip {number:07d}.mp4"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(number.to_bytes(8, "big") * 128)
        os.utime(path, (hour_ago, hour_ago))


if __name__ == "__main__":
    main()
