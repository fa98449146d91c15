"""Benchmark the encoders: the exported ONNX graph in ONNX Runtime against the torch tower, at several batch sizes.

    python tools/bench_encode.py                        a tower of the demo model's size
    python tools/bench_encode.py --shape vit-l-14       a tower of LanguageBind's size; minutes on a CPU
    python tools/bench_encode.py --device cuda --fp16

Prints a table; the last line is one JSON object. Both sides use the same random weights and inputs, in float32 or, with
--fp16, in float16. The largest difference of their outputs is printed next to the speed. The sides take turns, so that
other load on the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from vidqa.common.devices import cpu_threads
from vidqa.encoders.onnx_session import OnnxSession
from vidqa.model.onnx.export import FP32_TOLERANCE, ExportReport, export_tower
from vidqa.model.towers.vit import VisionConfig, VisionTower

#: image_size, patch_size, hidden_size, intermediate_size, n_layers, n_heads, projection_dim, frames of a clip
SHAPES = {
    "demo": (96, 16, 160, 640, 6, 4, 64, 8),
    "vit-l-14": (224, 14, 1024, 4096, 24, 16, 768, 8),
}


def tower_of(shape: str, kind: str) -> tuple[VisionTower, int]:
    """Return a tower with random weights and its frames per input."""
    *sizes, n_frames = SHAPES[shape]
    torch.manual_seed(0)
    video = kind == "video"
    tower = VisionTower(VisionConfig(*sizes, temporal_length=n_frames if video else 0)).eval()
    return tower, n_frames if video else 1


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time every side `repeats` times, in turns, after one warm-up call each."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            times[name].append(seconds(run))
    return times


def rate(times: Sequence[float], batch: int) -> tuple[float, float]:
    """Return inputs per second: the median, and half the interquartile range."""
    rates = sorted(batch / t for t in times)
    quarter = len(rates) // 4
    return statistics.median(rates), (rates[-1 - quarter] - rates[quarter]) / 2


def bench_batch(
    tower: VisionTower, sessions: dict[str, OnnxSession], n_frames: int, batch: int, repeats: int
) -> dict[str, object]:
    """Measure one batch size; return one row of the table."""
    size = tower.config.image_size
    rng = np.random.default_rng(batch)
    pixels = rng.standard_normal((batch, n_frames, 3, size, size)).astype(np.float32)
    on_device = next(tower.parameters()).device

    def by_torch() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            tokens, embedding = tower(torch.from_numpy(pixels).to(on_device))
        return tokens.half().cpu().numpy(), embedding.float().cpu().numpy()

    sides: dict[str, Callable[[], object]] = {"torch": by_torch}
    sides |= {name: (lambda s=s: s.run(pixels)) for name, s in sessions.items()}
    expected, line = by_torch(), {"batch": batch}
    for name, times in measure(sides, repeats).items():
        line[name], line[f"{name}_spread"] = (round(v, 3) for v in rate(times, batch))
    errors = [
        float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max())
        for s in sessions.values()
        for a, b in zip(s.run(pixels)[1:], expected[1:], strict=True)  # tokens are float16 here; the export checks them
    ]
    return line | {"embedding_error": max(errors)}


def environment(device: str) -> dict[str, object]:
    """Return hardware and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--kind", choices=["video", "image"], default="video")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--device", default="cpu", help="device of both sides: cpu, cuda or cuda:N [cpu]")
    parser.add_argument("--fp16", action="store_true", help="run both sides in float16, for GPUs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if a float32 graph and torch differ by more than the export allows."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    tower, n_frames = tower_of(args.shape, args.kind)
    reports: dict[str, ExportReport] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fuse in (("onnx_plain", False), ("onnx_fused", True)):
            reports[name] = export_tower(tower, Path(folder) / f"{name}.onnx", n_frames, fp16=args.fp16, fuse=fuse)
        sessions = {n: OnnxSession(r.path, args.device, threads=args.threads) for n, r in reports.items()}
        tower = tower.to(args.device)
        if args.fp16:
            tower = tower.half()
        names = ["torch", *sessions]
        print(f"{args.shape}, {args.kind}, {n_frames} frames per input; inputs per second (median +- half the IQR)")
        print("batch  " + "".join(f"{n:>20}" for n in names) + "   fused/torch")
        lines = []
        for batch in args.batches:
            line = bench_batch(tower, sessions, n_frames, batch, args.repeats)
            cells = "".join(f"{line[n]:>11.2f} +- {line[f'{n}_spread']:<5.2f}" for n in names)
            print(f"{batch:>5}  {cells}{line['onnx_fused'] / line['torch']:>12.2f}x", flush=True)
            lines.append(line)
    max_error = {n: r.max_abs_error for n, r in reports.items()}
    print("largest difference from torch at export: " + ", ".join(f"{n} {e:.1e}" for n, e in max_error.items()))
    setting = {k: getattr(args, k) for k in ("shape", "kind", "fp16", "repeats")}
    result = {
        "bench": "encode",
        **setting,
        "rates_per_s": lines,
        "max_abs_error": max_error,
        **environment(args.device),
    }
    print(json.dumps(result))
    # Half precision is expected to differ; in float32 a difference means that the sides do not compute the same.
    agree = all(line["embedding_error"] <= FP32_TOLERANCE for line in lines)
    return 0 if agree or args.fp16 else 1


if __name__ == "__main__":
    sys.exit(main())
