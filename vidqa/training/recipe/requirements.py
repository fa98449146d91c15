"""Checks before training starts: whether packages, devices, disk space and base model meet a recipe's needs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from vidqa.common.extras import install_hint, is_installed, missing_package
from vidqa.errors import UsageError, VidqaError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.connector import build_connector
from vidqa.model.llm import load_tokenizer
from vidqa.model.lora import attach_lora
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.training.distributed import local_device, split_batch
from vidqa.training.outputs.hf_export import exportable
from vidqa.training.outputs.trained_bundle import check_no_adapter
from vidqa.training.recipe.definition import Recipe, Stage
from vidqa.training.stage.checkpoints import folder_bytes, require_disk_space
from vidqa.training.stage.stage import check_chat_formats
from vidqa.training.stage.trainable import set_trainable


def check_machine(recipe: Recipe, device: str) -> None:
    """Check everything that does not depend on the base: packages, DeepSpeed, device, number of processes.

    Args:
        recipe: recipe of the run.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the machine does not meet the needs of the recipe.
        DeviceError: the device was requested by name and is not available.
    """
    check_packages(recipe)
    check_deepspeed(recipe)
    check_device(recipe, local_device(device))
    for stage in recipe.stage:
        split_batch(stage, 1)


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
    if hardware.precision == "fp16":  # accelerate would train in float32 without a word
        problems.append('hardware.precision = "fp16" requires a GPU; a CPU trains in "fp32" or "bf16"')
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


def check_base(recipe: Recipe, base: Bundle, where: str) -> None:
    """Check that the base can be trained and exported as the recipe asks, before days of training rather than after.

    Args:
        recipe: recipe of the run.
        base: the base model. Its weights are not read, except to export it.
        where: file and line, or the override, that sets `output.transformers`.

    Raises:
        UsageError: the base lacks a part that a stage trains, has an adapter already, or cannot be exported.
        TrainError: a stage cannot be trained with its chat format.
        VidqaError: no layer has a name that LoRA names.
    """
    if any(stage.lora for stage in recipe.stage) and not recipe.output.merge_lora:
        check_no_adapter(base)
    if recipe.output.transformers:
        try:
            exportable(base)
        except VidqaError as error:
            hint = "transformers = false; the model for --model and export/mm_projector.bin are written in any case"
            raise UsageError(f"{where}: `output.transformers`: {error.what}", hint=error.hint or hint) from error
    check_chat_formats(recipe, base)
    model = _without_weights(base)
    for stage in recipe.stage:
        if stage.lora:  # in the last stage only
            attach_lora(model.llm, stage.lora.r, stage.lora.alpha, stage.lora.dropout, stage.lora.targets)
        set_trainable(model, stage)


def _without_weights(base: Bundle) -> VideoLlava:
    """Create the modules of a model on torch's meta device, which takes no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    c, prompt = base.spec.connector, base.spec.prompt
    config = AutoConfig.from_pretrained(base.llm_folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        connector = build_connector(c.type, c.in_size, c.out_size, c.compressor)
    chat = get_format(prompt.format, prompt.system)
    return VideoLlava(connector, llm, load_tokenizer(base.llm_folder), chat, base.spec.llm.context)
