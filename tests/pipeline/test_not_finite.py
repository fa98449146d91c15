"""An encoder that returns NaN for some files: they fail, all others are answered, cached and ranked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import vidqa
from vidqa.cache import entry, maintenance
from vidqa.model.bundle.bundle import load_bundle, save_bundle
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.search import _normalized
from vidqa.records import Features

ROOT = Path(__file__).resolve().parents[2]


def write_logarithm_encoder(path: Path) -> None:
    """Write an encoder for images of 16 x 16 pixels whose features are the logarithm of the mean: NaN for dark ones."""
    shapes = {"pixel_values": ["B", 1, 3, 16, 16], "tokens": ["B", 1, 5, 16], "embedding": ["B", 8]}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()}
    sizes = {
        "all": np.array([1, 2, 3, 4]),
        "token_sizes": np.array([1, 1, 5, 16]),
        "column": np.array([0, 1]),
        "embedding_sizes": np.array([1, 8]),
    }
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "all"], ["mean"]),
        helper.make_node("Log", ["mean"], ["log"]),
        helper.make_node("Squeeze", ["log", "squeezed"], ["flat"]),
        helper.make_node("Expand", ["flat", "token_sizes"], ["tokens"]),
        helper.make_node("Reshape", ["log", "column"], ["one"]),
        helper.make_node("Expand", ["one", "embedding_sizes"], ["embedding"]),
    ]
    sizes["squeezed"] = np.array([4])
    constants = [onnx.numpy_helper.from_array(v.astype(np.int64), n) for n, v in sizes.items()]
    graph = helper.make_graph(
        nodes, "log", [values["pixel_values"]], [values["tokens"], values["embedding"]], constants
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    def fill(part: Path) -> None:
        shutil.copytree(tiny_bundle, part, dirs_exist_ok=True)
        write_logarithm_encoder(part / "encoders" / "image.onnx")

    folder = tmp_path_factory.mktemp("model") / "log"
    save_bundle(folder, load_bundle(str(tiny_bundle)).spec, fill)
    return load_model(str(folder), "cpu")


def test_files_whose_features_are_not_finite_fail_alone(model: LoadedModel, tmp_path: Path) -> None:
    for i, gray in enumerate((250, 10, 200, 20, 230)):  # pixel values are normalized to -1 to 1
        Image.new("L", (16, 16), gray).save(tmp_path / f"{i}.png")
    options = RunOptions(cache_dir=tmp_path / "cache")
    done = vidqa.describe(tmp_path, tmp_path / "t.jsonl", model=model, options=options)
    assert done.rows == {"ok": 3, "failed": 2}
    rows = vidqa.read_table(tmp_path / "t.jsonl").sort("path").to_dicts()
    assert [row["error_kind"] for row in rows] == [None, "not_finite", None, "not_finite", None]
    assert "the image encoder returned NaN or infinity" in rows[1]["error"]
    report = maintenance.verify(tmp_path / "cache")
    assert (report.n_entries, report.damaged) == (3, ())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_search_encodes_an_entry_that_is_not_finite_again(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, options = load_model("demo", "cpu"), RunOptions(cache_dir=tmp_path / "cache")
    image = ROOT / "examples" / "clips" / "image11.png"
    before = vidqa.search("a ring", image, model=demo, options=options)
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    key, segment = entry.unpack(path.read_bytes())
    embedding = segment.features.embedding.copy()
    embedding[0] = value
    with monkeypatch.context() as patch:  # as earlier versions wrote it
        patch.setattr(Features, "is_finite", True)
        path.write_bytes(entry.pack(key, replace(segment, features=replace(segment.features, embedding=embedding))))
    after = vidqa.search("a ring", image, model=demo, options=options)
    assert after.n_encoded == 1 and [h.score for h in after.hits] == [h.score for h in before.hits]
    assert maintenance.verify(tmp_path / "cache").damaged == ()


def test_scores_of_very_large_and_very_small_embeddings() -> None:
    rows = np.array([[3e38, 3e38], [1e-38, 1e-38], [0.0, 0.0], [-1.0, 0.0]], np.float32)
    scores = _normalized(rows) @ np.array([1.0, 0.0], np.float32)
    assert scores.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0.0, -1.0])
