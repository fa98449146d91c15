"""Data parallelism: the rank of this process, how processes share a step, and the TrainingArguments of a stage."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainingArguments
from transformers.utils import is_torch_tf32_available

from vidqa.errors import UsageError
from vidqa.model.video_llava import torch_device
from vidqa.training.recipe.definition import Hardware, Logging, Stage


def processes() -> int:
    """Return the number of processes that train together, as set by torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Return True in the process that writes files and prints messages."""
    return int(os.environ.get("RANK", 0)) == 0


def local_device(device: str) -> str:
    """Return the device of this process: under torchrun the GPU with its local rank."""
    resolved = torch_device(device)
    if resolved.type == "cuda" and processes() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return str(resolved)


def init_process_group(device: str) -> None:
    """Connect the processes of torchrun. The timeout is long: encoding may occupy the first process for days."""
    if processes() > 1 and not distributed.is_initialized():
        local = torch_device(local_device(device))
        if local.type == "cuda":
            torch.cuda.set_device(local)
        backend = "nccl" if local.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(days=7))


def wait_for_all() -> None:
    """Return when all processes have called this."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def split_batch(stage: Stage, per_device_batch_size: int) -> tuple[int, int]:
    """Split the batch of a step over processes and gradient accumulation.

    Returns:
        Sequences per forward pass of one process, and gradient accumulation steps.

    Raises:
        UsageError: the batch size is not divisible by the number of processes.
    """
    share, rest = divmod(stage.global_batch_size, processes())
    if rest or not share:
        raise UsageError(
            f"stage {stage.title}: batch_size {stage.global_batch_size} is not divisible by {processes()} processes",
            hint=f"batch_size = {max(1, share) * processes()}",
        )
    fit = max(n for n in range(1, min(per_device_batch_size, share) + 1) if share % n == 0)
    return fit, share // fit


def precision_on(device: torch.device, hardware: Hardware) -> str:
    """Resolve `precision = "auto"` for a device: `fp32`, `bf16` or `fp16`.

    GPUs before Ampere only emulate bf16, which is slow.
    """
    if hardware.precision != "auto":
        return hardware.precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def training_arguments(
    stage: Stage,
    *,
    n_steps: int,
    per_device_batch_size: int,
    hardware: Hardware,
    logging: Logging,
    seed: int,
    folder: Path,
    device: torch.device,
) -> Any:
    """Create the TrainingArguments of a stage that trains on `device`."""
    batch_size, accumulation_steps = split_batch(stage, per_device_batch_size)
    on_cpu = device.type == "cpu"
    precision = precision_on(device, hardware)
    optional: dict[str, Any] = {"fsdp": hardware.fsdp, "fsdp_config": hardware.fsdp_config} if hardware.fsdp else {}
    if hardware.deepspeed:
        optional["deepspeed"] = hardware.deepspeed
    if not on_cpu:
        # GPUs before Ampere have no TF32, which is not an error.
        optional["tf32"] = hardware.tf32 and is_torch_tf32_available()
    loggers = (("tensorboard", logging.tensorboard), ("wandb", logging.wandb))
    if logging.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=n_steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation_steps,
        learning_rate=stage.peak_learning_rate,
        lr_scheduler_type=stage.schedule if stage.schedule != "constant" else "constant_with_warmup",
        warmup_steps=-int(-n_steps * stage.warmup_ratio // 1),
        weight_decay=stage.weight_decay,
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        max_grad_norm=stage.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=seed,
        use_cpu=on_cpu,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[name for name, is_enabled in loggers if is_enabled],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=hardware.workers,
        ddp_find_unused_parameters=False,
        optim="adamw_torch",
        **optional,
    )
    if arguments.n_gpu > 1:  # DataParallel would split our batches: torchrun starts one process per GPU instead
        arguments._n_gpu = 1
    if not on_cpu and processes() == 1:
        _pin_device(arguments, device)
    return arguments


def _pin_device(arguments: Any, device: torch.device) -> None:
    """Keep the model on `device`: Trainer and accelerate would move a single process to the first GPU."""
    torch.cuda.set_device(device)
    arguments.__dict__["_setup_devices"] = device  # the cached value of `arguments.device`
    arguments.distributed_state.device = device
