#!/usr/bin/env python3
"""Benchmark decode attention: vidqa's GPU kernels against torch, for C clips with Q questions each.

    python tools/bench_attention.py                       the 7B shape: 32 heads of 128, 2,056 positions, bfloat16
    python tools/bench_attention.py --clips 1 --kv-heads 8  fewer KV heads, as in newer models
    python tools/bench_attention.py --sweep               try other block sizes of the kernels, too

Prints microseconds per layer. Each measurement replays a CUDA graph of four layers, so that their KV cache does not fit
into the GPU's caches. `limit us` is the time to read the KV cache once at the measured copy rate; `difference` is the
largest difference between the two results. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable

import torch

from vidqa.generate.attention.shared_prefix import KERNELS, PrefixSpan, SharedPrefix, SuffixSpan, attend_with_torch
from vidqa.generate.roofline import measure
from vidqa.model.llama.kernel_check import checked_kernels

LAYERS = 4


def seconds(run: Callable[[int], object]) -> float:
    """Return the seconds of one call: the best replay of a CUDA graph of all layers, divided by their number."""
    for layer in range(LAYERS):
        run(layer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            run(layer)
    best = float("inf")
    for _ in range(6):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3 / LAYERS)
    return best


class Case:
    """The inputs of one decode step, about halfway through answers of 64 tokens."""

    def __init__(self, args: argparse.Namespace, n_clips: int) -> None:
        device, n, d, g = torch.device("cuda", 0), n_clips * args.questions, args.head_dim, args.kv_heads
        dtype, p, t = getattr(torch, args.dtype), -(-args.positions // 64) * 64, 128
        torch.manual_seed(0)

        def some(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device, dtype=dtype)

        self.prefix_kv = [(some(n_clips * g, p, d), some(n_clips * g, p, d)) for _ in range(LAYERS)]
        self.suffix_kv = [(some(n, g, t, d), some(n, g, t, d)) for _ in range(LAYERS)]
        self.query, self.scale = some(n, 1, args.heads, d).transpose(1, 2), d**-0.5
        first_column = torch.zeros(n, dtype=torch.int64, device=device)
        next_column = torch.full((n,), 50, device=device)
        lengths, positions = torch.full((n_clips,), args.positions, device=device), torch.arange(p, device=device)
        padding, cells = (positions >= lengths[:, None])[:, None], torch.arange(n, device=device)
        span = PrefixSpan(0, n_clips, args.questions, p, cells, padding, True, None, lengths)
        self.suffix = SuffixSpan(first_column, next_column, is_prefill=False)
        self.shared_prefix = SharedPrefix(self.prefix_kv, n_clips, (span,), self.suffix)
        self.mask = (positions[:t] <= next_column[:, None])[:, None, None]
        self.n_bytes = 2 * g * d * (n_clips * args.positions + n * 51) * dtype.itemsize

    def by_torch(self, layer: int) -> torch.Tensor:
        return attend_with_torch(self.query, *self.suffix_kv[layer], self.mask, self.shared_prefix, layer, self.scale)

    def by_kernels(self, layer: int) -> torch.Tensor:
        triton_kernels = checked_kernels(KERNELS, self.query.device, self.query.dtype, self.query.shape[-1])
        out: torch.Tensor = triton_kernels.attend(
            self.query, *self.suffix_kv[layer], self.shared_prefix, self.suffix, layer, self.scale
        )
        return out


def sweep(case: Case) -> list[tuple[float, dict[str, int]]]:
    """Return (seconds, block sizes) of other block sizes, the fastest first."""
    from vidqa.generate.attention import triton_kernels

    names = ("_PREFIX_BLOCK", "_PROGRAMS", "_WARPS", "_STAGES")
    usual, found = {name: getattr(triton_kernels, name) for name in names}, []
    for values in itertools.product((32, 64, 128), (512, 1024, 2048), (4, 8), (2, 3, 4)):
        for name, value in zip(names, values, strict=True):
            setattr(triton_kernels, name, value)
        try:
            found.append((seconds(case.by_kernels), dict(zip(names, values, strict=True))))
        except RuntimeError as error:  # too large for the device
            print(f"{values}: {str(error).splitlines()[0]}", file=sys.stderr)
    for name, value in usual.items():
        setattr(triton_kernels, name, value)
    return sorted(found, key=lambda one: one[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 16, 32], help="[1 16 32]")
    sizes = {"questions": 8, "heads": 32, "kv-heads": 32, "head-dim": 128, "positions": 2056}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[{default}]")
    parser.add_argument("--dtype", default="bfloat16", help="[bfloat16]")
    parser.add_argument("--sweep", action="store_true", help="try other block sizes of the kernels")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2
    device, dtype = torch.device("cuda", 0), getattr(torch, args.dtype)
    if checked_kernels(KERNELS, device, dtype, args.head_dim) is None:
        print("the kernels do not work on this device; see the log for the reason", file=sys.stderr)
        return 1
    copied = measure(device, dtype).copy_bytes_per_s
    print(f"{'clips':>5} {'torch us':>10} {'kernels us':>11} {'limit us':>9} {'reached':>8} {'difference':>11}")
    lines = []
    for n_clips in args.clips:
        case = Case(args, n_clips)
        by_torch, by_kernels = seconds(case.by_torch), seconds(case.by_kernels)
        least = case.n_bytes / copied
        far = float((case.by_torch(0).float() - case.by_kernels(0).float()).abs().max())
        us = [round(1e6 * s, 1) for s in (by_torch, by_kernels, least)]
        print(f"{n_clips:>5} {us[0]:>10} {us[1]:>11} {us[2]:>9} {least / by_kernels:>8.0%} {far:>11.2g}", flush=True)
        line = {"clips": n_clips, "torch_us": us[0], "kernels_us": us[1], "limit_us": us[2], "difference": far}
        if args.sweep:
            best = [{"us": round(1e6 * s, 1), **with_} for s, with_ in sweep(case)[:5]]
            line["best"] = best
            for one in best:
                print(f"      {one}", flush=True)
        lines.append(line)
    facts = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "copy_gb_per_s": copied / 1e9}
    print(json.dumps({"bench": "attention", **vars(args), "results": lines, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
