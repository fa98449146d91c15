"""Sizes and budgets of the demo model, and helpers of all steps."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Plan:
    """Sizes and budgets. The defaults produced the shipped bundle."""

    n_scenes: int = 24000
    image_size: int = 96
    patch_size: int = 24
    width: int = 160
    layers: int = 6
    heads: int = 5
    embedding: int = 128
    picture_batch: int = 40  # per process
    clip_batch: int = 10
    clip_pictures: int = 24  # single frames added to each batch of clips
    picture_minutes: float = 9.0
    clip_minutes: float = 26.0
    align_lr: float = 1e-3
    clip_lr: float = 2e-4  # of the weights already trained on images
    temporal_lr: float = 1e-3
    more_clip_minutes: float = 25.0
    more_clip_lr: float = 5e-4
    more_temporal_lr: float = 7e-4
    variety_minutes: float = 36.0
    variety_lr: float = 5e-4
    variety_temporal_lr: float = 1e-3
    llm_width: int = 160
    llm_layers: int = 4
    llm_heads: int = 5
    llm_inner: int = 448
    context: int = 768
    n_texts: int = 5000
    tune_batch: int = 8  # packed sequences per process
    language_lr: float = 2e-3
    connector_epochs: float = 0.12
    connector_lr: float = 2e-3
    instruct_epochs: float = 0.95
    instruct_lr: float = 1e-3
    more_instruct_epochs: float = 0.62
    more_instruct_lr: float = 7e-4
    n_captioned: int = 4000  # files used by the connector stage of recipe.toml
    n_looked_up: int = 8000  # files with several objects, for the lookup stage
    n_alike: int = 4000  # files with two objects of the same color, oversampled in the last stages
    n_told: int = 4000  # scenes described in text, in addition to the rendered ones
    conversations: int = 8  # conversations about one file per packed sequence
    seed: int = 0


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def log(text: str) -> None:
    """Print a line with the time of day to stderr, in the first process only."""
    if rank():
        return
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def rank() -> int:
    """Return the rank of this process under torchrun."""
    return int(os.environ.get("RANK", 0))


def save(module: nn.Module, path: Path) -> None:
    """Save the weights atomically, in the first process only."""
    if rank():
        return
    part = path.with_suffix(".part")
    torch.save(module.state_dict(), part)
    os.replace(part, path)
