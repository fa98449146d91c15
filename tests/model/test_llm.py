"""Dtype, quantization and placement of the LLM, and the error for a missing package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from published_files import write_llm

import vidqa
from vidqa.common.extras import install_hint
from vidqa.errors import UsageError
from vidqa.model.llm import dtype_from_name, load_llm
from vidqa.pipeline.run.loaded_model import Precision, load_model
from vidqa.pipeline.run.run_options import RunOptions


@pytest.mark.parametrize(
    ("quantize", "device_map", "extra"),
    [("8bit", None, "quantize"), ("4bit", torch.device("cpu"), "quantize"), (None, "map", "map")],
)
def test_a_missing_package_is_named(
    quantize: str | None, device_map: object, extra: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("accelerate", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="is not installed") as caught:
        load_llm(tiny_bundle / "llm", None, quantize=quantize, device_map=device_map)
    assert caught.value.hint == install_hint(extra)


def test_device_map_over_all_devices(tiny_bundle: Path) -> None:
    pytest.importorskip("accelerate")
    plain, _ = load_llm(tiny_bundle / "llm", None)
    mapped, _ = load_llm(tiny_bundle / "llm", None, device_map="map")
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, mapped(ids).logits.cpu())


def test_model_id_includes_the_precision(tiny_bundle: Path) -> None:
    plain = load_model(str(tiny_bundle), "cpu").identity.model_id
    assert load_model(str(tiny_bundle), "cpu", precision=Precision("float16", "4bit")).identity.model_id == (
        f"{plain}-float16-4bit"
    )
    assert dtype_from_name("bfloat16") is torch.bfloat16 and dtype_from_name(None) is None


@pytest.mark.parametrize(("bits", "kind", "allowed"), [("8bit", "Linear8bitLt", 0.05), ("4bit", "Linear4bit", 0.3)])
def test_quantized_logits_are_close(bits: str, kind: str, allowed: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    folder = write_llm(tmp_path / "llm")
    plain, _ = load_llm(folder, torch.float32)
    small, _ = load_llm(folder, torch.float32, quantize=bits, device_map=torch.device("cpu"))
    assert type(small.model.layers[0].self_attn.q_proj).__name__ == kind
    ids = torch.tensor([[1, 5, 9, 4]])
    with torch.no_grad():
        ours, theirs = small(ids).logits.float(), plain(ids).logits
    error = float((ours - theirs).norm() / theirs.norm())
    assert 0 < error < allowed


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_the_quantized_demo_model(bits: str, tmp_path: Path) -> None:
    """Its sizes are not multiples of 64, for which bitsandbytes' repacking for AVX-512 fails."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    clip = Path(__file__).parents[2] / "examples" / "clips" / "clip01.mp4"
    options = RunOptions(cache_dir=tmp_path)
    plain, small = (
        vidqa.ask(clip, "What happens?", model=load_model("demo", "cpu", precision=p), options=options)[0].answer
        for p in (Precision(), Precision(quantize=bits))
    )
    assert small and set(small.split()) & set(plain.split()) >= {"A", "appears"}
