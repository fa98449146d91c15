"""LoRA adapters as peft saves them: merged like peft's own merge, or refused by the name of the setting."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import write_json, write_llm

from vidqa.conversion.folders import open_sources
from vidqa.conversion.lazy_tensors import StateDict
from vidqa.conversion.lora_merge import merge_lora
from vidqa.errors import BundleError
from vidqa.model.bundle.bundle import ADAPTER_FOLDER
from vidqa.model.llm import load_llm
from vidqa.model.lora_settings import HANDLED, HARMLESS, read_lora_settings

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm") / "base")


def save_adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """Save an adapter with random weights; returns peft's model."""
    torch.manual_seed(0)
    llm, _ = load_llm(base, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(llm, peft.LoraConfig(**{"r": 4, "target_modules": TARGETS} | settings))
        if settings.get("init_lora_weights") in ("olora", "pissa"):
            model.save_pretrained(folder / "initial")
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data += 0.1 * torch.randn_like(weight)
        changed = {"path_initial_model_for_weight_conversion": folder / "initial"}
        model.save_pretrained(folder, **changed if (folder / "initial").is_dir() else {})
    return model


def merged(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    (llm,), (adapter,) = open_sources(base).sources, open_sources(folder).sources
    tensors, unexpected = merge_lora(StateDict(llm).pop_prefix(""), adapter, tied=False)
    assert unexpected == []
    return {key: tensor.read() for key, tensor in tensors.items()}


SUPPORTED: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "lora_alpha": 5,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 6},
        "alpha_pattern": {r"model.layers.\d+.mlp.down_proj": 7},
    },
    "patterns and rslora": {"use_rslora": True, "rank_pattern": {"^model.layers.1.mlp.down_proj": 1}},
    "some blocks": {"layers_to_transform": [1]},
    "one block by its list": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "without some": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "regular expression": {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "the head": {"target_modules": ["lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "olora, converted": {"init_lora_weights": "olora"},
    "pissa, converted": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("settings", SUPPORTED.values(), ids=SUPPORTED)
def test_equals_the_merge_of_peft(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "lora", **settings)
    ours = merged(base, tmp_path / "lora")
    llm, _ = load_llm(base, None)
    theirs = peft.PeftModel.from_pretrained(llm, tmp_path / "lora").merge_and_unload().state_dict()
    original = load_llm(base, None)[0].state_dict()
    assert any(not torch.equal(value, original[key]) for key, value in theirs.items())
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["patterns and rslora", "some blocks", "regular expression"])
def test_an_adapter_in_a_bundle_is_merged_alike(name: str, base: Path, tmp_path: Path) -> None:
    """The LLM folder of a bundle may hold an adapter, which is merged when the LLM is loaded."""
    folder = Path(shutil.copytree(base, tmp_path / "llm"))
    save_adapter(base, folder / ADAPTER_FOLDER, **SUPPORTED[name])
    expected = merged(base, folder / ADAPTER_FOLDER)
    llm, _ = load_llm(folder, None)
    for key, value in llm.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)


def example(name: str) -> Any:
    """A value of a setting other than its default."""
    default = {f.name: f.default for f in dataclasses.fields(peft.LoraConfig)}[name]
    return {"bias": "all"}.get(name, True if isinstance(default, bool) else ["x"])


def test_every_setting_of_peft_is_handled_or_harmless_or_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    saved = json.loads(file.read_text())
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert len(names) > 30 and names >= {*HANDLED, *HARMLESS} - {"layers_pattern"}
    refused = names - HANDLED - HARMLESS
    assert {"use_dora", "bias", "modules_to_save", "layer_replication", "fan_in_fan_out"} <= refused
    for name in sorted(refused):
        write_json(file, saved | {name: example(name)})
        with pytest.raises(BundleError, match=rf"adapter_config\.json: {name}: "):
            read_lora_settings(tmp_path / "lora")
    write_json(file, saved | {"of_a_later_release": {"a": 1}})
    with pytest.raises(BundleError, match=r"adapter_config\.json: of_a_later_release: "):
        read_lora_settings(tmp_path / "lora")
    write_json(file, saved | {"of_a_later_release": None, "modules_to_save": [], "another": False})
    read_lora_settings(tmp_path / "lora")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("init_lora_weights", name) for name in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga")),
        *(("init_lora_weights", name) for name in ("mica", "of a later release", 1, ["pissa"])),
        ("peft_type", "ADALORA"),
        ("peft_type", None),
        ("r", "4"),
        ("r", None),
        ("lora_alpha", "8"),
        ("lora_alpha", -1),
        ("use_rslora", "yes"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern.q_proj", 0),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern.q_proj", None),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", "("),
        ("layers_to_transform", ["0"]),
        ("layers_pattern", ["("]),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(key: str, value: object, base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path)
    file = tmp_path / "adapter_config.json"
    top, _, inner = key.partition(".")
    write_json(file, json.loads(file.read_text()) | {top: {inner: value} if inner else value})
    with pytest.raises(BundleError, match=rf"adapter_config\.json: {key}: ") as e:
        merged(base, tmp_path)
    changed_base = isinstance(value, str) and value.startswith(("pissa", "olora", "loftq", "corda", "lora_ga"))
    assert ("path_initial_model_for_weight_conversion" in (e.value.hint or "")) == changed_base


def test_whole_numbers_may_be_floats(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path)
    file = tmp_path / "adapter_config.json"
    before = merged(base, tmp_path)
    saved = json.loads(file.read_text())
    write_json(file, saved | {"r": 4.0, "lora_alpha": float(saved["lora_alpha"]), "layers_to_transform": [0.0, 1.0]})
    assert all(torch.equal(value, before[key]) for key, value in merged(base, tmp_path).items())


def test_weights_and_settings_must_agree(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    (llm,), (adapter,) = open_sources(base).sources, open_sources(tmp_path).sources
    tensors = StateDict(llm).pop_prefix("")
    write_json(file, saved | {"layers_to_transform": [0]})
    _, unexpected = merge_lora(tensors, adapter, tied=False)
    assert unexpected and all("layers.1." in line and "does not select" in line for line in unexpected)
    write_json(file, saved | {"r": 8})
    with pytest.raises(BundleError, match=r"with the rank 8 of .*adapter_config\.json"):
        merge_lora(tensors, adapter, tied=False)


def test_a_head_that_is_the_embedding_table(base: Path, tmp_path: Path) -> None:
    """Merging into one of the two would be lost or would change the other."""
    save_adapter(base, tmp_path, target_modules=["lm_head"])
    (llm,), (adapter,) = open_sources(base).sources, open_sources(tmp_path).sources
    tensors = StateDict(llm).pop_prefix("")
    assert merge_lora(tensors, adapter, tied=False)[1] == []
    with pytest.raises(BundleError, match=r"lm_head.*the head of this language model is its embedding table"):
        merge_lora(tensors, adapter, tied=True)
