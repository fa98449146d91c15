#!/usr/bin/env python3
"""Benchmark a large file of conversations: index its records, open it again, read records in random order.

    python tools/bench_records.py --megabytes 1000

Writes a JSON list of the given size with records in Valley's format, and measures in a separate process, so that the
memory is that of this work only. Times are CPU seconds, so they exclude other load on the machine.
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
from pathlib import Path

N_READ = 2000


def main() -> None:
    """Write the file, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the list [200]")
    parser.add_argument("--work", type=Path, help="folder for the list [a temporary one]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one)))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        path = Path(folder, "records.json")
        write_list(path, options.megabytes * 1_000_000)
        command = [sys.executable, __file__, "--one", str(path)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if options.json:
        print(json.dumps(found))
        return
    size, n = found["bytes"], found["records"]
    print(f"{size / 1e6:.0f} MB, {n} records, on one of {os.cpu_count()} cores\n| what | cost |\n| --- | --- |")
    print(f"| opening for the first time | {found['first_s']:.1f} s, {size / 1e6 / found['first_s']:.0f} MB/s |")
    print(f"| opening again | {found['again_s'] * 1e3:.0f} ms |")
    print(f"| reading one record of a shuffled epoch | {found['record_s'] * 1e6:.0f} us |")
    print(f"| memory beyond an empty process | {found['memory'] / 1e6:.0f} MB |")
    print(f"| index on disk | {found['index'] / 1e6:.1f} MB |")


def write_list(path: Path, size: int) -> None:
    """Write a JSON list of about `size` bytes."""
    written, number = 0, 0
    with path.open("w", encoding="utf-8") as f:
        f.write("[")
        while written < size:
            answer = f'A dog called "{number}" runs over a wide green field, turns, and comes back.'
            turns = [{"from": "human", "value": "What happens?"}, {"from": "gpt", "value": answer}]
            record = {"id": str(number), "source": "webvid", "v_id": str(number), "conversations": turns}
            written += f.write((", " if number else "") + json.dumps(record))
            number += 1
        f.write("]")


def measure(path: Path) -> dict[str, float]:
    """Measure one file; return seconds and bytes."""
    from vidqa.training.data.corpus import Corpus, Source

    def opened() -> tuple[Corpus, float]:
        began = time.process_time()
        corpus = Corpus([Source(str(path))], cache_dir=path.parent / "cache")
        return corpus, time.process_time() - began

    # The index of a file that has just changed is not reused: a further change could have the same timestamp.
    os.utime(path, (time.time() - 60, time.time() - 60))
    before = _peak_bytes()
    corpus, first_s = opened()
    corpus, again_s = opened()
    order = corpus.epoch_order(0)[:N_READ]
    began = time.process_time()
    for number in order:
        _ = corpus[int(number)]
    record_s = (time.process_time() - began) / len(order)
    index = sum(f.stat().st_size for f in (path.parent / "cache").rglob("*.npz"))
    return {
        "bytes": path.stat().st_size,
        "records": len(corpus),
        "first_s": first_s,
        "again_s": again_s,
        "record_s": record_s,
        "memory": _peak_bytes() - before,
        "index": index,
    }


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


if __name__ == "__main__":
    main()
