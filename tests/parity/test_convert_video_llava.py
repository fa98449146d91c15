"""The published forms of Video-LLaVA as users run them, compared with the reference's numbers.

Files with the original key names go through `vidqa models convert`; the bundle is loaded, a clip is encoded by its ONNX
graph, and the LLM answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_checks import video_llava, video_llava_hf
from golden_checks.fixture import Fixture
from golden_checks.language import compare_case
from onnxruntime import InferenceSession
from published_files import GOLDEN, write_hf, write_original
from torch import Tensor

from vidqa.cli.main import run
from vidqa.encoders.onnx_session import OnnxSession
from vidqa.model.bundle.bundle import Bundle, load_bundle
from vidqa.model.video_llava import VideoLlava, load_model

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """`convert(writer)`: the checkpoint that the writer makes, converted by the command."""

    def call(write: Callable[[Path], Path]) -> Bundle:
        folder = tmp_path_factory.mktemp("published")
        assert run(["models", "convert", str(write(folder / "checkpoint")), "--out", str(folder / "bundle"), "-q"]) == 0
        assert sorted(p.name for p in folder.iterdir()) == ["bundle", "checkpoint"], "nothing is left beside"
        return load_bundle(folder / "bundle")

    return call


def encoded(bundle: Bundle, kind: str, pixels: Tensor) -> Tensor:
    """float32 [T, 3, S, S] -> tokens float32 [T, P, D] as the bundle says they are taken."""
    spec: Any = getattr(bundle.spec.encoders, kind)
    # In float32: what the cache keeps is float16, which is coarser than the tolerance.
    session = InferenceSession(str(getattr(bundle, f"{kind}_graph")), providers=["CPUExecutionProvider"])
    tokens = torch.from_numpy(session.run(["tokens"], {"pixel_values": pixels[None].numpy()})[0][0])
    return tokens if spec.keep_cls else tokens[:, 1:]


def test_original(convert: Callable[..., Bundle]) -> None:
    bundle = convert(write_original)
    assert bundle.spec.compat and "temporal attention over 8 frames" in bundle.spec.compat.variant
    assert bundle.spec.encoders.image.preprocess.pad and not bundle.spec.encoders.video.preprocess.pad
    assert bundle.verify() == []
    fixture = Fixture.read(GOLDEN, "video_llava_forward")
    model, report = load_model(bundle, "cpu"), fixture.report()
    frames = {}
    for name in ("video", "image", "image2"):
        kind = name.rstrip("2")
        pixels = fixture.input(name)
        tokens = encoded(bundle, kind, pixels.transpose(0, 1) if kind == "video" else pixels[None])
        if fixture.has(f"{name}_tower_features"):
            want = fixture.expected(f"{name}_tower_features")
            report.close(f"{name} features", tokens, want[0] if kind == "video" else want)
        frames[name] = list(model.connector(tokens))
    for case, media in fixture.meta["media"].items():
        visual = list(chain.from_iterable(frames[name] for name in media["images_list"]))
        ids = fixture.tensors[f"in/{case}/input_ids"][0]
        check_case(report, fixture, case, model, [video_llava.row_of(fixture, ids, visual, 12)])
    assert report.ok, report.misses
    assert report.n_tokens == 12 * len(fixture.meta["media"]) and report.max_error < 1e-4


def test_port(convert: Callable[..., Bundle]) -> None:
    bundle = convert(lambda folder: write_hf(folder, "hub"))
    assert bundle.spec.compat and "without temporal attention" in bundle.spec.compat.variant
    assert bundle.spec.prompt.format == "hf" and bundle.spec.encoders.video.sampling.rule == "arange"
    assert bundle.spec.encoders.video.preprocess.mode == "hf" and bundle.spec.notice
    fixture = Fixture.read(GOLDEN, "video_llava_hf")
    model, report = load_model(bundle, "cpu"), fixture.report()
    visual = {}
    for name in ("video", "image", "image2"):
        kind = name.rstrip("2")
        pixels = fixture.input(name)
        tokens = encoded(bundle, kind, pixels[0] if kind == "video" else pixels)
        visual[name] = model.connector(tokens).flatten(0, 1)
    cases = [c for c, media in fixture.meta["cases"].items() if "video4" not in media["videos"]]
    assert len(cases) >= 7
    for case in cases:
        check_case(report, fixture, case, model, video_llava_hf.rows_of(fixture, case, visual))
    assert report.ok, report.misses
    assert report.max_error < 1e-4


def test_encoders_in_half_precision(tmp_path: Path) -> None:
    """For GPUs: others than those in float32 to the cache, near them in what they see."""
    checkpoint, made = write_original(tmp_path / "checkpoint"), {}
    for kind in ("float32", "float16"):
        out = tmp_path / kind
        assert run(["models", "convert", str(checkpoint), "--out", str(out), "--encoders", kind, "-q"]) == 0
        made[kind] = load_bundle(out)
    assert made["float16"].verify() == []
    assert made["float16"].encoder_id != made["float32"].encoder_id
    for name in ("image", "video"):
        sessions = [OnnxSession(getattr(bundle, f"{name}_graph"), "cpu") for bundle in made.values()]
        assert [session.bytes_per_weight for session in sessions] == [4, 2]
        size = (1, sessions[0].n_frames, 3, sessions[0].image_size, sessions[0].image_size)
        values = torch.randn(size, generator=torch.Generator().manual_seed(0)).numpy()
        exact, half = (torch.from_numpy(session.run(values)[0]).float() for session in sessions)
        assert 0 < float((half - exact).norm() / exact.norm()) < 0.02


@torch.no_grad()
def check_case(report: Any, fixture: Fixture, case: str, model: VideoLlava, rows: Any) -> None:
    compare_case(report, fixture, case, model, rows)


def test_a_key_too_few_and_one_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_original(tmp_path / "checkpoint")
    file = folder / "pytorch_model-00001-of-00002.bin"
    weights = torch.load(file, weights_only=True)
    lost = next(k for k in weights if k.endswith("self_attn.q_proj.weight"))
    del weights[lost]
    weights["model.something.weight"] = torch.zeros(2)
    torch.save(weights, file)
    assert run(["models", "convert", str(folder), "--out", str(tmp_path / "bundle")]) == 1
    said = capsys.readouterr().err
    assert f"{lost.split('_tower.')[-1]}: missing" in said and "model.something.weight: unexpected key" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"], "nothing was written"
    assert json.loads((folder / "pytorch_model.bin.index.json").read_text())
