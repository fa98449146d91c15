"""Sixth stage of a run: features and questions -> rows, as soon as they are answered.

Three threads work at the same time, so that rows reach the disk while a batch is encoded or a model is loaded:

    encoding thread   runs the stages before this one, and passes segments with their questions on
    LLM thread        answers them
    main thread       makes the rows and yields them

The segments go to the LLM through a bounded queue, so the earlier stages run a fixed number of segments ahead, and
memory grows neither with the archive nor with the length of a video. After a signal the two threads start nothing new.
What the LLM has in its batch is finished within `GRACE_S` or dropped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import cast

from vidqa.errors import ItemError
from vidqa.generate.engine import Engine, GenerationSettings, Request
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.monitor.signals import GRACE_S, WORK_THREADS
from vidqa.pipeline.run.hardware_limit import add_engine_stats
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.rows import answered_row, failed_row
from vidqa.pipeline.run.run_options import RunOptions, settings_of
from vidqa.records import Answer, AnswerRow, EncodedItem, EncodedSegment, MediaItem, Question, Segment, WorkItem

#: Capacity of the queue in parts of files, in addition to those whose prompts the LLM has taken.
_AHEAD = 16
#: Longest wait on a queue or event before the stop flags are checked.
_POLL_S = 0.1
_ENCODER, _LLM = WORK_THREADS


@dataclass(frozen=True)
class Answered:
    """Rows of one file, in the order in which they were answered."""

    work: WorkItem
    rows: tuple[AnswerRow, ...]
    share: float = 1.0  # of the rows of the file; an estimate
    is_last: bool = True  # False: more rows of the file follow
    seconds: float | None = None  # with the last rows: since its first features; None if it had none


@dataclass(frozen=True)
class _AskedPart:
    """A part of a file with its prompts."""

    part: EncodedItem
    prompts: list[tuple[Question, EncodedSegment]]


@dataclass(frozen=True)
class _AnsweredPrompt:
    asked: _AskedPart
    number: int  # of the prompt
    answer: Answer | ItemError


class _End:
    """Last event of a run."""


@dataclass
class _OpenFile:
    """A file of which rows are missing."""

    asked_at: float | None = None  # time.perf_counter() of the first prompts
    n_running: int = 0  # prompts that are with the LLM
    has_arrived: bool = False  # with its last part


def answer_items(
    encoded: Iterable[EncodedItem], model: LoadedModel, options: RunOptions, clock: StageClock
) -> Generator[Answered]:
    """Ask the questions of every file. Close the generator to end its threads.

    Args:
        encoded: parts of files with their features, or with errors. They are taken and, if it is a generator, closed in
            the encoding thread.
        model: its LLM is loaded when the first features arrive.
        options: of the run.
        clock: receives the seconds that the run waited for the LLM (`load`, `generate`), and the LLM's throughput. If
            the run ends early, it is cancelled.

    Yields:
        The rows of each file, in the order in which they are finished: one for each question and segment that earlier
        runs did not answer, or one for each question if the file failed before it had segments.

    Raises:
        KeyboardInterrupt: the run was interrupted, by a signal that `clock.stop` handles or by Python. Rows that were
            answered in the meantime have been yielded.
    """
    files: dict[MediaItem, _OpenFile] = {}
    interrupt: KeyboardInterrupt | None = None
    threads = _Threads(encoded, model, options, clock)
    try:
        deadline = float("inf")
        while time.monotonic() < deadline:
            is_answering = threads.is_answering
            try:
                if interrupt is None:
                    with clock.stop.interruptible():  # raises a signal that has arrived since the last check
                        pass
                event = threads.next_event()
            except KeyboardInterrupt as error:
                if interrupt is not None:
                    raise
                interrupt, deadline = error, threads.stop()
                continue
            if isinstance(event, _End) or (event is None and interrupt is not None and not is_answering):
                break
            if event is not None and (answered := _rows(event, files, model, options)) is not None:
                yield answered
    finally:
        threads.close()
    if interrupt is not None:
        raise interrupt


def _rows(
    event: _AskedPart | _AnsweredPrompt, files: dict[MediaItem, _OpenFile], model: LoadedModel, options: RunOptions
) -> Answered | None:
    """Return the rows that an event completes; None if there are none and the file is not finished either."""
    if isinstance(event, _AnsweredPrompt):
        part, (question, segment) = event.asked.part, event.asked.prompts[event.number]
        settings, n_segments = settings_of(options, question), n_segments_of(part)
        rows = [answered_row(part.work, question, segment, event.answer, model.identity, settings, n_segments)]
        file = files[part.work.item]
        file.n_running -= 1
    else:
        part, file = event.part, files.setdefault(event.part.work.item, _OpenFile())
        file.n_running += len(event.prompts)
        file.has_arrived = part.is_last
        file.asked_at = file.asked_at or (time.perf_counter() if event.prompts else None)
        rows = _failed_rows(part, model, options)
    is_last = file.has_arrived and not file.n_running
    if not rows and not is_last:
        return None
    seconds = None
    if is_last:
        del files[part.work.item]
        seconds = None if file.asked_at is None else time.perf_counter() - file.asked_at
    n_rows = max(1, n_segments_of(part)) * max(1, len(part.work.questions))
    return Answered(part.work, tuple(rows), len(rows) / n_rows, is_last, seconds)


def _failed_rows(part: EncodedItem, model: LoadedModel, options: RunOptions) -> list[AnswerRow]:
    if part.error is None:
        return []
    work, n = part.work, part.n_segments or 0
    segments: tuple[Segment | None, ...] = part.failed or (None,)
    return [
        failed_row(work, question, part.error, model.identity, settings_of(options, question), part.facts, segment, n)
        for question in work.questions
        for segment in segments
        if segment is None or not work.is_answered(question, segment.start_s, n)
    ]


def n_segments_of(part: EncodedItem) -> int:
    """Return the number of segments of the file that a part with features belongs to.

    Args:
        part: of the file.
    """
    return part.n_segments or len(part.segments)


class _Threads:
    """The encoding thread and the LLM's thread, as the main thread uses them."""

    def __init__(
        self, encoded: Iterable[EncodedItem], model: LoadedModel, options: RunOptions, clock: StageClock
    ) -> None:
        self._encoded, self._model, self._options, self._clock = encoded, model, options, clock
        self._inbox: queue.Queue[_AskedPart | None] = queue.Queue(_AHEAD)
        self._events: queue.SimpleQueue[_AskedPart | _AnsweredPrompt | _End | BaseException] = queue.SimpleQueue()
        self._stopped = threading.Event()  # nothing new is submitted to the LLM
        self._closed = threading.Event()  # running answers are dropped, too
        self._deadline = float("inf")
        self._stage = "load"  # of the LLM
        self._has_llm_started = False
        self._llm = threading.Thread(target=self._run, args=(self._answer,), name=_LLM, daemon=True)
        self._encoder = threading.Thread(target=self._run, args=(self._encode,), name=_ENCODER, daemon=True)
        self._encoder.start()

    def next_event(self) -> _AskedPart | _AnsweredPrompt | _End | None:
        """Return the next event; None if none happens for a moment. An error of a thread is raised here."""
        try:
            event = self._events.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        if isinstance(event, BaseException):
            raise event
        return event

    @property
    def is_answering(self) -> bool:
        """Whether the LLM is loaded and has not ended."""
        return self._stage == "generate" and self._llm.is_alive()

    def stop(self) -> float:
        """Submit nothing new to the LLM.

        Returns:
            The `time.monotonic` until which running answers may finish.
        """
        self._deadline = min(self._deadline, time.monotonic() + GRACE_S)
        self._stopped.set()
        self._clock.cancelled.set()
        return self._deadline

    def close(self) -> None:
        """End the threads, and wait for them. A computation that takes longer than `GRACE_S` is abandoned."""
        deadline = self.stop()
        self._closed.set()
        for thread in (self._encoder, self._llm):
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by `next_event` in the main thread
            self._events.put(error)

    def _encode(self) -> None:
        """Run the stages before this one. Ends when the LLM has answered everything."""
        arrivals = iter(self._encoded)
        try:
            for part in arrivals:
                if self._stopped.is_set():
                    break
                self._submit(part)
        finally:
            if isinstance(arrivals, Generator):
                arrivals.close()
        if self._has_llm_started:
            self._put(None)
            with self._clock.stage("generate"):
                self._llm.join()
        self._events.put(_End())

    def _submit(self, part: EncodedItem) -> None:
        work, n = part.work, n_segments_of(part)
        prompts = [
            (question, segment)
            for question in work.questions
            for segment in part.segments
            if not work.is_answered(question, segment.start_s, n)
        ]
        asked = _AskedPart(part, prompts)
        self._events.put(asked)  # before its answers can arrive
        if prompts:
            if not self._has_llm_started:
                self._has_llm_started = True
                self._llm.start()
            self._put(asked)

    def _put(self, asked: _AskedPart | None) -> None:
        """Put a part into the LLM's queue. The time is added to the stage that the LLM is in."""
        while self._llm.is_alive() and not (self._stopped.is_set() and asked is not None):
            start = time.perf_counter()
            try:
                return self._inbox.put(asked, timeout=_POLL_S)
            except queue.Full:
                continue
            finally:
                self._clock.seconds[self._stage] += time.perf_counter() - start

    def _answer(self) -> None:
        more = True
        if (first := self._inbox.get()) is None:  # stopped in the meantime
            return
        engine = Engine(self._model.llava, generation_settings(self._model, self._options), self._options.batch_size)
        self._stage = "generate"
        self._ask(engine, first)
        while (more or engine.busy) and not self._closed.is_set():
            if self._stopped.is_set():
                more = False
                engine.drop_waiting()
            while more and (engine.accepts_more or not engine.busy):
                try:
                    asked = self._inbox.get(timeout=0.0 if engine.busy else _POLL_S)
                except queue.Empty:
                    break
                more = asked is not None
                self._ask(engine, asked)
            for tag, answer in engine.step():
                asked, number = cast(tuple[_AskedPart, int], tag)
                self._events.put(_AnsweredPrompt(asked, number, answer))
        add_engine_stats(self._clock.meter, self._model, engine.stats)

    def _ask(self, engine: Engine, asked: _AskedPart | None) -> None:
        for number, (question, segment) in enumerate(asked.prompts if asked else ()):
            if self._stopped.is_set():
                return
            engine.submit((asked, number), _request(question, segment, self._options))


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
