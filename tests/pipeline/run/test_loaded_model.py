"""Models that do not fit into the memory of a device."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vidqa.errors import DeviceError
from vidqa.pipeline.run.loaded_model import Precision, load_model


def raise_out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 172.00 MiB.")


@pytest.mark.parametrize("loader", ["own", "transformers"])
def test_the_error_has_a_hint(loader: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a traceback nor a message about a damaged folder."""
    if loader == "own":
        monkeypatch.setattr("vidqa.model.llm.load_llama", raise_out_of_memory)
    else:
        import transformers

        monkeypatch.setattr("vidqa.model.llm.load_llama", lambda *_: None)
        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", raise_out_of_memory)
    model = load_model(str(tiny_bundle), "cpu", precision=Precision("bfloat16"))
    with pytest.raises(DeviceError, match="does not fit into the memory of cpu") as caught:
        _ = model.llava
    assert "--quantize" in str(caught.value) and caught.value.exit_code == 2


def test_threads_load_a_shared_model_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidqa.encoders.encoder import Encoder

    load, loaded = Encoder.from_bundle, []

    def slowly(*arguments: object) -> Encoder:
        loaded.append(arguments)
        time.sleep(0.2)
        return load(*arguments)

    monkeypatch.setattr(Encoder, "from_bundle", slowly)
    model = load_model(str(tiny_bundle))
    with ThreadPoolExecutor(4) as pool:
        encoders = set(pool.map(lambda _: model.encoder, range(4)))
    assert len(encoders) == len(loaded) == 1
