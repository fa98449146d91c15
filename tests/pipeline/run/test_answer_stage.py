"""The LLM in parallel to the other stages: complete results, bounded memory, and an end after errors and signals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidqa.errors import ItemError, UsageError
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.monitor.signals import WORK_THREADS, StopSignal
from vidqa.pipeline.run import answer_stage
from vidqa.pipeline.run.answer_stage import _AHEAD, answer_items
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import (
    AnsweredSegments,
    EncodedItem,
    EncodedSegment,
    Features,
    MediaFacts,
    MediaItem,
    Question,
    Segment,
    WorkItem,
)

QUESTIONS = (Question("a", "What?"), Question("b", "Why is that so?"))
FACTS = MediaFacts("video", "h264", 32, 32, 1.0, 10.0)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> LoadedModel:
    return load_model(str(tiny_bundle), "cpu")


def encoded(number: int, questions: tuple[Question, ...] = QUESTIONS, n_segments: int = 2) -> EncodedItem:
    rng = np.random.default_rng(number)
    segments = [
        EncodedSegment(
            FACTS,
            float(i),
            i + 1.0,
            (i + 0.5,),
            (False,),
            Features(rng.standard_normal((8, 5, 16)).astype(np.float16), np.zeros(8, np.float32), True, "video"),
        )
        for i in range(n_segments)
    ]
    item = MediaItem(f"/clips/{number}.mp4", "/clips", f"{number}.mp4", 1, 1)
    return EncodedItem(WorkItem(item, f"{number:032d}", questions), tuple(segments))


def test_every_file_comes_back_with_all_its_rows(model: LoadedModel, tmp_path: Path) -> None:
    broken = EncodedItem(encoded(100).work, error=ItemError("unreadable", "broken"))
    files = [encoded(0), broken, *(encoded(i) for i in range(1, 9)), encoded(101, ()), encoded(102, n_segments=1)]
    clock = StageClock()
    answered = list(answer_items(files, model, RunOptions(tmp_path), clock))
    assert sorted(a.work.item.rel for a in answered if a.is_last) == sorted(f.work.item.rel for f in files)
    for file in files:
        name = file.work.item.rel
        mine = [one for one in answered if one.work is file.work]
        assert [one.is_last for one in mine] == [False] * (len(mine) - 1) + [True]
        assert sum(one.share for one in mine) == pytest.approx(1 if file.work.questions else 0)
        rows = [row for one in mine for row in one.rows]
        n_segments = {"100.mp4": None, "102.mp4": 1}.get(name, 2)
        starts = [float(i) for i in range(n_segments)] if n_segments else [None]
        asked = [q.id for q in file.work.questions]
        assert sorted((r.question_id, r.start_s) for r in rows) == [(q, start) for q in asked for start in starts]
        assert {(r.answer, r.n_segments) for r in rows} <= {("red", n_segments) if n_segments else (None, None)}
        assert (mine[-1].seconds is None) == (name in ("100.mp4", "101.mp4"))
    assert clock.meter.n_answers == 9 * 4 + 2
    assert clock.meter.step.n > 0
    assert clock.meter.prefill.n > 0


@pytest.mark.slow
def test_the_queue_bounds_how_many_files_are_in_memory(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the LLM is busy, the stages before it wait."""
    go, taken = threading.Event(), 0

    def wait(*args: Any, **kwargs: Any) -> None:
        go.wait(20)

    hook = model.llava.llm.register_forward_pre_hook(wait, with_kwargs=True)

    def files() -> Iterator[EncodedItem]:
        nonlocal taken
        for i in range(60):
            taken += 1
            yield encoded(i)

    done: list[Any] = []
    run = threading.Thread(
        target=lambda: done.extend(answer_items(files(), model, RunOptions(tmp_path, batch_size=4), StageClock()))
    )
    run.start()
    time.sleep(1)
    before = taken
    time.sleep(0.5)
    assert taken == before < _AHEAD + 8
    go.set()
    run.join(60)
    hook.remove()
    assert sum(one.is_last for one in done) == 60


def test_an_error_of_the_thread_is_raised_in_the_main_thread(model: LoadedModel, tmp_path: Path) -> None:
    question = Question("x", "what is this?")
    object.__setattr__(question, "text", "what is \0 this?")
    reserved = encoded(0, (question,))
    with pytest.raises(UsageError, match="NUL character"):
        list(answer_items([reserved, *(encoded(i) for i in range(1, 30))], model, RunOptions(tmp_path), StageClock()))


class Gate:
    """Lets the LLM take a number of steps."""

    def __init__(self, model: LoadedModel) -> None:
        self.steps = threading.Semaphore(0)
        self.n_waiting = 0
        self._hook = model.llava.llm.register_forward_pre_hook(self._wait, with_kwargs=True)

    def _wait(self, *args: Any, **kwargs: Any) -> None:
        self.n_waiting += 1
        self.steps.acquire(timeout=60)
        self.n_waiting -= 1

    def open(self) -> None:
        self._hook.remove()
        self.steps.release(10_000)


@pytest.fixture
def gate(model: LoadedModel) -> Iterator[Gate]:
    made = Gate(model)
    yield made
    made.open()


def test_rows_are_yielded_while_the_stages_before_are_busy(model: LoadedModel, tmp_path: Path) -> None:
    """Neither a slow decoder, nor a batch of the encoder, nor the rest of the file holds back an answer."""
    go = threading.Event()

    def files() -> Iterator[EncodedItem]:
        part = encoded(0, n_segments=3)
        for number, segment in enumerate(part.segments):
            if number == 2:
                assert go.wait(60)
            yield replace(part, segments=(segment,), n_segments=3, is_last=number == 2)

    answers = answer_items(files(), model, RunOptions(tmp_path), StageClock())
    first = [next(answers) for _ in range(4)]
    assert sorted(row.start_s for one in first for row in one.rows) == [0.0, 0.0, 1.0, 1.0]
    assert not any(one.is_last for one in first) and {one.share for one in first} == {1 / 6}
    go.set()
    rest = list(answers)
    assert [row.start_s for one in rest for row in one.rows] == [2.0, 2.0] and rest[-1].is_last


def test_answered_segments_are_not_asked_again(model: LoadedModel, tmp_path: Path) -> None:
    part = encoded(0, n_segments=3)
    known = {
        "What?": AnsweredSegments(3, frozenset({0.0, 2.0})),
        "Why is that so?": AnsweredSegments(4, frozenset({1.0})),
    }
    answered = list(
        answer_items(
            [replace(part, work=replace(part.work, answered=known))], model, RunOptions(tmp_path), StageClock()
        )
    )
    rows = [(row.question, row.start_s) for one in answered for row in one.rows]
    assert sorted(rows) == [("What?", 1.0), *(("Why is that so?", i) for i in (0.0, 1.0, 2.0))], (
        "of another number of segments, none is answered"
    )


def test_an_error_after_some_segments_fails_the_others(model: LoadedModel, tmp_path: Path) -> None:
    part = encoded(0, n_segments=1)
    part = replace(part, work=replace(part.work, answered={"What?": AnsweredSegments(3, frozenset({1.0}))}))
    failed = (Segment(1.0, 2.0), Segment(2.0, 3.0))
    error = EncodedItem(
        part.work, (), replace(FACTS, duration_s=2.5), ItemError("timeout", "hangs"), failed, n_segments=3
    )
    parts = [replace(part, n_segments=3, is_last=False), error]
    answered = list(answer_items(parts, model, RunOptions(tmp_path), StageClock()))
    rows = sorted((row.question_id, row.start_s, row.end_s, row.status) for one in answered for row in one.rows)
    assert rows == [
        ("a", 0.0, 1.0, "ok"),
        ("a", 2.0, 2.5, "failed"),
        ("b", 0.0, 1.0, "ok"),
        ("b", 1.0, 2.0, "failed"),
        ("b", 2.0, 2.5, "failed"),
    ]
    assert {row.n_segments for one in answered for row in one.rows} == {3}
    assert [one.is_last for one in answered][-1] and sum(one.is_last for one in answered) == 1


def interrupt_when(condition: Callable[[], bool], stop: StopSignal) -> threading.Thread:
    """Request the end of a run as a signal does, as soon as a condition holds."""

    def wait() -> None:
        for _ in range(2000):
            if condition():
                break
            time.sleep(0.02)
        stop._pending = KeyboardInterrupt()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_after_a_signal_the_running_batch_is_finished_and_nothing_else(
    model: LoadedModel, gate: Gate, tmp_path: Path
) -> None:
    questions = tuple(Question(f"q{i}", f"Is it {i}?") for i in range(500))
    clock, got, n_encoded = StageClock(), [], 0

    def files() -> Iterator[EncodedItem]:
        nonlocal n_encoded
        for i in range(100):
            n_encoded += 1
            yield encoded(i, questions)

    def signal_and_continue() -> bool:
        if gate.n_waiting:
            threading.Timer(0.5, gate.open).start()
        return bool(gate.n_waiting)

    thread = interrupt_when(signal_and_continue, clock.stop)
    with pytest.raises(KeyboardInterrupt), clock.stop.deferred():
        for one in answer_items(files(), model, RunOptions(tmp_path, batch_size=4), clock):
            got += one.rows
    thread.join()
    assert 1 <= len(got) <= 4, "the sequences of the batch"
    assert n_encoded < 20 and clock.cancelled.is_set()
    assert not [t for t in threading.enumerate() if t.name in WORK_THREADS]


def test_a_stuck_computation_is_abandoned(
    model: LoadedModel, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_stage, "GRACE_S", 0.5)
    clock = StageClock()
    thread = interrupt_when(lambda: gate.n_waiting > 0, clock.stop)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), clock.stop.deferred():
        list(answer_items((encoded(i) for i in range(9)), model, RunOptions(tmp_path), clock))
    thread.join()
    assert time.monotonic() - start < 50, "the LLM is stuck for a minute"
    assert [t for t in threading.enumerate() if t.name in WORK_THREADS]
    gate.open()
    for t in [t for t in threading.enumerate() if t.name in WORK_THREADS]:
        t.join(60)


def test_python_s_own_interrupt(model: LoadedModel, tmp_path: Path) -> None:
    """Without handlers of vidqa, Ctrl-C raises KeyboardInterrupt anywhere in the main thread."""
    answers = answer_items((encoded(i) for i in range(50)), model, RunOptions(tmp_path, batch_size=2), StageClock())
    next(answers)
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt())
    assert not [t for t in threading.enumerate() if t.name in WORK_THREADS]


def test_stopping_early_leaves_no_thread(model: LoadedModel, tmp_path: Path) -> None:
    works = answer_items((encoded(i) for i in range(50)), model, RunOptions(tmp_path, batch_size=2), StageClock())
    assert next(works).rows
    works.close()
    assert not [t for t in threading.enumerate() if t.name in WORK_THREADS]


def test_out_of_memory_halves_batches_and_fails_no_row(model: LoadedModel, tmp_path: Path) -> None:
    sizes: list[int] = []

    def full(_: Any, args: Any, kwargs: Any) -> None:
        if "input_ids" in kwargs:
            sizes.append(len(kwargs["input_ids"]))
            if sizes[-1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.llava.llm.register_forward_pre_hook(full, with_kwargs=True)
    answered = list(answer_items([encoded(i) for i in range(6)], model, RunOptions(tmp_path), StageClock()))
    hook.remove()
    assert {row.answer for one in answered for row in one.rows} == {"red"}
    assert max(sizes) > 3 >= sizes[-1]
