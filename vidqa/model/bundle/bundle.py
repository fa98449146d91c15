"""A model on disk, whole or absent: folder -> Bundle, parts -> folder.

    bundle.json            format, settings, digest of every part; written last
    encoders/*.onnx        image, video and, for search, text
    connector.safetensors
    llm/                   an ordinary transformers folder

Knows files, digests and identity. Does not know what is inside a graph, and imports no torch: a listing of models or a
run that only encodes must not wait for it. Nothing is inferred from a folder's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from vidqa.common.atomic_io import fsync_folder, remove_leftovers, sha256_of_file, temporary_folder
from vidqa.encoders.preprocess import PREPROCESSING_REVISION
from vidqa.errors import BundleError, UsageError
from vidqa.model.bundle.registry import BUNDLE_FILE, DEMO, built_in_bundles, find_bundle, pulled_models
from vidqa.model.bundle.spec import BundleSpec, EncoderSpec, TextEncoderSpec
from vidqa.model.bundle.spec_json import as_table, read_spec
from vidqa.model.bundle.validate import check_parts, digests, external_files, files_below, inside

_Graph = TypeVar("_Graph", bound=EncoderSpec | TextEncoderSpec)

__all__ = ["BUNDLE_FILE", "DEMO", "Bundle", "built_in_bundles", "check_target", "load_bundle", "save_bundle"]


@dataclass(frozen=True)
class Bundle:
    """A loaded description; the parts themselves are opened by whoever needs them."""

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
        """ONNX file of the text tower; None where the bundle has none."""
        text = self.spec.encoders.text
        return self.folder / text.file if text else None

    @property
    def text_tokenizer(self) -> Path | None:
        """`tokenizer.json` of the text tower; None where the bundle has no text tower."""
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
        """transformers folder of the LLM."""
        return self.folder / self.spec.llm.folder

    @cached_property
    def encoder_id(self) -> str:
        """16 hex digits: everything that changes the bytes of a feature, and nothing else."""
        e = self.spec.encoders
        parts = [_without(as_table(part), "file", "external") for part in (e.image, e.video)]
        external = [sorted(part.external.values()) for part in (e.image, e.video)]
        return _short_digest({"parts": parts, "external": external, "preprocessing": PREPROCESSING_REVISION})

    @cached_property
    def model_id(self) -> str:
        """16 hex digits: everything that changes an answer. Names, notices and the place on disk do not."""
        s = self.spec
        return _short_digest(
            {
                "encoder_id": self.encoder_id,
                "architecture": s.architecture,
                "connector": _without(as_table(s.connector), "file"),
                "llm": {"files": s.llm.files, "context": s.llm.context},
                "prompt": as_table(s.prompt),
                "generation": as_table(s.generation),
            }
        )

    def verify(self) -> list[str]:
        """Read every part again and compare its digest.

        Returns:
            One sentence for each part that is missing or altered; empty when all is well.
        """
        problems = []
        for name, digest in digests(self.spec).items():
            try:
                if sha256_of_file(inside(self.folder, name)) != digest:
                    problems.append(f"{name}: the content is not what {BUNDLE_FILE} says (sha256 differs)")
            except (BundleError, OSError) as e:
                problems.append(e.what if isinstance(e, BundleError) else f"{name}: {e.strerror}")
        return problems


def load_bundle(name_or_dir: str | os.PathLike[str]) -> Bundle:
    """Read the description of a model and check that every part is there and of an accepted kind.

    The digests are not recomputed (`Bundle.verify` does that): a large model would take minutes.

    Args:
        name_or_dir: `demo`, the name of a pulled model, or a folder. A folder named `demo` is reached as `./demo`.

    Raises:
        BundleError: no such model, or a part that is missing, unknown, damaged, outside the folder or of a kind that
            can run code. All problems are named together, with file and key.
    """
    given = os.fspath(name_or_dir)
    try:
        folder = find_bundle(given)
        file = folder / BUNDLE_FILE
        is_there = file.is_file()
    except (OSError, ValueError) as e:  # too long, or no name of this system
        raise BundleError(f"no model at {given!r:.200}: {e}") from e
    if not is_there:
        known = ", ".join([*built_in_bundles(), *pulled_models()]) or "none"
        raise BundleError(f"no model at {given}: {file} does not exist", hint=f"give a folder, or a name of: {known}")
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


def check_target(folder: str | os.PathLike[str], replace_old: bool = False) -> None:
    """Whether a model may be written to a folder: it is not there, or it is an old model and nothing else.

    Raises:
        UsageError: the place is taken, or replacing what is there would remove files that belong to no model.
    """
    target = Path(folder).absolute()
    if not os.path.lexists(target):
        return
    if not replace_old:
        raise UsageError(f"{target} exists already", hint="--replace, or another --out")
    here = {path.name for path in target.iterdir()} if target.is_dir() else None
    if here is None or (here and BUNDLE_FILE not in here):
        raise UsageError(f"{target} is no model, so it is not replaced", hint="another --out")
    if strange := sorted(here - _parts_of(target)) if here else []:
        some = ", ".join(strange[:3]) + (" ..." if len(strange) > 3 else "")
        raise UsageError(f"{target} holds more than a model ({some}), so it is not replaced", hint="another --out")


def _parts_of(folder: Path) -> set[str]:
    """Names in a model's folder that are the model's own, as its description says; in any case those of our layout."""
    own = {BUNDLE_FILE, "encoders", "connector.safetensors", "llm"}
    try:
        spec, _ = read_spec(json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):  # damaged, which may be why it is replaced
        return own
    return own | {Path(name).parts[0] for name in digests(spec)} if spec else own


def save_bundle(
    folder: str | os.PathLike[str], spec: BundleSpec, fill: Callable[[Path], None], replace_old: bool = False
) -> Bundle:
    """Write a model so that it is there whole or not at all.

    Args:
        folder: where it shall stand.
        spec: without digests: those given are ignored and computed from the files.
        fill: writes every part below the folder it is given, at the paths that `spec` names.
        replace_old: put the new model in the place of an old one.

    Returns:
        The bundle, loaded and checked.

    Raises:
        UsageError: as `check_target`.
        LockedError: another process is writing the same folder.
        BundleError: a part is missing or of a refused kind. Nothing is left behind.
    """
    target = Path(folder).absolute()
    check_target(target, replace_old)
    remove_leftovers(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as part:
        fill(part)
        full = _with_digests(part, spec)
        text = json.dumps(as_table(full), indent=2, ensure_ascii=False) + "\n"
        (part / BUNDLE_FILE).write_text(text, encoding="utf-8")
        load_bundle(part)
        _settle(part)
        _swap(part, target)
    remove_leftovers(target, ".old")  # models that were moved aside by a process that was killed before it removed them
    return load_bundle(target)


def _with_digests(folder: Path, spec: BundleSpec) -> BundleSpec:
    e = spec.encoders

    def hashed(part: _Graph) -> _Graph:
        beside = {name: sha256_of_file(inside(folder, name)) for name in external_files(folder, part.file)}
        return replace(part, sha256=sha256_of_file(inside(folder, part.file)), external=beside)

    text = e.text and hashed(e.text)
    if text and text.tokenizer:
        text = replace(text, tokenizer_sha256=sha256_of_file(inside(folder, text.tokenizer)))
    encoders = replace(e, image=hashed(e.image), video=hashed(e.video), text=text)
    connector = replace(spec.connector, sha256=sha256_of_file(inside(folder, spec.connector.file)))
    files = {n: sha256_of_file(inside(folder, f"{spec.llm.folder}/{n}")) for n in files_below(folder / spec.llm.folder)}
    return replace(spec, encoders=encoders, connector=connector, llm=replace(spec.llm, files=files))


def _settle(folder: Path) -> None:
    """Bring all files to the disk, with the permissions that new files have here."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [*folder.rglob("*"), folder]:
        if path == folder or path.is_file():  # safetensors writes files that only their owner may read
            os.chmod(path, (0o666 if path.is_file() else 0o777) & ~umask)
        fsync_folder(path)  # opens for reading only, so it serves files that were copied as read-only too


def _swap(part: Path, target: Path) -> None:
    """Let `part` take the name `target`; an old folder there is moved aside first and removed last."""
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)) / "old"
        target.rename(old)
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
