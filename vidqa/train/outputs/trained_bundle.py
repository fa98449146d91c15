"""Weights that learned + the base they started from -> a bundle, and forms of it that other programs read.

The bundle's folder holds the run as well; `bundle.json` is written last, so a model is there whole or not at all.
Knows bundles and weights by name. Does not know how they were trained.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from vidqa.model.bundle.spec import PromptSpec
from vidqa.model.bundle.validate import part_digests
from vidqa.model.lora import ADAPTER_FOLDER, attach_lora, merge_lora, write_adapter
from vidqa.model.video_llava import VideoLlava, load_model, save_parts
from vidqa.train.recipe.definition import Lora, Recipe
from vidqa.train.stage import checkpoints

#: Names below which LLaVA's code keeps a projector, and Valley's its temporal module.
_PROJECTOR, _TEMPORAL = "model.mm_projector.", "model."


@dataclass(frozen=True)
class InitialModel:
    """Where every stage, and the result, begin."""

    base: Bundle
    fresh_connector: bool
    seed: int

    def model(self, device: str, dtype: torch.dtype | None) -> VideoLlava:
        """The base; with a connector of new weights where the recipe says so, always the same ones."""
        model = load_model(self.base, device, dtype)
        if self.fresh_connector:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                fresh = _reset(model.connector)
            model.connector.load_state_dict(fresh)
        return model


def _reset(connector: nn.Module) -> dict[str, Tensor]:
    """New weights, drawn on the CPU in float32 whatever the model's place and type."""
    shadow = copy.deepcopy(connector).cpu().float()
    for module in shadow.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return shadow.state_dict()


def write_bundle(
    start: InitialModel, weights: dict[str, Tensor], recipe: Recipe, name: str, out: Path, lora: Lora | None
) -> Bundle:
    """Write the model that came out.

    Args:
        start: what the stages began with.
        weights: all that learned, by name in the VideoLlava; adapters among them.
        recipe: its `output` says whether an adapter is merged.
        name: of the bundle.
        out: the folder; other files in it stay.
        lora: settings of the adapter; None where there is none.

    Raises:
        TrainError: no room; nothing is half-written.
    """
    base, staging = start.base, out / "work" / "bundle"
    checkpoints.need_room(out, checkpoints.folder_bytes(base.folder), "the bundle")
    apart = lora is not None and not recipe.output.merge_lora
    changed_llm = any(n.startswith("llm.") and ".lora_" not in n for n in weights)
    if apart and (base.llm_folder / ADAPTER_FOLDER).is_dir():
        raise UsageError(f"{base.folder} has an adapter of its own already", hint="output.merge_lora = true")

    def fill(folder: Path) -> None:
        _copy_rest(base, folder)
        model = start.model("cpu", _saved_dtype(base))
        with torch.no_grad():
            own = dict(model.named_parameters())
            for key, value in weights.items():
                if ".lora_" not in key:
                    own[key].copy_(value)
        connector, llm = folder / base.spec.connector.file, folder / base.spec.llm.folder
        adapter = {k: v for k, v in weights.items() if ".lora_" in k}
        if lora is not None and not apart:
            attach_lora(model.llm, lora.r, lora.alpha, lora.dropout, lora.targets)
            model.load_state_dict(adapter, strict=False)
            model.llm = merge_lora(model.llm)
        save_parts(model, connector, llm)
        if not changed_llm and (lora is None or apart):
            shutil.rmtree(llm)
            shutil.copytree(base.llm_folder, llm)  # byte for byte what it was
        if lora is not None and apart:
            write_adapter(adapter, lora.r, lora.alpha, lora.dropout, lora.targets, llm / ADAPTER_FOLDER)

    out.mkdir(parents=True, exist_ok=True)
    with checkpoints.explained(staging, "the bundle"):
        save_bundle(staging, replace(base.spec, name=name, prompt=_prompt(recipe, base)), fill, replace_old=True)
    (out / BUNDLE_FILE).unlink(missing_ok=True)
    for part in sorted(staging.iterdir(), key=lambda p: p.name == BUNDLE_FILE):  # the description comes last
        old = out / part.name
        if old.is_dir():
            shutil.rmtree(old)
        part.rename(old)
    staging.rmdir()
    return load_bundle(out)


def export_projector(bundle: Bundle, folder: Path) -> list[Path]:
    """`mm_projector.bin` and `.safetensors`: the connector by the names that LLaVA's, Video-ChatGPT's and Valley's code
    read.

    Returns:
        The files.
    """
    weights = load_file(bundle.connector_file)
    named = {
        f"{_TEMPORAL}{k.removeprefix('compressor.')}" if k.startswith("compressor.") else f"{_PROJECTOR}{k}": v
        for k, v in weights.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "mm_projector.bin", folder / "mm_projector.safetensors"]
    with checkpoints.explained(folder, "export/mm_projector"):
        torch.save(named, files[0])
        save_file(named, files[1])
    return files


def _prompt(recipe: Recipe, base: Bundle) -> PromptSpec:
    """How the result wants to be asked: in the format of the last stage that taught it to answer.

    A connector's own stage often has captions alone, in a format without questions; it does not count.
    """
    last = next((stage for stage in reversed(recipe.stage) if stage.kind != "connector"), None)
    return PromptSpec(last.prompt) if last and last.prompt else base.spec.prompt


def _copy_rest(base: Bundle, folder: Path) -> None:
    """Every file that the description names but connector and LLM: encoders, and what belongs to them."""
    spec = base.spec
    for name in part_digests(spec):
        if name != spec.connector.file and not name.startswith(f"{spec.llm.folder}/"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.folder / name, target)


def _saved_dtype(base: Bundle) -> torch.dtype:
    """The type in which the base keeps its LLM."""
    config = json.loads((base.llm_folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) else torch.float32
