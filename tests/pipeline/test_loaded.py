"""Models that a device has no room for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidqa.errors import DeviceError
from vidqa.pipeline.run.loaded_model import Precision, load_model


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 172.00 MiB.")


@pytest.mark.parametrize("reader", ["own", "transformers"])
def test_a_model_without_room_says_what_to_try(reader: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback, and no word of a damaged folder."""
    if reader == "own":
        monkeypatch.setattr("vidqa.model.llm.load_llama", full)
    else:
        import transformers

        monkeypatch.setattr("vidqa.model.llm.load_llama", lambda *_: None)
        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    model = load_model(str(tiny_bundle), "cpu", precision=Precision("bfloat16"))
    with pytest.raises(DeviceError, match="does not fit into the memory of cpu") as caught:
        _ = model.llava
    assert "--quantize" in str(caught.value) and caught.value.exit_code == 2
