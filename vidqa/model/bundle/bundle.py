"""A bundle: a model on disk, written atomically.

    bundle.json            format, settings, digest of every part; written last
    encoders/*.onnx        image, video and, for search, text
    connector.safetensors
    llm/                   a standard transformers folder

Nothing is inferred from a folder's name.

Scope: files, digests and identity. torch is not imported, so that listing models and encoding need not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from vidqa.common.atomic_io import current_umask, fsync_folder, remove_leftovers, sha256_of_file, temporary_folder
from vidqa.common.disk_space import disk_full_as, write_remedy
from vidqa.common.display import display_path
from vidqa.config.toml_lines import did_you_mean
from vidqa.encoders.preprocess import PREPROCESSING_REVISION
from vidqa.errors import BundleError, UsageError
from vidqa.model.bundle.registry import BUNDLE_FILE, DEMO, built_in_bundles, find_bundle, pulled_models
from vidqa.model.bundle.spec import BundleSpec, EncoderSpec, TextEncoderSpec
from vidqa.model.bundle.spec_json import read_spec, to_json
from vidqa.model.bundle.validate import check_parts, external_data_files, list_files, part_digests, resolve_part

#: Subfolder of the LLM with a LoRA adapter that is not merged.
ADAPTER_FOLDER = "adapter"
_Graph = TypeVar("_Graph", bound=EncoderSpec | TextEncoderSpec)

__all__ = [
    "BUNDLE_FILE",
    "DEMO",
    "Bundle",
    "built_in_bundles",
    "check_output_folder",
    "load_bundle",
    "move_aside",
    "save_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """The description of a model. The code that uses a part opens it."""

    folder: Path  # absolute, symlinks resolved
    spec: BundleSpec

    @property
    def image_graph(self) -> Path:
        """ONNX file of the image encoder."""
        return self.folder / self.spec.encoders.image.file

    @property
    def video_graph(self) -> Path:
        """ONNX file of the video encoder."""
        return self.folder / self.spec.encoders.video.file

    @property
    def text_graph(self) -> Path | None:
        """ONNX file of the text tower; None if the bundle has none."""
        text = self.spec.encoders.text
        return self.folder / text.file if text else None

    @property
    def text_tokenizer(self) -> Path | None:
        """`tokenizer.json` of the text tower; None if the bundle has no text tower."""
        text = self.spec.encoders.text
        if text is None:
            return None
        return self.folder / text.tokenizer if text.tokenizer else self.llm_folder / "tokenizer.json"

    @property
    def connector_file(self) -> Path:
        """Weights of the connector."""
        return self.folder / self.spec.connector.file

    @property
    def llm_folder(self) -> Path:
        """Transformers folder of the LLM."""
        return self.folder / self.spec.llm.folder

    @cached_property
    def encoder_id(self) -> str:
        """Digest, 16 hex digits, of everything that changes the bytes of a feature, and of nothing else."""
        e = self.spec.encoders
        parts = [_without(to_json(part), "file", "external") for part in (e.image, e.video)]
        external = [sorted(part.external.values()) for part in (e.image, e.video)]
        return _short_digest({"parts": parts, "external": external, "preprocessing": PREPROCESSING_REVISION})

    @cached_property
    def model_id(self) -> str:
        """Digest, 16 hex digits, of everything that changes an answer; not of names, notices or the path."""
        s = self.spec
        return _short_digest(
            {
                "encoder_id": self.encoder_id,
                "architecture": s.architecture,
                "connector": _without(to_json(s.connector), "file"),
                "llm": {"files": s.llm.files, "context": s.llm.context},
                "prompt": to_json(s.prompt),
                "generation": to_json(s.generation),
            }
        )

    @property
    def notice(self) -> str | None:
        """The notice for users of this model. A model made from the demo model does not inherit that of the demo."""
        notice = self.spec.notice
        if notice and self.folder != DEMO and "demo" in built_in_bundles():
            demo = load_bundle(DEMO)
            if notice == demo.spec.notice and self.model_id != demo.model_id:
                return None
        return notice

    def verify(self) -> list[str]:
        """Read all parts and compare their digests.

        Returns:
            One sentence per part that is missing or altered; empty if there is none.
        """
        problems = []
        for name, digest in part_digests(self.spec).items():
            try:
                if sha256_of_file(resolve_part(self.folder, name)) != digest:
                    problems.append(f"{name}: its sha256 differs from the one in {BUNDLE_FILE}")
            except (BundleError, OSError) as e:
                problems.append(e.what if isinstance(e, BundleError) else f"{name}: {e.strerror}")
        return problems


def load_bundle(name_or_dir: str | os.PathLike[str]) -> Bundle:
    """Read the description of a model and check that every part exists and is of an accepted type.

    The digests are not checked, because that takes minutes for a large model; `Bundle.verify` does.

    Args:
        name_or_dir: `demo`, the name of a pulled model, or a folder. Write `./demo` for a folder named `demo`.

    Raises:
        BundleError: there is no such model, or a part is missing, unknown, damaged, outside the folder, or of a type
            that can run code. All problems are reported together, with file and key.
    """
    given = os.fspath(name_or_dir)
    try:
        folder = find_bundle(given)
        file = folder / BUNDLE_FILE
        is_there = file.is_file()
    except (OSError, ValueError) as e:  # too long, or not a valid name on this system
        raise BundleError(f"no model at {given!r:.200}: {e}") from e
    if not is_there:
        names = [*built_in_bundles(), *pulled_models()]
        raise BundleError(
            f"no model at {given}: {file} does not exist{did_you_mean(given, names)}",
            hint=f"pass a folder, or the name of a model: {', '.join(names) or 'none'}",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"{file} cannot be read: {e}") from e
    spec, problems = read_spec(data)
    if spec is not None:
        problems = check_parts(folder, spec)
    if spec is None or problems:
        raise BundleError("\n".join(f"{file}: {p}" for p in problems))
    return Bundle(folder, spec)


def check_output_folder(
    folder: str | os.PathLike[str],
    replace_old: bool = False,
    *,
    purpose: str = "replaced",
    hint: str = "another --out",
) -> None:
    """Check that a bundle may be written to a folder: it does not exist, or it is a bundle that may be replaced.

    Args:
        folder: folder of the new bundle.
        replace_old: allow replacing an existing bundle.
        purpose: what would be done with it, for messages.
        hint: what to try if that is not possible.

    Raises:
        UsageError: the path exists, or replacing it would remove files that do not belong to a bundle.
    """
    target = Path(folder).absolute()
    if not os.path.lexists(target):
        return
    if not replace_old:
        raise UsageError(f"{target} exists already", hint="--replace, or another --out")
    names = {path.name for path in target.iterdir()} if target.is_dir() else None
    if names is None or (names and BUNDLE_FILE not in names):
        raise UsageError(f"{target} is not a model, so it is not {purpose}", hint=hint)
    if others := sorted(names - _part_names(target)) if names else []:
        some = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise UsageError(f"{target} contains other files ({some}), so it is not {purpose}", hint=hint)


def _part_names(folder: Path) -> set[str]:
    """Top-level names of a bundle's parts: those in its description, and those of the usual layout."""
    usual = {BUNDLE_FILE, "encoders", "connector.safetensors", "llm"}
    try:
        spec, _ = read_spec(json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):  # damaged, which may be the reason to replace it
        return usual
    return usual | {Path(name).parts[0] for name in part_digests(spec)} if spec else usual


def save_bundle(
    folder: str | os.PathLike[str], spec: BundleSpec, fill: Callable[[Path], None], replace_old: bool = False
) -> Bundle:
    """Write a bundle atomically.

    Args:
        folder: folder of the bundle.
        spec: description of the bundle; its digests are ignored and computed from the files.
        fill: writes every part into the given folder, at the paths that `spec` names.
        replace_old: replace an existing bundle.

    Returns:
        The bundle, loaded and checked.

    Raises:
        UsageError: see `check_output_folder`.
        LockedError: another process is writing to the same folder.
        BundleError: a part is missing or of a rejected type, or the disk is full. Partial files are removed.
    """
    target = Path(folder).absolute()
    check_output_folder(target, replace_old)
    remove_leftovers(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as part, disk_full_as(partial(_disk_full_error, target)):
        fill(part)
        full = _with_digests(part, spec)
        text = json.dumps(to_json(full), indent=2, ensure_ascii=False) + "\n"
        (part / BUNDLE_FILE).write_text(text, encoding="utf-8")
        load_bundle(part)
        _finalize_files(part)
        _swap(part, target)
    remove_leftovers(target, ".old")  # from a process that was killed before it removed an old bundle
    return load_bundle(target)


def _disk_full_error(target: Path, error: Exception) -> BundleError:
    what = f"{display_path(str(target))}: the model cannot be written: {getattr(error, 'strerror', None) or error}"
    return BundleError(what, hint=f"{write_remedy(error, target.parent)}, or use another --out")


def _with_digests(folder: Path, spec: BundleSpec) -> BundleSpec:
    e = spec.encoders

    def hashed(part: _Graph) -> _Graph:
        external = {name: sha256_of_file(resolve_part(folder, name)) for name in external_data_files(folder, part.file)}
        return replace(part, sha256=sha256_of_file(resolve_part(folder, part.file)), external=external)

    text = e.text and hashed(e.text)
    if text and text.tokenizer:
        text = replace(text, tokenizer_sha256=sha256_of_file(resolve_part(folder, text.tokenizer)))
    encoders = replace(e, image=hashed(e.image), video=hashed(e.video), text=text)
    connector = replace(spec.connector, sha256=sha256_of_file(resolve_part(folder, spec.connector.file)))
    files = {
        n: sha256_of_file(resolve_part(folder, f"{spec.llm.folder}/{n}")) for n in list_files(folder / spec.llm.folder)
    }
    return replace(spec, encoders=encoders, connector=connector, llm=replace(spec.llm, files=files))


def _finalize_files(folder: Path) -> None:
    """Flush all files to disk and set the default permissions of new files."""
    umask = current_umask()
    for path in [*folder.rglob("*"), folder]:
        if path == folder or path.is_file():  # safetensors writes files that only the owner can read
            os.chmod(path, (0o666 if path.is_file() else 0o777) & ~umask)
        fsync_folder(path)  # opens for reading only, so it also works for read-only files


def move_aside(folder: Path) -> Path:
    """Rename a bundle to a hidden name next to it, to be removed; return the folder to remove.

    If the process is killed before it removes it, the next one that writes the same bundle does.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    try:
        folder.rename(hidden / "old")
    except OSError:
        hidden.rmdir()
        raise
    return hidden


def _swap(part: Path, target: Path) -> None:
    """Rename `part` to `target`; an old folder there is moved aside first and removed last."""
    old = move_aside(target) / "old" if target.exists() else None
    try:
        part.rename(target)
    except OSError:
        if old:
            old.rename(target)
        raise
    fsync_folder(target.parent)
    if old:
        shutil.rmtree(old.parent, ignore_errors=True)


def _without(record: dict[str, object], *names: str) -> dict[str, object]:
    return {k: v for k, v in record.items() if k not in names}


def _short_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
