"""Checks before training starts: whether packages, devices, disk space and base model meet a recipe's needs."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vidqa.common.extras import install_hint, is_installed, missing_package
from vidqa.errors import UsageError, VidqaError
from vidqa.model.bundle.bundle import Bundle
from vidqa.train.outputs.hf_export import exportable
from vidqa.train.recipe.definition import Recipe, Stage
from vidqa.train.stage.checkpoints import folder_bytes, require_disk_space


def check_packages(recipe: Recipe) -> None:
    """Check that all packages that the recipe requires are installed.

    Raises:
        UsageError: lists all missing packages, each with the key that requires it.
    """
    with_lora = any("lora" in stage.parts for stage in recipe.stage)
    quantized = any(stage.lora and stage.lora.quantize != "none" for stage in recipe.stage)
    export = bool(recipe.output.transformers)
    required = [  # (is it required, by which key, package, extra that contains it)
        (True, "training", "accelerate", "train"),
        (with_lora, "stage.lora", "peft", "train"),
        (quantized, "stage.lora.quantize", "bitsandbytes", "quantize"),
        (export, "output.transformers", "onnx", "export"),
        (bool(recipe.logging.tensorboard), "logging.tensorboard", "tensorboard", "tensorboard"),
        (bool(recipe.logging.wandb), "logging.wandb", "wandb", None),
        (bool(recipe.hardware.deepspeed), "hardware.deepspeed", "deepspeed", None),
    ]
    missing = [one for one in required if one[0] and not is_installed(one[2])]
    if missing:
        extras = dict.fromkeys(extra for *_, extra in missing if extra)
        raise UsageError(
            "\n".join(missing_package(key, package) for _, key, package, _ in missing),
            hint=install_hint(*extras, others=[package for _, _, package, extra in missing if extra is None]),
        )


def check_deepspeed(recipe: Recipe) -> None:
    """Check that the DeepSpeed configuration is readable and returns the full weights at the end of a stage.

    Raises:
        UsageError: it is not readable, or does not return the full weights.
    """
    if recipe.hardware.deepspeed is None:
        return
    path = Path(recipe.hardware.deepspeed)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        zero = settings.get("zero_optimization", {})
        is_sharded = zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"hardware.deepspeed: {path} is not a readable DeepSpeed configuration: {error}") from error
    if is_sharded:
        raise UsageError(
            f"hardware.deepspeed: {path}: ZeRO stage 3 would not gather the weights at the end of a training stage",
            hint='"stage3_gather_16bit_weights_on_model_save": true in "zero_optimization"',
        )


def check_device(recipe: Recipe, device: str) -> None:
    """Check that the device supports what the recipe asks for.

    Without this check accelerate would silently ignore sharding on a CPU, and QLoRA would fail when its stage starts.

    Raises:
        UsageError: lists everything that a CPU does not support.
    """
    if device != "cpu":
        return
    hardware = recipe.hardware
    problems = [
        f"hardware.{key} requires GPUs; on CPUs torchrun alone distributes the batch, without sharding the model"
        for key, value in (("fsdp", hardware.fsdp), ("deepspeed", hardware.deepspeed))
        if value
    ]
    problems += [
        f"stage {stage.title}: lora.quantize requires a GPU"
        for stage in recipe.stage
        if stage.lora and stage.lora.quantize != "none"
    ]
    if problems:
        raise UsageError("\n".join(problems))


def check_space(recipe: Recipe, base: Bundle, out: Path) -> None:
    """Check that the disk has space for the checkpoints of the largest stage and for the resulting bundle.

    Raises:
        TrainError: there is not enough; the message has the required and the free size.
    """
    required = max(disk_bytes(recipe, stage, base) for stage in recipe.stage)
    require_disk_space(out, required, f"{recipe.output.save_total_limit} checkpoints and the model")


def disk_bytes(recipe: Recipe, stage: Stage, base: Bundle) -> int:
    """Return an upper bound for the disk space of a stage in bytes: its checkpoints and the model.

    The checkpoint that is being written counts too. A checkpoint needs four bytes for each trainable parameter, and
    eight for the moments of the optimizer.
    """
    config = json.loads((base.llm_folder / "config.json").read_text(encoding="utf-8"))
    weight_bytes = 2 if str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    n_llm = sum(p.stat().st_size for p in base.llm_folder.glob("*.safetensors")) // weight_bytes
    n_trainable = base.connector_file.stat().st_size // 4
    if "llm" in stage.parts:
        n_trainable += n_llm
    elif stage.lora:  # rank x (in + out) per layer, at most about this share of a square one
        n_trainable += math.ceil(n_llm * 2 * stage.lora.r / max(1, int(config.get("hidden_size", 1))))
    return 12 * n_trainable * (recipe.output.save_total_limit + 1) + folder_bytes(base.folder)


def check_exports(recipe: Recipe, base: Bundle, where: str) -> None:
    """Check that the model can be exported to every requested format, before days of training rather than after.

    Args:
        recipe: recipe of the run.
        base: the base model.
        where: file and line, or the override, that sets `output.transformers`.

    Raises:
        UsageError: an export is not possible; the message has the reason.
    """
    if not recipe.output.transformers:
        return
    try:
        exportable(base)
    except VidqaError as error:
        hint = "transformers = false; the model for --model and export/mm_projector.bin are written in any case"
        raise UsageError(f"{where}: `output.transformers`: {error.what}", hint=error.hint or hint) from error
