"""Checks of a recipe across keys: settings that exclude or require each other."""

from __future__ import annotations

from collections.abc import Iterator

from vidqa.config.toml_lines import KeyPath, printable
from vidqa.prompts.chat_formats import FORMATS
from vidqa.training.recipe.definition import Hardware, Recipe, Stage, StageKind, TrainablePart

_ORDER: dict[StageKind, int] = {"language": 0, "connector": 1, "instruct": 2}


def inconsistencies(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Find settings that contradict each other.

    Yields:
        The path of a key, and a sentence about what is wrong with it.
    """
    for key, entries in (("data", recipe.data), ("stage", recipe.stage)):
        if not entries:
            yield (key,), f"at least one [[{key}]] is required"
    titles = [d.title for d in recipe.data]
    for i, title in enumerate(titles):
        if title in titles[:i]:
            yield ("data", i), f"another source is already named `{printable(title)}`; set a different `name`"
    previous: Stage | None = None
    for i, stage in enumerate(recipe.stage):
        for key, problem in _stage_problems(stage, titles, recipe.hardware):
            yield ("stage", i, key), problem
        if previous is not None and _ORDER[stage.kind] < _ORDER[previous.kind]:
            yield ("stage", i, "kind"), f"a `{stage.kind}` stage cannot follow a `{previous.kind}` stage"
        previous = stage
    yield from _lora_problems(recipe)
    yield from _hardware_problems(recipe)


def _stage_problems(stage: Stage, titles: list[str], hardware: Hardware) -> Iterator[tuple[str, str]]:
    per_device, parts = stage.per_device_batch_size, stage.parts
    if stage.epochs is not None and stage.steps is not None:
        yield "steps", "`epochs` and `steps` cannot both be set"
    if not parts:
        yield "freeze", "nothing is left to train"
    if stage.prompt is not None and stage.prompt not in FORMATS:
        yield "prompt", f"unknown chat format `{printable(stage.prompt)}`; available: {', '.join(FORMATS)}"
    if stage.prompt in FORMATS and FORMATS[stage.prompt].kind == "plain" and stage.packing > 1:
        yield "packing", f"captions in the format `{stage.prompt}` cannot be packed: each directly follows its media"
    if "lora" in parts and "llm" in parts:
        yield "train", "`lora` and `llm` exclude each other: an adapter needs a frozen LLM"
    if stage.lora and "lora" not in parts:
        yield "lora", f"LoRA settings in a stage that trains {', '.join(sorted(parts)) or 'nothing'}"
    if "lora" in parts and not stage.lora:
        yield "train", "`lora` requires a table [stage.lora], which may be empty"
    if stage.embedding_tokens and "embeddings" not in parts:
        yield "embedding_tokens", "`embedding_tokens` requires `embeddings` in `train`"
    if stage.kind == "connector" and {"llm", "lora"} & parts:
        yield "train", 'a `connector` stage does not train the LLM; kind = "instruct" trains both'
    if stage.kind == "language" and {"connector", "projector", "temporal"} & parts:
        yield "train", "a `language` stage trains on text only and cannot train the connector"
    if stage.kind == "language" and stage.unseen_pairs:
        yield "unseen_pairs", "a `language` stage trains on text only, where no pair is ignored"
    if stage.connector_learning_rate and not {"connector", "projector", "temporal"} & parts:
        yield "connector_learning_rate", "`connector_learning_rate` is set, but the connector is not trained"
    is_set = "per_device_batch_size" in stage.model_fields_set  # the default is lowered until it fits
    if is_set and isinstance(per_device, int) and stage.batch_size and stage.batch_size % per_device:
        problem = f"`batch_size` {stage.batch_size} is not a multiple of `per_device_batch_size` {per_device}"
        yield "per_device_batch_size", problem
    if stage.embedding_tokens and (hardware.fsdp or hardware.deepspeed):
        yield "embedding_tokens", "single embedding rows cannot be trained under fsdp or deepspeed"
    if per_device == "auto" and (hardware.fsdp or hardware.deepspeed):
        problem = '`per_device_batch_size = "auto"` is not possible under fsdp or deepspeed; set a number'
        yield "per_device_batch_size", problem
    for title in stage.data or ():
        if title not in titles:
            yield "data", f"no source is named `{printable(title)}`; available: {', '.join(map(printable, titles))}"


def _lora_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    for i, stage in enumerate(recipe.stage):
        trained_before = frozenset[TrainablePart]().union(*(earlier.parts for earlier in recipe.stage[:i]))
        if stage.lora and stage.lora.quantize != "none" and {"llm", "embeddings", "lm_head"} & trained_before:
            problem = "an earlier stage trains the LLM, which cannot be quantized then; use its result as a new base"
            yield ("stage", i, "lora", "quantize"), problem
    for i, stage in enumerate(recipe.stage[:-1]):
        if "lora" in stage.parts:
            yield ("stage", i, "lora"), "a stage that trains `lora` must be the last one: a bundle has one adapter"
    if recipe.output.merge_lora and not any("lora" in stage.parts for stage in recipe.stage):
        yield ("output", "merge_lora"), "`merge_lora` requires a stage that trains `lora`"


def _hardware_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    hardware = recipe.hardware
    if hardware.fsdp and hardware.deepspeed:
        yield ("hardware", "deepspeed"), "`fsdp` and `deepspeed` exclude each other"
    if hardware.fsdp_config and not hardware.fsdp:
        yield ("hardware", "fsdp_config"), "`fsdp_config` requires `fsdp`"
    if recipe.eval and recipe.eval.samples and (hardware.fsdp or hardware.deepspeed):
        yield ("eval", "samples"), "a sharded model (fsdp, deepspeed) cannot generate answers; set samples = 0"
    if hardware.deepspeed and any(stage.lora and stage.lora.quantize != "none" for stage in recipe.stage):
        yield ("hardware", "deepspeed"), "deepspeed cannot shard a quantized LLM; use `fsdp` or neither"
