"""`bench`: a model and a few files -> throughput of each stage on this machine, and the bottleneck.

Each stage runs alone for a few seconds with the parts that a real run uses: decoder processes, encoder, answering
engine. The rates are therefore upper limits for a run; the summary of `describe` reports what a run achieved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from vidqa.common.devices import cpu_threads
from vidqa.common.display import display_path, human_duration, message_without_path, plural
from vidqa.encoders.preprocess import preprocess
from vidqa.errors import ItemError, UsageError, VidqaError
from vidqa.media.scan import scan
from vidqa.media.selection.path_patterns import IGNORE_FILE
from vidqa.media.synthetic import write_test_video
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.hardware_limit import add_engine_stats, measure_hardware
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.scanning import check_found
from vidqa.records import EncoderInput, Features

_QUESTION = "What happens in this video, part {}?"
#: Number of files that are measured, of those that the user named.
_MAX_FILES = 16


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and for how long.

    Raises:
        UsageError: a value is not positive.
    """

    seconds: float = 5.0  # per stage
    n_questions: int = 8  # per file
    max_new_tokens: int = 64
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf") or self.n_questions < 1 or self.max_new_tokens < 1:
            raise UsageError("bench needs a positive number of seconds, and at least one question and one token")


@dataclass(frozen=True)
class BenchResult:
    """Throughput of all stages. Answers per second are those of the LLM alone, with cached features."""

    meter: ThroughputMeter
    answer_s: float
    clip_s: dict[str, float]  # by stage: seconds per file with all its questions
    n_questions: int
    media: str
    device: str
    model: str
    n_path_problems: int = 0  # paths that do not exist, cannot be read or contain no media

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest per file. How long it was measured does not matter: that is an option."""
        return max(self.clip_s, key=lambda stage: self.clip_s[stage])

    def as_dict(self) -> dict[str, object]:
        """Return plain values for `--json`."""
        setup = {"model": self.model, "device": self.device, "media": self.media, "n_questions": self.n_questions}
        clip_s = {stage: float(f"{seconds:.4g}") for stage, seconds in self.clip_s.items()}
        return setup | self.meter.as_dict(self.answer_s) | {"clip_s": clip_s, "bottleneck": self.bottleneck}

    def as_text(self) -> str:
        """Return a few lines for people."""
        times = ", ".join(f"{stage} {1000 * seconds:,.1f}" for stage, seconds in self.clip_s.items())
        return (
            f"{self.model} on {self.device}, {self.media}\n"
            f"{self.meter.as_text(self.answer_s, 'with cached features', hardware=True)}\n"
            f"  milliseconds per file with {plural(self.n_questions, 'question')}: {times}\n"
            f"  bottleneck: {self.bottleneck}"
        )


def bench(
    model: LoadedModel, paths: Sequence[str] = (), options: BenchOptions | None = None, reporter: Reporter = QUIET
) -> BenchResult:
    """Measure each stage.

    Args:
        model: an open model; encoder and LLM are loaded before they are measured.
        paths: videos, images or folders; none for a generated video.
        options: None for the defaults.
        reporter: receives which stage is being measured.

    Returns:
        The throughput.

    Raises:
        ItemError: no file can be decoded, or the model cannot answer about them.
        VidqaError: there is no media.
    """
    options, meter = options or BenchOptions(), ThroughputMeter()
    model.require_packages()
    with TemporaryDirectory(prefix="vidqa-bench-") as folder:
        files, n_problems = _files(paths, Path(folder))
        reporter.message(f"measuring decode for {human_duration(options.seconds)}")
        inputs, decode_s = _decode(files, model, options, meter, reporter)
    reporter.message(f"measuring encode for {human_duration(options.seconds)}")
    features = _encode(inputs, model, options, meter)
    reporter.message(f"measuring answer for {human_duration(options.seconds)}")
    answer_s = _answer(features, model, options, meter)
    measure_hardware(meter, model, always=True)
    names = f"{', '.join(map(display_path, paths))} ({plural(len(inputs), 'file')})"
    media = names if paths else "generated video (640 x 360, 10 s)"
    n_files = meter.n_answers / options.n_questions
    clip_s = {
        "decode": decode_s,
        "encode": meter.encode.busy_s / meter.encode.n,
        "prefill": meter.prefill.busy_s / n_files,
        "generate": meter.step.busy_s / n_files,
    }
    device = str(model.llava.device)
    return BenchResult(meter, answer_s, clip_s, options.n_questions, media, device, model.identity.model, n_problems)


def _files(paths: Sequence[str], folder: Path) -> tuple[list[str], int]:
    """Return the files to measure, and the number of paths that led to none."""
    if not paths:
        write_test_video(folder / "clip.mp4")
        return [str(folder / "clip.mp4")], 0
    found = scan(paths)
    check_found(found)
    if not found.items:
        raise VidqaError(f"everything is excluded by a {IGNORE_FILE}", hint="name a file")
    return [item.path for item in found.items][:_MAX_FILES], len(found.problems)


def _decode(
    files: Sequence[str], model: LoadedModel, options: BenchOptions, meter: ThroughputMeter, reporter: Reporter
) -> tuple[list[EncoderInput], float]:
    """Decode the same files repeatedly; return the encoder input of each file, and the seconds per file.

    Files that cannot be decoded are skipped.
    """
    encoders = model.bundle.spec.encoders
    transform = partial(preprocess, image=encoders.image.preprocess, video=encoders.video.preprocess)
    inputs: dict[str, EncoderInput] = {}
    broken: dict[str, ItemError] = {}
    end, n_done = float("inf"), 0

    def jobs() -> Iterator[DecodeJob]:
        for path in cycle(files):
            if (time.perf_counter() > end and n_done) or len(broken) == len(files):
                return
            if path in broken:
                continue
            yield DecodeJob(path=path, sampling=encoders.video.sampling)

    with DecodePool(cpu_threads(), transform=transform) as pool:
        start = 0.0
        for job, result in pool.run(jobs()):
            if isinstance(result, ItemError):
                if job.path not in broken:
                    reporter.message(f"skipped: {display_path(job.path)}: {message_without_path(result, job.path)}")
                broken[job.path] = result
                continue
            first = cast(EncoderInput, result.segments[0].frames)
            if not start:  # the decoder processes have started
                start = time.perf_counter()
                end = start + options.seconds
            else:
                meter.decode.n += len(first.pts_s)
                n_done += 1
            inputs.setdefault(job.path, first)
        if not inputs:
            raise broken[files[0]]
        meter.decode.busy_s = time.perf_counter() - start
    return list(inputs.values()), meter.decode.busy_s / n_done


def _encode(
    inputs: Sequence[EncoderInput], model: LoadedModel, options: BenchOptions, meter: ThroughputMeter
) -> list[Features]:
    encoder = model.encoder
    kinds = {value.kind for value in inputs}
    full_batch = max(encoder.batch_size(kind) for kind in kinds)
    batch = [value for value, _ in zip(cycle(inputs), range(max(full_batch, len(inputs))), strict=False)]
    features = encoder.encode(batch)

    def run() -> int:
        encoder.encode(batch)
        return len(batch)

    n, busy_s = _repeat(run, options.seconds)
    meter.encode.add(n, busy_s)
    operations = sum(
        encoder.flops(value.kind) * len(value.values) / encoder.session(value.kind).n_frames for value in batch
    )
    meter.encode_operations = operations * n / len(batch)
    return features[: len(inputs)]


def _answer(features: Sequence[Features], model: LoadedModel, options: BenchOptions, meter: ThroughputMeter) -> float:
    """Submit files until the time is over, then finish those that were submitted; return the seconds."""
    from vidqa.generate.engine import Engine, GenerationSettings, Request

    engine = Engine(model.llava, GenerationSettings(max_new_tokens=options.max_new_tokens), options.batch_size)
    start, source = time.perf_counter(), cycle(features)
    while time.perf_counter() - start < options.seconds or not engine.stats.answers:
        while engine.accepts_more:
            clip = replace(next(source))  # a copy is a different video to the engine
            for i in range(options.n_questions):
                engine.submit(None, Request((clip,), ((_QUESTION.format(i), None),)))
        for _, answer in engine.step():
            if isinstance(answer, ItemError):
                raise answer
    add_engine_stats(meter, model, engine.stats)
    return time.perf_counter() - start


def _repeat(run: Callable[[], int], seconds: float) -> tuple[int, float]:
    """Call a function repeatedly; return the sum of its results and the seconds."""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        n += run()
    return n, time.perf_counter() - start
