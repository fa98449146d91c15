"""Trained weights + base bundle -> new bundle, and its connector in the format of other programs.

The folder of the bundle also contains the run. `bundle.json` is written last, so an incomplete model is never visible.
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

from vidqa import __version__
from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import ADAPTER_FOLDER, BUNDLE_FILE, Bundle, load_bundle, save_bundle
from vidqa.model.bundle.spec import PromptSpec, SourceSpec
from vidqa.model.bundle.validate import part_digests
from vidqa.model.lora import attach_lora, merge_lora, write_adapter
from vidqa.model.video_llava import VideoLlava, load_model, save_parts
from vidqa.training.recipe.definition import Lora, Recipe
from vidqa.training.stage import checkpoints

#: Name prefixes of the projector in LLaVA's code, and of the temporal module in Valley's.
_PROJECTOR, _TEMPORAL = "model.mm_projector.", "model."


@dataclass(frozen=True)
class InitialModel:
    """The model that every stage and the resulting bundle start from."""

    base: Bundle
    reinitialize_connector: bool
    seed: int

    def load(self, device: str, dtype: torch.dtype | None) -> VideoLlava:
        """Load the base; if the connector is reinitialized, always with the same random weights."""
        model = load_model(self.base, device, dtype)
        if self.reinitialize_connector:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                weights = _random_weights(model.connector)
            model.connector.load_state_dict(weights)
        return model


def _random_weights(connector: nn.Module) -> dict[str, Tensor]:
    """Create random weights, sampled on the CPU in float32 whatever device and dtype the model has."""
    template = copy.deepcopy(connector).cpu().float()
    for module in template.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return template.state_dict()


def check_no_adapter(base: Bundle) -> None:
    """Check that a model can get an adapter that is not merged.

    Raises:
        UsageError: it already has one.
    """
    if (base.llm_folder / ADAPTER_FOLDER).is_dir():
        raise UsageError(f"{base.folder} already has an adapter", hint="output.merge_lora = true")


def write_bundle(
    initial: InitialModel, weights: dict[str, Tensor], recipe: Recipe, name: str, out: Path, lora: Lora | None
) -> Bundle:
    """Write the trained model.

    Args:
        initial: the model that the stages started from.
        weights: all trained weights by their names in the VideoLlava, including adapters.
        recipe: its `output` decides whether an adapter is merged.
        name: name of the bundle.
        out: folder of the bundle; other files in it remain.
        lora: settings of the adapter; None without an adapter.

    Raises:
        TrainError: the disk is full; no incomplete files remain.
        UsageError: the base already has an adapter.
    """
    base, staging = initial.base, out / "work" / "bundle"
    checkpoints.require_disk_space(out, checkpoints.folder_bytes(base.folder), "the bundle")
    is_separate = lora is not None and not recipe.output.merge_lora
    changed_llm = any(n.startswith("llm.") and ".lora_" not in n for n in weights)
    if is_separate:
        check_no_adapter(base)

    def fill(folder: Path) -> None:
        _copy_unchanged(base, folder)
        model = initial.load("cpu", _saved_dtype(base))
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for key, value in weights.items():
                if ".lora_" not in key:
                    parameters[key].copy_(value)
        connector, llm = folder / base.spec.connector.file, folder / base.spec.llm.folder
        adapter = {k: v for k, v in weights.items() if ".lora_" in k}
        if lora is not None and not is_separate:
            attach_lora(model.llm, lora.r, lora.alpha, lora.dropout, lora.targets)
            model.load_state_dict(adapter, strict=False)
            model.llm = merge_lora(model.llm)
        save_parts(model, connector, llm)
        if not changed_llm and (lora is None or is_separate):
            shutil.rmtree(llm)
            shutil.copytree(base.llm_folder, llm)  # byte for byte
        if lora is not None and is_separate:
            write_adapter(adapter, lora.r, lora.alpha, lora.dropout, lora.targets, llm / ADAPTER_FOLDER)

    out.mkdir(parents=True, exist_ok=True)
    spec = replace(base.spec, name=name, prompt=_prompt(recipe, base), source=_source(base))
    with checkpoints.removed_if_disk_full(staging, "the bundle"):
        save_bundle(staging, spec, fill, replace_old=True)
    (out / BUNDLE_FILE).unlink(missing_ok=True)
    for part in sorted(staging.iterdir(), key=lambda p: p.name == BUNDLE_FILE):  # bundle.json comes last
        old = out / part.name
        if old.is_dir():
            shutil.rmtree(old)
        part.rename(old)
    staging.rmdir()
    return load_bundle(out)


def export_projector(bundle: Bundle, folder: Path) -> list[Path]:
    """Write the connector with the weight names that LLaVA, Video-ChatGPT and Valley read.

    Returns:
        The files `mm_projector.bin` and `mm_projector.safetensors`.
    """
    weights = load_file(bundle.connector_file)
    named = {
        f"{_TEMPORAL}{k.removeprefix('compressor.')}" if k.startswith("compressor.") else f"{_PROJECTOR}{k}": v
        for k, v in weights.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "mm_projector.bin", folder / "mm_projector.safetensors"]
    with checkpoints.removed_if_disk_full(folder, "export/mm_projector"):
        torch.save(named, files[0])
        save_file(named, files[1])
    return files


def _prompt(recipe: Recipe, base: Bundle) -> PromptSpec:
    """Choose the chat format of the bundle: that of the last stage that trained it to answer questions.

    Connector stages are ignored: they often train on captions, in a format without questions.
    """
    last = next((stage for stage in reversed(recipe.stage) if stage.kind != "connector"), None)
    return PromptSpec(last.prompt) if last and last.prompt else base.spec.prompt


def _source(base: Bundle) -> SourceSpec:
    """Return the source of a model that was fine-tuned from `base`: the origins and licences of its base remain."""
    source = base.spec.source or SourceSpec(base.spec.architecture, (), __version__)
    return replace(source, base=f"{base.spec.name}@{base.model_id}", vidqa_version=__version__)


def _copy_unchanged(base: Bundle, folder: Path) -> None:
    """Copy all files of the bundle except connector and LLM: the encoders and their files."""
    spec = base.spec
    for name in part_digests(spec):
        if name != spec.connector.file and not name.startswith(f"{spec.llm.folder}/"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.folder / name, target)


def _saved_dtype(base: Bundle) -> torch.dtype:
    """Return the dtype of the LLM in the base."""
    config = json.loads((base.llm_folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) else torch.float32
