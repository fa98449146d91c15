"""What no key of a recipe alone gets wrong: keys that exclude or need each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vidqa.config.toml_lines import printable
from vidqa.prompts.chat_formats import FORMATS
from vidqa.train.recipe.definition import Hardware, Part, Recipe, Stage, StageKind

_ORDER: dict[StageKind, int] = {"language": 0, "connector": 1, "instruct": 2}

Place = tuple[str | int, ...]


def contradictions(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """What no key alone gets wrong: (place, sentence) of each contradiction."""
    for key, found in (("data", recipe.data), ("stage", recipe.stage)):
        if not found:
            yield (key,), f"at least one [[{key}]] is needed"
    titles = [d.title for d in recipe.data]
    for i, title in enumerate(titles):
        if title in titles[:i]:
            yield ("data", i), f"a second source is named `{printable(title)}`; give it another `name`"
    latest: Stage | None = None
    for i, stage in enumerate(recipe.stage):
        for key, problem in _of_stage(stage, titles, recipe.hardware):
            yield ("stage", i, key), problem
        if latest is not None and _ORDER[stage.kind] < _ORDER[latest.kind]:
            yield ("stage", i, "kind"), f"a `{stage.kind}` stage cannot follow a stage of kind `{latest.kind}`"
        latest = stage
    with_lora = [stage for stage in recipe.stage if "lora" in stage.parts]
    for i, stage in enumerate(recipe.stage):
        before = frozenset[Part]().union(*(earlier.parts for earlier in recipe.stage[:i]))
        if stage.lora and stage.lora.quantize != "none" and {"llm", "embeddings", "lm_head"} & before:
            yield ("stage", i, "lora", "quantize"), "the LLM of an earlier stage is not quantised; make it a base first"
    for i, stage in enumerate(recipe.stage[:-1]):
        if "lora" in stage.parts:
            yield ("stage", i, "lora"), "a stage that trains `lora` must be the last one: a bundle holds one adapter"
    if recipe.output.merge_lora and not with_lora:
        yield ("output", "merge_lora"), "`merge_lora` without a stage that trains `lora`"
    yield from _of_hardware(recipe)


def _of_stage(stage: Stage, titles: list[str], hardware: Hardware) -> Iterator[tuple[str, str]]:
    if stage.epochs is not None and stage.steps is not None:
        yield "steps", "both `epochs` and `steps` are given; one of them says how long"
    if not stage.parts:
        yield "freeze", "nothing is left to train"
    if stage.prompt is not None and stage.prompt not in FORMATS:
        yield "prompt", f"unknown chat format `{printable(stage.prompt)}`; known: {', '.join(FORMATS)}"
    if stage.prompt in FORMATS and FORMATS[stage.prompt].kind == "plain" and stage.packing > 1:
        yield "packing", f"captions in the format `{stage.prompt}` follow their medium at once and cannot share it"
    if "lora" in stage.parts and "llm" in stage.parts:
        yield "train", "`lora` and `llm` exclude each other: an adapter stands on a frozen LLM"
    if stage.lora and "lora" not in stage.parts:
        yield "lora", f"settings of LoRA, but the stage trains {', '.join(sorted(stage.parts)) or 'nothing'}"
    if "lora" in stage.parts and not stage.lora:
        yield "train", "`lora` needs its settings: a table [stage.lora], which may be empty"
    if stage.embedding_tokens and "embeddings" not in stage.parts:
        yield "embedding_tokens", "`embedding_tokens` without `embeddings` in `train`"
    if stage.kind == "connector" and {"llm", "lora"} & stage.parts:
        yield "train", 'a `connector` stage leaves the LLM alone; kind = "instruct" trains both'
    if stage.kind == "language" and {"connector", "projector", "temporal"} & stage.parts:
        yield "train", "a `language` stage learns from text alone and cannot train the connector"
    if stage.kind == "language" and stage.unseen_pairs:
        yield "unseen_pairs", "a `language` stage learns from text alone, where every pair may be said"
    if stage.connector_lr and not {"connector", "projector", "temporal"} & stage.parts:
        yield "connector_lr", "`connector_lr`, but the connector is not trained"
    if isinstance(stage.per_device, int) and stage.batch_size and stage.batch_size % stage.per_device:
        yield "per_device", f"`batch_size` {stage.batch_size} is not a multiple of `per_device` {stage.per_device}"
    if stage.embedding_tokens and (hardware.fsdp or hardware.deepspeed):
        yield "embedding_tokens", "single rows cannot be told apart under fsdp or deepspeed"
    if stage.per_device == "auto" and (hardware.fsdp or hardware.deepspeed):
        yield "per_device", '`per_device = "auto"` cannot be tried out under fsdp or deepspeed; give a number'
    if stage.data is not None:
        for title in stage.data:
            if title not in titles:
                yield "data", f"no source is named `{printable(title)}`; there are: {', '.join(map(printable, titles))}"


def _of_hardware(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    hardware = recipe.hardware
    if hardware.fsdp and hardware.deepspeed:
        yield ("hardware", "deepspeed"), "`fsdp` and `deepspeed` exclude each other"
    if hardware.fsdp_config and not hardware.fsdp:
        yield ("hardware", "fsdp_config"), "`fsdp_config` without `fsdp`"
    if recipe.eval and recipe.eval.samples and (hardware.fsdp or hardware.deepspeed):
        yield ("eval", "samples"), "a model in pieces (fsdp, deepspeed) cannot answer in between; samples = 0"
    if hardware.deepspeed and any(stage.lora and stage.lora.quantize != "none" for stage in recipe.stage):
        yield ("hardware", "deepspeed"), "a quantised LLM cannot be cut up by deepspeed; use `fsdp` or neither"
