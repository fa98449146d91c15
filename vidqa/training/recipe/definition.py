"""The keys of a training recipe and their defaults, as frozen pydantic models.

The defaults are those of the Video-LLaVA paper (table 7): AdamW with a cosine schedule, warmup ratio 0.03, no weight
decay, one epoch, batch sizes 256 and 128, learning rates 1e-3 and 2e-5, LoRA of rank 128 with alpha 256. This module
checks one key at a time; `consistency.py` checks combinations of keys, and `load.py` reads the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vidqa.training.data.record_formats import Format
from vidqa.training.data.unseen_pairs import UnseenPairs

#: The parts of a model that a stage can train. `temporal` is the compressor that some connectors have besides the
#: projector; `connector` is both.
TrainablePart = Literal["connector", "projector", "temporal", "llm", "lora", "embeddings", "lm_head"]
StageKind = Literal["connector", "instruct", "language"]
#: For a media item with more conversations than fit into one packed sequence: all of its sequences in every epoch, or
#: one sequence of randomly sampled conversations.
SequencesPerMedia = Literal["all", "one"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
#: A stage name is also a folder name, so it is short and has no separators or control characters.
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\s/\\\x00-\x1f\x7f]+$")]

_DEFAULT_PARTS: dict[StageKind, tuple[TrainablePart, ...]] = {
    "connector": ("connector",),
    "instruct": ("connector", "llm"),
    "language": ("llm",),
}
_DEFAULT_LEARNING_RATE: dict[StageKind, float] = {"connector": 1e-3, "instruct": 2e-5, "language": 2e-5}
_DEFAULT_LORA_LEARNING_RATE = 2e-4  # scripts/v1_5/finetune_lora.sh of Video-LLaVA
_DEFAULT_BATCH_SIZE: dict[StageKind, int] = {"connector": 256, "instruct": 128, "language": 128}

#: (table, former key) -> what to write instead. Shown when a recipe still has the former key.
RENAMED_KEYS: dict[tuple[str, str], str] = {
    ("stage", "per_device"): "`per_device_batch_size`",
    ("stage", "lr"): "`learning_rate`",
    ("stage", "connector_lr"): "`connector_learning_rate`",
    ("stage", "warmup"): "`warmup_ratio`",
    ("stage", "order"): '`group_by_length`: `order = "length"` is `group_by_length = true`',
    ("stage", "visits"): '`sequences_per_media`: `visits = "draw"` is `sequences_per_media = "one"`',
    ("output", "save_every"): "`save_steps`",
    ("output", "keep"): "`save_total_limit`",
    ("eval", "every"): "`eval_steps`",
    ("logging", "every"): "`logging_steps`",
}
#: (table, key, former value) -> the value to write instead.
RENAMED_VALUES: dict[tuple[str, str, str], str] = {("model", "connector", "fresh"): "reinitialize"}


def _reject_unread_pairs(value: Any) -> Any:
    """Accept only pairs that `load.py` has read from a file."""
    if value is None or isinstance(value, UnseenPairs):
        return value
    raise ValueError("must be the path of a TOML file")


class ConfigModel(BaseModel):
    """A table of the recipe: unknown keys are errors, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(ConfigModel):
    """`[model]`: the model to start from."""

    base: str = Field(min_length=1)  # name or folder of a bundle
    connector: Literal["keep", "reinitialize"] = "keep"  # reinitialize: new random weights
    name: str | None = None  # name of the resulting bundle; by default the file name of the recipe


class Data(ConfigModel):
    """`[[data]]`: one file of conversations and the folder of its media."""

    file: str = Field(min_length=1)
    media: str | None = None  # folder that media paths are relative to; by default the folder of the file
    name: Name | None = None  # by which stages select the source; by default the stem of the file name
    weight: Positive = 1.0  # how often an epoch sees each record: 0.5 uses half of them, 2.0 uses all of them twice
    format: Format = "auto"

    @property
    def title(self) -> str:
        """Name by which stages select the source."""
        return self.name or Path(self.file).stem


class Lora(ConfigModel):
    """`[stage.lora]`: LoRA adapters on every linear layer of the LLM except its head."""

    r: Count = 128
    alpha: Positive = 256.0
    dropout: Share = 0.05
    targets: tuple[str, ...] | None = Field(default=None, strict=False)  # layer names; None: all linear layers
    quantize: Literal["none", "4bit", "8bit"] = "none"  # QLoRA


class Stage(ConfigModel):
    """`[[stage]]`: one training stage."""

    kind: StageKind
    name: Name | None = None
    train: tuple[TrainablePart, ...] | None = Field(default=None, strict=False)
    freeze: tuple[TrainablePart, ...] = Field(default=(), strict=False)
    embedding_tokens: tuple[str, ...] = Field(default=(), strict=False)  # train only the embeddings of these tokens
    data: tuple[str, ...] | None = Field(default=None, strict=False)  # names of sources; None: all
    prompt: str | None = None  # chat format; None: that of the bundle
    epochs: Positive | None = None
    steps: Count | None = None
    batch_size: Count | None = None  # sequences per optimizer step, over all processes
    per_device_batch_size: Count | Literal["auto"] = 16  # sequences per forward pass of one process
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    connector_learning_rate: Positive | None = None  # if it differs from learning_rate
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.03  # share of the steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), strict=False)
    max_grad_norm: Positive = 1.0
    packing: Count = 1  # maximum number of conversations about the same media in one sequence
    sequences_per_media: SequencesPerMedia = "all"
    group_by_length: bool = False  # batches of sequences with similar lengths: less padding
    #: Read from a TOML file of word pairs that no media item shows: ignored in the loss where they would be answers.
    unseen_pairs: Annotated[UnseenPairs | None, BeforeValidator(_reject_unread_pairs)] = None
    lora: Lora | None = None

    @property
    def parts(self) -> frozenset[TrainablePart]:
        """The parts that this stage trains."""
        default = ("connector", "lora") if self.lora and self.kind == "instruct" else _DEFAULT_PARTS[self.kind]
        return frozenset(self.train or default) - frozenset(self.freeze)

    @property
    def title(self) -> str:
        """Name for messages and folders."""
        return self.name or self.kind

    @property
    def peak_learning_rate(self) -> float:
        """Peak learning rate of all trainable parameters, or of all but the connector if that has its own."""
        default = _DEFAULT_LORA_LEARNING_RATE if "lora" in self.parts else _DEFAULT_LEARNING_RATE[self.kind]
        return default if self.learning_rate is None else self.learning_rate

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step, over all processes."""
        return self.batch_size or _DEFAULT_BATCH_SIZE[self.kind]


class Evaluation(ConfigModel):
    """`[eval]`: a held-out file, evaluated before training, every `eval_steps` steps, and after each stage."""

    file: str = Field(min_length=1)
    media: str | None = None
    eval_steps: Count | None = None  # None: only at the end of each stage
    samples: Annotated[int, Field(ge=0)] = 8  # conversations whose answers are generated and stored
    max_new_tokens: Count = 64
    max_conversations: Count = 512  # the first ones of the file


class Hardware(ConfigModel):
    """`[hardware]`: settings for speed and memory; `precision` and `tf32` also change results."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    tf32: bool = True
    gradient_checkpointing: bool = False
    workers: Annotated[int, Field(ge=0)] = 0  # data loader processes
    fsdp: str | None = None  # as in transformers: "full_shard auto_wrap"
    fsdp_config: str | None = None  # a JSON file
    deepspeed: str | None = None  # a JSON file


class Output(ConfigModel):
    """`[output]`: checkpoints and exports."""

    save_steps: Count = 500  # steps between checkpoints
    save_total_limit: Count = 2  # checkpoints of a stage that are kept
    merge_lora: bool = False  # false: the adapter is stored separately and applied when the model is loaded
    mm_projector: bool = True  # export/mm_projector.bin and .safetensors, as LLaVA's code reads them
    transformers: bool = False  # export/transformers: a VideoLlava folder


class Logging(ConfigModel):
    """`[logging]`: what to log besides metrics.jsonl, which is always written."""

    logging_steps: Count = 10  # steps between lines on screen and in TensorBoard
    tensorboard: bool = False
    wandb: bool = False


class Recipe(ConfigModel):
    """A complete recipe."""

    model: ModelConfig
    data: tuple[Data, ...] = Field(strict=False)
    stage: tuple[Stage, ...] = Field(strict=False)
    eval: Evaluation | None = None
    hardware: Hardware = Hardware()
    output: Output = Output()
    logging: Logging = Logging()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_reject_rate: Share = 0.01

    def data_of(self, stage: Stage) -> tuple[Data, ...]:
        """Return the sources that a stage trains on."""
        return tuple(d for d in self.data if stage.data is None or d.title in stage.data)

    def stage_names(self) -> tuple[str, ...]:
        """Return the folder name of each stage, such as `1-connector`."""
        return tuple(f"{n}-{stage.title}" for n, stage in enumerate(self.stage, start=1))


def renamed_key(table: str, key: str) -> str | None:
    """Return what to write instead of a former key of a table; None for other keys."""
    return RENAMED_KEYS.get((table, key))


def table_keys(path: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the table at a path of the recipe; none if there cannot be a table."""
    table: Any = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        field = table.model_fields.get(part)
        table = _table_type(field.annotation) if field is not None else None
        if table is None:
            return []
    return list(table.model_fields)


def _table_type(annotation: Any) -> Any:
    """Return the ConfigModel inside `tuple[Model, ...]`, `Model | None` or `Model`; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _table_type(inner)) is not None:
            return found
    return None
