#!/usr/bin/env python3
"""Benchmark writing and reading of cached features against plain file reads and memory copies.

    python tools/bench_cache.py                      100 entries of 8 x 257 x 1024 (4.2 MB), cold and warm
    python tools/bench_cache.py --entries 20 --folder /archive/cache
    python tools/bench_cache.py --contents 60        also hash 60 new files of 30 MB for their media_id

`cold` first asks the system to drop the files from the page cache (posix_fadvise). `plain` reads the same files into
memory without checking them; `copy` copies the same number of bytes in memory. vidqa verifies a CRC-32 over every byte.
Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.pipeline.run import hashing
from vidqa.records import EncodedSegment, Features, MediaFacts, MediaItem

FACTS = MediaFacts("video", "h264", 640, 360, 10.0, 25.0)


def keys(n: int) -> list[CacheKey]:
    """Return `n` different keys."""
    return [CacheKey(f"{i:032x}", "whole", "0" * 16) for i in range(n)]


def value(seed: int, shape: tuple[int, int, int]) -> EncodedSegment:
    """Return random features of one segment."""
    tokens = np.random.default_rng(seed).standard_normal(shape).astype(np.float16)
    times = tuple(float(t) for t in range(shape[0]))
    features = Features(tokens, np.zeros(768, np.float32), True, "video")
    return EncodedSegment(FACTS, 0.0, 10.0, times, (False,) * shape[0], features)


def drop_page_cache(paths: list[Path]) -> None:
    """Ask the system to drop the files from the page cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    os.sync()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def rate(run: Callable[[], object], n_bytes: int) -> tuple[float, float]:
    """Return GB per wall second and GB per CPU second."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    return n_bytes / wall / 1e9, n_bytes / max(used, 1e-9) / 1e9


def hash_files(folder: Path, n: int) -> dict[str, tuple[float, float]]:
    """Measure hashing of new files of 30 MB, with one thread and with as many as a run uses."""
    paths, found = [folder / f"{i}.mp4" for i in range(n)], {}
    for path in paths:
        path.write_bytes(os.urandom(30 << 20))
    items = [MediaItem(str(p), str(folder), p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    for state in ("cold", "warm"):
        for title, n_threads in (("1 thread", 1), ("as a run", None)):
            if state == "cold":
                drop_page_cache(paths)
            with tempfile.TemporaryDirectory() as empty:
                index = MediaIndex(empty)
                run = partial(deque, hashing.hash_files(index, items, n_threads), 0)
                found[f"{state}: media_id, {title}"] = rate(run, n * (30 << 20))
                index.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100)
    parser.add_argument("--shape", default="8,257,1024", help="frames, patches, width of the tokens [8,257,1024]")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure [the system's temporary folder]")
    parser.add_argument("--contents", type=int, default=0, metavar="N", help="also hash N files of 30 MB [0]")
    args = parser.parse_args()
    t, p, d = (int(n) for n in args.shape.split(","))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        store, all_keys = FeatureStore(name), keys(args.entries)
        kept = value(0, (t, p, d))
        n_bytes = args.entries * t * p * d * 2
        found: dict[str, tuple[float, float]] = {}
        found["write"] = rate(lambda: [store.put(key, kept) for key in all_keys], n_bytes)
        paths = [store.path(key) for key in all_keys]

        def read(n_threads: int) -> None:
            with ThreadPoolExecutor(n_threads) as pool:
                for one in pool.map(store.get, all_keys):
                    assert one is not None and one.features.tokens.shape == (t, p, d)

        def plain() -> None:
            for path in paths:
                path.read_bytes()

        for state in ("cold", "warm"):
            for title, run in (("plain", plain), ("vidqa, 1 thread", lambda: read(1)), ("2 threads", lambda: read(2))):
                if state == "cold":
                    drop_page_cache(paths)
                found[f"{state}: {title}"] = rate(run, n_bytes)
        block = np.zeros(t * p * d, np.float16)
        found["copy"] = rate(lambda: [block.copy() for _ in all_keys], n_bytes)
        if args.contents:
            found |= hash_files(Path(name), args.contents)
    print(f"{args.entries} entries of {t * p * d * 2 / 1e6:.1f} MB\n{'':<24}{'GB/s':>8}{'per CPU s':>11}")
    for title, (wall, cpu) in found.items():
        print(f"{title:<24}{wall:>8.2f}{cpu:>11.2f}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    rates = {k: {"gb_per_s": round(a, 3), "gb_per_cpu_s": round(b, 3)} for k, (a, b) in found.items()}
    print(json.dumps({"bench": "cache", "entries": args.entries, "shape": args.shape, "results": rates, **machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
