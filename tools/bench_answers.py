#!/usr/bin/env python3
"""Benchmark many questions about one clip, four ways in one run: same weights and clips, greedy answers compared.

    python tools/bench_answers.py                                      a tiny model, Q = 1, 2, 4, 8, 16
    python tools/bench_answers.py --shape vit-l-14 --questions 1,8     full-size encoders, a small LLM; takes minutes
    python tools/bench_answers.py --shape 7b --device cuda --dtype bfloat16 --new-tokens 64     the full 7B shape

The ways:

    a  transformers: VideoLlavaForConditionalGeneration.generate, one question at a time. PyAV decodes the clip for
       each question, as the loop on the model card does.
    b  The same with all questions of a clip in one batch.
    c  vidqa with an empty cache: decode, encode, store, answer.
    d  vidqa with the clip's features in the cache.

The weights are random and have the named shape, so they are as slow as real ones. The video tower has no temporal
attention, as in the transformers port, so that both sides compute the same function. All four ways take their pixels
from vidqa's preprocessing in `hf` mode, because transformers' video processor needs torchvision. vidqa stores features
in float16 and transformers in float32; the share of equal answers is printed next to each speed. Models are loaded
before the clock starts. For c and d the clock covers everything from the file to the row. CPU seconds are printed next
to wall seconds because they also hold on a busy machine. For c and d the last column (`limit s`) is the roofline: the
operations of encoder and prompts at the measured matmul rate, plus the bytes of weights and KV cache that decode steps
read at the measured copy rate; see docs/performance.md. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from bench_model import SHAPES, make_bundle, make_clip, to_transformers

from vidqa.encoders.preprocess import preprocess
from vidqa.generate.roofline import Limits
from vidqa.generate.roofline import measure as measure_limits
from vidqa.media.frame_sampling import arange_indices
from vidqa.pipeline.ask import as_questions
from vidqa.pipeline.monitor.reporter import QUIET
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.answer_stage import answer_items
from vidqa.pipeline.run.feature_stages import encode_files
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media
from vidqa.prompts.build import build_prompt
from vidqa.records import FrameBatch

SUBJECTS = ("ball", "cat", "sky", "road", "left hand", "first door", "tallest tree", "old man")


def questions(n: int) -> list[str]:
    """Return `n` different questions of different lengths."""
    return [f"What does the {SUBJECTS[i % len(SUBJECTS)]} do {'then ' * (i // len(SUBJECTS))}?" for i in range(n)]


@dataclass
class Sides:
    """Both implementations with the same weights."""

    ours: LoadedModel
    theirs: Any
    new_tokens: int
    meter: ThroughputMeter = field(default_factory=ThroughputMeter)  # counts of the last run of c or d

    def pixels(self, path: Path) -> torch.Tensor:
        """Decode eight frames with PyAV, as the model card does: float [8, 3, S, S]."""
        with av.open(str(path)) as container:
            n = container.streams.video[0].frames
            wanted = arange_indices(n, 8)
            frames = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in wanted]
        batch = FrameBatch(np.stack(frames), np.zeros(8), np.zeros(8, bool))
        spec = self.ours.bundle.spec.encoders
        values = preprocess(batch, image=spec.image.preprocess, video=spec.video.preprocess).values
        return torch.from_numpy(values).to(self.theirs.device, self.theirs.dtype)

    def prompts(self, n: int) -> list[torch.Tensor]:
        """Return vidqa's own prompt ids, with transformers' video token in the slots."""
        llava, spec = self.ours.llava, self.ours.bundle.spec.encoders.video
        made = []
        for text in questions(n):
            prompt = build_prompt(
                llava.tokenizer, llava.chat, ((text, None),), [("video", 8, spec.n_patches + spec.keep_cls)]
            )
            ids = np.where(prompt.slots, self.theirs.config.video_token_index, prompt.ids)
            made.append(torch.from_numpy(ids).to(self.theirs.device))
        return made

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor) -> list[str]:
        """Run transformers' own generation loop and decode the answers."""
        out = self.theirs.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values_videos=pixels,
            max_new_tokens=self.new_tokens,
            do_sample=False,
        )
        decode = self.ours.llava.tokenizer.decode
        return [decode(row, skip_special_tokens=True).strip() for row in out[:, ids.shape[1] :].tolist()]

    def one_by_one(self, clip: Path, n: int) -> list[str]:
        """Answer one question at a time with transformers: way a."""
        return [
            self.generate(ids[None], torch.ones_like(ids)[None], self.pixels(clip)[None])[0] for ids in self.prompts(n)
        ]

    def batched(self, clip: Path, n: int) -> list[str]:
        """Answer all questions in one batch: way b. Left padding, the clip repeated per row, as the processor does."""
        prompts = self.prompts(n)
        longest = max(map(len, prompts))
        ids = torch.full((n, longest), self.theirs.config.text_config.pad_token_id, device=prompts[0].device)
        mask = torch.zeros_like(ids)
        for i, one in enumerate(prompts):
            ids[i, longest - len(one) :], mask[i, longest - len(one) :] = one, 1
        return self.generate(ids, mask, self.pixels(clip)[None].expand(n, -1, -1, -1, -1))

    def vidqa(self, clips: Sequence[Path], n: int, cache: Path) -> list[str]:
        """Do what `vidqa.ask` does and keep its counts in `meter`: ways c and d."""
        run = RunContext.create(self.ours, RunOptions(cache, max_new_tokens=self.new_tokens), QUIET)
        asked, found = as_questions(questions(n)), find_media(run, [*map(str, clips)])
        answers: dict[str, list[str]] = {}
        pending = partial(every_file, questions=asked)
        with closing(encode_files(run, found.items, pending)) as encoded:
            for done in answer_items(encoded, run.model, run.options, run.clock):
                answers[done.work.item.path] = [row.answer or "" for row in done.rows]
        self.meter = run.clock.meter
        return [answer for item in found.items for answer in answers[item.path]]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the decode processes that have exited."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(run: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    """Run once; return (answers, wall seconds, CPU seconds)."""
    start, cpu = time.perf_counter(), cpu_seconds()
    answers = run()
    return answers, time.perf_counter() - start, cpu_seconds() - cpu


def measure(
    sides: Sides, clips: Sequence[Path], n: int, ways: str, folder: Path, limits: Limits, n_usual: int
) -> dict[str, Any]:
    """Measure all ways for `n` questions per clip; ways a and b answer only the first `n_usual` clips."""
    cache = folder / f"cache{n}"
    some = clips[:n_usual]
    runs: dict[str, Callable[[], list[str]]] = {
        "a": lambda: [answer for clip in some for answer in sides.one_by_one(clip, n)],
        "b": lambda: [answer for clip in some for answer in sides.batched(clip, n)],
        "c": lambda: sides.vidqa(clips, n, cache),
        "d": lambda: sides.vidqa(clips, n, cache),
    }
    line: dict[str, Any] = {"questions": n}
    truth: list[str] | None = None
    for way in ways:
        answers, wall, cpu = timed(runs[way])
        truth = answers if truth is None else truth
        equal = sum(a == b for a, b in zip(answers, truth, strict=False)) / min(len(answers), len(truth))
        line[way] = {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "equal": equal}
        line[way]["answers_per_s"] = round(len(answers) / wall, 3)
        least = ""
        if way in "cd":
            sides.meter.set_hardware_speed(limits.matmul_flop_per_s, limits.copy_bytes_per_s)
            line[way] |= {"roofline_s": round(sides.meter.roofline_s or 0.0, 4)}
            least = f"{line[way]['roofline_s']:>9.2f} ({line[way]['roofline_s'] / wall:.0%} of it reached)"
        print(f"{n:>4}  {way}  {wall:>9.2f} {cpu:>9.2f} {len(answers) / wall:>9.2f} {equal:>7.0%} {least}", flush=True)
    shutil.rmtree(cache, ignore_errors=True)
    return line


def version_of(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed; onnxruntime has two package names."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--questions", default="1,2,4,8,16", help="questions per clip, comma-separated [1,2,4,8,16]")
    parser.add_argument("--new-tokens", type=int, default=32, help="maximum tokens per answer [32]")
    parser.add_argument("--ways", default="abcd", help="which ways to measure [abcd]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="data type of connector and LLM [float32]")
    parser.add_argument("--clips", type=int, default=1, help="number of clips; each is asked all questions [1]")
    parser.add_argument("--usual-clips", type=int, help="number of clips for ways a and b [all]")
    parser.add_argument("--seconds", type=int, default=10, help="length of each clip [10]")
    parser.add_argument("--threads", type=int, help="torch threads [all cores]")
    parser.add_argument("--bundle", type=Path, help="keep the model in this folder and reuse it")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    numbers = [int(n) for n in args.questions.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"building a model of shape {args.shape} ...", file=sys.stderr, flush=True)
        bundle = args.bundle or folder / "model"
        if not (bundle / "bundle.json").exists():
            make_bundle(args.shape, bundle, args.dtype, fp16_encoder=args.device != "cpu", device=args.device)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # free the memory of weight initialization
        clips = [make_clip(folder / f"clip{i:03d}.mp4", args.seconds, seed=i) for i in range(args.clips)]
        ours = load_model(str(bundle), args.device)
        sides = Sides(ours, to_transformers(ours, args.shape, bundle), args.new_tokens)
        # Warm up both sides: lazy loading is not part of the measurement.
        sides.vidqa(clips[:1], 1, folder / "warm")
        if args.device != "cpu":
            sides.one_by_one(clips[0], 1)
        limits = measure_limits(ours.llava.device, ours.llava.dtype)
        print(f"{'Q':>4}  way {'wall s':>8} {'CPU s':>9} {'answers/s':>9}   equal   limit s")
        n_usual = args.usual_clips or args.clips
        lines = [measure(sides, clips, n, args.ways, folder, limits, n_usual) for n in numbers]
    for line in lines:
        if "a" in line:
            rates = {w: line[w]["answers_per_s"] for w in args.ways}
            ratios = [f"{w} {rate / rates['a']:.1f}x" for w, rate in rates.items() if w != "a"]
            print(f"Q = {line['questions']}: answers per second relative to a: {', '.join(ratios)}")
    first, last = lines[0], lines[-1]
    if "c" in first and first["questions"] == 1 < last["questions"]:
        further = (last["c"]["wall_s"] - first["c"]["wall_s"]) / (last["questions"] - 1) / first["c"]["wall_s"]
        print(f"each further question costs {further:.1%} of the first (c, Q = {last['questions']} vs. 1)")
        if "d" in first:
            alone = first["d"]["wall_s"] / first["c"]["wall_s"]
            print(f"one question in a later run costs {alone:.1%} of the first (d vs. c, Q = 1)")
    packages = ("torch", "transformers", "onnxruntime-gpu", "onnxruntime", "av")
    versions = {name: found for name in packages if (found := version_of(name))}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0], **versions}
    machine |= {"matrix_tflops": limits.matmul_flop_per_s / 1e12, "copy_gb_per_s": limits.copy_bytes_per_s / 1e9}
    names = ("shape", "device", "dtype", "new_tokens", "clips", "usual_clips", "seconds", "threads")
    settings = {k: getattr(args, k) for k in names}
    print(json.dumps({"bench": "answers", **settings, "results": lines, **machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
