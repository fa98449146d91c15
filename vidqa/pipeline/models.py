"""`models list`: folders -> the bundles in them, including damaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vidqa.errors import BundleError
from vidqa.model.bundle.bundle import load_bundle
from vidqa.model.bundle.registry import BUNDLE_FILE, built_in_bundles, pulled_models


@dataclass(frozen=True)
class FoundModel:
    """A bundle. If `problem` is set it cannot be loaded, and the ids are empty.

    `variant` (which published model it is) and `origins` (where it comes from) are empty unless it was converted.
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


def find_models(folders: Iterable[str | Path]) -> list[FoundModel]:
    """Return the included models, the pulled ones, and those in the given folders, without duplicates.

    Args:
        folders: bundles, or folders that directly contain bundles.
    """
    found: dict[Path, FoundModel] = {}
    for folder in (*built_in_bundles().values(), *pulled_models().values(), *_candidates(folders)):
        folder = folder.resolve()
        if folder not in found:
            found[folder] = _inspect(folder)
    return list(found.values())


def _candidates(folders: Iterable[str | Path]) -> Iterator[Path]:
    for name in folders:
        folder = Path(name)
        children = sorted(folder.iterdir()) if folder.is_dir() else []
        yield from (path for path in (folder, *children) if (path / BUNDLE_FILE).is_file())


def _inspect(folder: Path) -> FoundModel:
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        return FoundModel(folder.name, folder, problem=error.what.splitlines()[0])
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found = FoundModel(bundle.spec.name, folder, bundle.model_id, bundle.encoder_id, n_bytes)
    if bundle.spec.compat:
        found = replace(found, variant=bundle.spec.compat.variant, compat=bundle.spec.compat.mode)
    return replace(found, origins=bundle.spec.source.origins) if bundle.spec.source else found
