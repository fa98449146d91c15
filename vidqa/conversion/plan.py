"""The plan of a conversion (shapes, settings and a lazy tensor for every weight), and the check that it is complete.

Modules in formats/ make plans; write.py carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vidqa.conversion.lazy_tensors import LazyTensor
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import BundleSpec, CompatSpec, ConnectorSpec, GenerationSpec, PromptSpec
from vidqa.model.connector import build_connector
from vidqa.model.towers.text import TextConfig, TextTower
from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.records import SamplingSpec

Mode = Literal["fixed", "original"]


@dataclass(frozen=True)
class TowerPlan:
    """A vision tower; keys of `tensors` are those of `VisionTower`. `sampling` is None for the image tower."""

    config: VisionConfig
    tensors: Mapping[str, LazyTensor]
    layer: int  # index of the hidden state that becomes the features; negative values count from the end
    keep_cls: bool
    preprocess: PreprocessSpec
    n_frames: int = 1  # frames that the exported graph takes at once
    sampling: SamplingSpec | None = None


@dataclass(frozen=True)
class TextPlan:
    """A text tower; keys of `tensors` are those of `TextTower`. `tokenizer` is the folder of its tokenizer, or None."""

    config: TextConfig
    tensors: Mapping[str, LazyTensor]
    tokenizer: Path | None = None


@dataclass(frozen=True)
class ConnectorPlan:
    """The connector between towers and LLM; keys of `tensors` are those of `build_connector`'s module."""

    spec: ConnectorSpec
    tensors: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class LlmPlan:
    """A causal LLM of transformers: its configuration, its tensors under its own keys, and the folder of its tokenizer.

    Attributes:
        config: its configuration.
        tensors: its weights.
        tokenizer: folder of its tokenizer.
        context: context length in tokens.
        new_tokens: added to the tokenizer as special tokens, in this order, unless it has them already.
        generation: content of its `generation_config.json`; empty for none.
        stop: strings that end an answer.
        notes: settings of the checkpoint that are not taken over, for the report.
        config_file: where its configuration comes from, for messages.
    """

    config: Any  # transformers.PretrainedConfig
    tensors: Mapping[str, LazyTensor]
    tokenizer: Path
    context: int
    new_tokens: tuple[str, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config_file: Path | None = None


@dataclass(frozen=True)
class ConversionPlan:
    """A complete model.

    `unexpected_keys` has one message for each key that no part uses; `check_plan` rejects a plan that has any.
    """

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
    unexpected_keys: Sequence[str] = ()
    architecture: Any = BundleSpec.architecture
    ignored: Sequence[str] = field(default=())  # parts that are not used, with the reason, for the report
    notes: Sequence[str] = field(default=())  # decisions where the weights are ambiguous, for the report

    def tensors(self) -> Iterator[LazyTensor]:
        """Yield every tensor that will be written."""
        for part in (self.image, self.video, self.text, self.connector, self.llm):
            if part is not None:
                yield from part.tensors.values()


def check_plan(plan: ConversionPlan) -> None:
    """Check that the plan has exactly the weights of the model, in the right shapes. No tensor is read.

    Raises:
        BundleError: lists the keys that are missing, unexpected, or of a wrong shape or type, at most 40 of them.
    """
    c = plan.connector.spec
    with torch.device("meta"):
        modules: list[tuple[str, nn.Module, Mapping[str, LazyTensor]]] = [
            ("image tower", VisionTower(plan.image.config), plan.image.tensors),
            ("video tower", VisionTower(plan.video.config), plan.video.tensors),
            ("connector", build_connector(c.type, c.in_size, c.out_size, c.compressor), plan.connector.tensors),
            ("language model", _empty_llm(plan.llm), plan.llm.tensors),
        ]
        if plan.text:
            modules.append(("text tower", TextTower(plan.text.config), plan.text.tensors))
    problems = list(plan.unexpected_keys)
    for name, module, tensors in modules:
        problems += _differences(name, module, tensors)
    if problems:
        many = f"\n... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise BundleError(f"the weights do not fit the model ({plan.layout}):\n" + "\n".join(problems[:40]) + many)


def _differences(name: str, module: nn.Module, tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    tied = _tied(module)
    for key in expected:
        if key not in tensors and key not in tied:
            yield f"{name}: {key}: missing"
    for key, tensor in tensors.items():
        if key not in expected:
            yield f"{name}: {key}: unexpected key ({tensor.label})"
        elif tensor.shape != expected[key]:
            yield f"{name}: {key}: shape {list(tensor.shape)}, must be {list(expected[key])} ({tensor.label})"
        elif not tensor.dtype.is_floating_point:
            yield f"{name}: {key}: type {tensor.dtype}; quantized checkpoints are not supported ({tensor.label})"


def _tied(module: nn.Module) -> set[str]:
    """Return the keys of an LLM that share the weights of another key; checkpoints may omit them."""
    config = getattr(module, "config", None)
    return (
        set(getattr(module, "_tied_weights_keys", None) or ()) if getattr(config, "tie_word_embeddings", 0) else set()
    )


def _empty_llm(plan: LlmPlan) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(plan.config, trust_remote_code=False)
    except Exception as e:  # the modules of transformers may raise anything on a configuration that makes no sense
        why = " ".join(f"{type(e).__name__}: {e}".split())
        raise BundleError(
            f"{plan.config_file}: the language model cannot be built from its configuration: {why}"
        ) from e
