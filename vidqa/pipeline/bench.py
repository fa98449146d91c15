"""A model and a clip or a few -> how fast each stage is on this machine, one after another, and what limits it.

Each stage runs alone for some seconds, with the parts that a run uses: decode processes, encoder, answering engine. So
the rates are what a run could reach at best; the block that closes `describe` says what it did reach.
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
from vidqa.common.display import display_path, message_without_path
from vidqa.encoders.preprocess import preprocess
from vidqa.errors import ItemError, UsageError
from vidqa.media.scan import scan
from vidqa.media.synthetic import write_test_video
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.hardware_limit import add_work, hold_against_hardware
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.records import EncoderInput, Features

_QUESTION = "What happens in this video, part {}?"
#: Files that are looked at, of those that were named.
_MOST_FILES = 16


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and for how long."""

    seconds: float = 5.0  # of each stage
    n_questions: int = 8  # about each clip
    max_new_tokens: int = 64
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf") or self.n_questions < 1 or self.max_new_tokens < 1:
            raise UsageError("bench needs a positive number of seconds, and at least one question and one token")


@dataclass(frozen=True)
class BenchResult:
    """Rates of all stages. `answers_per_s` is of the LLM alone, with features that are there."""

    meter: ThroughputMeter
    answer_s: float
    clip_s: dict[str, float]  # by stage: what one clip, or picture, takes there with all its questions
    n_questions: int
    media: str
    device: str
    model: str

    @property
    def limiting(self) -> str:
        """The stage that a clip is in longest. How long each was measured says nothing: the user chose that."""
        return max(self.clip_s, key=lambda stage: self.clip_s[stage])

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        who = {"model": self.model, "device": self.device, "media": self.media, "n_questions": self.n_questions}
        clip_s = {stage: float(f"{seconds:.4g}") for stage, seconds in self.clip_s.items()}
        return who | self.meter.as_dict(self.answer_s) | {"clip_s": clip_s, "limiting": self.limiting}

    def as_text(self) -> str:
        """For people."""
        asked = f"{self.n_questions} question{'' if self.n_questions == 1 else 's'}"
        spent = ", ".join(f"{stage} {1000 * seconds:,.1f}" for stage, seconds in self.clip_s.items())
        return (
            f"{self.model} on {self.device}, {self.media}\n"
            f"{self.meter.as_text(self.answer_s, 'with cached features')}\n"
            f"  milliseconds for a clip and its {asked}: {spent}\n"
            f"  limiting stage: {self.limiting}"
        )


def bench(
    model: LoadedModel, paths: Sequence[str] = (), options: BenchOptions | None = None, reporter: Reporter = QUIET
) -> BenchResult:
    """Measure.

    Args:
        model: an opened bundle; its engines are loaded before the clock starts.
        paths: clips, pictures or folders of them; nothing takes a clip that is made for it.
        options: None for the defaults.
        reporter: hears what is being measured.

    Raises:
        ItemError: none of the clips can be decoded, or the model cannot answer about them.
        UsageError: there is no media.
    """
    how, meter = options or BenchOptions(), ThroughputMeter()
    with TemporaryDirectory(prefix="vidqa-bench-") as folder:
        files = _files(paths, Path(folder))
        reporter.say(f"decode: {how.seconds:g} s")
        inputs, decode_s = _decode(files, model, how, meter, reporter)
    reporter.say(f"encode: {how.seconds:g} s")
    features = _encode(inputs, model, how, meter)
    reporter.say(f"answer: {how.seconds:g} s")
    answer_s = _answer(features, model, how, meter)
    hold_against_hardware(meter, model, always=True)
    files_of = f" ({len(inputs)} file{'' if len(inputs) == 1 else 's'})"  # the first of them stand for all
    name = ", ".join(map(display_path, paths)) + files_of if paths else "a clip made for it (640 x 360, 10 s)"
    n_asked = meter.n_answers / how.n_questions
    clip_s = {
        "decode": decode_s,
        "encode": meter.encode.busy_s / meter.encode.n,
        "prefill": meter.prefill.busy_s / n_asked,
        "generate": meter.step.busy_s / n_asked,
    }
    return BenchResult(meter, answer_s, clip_s, how.n_questions, name, str(model.llava.device), model.identity.model)


def _files(paths: Sequence[str], folder: Path) -> list[str]:
    if not paths:
        write_test_video(folder / "clip.mp4")
        return [str(folder / "clip.mp4")]
    found = [item.path for item in scan(paths).items][:_MOST_FILES]
    if not found:
        raise UsageError(f"no media found in {', '.join(paths)}", hint="leave PATHS out to measure with a made clip")
    return found


def _decode(
    files: Sequence[str], model: LoadedModel, how: BenchOptions, meter: ThroughputMeter, reporter: Reporter
) -> tuple[list[EncoderInput], float]:
    """The same files again and again; gives the encoder's inputs of each once, and the seconds that a file takes.

    One that cannot be decoded is left out: an archive has such files, and its rates are those of the others.
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
                    reporter.say(f"left out: {display_path(job.path)}: {message_without_path(result, job.path)}")
                broken[job.path] = result
                continue
            first = cast(EncoderInput, result.segments[0].frames)
            if not start:  # the processes have started
                start = time.perf_counter()
                end = start + how.seconds
            else:
                meter.decode.n += len(first.pts_s)
                n_done += 1
            inputs.setdefault(job.path, first)
        if not inputs:
            raise broken[files[0]]
        meter.decode.busy_s = time.perf_counter() - start
    return list(inputs.values()), meter.decode.busy_s / n_done


def _encode(
    inputs: Sequence[EncoderInput], model: LoadedModel, how: BenchOptions, meter: ThroughputMeter
) -> list[Features]:
    encoder = model.encoder
    kinds = {value.kind for value in inputs}
    full = max(encoder.batch_size(kind) for kind in kinds)
    batch = [value for value, _ in zip(cycle(inputs), range(max(full, len(inputs))), strict=False)]
    features = encoder.encode(batch)

    def run() -> int:
        encoder.encode(batch)
        return len(batch)

    n, busy_s = _repeat(run, how.seconds)
    meter.encode.add(n, busy_s)
    operations = sum(
        encoder.flops(value.kind) * len(value.values) / encoder.session(value.kind).n_frames for value in batch
    )
    meter.encode_operations = operations * n / len(batch)
    return features[: len(inputs)]


def _answer(features: Sequence[Features], model: LoadedModel, how: BenchOptions, meter: ThroughputMeter) -> float:
    """Clips come without end, until the time is over; those at work are finished."""
    from vidqa.generate.engine import Engine, GenerationSettings, Request

    engine = Engine(model.llava, GenerationSettings(max_new_tokens=how.max_new_tokens), how.batch_size)
    start, again = time.perf_counter(), cycle(features)
    while time.perf_counter() - start < how.seconds or not engine.stats.answers:
        while engine.accepts_more:
            clip = replace(next(again))  # another object is another clip
            for i in range(how.n_questions):
                engine.submit(None, Request((clip,), ((_QUESTION.format(i), None),)))
        for _, answer in engine.step():
            if isinstance(answer, ItemError):
                raise answer
    add_work(meter, model, engine.stats)
    return time.perf_counter() - start


def _repeat(run: Callable[[], int], seconds: float) -> tuple[int, float]:
    """Units done and seconds taken."""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        n += run()
    return n, time.perf_counter() - start
