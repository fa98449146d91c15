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

from vidqa.encoders.devices import cpu_threads
from vidqa.encoders.preprocess import prepare
from vidqa.errors import ItemError, UsageError
from vidqa.media.scan import scan
from vidqa.media.synthetic import write_clip
from vidqa.media.workers import DecodeJob, DecodePool
from vidqa.pipeline.limits import add_work, hold_against_hardware
from vidqa.pipeline.loaded import LoadedModel
from vidqa.pipeline.meter import Meter
from vidqa.pipeline.progress import QUIET, Reporter
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

    meter: Meter
    answer_s: float
    media: str
    device: str
    model: str

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        who = {"model": self.model, "device": self.device, "media": self.media}
        return who | self.meter.as_dict(self.answer_s)

    def as_text(self) -> str:
        """For people."""
        return f"{self.model} on {self.device}, {self.media}\n{self.meter.as_text(self.answer_s)}"


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
        ItemError: a clip cannot be decoded.
        UsageError: there is no media.
    """
    how, meter = options or BenchOptions(), Meter()
    with TemporaryDirectory(prefix="vidqa-bench-") as folder:
        files = _files(paths, Path(folder))
        reporter.say(f"decode: {how.seconds:g} s")
        inputs = _decode(files, model, how, meter)
    reporter.say(f"encode: {how.seconds:g} s")
    features = _encode(inputs, model, how, meter)
    reporter.say(f"answer: {how.seconds:g} s")
    answer_s = _answer(features, model, how, meter)
    hold_against_hardware(meter, model, always=True)
    name = ", ".join(paths) if paths else "a clip made for it (640 x 360, 10 s)"
    return BenchResult(meter, answer_s, name, str(model.llava.device), model.identity.model)


def _files(paths: Sequence[str], folder: Path) -> list[str]:
    if not paths:
        write_clip(folder / "clip.mp4")
        return [str(folder / "clip.mp4")]
    found = [item.path for item in scan(paths).items][:_MOST_FILES]
    if not found:
        raise UsageError(f"no media found in {', '.join(paths)}", hint="leave PATHS out to measure with a made clip")
    return found


def _decode(files: Sequence[str], model: LoadedModel, how: BenchOptions, meter: Meter) -> list[EncoderInput]:
    """The same files again and again; gives the encoder's inputs of each once."""
    encoders = model.bundle.spec.encoders
    transform = partial(prepare, image=encoders.image.preprocess, video=encoders.video.preprocess)
    inputs: dict[str, EncoderInput] = {}
    end = float("inf")

    def jobs() -> Iterator[DecodeJob]:
        for path in cycle(files):
            if time.perf_counter() > end and inputs:
                return
            yield DecodeJob(path=path, sampling=encoders.video.sampling)

    with DecodePool(cpu_threads(), transform=transform) as pool:
        start = 0.0
        for job, result in pool.run(jobs()):
            if isinstance(result, ItemError):
                raise result
            first = cast(EncoderInput, result.segments[0].frames)
            if not start:  # the processes have started
                start = time.perf_counter()
                end = start + how.seconds
            else:
                meter.decode.n += len(first.pts_s)
            inputs.setdefault(job.path, first)
        meter.decode.busy_s = time.perf_counter() - start
    return list(inputs.values())


def _encode(inputs: Sequence[EncoderInput], model: LoadedModel, how: BenchOptions, meter: Meter) -> list[Features]:
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
        encoder.operations(value.kind) * len(value.values) / encoder.session(value.kind).n_frames for value in batch
    )
    meter.encode_operations = operations * n / len(batch)
    return features[: len(inputs)]


def _answer(features: Sequence[Features], model: LoadedModel, how: BenchOptions, meter: Meter) -> float:
    """Clips come without end, until the time is over; those at work are finished."""
    from vidqa.generate.engine import Engine, GenerationSettings, Request

    engine = Engine(model.llava, GenerationSettings(max_new_tokens=how.max_new_tokens), how.batch_size)
    start, again = time.perf_counter(), cycle(features)
    while time.perf_counter() - start < how.seconds or not engine.work.answers:
        while engine.wants_more:
            clip = replace(next(again))  # another object is another clip
            for i in range(how.n_questions):
                engine.submit(None, Request((clip,), ((_QUESTION.format(i), None),)))
        for _, answer in engine.advance():
            if isinstance(answer, ItemError):
                raise answer
    add_work(meter, model, engine.work)
    return time.perf_counter() - start


def _repeat(run: Callable[[], int], seconds: float) -> tuple[int, float]:
    """Units done and seconds taken."""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        n += run()
    return n, time.perf_counter() - start
