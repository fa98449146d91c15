"""A checked recipe -> a bundle on disk, one tensor (of the LLM: one shard) in memory at a time.

Knows ONNX export, safetensors and the LLM folder's layout. Does not know published names.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vidqa import __version__
from vidqa.common.atomic_io import remove_leftovers
from vidqa.convert.finite import read_finite
from vidqa.convert.lazy_tensors import LazyTensor, n_bytes
from vidqa.convert.output_options import OutputOptions
from vidqa.convert.plan import ConversionPlan, LlmPlan, TextPlan, TowerPlan, check_recipe
from vidqa.convert.tokenizer import save_tokenizer
from vidqa.errors import BundleError
from vidqa.model.bundle.bundle import Bundle, save_bundle
from vidqa.model.bundle.spec import (
    BundleSpec,
    EncoderSpec,
    EncodersSpec,
    LlmSpec,
    SourceSpec,
    TextEncoderSpec,
    VideoEncoderSpec,
)
from vidqa.model.onnx.export import export_text, export_tower
from vidqa.model.towers.clip_tokenizer import END, START, save_clip_tokenizer
from vidqa.model.towers.text import TextTower
from vidqa.model.towers.vit import VisionTower

#: Largest shard of the LLM. A shard is in memory, twice for a moment, while it is written.
SHARD_BYTES = 500_000_000
_TEXT_GRAPH, _TEXT_TOKENIZER = "encoders/text.onnx", "encoders/text_tokenizer.json"

Step = Callable[[str, int], None]
"""Called with what was written and how many bytes of the checkpoint that was."""


def write_bundle(
    recipe: ConversionPlan, target: OutputOptions, origins: tuple[str, ...], step: Step = lambda what, n: None
) -> Bundle:
    """Write a model, whole or not at all.

    Args:
        recipe: from a layout module; checked here.
        target: where it goes, and in which form.
        origins: where its parts come from, for `SourceSpec`.
        step: progress.

    Raises:
        BundleError: keys are missing, unknown or of another shape, numbers are not finite, or the disk has no room for
            the model.
        UsageError: the target is taken.
        LockedError: another process is writing the same target.
        VidqaError: the packages for export are not installed, or a graph differs from torch.
    """
    dtype = target.torch_dtype
    check_recipe(recipe)
    remove_leftovers(target.folder.absolute())  # first, for they take room
    _need_room(recipe, target.folder, dtype)
    _try_tokenizers(recipe)

    def fill(folder: Path) -> None:
        # What is only copied goes first: a number that is not finite is found there before minutes of export.
        connector = {key: read_finite(origin, dtype) for key, origin in recipe.connector.tensors.items()}
        save_file(connector, folder / recipe.connector.spec.file)
        step("connector", n_bytes(recipe.connector.tensors.values()))
        write_llm(recipe.llm, folder / "llm", dtype, step)
        (folder / "encoders").mkdir()
        for kind in ("image", "video"):
            plan: TowerPlan = getattr(recipe, kind)
            if not (folder / _graph(recipe, kind)).exists():
                _write_tower(plan, folder / _graph(recipe, kind), target.encoders == "float16")
            step(f"{kind} encoder", n_bytes(plan.tensors.values()))
        if recipe.text:
            _write_text(recipe.text, folder)
            step("text encoder", n_bytes(recipe.text.tensors.values()))

    return save_bundle(target.folder, _spec(recipe, target.title, origins), fill, target.replace_old)


def _need_room(recipe: ConversionPlan, out: Path, dtype: torch.dtype | None) -> None:
    """A disk that is too small is found first. It must hold an old model beside the new one for a while."""
    towers: dict[str, Any] = {_graph(recipe, kind): getattr(recipe, kind) for kind in ("image", "video")}
    if recipe.text:
        towers["text"] = recipe.text
    needed = sum(_size(o, torch.float32) for plan in towers.values() for o in plan.tensors.values())
    needed += sum(_size(o, dtype) for plan in (recipe.connector, recipe.llm) for o in plan.tensors.values())
    place = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        what = f"the model takes {needed / 1e9:.1f} GB, on the disk of {place} are {free / 1e9:.1f} GB free"
        raise BundleError(what, hint="another --out, or --dtype float16 if the weights are larger")


def _try_tokenizers(recipe: ConversionPlan) -> None:
    """Read them before the weights: what is wrong with a small file shall not be said after minutes of work."""
    with tempfile.TemporaryDirectory() as place:
        save_tokenizer(recipe.llm, Path(place))
        if recipe.text:
            _save_text_tokenizer(recipe.text, Path(place) / "text.json")


def write_llm(
    plan: LlmPlan, folder: Path, dtype: torch.dtype | None, step: Step, shard_bytes: int = SHARD_BYTES
) -> None:
    """An ordinary transformers folder, shard after shard, in the order in which the checkpoint holds the tensors."""
    folder.mkdir()
    shards = list(_shards(plan.tensors, dtype, shard_bytes))
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: read_finite(plan.tensors[key], dtype) for key in keys}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        del tensors
        step("language model", n_bytes(plan.tensors[key] for key in keys))
    if len(shards) > 1:
        total = sum(_size(plan.tensors[key], dtype) for key in plan.tensors)
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    stored = dtype or next(iter(plan.tensors.values())).dtype
    plan.config.dtype = stored
    plan.config.save_pretrained(folder)
    save_tokenizer(plan, folder)


def _shards(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for key, origin in tensors.items():
        n = _size(origin, dtype)
        if shard and size + n > limit:
            yield shard
            shard, size = [], 0
        shard.append(key)
        size += n
    yield shard


def _write_tower(plan: TowerPlan, path: Path, half: bool) -> None:
    export_tower(_load(VisionTower, plan.config, plan.tensors), path, plan.n_frames, plan.layer, half)


def _load(kind: type[Any], config: Any, tensors: Mapping[str, LazyTensor]) -> Any:
    """A tower in float32; its weights are in memory once."""
    with torch.device("meta"):
        module: nn.Module = kind(config)
    module.load_state_dict({key: read_finite(origin, torch.float32) for key, origin in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _text_spec(plan: TextPlan) -> TextEncoderSpec:
    c = plan.config
    return TextEncoderSpec(
        _TEXT_GRAPH, c.projection_dim, c.max_positions, tokenizer=_TEXT_TOKENIZER, start=START, end=END
    )


def _write_text(plan: TextPlan, folder: Path) -> None:
    _save_text_tokenizer(plan, folder / _TEXT_TOKENIZER)
    export_text(_load(TextTower, plan.config, plan.tensors), folder / _TEXT_GRAPH)


def _save_text_tokenizer(plan: TextPlan, file: Path) -> None:
    if plan.tokenizer is None:
        raise BundleError("the plan of the text tower has no tokenizer")
    save_clip_tokenizer(plan.tokenizer, file, plan.config.vocab_size)


def _spec(recipe: ConversionPlan, name: str, origins: tuple[str, ...]) -> BundleSpec:
    """Settings of the bundle; the digests are filled in when the files are there."""
    video = recipe.video
    if video.sampling is None:
        raise BundleError("the plan of the video tower has no rule for its frames")
    return BundleSpec(
        name=name,
        encoders=EncodersSpec(
            EncoderSpec(**_encoder(recipe, "image")),
            VideoEncoderSpec(**_encoder(recipe, "video"), sampling=video.sampling),
            _text_spec(recipe.text) if recipe.text else None,
        ),
        connector=replace(recipe.connector.spec, file="connector.safetensors"),
        llm=LlmSpec("llm", recipe.llm.context),
        prompt=recipe.prompt,
        generation=recipe.generation,
        notice=recipe.notice,
        architecture=recipe.architecture,
        compat=recipe.compat,
        source=SourceSpec(recipe.layout, origins, __version__),
    )


def _graph(recipe: ConversionPlan, kind: str) -> str:
    """Path of a tower's graph; one that serves pictures and clips alike is written once."""
    image, video = ((p.config, p.tensors, p.n_frames, p.layer) for p in (recipe.image, recipe.video))
    return f"encoders/{'image' if image == video else kind}.onnx"


def _encoder(recipe: ConversionPlan, kind: str) -> dict[str, Any]:
    plan: TowerPlan = getattr(recipe, kind)
    return {
        "file": _graph(recipe, kind),
        "n_frames": plan.n_frames,
        "layer": plan.layer,
        "keep_cls": plan.keep_cls,
        "hidden_size": plan.config.hidden_size,
        "embedding_size": plan.config.embedding_size,
        "n_patches": plan.config.n_patches,
        "preprocess": plan.preprocess,
    }


def _size(origin: LazyTensor, dtype: torch.dtype | None) -> int:
    return torch.Size(origin.shape).numel() * (dtype or origin.dtype).itemsize
