"""The words of a recipe: which model, which data, which stages, on what, and what comes out. Frozen records.

Defaults are the paper's (Video-LLaVA, table 7): AdamW, cosine, warm-up 0.03, no weight decay, one epoch, batches of
256 and 128, learning rates 1e-3 and 2e-5; LoRA of rank 128 with alpha 256. Knows names and types. Does
not know files, nor what contradicts what: `vidqa.train.recipe.load` reads, `vidqa.train.recipe.consistency` compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vidqa.train.data.record_formats import Format

#: What a stage can train. `temporal` is what stands between features and projector in connectors that have it.
Part = Literal["connector", "projector", "temporal", "llm", "lora", "embeddings", "lm_head"]
StageKind = Literal["connector", "instruct", "language"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
#: Names of stages are folders, so they are short, and without separators and control characters.
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\s/\\\x00-\x1f\x7f]+$")]

_TRAINS: dict[StageKind, tuple[Part, ...]] = {
    "connector": ("connector",),
    "instruct": ("connector", "llm"),
    "language": ("llm",),
}
_LR: dict[StageKind, float] = {"connector": 1e-3, "instruct": 2e-5, "language": 2e-5}
_LORA_LR = 2e-4  # scripts/v1_5/finetune_lora.sh of the original
_BATCH: dict[StageKind, int] = {"connector": 256, "instruct": 128, "language": 128}


class ConfigModel(BaseModel):
    """A table of the recipe: unknown keys are problems, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(ConfigModel):
    """`[model]`: where the run starts."""

    base: str = Field(min_length=1)  # a bundle by name or folder
    connector: Literal["keep", "fresh"] = "keep"  # fresh: new random weights
    name: str | None = None  # of the bundle that comes out; the recipe's file name by default


class Data(ConfigModel):
    """`[[data]]`: one file of conversations and the folder of its media."""

    file: str = Field(min_length=1)
    media: str | None = None  # folder that the paths of the records start from
    name: Name | None = None  # by which stages choose it; the file's stem by default
    weight: Positive = 1.0  # share of an epoch: 0.5 takes half of the file, 2.0 all of it twice
    format: Format = "auto"

    @property
    def title(self) -> str:
        """The name by which stages choose the file."""
        return self.name or Path(self.file).stem


class Lora(ConfigModel):
    """`[stage.lora]`: adapters on every linear layer of the LLM but its head."""

    r: Count = 128
    alpha: Positive = 256.0
    dropout: Share = 0.05
    targets: tuple[str, ...] | None = Field(default=None, strict=False)  # names of layers; None takes all linear ones
    quantize: Literal["none", "4bit", "8bit"] = "none"  # QLoRA


class Stage(ConfigModel):
    """`[[stage]]`: one pass of tuning."""

    kind: StageKind
    name: Name | None = None
    train: tuple[Part, ...] | None = Field(default=None, strict=False)
    freeze: tuple[Part, ...] = Field(default=(), strict=False)
    embedding_tokens: tuple[str, ...] = Field(default=(), strict=False)  # only these rows of the embeddings learn
    data: tuple[str, ...] | None = Field(default=None, strict=False)  # names of sources; None takes all
    prompt: str | None = None  # chat format; None takes the bundle's
    epochs: Positive | None = None
    steps: Count | None = None
    batch_size: Count | None = None  # sequences in one step, over all processes
    per_device: Count | Literal["auto"] = 16  # sequences that are computed at once by one process
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    connector_lr: Positive | None = None  # where it differs from lr
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.03  # share of the steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), strict=False)
    max_grad_norm: Positive = 1.0
    packing: Count = 1  # most conversations about one medium that share its visual tokens in one sequence
    visits: Literal["all", "draw"] = "all"  # draw: of a medium with more than fit one sequence, that many an epoch
    order: Literal["random", "length"] = "random"  # length: sequences of like length meet in a batch
    unseen_pairs: str | None = None  # a file of word pairs that no medium shows: left out of the loss where they answer
    lora: Lora | None = None

    @property
    def parts(self) -> frozenset[Part]:
        """What the stage trains."""
        train = self.train or (("connector", "lora") if self.lora and self.kind == "instruct" else _TRAINS[self.kind])
        return frozenset(train) - frozenset(self.freeze)

    @property
    def title(self) -> str:
        """Name for people and folders."""
        return self.name or self.kind

    @property
    def peak_lr(self) -> float:
        """Highest learning rate of what is not the connector."""
        usual = _LORA_LR if "lora" in self.parts else _LR[self.kind]
        return usual if self.lr is None else self.lr

    @property
    def global_batch(self) -> int:
        """Sequences in one step."""
        return self.batch_size or _BATCH[self.kind]


class Evaluation(ConfigModel):
    """`[eval]`: a held-out file, looked at every `every` steps and at the end of each stage."""

    file: str = Field(min_length=1)
    media: str | None = None
    every: Count | None = None  # None: at the end of each stage only
    samples: Annotated[int, Field(ge=0)] = 8  # conversations that are answered and shown
    max_new_tokens: Count = 64
    max_conversations: Count = 512  # of the file; the first ones


class Hardware(ConfigModel):
    """`[hardware]`: changes speed and memory; precision changes results, too."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    tf32: bool = True
    gradient_checkpointing: bool = False
    workers: Annotated[int, Field(ge=0)] = 0  # processes that read features
    fsdp: str | None = None  # as transformers takes it: "full_shard auto_wrap"
    fsdp_config: str | None = None  # a JSON file
    deepspeed: str | None = None  # a JSON file


class Output(ConfigModel):
    """`[output]`: what is kept."""

    save_every: Count = 500  # steps between checkpoints
    keep: Count = 2  # checkpoints of a stage that stay
    merge_lora: bool = False  # false: the adapter stays apart and is applied when the model is loaded
    mm_projector: bool = True  # export/mm_projector.bin and .safetensors, as LLaVA's code reads them
    transformers: bool = False  # export/transformers: a VideoLlava folder


class Logging(ConfigModel):
    """`[logging]`: metrics.jsonl is always written."""

    every: Count = 10  # steps between lines on screen and in TensorBoard
    tensorboard: bool = False
    wandb: bool = False


class Recipe(ConfigModel):
    """The whole file."""

    model: Base
    data: tuple[Data, ...] = Field(strict=False)
    stage: tuple[Stage, ...] = Field(strict=False)
    eval: Evaluation | None = None
    hardware: Hardware = Hardware()
    output: Output = Output()
    logging: Logging = Logging()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_reject_rate: Share = 0.01

    def sources_of(self, stage: Stage) -> tuple[int, ...]:
        """Places in `data` of what a stage learns from."""
        return tuple(i for i, d in enumerate(self.data) if stage.data is None or d.title in stage.data)

    def stage_names(self) -> tuple[str, ...]:
        """A folder name for each stage: `1-connector`."""
        return tuple(f"{n}-{stage.title}" for n, stage in enumerate(self.stage, start=1))


def keys_at(place: tuple[str | int, ...]) -> list[str]:
    """The keys that a table of the recipe may have; none where no table can be."""
    kind: Any = Recipe
    for part in place:
        if isinstance(part, int):
            continue
        field = kind.model_fields.get(part)
        if field is None:
            return []
        kind = _record(field.annotation)
        if kind is None:
            return []
    return list(kind.model_fields)


def _record(annotation: Any) -> Any:
    """The record inside `tuple[Record, ...]`, `Record | None` or `Record`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _record(inner)) is not None:
            return found
    return None
