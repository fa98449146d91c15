"""Malicious or damaged bundles are rejected with file and key, and no code of theirs runs."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save_file

from vidqa.errors import BundleError
from vidqa.model.bundle.bundle import BUNDLE_FILE, load_bundle
from vidqa.model.llm import load_llm
from vidqa.model.lora import apply_adapter
from vidqa.model.onnx.external_data import external_locations


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "model"))


def load_error(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert str(folder / BUNDLE_FILE) in caught.value.what
    return caught.value.what


def tensor_at(location: str) -> TensorProto:
    """A tensor whose values are in another file."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def as_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_an_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_a_nested_graph(model: onnx.ModelProto, tensor: TensorProto) -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def in_a_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("own", "f", [], ["c"], [node], [helper.make_opsetid("", 18)]))


def as_sparse_tensor(model: onnx.ModelProto, tensor: TensorProto) -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [1]))


class TestGraphs:
    @pytest.mark.parametrize(
        "hide", [as_initializer, in_an_attribute, in_a_nested_graph, in_a_function, as_sparse_tensor]
    )
    def test_weights_from_another_folder(self, hide: Callable[..., None], folder: Path) -> None:
        path = folder / "encoders" / "video.onnx"
        (folder.parent / "secret.bin").write_bytes(b"\0" * 16)
        model = onnx.load(path)
        hide(model, tensor_at("../../secret.bin"))
        path.write_bytes(model.SerializeToString())
        assert "encoders/video.onnx: would read weights from '../../secret.bin'" in load_error(folder)

    @pytest.mark.parametrize("location", ["/etc/hostname", "../connector.safetensors", "other.data", ""])
    def test_unlisted_weights(self, location: str, folder: Path) -> None:
        (folder / "encoders" / "other.data").write_bytes(b"\0" * 16)
        path = folder / "encoders" / "image.onnx"
        model = onnx.load(path)
        as_initializer(model, tensor_at(location))
        path.write_bytes(model.SerializeToString())
        assert "would read weights from" in load_error(folder)

    def test_external_data_that_is_a_symlink(self, folder: Path) -> None:
        outside = folder.parent / "outside.bin"
        outside.write_bytes(b"\0" * 16)
        path = folder / "encoders" / "video.onnx"
        model = onnx.load(path)
        as_initializer(model, tensor_at("video.onnx.data"))
        path.write_bytes(model.SerializeToString())
        data = json.loads((folder / BUNDLE_FILE).read_text())
        data["encoders"]["video"]["external"] = {"encoders/video.onnx.data": "0" * 64}
        (folder / BUNDLE_FILE).write_text(json.dumps(data))
        data_file = folder / "encoders" / "video.onnx.data"
        data_file.write_bytes(b"\0" * 16)
        assert load_bundle(folder)
        data_file.unlink()
        data_file.symlink_to(outside)
        assert "a symlink to a file outside the model's folder" in load_error(folder)

    @pytest.mark.parametrize(
        "damage", [lambda b: b"", lambda b: b[:200], lambda b: b"\xff" * 100, lambda b: b"PK\x03\x04" + b]
    )
    def test_not_an_onnx_file(self, damage: Callable[[bytes], bytes], folder: Path) -> None:
        path = folder / "encoders" / "image.onnx"
        path.write_bytes(damage(path.read_bytes()))
        assert "encoders/image.onnx: not an ONNX file" in load_error(folder)

    def test_deep_nesting(self, tmp_path: Path) -> None:
        graph = b""
        for _ in range(200):  # graph in an attribute of a node of a graph ...
            attribute = b"\x32" + _length(graph) + graph
            node = b"\x2a" + _length(attribute) + attribute
            graph = b"\x0a" + _length(node) + node
        (tmp_path / "deep.onnx").write_bytes(b"\x3a" + _length(graph) + graph)
        with pytest.raises(ValueError, match="nested too deeply"):
            external_locations(tmp_path / "deep.onnx")

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(data=st.binary(max_size=200))
    def test_random_bytes(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.onnx").write_bytes(data)
        try:
            external_locations(tmp_path / "x.onnx")
        except ValueError as error:
            assert str(error)


def _length(data: bytes) -> bytes:
    n, out = len(data), bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def floats(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS: dict[str, Any] = {
    "overlap": {"a": floats([4], 0, 16), "b": floats([6], 8, 32)},
    "past the end": {"a": floats([400], 0, 1600)},
    "backwards": {"a": floats([4], 16, 0)},
    "product too large": {"a": floats([1 << 40, 1 << 40], 0, 32)},
    "negative": {"a": floats([-8], 0, 32)},
    "unknown type": {"a": floats([8], 0, 32, "PICKLE")},
    "no tensors": [],
}


@pytest.mark.parametrize("header", HEADERS)
def test_inconsistent_safetensors_headers(header: str, folder: Path) -> None:
    text = json.dumps(HEADERS[header]).encode()
    (folder / "connector.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 32)
    assert "connector.safetensors: damaged safetensors file" in load_error(folder)


def test_a_giant_header_is_not_read(folder: Path) -> None:
    path = folder / "connector.safetensors"
    with path.open("wb") as f:  # a sparse file, which needs no disk space
        f.write(struct.pack("<Q", 1 << 32))
        f.truncate((1 << 32) + 100)
    assert "connector.safetensors: damaged safetensors file" in load_error(folder)


def test_symlink_in_the_llm_folder(folder: Path) -> None:
    outside = folder.parent / "config.json"
    shutil.copy(folder / "llm" / "config.json", outside)
    (folder / "llm" / "config.json").unlink()
    (folder / "llm" / "config.json").symlink_to(outside)
    assert "llm/config.json: a symlink to a file outside" in load_error(folder)


def test_symlink_cycle(folder: Path) -> None:
    (folder / "connector.safetensors").unlink()
    (folder / "connector.safetensors").symlink_to(folder / "connector.safetensors")
    assert "connector.safetensors" in load_error(folder)


def test_code_in_the_llm_folder_is_not_run(folder: Path) -> None:
    """`auto_map` refers to it, but vidqa never trusts remote code, and the file itself is rejected first."""
    config = json.loads((folder / "llm" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    touched = folder.parent / "touched"
    (folder / "llm" / "evil.py").write_text(f"open({str(touched)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    assert "llm/evil.py: not listed" in load_error(folder)
    data = json.loads((folder / BUNDLE_FILE).read_text())
    data["llm"]["files"]["evil.py"] = "0" * 64
    (folder / BUNDLE_FILE).write_text(json.dumps(data))
    assert "llm/evil.py: this type of file can run code" in load_error(folder)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("config.json", "[1]", "llm/config.json: must be a JSON object"),
        ("config.json", "{", "llm/config.json: not JSON"),
        ("tokenizer_config.json", "[]", "llm/tokenizer_config.json: must be a JSON object"),
        ("generation_config.json", "\xff", "llm/generation_config.json: not JSON"),
        ("generation_config.json", "[" * 100_000, "llm/generation_config.json: not JSON"),
    ],
)
def test_llm_settings_that_are_not_json_objects(name: str, text: str, problem: str, folder: Path) -> None:
    (folder / "llm" / name).write_bytes(text.encode("latin-1"))
    assert problem in load_error(folder)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "hidden_size", "x"),
        ("config.json", "num_attention_heads", 5),
        ("config.json", "vocab_size", -1),
        ("config.json", "hidden_act", {"a": 1}),
        ("tokenizer.json", "added_tokens", 7),
        ("tokenizer.json", "model", None),
    ],
)
def test_llm_settings_that_transformers_cannot_load(name: str, key: str, value: object, folder: Path) -> None:
    path = folder / "llm" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(BundleError) as caught:
        load_llm(folder / "llm", None)
    assert caught.value.what.startswith(f"{folder / 'llm'}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [("r", "x"), ("r", 0), ("r", 10**400), ("r", True), ("lora_alpha", None), ("target_modules", "q_proj"),
     ("target_modules", []), ("target_modules", [1]), ("peft_type", ["LORA"])],
)  # fmt: skip
def test_invalid_adapter_settings(key: str, value: object, tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {key: value}))
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BundleError, match=rf"adapter_config\.json: {key}"):
        apply_adapter(torch.nn.Identity(), tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "d/" * 3000, "a\0b", "~nobody-of-this-name/x", "\ud83d", ""])
def test_impossible_model_names(name: str) -> None:
    with pytest.raises(BundleError, match="no model at"):
        load_bundle(name)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32), piece=st.binary(max_size=4) | st.sampled_from([b"[" * 5000, b"\xef\xbb\xbf", b'"']))
def test_randomly_damaged_descriptions(seed: int, piece: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    if not folder.exists():
        shutil.copytree(tiny_bundle, folder)
    chance, data = random.Random(seed), bytearray((tiny_bundle / BUNDLE_FILE).read_bytes())
    for _ in range(chance.randrange(1, 4)):
        a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        data[a : chance.choice((a, min(b, a + 9)))] = piece
    (folder / BUNDLE_FILE).write_bytes(data)
    try:
        load_bundle(folder)
    except BundleError as error:
        assert str(folder / BUNDLE_FILE) in error.what


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, v in inner for path in _paths(v, (*at, key)))] if at else [
        path for key, v in inner for path in _paths(v, (key,))
    ]  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, -(2**70)])
    | st.sampled_from(["../x", "/etc/passwd", "a\0b", "\ud83d", "x" * 300, "..", ".", "llm", "nowhere.onnx"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_values_anywhere_in_a_description(data: st.DataObject, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        shutil.copytree(tiny_bundle, folder)
    described = json.loads((tiny_bundle / BUNDLE_FILE).read_text())
    path = data.draw(st.sampled_from(_paths(described)))
    parent = described
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = data.draw(JSON)
    (folder / BUNDLE_FILE).write_text(json.dumps(described))
    try:
        load_bundle(folder)
    except BundleError as error:
        assert str(folder / BUNDLE_FILE) in error.what
        named = [str(key) for key in path if isinstance(key, str)]
        value = parent[path[-1]]
        # A wrong file name is reported itself; a missing digest is reported with the file that it belongs to.
        assert any(key in error.what for key in named) or (isinstance(value, str) and repr(value)[1:-1] in error.what)
