"""`models list`, `show` and `rm`: folders -> the bundles in them, including damaged ones; the card of one; removal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vidqa.common.atomic_io import remove_leftovers
from vidqa.config.default_model import default_model
from vidqa.errors import BundleError, UsageError
from vidqa.model.bundle.bundle import Bundle, check_output_folder, load_bundle, move_aside
from vidqa.model.bundle.registry import BUNDLE_FILE, built_in_bundles, find_bundle, pulled_models
from vidqa.model.bundle.spec import SourceSpec
from vidqa.model.bundle.spec_json import to_json


@dataclass(frozen=True)
class FoundModel:
    """A bundle. If `problem` is set it cannot be loaded, and the ids are empty.

    Attributes:
        variant: which published model it is; empty unless it was converted.
        base: what it was fine-tuned from, else the repositories or files that it was converted from.
        n_bytes: size of all files in its folder.
        date: when it was written, as `YYYY-MM-DD`.
        default: whether it is the model that `vidqa describe` uses without `--model`.
    """

    name: str
    folder: Path
    model_id: str = ""
    encoder_id: str = ""
    n_bytes: int = 0
    variant: str = ""
    compat: str = ""
    origins: tuple[str, ...] = ()
    problem: str | None = None
    base: str = ""
    date: str = ""
    default: bool = False


def find_models(folders: Iterable[str | Path]) -> list[FoundModel]:
    """Return the included models, the pulled ones, and those in the given folders, without duplicates.

    Args:
        folders: bundles, or folders that directly contain bundles.

    Raises:
        UsageError: the settings are invalid.
    """
    found: dict[Path, FoundModel] = {}
    default = default_folder()
    for folder in (*built_in_bundles().values(), *pulled_models().values(), *_candidates(folders)):
        folder = folder.resolve()
        if folder not in found:
            found[folder] = _inspect(folder, default)
    return list(found.values())


def default_folder() -> Path:
    """Return the folder of the default model, which need not exist.

    Raises:
        UsageError: the settings are invalid.
    """
    return find_bundle(default_model().value)


def model_card(name: str) -> dict[str, Any]:
    """Return everything that `bundle.json` and the configuration of the language model state about a model.

    Args:
        name: name or folder of a bundle.

    Returns:
        Values that JSON can represent; None for what is not recorded.

    Raises:
        BundleError: there is no such model, or it cannot be loaded.
        UsageError: the settings are invalid.
    """
    bundle = load_bundle(name)
    spec, found = bundle.spec, _inspect(bundle.folder, default_folder())
    video, source = spec.encoders.video, spec.source
    return {
        **{key: getattr(found, key) for key in ("name", "folder", "model_id", "encoder_id", "variant", "base")},
        **{key: getattr(found, key) for key in ("n_bytes", "date", "default")},
        "architecture": {
            "type": spec.architecture,
            "language_model": _language_model(bundle),
            "connector": to_json(spec.connector),
            "text_encoder": spec.encoders.text is not None,
        },
        "frames": {"image_size": video.preprocess.image_size, **to_json(video.sampling)},
        "tokens": _visual_tokens(bundle),
        "context": spec.llm.context,
        "prompt": to_json(spec.prompt),
        "generation": to_json(spec.generation),
        "compat": to_json(spec.compat) if spec.compat else None,
        "provenance": to_json(source) if source else None,
        "licence": _licence(source),
        "notice": bundle.notice,
    }


@dataclass(frozen=True)
class Removal:
    """What removing a model does. `downloads` are its repositories in the hub's cache, which stay, with their sizes."""

    name: str
    folder: Path
    n_bytes: int
    default: bool
    downloads: tuple[tuple[str, int], ...] = ()


def plan_removal(name: str) -> Removal:
    """Check that a model can be removed, and return what that would free. A damaged model can be removed, too.

    Args:
        name: name of a pulled model, or the folder of a bundle.

    Raises:
        BundleError: there is no such model.
        UsageError: it comes with vidqa, or its folder also contains other files or is a symbolic link.
        LockedError: another process is writing it.
    """
    folder = find_bundle(name)
    if folder in {path.resolve() for path in built_in_bundles().values()}:
        raise UsageError(f"{name} comes with vidqa and cannot be removed")
    if not (folder / BUNDLE_FILE).is_file():
        load_bundle(name)  # raises the error that lists the names of all models
    given = Path(name) if Path(name).is_dir() else pulled_models().get(name, folder)
    if given.is_symlink():
        raise UsageError(f"{given} is a symbolic link to {folder}", hint=f"vidqa models rm {folder}")
    check_output_folder(folder, replace_old=True, purpose="removed", hint="remove the folder by hand")
    remove_leftovers(folder)
    remove_leftovers(folder, ".old")  # of a removal that was killed
    found = _inspect(folder, default_folder())
    return Removal(found.name, folder, found.n_bytes, found.default, _downloads(found.origins))


def remove_model(removal: Removal) -> None:
    """Remove a model. Its name disappears at once, so an interrupted removal leaves no incomplete model.

    Args:
        removal: as planned.

    Raises:
        OSError: the folder cannot be removed.
    """
    shutil.rmtree(move_aside(removal.folder))


def _downloads(origins: Iterable[str]) -> tuple[tuple[str, int], ...]:
    from vidqa.conversion.hub import cached_bytes

    repos = sorted({origin.partition("@")[0] for origin in origins if "@" in origin})
    return tuple((repo, n_bytes) for repo in repos if (n_bytes := cached_bytes(repo)))


def _candidates(folders: Iterable[str | Path]) -> Iterator[Path]:
    for name in folders:
        folder = Path(name)
        children = sorted(folder.iterdir()) if folder.is_dir() else []
        yield from (path for path in (folder, *children) if (path / BUNDLE_FILE).is_file())


def _inspect(folder: Path, default: Path) -> FoundModel:
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    written = datetime.fromtimestamp((folder / BUNDLE_FILE).stat().st_mtime).date().isoformat()
    found = FoundModel(folder.name, folder, n_bytes=n_bytes, date=written, default=folder == default)
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        return replace(found, problem=error.what.splitlines()[0])
    spec = bundle.spec
    found = replace(found, name=spec.name, model_id=bundle.model_id, encoder_id=bundle.encoder_id)
    if spec.compat:
        found = replace(found, variant=spec.compat.variant, compat=spec.compat.mode)
    return replace(found, origins=spec.source.origins, base=_base(spec.source)) if spec.source else found


def _base(source: SourceSpec) -> str:
    """Return what a model is made from, without revisions."""
    names = [source.base] if source.base else [origin.removeprefix("local:") for origin in source.origins]
    return " + ".join(name.partition("@")[0] for name in names)


def _licence(source: SourceSpec | None) -> list[str] | None:
    """Return the licence of each part, with the part if there are several; None if none is recorded."""
    if source is None or not any(source.licences):
        return None
    if len(source.origins) == 1:
        return list(source.licences)
    pairs = zip(source.origins, source.licences, strict=False)
    return [f"{origin.partition('@')[0]}: {licence or 'not stated'}" for origin, licence in pairs]


def _language_model(bundle: Bundle) -> dict[str, Any]:
    """Return type, number of layers, hidden size and dtype, as far as `config.json` states them."""
    config: Any = {}
    with suppress(OSError, ValueError):
        config = json.loads((bundle.llm_folder / "config.json").read_text(encoding="utf-8"))
    keys = {"type": "model_type", "n_layers": "num_hidden_layers", "hidden_size": "hidden_size", "dtype": "dtype"}
    return {name: config.get(key) if isinstance(config, dict) else None for name, key in keys.items()}


def _visual_tokens(bundle: Bundle) -> dict[str, int]:
    """Return the number of visual tokens of a video, at most, and of an image."""
    from vidqa.training.data.media_shapes import SpecShapes
    from vidqa.training.data.sample import MediaRef

    shape = SpecShapes(bundle.spec)
    return {"video": sum(shape(MediaRef("-", "video")).lengths), "image": sum(shape(MediaRef("-", "image")).lengths)}
