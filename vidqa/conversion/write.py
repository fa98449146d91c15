"""Write a planned conversion as a bundle, with one tensor (for the LLM: one shard) in memory at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vidqa.common.atomic_io import remove_leftovers
from vidqa.common.disk_space import free_disk_bytes
from vidqa.common.display import human_bytes
from vidqa.conversion.checks import read_finite
from vidqa.conversion.formats.generation import GENERATION_CONFIG
from vidqa.conversion.lazy_tensors import LazyTensor, total_bytes
from vidqa.conversion.output_options import OutputOptions
from vidqa.conversion.plan import ConversionPlan, LlmPlan, TextPlan, TowerPlan, check_plan
from vidqa.conversion.tokenizer import save_tokenizer
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

#: Maximum size of a shard of the LLM. A shard is in memory, briefly twice, while it is written.
SHARD_BYTES = 500_000_000
_TEXT_GRAPH, _TEXT_TOKENIZER = "encoders/text.onnx", "encoders/text_tokenizer.json"

Step = Callable[[str, int], None]
"""Progress callback: the part that was written and its size in the checkpoint, in bytes."""


def write_bundle(
    conversion: ConversionPlan, output: OutputOptions, source: SourceSpec, step: Step = lambda what, n: None
) -> Bundle:
    """Write a bundle atomically.

    Args:
        conversion: the plan; it is checked here.
        output: folder, name and dtypes of the bundle.
        source: where its parts come from.
        step: progress callback.

    Raises:
        BundleError: keys are missing, unexpected or of a wrong shape, values are not finite, or the disk is too small.
        UsageError: the output folder exists.
        LockedError: another process is writing the same bundle.
        VidqaError: a package for the export is not installed, or the output of an exported graph differs from torch.
    """
    dtype = output.torch_dtype
    check_plan(conversion)
    remove_leftovers(output.folder.absolute())  # before the free space is checked
    _check_free_space(conversion, output.folder, dtype)
    _check_tokenizers(conversion)

    def fill(folder: Path) -> None:
        # Copied parts come first, so that values that are not finite are found before the export, which takes minutes.
        connector = {key: read_finite(tensor, dtype) for key, tensor in conversion.connector.tensors.items()}
        save_file(connector, folder / conversion.connector.spec.file)
        step("connector", total_bytes(conversion.connector.tensors.values()))
        write_llm(conversion.llm, folder / "llm", dtype, step)
        (folder / "encoders").mkdir()
        for kind in ("image", "video"):
            plan: TowerPlan = getattr(conversion, kind)
            if not (folder / _graph(conversion, kind)).exists():
                _write_tower(plan, folder / _graph(conversion, kind), output.encoders == "float16")
            step(f"{kind} encoder", total_bytes(plan.tensors.values()))
        if conversion.text:
            _write_text(conversion.text, folder)
            step("text encoder", total_bytes(conversion.text.tensors.values()))

    return save_bundle(output.folder, _spec(conversion, output.title, source), fill, output.replace_old)


def _check_free_space(conversion: ConversionPlan, out: Path, dtype: torch.dtype | None) -> None:
    """Check the free space before any work. An old bundle stays on disk until the new one is complete."""
    towers: dict[str, Any] = {_graph(conversion, kind): getattr(conversion, kind) for kind in ("image", "video")}
    if conversion.text:
        towers["text"] = conversion.text
    needed = sum(_size(o, torch.float32) for plan in towers.values() for o in plan.tensors.values())
    needed += sum(_size(o, dtype) for plan in (conversion.connector, conversion.llm) for o in plan.tensors.values())
    free = free_disk_bytes(out.absolute().parent)
    if needed > free:
        what = f"the model needs {human_bytes(needed)}, but the disk of {out} has only {human_bytes(free)} free"
        raise BundleError(what, hint="choose another --out, or --dtype float16 if the weights are float32")


def _check_tokenizers(conversion: ConversionPlan) -> None:
    """Read the tokenizers before the weights, so that their errors are found before minutes of work."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(conversion.llm, Path(folder))
        if conversion.text:
            _save_text_tokenizer(conversion.text, Path(folder) / "text.json")


def write_llm(
    plan: LlmPlan, folder: Path, dtype: torch.dtype | None, step: Step, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write an ordinary transformers model folder, shard by shard, in the order of the tensors in the checkpoint.

    Args:
        plan: the LLM.
        folder: the new folder.
        dtype: dtype of the weights; None keeps the stored dtype.
        step: progress callback.
        shard_bytes: maximum size of a shard; a larger tensor gets a shard of its own.
    """
    folder.mkdir()
    shards = list(_shards(plan.tensors, dtype, shard_bytes))
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: read_finite(plan.tensors[key], dtype) for key in keys}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        del tensors
        step("language model", total_bytes(plan.tensors[key] for key in keys))
    if len(shards) > 1:
        total = sum(_size(plan.tensors[key], dtype) for key in plan.tensors)
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    stored = dtype or next(iter(plan.tensors.values())).dtype
    plan.config.dtype = stored
    plan.config.save_pretrained(folder)
    if plan.generation:
        text = json.dumps(dict(plan.generation), indent=2) + "\n"
        (folder / GENERATION_CONFIG).write_text(text, encoding="utf-8")
    save_tokenizer(plan, folder)


def _shards(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for key, tensor in tensors.items():
        n = _size(tensor, dtype)
        if shard and size + n > limit:
            yield shard
            shard, size = [], 0
        shard.append(key)
        size += n
    yield shard


def _write_tower(plan: TowerPlan, path: Path, half: bool) -> None:
    export_tower(_load(VisionTower, plan.config, plan.tensors), path, plan.n_frames, plan.layer, half)


def _load(kind: type[Any], config: Any, tensors: Mapping[str, LazyTensor]) -> Any:
    """Return a tower module in float32, with one copy of its weights in memory."""
    with torch.device("meta"):
        module: nn.Module = kind(config)
    module.load_state_dict({key: read_finite(tensor, torch.float32) for key, tensor in tensors.items()}, assign=True)
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


def _spec(conversion: ConversionPlan, name: str, source: SourceSpec) -> BundleSpec:
    """Return the bundle's spec; digests are filled in once the files exist."""
    video = conversion.video
    if video.sampling is None:
        raise BundleError("the plan of the video tower has no sampling rule")
    return BundleSpec(
        name=name,
        encoders=EncodersSpec(
            EncoderSpec(**_encoder(conversion, "image")),
            VideoEncoderSpec(**_encoder(conversion, "video"), sampling=video.sampling),
            _text_spec(conversion.text) if conversion.text else None,
        ),
        connector=replace(conversion.connector.spec, file="connector.safetensors"),
        llm=LlmSpec("llm", conversion.llm.context),
        prompt=conversion.prompt,
        generation=conversion.generation,
        notice=conversion.notice,
        architecture=conversion.architecture,
        compat=conversion.compat,
        source=source,
    )


def _graph(conversion: ConversionPlan, kind: str) -> str:
    """Return the path of a tower's graph; a tower shared by images and videos is written once."""
    image, video = ((p.config, p.tensors, p.n_frames, p.layer) for p in (conversion.image, conversion.video))
    return f"encoders/{'image' if image == video else kind}.onnx"


def _encoder(conversion: ConversionPlan, kind: str) -> dict[str, Any]:
    plan: TowerPlan = getattr(conversion, kind)
    return {
        "file": _graph(conversion, kind),
        "n_frames": plan.n_frames,
        "layer": plan.layer,
        "keep_cls": plan.keep_cls,
        "hidden_size": plan.config.hidden_size,
        "embedding_size": plan.config.embedding_size,
        "n_patches": plan.config.n_patches,
        "preprocess": plan.preprocess,
    }


def _size(tensor: LazyTensor, dtype: torch.dtype | None) -> int:
    return torch.Size(tensor.shape).numel() * (dtype or tensor.dtype).itemsize
