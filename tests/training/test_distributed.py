"""Which device a stage trains on. The GPUs are simulated: only TrainingArguments are created."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidqa.training import distributed
from vidqa.training.distributed import precision_on, training_arguments
from vidqa.training.recipe.definition import Hardware, Logging, Stage
from vidqa.training.stage import trainer

STAGE = Stage(kind="connector", batch_size=4, per_device_batch_size=2, learning_rate=1e-3)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """As transformers detects them; returns the devices that were made the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(torch.device(device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1].index if current else 0)
    # Older than Ampere. Only builds of torch with CUDA are asked.
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=7, minor=5))
    return current


def settings(device: str, tmp_path: Path) -> Any:
    return training_arguments(
        STAGE,
        n_steps=3,
        per_device_batch_size=2,
        hardware=Hardware(precision="fp32"),
        logging=Logging(),
        seed=0,
        folder=tmp_path,
        device=torch.device(device),
    )


def test_a_single_process_uses_the_requested_gpu(two_gpus: list[torch.device], tmp_path: Path) -> None:
    made = settings("cuda:1", tmp_path)
    assert made.device == made.distributed_state.device == torch.device("cuda", 1)
    assert two_gpus[-1] == torch.device("cuda", 1)
    assert made.n_gpu == 1 and made.train_batch_size == 2, "the other GPU is not used"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_before_ampere_uses_fp16_and_no_tf32(
    has_bf16: bool, two_gpus: list[torch.device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch reports emulated bf16 as supported. TF32 is enabled by default and must not end the run."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    auto = Hardware()
    assert precision_on(torch.device("cuda", 0), auto) == ("bf16" if has_bf16 else "fp16")
    assert precision_on(torch.device("cpu"), auto) == "fp32"
    assert precision_on(torch.device("cuda", 0), Hardware(precision="bf16")) == "bf16", "an explicit setting wins"
    assert auto.tf32 and not settings("cuda:0", tmp_path).tf32


def test_the_cpu_stays_the_cpu(two_gpus: list[torch.device], tmp_path: Path) -> None:
    made = settings("cpu", tmp_path)
    assert made.device == torch.device("cpu") and made.use_cpu and not two_gpus


class Created(Exception):
    """Raised instead of creating the Trainer."""


@pytest.mark.parametrize(("requested", "expected"), [("cuda:0", "cuda:0"), (None, "cpu")])
def test_a_model_that_will_be_sharded_is_on_the_cpu_but_trains_on_the_gpu(
    requested: str | None, expected: str, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP and DeepSpeed move its shards from there to the GPUs."""
    devices: list[torch.device] = []

    def create(stage: Stage, *, device: torch.device, **_: Any) -> None:
        devices.append(device)
        raise Created

    monkeypatch.setattr(trainer, "training_arguments", create)
    with pytest.raises(Created):
        lab.train(lab.make_model(), tmp_path, STAGE, device=requested)
    assert devices == [torch.device(expected)]
    assert distributed.processes() == 1
