"""Search by text: matching files come first, and each file is decoded once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vidqa
from vidqa.errors import ItemError, UsageError
from vidqa.model.bundle.bundle import Bundle
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.prefetch import Prefetcher
from vidqa.pipeline.run.run_options import RunOptions

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "clips"


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos and an image: a growing red cross, a large still orange circle, a large orange ring."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("clip06.mp4", "clip07.mp4", "image11.png"):
        shutil.copy(EXAMPLES / name, folder)
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, demo: LoadedModel, folder: Path) -> RunOptions:
    """A cache with all of them, unsegmented and in windows of one second."""
    options = RunOptions(cache_dir=tmp_path_factory.mktemp("cache"))
    first = vidqa.search("a red cross", str(folder), model=demo, options=options)
    assert (first.n_files, first.n_encoded, first.failed) == (3, 3, ())
    vidqa.search("a red cross", str(folder), model=demo, options=replace(options, segment_s=1.0))
    return options


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(*_: object) -> None:
        raise AssertionError("a cached clip must not be decoded")

    monkeypatch.setattr(Prefetcher, "__enter__", feed)


@pytest.mark.slow
@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(
    ("text", "name"),
    [("a red cross", "clip06.mp4"), ("A circle stays still.", "clip07.mp4"), ("a large ring", "image11.png")],
)
def test_the_matching_file_is_first(text: str, name: str, demo: LoadedModel, options: RunOptions, folder: Path) -> None:
    found = vidqa.search(text, str(folder), model=demo, options=options)
    assert [hit.rank for hit in found.hits] == [1, 2, 3]
    assert found.hits[0].path == name and found.hits[0].text == text
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= -1 and 0.2 < scores[0] <= 1
    assert found.n_encoded == 0


@pytest.mark.usefixtures("no_decoding")
def test_scores_are_cosines_of_the_cached_embeddings(demo: LoadedModel, options: RunOptions, folder: Path) -> None:
    from vidqa.cache.feature_store import FeatureStore
    from vidqa.cache.key import CacheKey

    store = FeatureStore(options.cache_dir)
    text = demo.text_encoder.encode(["a red cross"])[0]
    for hit in vidqa.search("a red cross", str(folder), model=demo, options=options).hits:
        entry = store.get(CacheKey(hit.media_id, "whole", hit.encoder_id))
        assert entry is not None
        seen = entry.features.embedding
        assert hit.score == pytest.approx(text @ seen / np.linalg.norm(text) / np.linalg.norm(seen), abs=1e-6)
        assert (hit.start_s, hit.end_s, hit.kind) == (entry.start_s, entry.end_s, entry.features.kind)


@pytest.mark.usefixtures("no_decoding")
def test_segments_and_top(demo: LoadedModel, options: RunOptions, folder: Path) -> None:
    found = vidqa.search("a red cross", str(folder), model=demo, options=replace(options, segment_s=1.0))
    assert len(found.hits) > 5 and {hit.path for hit in found.hits[:3]} == {"clip06.mp4"}
    assert len({(hit.path, hit.start_s) for hit in found.hits}) == len(found.hits)
    top = vidqa.search("a red cross", str(folder), top=2, model=demo, options=replace(options, segment_s=1.0))
    assert [(h.rank, h.path, h.start_s) for h in top.hits] == [(h.rank, h.path, h.start_s) for h in found.hits[:2]]


def test_only_files_that_are_not_cached_are_encoded(
    demo: LoadedModel, options: RunOptions, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "more")
    shutil.copy(EXAMPLES / "clip10.mp4", tmp_path / "more" / "new.mp4")
    shutil.copy(folder / "clip06.mp4", tmp_path / "more" / "copy.mp4")
    (tmp_path / "more" / "broken.mp4").write_bytes(b"no video")
    found = vidqa.search("a red cross", str(tmp_path / "more"), model=demo, options=options)
    assert {hit.path for hit in found.hits[:2]} == {"clip06.mp4", "copy.mp4"}
    assert [hit.path for hit in found.hits[:2]] == ["clip06.mp4", "copy.mp4"], "equal scores in the order of paths"
    assert len(found.hits) == 5
    assert [(path, error.kind) for path, error in found.failed] == [("broken.mp4", "not_media")]
    assert found.n_encoded == 2, "the new and the broken one"


def test_damaged_entry_is_encoded_again(demo: LoadedModel, folder: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_dir=tmp_path / "cache")
    before = vidqa.search("a red cross", str(folder / "clip06.mp4"), model=demo, options=options)
    (entry,) = (tmp_path / "cache").rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:300])
    again = vidqa.search("a red cross", str(folder / "clip06.mp4"), model=demo, options=options)
    assert again.n_encoded == 1 and again.hits[0].score == before.hits[0].score


def test_invalid_searches(demo: LoadedModel, options: RunOptions, folder: Path, tmp_path: Path) -> None:
    spec = replace(demo.bundle.spec, encoders=replace(demo.bundle.spec.encoders, text=None))
    blind = LoadedModel(Bundle(demo.bundle.folder, spec), "cpu")
    with pytest.raises(UsageError, match="no text tower"):
        vidqa.search("a dog", str(folder), model=blind, options=options)
    with pytest.raises(UsageError, match="empty"):
        vidqa.search(" ", str(folder), model=demo, options=options)
    with pytest.raises(UsageError, match=r"tokens, \d+ more than"):
        vidqa.search("a red cross " * 100, str(folder), model=demo, options=options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(vidqa.VidqaError, match="no media found"):
        vidqa.search("a dog", str(tmp_path / "empty"), model=demo, options=options)


def test_only_failures(demo: LoadedModel, options: RunOptions, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    found = vidqa.search("a dog", str(tmp_path / "broken.mp4"), model=demo, options=options)
    assert found.hits == () and isinstance(found.failed[0][1], ItemError)
