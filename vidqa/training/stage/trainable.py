"""Trainable parameters: the parts that a stage trains -> parameters with gradients, and their optimizer groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidqa.errors import TrainError, UsageError
from vidqa.model.video_llava import VideoLlava
from vidqa.training.recipe.definition import Stage, TrainablePart

#: Name prefix of the parameters of a compressor.
_TEMPORAL = "connector.compressor."


def set_trainable(model: VideoLlava, stage: Stage) -> list[str]:
    """Freeze everything except what the stage trains.

    Args:
        model: modified in place: `requires_grad` of every parameter, and a gradient hook if only some embeddings
            are trained.
        stage: its `train`, `freeze` and `embedding_tokens`.

    Returns:
        Names of the trainable parameters, in the order of the model.

    Raises:
        UsageError: the model lacks a part that the stage names, or shares weights between two parts that it separates.
    """
    names_of = {part: _names(model, part) for part in (*stage.parts, *stage.freeze)}
    if empty := [part for part in stage.parts if not names_of[part]]:
        raise UsageError(f"stage {stage.title}: this model has no weights for {', '.join(sorted(empty))}")
    if "lm_head" in (*stage.parts, *stage.freeze) and _has_tied_embeddings(model):
        raise UsageError(
            f"stage {stage.title}: the head of this LLM shares its weights with the embeddings, so `lm_head` cannot be "
            "trained or frozen separately",
            hint="name `embeddings` instead",
        )
    trained = set().union(*(names_of[part] for part in stage.parts))
    trained -= set().union(*(names_of[part] for part in stage.freeze))
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name in trained:
            names.append(name)
    if stage.embedding_tokens:
        _train_rows_only(model, stage)
    return names


def parameter_groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Parameter groups for AdamW.

    The connector may have its own learning rate. Vectors have no weight decay; neither do embeddings with frozen
    rows.

    Args:
        model: any module that contains a VideoLlava; only parameters with `requires_grad` are used.
        stage: learning rates and weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_rate = stage.connector_learning_rate if "connector." in name else None
        has_frozen_rows = bool(stage.embedding_tokens) and "embed" in name
        decay = 0.0 if parameter.ndim < 2 or has_frozen_rows else stage.weight_decay
        groups.setdefault((own_rate or stage.peak_learning_rate, decay), []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def trained_weights(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Return the named weights on the CPU, in the dtype they are trained in."""
    return {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if n in names}


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write named weights as safetensors.

    Raises:
        OSError: they cannot be written, for example because the disk is full.
    """
    try:
        save_file(weights, path)
    except SafetensorError as error:  # its text contains that of the system: "No space left on device"
        raise OSError(f"{path}: {error}") from error


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load weights that `save_weights` wrote into the model; all other weights keep their values.

    Returns:
        Names of the loaded weights.

    Raises:
        TrainError: the file is damaged, or belongs to another model.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        hint = "vidqa train --resume never starts from scratch"
        raise TrainError(f"{path} cannot be read: {error}", hint=hint) from error
    parameters = dict(model.named_parameters())
    wrong = [n for n, w in weights.items() if n not in parameters or parameters[n].shape != w.shape]
    if wrong:
        raise TrainError(f"{path} belongs to another model: {', '.join(wrong[:5])}", hint="vidqa train --resume never")
    for name, weight in weights.items():
        parameters[name].copy_(weight)
    return list(weights)


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the size of a checkpoint in bytes: trainable parameters and both moments of AdamW, plus a margin."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    # Under ZeRO-3 a parameter itself is empty, and `ds_numel` is its full size.
    return int(1.05 * sum(getattr(p, "ds_numel", p.numel()) * (p.element_size() + 8) for p in trainable)) + (1 << 20)


def non_finite_weights(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that contain NaN or infinity."""
    return [n for n, p in model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]


def _names(model: VideoLlava, part: TrainablePart) -> set[str]:
    """Return the names of the parameters of a part."""
    names = [name for name, _ in model.named_parameters()]
    connector = {n for n in names if n.startswith("connector.")}
    temporal = {n for n in connector if n.startswith(_TEMPORAL)}
    llm = {n for n in names if n.startswith("llm.")}
    lora = {n for n in llm if ".lora_" in n}
    head = model.llm.get_output_embeddings()
    by_part: dict[TrainablePart, set[str]] = {
        "connector": connector,
        "projector": connector - temporal,
        "temporal": temporal,
        "llm": llm - lora,
        "lora": lora,
        "embeddings": _names_of(model, model.llm.get_input_embeddings().weight),
        "lm_head": _names_of(model, head.weight) if head is not None else set(),
    }
    return by_part[part]


def _names_of(model: nn.Module, weight: Tensor) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter is weight}


def _has_tied_embeddings(model: VideoLlava) -> bool:
    head = model.llm.get_output_embeddings()
    return head is not None and head.weight is model.llm.get_input_embeddings().weight


def _train_rows_only(model: VideoLlava, stage: Stage) -> None:
    """Set the gradient of all other embeddings to zero, so that AdamW without weight decay does not change them."""
    ids = token_ids(model.tokenizer, stage.embedding_tokens)
    weight = model.llm.get_input_embeddings().weight
    mask = torch.zeros(len(weight), 1, device=weight.device, dtype=weight.dtype)
    mask[ids] = 1.0
    weight.register_hook(lambda gradient: gradient * mask.to(gradient))


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Return the ids of tokens.

    Raises:
        UsageError: some tokens are not in the vocabulary; the message has all of them.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in vocabulary]:
        raise UsageError(
            f"embedding_tokens: the tokenizer of this model has no token {', '.join(map(repr, missing))}",
            hint="use a base whose tokenizer has them (converted from the weights of Video-ChatGPT or Valley)",
        )
    return [vocabulary[token] for token in tokens]
