"""`vidqa search`: hits on stdout or in a file; failed files are reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from vidqa.model.bundle.bundle import BUNDLE_FILE, load_bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "clips"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The demo model, which has a text tower, and one cache for all tests here."""
    values = {"VIDQA_MODEL": "demo", "VIDQA_CACHE": str(cache)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A growing red cross, a large orange circle, and a small blue ring that moves down."""
    (tmp_path / "media").mkdir()
    for name in ("clip02.mp4", "clip06.mp4", "clip07.mp4"):
        shutil.copy(EXAMPLES / name, tmp_path / "media")
    return tmp_path / "media"


def test_table_on_stdout(vidqa, folder):
    done = vidqa("search", "a red cross", folder)
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert lines[0][2] == "clip06.mp4" and float(lines[0][1]) > float(lines[1][1])
    assert vidqa("search", "a red cross", folder, "--top", 1).out.split() == lines[0]


@pytest.mark.slow
def test_segments_have_times(vidqa, folder):
    lines = vidqa("search", "a red cross", folder, "--segment", 1).out.splitlines()
    assert len(lines) > 4
    assert lines[0].split()[2] in ("0.0-1.0", "1.0-2.0", "2.0-3.0") and lines[0].endswith("clip06.mp4")


def test_json_lines(vidqa, folder):
    hits = [json.loads(line) for line in vidqa("search", "a blue ring", folder, "--json").out.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert (hits[0]["path"], hits[0]["root"], hits[0]["text"]) == ("clip02.mp4", str(folder), "a blue ring")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "arrow"])
def test_table_in_a_file(suffix, vidqa, folder, tmp_path):
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson, "arrow": pl.read_ipc}[suffix]
    out = tmp_path / f"t.{suffix}"
    for text, first in (("a blue ring", "clip02.mp4"), ("a red cross", "clip06.mp4")):  # the second replaces the first
        done = vidqa("search", text, folder, "--out", out)
        assert (done.code, done.out) == (0, ""), done.err
        frame = read(out.read_bytes())
        assert frame["rank"].to_list() == [1, 2, 3] and frame["path"][0] == first and set(frame["text"]) == {text}
    assert vidqa("search", "a red cross", folder, "--out", out, "--top", 2).code == 0
    assert len(read(out.read_bytes())) == 2


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.jsonl", "t.arrow", "t.xls", "no/t.csv"])
def test_a_file_that_is_not_a_table_of_hits_is_kept(name, vidqa, folder, tmp_path):
    if "/" not in name:
        (tmp_path / name).write_text('{"a": 1}\n')
    done = vidqa("search", "a red cross", folder, "--out", tmp_path / name)
    assert done.code == 2 and name in done.err, done.err
    assert "/" in name or (tmp_path / name).read_text() == '{"a": 1}\n'


def test_failed_files_are_reported_with_exit_3(vidqa, folder):
    (folder / "broken.mp4").write_text("not a video")
    done = vidqa("search", "a red cross", folder)
    assert done.code == 3
    assert len(done.out.splitlines()) == 3 and "broken.mp4: not_media" in done.err


def test_invalid_searches(vidqa, folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    done = vidqa("search", "a dog", tmp_path / "empty")
    assert done.code == 1 and "no media found" in done.err
    done = vidqa("search", "a red cross " * 90, folder)
    assert done.code == 2 and "more than this model's text tower accepts" in done.err
    done = vidqa("search", " ", folder)
    assert done.code == 2 and "empty" in done.err
    assert vidqa("search", "a dog").code == 2


def test_model_without_a_text_tower(vidqa, folder, tmp_path):
    model = Path(shutil.copytree(load_bundle("demo").folder, tmp_path / "model"))
    words = json.loads((model / BUNDLE_FILE).read_text())
    words["encoders"]["text"] = None
    (model / BUNDLE_FILE).write_text(json.dumps(words))
    done = vidqa("search", "a dog", folder, "--model", model)
    assert done.code == 2
    assert "no text tower" in done.err and "--model demo" in done.err
