"""The table of variants in docs/models.md says what conversions give, at the sizes of the published towers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compact_files import write_valley, write_video_chatgpt
from published_files import write_hf, write_languagebind, write_original

from vidqa.model.checkpoints.convert import plan
from vidqa.model.checkpoints.recipe import Recipe, TowerPlan
from vidqa.model.connector import build_connector

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
N_PATCHES = (224 // 14) ** 2
RULES = {"linspace": "linspace", "arange": "arange", "segments": "middles of equal parts"}


def table() -> dict[str, list[str]]:
    """Cells of each model."""
    lines = PAGE.read_text(encoding="utf-8").partition("## The variants")[2].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line.startswith("|")]
    return {name: cells for name, *cells in rows[:5]}


def recipes(name: str, folder: Path) -> list[Recipe]:
    """Plans as vidqa is told and as the published programs are, from files of that publication."""
    towers: list[Path] = []
    if name == "Video-LLaVA":
        parts = [write_original(folder / "whole")]
    elif name == "Video-ChatGPT":
        parts = write_video_chatgpt(folder, grown=True)
    elif name == "Valley":
        parts = [write_valley(folder / "valley", "v1")]
    else:
        parts = [write_hf(folder / "hf")]
        if "--towers" in name:
            towers = [write_languagebind(folder / kind, kind) for kind in ("image", "video")]
    return [plan(parts, mode, towers) for mode in ("fixed", "original")]


def n_visual(recipe: Recipe, tower: TowerPlan, n_frames: int) -> int:
    """Visual tokens of so many frames."""
    c = recipe.connector.spec
    compressor = replace(c.compressor, n_patches=N_PATCHES) if c.compressor else None
    connector = build_connector(c.type, c.in_size, c.out_size, compressor)
    return sum(connector.runs(n_frames, N_PATCHES + tower.keep_cls, tower.keep_cls))


@pytest.mark.parametrize("name", table())
def test_the_table_of_variants(name: str, tmp_path: Path) -> None:
    _parts, time, frames, of_clip, of_picture, prompts = table()[name]
    fixed, original = recipes(name, tmp_path)
    sampling = fixed.video.sampling
    assert sampling is not None
    assert frames.removeprefix("up to ") == f"{sampling.n_frames}, {RULES[sampling.rule]}"
    assert str(n_visual(fixed, fixed.video, sampling.n_frames)) in of_clip.replace(",", " ").split()
    assert str(n_visual(fixed, fixed.image, 1)) in of_picture.replace(":", " ").replace(",", " ").split()
    formats = dict.fromkeys((fixed.prompt.format, original.prompt.format))
    assert prompts == ", ".join(f"`{chat}`" for chat in formats)
    n_together = fixed.video.config.temporal_length
    assert (f"over {n_together} frames" in time) == bool(n_together)
    assert ("none" in time) == (not n_together and fixed.connector.spec.compressor is None)


def test_every_variant_is_there() -> None:
    assert len(table()) == 5
