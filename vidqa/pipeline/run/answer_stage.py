"""Sixth stage of a run: features and questions -> rows. The LLM runs in a thread, in parallel to decoding and encoding.

Every question of every file gets a row, also if it failed. Files go to the LLM's thread through a bounded queue, so the
earlier stages run a fixed number of files ahead and memory does not grow with the archive.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import cast

from vidqa.errors import ItemError
from vidqa.generate.engine import Engine, GenerationSettings, Request
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.run.hardware_limit import add_engine_stats
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.rows import answered_row, failed_row
from vidqa.pipeline.run.run_options import Identity, RunOptions, settings_of
from vidqa.records import Answer, AnswerRow, EncodedItem, EncodedSegment, Question, WorkItem

#: Capacity of the queue in files, in addition to those whose prompts the LLM has taken.
_AHEAD = 4
#: Longest wait on a queue or event before the stop flag is checked.
_POLL_S = 0.1


@dataclass(frozen=True)
class Answered:
    """A file with all its rows, in order of question and time."""

    work: WorkItem
    rows: tuple[AnswerRow, ...]
    seconds: float | None = None  # from features to rows; None if the file failed before it had features


@dataclass
class _AskedFile:
    """A file in the LLM's thread, with the answers so far."""

    encoded: EncodedItem
    prompts: list[tuple[Question, EncodedSegment]]  # in the order of the rows
    arrived_at: float  # time.perf_counter()
    answers: dict[int, Answer | ItemError] = field(default_factory=dict)  # by index of the prompt


def answer_items(
    encoded: Iterable[EncodedItem], model: LoadedModel, options: RunOptions, clock: StageClock
) -> Iterator[Answered]:
    """Ask the questions of every file.

    Args:
        encoded: files with their features, or with the error that stopped them.
        model: its LLM is loaded when the first file with features arrives.
        options: of the run.
        clock: receives the seconds that the run waited for the LLM (`load`, `generate`), and the LLM's throughput.

    Yields:
        One `Answered` per file, in the order in which the files are finished, with one row per question and segment, or
        one row per question if there are no segments.
    """
    identity, arrivals = model.identity, iter(encoded)
    interrupt: KeyboardInterrupt | None = None
    with _LlmThread(model, options, clock) as thread:
        while True:
            try:
                item = next(arrivals, None)
            except KeyboardInterrupt as error:  # first finish what the LLM has taken, so that its rows are kept
                item, interrupt = None, error
            if item is None:
                break
            if item.error is not None:
                yield Answered(item.work, _failed_rows(item, identity, options))
                continue
            prompts = [(question, segment) for question in item.work.questions for segment in item.segments]
            if not prompts:
                yield Answered(item.work, (), 0.0)
                continue
            asked = _AskedFile(item, prompts, time.perf_counter())
            while not thread.submit(asked):
                thread.wait()
                yield from (_answered(done, identity, options) for done in thread.finished())
            yield from (_answered(done, identity, options) for done in thread.finished())
        thread.close()
        # Entering a stage of the clock may raise a pending signal. After an interrupt, only a second one may end this.
        with clock.stage("generate") if interrupt is None else nullcontext():
            while thread.is_busy:
                thread.wait(counts=False)
                yield from (_answered(done, identity, options) for done in thread.finished())
    if interrupt is not None:
        raise interrupt


class _LlmThread:
    """The LLM's thread, as the main thread uses it."""

    def __init__(self, model: LoadedModel, options: RunOptions, clock: StageClock) -> None:
        self._model, self._options, self._clock = model, options, clock
        self._inbox: queue.Queue[_AskedFile | None] = queue.Queue(_AHEAD)
        self._outbox: queue.SimpleQueue[_AskedFile | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._progress = threading.Event()  # set when a file leaves the inbox or reaches the outbox
        self._stage = "load"
        self._n_submitted = self._n_finished = 0
        self._thread = threading.Thread(target=self._run, name="vidqa-answer", daemon=True)

    def __enter__(self) -> _LlmThread:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)  # computing a token or loading a model cannot be interrupted

    @property
    def is_busy(self) -> bool:
        """Whether submitted files are not finished yet."""
        return self._n_finished < self._n_submitted

    def submit(self, asked: _AskedFile) -> bool:
        """Put a file into the queue; return False if the queue is full."""
        if not self._n_submitted:
            self._thread.start()
        self._progress.clear()
        try:
            self._inbox.put_nowait(asked)
        except queue.Full:
            return False
        self._n_submitted += 1
        return True

    def close(self) -> None:
        """Mark the end of the files."""
        if self._n_submitted:
            while self._thread.is_alive():
                try:
                    return self._inbox.put(None, timeout=_POLL_S)
                except queue.Full:
                    continue

    def wait(self, counts: bool = True) -> None:
        """Wait briefly, or until something happens. If `counts`, the time is added to the thread's current stage."""
        start = time.perf_counter()
        self._progress.wait(_POLL_S)
        self._progress.clear()
        if counts:
            self._clock.seconds[self._stage] += time.perf_counter() - start

    def finished(self) -> Iterator[_AskedFile]:
        """Yield files with all their answers. An error of the thread is raised here."""
        while True:
            try:
                done = self._outbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(done, BaseException):
                raise done
            self._n_finished += 1
            yield done

    def _run(self) -> None:
        try:
            self._answer()
        except BaseException as error:  # noqa: BLE001 - raised by `finished` in the main thread
            self._outbox.put(error)
            self._progress.set()

    def _answer(self) -> None:
        more = True
        first = self._inbox.get()
        engine = Engine(self._model.llava, generation_settings(self._model, self._options), self._options.batch_size)
        self._stage = "generate"
        self._submit(engine, first)
        while (more or engine.busy) and not self._stop.is_set():
            while more and (engine.accepts_more or not engine.busy):
                try:
                    asked = self._inbox.get(timeout=0.0 if engine.busy else _POLL_S)
                except queue.Empty:
                    break
                self._progress.set()
                more = asked is not None
                self._submit(engine, asked)
            for tag, answer in engine.step():
                owner, number = cast(tuple[_AskedFile, int], tag)
                owner.answers[number] = answer
                if len(owner.answers) == len(owner.prompts):
                    self._outbox.put(owner)
                    self._progress.set()
        add_engine_stats(self._clock.meter, self._model, engine.stats)

    def _submit(self, engine: Engine, asked: _AskedFile | None) -> None:
        for number, (question, segment) in enumerate(asked.prompts if asked else ()):
            engine.submit((asked, number), _request(question, segment, self._options))


def _answered(asked: _AskedFile, identity: Identity, options: RunOptions) -> Answered:
    work = asked.encoded.work
    rows = [
        answered_row(work, question, segment, asked.answers[i], identity, settings_of(options, question))
        for i, (question, segment) in enumerate(asked.prompts)
    ]
    return Answered(work, tuple(rows), time.perf_counter() - asked.arrived_at)


def generation_settings(model: LoadedModel, options: RunOptions) -> GenerationSettings:
    """Return the generation settings of the bundle, overridden by those of the run.

    Args:
        model: has the bundle.
        options: of the run.
    """
    spec = model.bundle.spec.generation
    return GenerationSettings(
        max_new_tokens=options.max_new_tokens or spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        stop=spec.stop,
    )


def _request(question: Question, segment: EncodedSegment, options: RunOptions) -> Request:
    return Request(
        features=(segment.features,),
        turns=((question.text, None),),
        max_new_tokens=question.max_new_tokens or options.max_new_tokens,
    )


def _failed_rows(item: EncodedItem, identity: Identity, options: RunOptions) -> tuple[AnswerRow, ...]:
    assert item.error is not None
    return tuple(
        failed_row(item.work, question, item.error, identity, settings_of(options, question), item.facts)
        for question in item.work.questions
    )
