"""A whole model as a plan: shapes, settings, and for every weight where it comes from. And the check that it is whole.

This is what a layout module gives and what `write` takes. Does not know files or published names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vidqa.convert.lazy_tensors import LazyTensor
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import BundleSpec, CompatSpec, ConnectorSpec, GenerationSpec, PromptSpec
from vidqa.model.connector import build_connector
from vidqa.model.towers.text import TextConfig, TextTower
from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.records import SamplingSpec

Mode = Literal["fixed", "original"]
Architecture = Literal["video_llava"]


@dataclass(frozen=True)
class TowerPlan:
    """A vision tower; `tensors` by the names of `VisionTower`. `sampling` is None for the tower of pictures."""

    config: VisionConfig
    tensors: Mapping[str, LazyTensor]
    layer: int
    keep_cls: bool
    preprocess: PreprocessSpec
    n_frames: int = 1
    sampling: SamplingSpec | None = None


@dataclass(frozen=True)
class TextPlan:
    """A text tower; `tensors` by the names of `TextTower`. `tokenizer` is its tokenizer's folder, where it has one."""

    config: TextConfig
    tensors: Mapping[str, LazyTensor]
    tokenizer: Path | None = None


@dataclass(frozen=True)
class ConnectorPlan:
    """What stands between towers and LLM; `tensors` by the names that `build_connector` gives."""

    spec: ConnectorSpec
    tensors: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class LlmPlan:
    """A causal LLM of transformers: its configuration, its tensors by its own names, and the folder of its tokenizer.

    `new_tokens` are added to the tokenizer (as special ones) where it does not know them, in this order.
    """

    config: Any  # transformers.PretrainedConfig
    tensors: Mapping[str, LazyTensor]
    tokenizer: Path
    context: int
    new_tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConversionPlan:
    """All of a model. `surplus` are the keys that no part took, as sentences: a recipe with any is refused."""

    layout: str
    image: TowerPlan
    video: TowerPlan
    connector: ConnectorPlan
    llm: LlmPlan
    prompt: PromptSpec
    compat: CompatSpec
    generation: GenerationSpec = field(default_factory=lambda: GenerationSpec(max_new_tokens=512))
    text: TextPlan | None = None
    notice: str | None = None
    surplus: Sequence[str] = ()
    architecture: Any = BundleSpec.architecture
    left_out: Sequence[str] = field(default=())  # parts that the user chose not to take, for the report
    notes: Sequence[str] = field(default=())  # how weights were read where they could be read in another way

    def origins(self) -> Iterator[LazyTensor]:
        """Every tensor that will be written."""
        for part in (self.image, self.video, self.text, self.connector, self.llm):
            if part is not None:
                yield from part.tensors.values()


def check_recipe(recipe: ConversionPlan) -> None:
    """Every weight has its place and every place its weight, of the right shape. Nothing is read.

    Raises:
        BundleError: names all keys that are missing, unknown or of another shape.
    """
    c = recipe.connector.spec
    with torch.device("meta"):
        modules: list[tuple[str, nn.Module, Mapping[str, LazyTensor]]] = [
            ("image tower", VisionTower(recipe.image.config), recipe.image.tensors),
            ("video tower", VisionTower(recipe.video.config), recipe.video.tensors),
            ("connector", build_connector(c.type, c.in_size, c.out_size, c.compressor), recipe.connector.tensors),
            ("language model", _empty_llm(recipe.llm.config), recipe.llm.tensors),
        ]
        if recipe.text:
            modules.append(("text tower", TextTower(recipe.text.config), recipe.text.tensors))
    problems = list(recipe.surplus)
    for name, module, tensors in modules:
        problems += _differences(name, module, tensors)
    if problems:
        many = f"\n... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise BundleError(f"the weights do not fit the model ({recipe.layout}):\n" + "\n".join(problems[:40]) + many)


def _differences(name: str, module: nn.Module, tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    tied = _tied(module)
    for key in wanted:
        if key not in tensors and key not in tied:
            yield f"{name}: {key}: missing"
    for key, origin in tensors.items():
        if key not in wanted:
            yield f"{name}: {key}: unknown key ({origin.label})"
        elif origin.shape != wanted[key]:
            yield f"{name}: {key}: shape {list(origin.shape)}, must be {list(wanted[key])} ({origin.label})"
        elif not origin.dtype.is_floating_point:
            yield f"{name}: {key}: type {origin.dtype}; quantised checkpoints are not read ({origin.label})"


def _tied(module: nn.Module) -> set[str]:
    """Weights of an LLM that are others under a second name; files need not hold them."""
    config = getattr(module, "config", None)
    return (
        set(getattr(module, "_tied_weights_keys", None) or ()) if getattr(config, "tie_word_embeddings", 0) else set()
    )


def _empty_llm(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as e:
        raise BundleError(f"the language model cannot be built from its configuration: {e}") from e
