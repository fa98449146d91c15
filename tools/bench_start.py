#!/usr/bin/env python3
"""Benchmark `vidqa ask` on a clip with cached features, and show where the start-up time goes.

    python tools/bench_start.py
    python tools/bench_start.py --model /models/my_bundle --repeat 5

Runs the command several times (best and median, wall and CPU seconds), then once with `python -X importtime`. Prints
the import time of each package, excluding what its modules import in turn, and the slowest imports of vidqa's own
modules. `-X importtime` slows all imports down; only their shares are meaningful. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")
#: Subpackages of torch and transformers that are listed separately.
_PARTS = ("torch._dynamo", "torch.distributed", "torch._inductor", "transformers.generation", "transformers.models")


def run(command: list[str]) -> tuple[float, float, str]:
    """Run one process; return (wall seconds, CPU seconds, stderr)."""
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    start = time.perf_counter()
    # Allow .pyc files, as in an installation, even if the environment forbids them.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    wall = time.perf_counter() - start
    return wall, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before, done.stderr


def package_of(module: str) -> str:
    """Return the package under which a module is listed."""
    return next((part for part in _PARTS if module.startswith(part)), module.split(".")[0])


def shares(log: str) -> tuple[Counter[str], list[tuple[str, float]]]:
    """Parse the log of `-X importtime`.

    Returns:
        Seconds by package, excluding nested imports; and (module, seconds including nested imports) of vidqa's own
        modules, the slowest first.
    """
    own: Counter[str] = Counter()
    tree: list[tuple[str, float]] = []
    for line in log.splitlines():
        if match := _LINE.match(line):
            own[package_of(match[4])] += int(match[1]) / 1e6
            if match[4].startswith("vidqa."):
                tree.append((match[4], int(match[2]) / 1e6))
    return own, sorted(tree, key=lambda pair: -pair[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clip", default=str(ROOT / "examples" / "clips" / "clip01.mp4"))
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        ask = [
            "-P",
            "-m",
            "vidqa",
            "ask",
            args.clip,
            "What happens?",
            "--model",
            args.model,
            "--cache-dir",
            cache,
            "-q",
        ]
        run([sys.executable, *ask])  # fills the cache
        runs = [run([sys.executable, *ask])[:2] for _ in range(args.repeat)]
        _, _, log = run([sys.executable, "-X", "importtime", *ask])
        imports = [run([sys.executable, "-P", "-c", f"import {name}"])[:2] for name in ("torch", "transformers")]
    walls, cpus = zip(*runs, strict=True)
    own, tree = shares(log)
    best, middle = min(walls), statistics.median(walls)
    print(f"vidqa ask, cached: best {best:.2f} s, median {middle:.2f} s, CPU {min(cpus):.2f} s")
    print(f"import torch alone: {imports[0][0]:.2f} s, CPU {imports[0][1]:.2f} s")
    print("\nimports by package (excluding nested imports):")
    for name, seconds in own.most_common(12):
        print(f"  {name:<28}{seconds:>7.2f} s")
    print("\nvidqa's modules (including nested imports):")
    for name, seconds in tree[:10]:
        print(f"  {name:<28}{seconds:>7.2f} s")
    result = {"best_s": best, "median_s": middle, "cpu_s": min(cpus), "import_torch_s": imports[0][0]}
    result = {key: round(number, 3) for key, number in result.items()}
    packages = {name: round(seconds, 3) for name, seconds in own.most_common(12)}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    print(json.dumps({"bench": "start", "model": args.model, **result, "imports_s": packages, **machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
