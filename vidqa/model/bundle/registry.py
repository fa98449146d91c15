"""Model names -> folders: built-in models, pulled models, and paths."""

from __future__ import annotations

from pathlib import Path

from vidqa.common.path_text import escape_path

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


def model_argument(folder: Path) -> str:
    """Return what to pass as `--model` for a bundle: the name of a built-in or pulled model, else its folder.

    The user's home is written as `~`, so that the text neither names the user nor depends on the machine.

    Args:
        folder: of the bundle, absolute, with symbolic links resolved.
    """
    for name, bundle in (built_in_bundles() | pulled_models()).items():
        if bundle.resolve() == folder and find_bundle(name) == folder:
            return name
    for home in (Path.home(), Path.home().resolve()):
        if folder.is_relative_to(home):
            return escape_path(str(Path("~", folder.relative_to(home))))
    return escape_path(str(folder))
