"""The files of a bundle: allowed paths and types, and the digest of each.

Of weights only headers are read, and torch is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from vidqa.errors import BundleError
from vidqa.model.bundle.spec import BundleSpec
from vidqa.model.onnx.external_data import external_locations

#: Suffixes of formats that can run code when they are read, or that are not part of a bundle.
_REJECTED = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".npy",
    ".npz",
    ".py",
    ".so",
    ".gguf",
)
_HEX = frozenset("0123456789abcdef")
#: Larger JSON files of an LLM are vocabularies and are not read by this check.
_SETTINGS_BYTES = 1 << 20


def check_parts(folder: Path, spec: BundleSpec) -> list[str]:
    """Check the parts of a bundle without reading all of their content.

    Args:
        folder: folder of the bundle.
        spec: its description, with digests.

    Returns:
        One sentence per problem, each starting with the file; empty if there is none.
    """
    problems = []
    if "config.json" not in spec.llm.files:
        problems.append("llm.files: config.json is missing")
    if not spec.connector.file.endswith(".safetensors"):
        problems.append(f"connector.file: must be a safetensors file, got {spec.connector.file!r}")
    graphs = _graphs(spec)
    for name, digest in part_digests(spec).items():
        if len(digest) != 64 or not _HEX.issuperset(digest):
            problems.append(f"{name}: its sha256 must be 64 hex digits, got {digest!r:.80}")
        if name.lower().endswith(_REJECTED):
            problems.append(f"{name}: this type of file can run code or is not a model part; only safetensors are read")
            continue
        try:
            path = resolve_part(folder, name)
        except BundleError as e:
            problems.append(e.what)
            continue
        if name.endswith(".safetensors") and (problem := _header_problem(path)):
            problems.append(f"{name}: {problem}")
        if name in graphs:
            problems += _graph_problems(name, path, graphs[name])
    if not problems:
        found = {f"{spec.llm.folder}/{n}" for n in list_files(folder / spec.llm.folder)}
        listed = {f"{spec.llm.folder}/{n}" for n in spec.llm.files}
        problems += [f"{n}: not listed in llm.files" for n in sorted(found - listed)]
        problems += _settings_problems(folder, spec)
        problems += _index_problems(folder / spec.llm.folder, spec.llm.files)
    return problems


def _graphs(spec: BundleSpec) -> dict[str, Collection[str]]:
    """Return the ONNX files of a bundle, each with the external data files listed for it."""
    e = spec.encoders
    return {part.file: part.external for part in (e.image, e.video, e.text) if part is not None}


def _graph_problems(name: str, path: Path, listed: Collection[str]) -> Iterator[str]:
    """Report external data files that a graph would read although the bundle does not list them."""
    try:
        locations = external_locations(path)
    except (OSError, ValueError) as e:
        yield f"{name}: not an ONNX file ({e})"
        return
    for location in sorted(locations):
        there = (PurePosixPath(name).parent / location).as_posix()
        # Compared as text: an exporter never writes a path with `..`.
        if there not in listed or location.startswith("/"):
            yield f"{name}: would read weights from {location!r}, which is not listed for it"


def _settings_problems(folder: Path, spec: BundleSpec) -> Iterator[str]:
    """Report settings of the LLM and tokenizer that are not JSON objects: transformers would not name the file."""
    for name in (f"{spec.llm.folder}/{n}" for n in sorted(spec.llm.files) if n.endswith(".json")):
        path = folder / name
        if path.stat().st_size > _SETTINGS_BYTES:
            continue
        try:
            is_object = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        except (OSError, ValueError, RecursionError) as e:
            yield f"{name}: not JSON ({e})"
        else:
            if not is_object:
                yield f"{name}: must be a JSON object"


def _index_problems(llm: Path, files: Collection[str]) -> list[str]:
    """Report shards that the index of a large LLM names although the bundle does not list them."""
    name = "model.safetensors.index.json"
    if name not in files:
        return []
    try:
        shards = set(json.loads((llm / name).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
        return [f"{llm.name}/{name}: cannot be read ({e!r})"]
    return [f"{llm.name}/{name}: names {shard!r}, not listed in llm.files" for shard in sorted(shards - set(files))]


def _header_problem(path: Path) -> str | None:
    """Describe what is wrong with the header of a safetensors file; None if nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            f.keys()
    except (SafetensorError, OSError) as e:
        return f"damaged safetensors file ({e})"
    return None


def resolve_part(folder: Path, name: str) -> Path:
    """Return the path of a part.

    Raises:
        BundleError: the path is outside the folder, directly or through a symlink, or there is no such file.
    """
    pure = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or ":" in name or pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"{name!r}: not a path inside the model's folder")
    try:
        path = (folder / pure).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise BundleError(f"{name}: a symlink to a file outside the model's folder")
        if not path.is_file():
            raise BundleError(f"{name}: missing")
    except (OSError, RuntimeError, ValueError) as e:  # too long, a symlink cycle, or not a valid name on this system
        raise BundleError(f"{name!r:.200}: not a file name that can be opened: {e}") from e
    return path


def part_digests(spec: BundleSpec) -> dict[str, str]:
    """Return the sha256 of every part by its path inside the bundle."""
    e = spec.encoders
    out = {e.image.file: e.image.sha256, **e.image.external, e.video.file: e.video.sha256, **e.video.external}
    if e.text:
        out |= {e.text.file: e.text.sha256, **e.text.external}
        if e.text.tokenizer:
            out[e.text.tokenizer] = e.text.tokenizer_sha256
    out[spec.connector.file] = spec.connector.sha256
    return out | {f"{spec.llm.folder}/{name}": digest for name, digest in spec.llm.files.items()}


def external_data_files(folder: Path, graph: str) -> list[str]:
    """Return the external data files of a graph: files whose names start with the name of the graph."""
    path = folder / graph
    return sorted(
        (PurePosixPath(graph).parent / p.name).as_posix() for p in path.parent.glob(f"{path.name}?*") if p.is_file()
    )


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, with forward slashes, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
