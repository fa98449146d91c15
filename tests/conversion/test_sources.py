"""Files of weights: shapes before values, whole sets only, and nothing but tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from published_files import write_bin_shards, write_json, write_safetensors
from safetensors.torch import save_file

from vidqa.common.foreign_files import read_settings
from vidqa.conversion import sources as module
from vidqa.conversion.folders import open_sources
from vidqa.conversion.sources import WeightSource
from vidqa.errors import BundleError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16), "c": torch.eye(2)}


def only(folder: Path) -> WeightSource:
    (found,) = open_sources(folder).sources
    return found


def check(found: WeightSource) -> None:
    assert {k: (i.shape, i.dtype) for k, i in found.tensors.items()} == {
        k: (tuple(v.shape), v.dtype) for k, v in WEIGHTS.items()
    }
    assert all(torch.equal(found.read(key), value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("index", [True, False])
def test_bin_shards(index: bool, tmp_path: Path) -> None:
    write_bin_shards(tmp_path, WEIGHTS, 3, index)
    check(only(tmp_path))


def test_safetensors_come_before_bin(tmp_path: Path) -> None:
    write_bin_shards(tmp_path, {"old": torch.zeros(1)})
    write_safetensors(tmp_path, WEIGHTS)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    check(only(tmp_path))


def test_one_file_and_the_configuration_beside_it(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "any.bin")
    write_json(tmp_path / "config.json", {"model_type": "x"})
    check(only(tmp_path / "any.bin"))
    assert only(tmp_path / "any.bin").config == {"model_type": "x"}


def test_the_form_before_torch_1_6(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    check(only(tmp_path))


def test_maps_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REOPEN_BYTES", 1)
    write_bin_shards(tmp_path / "bin", WEIGHTS)
    write_safetensors(tmp_path / "st", WEIGHTS)
    for folder in ("bin", "st"):
        check(only(tmp_path / folder))


def test_what_training_leaves_is_no_model(tmp_path: Path) -> None:
    write_bin_shards(tmp_path, WEIGHTS)
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps({"lr": 1}))
    (tmp_path / "optimizer.pt").write_bytes(b"any")
    check(only(tmp_path))


def test_a_set_beside_the_main_one(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "adapter_model.safetensors")
    torch.save({"p": torch.zeros(1)}, tmp_path / "non_lora_trainables.bin")
    assert sorted(len(s.tensors) for s in open_sources(tmp_path).sources) == [1, 3]


class _Code:
    def __reduce__(self) -> tuple:
        return (open, ("must-not-appear", "w"))


def test_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BundleError, match=r"contains more than tensors \(.*open\)") as e:
        open_sources(tmp_path)
    assert "weights_only" not in str(e.value), "torch's advice is to run the file's code"
    assert not (tmp_path / "must-not-appear").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9878000000\n"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "an empty file", "download"),
        (b"PK", "damaged|not a weights file", "download"),
        (b"PK\3\4" + bytes(99), "damaged|cannot be read", "download"),
        (b"\x80\x02 and so on", "damaged", "download"),
        (b"<html>429 Too Many Requests</html>", "damaged|not a weights file", "download"),
        (POINTER, "a Git LFS pointer", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "config.json"])
def test_damaged_files(content: bytes, message: str, hint: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}.*({message if name != 'config.json' else ''})") as e:
        read_settings(tmp_path / name) if name == "config.json" else open_sources(tmp_path)
    assert name == "config.json" or hint in (e.value.hint or "")
    assert "weights_only" not in str(e.value)


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_half_a_shard(share: float, tmp_path: Path) -> None:
    write_bin_shards(tmp_path, WEIGHTS, 3)
    file = tmp_path / "pytorch_model-00002-of-00003.bin"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(BundleError, match=r"00002-of-00003\.bin: cannot be read") as e:
        open_sources(tmp_path)
    assert "download the file again" in (e.value.hint or "") and len(e.value.what.splitlines()) == 1


def test_not_tensors(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "x.bin")
    with pytest.raises(BundleError, match="a is not a plain tensor"):
        open_sources(tmp_path)
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.bin")
    with pytest.raises(BundleError, match="a is not a plain tensor"):
        open_sources(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "x.bin")
    with pytest.raises(BundleError, match="dictionary of tensors"):
        open_sources(tmp_path)


def test_incomplete_sets(tmp_path: Path) -> None:
    write_bin_shards(tmp_path, WEIGHTS, 3)
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(BundleError, match=r"00002-of-00003\.bin, which this folder does not contain"):
        open_sources(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(BundleError, match="2 of 3 shards"):
        open_sources(tmp_path)


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    write_bin_shards(tmp_path, WEIGHTS, 3)
    torch.save(WEIGHTS, tmp_path / "pytorch_model-00002-of-00003.bin")
    with pytest.raises(BundleError, match=r"a\.weight is also in"):
        open_sources(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {"a": "../x.bin"}}, {"weight_map": {"a": 3}}])
def test_an_index_that_leads_elsewhere(index: dict, tmp_path: Path) -> None:
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(BundleError, match="weight_map"):
        open_sources(tmp_path)


def test_nothing_here(tmp_path: Path) -> None:
    for place, message in (
        (tmp_path, "the folder contains no weights"),
        (tmp_path / "no", "no such"),
        (Path(__file__), "not a weights"),
    ):
        with pytest.raises(BundleError, match=message):
            open_sources(place)
