"""Files that can be read, but have problems: counted, named, and failed with `--strict`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.errors import NOTE_KINDS
from vidqa.pipeline.run.loaded_model import load_model
from vidqa.records import MediaItem
from vidqa.tables.formats import read_table

TRUNCATED, JUMP = "truncated: 5.2 of 20.0 s readable", "clock jumps by 26 h"

pytestmark = pytest.mark.slow


@pytest.fixture
def noted(vidqa: Callable[..., object], environment: dict[str, str], tiny_bundle: Path) -> Callable[..., None]:
    """`noted(path, "truncated: ...")`: encode a file and add notes to its facts, as a decoder would."""

    def add(path: Path, *notes: str) -> None:
        assert vidqa("encode", path, "-q").code == 0  # type: ignore[attr-defined]
        cache = Path(environment["VIDQA_CACHE"])
        index, store, state = MediaIndex(cache), FeatureStore(cache), path.stat()
        media_id = index.media_id(MediaItem(str(path), str(path.parent), path.name, state.st_size, state.st_mtime_ns))
        key = CacheKey(media_id, "whole", load_model(str(tiny_bundle), "cpu").bundle.encoder_id)
        entry = store.get(key)
        assert entry is not None
        facts = replace(entry.facts, notes=notes)
        store.put(key, replace(entry, facts=facts))
        index.store_facts(media_id, facts)
        index.close()

    return add


def rows(table: Path) -> list[tuple[str, str, str | None, str | None]]:
    """Return path, status, error kind and note of each row, sorted."""
    return sorted(read_table(table).select("path", "status", "error_kind", "media_note").iter_rows(), key=str)


def test_files_with_problems_are_counted_and_named(vidqa, clips, noted, tmp_path):
    noted(clips / "a.mp4", TRUNCATED, JUMP)
    noted(clips / "b.mp4", JUMP)
    table, log, metrics = tmp_path / "t.parquet", tmp_path / "run.log", tmp_path / "run.prom"
    done = vidqa("describe", clips, "--out", table, "--json", "--log", log, "--metrics", metrics)
    assert done.code == 0
    assert "2 files with problems: 2 clock, 1 truncated in a.mp4, b.mp4; see -v; --strict" in done.err
    summary = json.loads(done.out)
    assert (summary["noted_files"], summary["notes"], summary["existing_noted"]) == (2, {"clock": 2, "truncated": 1}, 0)
    values = [line.rpartition(" ")[::2] for line in metrics.read_text().splitlines() if "vidqa_noted_files{" in line]
    assert {label.split('kind="')[1].split('"')[0]: value for label, value in values} == {
        kind: {"truncated": "1", "clock": "2"}.get(kind, "0") for kind in NOTE_KINDS
    }
    events = [line.split("\t") for line in log.read_text().splitlines()]
    assert [event[5] for event in events if event[1] == "cache" and event[4].endswith("a.mp4")] == [
        f"{TRUNCATED}; {JUMP}"
    ]
    assert rows(table)[0] == ("a.mp4", "ok", None, f"{TRUNCATED}; {JUMP}")
    done = vidqa("describe", clips, "--out", table, "--json")
    summary = json.loads(done.out)
    assert done.code == 0 and (summary["noted_files"], summary["existing_noted"]) == (0, 2)
    assert "existing rows: 3 ok (2 about files with problems)" in done.err
    done = vidqa("describe", clips, "--out", tmp_path / "u.csv", "-v")
    assert f"problem: a.mp4: {TRUNCATED}; {JUMP}\n" in done.err and "2 files with problems" in done.err


def test_strict_can_be_switched_on_and_off(vidqa, clips, noted, tmp_path):
    """The table is the same as if all runs had had the option of the last one."""
    noted(clips / "a.mp4", TRUNCATED)
    table = tmp_path / "t.parquet"
    good = [("b.mp4", "ok", None, None), (str(Path("deeper", "c.mp4")), "ok", None, None)]
    assert vidqa("describe", clips, "--out", table).code == 0
    before = read_table(table)
    assert rows(table) == [("a.mp4", "ok", None, TRUNCATED), *good]
    for _ in range(2):
        done = vidqa("describe", clips, "--out", table, "--strict", "--json")
        assert done.code == 3 and rows(table) == [("a.mp4", "failed", "partial", TRUNCATED), *good]
    summary = json.loads(done.out)
    assert summary["rows"] == {} and summary["existing"] == {"failed": 1, "ok": 2}, "it is not tried again by itself"
    failed = read_table(table).row(by_predicate=pl.col("status") == "failed", named=True)
    assert failed["error"] == TRUNCATED and failed["answer"] is None and failed["width"] == 32
    done = vidqa("describe", clips, "--out", table, "--json")
    assert done.code == 0 and json.loads(done.out)["rows"] == {"ok": 1}, "without --strict it is asked again"
    same = ["path", "status", "answer", "error_kind", "media_note"]
    assert read_table(table).select(same).sort("path").equals(before.select(same).sort("path"))
    assert not Path(f"{table}.failures.json").exists()


def test_strict_with_retries_quarantine_and_duplicates(vidqa, clips, noted, tmp_path):
    noted(clips / "a.mp4", TRUNCATED)
    (clips / "copy.mp4").write_bytes((clips / "a.mp4").read_bytes())
    table = tmp_path / "t.csv"
    for _ in range(3):
        done = vidqa("describe", clips, "--out", table, "--strict", "--retry", "failed", "--json")
        assert done.code == 3 and json.loads(done.out)["rows"]["failed"] == 2
    done = vidqa("describe", clips, "--out", table, "--strict", "--retry", "failed", "--json")
    assert done.code == 3 and json.loads(done.out)["rows"] == {}
    assert {Path(path).name for path in json.loads(done.out)["quarantined"]} == {"a.mp4", "copy.mp4"}
    assert vidqa("describe", clips, "--out", table, "--json").code == 0, "quarantine is about --strict runs only"
    assert [row[:2] for row in rows(table)][:3] == [("a.mp4", "ok"), ("b.mp4", "ok"), ("copy.mp4", "ok")]


def test_other_failures_of_a_file_with_notes_stay_failed(vidqa, clips, noted, tmp_path):
    noted(clips / "a.mp4", TRUNCATED)
    table, question = tmp_path / "t.parquet", tmp_path / "long.toml"
    question.write_text(f'[[question]]\nid = "long"\ntext = "{"What is this? " * 200}"\n')
    for _ in range(2):
        done = vidqa("describe", clips / "a.mp4", "--out", table, "--questions", question, "--json")
        assert done.code == 3 and rows(table) == [("a.mp4", "failed", "prompt_too_long", TRUNCATED)]
    assert json.loads(done.out)["rows"] == {}


def test_strict_encode(vidqa, clips, noted):
    noted(clips / "a.mp4", TRUNCATED)
    done = vidqa("encode", clips, "--strict", "--json")
    summary = json.loads(done.out)
    assert done.code == 3 and f"failed: a.mp4: partial: {TRUNCATED}" in done.err
    assert summary["errors"] == {"partial": 1} and summary["clips"] == {"done": 3, "cached": 0, "failed": 1}
    done = vidqa("encode", clips, "--json")
    assert done.code == 0 and json.loads(done.out)["notes"] == {"truncated": 1}
    assert json.loads(done.out)["clips"] == {"done": 0, "cached": 3, "failed": 0}


def test_strict_is_a_setting(vidqa, clips, noted, tmp_path, monkeypatch):
    noted(clips / "a.mp4", TRUNCATED)
    monkeypatch.setenv("VIDQA_STRICT", "1")
    assert vidqa("encode", clips / "a.mp4").code == 3
    monkeypatch.delenv("VIDQA_STRICT")
    (tmp_path / "vidqa.toml").write_text("strict = true\n")
    assert vidqa("describe", clips / "a.mp4", "--out", tmp_path / "t.csv").code == 3


def test_ask_prints_the_notes(vidqa, clips, noted):
    noted(clips / "a.mp4", TRUNCATED)
    done = vidqa("ask", clips / "a.mp4", "What?")
    assert done.code == 0 and done.out == "red\n" and f"problem: a.mp4: {TRUNCATED}" in done.err
    done = vidqa("ask", clips, "What?", "--json")
    assert [json.loads(line)["media_note"] for line in done.out.splitlines()] == [TRUNCATED, None, None]
    done = vidqa("ask", clips / "a.mp4", "What?", "--strict")
    assert done.code == 3 and f"a.mp4: partial: {TRUNCATED}" in done.err
    done = vidqa("ask", clips / "b.mp4", "What?", "--with", clips / "a.mp4")
    assert done.code == 0 and f"problem: a.mp4: {TRUNCATED}" in done.err


def test_rows_of_a_half_finished_file_that_was_completed(vidqa, clips, noted, make_clip, tmp_path):
    noted(clips / "a.mp4", TRUNCATED)
    table, named = tmp_path / "t.parquet", ("a.mp4", "ok", None, TRUNCATED)
    assert vidqa("describe", clips, "--out", table).code == 0
    make_clip(clips / "a.mp4", seed=99)
    make_clip(clips / "b.mp4", seed=98)
    assert vidqa("describe", clips, "--out", table).code == 0
    assert [row for row in rows(table) if row[0] in ("a.mp4", "b.mp4")] == [
        named, ("a.mp4", "ok", None, None), ("b.mp4", "ok", None, None), ("b.mp4", "ok", None, None),
    ]  # fmt: skip
    done = vidqa("describe", clips, "--out", table, "--prune-missing", "--dry-run", "--json")
    assert json.loads(done.out)["files_pruned"] == 1
    done = vidqa("describe", clips, "--out", table, "--prune-missing", "--json")
    assert done.code == 0 and json.loads(done.out)["pruned"] == 1
    assert named not in rows(table) and len(read_table(table)) == 4, "rows of earlier content without problems stay"
    assert os.path.exists(clips / "a.mp4")
