"""What a stage shares with others, how processes share a step, and the Trainer's own settings made of both."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainingArguments
from transformers.utils import is_torch_tf32_available

from vidqa.errors import UsageError
from vidqa.model.video_llava import torch_device
from vidqa.train.recipe.definition import Hardware, Logging, Output, Stage


@dataclass(frozen=True)
class RunConfig:
    """What all stages of a run share."""

    hardware: Hardware = field(default_factory=Hardware)
    output: Output = field(default_factory=Output)
    logging: Logging = field(default_factory=Logging)
    seed: int = 0


def processes() -> int:
    """How many processes train together; torchrun says so."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """True in the process that writes files and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def local_device(device: str) -> str:
    """The device of this process: with torchrun each process has the GPU of its own number."""
    where = torch_device(device)
    if where.type == "cuda" and processes() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return str(where)


def join(device: str) -> None:
    """Let the processes of torchrun find each other. Making features may keep the first one busy for days."""
    if processes() > 1 and not distributed.is_initialized():
        where = torch_device(local_device(device))
        if where.type == "cuda":
            torch.cuda.set_device(where)
        backend = "nccl" if where.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(days=7))


def wait_for_all() -> None:
    """Return when all processes are here."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def shares(stage: Stage, per_device: int) -> tuple[int, int]:
    """How a step is cut up: (sequences that a process computes at once, how often before the step).

    Raises:
        UsageError: the processes cannot share the batch equally.
    """
    each, rest = divmod(stage.global_batch, processes())
    if rest or not each:
        raise UsageError(
            f"stage {stage.title}: batch_size {stage.global_batch} cannot be shared by {processes()} processes",
            hint=f"batch_size = {max(1, each) * processes()}",
        )
    fit = max(n for n in range(1, min(per_device, each) + 1) if each % n == 0)
    return fit, each // fit


def precision_on(device: torch.device, hardware: Hardware) -> str:
    """What `auto` means on a device: `fp32`, `bf16` or `fp16`. GPUs before Ampere emulate bf16, which is slow."""
    if hardware.precision != "auto":
        return hardware.precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def arguments(
    stage: Stage, common: RunConfig, n_steps: int, per_device: int, folder: Path, device: torch.device
) -> Any:
    """The Trainer's own settings for a stage that is computed on `device`."""
    at_once, accumulation = shares(stage, per_device)
    hardware, cpu = common.hardware, device.type == "cpu"
    precision = precision_on(device, hardware)
    more: dict[str, Any] = {"fsdp": hardware.fsdp, "fsdp_config": hardware.fsdp_config} if hardware.fsdp else {}
    if hardware.deepspeed:
        more["deepspeed"] = hardware.deepspeed
    if not cpu:
        more["tf32"] = hardware.tf32 and is_torch_tf32_available()  # a GPU before Ampere has none, which is no error
    asked = (("tensorboard", common.logging.tensorboard), ("wandb", common.logging.wandb))
    if common.logging.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=n_steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulation,
        learning_rate=stage.peak_lr,
        lr_scheduler_type=stage.schedule if stage.schedule != "constant" else "constant_with_warmup",
        warmup_steps=-int(-n_steps * stage.warmup // 1),
        weight_decay=stage.weight_decay,
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        max_grad_norm=stage.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=common.seed,
        use_cpu=cpu,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[name for name, is_asked in asked if is_asked],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=hardware.workers,
        ddp_find_unused_parameters=False,
        optim="adamw_torch",
        **more,
    )
    if made.n_gpu > 1:  # several GPUs in one process would cut our batches up: torchrun gives each its own process
        made._n_gpu = 1
    if not cpu and processes() == 1:
        _stay_on(made, device)
    return made


def _stay_on(made: Any, device: torch.device) -> None:
    """Have the Trainer and accelerate leave the model where it is: a single process would go to the first GPU."""
    torch.cuda.set_device(device)
    made.__dict__["_setup_devices"] = device  # what `made.device` gives, found once
    made.distributed_state.device = device
