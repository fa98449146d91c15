"""Names of published models -> their repositories; `pull` fetches them and makes a bundle.

Does not know key names: what was fetched is recognised by its content, as any folder is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.convert.hub import Snapshot, fetch
from vidqa.errors import UsageError
from vidqa.model.bundle.registry import models_folder

if TYPE_CHECKING:
    from vidqa.convert.output_options import OutputOptions

#: What a model folder may need. Programs, pictures and other frameworks' weights stay where they are.
_WANTED = ("*.json", "*.safetensors", "*.bin", "*.model", "merges.txt", "*.jinja")
_UNWANTED = ("training_args.bin", "optimizer*", "*/*", "*.onnx", "flax*", "tf_*", "rust_*")


@dataclass(frozen=True)
class Repo:
    """A repository of the hub. `skip`: files not to fetch. `revision` None: the newest, which is recorded."""

    id: str
    skip: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True)
class Published:
    """A published model: what it is made of, and what one should know first."""

    name: str
    repos: tuple[Repo, ...]
    says: str
    towers: tuple[Repo, ...] = ()


_LB_IMAGE, _LB_VIDEO = Repo("LanguageBind/LanguageBind_Image"), Repo("LanguageBind/LanguageBind_Video_merge")
_CLIP = Repo("openai/clip-vit-large-patch14", skip=("pytorch_model.bin",))

#: Every model that `pull` knows. No revision is pinned by its publisher: the one that was fetched is recorded.
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
            "the same with LanguageBind's own tower files, which bring the text tower for search",
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
            "Video-ChatGPT as published: CLIP frame by frame, means over space and time, 356 visual tokens",
        ),
    )
}


@dataclass(frozen=True)
class Pulled:
    """A bundle that `pull` made: its folder, the revisions, and what the conversion says of itself."""

    name: str
    folder: Path
    origins: tuple[str, ...]
    conversion: Any  # vidqa.convert.convert.Conversion


def pull(
    name: str,
    target: OutputOptions | None = None,
    *,
    revisions: Mapping[str, str] | None = None,
    mode: str = "fixed",
    say: Callable[[str], None] = lambda text: None,
    step: Callable[[str, int], None] = lambda what, n: None,
) -> Pulled:
    """Fetch a published model and make a bundle of it.

    Args:
        name: a key of `PUBLISHED`.
        target: the bundle that it becomes; None puts it under its name into `models_folder()`.
        revisions: commit by repository, for those that shall not be the newest.
        mode, step: as in `vidqa.convert.convert.convert`.
        say: hears what is fetched.

    Raises:
        UsageError: no such model, a revision for a repository that is no part of it, or the bundle's folder is taken.
        VidqaError: it cannot be fetched.
        BundleError: as `convert`.
    """
    from vidqa.common.atomic_io import remove_leftovers
    from vidqa.convert.convert import convert
    from vidqa.convert.output_options import OutputOptions
    from vidqa.model.bundle.bundle import check_output_folder

    if name not in PUBLISHED:
        raise UsageError(f"no published model is called {name!r}", hint=f"one of {', '.join(PUBLISHED)}")
    model = PUBLISHED[name]
    known = {repo.id for repo in (*model.repos, *model.towers)}
    if strange := sorted(set(revisions or {}) - known):
        raise UsageError(f"{strange[0]} is no part of {name}", hint=f"one of {', '.join(sorted(known))}")
    target = target or OutputOptions(models_folder() / name, name)
    check_output_folder(target.folder, target.replace_old)
    remove_leftovers(target.folder.absolute())  # they take room that the download may need
    parts, towers = ([_fetch(repo, revisions or {}, say) for repo in group] for group in (model.repos, model.towers))
    origins = tuple(snapshot.origin for snapshot in (*parts, *towers))
    made = convert(
        [snapshot.folder for snapshot in parts],
        target,
        towers=[snapshot.folder for snapshot in towers],
        mode="original" if mode == "original" else "fixed",
        step=step,
        origins=origins,
    )
    return Pulled(name, target.folder, origins, made)


def _fetch(repo: Repo, revisions: Mapping[str, str], say: Callable[[str], None]) -> Snapshot:
    return fetch(repo.id, revisions.get(repo.id) or repo.revision, _WANTED, (*_UNWANTED, *repo.skip), say)
