"""Model names -> folders: built-in models, pulled models, and paths."""

from __future__ import annotations

from pathlib import Path

BUNDLE_FILE = "bundle.json"
DEMO = Path(__file__).resolve().parents[2] / "demo"


def built_in_bundles() -> dict[str, Path]:
    """Return the models that come with the package, by name."""
    return {"demo": DEMO} if (DEMO / BUNDLE_FILE).is_file() else {}


def models_folder() -> Path:
    """Return the folder that holds a subfolder for each pulled model; it need not exist."""
    from platformdirs import user_data_path  # imported here, because the built-in model does not need it

    return user_data_path("vidqa", appauthor=False) / "models"


def pulled_models() -> dict[str, Path]:
    """Return the models in `models_folder`, by name."""
    folder = models_folder()
    return {p.parent.name: p.parent for p in sorted(folder.glob(f"*/{BUNDLE_FILE}"))} if folder.is_dir() else {}


def find_bundle(given: str) -> Path:
    """Return the folder of a built-in model, else an existing folder, else that of a pulled model.

    The folder need not exist.
    """
    if given in built_in_bundles():
        return built_in_bundles()[given].resolve()
    pulled = models_folder() / given if Path(given).name == given and not Path(given).is_dir() else None
    return (pulled if pulled and (pulled / BUNDLE_FILE).is_file() else Path(given)).resolve()
