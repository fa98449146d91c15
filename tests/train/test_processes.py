"""Which device a stage is computed on. The devices are not there: settings are made, and nothing is computed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidqa.train import distributed
from vidqa.train.distributed import RunConfig, arguments, precision_on
from vidqa.train.recipe.definition import Hardware, Stage
from vidqa.train.stage import loop
from vidqa.train.stage.loop import Silent, StageContext
from vidqa.train.stage.metrics import MetricsFile

STAGE = Stage(kind="connector", batch_size=4, per_device=2, lr=1e-3)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """As transformers finds them; gives the devices that were made the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(torch.device(device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1].index if current else 0)
    return current


def settings(device: str, tmp_path: Path) -> Any:
    return arguments(STAGE, RunConfig(Hardware(precision="fp32")), 3, 2, tmp_path, torch.device(device))


def test_a_single_process_stays_on_the_gpu_that_was_asked_for(two_gpus: list[torch.device], tmp_path: Path) -> None:
    made = settings("cuda:1", tmp_path)
    assert made.device == made.distributed_state.device == torch.device("cuda", 1)
    assert two_gpus[-1] == torch.device("cuda", 1)
    assert made.n_gpu == 1 and made.train_batch_size == 2, "the other GPU is left alone"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_before_ampere_gets_what_it_has(
    has_bf16: bool, two_gpus: list[torch.device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch calls bf16 supported where it is emulated, too; TF32, which is on by default, must not end the run."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    auto = Hardware()
    assert precision_on(torch.device("cuda", 0), auto) == ("bf16" if has_bf16 else "fp16")
    assert precision_on(torch.device("cpu"), auto) == "fp32"
    assert precision_on(torch.device("cuda", 0), Hardware(precision="bf16")) == "bf16", "whoever asks for it gets it"
    assert auto.tf32 and not settings("cuda:0", tmp_path).tf32


def test_the_cpu_stays_the_cpu(two_gpus: list[torch.device], tmp_path: Path) -> None:
    made = settings("cpu", tmp_path)
    assert made.device == torch.device("cpu") and made.use_cpu and not two_gpus


@pytest.mark.parametrize(("asked", "wanted"), [("cuda:0", "cuda:0"), (None, "cpu")])
def test_a_model_that_is_to_be_cut_up_lies_on_the_cpu_but_is_not_trained_there(
    asked: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP and DeepSpeed take its pieces from there to the GPUs."""
    seen: list[torch.device] = []
    monkeypatch.setattr(loop, "arguments", lambda *rest: seen.append(rest[-1]))
    monkeypatch.setattr(loop, "StageTrainer", lambda **_: SimpleNamespace(remove_callback=lambda _: None))
    monkeypatch.setattr(loop, "PackedLoss", lambda *_: None)
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    data: Any = SimpleNamespace(plan=SimpleNamespace(n_steps=3, epochs=1.0), left_out=())
    around = StageContext(tmp_path, Silent(), MetricsFile(tmp_path / "metrics.jsonl"), device=asked)
    loop._trainer(model, data, STAGE, around, [], 2)
    assert seen == [torch.device(wanted)]
    assert distributed.processes() == 1
