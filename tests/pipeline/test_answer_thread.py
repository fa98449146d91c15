"""The LLM beside the other stages: every file comes back whole, memory is bounded, faults and stops end it."""

from __future__ import annotations

import json
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
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.answer_stage import _AHEAD, answer_works
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


def test_every_file_comes_back_whole(model: LoadedModel, tmp_path: Path) -> None:
    broken = EncodedItem(encoded(100).work, error=ItemError("unreadable", "broken"))
    files = [encoded(0), broken, *(encoded(i) for i in range(1, 9)), encoded(101, ()), encoded(102, n_segments=1)]
    clock = StageClock()
    answered = list(answer_works(files, model, RunOptions(tmp_path), clock))
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


def test_files_are_taken_no_further_than_the_queue(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the LLM is busy the stages before it wait: what is in memory does not grow with the archive."""
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
        target=lambda: done.extend(answer_works(files(), model, RunOptions(tmp_path, batch_size=4), StageClock()))
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


def test_a_fault_of_the_thread_is_raised_where_the_run_is(model: LoadedModel, tmp_path: Path) -> None:
    reserved = encoded(0, (Question("x", "what is \0 this?"),))
    with pytest.raises(UsageError, match="reserves"):
        list(answer_works([reserved, *(encoded(i) for i in range(1, 30))], model, RunOptions(tmp_path), StageClock()))


def test_what_was_taken_is_finished_before_a_stop(model: LoadedModel, tmp_path: Path) -> None:
    def files() -> Iterator[EncodedItem]:
        yield from (encoded(i) for i in range(5))
        raise KeyboardInterrupt

    got = []
    with pytest.raises(KeyboardInterrupt):
        for one in answer_works(files(), model, RunOptions(tmp_path), StageClock()):
            got.append(one.work.item.rel)
    assert sorted(got) == [f"{i}.mp4" for i in range(5)]


def test_stopping_early_leaves_no_thread(model: LoadedModel, tmp_path: Path) -> None:
    works = answer_works((encoded(i) for i in range(50)), model, RunOptions(tmp_path, batch_size=2), StageClock())
    assert next(works).rows
    works.close()
    assert not [t for t in threading.enumerate() if t.name == "vidqa-answer"]


def test_out_of_memory_makes_smaller_batches_and_no_failed_run(model: LoadedModel, tmp_path: Path) -> None:
    sizes: list[int] = []

    def full(_: Any, args: Any, kwargs: Any) -> None:
        if "input_ids" in kwargs:
            sizes.append(len(kwargs["input_ids"]))
            if sizes[-1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.llava.llm.register_forward_pre_hook(full, with_kwargs=True)
    answered = list(answer_works([encoded(i) for i in range(6)], model, RunOptions(tmp_path), StageClock()))
    hook.remove()
    assert {row.answer for one in answered for row in one.rows} == {"red"}
    assert max(sizes) > 3 >= sizes[-1]


class TestMeter:
    def test_rates_and_limits(self) -> None:
        meter = ThroughputMeter()
        meter.encode.add(20, 2.0)
        meter.step.add(300, 6.0)
        meter.encode_operations, meter.step_bytes, meter.n_answers = 1e12, 6e10, 12
        meter.hold_against(1e12, 2e10)
        told = meter.as_dict(wall_s=8.0)
        assert told["answers_per_s"] == 1.5
        assert told["stages"]["encode"] == {  # type: ignore[index]
            "unit": "clips", "n": 20, "busy_s": 2.0, "per_s": 10.0, "limit_per_s": 20.0, "share_of_limit": 0.5,
        }  # fmt: skip
        assert told["stages"]["decode"]["per_s"] is None  # type: ignore[index]
        assert told["roofline_s"] == 4.0
        text = meter.as_text(8.0)
        assert "reached 50%" in text
        assert "1.50 a second over all" in text
        assert "limit" not in json.dumps(list(told)), "a run has one verdict, and it is not the meter's"

    def test_nothing_done_says_nothing(self) -> None:
        assert ThroughputMeter().as_text(1.0) == ""
        assert ThroughputMeter().as_dict(0.0)["answers_per_s"] is None
