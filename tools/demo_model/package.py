"""Weights -> bundle; bundle -> scores, and the page that reports them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from demo_world.write import N_LOOKED_AT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo_model.plan import Plan
from demo_model.tuning import new_model
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
    TextEncoderSpec,
    VideoEncoderSpec,
)
from vidqa.model.bundle.validate import digests
from vidqa.model.video_llava import save_parts
from vidqa.records import SamplingSpec

LLM = "model.safetensors"
NOTICE = (
    "The demo model knows only its demo world: one to three coloured shapes that move over a plain ground. On other "
    "videos its answers mean nothing. A real one: vidqa models pull video-llava-7b --set-default, or --model DIR."
)


def step_base(plan: Plan, work: Path) -> None:
    """Write the bundle that `vidqa train` starts from: the third round's encoders, and what `words` made."""
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
                file="encoders/video.onnx", n_frames=N_LOOKED_AT, keep_cls=True, sampling=SamplingSpec(), **common
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
    """The model out of the folder of the run, with the mean of the weights that its last two stages ended with.

    Both are good, and lie near each other; their mean answers better than either (Izmailov et al. 2018,
    arXiv:1803.05407).
    """
    tuned = load_bundle(work / "tuned")
    stages = sorted(path for path in (work / "tuned" / "work").iterdir() if path.is_dir())
    earlier = load_file(stages[-2] / "trained.safetensors")

    def fill(folder: Path) -> None:
        for name in digests(tuned.spec):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tuned.folder / name, folder / name)
        for file, part in ((tuned.spec.connector.file, "connector"), (f"{tuned.spec.llm.folder}/{LLM}", "llm")):
            last = load_file(folder / file)
            mean = {name: (weight + earlier[f"{part}.{name}"]) / 2 for name, weight in last.items()}
            with safe_open(folder / file, "pt") as old:
                metadata = old.metadata()
            save_file(mean, folder / file, metadata=metadata)

    save_bundle(work / "bundle", tuned.spec, fill)


SCORED_SEED, SCORED_CLIPS = 1, 1000


def step_scores(plan: Plan, work: Path) -> None:
    """Score the bundle on an unseen world, through vidqa itself."""
    part = work / "scores.part"
    with part.open("w") as out:
        command = [sys.executable, str(EVAL), f"--model={work / 'bundle'}", f"--seed={SCORED_SEED}"]
        subprocess.run([*command, f"--clips={SCORED_CLIPS}", "--json"], stdout=out, check=True)
    os.replace(part, work / "scores.json")


def _of(score: list[float] | None) -> str:
    return " | " if score is None else f"{score[0]} | {score[1]}"


ROOT = Path(__file__).parents[2]
EVAL = ROOT / "tools" / "eval_demo.py"


def install(plan: Plan, work: Path) -> None:
    """Put the bundle where vidqa ships it, and write the page with its figures."""
    target = ROOT / "vidqa" / "demo"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work / "bundle", target)
    page = ROOT / "docs" / "demo_model.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(report(plan, work))


def report(plan: Plan, work: Path) -> str:
    """The page: what was made, how long it took, what it reached."""
    from eval_demo import table  # tools/eval_demo.py prints the same table

    scores = json.loads((work / "scores.json").read_text()) | {"model": "demo"}
    seconds = json.loads((work / "seconds.json").read_text())
    seen = json.loads((work / "seen.json").read_text())
    size = sum(p.stat().st_size for p in (work / "bundle").rglob("*") if p.is_file()) / 1e6
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "without a GPU"
    lines = [
        "# The demo model",
        "",
        "Written by `tools/make_demo.py --install`. The scores are those of the shipped bundle, by",
        f"`python tools/eval_demo.py --model demo --seed {SCORED_SEED} --clips {SCORED_CLIPS}`.",
        "",
        table(scores),
        "",
        f"Bundle: {size:.1f} MB. Trained on {plan.n_scenes} scenes. The scored world has other seeds, and colour-shape",
        "pairs that no training clip or picture shows (scenes told in words do).",
        "",
        "What the encoders alone tell of the things in another unseen world, without the language model, and how many",
        "things that were (`tools/make_demo.py --steps seen`):",
        "",
        "| | clips, right % | things | pictures, right % | things |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {told} | {p} | {n} | {_of(seen['stills'].get(told))} |" for told, (p, n) in seen["clips"].items()),
        "",
        Path(__file__).with_name("learned.md").read_text(),
        f"Made on {os.cpu_count()} cores ({platform.machine()}), {gpu}:",
        "",
        "| step | minutes |",
        "| --- | --- |",
        *(f"| {name} | {s / 60:.1f} |" for name, s in seconds.items()),
        f"| all | {sum(seconds.values()) / 60:.1f} |",
        "",
    ]
    return "\n".join(lines)
