"""What a recipe needs of machine and base: packages, devices, room on the disk; looked for before anything begins."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

from vidqa.errors import UsageError, VidqaError
from vidqa.model.bundle.bundle import Bundle
from vidqa.train.outputs.hf_export import exportable
from vidqa.train.recipe.definition import Recipe, Stage
from vidqa.train.stage.checkpoints import folder_bytes, need_room


def check_packages(recipe: Recipe) -> None:
    """See that every package is installed that the recipe asks for.

    Raises:
        UsageError: names all that are missing, with the key that wants each.
    """
    with_lora = any("lora" in stage.parts for stage in recipe.stage)
    quantized = any(stage.lora and stage.lora.quantize != "none" for stage in recipe.stage)
    wanted = {
        "accelerate": "training",
        "peft": "stage.lora" if with_lora else "",
        "bitsandbytes": "stage.lora.quantize" if quantized else "",
        "deepspeed": "hardware.deepspeed" if recipe.hardware.deepspeed else "",
        "tensorboard": "logging.tensorboard" if recipe.logging.tensorboard else "",
        "wandb": "logging.wandb" if recipe.logging.wandb else "",
    }
    missing = [(name, why) for name, why in wanted.items() if why and importlib.util.find_spec(name) is None]
    if missing:
        others = " ".join(name for name, _ in missing if name not in ("accelerate", "peft"))
        raise UsageError(
            "\n".join(f"{why} needs the package {name}, which is not installed" for name, why in missing),
            hint=f"pip install 'vidqa[train]' {others}".strip(),
        )


def check_deepspeed(recipe: Recipe) -> None:
    """See that DeepSpeed's settings can be read, and give the weights back when a stage ends.

    Raises:
        UsageError: they cannot, or do not.
    """
    if recipe.hardware.deepspeed is None:
        return
    path = Path(recipe.hardware.deepspeed)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        zero = settings.get("zero_optimization", {})
        in_pieces = zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"hardware.deepspeed: {path} cannot be read as DeepSpeed's settings: {error}") from error
    if in_pieces:
        raise UsageError(
            f"hardware.deepspeed: {path}: with stage 3 the weights could not be put together when a stage ends",
            hint='"stage3_gather_16bit_weights_on_model_save": true in "zero_optimization"',
        )


def check_device(recipe: Recipe, device: str) -> None:
    """See that the device can do what the recipe asks of it.

    Raises:
        UsageError: names all that a CPU cannot do. accelerate would pass over the wish to cut the model up, without a
            word, and QLoRA would end when its stage begins.
    """
    if device != "cpu":
        return
    hardware = recipe.hardware
    problems = [
        f"hardware.{key} needs GPUs: on a CPU a model is not cut up; torchrun alone shares the batch"
        for key, value in (("fsdp", hardware.fsdp), ("deepspeed", hardware.deepspeed))
        if value
    ]
    problems += [
        f"stage {stage.title}: lora.quantize needs a GPU"
        for stage in recipe.stage
        if stage.lora and stage.lora.quantize != "none"
    ]
    if problems:
        raise UsageError("\n".join(problems))


def check_space(recipe: Recipe, base: Bundle, out: Path) -> None:
    """See that the disk holds the checkpoints of the largest stage and the bundle.

    Raises:
        TrainError: it does not; says how much is needed and there.
    """
    need = max(disk_bytes(recipe, stage, base) for stage in recipe.stage)
    need_room(out, need, f"{recipe.output.keep} checkpoints and the model")


def disk_bytes(recipe: Recipe, stage: Stage, base: Bundle) -> int:
    """What a stage's checkpoints take at most, the one that is being written among them, and the model.

    Weights that learn are counted as four bytes, with eight for the optimizer's moments.
    """
    config = json.loads((base.llm_folder / "config.json").read_text(encoding="utf-8"))
    width = 2 if str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    llm = sum(p.stat().st_size for p in base.llm_folder.glob("*.safetensors")) // width
    learn = base.connector_file.stat().st_size // 4
    if "llm" in stage.parts:
        learn += llm
    elif stage.lora:  # rank x (in + out) of each layer, at most about this share of a square one
        learn += math.ceil(llm * 2 * stage.lora.r / max(1, int(config.get("hidden_size", 1))))
    return 12 * learn * (recipe.output.keep + 1) + folder_bytes(base.folder)


def check_exports(recipe: Recipe, base: Bundle, where: str) -> None:
    """See that the model can be written in every form that the recipe asks for; said now, not after days.

    Args:
        recipe: of the run.
        base: where it starts.
        where: of `output.transformers`: file and line, or the option that set it.

    Raises:
        UsageError: it cannot, and why.
    """
    if not recipe.output.transformers:
        return
    try:
        exportable(base)
    except VidqaError as error:
        instead = "transformers = false; the model for --model and export/mm_projector.bin are written all the same"
        raise UsageError(f"{where}: `output.transformers`: {error.what}", hint=error.hint or instead) from error
