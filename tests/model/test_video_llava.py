"""Connector, visual tokens and loading a whole model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vidqa.errors import BundleError, DeviceError
from vidqa.model.bundle.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava, load_model, load_strictly, save_parts, torch_device
from vidqa.model.visual_tokens import fill_slots
from vidqa.records import Features, Prompt


class TestConnector:
    def test_keys_and_shapes(self) -> None:
        shapes = {k: tuple(v.shape) for k, v in build_connector("mlp2x_gelu", 3, 5).state_dict().items()}
        assert shapes == {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (5, 5), "2.bias": (5,)}
        shapes = {k: tuple(v.shape) for k, v in build_connector("linear", 3, 5).state_dict().items()}
        assert shapes == {"weight": (5, 3), "bias": (5,)}

    def test_exact_gelu(self) -> None:
        connector = build_connector("mlp2x_gelu", 3, 5)
        x = torch.randn(4, 7, 3)
        w = connector.state_dict()
        inner = F.gelu(x @ w["0.weight"].T + w["0.bias"], approximate="none")
        torch.testing.assert_close(connector(x), inner @ w["2.weight"].T + w["2.bias"])

    def test_wrong(self) -> None:
        with pytest.raises(ValueError, match="mlp3x_gelu"):
            build_connector("mlp3x_gelu", 3, 5)
        with pytest.raises(ValueError, match="at least 1"):
            build_connector("linear", 0, 5)


class TestFillSlots:
    def test_in_order(self) -> None:
        embeds = torch.zeros(2, 3, 2)
        slots = torch.tensor([[True, False, True], [False, True, False]])
        visual = torch.arange(1.0, 7.0).view(3, 2)
        out = fill_slots(embeds, slots, visual)
        assert out.tolist() == [[[1, 2], [0, 0], [3, 4]], [[0, 0], [5, 6], [0, 0]]]
        assert not embeds.any(), "the input is unchanged"

    @pytest.mark.parametrize("n", [0, 2, 4])
    def test_counts_must_match(self, n: int) -> None:
        slots = torch.tensor([[True, True, True, False]])
        with pytest.raises(ValueError, match=f"3 slots in the prompts but {n} visual tokens"):
            fill_slots(torch.zeros(1, 4, 2), slots, torch.zeros(n, 2))

    def test_no_slots_at_all(self) -> None:
        with pytest.raises(ValueError, match="0 slots"):
            fill_slots(torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 2))

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="slots must have the shape"):
            fill_slots(torch.zeros(1, 4, 2), torch.zeros(1, 3, dtype=torch.bool), torch.zeros(0, 2))
        with pytest.raises(ValueError, match=r"must be \[V, 2\]"):
            fill_slots(torch.zeros(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), torch.zeros(4, 3))

    def test_gradients_reach_the_visual_tokens(self) -> None:
        visual = torch.ones(2, 2, requires_grad=True)
        fill_slots(torch.zeros(3, 2), torch.tensor([True, False, True]), visual).sum().backward()
        assert visual.grad is not None
        assert visual.grad.tolist() == [[1, 1], [1, 1]]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy that tests may damage."""
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "model"))


@pytest.fixture(scope="module")
def loaded(tiny_bundle: Path) -> VideoLlava:
    return load_model(load_bundle(tiny_bundle), "cpu")


def features(d: int, n_frames: int, n_tokens: int, seed: int = 0) -> Features:
    tokens = np.random.default_rng(seed).standard_normal((n_frames, n_tokens, d)).astype(np.float16)
    return Features(tokens, np.zeros(4, np.float32), True, "video")


def test_loaded_model(loaded: VideoLlava) -> None:
    assert loaded.device.type == "cpu"
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_visual_tokens_do_not_depend_on_other_media(loaded: VideoLlava) -> None:
    many = [features(16, 8, 5, 1), features(16, 1, 4, 2), features(16, 3, 5, 3)]
    together = loaded.visual_tokens(many)
    assert [t.shape[0] for t in together] == [40, 4, 15]
    for one, tokens in zip(many, together, strict=True):
        torch.testing.assert_close(loaded.visual_tokens([one])[0], tokens)
        flat = torch.from_numpy(one.tokens.reshape(-1, 16)).float()
        torch.testing.assert_close(loaded.connector(flat), tokens)
    assert loaded.visual_tokens([]) == []


def test_ids_in_slots_do_not_matter(loaded: VideoLlava) -> None:
    (visual,) = loaded.visual_tokens([features(16, 2, 1)])
    slots = np.array([False, True, True, False])
    one = loaded.embed_prompt(Prompt(np.array([1, 0, 0, 5]), slots), [visual])
    other = loaded.embed_prompt(Prompt(np.array([1, -200, 10**9, 5]), slots), [visual])
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_save_and_load_round_trip(loaded: VideoLlava, tiny_bundle: Path, tmp_path: Path) -> None:
    spec = load_bundle(tiny_bundle).spec

    def fill(folder: Path) -> None:
        shutil.copytree(tiny_bundle / "encoders", folder / "encoders")
        save_parts(loaded, folder / spec.connector.file, folder / spec.llm.folder)

    again = load_model(save_bundle(tmp_path / "again", spec, fill), "cpu")
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in loaded.state_dict().items()
    }
    assert again.tokenizer.encode("a red ball") == loaded.tokenizer.encode("a red ball")


def test_weights_in_another_dtype(bundle: Bundle) -> None:
    model = load_model(bundle, "cpu", torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.visual_tokens([features(16, 1, 4)])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "cuda:4096"])
def test_unavailable_devices(device: str) -> None:
    with pytest.raises(DeviceError, match="device"):
        torch_device(device)


class TestStrictKeys:
    @pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
    def test_connector(self, damage: str, bundle: Bundle) -> None:
        weights = load_file(bundle.connector_file)
        if damage == "missing":
            del weights["2.bias"]
        if damage == "unknown":
            weights["4.weight"] = torch.zeros(1)
        if damage == "shape":
            weights["0.bias"] = torch.zeros(3)
        save_file(weights, bundle.connector_file)
        key = {"missing": "2.bias: missing", "unknown": "4.weight: unknown key", "shape": "0.bias: shape"}[damage]
        with pytest.raises(BundleError, match=rf"connector\.safetensors: {key}"):
            load_model(bundle, "cpu")

    @pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
    def test_llm(self, damage: str, bundle: Bundle) -> None:
        path = bundle.llm_folder / "model.safetensors"
        weights = load_file(path)
        if damage == "missing":
            del weights["model.norm.weight"]
        if damage == "unknown":
            weights["model.other.weight"] = torch.zeros(1)
        if damage == "shape":
            weights["model.norm.weight"] = torch.zeros(3)
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(
            BundleError, match=r"model\.other\.weight" if damage == "unknown" else r"model\.norm\.weight"
        ):
            load_model(bundle, "cpu")

    def test_all_problems_are_named(self) -> None:
        with pytest.raises(BundleError) as e:
            load_strictly(build_connector("linear", 2, 2), {"bias": torch.zeros(3), "x": torch.zeros(1)}, "some file")
        assert e.value.what.splitlines() == [
            "some file: weight: missing",
            "some file: x: unknown key",
            "some file: bias: shape [3], must be [2]",
        ]


def test_connector_and_llm_sizes_must_match(bundle: Bundle) -> None:
    spec = replace(bundle.spec, connector=replace(bundle.spec.connector, out_size=8))
    save_file(build_connector("mlp2x_gelu", 16, 8).state_dict(), bundle.connector_file)
    with pytest.raises(BundleError, match="out_size is 8"):
        load_model(replace(bundle, spec=spec), "cpu")


@pytest.mark.parametrize(("name", "lacks"), [("hf", "no token <image>"), ("chat_template", "no chat template")])
def test_tokenizer_must_support_the_chat_format(name: str, lacks: str, bundle: Bundle) -> None:
    spec = replace(bundle.spec, prompt=replace(bundle.spec.prompt, format=name))
    with pytest.raises(BundleError, match=f"{name}.*{lacks}"):
        load_model(replace(bundle, spec=spec), "cpu")


def test_code_in_the_folder_does_not_run(bundle: Bundle, tmp_path: Path) -> None:
    """A configuration that refers to its own code is rejected or read without it; the code never runs."""
    ran = tmp_path / "ran"
    config = json.loads((bundle.llm_folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (bundle.llm_folder / "config.json").write_text(json.dumps(config))
    (bundle.llm_folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(BundleError, match="llm"):
        load_model(bundle, "cpu")
    assert not ran.exists()
    with pytest.raises(BundleError, match=BUNDLE_FILE):
        load_bundle(bundle.folder)
