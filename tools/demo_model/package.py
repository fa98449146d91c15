"""Weights -> bundle -> scores and the pages that report them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from demo_world.write import N_FRAMES
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo_model.plan import Plan
from demo_model.tuning import new_model
from vidqa import __version__
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.model.bundle.bundle import load_bundle, save_bundle
from vidqa.model.bundle.spec import (
    BundleSpec,
    ConnectorSpec,
    EncoderSpec,
    EncodersSpec,
    GenerationSpec,
    LlmSpec,
    PromptSpec,
    SourceSpec,
    TextEncoderSpec,
    VideoEncoderSpec,
)
from vidqa.model.bundle.validate import part_digests
from vidqa.model.video_llava import save_parts
from vidqa.records import SamplingSpec

LLM = "model.safetensors"
NOTICE = (
    "The demo model was trained on synthetic clips of colored shapes only; its answers about other videos are "
    "meaningless. To use a real model: vidqa models pull video-llava-7b --set-default, or --model DIR."
)


def step_base(plan: Plan, work: Path) -> None:
    """Write the bundle that `vidqa train` starts from: the encoders of the third round and the weights of `words`."""
    model = new_model(plan, work)
    model.load_state_dict(torch.load(work / "words.pt", weights_only=True, map_location="cpu"))
    patches = (plan.image_size // plan.patch_size) ** 2
    common: dict[str, Any] = {
        "layer": -2,
        "hidden_size": plan.width,
        "embedding_size": plan.embedding,
        "n_patches": patches,
    }
    common["preprocess"] = PreprocessSpec("original", plan.image_size)
    spec = BundleSpec(
        name="demo",
        encoders=EncodersSpec(
            image=EncoderSpec(file="encoders/image.onnx", n_frames=1, keep_cls=False, **common),
            video=VideoEncoderSpec(
                file="encoders/video.onnx", n_frames=N_FRAMES, keep_cls=True, sampling=SamplingSpec(), **common
            ),
            text=TextEncoderSpec(file="encoders/text.onnx", embedding_size=plan.embedding, max_length=64),
        ),
        connector=ConnectorSpec("connector.safetensors", "mlp2x_gelu", plan.width, plan.llm_width),
        llm=LlmSpec("llm", plan.context),
        prompt=PromptSpec("vicuna_v1", ""),
        generation=GenerationSpec(max_new_tokens=96),
        notice=NOTICE,
    )

    def fill(folder: Path) -> None:
        shutil.copytree(work / "encoders", folder / "encoders")
        save_parts(model, folder / "connector.safetensors", folder / "llm")

    save_bundle(work / "base", spec, fill)


def step_bundle(plan: Plan, work: Path) -> None:
    """Write the bundle with the mean of the final weights of the last two stages.

    Both are good and close to each other; their mean scores better than either (Izmailov et al. 2018,
    arXiv:1803.05407).
    """
    tuned = load_bundle(work / "tuned")
    stages = sorted(path for path in (work / "tuned" / "work").iterdir() if path.is_dir())
    earlier = load_file(stages[-2] / "trained.safetensors")

    def fill(folder: Path) -> None:
        for name in part_digests(tuned.spec):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tuned.folder / name, folder / name)
        for file, part in ((tuned.spec.connector.file, "connector"), (f"{tuned.spec.llm.folder}/{LLM}", "llm")):
            last = load_file(folder / file)
            mean = {name: (weight + earlier[f"{part}.{name}"]) / 2 for name, weight in last.items()}
            with safe_open(folder / file, "pt") as old:
                metadata = old.metadata()
            save_file(mean, folder / file, metadata=metadata)

    source = SourceSpec("demo world", ("tools/make_demo.py",), __version__, ("Apache-2.0",))
    save_bundle(work / "bundle", replace(tuned.spec, source=source), fill)


SCORED_SEED, SCORED_CLIPS = 1, 1000


def step_scores(plan: Plan, work: Path) -> None:
    """Score the bundle on an unseen world, through vidqa itself."""
    part = work / "scores.part"
    with part.open("w") as out:
        command = [sys.executable, str(EVAL), f"--model={work / 'bundle'}", f"--seed={SCORED_SEED}"]
        subprocess.run([*command, f"--clips={SCORED_CLIPS}", "--json"], stdout=out, check=True)
    os.replace(part, work / "scores.json")


ROOT = Path(__file__).parents[2]
EVAL = ROOT / "tools" / "eval_demo.py"


def install(plan: Plan, work: Path) -> None:
    """Copy the bundle into vidqa/demo, and write docs/demo_model.md and docs/notes/demo_model.md."""
    target = ROOT / "vidqa" / "demo"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work / "bundle", target)
    notes = ROOT / "docs" / "notes" / "demo_model.md"
    notes.parent.mkdir(parents=True, exist_ok=True)
    (ROOT / "docs" / "demo_model.md").write_text(page(work))
    notes.write_text(page_of_notes(plan, work))


def page(work: Path) -> str:
    """Return docs/demo_model.md: page.md next to this file, with size, scores and build time filled in."""
    from eval_demo import table  # tools/eval_demo.py prints the same table

    size = sum(p.stat().st_size for p in (work / "bundle").rglob("*") if p.is_file()) / 1e6
    scores = json.loads((work / "scores.json").read_text()) | {"model": "demo"}
    return (
        Path(__file__)
        .with_name("page.md")
        .read_text()
        .format(
            size=size,
            command=f"python tools/eval_demo.py --model demo --seed {SCORED_SEED} --clips {SCORED_CLIPS}",
            scores=table(scores),
            hours=sum(_seconds(work).values()) / 3600,
            machine=_machine(),
        )
    )


def page_of_notes(plan: Plan, work: Path) -> str:
    """Return docs/notes/demo_model.md: scores of the encoders alone, the history, and the minutes of every step."""
    seen = json.loads((work / "seen.json").read_text())
    seconds = _seconds(work)
    lines = [
        "# Notes: the demo model",
        "",
        "Written by `python tools/make_demo.py --work build/demo --install`, like [demo_model.md](../demo_model.md),",
        f"which has the scores. Trained on {plan.n_scenes:,} scenes. The evaluation world has other seeds, and",
        "combinations of color and shape that no training clip or image shows (scenes described in text do).",
        "",
        "## Encoders alone",
        "",
        "What the patch features of the encoders alone reveal about objects in another unseen world, without the",
        "language model (`python tools/make_demo.py --work build/demo --steps seen`):",
        "",
        "| | clips, correct % | objects | images, correct % | objects |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name.replace('place', 'position')} | {p} | {n} | {_cells(seen['stills'].get(name))} |"
            for name, (p, n) in seen["clips"].items()
        ),
        "",
        Path(__file__).with_name("history.md").read_text(),
        "## Time per step",
        "",
        f"On {_machine()}:",
        "",
        "| step | minutes |",
        "| --- | --- |",
        *(f"| {name} | {s / 60:.1f} |" for name, s in seconds.items()),
        f"| total | {sum(seconds.values()) / 60:.1f} |",
        "",
    ]
    return "\n".join(lines)


def _seconds(work: Path) -> dict[str, float]:
    return dict(json.loads((work / "seconds.json").read_text()))


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "without a GPU"
    return f"{os.cpu_count()} cores ({platform.machine()}), {gpu}"


def _cells(score: list[float] | None) -> str:
    return " | " if score is None else f"{score[0]} | {score[1]}"
