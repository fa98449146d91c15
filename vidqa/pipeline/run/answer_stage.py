"""Encoded files and their questions -> rows, one each, whatever happens: the LLM works in a thread of its own, beside
decoding and encoding.

Knows the LLM; does not know where features come from or where rows go. A bounded queue hands files over, so that the
stages before run ahead by a fixed number and memory does not grow with the archive.
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
from vidqa.pipeline.run.hardware_limit import add_work
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.rows import answered_row, failed_row
from vidqa.pipeline.run.run_options import Identity, RunOptions, settings_of
from vidqa.records import Answer, AnswerRow, EncodedItem, EncodedSegment, Question, WorkItem

#: Files with their features that may wait for the LLM, beside those whose prompts it has taken.
_AHEAD = 4
#: How long a thread waits before it looks whether it is still wanted.
_PATIENCE_S = 0.1


@dataclass(frozen=True)
class Answered:
    """A file with the rows of all its questions: complete, in order of question and time."""

    work: WorkItem
    rows: tuple[AnswerRow, ...]
    cached: bool


@dataclass
class _Asked:
    """A file at the LLM: its cells in the order of the rows, and the answers so far."""

    one: EncodedItem
    cells: list[tuple[Question, EncodedSegment]]
    answers: dict[int, Answer | ItemError] = field(default_factory=dict)


def answer_works(
    encoded: Iterable[EncodedItem], model: LoadedModel, options: RunOptions, clock: StageClock
) -> Iterator[Answered]:
    """Ask every file its questions.

    Args:
        encoded: files with their features, or with the error that stopped them.
        model: its LLM is loaded when the first file with features arrives.
        options: how the run is done.
        clock: hears the seconds that the run waited for the LLM (`load`, `generate`), and what the LLM did.

    Returns:
        One `Answered` a file, in the order in which they are finished; as many rows as questions times segments, or one
        a question where there is no segment.
    """
    who, arrivals = model.identity, iter(encoded)
    stopped: KeyboardInterrupt | None = None
    with _Thread(model, options, clock) as thread:
        while True:
            try:
                one = next(arrivals, None)
            except KeyboardInterrupt as wish:  # what the LLM has taken is finished first: its rows stay
                one, stopped = None, wish
            if one is None:
                break
            if one.error is not None:
                yield Answered(one.work, _failed_rows(one.work, one.error, who, options), one.cached)
                continue
            asked = _Asked(one, [(q, s) for q in one.work.questions for s in one.segments])
            if not asked.cells:
                yield Answered(one.work, (), one.cached)
                continue
            while not thread.take(asked):
                thread.wait()
                yield from (_answered(done, who, options) for done in thread.finished())
            yield from (_answered(done, who, options) for done in thread.finished())
        thread.close()
        # A stage of the clock may be where a signal is heard; after one, nothing but a second may end the finishing.
        with clock.stage("generate") if stopped is None else nullcontext():
            while thread.at_work:
                thread.wait(counts=False)
                yield from (_answered(done, who, options) for done in thread.finished())
    if stopped is not None:
        raise stopped


class _Thread:
    """The LLM's thread as the main one sees it."""

    def __init__(self, model: LoadedModel, options: RunOptions, clock: StageClock) -> None:
        self._model, self._options, self._clock = model, options, clock
        self._inbox: queue.Queue[_Asked | None] = queue.Queue(_AHEAD)
        self._outbox: queue.SimpleQueue[_Asked | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._progress = threading.Event()  # something left the inbox or reached the outbox
        self._doing = "load"
        self._n_given = self._n_back = 0
        self._thread = threading.Thread(target=self._run, name="vidqa-answer", daemon=True)

    def __enter__(self) -> _Thread:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)  # a token, or the loading of a model, is not interrupted

    @property
    def at_work(self) -> bool:
        """True while files that were taken have not come back."""
        return self._n_back < self._n_given

    def take(self, asked: _Asked) -> bool:
        """Hand a file over; False when the queue is full."""
        if not self._n_given:
            self._thread.start()
        self._progress.clear()
        try:
            self._inbox.put_nowait(asked)
        except queue.Full:
            return False
        self._n_given += 1
        return True

    def close(self) -> None:
        """No more files will come."""
        if self._n_given:
            while self._thread.is_alive():
                try:
                    return self._inbox.put(None, timeout=_PATIENCE_S)
                except queue.Full:
                    continue

    def wait(self, counts: bool = True) -> None:
        """Wait for a moment, or until something happens; where it counts, that time belongs to what the thread does."""
        start = time.perf_counter()
        self._progress.wait(_PATIENCE_S)
        self._progress.clear()
        if counts:
            self._clock.seconds[self._doing] += time.perf_counter() - start

    def finished(self) -> Iterator[_Asked]:
        """Files that came back. An error of the thread is raised here."""
        while True:
            try:
                done = self._outbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(done, BaseException):
                raise done
            self._n_back += 1
            yield done

    def _run(self) -> None:
        try:
            self._answer()
        except BaseException as error:  # whatever it is belongs to the thread that waits, and is raised there
            self._outbox.put(error)
            self._progress.set()

    def _answer(self) -> None:
        more = True
        first = self._inbox.get()
        engine = Engine(self._model.llava, generation_settings(self._model, self._options), self._options.batch_size)
        self._doing = "generate"
        self._submit(engine, first)
        while (more or engine.busy) and not self._stop.is_set():
            while more and (engine.accepts_more or not engine.busy):
                try:
                    asked = self._inbox.get(timeout=0.0 if engine.busy else _PATIENCE_S)
                except queue.Empty:
                    break
                self._progress.set()
                more = asked is not None
                self._submit(engine, asked)
            for tag, answer in engine.step():
                whose, number = cast(tuple[_Asked, int], tag)
                whose.answers[number] = answer
                if len(whose.answers) == len(whose.cells):
                    self._outbox.put(whose)
                    self._progress.set()
        add_work(self._clock.meter, self._model, engine.stats)

    def _submit(self, engine: Engine, asked: _Asked | None) -> None:
        for number, (question, segment) in enumerate(asked.cells if asked else ()):
            engine.submit((asked, number), _request(question, segment, self._options))


def _answered(asked: _Asked, who: Identity, options: RunOptions) -> Answered:
    rows = [
        answered_row(asked.one.work, question, segment, asked.answers[i], who, settings_of(options, question))
        for i, (question, segment) in enumerate(asked.cells)
    ]
    return Answered(asked.one.work, tuple(rows), asked.one.cached)


def generation_settings(model: LoadedModel, options: RunOptions) -> GenerationSettings:
    """What the bundle says, with what the user changed."""
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


def _failed_rows(work: WorkItem, error: ItemError, who: Identity, options: RunOptions) -> tuple[AnswerRow, ...]:
    return tuple(failed_row(work, q, error, who, settings_of(options, q)) for q in work.questions)
