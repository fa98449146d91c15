"""Names of published models -> their repositories; `pull` fetches them and makes a bundle.

The only place that uses the network, and only through huggingface_hub: resumable, cached, with the hub's own variables
(`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`). Does not know key names: what was fetched is recognised by its
content, as any folder is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import UsageError, VidqaError
from vidqa.model.places import models_folder

#: What a model folder may need. Programs, pictures and other frameworks' weights stay where they are.
_WANTED = ("*.json", "*.safetensors", "*.bin", "*.model", "merges.txt", "*.jinja")
_UNWANTED = ("training_args.bin", "optimizer*", "*/*", "*.onnx", "flax*", "tf_*", "rust_*")
_COMMIT = re.compile("[0-9a-f]{40}")


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
    conversion: Any  # vidqa.model.checkpoints.convert.Conversion


def pull(
    name: str,
    out: Path | None = None,
    *,
    revisions: Mapping[str, str] | None = None,
    mode: str = "fixed",
    dtype: str = "keep",
    replace_old: bool = False,
    say: Callable[[str], None] = lambda text: None,
    step: Callable[[str, int], None] = lambda what, n: None,
) -> Pulled:
    """Fetch a published model and make a bundle of it.

    Args:
        name: a key of `PUBLISHED`.
        out: the bundle's folder; None puts it under its name into `models_folder()`.
        revisions: commit by repository, for those that shall not be the newest.
        mode, dtype, replace_old, step: as in `vidqa.model.checkpoints.convert.convert`.
        say: hears what is fetched.

    Raises:
        UsageError: no such model, or a revision for a repository that is no part of it.
        VidqaError: it cannot be fetched.
        BundleError: as `convert`.
    """
    from vidqa.model.checkpoints.convert import convert

    if name not in PUBLISHED:
        raise UsageError(f"no published model is called {name!r}", hint=f"one of {', '.join(PUBLISHED)}")
    model = PUBLISHED[name]
    known = {repo.id for repo in (*model.repos, *model.towers)}
    if strange := sorted(set(revisions or {}) - known):
        raise UsageError(f"{strange[0]} is no part of {name}", hint=f"one of {', '.join(sorted(known))}")
    target = out or models_folder() / name
    if target.exists() and not replace_old:
        raise UsageError(f"{target} exists already", hint="--replace, or another --out")
    parts = [_fetch(repo, (revisions or {}).get(repo.id), say) for repo in model.repos]
    towers = [_fetch(repo, (revisions or {}).get(repo.id), say) for repo in model.towers]
    origins = tuple(origin for _, origin in (*parts, *towers))
    made = convert(
        [folder for folder, _ in parts],
        target,
        name=name,
        towers=[folder for folder, _ in towers],
        mode="original" if mode == "original" else "fixed",
        dtype=dtype,
        replace_old=replace_old,
        step=step,
        origins=origins,
    )
    return Pulled(name, target, origins, made)


def _fetch(repo: Repo, revision: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    """The folder of a repository's snapshot, and `repository@commit`."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as e:
        raise VidqaError("fetching models needs the package huggingface_hub", hint="pip install huggingface_hub") from e
    wanted = revision or repo.revision
    say(f"fetching {repo.id}" + (f" at {wanted}" if wanted else ""))
    try:
        place = snapshot_download(
            repo.id, revision=wanted, allow_patterns=list(_WANTED), ignore_patterns=[*_UNWANTED, *repo.skip]
        )
    except LocalEntryNotFoundError as e:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        hint = "unset HF_HUB_OFFLINE" if offline else "check the network; what was fetched so far is kept"
        why = "the hub is switched off and it was not fetched before" if offline else "the hub cannot be reached"
        raise VidqaError(f"{repo.id}: {why}", hint=hint) from e
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        raise VidqaError(f"{repo.id} cannot be fetched: {str(e).splitlines()[0]}", hint="run the same again") from e
    commit = Path(place).name
    if not _COMMIT.fullmatch(commit):
        raise VidqaError(f"{repo.id}: the hub's cache does not say which revision {place} is")
    return Path(place), f"{repo.id}@{commit}"
