"""Sizes and budgets of the demo model, and the few things that every step needs."""

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
    """Sizes and budgets. The defaults made the shipped bundle."""

    n_scenes: int = 24000
    image_size: int = 96
    patch_size: int = 24
    width: int = 160
    layers: int = 6
    heads: int = 5
    embedding: int = 128
    picture_batch: int = 40  # in each process
    clip_batch: int = 10
    clip_pictures: int = 24  # single frames beside each batch of clips
    picture_minutes: float = 9.0
    clip_minutes: float = 26.0
    align_lr: float = 1e-3
    clip_lr: float = 2e-4  # of what the pictures have taught already
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
    tune_batch: int = 8  # packed sequences in each process
    language_lr: float = 2e-3
    connector_epochs: float = 0.12
    connector_lr: float = 2e-3
    instruct_epochs: float = 0.95
    instruct_lr: float = 1e-3
    more_instruct_epochs: float = 0.62
    more_instruct_lr: float = 7e-4
    n_captioned: int = 4000  # media that the last first stage sees
    n_looked_up: int = 8000  # media with several things, for the stage before the last
    n_alike: int = 4000  # media with two things of one colour, which the last stage sees more often
    n_told: int = 4000  # scenes told in words beside the seen ones
    conversations: int = 8  # about one medium in one packed sequence
    seed: int = 0


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def log(text: str) -> None:
    """One line with the time of day, on stderr; only the first process speaks."""
    if rank():
        return
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def rank() -> int:
    """Number of this process under torchrun."""
    return int(os.environ.get("RANK", 0))


def save(module: nn.Module, path: Path) -> None:
    """Weights, whole or absent; written by the first process."""
    if rank():
        return
    part = path.with_suffix(".part")
    torch.save(module.state_dict(), part)
    os.replace(part, path)
