"""One repository of the hub -> a folder here, and its revision. The only code that uses the network.

Through huggingface_hub, with its cache and its variables (`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`). Its
newer versions throw a half-fetched file away when the program ends; shards have gigabytes, so they are fetched here
into a file of their own that the next run goes on with, and are put into the hub's cache when they are whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import VidqaError

_COMMIT = re.compile("[0-9a-f]{40}")
#: Packages whose errors mean that the network failed; which of them is in use depends on huggingface_hub's version.
_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet"})
_AGAIN = "run the same again: what was fetched so far is kept"


@dataclass(frozen=True)
class Snapshot:
    """A repository at one revision."""

    folder: Path
    origin: str  # `repository@commit`


@dataclass(frozen=True)
class _Large:
    """A file whose name in the cache is the sha256 of its content."""

    name: str
    sha256: str
    n_bytes: int


def fetch(
    repo: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str], say: Callable[[str], None]
) -> Snapshot:
    """Fetch the files of a repository that are not here yet.

    Args:
        repo: `owner/name`.
        revision: a commit, branch or tag; None is the newest.
        wanted: patterns of file names.
        unwanted: patterns of file names that are left where they are all the same.
        say: hears what is fetched.

    Raises:
        VidqaError: huggingface_hub is not installed, or it cannot be fetched.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ImportError as e:
        raise VidqaError(
            "fetching models needs the package huggingface_hub", hint='pip install "vidqa[convert]"'
        ) from e
    say(f"fetching {repo}" + (f" at {revision}" if revision else ""))
    offline = constants.HF_HUB_OFFLINE
    patterns: dict[str, Any] = {"allow_patterns": list(wanted), "ignore_patterns": list(unwanted)}
    try:
        if not offline:
            revision = _fetch_large(repo, revision, patterns, say) or revision
        folder = Path(hub.snapshot_download(repo, revision=revision, **patterns))
    except errors.LocalEntryNotFoundError as e:
        if offline:
            what = "the hub is switched off, and not all of it was fetched before"
            raise VidqaError(f"{repo}: {what}", hint="unset HF_HUB_OFFLINE") from e
        raise VidqaError(f"{repo}: the hub cannot be reached", hint=f"check the network, then {_AGAIN}") from e
    except errors.GatedRepoError as e:
        raise VidqaError(f"{repo}: its owners give access on request", hint="ask there, then set HF_TOKEN") from e
    except errors.RevisionNotFoundError as e:
        raise VidqaError(f"{repo}: there is no revision {revision}") from e
    except errors.RepositoryNotFoundError as e:
        raise VidqaError(f"{repo}: no such repository, or not for everybody", hint="HF_TOKEN, if it is yours") from e
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as e:
        raise VidqaError(f"{repo} cannot be fetched: {_first_line(e)}", hint=_AGAIN) from e
    except Exception as e:
        if type(e).__module__.partition(".")[0] not in _NETWORK:
            raise
        raise VidqaError(f"{repo}: the network failed ({_first_line(e)})", hint=_AGAIN) from e
    if not _COMMIT.fullmatch(folder.name):
        raise VidqaError(f"{repo}: the hub's cache does not say which revision {folder} is")
    return Snapshot(folder, f"{repo}@{folder.name}")


def _fetch_large(repo: str, revision: str | None, patterns: dict[str, Any], say: Callable[[str], None]) -> str | None:
    """Put the large files of a repository into the hub's cache; the commit, or None where the hub does not answer."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock

    try:
        info: Any = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    except errors.RepositoryNotFoundError:
        raise
    except (errors.HfHubHTTPError, OSError) as e:
        if isinstance(e, errors.RevisionNotFoundError):
            raise
        return None  # whatever is here already may be all that is needed: snapshot_download looks
    except Exception as e:
        if type(e).__module__.partition(".")[0] not in _NETWORK:
            raise
        return None
    cache, own = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repo, repo_type="model")
    blobs, locks = cache / own / "blobs", cache / ".locks" / own  # as the hub's own functions lay them out
    for file in _large_files(info, patterns):
        if (blobs / file.sha256).exists():
            continue
        blobs.mkdir(parents=True, exist_ok=True)
        locks.mkdir(parents=True, exist_ok=True)
        part = blobs / f"{file.sha256}.vidqa-part"
        with WeakFileLock(locks / f"{file.sha256}.lock"):
            if not (blobs / file.sha256).exists():  # another program may have been quicker
                _fetch_file(hub.hf_hub_url(repo, file.name, revision=info.sha), file, part, say)
                part.replace(blobs / file.sha256)
    return str(info.sha)


def _large_files(info: Any, patterns: dict[str, Any]) -> Iterator[_Large]:
    from huggingface_hub.utils import filter_repo_objects

    for entry in filter_repo_objects(info.siblings or (), key=lambda s: s.rfilename, **patterns):
        if entry.lfs is not None:
            yield _Large(entry.rfilename, entry.lfs["sha256"], entry.lfs["size"])


def _fetch_file(url: str, file: _Large, part: Path, say: Callable[[str], None]) -> None:
    """Go on with `part` until it is whole.

    Raises:
        VidqaError: what came is another file than the hub promised; it is removed.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with open(part, "r+b" if part.exists() else "w+b") as f:
        here = min(f.seek(0, 2), file.n_bytes)
        f.truncate(here)
        f.seek(here)
        if here:
            say(f"{file.name}: going on at {here / 1e6:.0f} of {file.n_bytes / 1e6:.0f} MB")
        http_get(url, f, resume_size=here, headers=build_hf_headers(), expected_size=file.n_bytes)
        f.seek(0)
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != file.sha256:
        part.unlink()
        raise VidqaError(f"{url}: what came is not what the hub promised (sha256 {found})", hint="run the same again")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
