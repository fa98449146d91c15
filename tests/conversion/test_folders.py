"""Folders as trainers and publishers leave them: what is no part of the model is skipped and named."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import (
    golden,
    write_bin_shards,
    write_hf,
    write_json,
    write_languagebind,
    write_llm,
    write_original,
    write_projector,
    write_safetensors,
)
from safetensors.torch import save_file

from vidqa.conversion.convert import plan
from vidqa.conversion.folders import open_sources
from vidqa.errors import BundleError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)}


class _State:
    """Stands for the objects that accelerate pickles."""


def fill_like_a_trainer(folder: Path) -> set[str]:
    """Write what transformers, accelerate, DeepSpeed, FSDP and clones leave; returns the names."""
    objects: dict[str, Any] = {
        "training_args.bin": _State(),
        "sampler.bin": _State(),
        "sampler_1.bin": _State(),
        "dl_state_dict.bin": {"n": 1},
        "optimizer.pt": {"state": {0: {"step": torch.zeros(1)}}, "param_groups": [{"lr": 1.0}]},
        "optimizer.bin": {"state": {}, "param_groups": []},
        "optimizer_0.bin": {"state": {}, "param_groups": []},
        "scheduler.pt": {"last_epoch": 3},
        "scheduler.bin": {"last_epoch": 3},
        "scaler.pt": {"scale": 1.0},
        "rng_state.pth": {"python": (3, (1, 2), None)},
        "rng_state_0.pth": {"cpu": torch.zeros(8, dtype=torch.uint8)},
        "zero_pp_rank_0_mp_rank_00_optim_states.pt": {"optimizer_state_dict": {}},
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": {"optimizer_state_dict": {}},
        "mp_rank_00_model_states.pt": {"module": WEIGHTS},
        "consolidated.00.pth": {"layers.0.attention.wq.weight": torch.zeros(2, 2)},
        "somebody_s_notes.pt": {"epoch": 3, "note": "best so far"},
        "ema.bin": {"shadow.0": torch.zeros(1)},
    }
    for name, value in objects.items():
        torch.save(value, folder / name)
    raw = {
        "random_states_0.pkl": pickle.dumps({}),
        "model.gguf": b"GGUF",
        "flax_model.msgpack": b"x",
        "strange.bin": b"\x00\x01",
    }
    for name, data in raw.items():
        (folder / name).write_bytes(data)
    folders = ["global_step12", "checkpoint-12", ".git", ".cache", "original", "onnx"]
    for name in folders:
        (folder / name).mkdir()
        torch.save(WEIGHTS, folder / name / "pytorch_model.bin")
    (folder / "README.md").write_text("about the model")
    write_json(folder / "trainer_state.json", {"epoch": 1.0})
    return {*objects, *raw, *(f"{name}/" for name in folders)}


def test_the_model_among_everything_else(tmp_path: Path) -> None:
    folder = write_original(tmp_path / "out")
    before = plan([folder])
    names = fill_like_a_trainer(folder)
    after = plan([folder])
    assert set(after.llm.tensors) == set(before.llm.tensors) and after.layout == before.layout
    text = "\n".join(after.ignored)
    assert all(line.count(str(folder)) == 1 for line in after.ignored)
    assert len(after.ignored) == 1 and all(name in text for name in names)


@pytest.mark.parametrize("name", ["sampler_3.bin", "optimizer_0.bin", "notes.bin", "x.gguf"])
def test_each_file_is_named(name: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path, WEIGHTS)
    torch.save(_State(), tmp_path / name)
    assert open_sources(tmp_path).not_model == (name,)


def test_a_clean_folder_has_no_notes(tmp_path: Path) -> None:
    write_safetensors(tmp_path, WEIGHTS)
    write_json(tmp_path / "config.json", {})
    content = open_sources(tmp_path)
    assert content.not_model == content.duplicates == ()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "mm_projector.bin", "x-00001-of-00001.bin"])
def test_model_weights_are_never_skipped(name: str, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "another.safetensors")
    torch.save({"a": 1}, tmp_path / name)
    with pytest.raises(BundleError, match=r"\.bin: a is not a plain tensor"):
        open_sources(tmp_path)


def test_only_a_training_state(tmp_path: Path) -> None:
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    with pytest.raises(BundleError, match="the folder contains no weights") as e:
        open_sources(tmp_path)
    assert e.value.hint is None
    write_safetensors(tmp_path / "checkpoint-7", WEIGHTS)
    with pytest.raises(BundleError, match="the folder contains no weights") as e:
        open_sources(tmp_path)
    assert e.value.hint == "use its subfolder checkpoint-7"


@pytest.mark.parametrize(("safe", "n"), [("model.safetensors", 1), ("model.safetensors", 2), ("mm_projector", 1)])
def test_safetensors_are_preferred_and_that_is_reported(safe: str, n: int, tmp_path: Path) -> None:
    """Also where an index lists the other files."""
    old = {"a.weight": torch.zeros(2, 3), "old": torch.zeros(1)}
    if safe == "model.safetensors":
        write_safetensors(tmp_path, WEIGHTS)
        write_bin_shards(tmp_path, old, n)
    else:
        save_file(WEIGHTS, tmp_path / f"{safe}.safetensors")
        torch.save(old, tmp_path / f"{safe}.bin")
    content = open_sources(tmp_path)
    (source,) = content.sources
    assert set(source.tensors) == set(WEIGHTS)
    assert len(content.duplicates) == n and all(name.endswith(".bin") for name in content.duplicates)


def test_variants_count_only_alone(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.fp16.safetensors")
    assert open_sources(tmp_path).duplicates == ()
    write_safetensors(tmp_path, WEIGHTS)
    assert open_sources(tmp_path).duplicates == ("model.fp16.safetensors",)


@pytest.mark.parametrize(
    "name", ["../x.bin", "/etc/x.bin", "..", ".", "", "a/x.bin", "a\\x.bin", "x.py", "x\0.bin", 3, None, ["x.bin"]]
)
def test_an_index_names_weights_of_its_folder(name: object, tmp_path: Path) -> None:
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": name}})
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors\.index\.json: "):
        open_sources(tmp_path)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": ["x.bin"]}])
def test_an_index_without_files(content: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "pytorch_model.bin.index.json", content)
    with pytest.raises(BundleError, match=r"index\.json: weight_map: must "):
        open_sources(tmp_path)


class TestProjectors:
    def test_one_of_an_earlier_stage_does_not_replace_the_tuned_one(self, tmp_path: Path) -> None:
        folder = write_original(tmp_path / "model")
        tuned = {key: tensor.read() for key, tensor in plan([folder]).connector.tensors.items()}
        projector = {key: value + 1 for key, value in golden("video_llava_forward")[1].items() if "mm_projector" in key}
        torch.save(projector, folder / "mm_projector.bin")
        planned = plan([folder])
        assert all(torch.equal(tensor.read(), tuned[key]) for key, tensor in planned.connector.tensors.items())
        assert sum("mm_projector.bin: not used" in line for line in planned.ignored) == 1
        for given in ([folder, folder / "mm_projector.bin"], [folder / "mm_projector.bin", folder]):
            planned = plan(given)
            assert torch.equal(planned.connector.tensors["0.bias"].read(), tuned["0.bias"] + 1)
            (note,) = (line for line in planned.ignored if "projector" in line)
            assert note == f"projector of {folder}: replaced by that of {folder / 'mm_projector.bin'}"

    def test_one_apart_replaces_the_tuned_one(self, tmp_path: Path) -> None:
        folder = write_original(tmp_path / "model")
        planned = plan([folder, write_projector(tmp_path / "stage1" / "mm_projector.bin")])
        assert any("replaced by that of" in line for line in planned.ignored)

    def test_next_to_the_port(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "hf")
        torch.save({"model.mm_projector.weight": torch.zeros(1)}, folder / "mm_projector.bin")
        planned = plan([folder])
        assert planned.layout == "video_llava_hf" and "mm_projector.bin: not used" in planned.ignored[0]

    def test_next_to_an_adapter(self, tmp_path: Path) -> None:
        """The projector that was saved with the adapter counts; adapters in two formats are one."""
        peft = pytest.importorskip("peft")
        from vidqa.model.llm import load_llm

        base, lora = write_llm(tmp_path / "base"), tmp_path / "lora"
        model = peft.get_peft_model(load_llm(base, None)[0], peft.LoraConfig(r=2, target_modules=["q_proj"]))
        model.save_pretrained(lora)
        torch.save({"old": torch.zeros(1)}, lora / "adapter_model.bin")
        projector = {k: v for k, v in golden("video_llava_forward")[1].items() if "mm_projector" in k}
        torch.save({f"base_model.model.{k}": v for k, v in projector.items()}, lora / "non_lora_trainables.bin")
        torch.save({k: v + 1 for k, v in projector.items()}, lora / "mm_projector.bin")
        fill_like_a_trainer(lora)
        towers = [write_languagebind(tmp_path / kind, kind) for kind in ("image", "video")]
        planned = plan([lora, base, *towers])
        own = projector["model.mm_projector.0.bias"]
        assert torch.equal(planned.connector.tensors["0.bias"].read(), own)
        text = "\n".join(planned.ignored)
        assert "adapter_model.bin" in text and "mm_projector.bin: not used, since the adapter" in text
        assert "LoRA" in planned.compat.variant
        named = plan([lora, base, *towers, lora / "non_lora_trainables.bin"])
        assert torch.equal(named.connector.tensors["0.bias"].read(), own)

    def test_no_message_names_one_folder_twice(self, tmp_path: Path) -> None:
        projector = {k: v for k, v in golden("video_llava_forward")[1].items() if "mm_projector" in k}
        save_file(projector, tmp_path / "a.safetensors")
        save_file(projector, tmp_path / "b.safetensors")
        with pytest.raises(BundleError, match=r"a projector was given 2 times: .*/a\.safetensors, .*/b\.safetensors$"):
            plan([tmp_path])
        (tmp_path / "b.safetensors").unlink()
        llm = write_llm(tmp_path / "llm")
        shutil.copy(tmp_path / "a.safetensors", llm / "mm_projector.safetensors")
        save_file({"x.lora_A.weight": torch.zeros(1)}, llm / "adapter_model.safetensors")
        with pytest.raises(BundleError) as e:
            plan([llm, llm, llm / "."])
        assert str(e.value).count(f"{llm}:") == 1
