"""The LLM in parallel to the other stages: complete results, bounded memory, and an end after errors and signals."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidqa.errors import ItemError, UsageError
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.run.answer_stage import _AHEAD, answer_items
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import EncodedItem, EncodedSegment, Features, MediaFacts, MediaItem, Question, WorkItem

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
    assert sorted(a.work.item.rel for a in answered) == sorted(f.work.item.rel for f in files)
    for one in answered:
        n_segments = {"102.mp4": 1, "100.mp4": 1}.get(one.work.item.rel, 2)
        if one.work.item.rel == "101.mp4":
            assert one.rows == ()
            continue
        assert [(r.question_id, r.start_s) for r in one.rows] == [
            (q, None if one.work.item.rel == "100.mp4" else float(i)) for q in "ab" for i in range(n_segments)
        ]
        assert {r.answer for r in one.rows} == {None if one.work.item.rel == "100.mp4" else "red"}
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
    assert len(done) == 60


def test_an_error_of_the_thread_is_raised_in_the_main_thread(model: LoadedModel, tmp_path: Path) -> None:
    question = Question("x", "what is this?")
    object.__setattr__(question, "text", "what is \0 this?")
    reserved = encoded(0, (question,))
    with pytest.raises(UsageError, match="NUL character"):
        list(answer_items([reserved, *(encoded(i) for i in range(1, 30))], model, RunOptions(tmp_path), StageClock()))


def test_submitted_files_are_finished_before_an_interrupt(model: LoadedModel, tmp_path: Path) -> None:
    def files() -> Iterator[EncodedItem]:
        yield from (encoded(i) for i in range(5))
        raise KeyboardInterrupt

    got = []
    with pytest.raises(KeyboardInterrupt):
        for one in answer_items(files(), model, RunOptions(tmp_path), StageClock()):
            got.append(one.work.item.rel)
    assert sorted(got) == [f"{i}.mp4" for i in range(5)]


def test_stopping_early_leaves_no_thread(model: LoadedModel, tmp_path: Path) -> None:
    works = answer_items((encoded(i) for i in range(50)), model, RunOptions(tmp_path, batch_size=2), StageClock())
    assert next(works).rows
    works.close()
    assert not [t for t in threading.enumerate() if t.name == "vidqa-answer"]


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
