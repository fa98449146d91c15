"""Published models by name: `pull` downloads their repositories and converts them.

Downloaded files are detected by their content, like any other folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.common.extras import CONVERT_MODULES, require
from vidqa.config.toml_lines import did_you_mean
from vidqa.conversion.hub import Snapshot, fetch
from vidqa.errors import UsageError
from vidqa.model.bundle.registry import models_folder

if TYPE_CHECKING:
    from vidqa.conversion.output_options import OutputOptions

#: Files to download; README.md states the licence. Code, images and weights for other frameworks are not needed.
_INCLUDE = ("*.json", "*.safetensors", "*.bin", "*.model", "merges.txt", "*.jinja", "README.md")
_EXCLUDE = ("training_args.bin", "optimizer*", "*/*", "*.onnx", "flax*", "tf_*", "rust_*")


@dataclass(frozen=True)
class Repo:
    """A repository of the hub.

    Attributes:
        id: `owner/name`.
        skip: files not to download.
        revision: a commit; None means the newest. The bundle records the commit that was downloaded.
    """

    id: str
    skip: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True)
class Published:
    """A published model: its repositories and a description."""

    name: str
    repos: tuple[Repo, ...]
    description: str
    towers: tuple[Repo, ...] = ()


_LB_IMAGE, _LB_VIDEO = Repo("LanguageBind/LanguageBind_Image"), Repo("LanguageBind/LanguageBind_Video_merge")
_CLIP = Repo("openai/clip-vit-large-patch14", skip=("pytorch_model.bin",))

#: Every model that `pull` offers. No publisher pins a revision; the downloaded one is recorded in the bundle.
PUBLISHED: dict[str, Published] = {
    m.name: m
    for m in (
        Published(
            "video-llava-7b",
            (Repo("LanguageBind/Video-LLaVA-7B"),),
            "Video-LLaVA as published, with the temporal attention of its video tower",
        ),
        Published(
            "video-llava-7b-search",
            (Repo("LanguageBind/Video-LLaVA-7B"),),
            "the same with LanguageBind's own tower files, which include the text tower for search",
            (_LB_IMAGE, _LB_VIDEO),
        ),
        Published(
            "video-llava-7b-hf",
            (Repo("LanguageBind/Video-LLaVA-7B-hf"),),
            "the transformers port, without temporal attention",
        ),
        Published(
            "video-llava-7b-hf-true-towers",
            (Repo("LanguageBind/Video-LLaVA-7B-hf"),),
            "the LLM of the transformers port with LanguageBind's own towers",
            (_LB_IMAGE, _LB_VIDEO),
        ),
        Published(
            "video-chatgpt-7b",
            (Repo("MBZUAI/Video-ChatGPT-7B"), Repo("mmaaz60/LLaVA-7B-Lightening-v1-1"), _CLIP),
            "Video-ChatGPT as published: CLIP frame by frame, spatial and temporal means, 356 visual tokens",
        ),
    )
}


@dataclass(frozen=True)
class Pulled:
    """A pulled model: its bundle, the downloaded revisions and the conversion."""

    name: str
    folder: Path
    origins: tuple[str, ...]
    conversion: Any  # vidqa.conversion.convert.Conversion


def pull(
    name: str,
    output: OutputOptions | None = None,
    *,
    revisions: Mapping[str, str] | None = None,
    mode: str = "fixed",
    report: Callable[[str], None] = lambda text: None,
    step: Callable[[str, int], None] = lambda what, n: None,
) -> Pulled:
    """Download a published model and convert it into a bundle.

    Args:
        name: a key of `PUBLISHED`.
        output: options of the bundle; None writes it to `models_folder()` under its name.
        revisions: commit by repository; None, or a repository that is not listed, means the newest.
        mode: as in `vidqa.conversion.convert.convert`.
        report: receives one message per download.
        step: as in `vidqa.conversion.convert.convert`.

    Raises:
        UsageError: the model is unknown, a revision is for another repository, the bundle's folder exists, or the
            extra `convert` is not installed.
        VidqaError: the download failed.
        BundleError: as in `convert`.
    """
    from vidqa.common.atomic_io import remove_leftovers
    from vidqa.conversion.convert import convert
    from vidqa.conversion.output_options import OutputOptions

    if name not in PUBLISHED:
        suggestion = did_you_mean(name, PUBLISHED)
        raise UsageError(f"unknown published model {name!r}{suggestion}", hint=f"choose from {', '.join(PUBLISHED)}")
    model = PUBLISHED[name]
    repos = {repo.id for repo in (*model.repos, *model.towers)}
    if other := sorted(set(revisions or {}) - repos):
        raise UsageError(f"{other[0]} is not a repository of {name}", hint=f"choose from {', '.join(sorted(repos))}")
    require("downloading and converting models", "convert", *CONVERT_MODULES)
    output = output or OutputOptions(models_folder() / name, name)
    if output.folder.parent == models_folder():
        models_folder().mkdir(parents=True, exist_ok=True)
    output.check(())
    remove_leftovers(output.folder.absolute())  # the download may need their disk space
    parts, towers = ([_fetch(repo, revisions or {}, report) for repo in group] for group in (model.repos, model.towers))
    origins = tuple(snapshot.origin for snapshot in (*parts, *towers))
    conversion = convert(
        [snapshot.folder for snapshot in parts],
        output,
        towers=[snapshot.folder for snapshot in towers],
        mode="original" if mode == "original" else "fixed",
        step=step,
        origins=origins,
    )
    return Pulled(name, output.folder, origins, conversion)


def _fetch(repo: Repo, revisions: Mapping[str, str], report: Callable[[str], None]) -> Snapshot:
    return fetch(repo.id, revisions.get(repo.id) or repo.revision, _INCLUDE, (*_EXCLUDE, *repo.skip), report)
