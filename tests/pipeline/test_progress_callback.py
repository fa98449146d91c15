"""`progress=` of the Python API: what the callback receives, and what its errors do."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import vidqa
from vidqa.pipeline.monitor import progress_display


class CancelledByUserError(Exception):
    pass


@pytest.fixture
def how(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(progress_display, "CALL_INTERVAL_S", 0.0)
    return {"model": vidqa.load_model(str(tiny_bundle)), "options": vidqa.RunOptions(tmp_path / "cache", n_workers=1)}


def test_every_command_reports_its_phases(how, clips, tmp_path):
    (clips / "broken.mp4").write_bytes((clips / "a.mp4").read_bytes()[:600])
    seen: list[vidqa.Progress] = []
    threads = set()

    def progress(one: vidqa.Progress) -> None:
        seen.append(one)
        threads.add(threading.get_ident())

    vidqa.describe(clips, tmp_path / "t.csv", progress=progress, **how)
    assert list(dict.fromkeys(one.phase for one in seen)) == ["scan", "answer"]
    assert [(one.done, one.total) for one in seen if one.phase == "scan"] == [(0, None), (4, None), (4, None)]
    answers = [one for one in seen if one.phase == "answer"]
    assert [one.done for one in answers] == sorted(one.done for one in answers)
    assert (answers[0].done, answers[-1].done, answers[-1].total, answers[-1].failed) == (0, 4, 4, 1)
    assert answers[-1].rate > 0 and answers[-1].seconds_left == 0
    calls = {
        "encode": lambda: vidqa.encode(clips, progress=progress, **how),
        "answer": lambda: vidqa.ask(clips, "Why?", progress=progress, **how),
        "search": lambda: vidqa.search("red", clips, progress=progress, **how | {"model": "demo"}),
    }
    for phase, call in calls.items():
        seen.clear()
        call()
        assert {one.phase for one in seen} == {"scan", phase}
        assert (seen[-1].done, seen[-1].total) == (4, 4)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("phase", ["scan", "answer"])
def test_an_error_of_the_callback_stops_the_run_and_keeps_its_rows(phase, how, clips, tmp_path):
    def cancel(progress: vidqa.Progress) -> None:
        if progress.phase == phase and progress.done >= 1:
            raise CancelledByUserError

    table = tmp_path / "t.csv"
    with pytest.raises(CancelledByUserError):
        vidqa.describe(clips, table, progress=cancel, **how)
    n_rows = len(vidqa.read_table(table)) if table.exists() else 0
    assert n_rows >= (phase == "answer")
    again = vidqa.describe(clips, table, **how)  # neither locked nor damaged
    assert (again.rows["ok"], again.existing["ok"]) == (3 - n_rows, n_rows)
    assert len(vidqa.read_table(table)) == 3


def test_ctrl_c_in_the_callback(how, clips, tmp_path):
    def interrupt(progress: vidqa.Progress) -> None:
        if progress.phase == "answer" and progress.done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vidqa.describe(clips, tmp_path / "t.csv", progress=interrupt, **how)
    assert len(vidqa.read_table(tmp_path / "t.csv")) >= 1


def test_a_wrong_callback_is_refused_before_any_work(how, clips, tmp_path):
    with pytest.raises(TypeError, match="progress must be a function or None, not str"):
        vidqa.describe(clips, tmp_path / "t.csv", progress="bar", **how)
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.slow
def test_threads_have_their_own_callbacks(how, clips, tmp_path):
    """Each callback sees its own run only, in its own thread; one table has one writer."""
    seen: dict[int, set[int]] = {}

    def run(number: int) -> int:
        seen[number] = set()
        totals = []

        def progress(one: vidqa.Progress) -> None:
            seen[number].add(threading.get_ident())
            totals.append(one.total)

        files = sorted(clips.rglob("*.mp4"))[: number + 1]
        vidqa.describe(files, tmp_path / f"{number}.csv", progress=progress, **how)
        assert set(totals) == {None, number + 1}
        return threading.get_ident()

    with ThreadPoolExecutor(3) as pool:
        threads = list(pool.map(run, range(3)))
    assert [seen[number] for number in range(3)] == [{thread} for thread in threads]


def test_a_second_writer_of_a_table_is_refused_in_a_thread_too(how, clips, tmp_path):
    errors = []

    def second() -> None:
        try:
            vidqa.describe(clips, tmp_path / "t.csv", **how)
        except vidqa.LockedError as error:
            errors.append(error)

    def progress(one: vidqa.Progress) -> None:
        if one.phase == "answer" and not errors:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join(60)
            assert errors

    assert vidqa.describe(clips, tmp_path / "t.csv", progress=progress, **how).rows["ok"] == 3


@pytest.mark.slow
def test_training(how, tiny_bundle, clips, tmp_path):
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    records = [{"id": str(n), "video": name, "conversations": turns} for n, name in enumerate(("a.mp4", "b.mp4"))]
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "recipe.toml").write_text(
        f'[model]\nbase = "{tiny_bundle}"\n[[data]]\nfile = "data.json"\nmedia = "clips"\n'
        '[[stage]]\nkind = "connector"\nbatch_size = 2\nper_device_batch_size = 2\nlearning_rate = 1e-3\nsteps = 2\n'
    )
    recipe, seen = tmp_path / "recipe.toml", []
    (checked,) = vidqa.check_data(recipe, tmp_path / "out", options=how["options"])
    assert repr(checked) == "<StageCheck 1-connector: 2 records, 0 rejected, passes>"
    trained = vidqa.train(recipe, tmp_path / "out", options=how["options"], progress=seen.append)
    assert trained.n_steps == 2 and vidqa.ask(clips, "What?", model=trained.out, options=how["options"])
    assert list(dict.fromkeys((one.phase, one.unit) for one in seen)) == [
        ("read", "record"), ("encode", "file"), ("train", "step")
    ]  # fmt: skip
    assert (seen[-1].done, seen[-1].total) == (2, 2)
