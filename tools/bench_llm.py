#!/usr/bin/env python3
"""Benchmark the LLM alone, four ways: Q questions that share a prefix of P tokens, same weights, greedy decoding.

    python tools/bench_llm.py                                     4 layers x 256, P = 2,056, Q = 8, 32 new tokens
    python tools/bench_llm.py --layers 8 --width 512 --threads 2
    python tools/bench_llm.py --layers 32 --width 4096 --new-tokens 64 --device cuda --dtype bfloat16       the 7B shape

The ways are transformers' generate one question at a time, the same in one left-padded batch, vidqa's shared prefix
with transformers' Llama, and the shared prefix with vidqa's own Llama, which plain Llama bundles use.

The weights are random. On a CPU the ratios compare CPU seconds, which also hold on a busy machine. The times of the
shared ways are broken down into prefill, questions and decode, and compared with the roofline: the operations of the
prompts at the measured matmul rate, plus the bytes that decode steps read at the measured copy rate. In float32 all
answers must equal those of the first way; in half precision the number of equal answers is reported. With --clips the
shared ways answer the questions of that many clips at once, with one prefix computed and stored per clip, and are
compared by answers per second. With --profile the longest operations of a decode step and of a prefill are listed. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import transformers

from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.generate.roofline import decode_bytes, measure, prefill_operations
from vidqa.generate.running_batch import EngineStats, RunningBatch
from vidqa.model.llama.model import Llama, LlamaConfig
from vidqa.model.llama.weights import load_published
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format

VOCABULARY = 1000


def as_own(llm: Any) -> Llama:
    """Load the same weights into vidqa's own Llama."""
    c = llm.config
    sizes = {name: getattr(c, name) for name in LlamaConfig.__dataclass_fields__ if hasattr(c, name)}
    own = Llama(LlamaConfig(**sizes | {"rope_theta": c.rope_parameters["rope_theta"]}), device="meta")
    load_published(own, llm.state_dict())
    own.to(llm.device).pack()
    return own.eval()


def random_llm(layers: int, width: int, device: str, dtype: str) -> Any:
    """Return a Llama without an end-of-sequence token; the weights vary enough for answers to differ."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=4096,
        initializer_range=1.5 / width**0.5,
        eos_token_id=None,
    )
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        llm = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    llm.generation_config.eos_token_id, llm.generation_config.pad_token_id = None, 0
    return llm


class Task:
    """One shared prefix and its questions."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.n_new, self.n_clips, width = args.new_tokens, args.clips, args.width
        self.llm = random_llm(args.layers, width, args.device, args.dtype)
        where: dict[str, Any] = {"device": self.llm.device, "dtype": self.llm.dtype}
        self.model = VideoLlava(torch.nn.Linear(8, width, **where), self.llm, None, get_format("v1", ""), 4096)
        self.own = VideoLlava(self.model.connector, as_own(self.llm), None, self.model.chat, 4096)
        self.prefix = (torch.randn(args.prefix, width) * 0.3).to(**where)
        rng, embed = np.random.default_rng(0), self.llm.get_input_embeddings()
        ids = [torch.from_numpy(rng.integers(3, VOCABULARY, 12 + q)) for q in range(args.questions)]
        with torch.inference_mode():
            self.suffixes = [embed(one.to(self.llm.device)) for one in ids]
        self.stats = EngineStats()  # of the last shared run
        self.parts: dict[str, float] = {}

    def _generate(self, embeds: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        n = self.n_new
        out = self.llm.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False
        )
        answers: list[list[int]] = out.tolist()
        return answers

    def one_by_one(self) -> list[list[int]]:
        prompts = [torch.cat([self.prefix, suffix])[None] for suffix in self.suffixes]
        return [self._generate(e, torch.ones(e.shape[:2], dtype=torch.int64, device=e.device))[0] for e in prompts]

    def batched(self) -> list[list[int]]:
        prompts = [torch.cat([self.prefix, suffix]) for suffix in self.suffixes]
        longest = max(map(len, prompts))
        embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64, device=embeds.device)
        for i, e in enumerate(prompts):
            embeds[i, longest - len(e) :], mask[i, longest - len(e) :] = e, 1
        return self._generate(embeds, mask)

    def batch(self, model: VideoLlava) -> RunningBatch:
        """Return a batch with capacity for all clips and questions."""
        suffix_length = max(map(len, self.suffixes)) + self.n_new
        n_slots = len(self.suffixes) * self.n_clips
        capacity = CacheCapacity(n_slots, self.n_clips, len(self.prefix), suffix_length)
        return RunningBatch(model, capacity, static_shapes=self.llm.device.type == "cuda")

    def profile(self) -> None:
        """Print the longest operations of one decode step (outside CUDA graphs) and of one prefill."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.llm.device.type == "cuda"
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        batch = self.batch(self.own)
        clips = [batch.prefill_prefixes([self.prefix])[0] for _ in range(self.n_clips)]
        batch.prefill_suffixes([clip for clip in clips for _ in self.suffixes], self.suffixes * self.n_clips)
        assert batch.logits is not None
        picked = batch.logits.argmax(-1)
        for name, run in (("a decode step", lambda: batch.decode_step(picked)), ("a prefill", self._prefill)):
            run()
            with profile(activities=kinds) as seen:
                run()
                if on_gpu:
                    torch.cuda.synchronize()
            print(f"{name}:")
            by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
            print(seen.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=70))

    def _prefill(self) -> None:
        self.batch(self.own).prefill_prefixes([self.prefix])

    def shared(self, model: VideoLlava) -> list[list[int]]:
        n = len(self.suffixes)
        batch = self.batch(model)
        times = [time.perf_counter()]
        clips = [batch.prefill_prefixes([self.prefix])[0] for _ in range(self.n_clips)]
        times.append(time.perf_counter())
        batch.prefill_suffixes([clip for clip in clips for _ in range(n)], self.suffixes * self.n_clips)
        times.append(time.perf_counter())
        answers: list[list[int]] = [[] for _ in range(n * self.n_clips)]
        for step in range(self.n_new):
            assert batch.logits is not None
            picked = batch.logits.argmax(-1)
            for answer, token in zip(answers, picked.tolist(), strict=True):
                answer.append(token)
            if step + 1 < self.n_new:
                batch.decode_step(picked)
        times.append(time.perf_counter())
        parts = zip(("prefill_s", "questions_s", "decode_s"), pairwise(times), strict=True)
        self.parts = {name: round(end - start, 4) for name, (start, end) in parts}
        self.stats = batch.stats
        return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("width", 256), ("prefix", 2056), ("questions", 8), ("new-tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[{default}]")
    parser.add_argument("--clips", type=int, default=1, help="clips that the shared ways answer about at once [1]")
    parser.add_argument("--profile", action="store_true", help="also list the longest operations")
    parser.add_argument("--threads", type=int, default=1, help="torch threads [1]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    parser.add_argument("--dtype", default="float32", help="[float32]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device != "cpu"
    task = Task(args)
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "one by one": task.one_by_one,
        "one batch": task.batched,
        "shared prefix": lambda: task.shared(task.model),
        "shared, own Llama": lambda: task.shared(task.own),
    }
    found: dict[str, dict[str, float]] = {}
    truth: list[list[int]] = []
    with torch.inference_mode():
        limits = measure(task.llm.device, task.llm.dtype)
        for _ in range(2 if on_gpu else 1):
            for model in (task.model, task.own):
                task.shared(model)  # warm up: lazy loading is not part of the measurement
        for name, run in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            answers = run()
            wall, used = time.perf_counter() - start, time.process_time() - cpu
            truth = truth or answers
            equal = sum(a == truth[i % len(truth)] for i, a in enumerate(answers)) / (len(answers) / len(truth))
            found[name] = {"wall_s": round(wall, 3), "cpu_s": round(used, 3), "equal": equal, "answers": len(answers)}
            clock = "wall_s" if on_gpu else "cpu_s"
            rates = [found[which]["answers"] / found[which][clock] for which in ("one by one", name)]
            faster = rates[1] / rates[0]
            print(f"{name:<18}{wall:>9.2f} s {used:>9.2f} CPU s {faster:>7.1f}x   {equal:g} equal", flush=True)
            if name.startswith("shared"):
                prompts = prefill_operations(task.model, task.stats.prefill_tokens) / limits.matmul_flop_per_s
                least = prompts + decode_bytes(task.model, task.stats) / limits.copy_bytes_per_s
                found[name] |= task.parts | {"roofline_s": round(least, 4)}
                times = ", ".join(f"{part[:-2]} {seconds:.3f} s" for part, seconds in task.parts.items())
                print(f"  {times}; hardware limit {least:.3f} s, {least / wall:.0%} of it reached", flush=True)
        if args.profile:
            task.profile()
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    machine |= {"matrix_tflops": limits.matmul_flop_per_s / 1e12, "copy_gb_per_s": limits.copy_bytes_per_s / 1e9}
    if on_gpu:
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps({"bench": "llm", **vars(args), "results": found, **versions, **machine}))
    return 0 if args.dtype != "float32" or all(one["equal"] == args.questions for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
