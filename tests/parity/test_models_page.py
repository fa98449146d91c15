"""The variants table in docs/models.md matches what conversions produce, at the sizes of the published towers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compact_files import write_valley, write_video_chatgpt
from published_files import write_hf, write_languagebind, write_original

from vidqa.conversion.convert import plan
from vidqa.conversion.plan import ConversionPlan, TowerPlan
from vidqa.model.connector import build_connector

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
N_PATCHES = (224 // 14) ** 2
RULES = {"linspace": "linspace", "arange": "arange", "segments": "segment centers"}


def table() -> dict[str, list[str]]:
    """Return the other cells of each row of the variants table, by model name."""
    lines = PAGE.read_text(encoding="utf-8").partition("## Model variants")[2].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: cells for name, *cells in rows[2:7]}


def recipes(name: str, folder: Path) -> list[ConversionPlan]:
    """Return the conversion plans for `--compat fixed` and `original`, from files in that publication's layout."""
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


def n_visual(recipe: ConversionPlan, tower: TowerPlan, n_frames: int) -> int:
    """Return the number of visual tokens of `n_frames` frames."""
    c = recipe.connector.spec
    compressor = replace(c.compressor, n_patches=N_PATCHES) if c.compressor else None
    connector = build_connector(c.type, c.in_size, c.out_size, compressor)
    return sum(connector.runs(n_frames, N_PATCHES + tower.keep_cls, tower.keep_cls))


@pytest.mark.parametrize("name", table())
def test_the_variants_table_matches_conversions(name: str, tmp_path: Path) -> None:
    _parts, time, frames, per_video, per_image, prompts = table()[name]
    fixed, original = recipes(name, tmp_path)
    sampling = fixed.video.sampling
    assert sampling is not None
    assert frames.removeprefix("up to ") == f"{sampling.n_frames}, {RULES[sampling.rule]}"
    assert str(n_visual(fixed, fixed.video, sampling.n_frames)) in per_video.replace(",", " ").split()
    assert str(n_visual(fixed, fixed.image, 1)) in per_image.replace(":", " ").replace(",", " ").split()
    formats = dict.fromkeys((fixed.prompt.format, original.prompt.format))
    assert prompts == ", ".join(f"`{chat}`" for chat in formats)
    n_together = fixed.video.config.temporal_length
    assert (f"over {n_together} frames" in time) == bool(n_together)
    assert ("none" in time) == (not n_together and fixed.connector.spec.compressor is None)


def test_every_variant_is_listed() -> None:
    assert len(table()) == 5
