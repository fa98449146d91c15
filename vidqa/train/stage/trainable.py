"""What a stage trains: parts of a recipe -> which weights learn, under which names, at which rate.

Knows the parts of a VideoLlava. Does not know data, schedules or files.
"""

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
from vidqa.train.recipe.definition import Part, Stage

#: Weights of a compressor between features and projector stand below this name.
_TEMPORAL = "connector.compressor."


def choose(model: VideoLlava, stage: Stage) -> list[str]:
    """Freeze everything but what the stage trains.

    Args:
        model: changed in place: `requires_grad` of every weight, and a hook where only some rows learn.
        stage: its `train`, `freeze` and `embedding_tokens`.

    Returns:
        Names of the weights that learn, in the model's order.

    Raises:
        UsageError: the model does not have a part that the stage names, or ties two that it tells apart.
    """
    covered = {part: _names(model, part) for part in (*stage.parts, *stage.freeze)}
    if empty := [part for part in stage.parts if not covered[part]]:
        raise UsageError(f"stage {stage.title}: this model has no weights for {', '.join(sorted(empty))}")
    if "lm_head" in (*stage.parts, *stage.freeze) and _is_tied(model):
        raise UsageError(
            f"stage {stage.title}: in this LLM the head shares its weights with the embeddings: `lm_head` cannot be "
            "told apart",
            hint="name `embeddings` instead",
        )
    learn = set().union(*(covered[part] for part in stage.parts)) - set().union(*(covered[p] for p in stage.freeze))
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learn)
        if name in learn:
            names.append(name)
    if stage.embedding_tokens:
        _limit_rows(model, stage)
    return names


def parameter_groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Groups for AdamW: the connector may have its own rate; vectors, and embeddings of which some rows stand still,
    do not decay.

    Args:
        model: anything that holds a VideoLlava; weights with `requires_grad` count.
        stage: rates and weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = stage.connector_lr if stage.connector_lr and "connector." in name else stage.peak_lr
        still = bool(stage.embedding_tokens) and "embed" in name
        decay = 0.0 if parameter.ndim < 2 or still else stage.weight_decay
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def trained_weights(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """The weights of that name, on the CPU, in the type they are trained in."""
    return {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if n in names}


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write weights by name; safetensors only.

    Raises:
        OSError: no room.
    """
    try:
        save_file(weights, path)
    except SafetensorError as error:  # its words hold the system's: "No space left on device"
        raise OSError(f"{path}: {error}") from error


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Read weights that `save_weights` wrote into the model; all others stay.

    Returns:
        Their names.

    Raises:
        TrainError: the file is damaged, or of another model.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrainError(f"{path} cannot be read: {error}", hint="vidqa train --resume never begins anew") from error
    own = dict(model.named_parameters())
    wrong = [n for n, w in weights.items() if n not in own or own[n].shape != w.shape]
    if wrong:
        raise TrainError(f"{path} is of another model: {', '.join(wrong[:5])}", hint="vidqa train --resume never")
    for name, weight in weights.items():
        own[name].copy_(weight)
    return list(weights)


def _names(model: VideoLlava, part: Part) -> set[str]:
    """Names of the weights of a part."""
    everything = [name for name, _ in model.named_parameters()]
    connector = {n for n in everything if n.startswith("connector.")}
    temporal = {n for n in connector if n.startswith(_TEMPORAL)}
    llm = {n for n in everything if n.startswith("llm.")}
    lora = {n for n in llm if ".lora_" in n}
    head = model.llm.get_output_embeddings()
    by_part: dict[Part, set[str]] = {
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


def _is_tied(model: VideoLlava) -> bool:
    head = model.llm.get_output_embeddings()
    return head is not None and head.weight is model.llm.get_input_embeddings().weight


def _limit_rows(model: VideoLlava, stage: Stage) -> None:
    """Let only the rows of some tokens learn: the gradient of the others is zero, and AdamW then leaves them alone."""
    ids = token_ids(model.tokenizer, stage.embedding_tokens)
    weight = model.llm.get_input_embeddings().weight
    keep = torch.zeros(len(weight), 1, device=weight.device, dtype=weight.dtype)
    keep[ids] = 1.0
    weight.register_hook(lambda gradient: gradient * keep.to(gradient))


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Ids of tokens that the tokenizer has as a whole.

    Raises:
        UsageError: names those that it has not.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in vocabulary]:
        raise UsageError(
            f"embedding_tokens: the tokenizer of this model has no token {', '.join(map(repr, missing))}",
            hint="take a base whose tokenizer has them (converted from Video-ChatGPT's or Valley's weights)",
        )
    return [vocabulary[token] for token in tokens]
