"""Download a repository from the Hugging Face Hub. This is the only module that uses the network.

It uses huggingface_hub with its cache and environment variables (`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME`,
`HF_TOKEN`). Current versions of that library discard a partially downloaded file when the process ends. Shards can be
several gigabytes, so each large file is downloaded here to a separate file, which the next run resumes. It is moved
into the hub's cache once it is complete and its digest is verified (docs/notes/hub_download.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.common.extras import is_installed, require
from vidqa.errors import VidqaError

_COMMIT = re.compile("[0-9a-f]{40}")
#: Packages whose exceptions mean a network failure; huggingface_hub uses different ones in different versions.
_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet"})
_RUN_AGAIN = "run the same command again: it resumes the download"


@dataclass(frozen=True)
class Snapshot:
    """A downloaded repository at one revision."""

    folder: Path
    origin: str  # `repository@commit`


@dataclass(frozen=True)
class _LargeFile:
    """A file that the cache stores under the SHA-256 of its content."""

    name: str
    sha256: str
    n_bytes: int


def fetch(
    repo: str, revision: str | None, include: Sequence[str], exclude: Sequence[str], report: Callable[[str], None]
) -> Snapshot:
    """Download the files of a repository that are not in the cache yet.

    Args:
        repo: `owner/name`.
        revision: a commit, branch or tag; None means the newest.
        include: patterns of file names to download.
        exclude: patterns of file names to skip.
        report: receives progress messages.

    Raises:
        UsageError: huggingface_hub is not installed.
        VidqaError: the download failed.
    """
    require("downloading models", "convert", "huggingface_hub")
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    report(f"downloading {repo}" + (f" at {revision}" if revision else ""))
    offline = constants.HF_HUB_OFFLINE
    patterns: dict[str, Any] = {"allow_patterns": list(include), "ignore_patterns": list(exclude)}
    try:
        if not offline:
            revision = _download_large_files(repo, revision, patterns, report) or revision
        folder = Path(hub.snapshot_download(repo, revision=revision, **patterns))
    except errors.LocalEntryNotFoundError as e:
        if offline:
            what = "offline mode is on, and not all files are in the cache"
            raise VidqaError(f"{repo}: {what}", hint="unset HF_HUB_OFFLINE") from e
        raise VidqaError(f"{repo}: cannot reach the hub", hint=f"check the network, then {_RUN_AGAIN}") from e
    except errors.GatedRepoError as e:
        raise VidqaError(
            f"{repo}: access must be requested from its owners", hint="request access on its page, then set HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise VidqaError(f"{repo}: revision {revision} does not exist") from e
    except errors.RepositoryNotFoundError as e:
        raise VidqaError(
            f"{repo}: the repository does not exist or is private", hint="set HF_TOKEN if you have access"
        ) from e
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as e:
        raise VidqaError(f"{repo}: the download failed: {_first_line(e)}", hint=_RUN_AGAIN) from e
    except Exception as e:
        if type(e).__module__.partition(".")[0] not in _NETWORK:
            raise
        raise VidqaError(f"{repo}: the network failed ({_first_line(e)})", hint=_RUN_AGAIN) from e
    if not _COMMIT.fullmatch(folder.name):
        raise VidqaError(f"{repo}: cannot derive the revision from the cache folder {folder}")
    return Snapshot(folder, f"{repo}@{folder.name}")


def cached_bytes(repo: str) -> int:
    """Return the size of a downloaded repository in the hub's cache; 0 if it is not there.

    Args:
        repo: `owner/name`.
    """
    if not is_installed("huggingface_hub"):
        return 0
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    return sum(path.stat().st_size for path in blobs.iterdir() if path.is_file()) if blobs.is_dir() else 0


def _download_large_files(
    repo: str, revision: str | None, patterns: dict[str, Any], report: Callable[[str], None]
) -> str | None:
    """Download large files into the hub's cache. Returns the commit, or None if the hub is unreachable."""
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
        return None  # the cache may be complete: snapshot_download decides
    except Exception as e:
        if type(e).__module__.partition(".")[0] not in _NETWORK:
            raise
        return None
    cache, repo_folder = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repo, repo_type="model")
    blobs, locks = cache / repo_folder / "blobs", cache / ".locks" / repo_folder  # huggingface_hub's cache layout
    for file in _large_files(info, patterns):
        if (blobs / file.sha256).exists():
            continue
        blobs.mkdir(parents=True, exist_ok=True)
        locks.mkdir(parents=True, exist_ok=True)
        part = blobs / f"{file.sha256}.vidqa-part"
        with WeakFileLock(locks / f"{file.sha256}.lock"):
            if not (blobs / file.sha256).exists():  # another process may have finished it meanwhile
                _download_file(hub.hf_hub_url(repo, file.name, revision=info.sha), file, part, report)
                part.replace(blobs / file.sha256)
    return str(info.sha)


def _large_files(info: Any, patterns: dict[str, Any]) -> Iterator[_LargeFile]:
    from huggingface_hub.utils import filter_repo_objects

    for entry in filter_repo_objects(info.siblings or (), key=lambda s: s.rfilename, **patterns):
        if entry.lfs is not None:
            yield _LargeFile(entry.rfilename, entry.lfs["sha256"], entry.lfs["size"])


def _download_file(url: str, file: _LargeFile, part: Path, report: Callable[[str], None]) -> None:
    """Download a file to `part`, resuming where an earlier download stopped.

    Raises:
        VidqaError: the content does not match the hub's digest; the file is removed.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with open(part, "r+b" if part.exists() else "w+b") as f:
        here = min(f.seek(0, 2), file.n_bytes)
        f.truncate(here)
        f.seek(here)
        if here:
            report(f"{file.name}: resuming at {here / 1e6:.0f} of {file.n_bytes / 1e6:.0f} MB")
        http_get(url, f, resume_size=here, headers=build_hf_headers(), expected_size=file.n_bytes)
        f.seek(0)
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != file.sha256:
        part.unlink()
        raise VidqaError(
            f"{url}: the content does not match the digest of the hub (sha256 {found})",
            hint="run the same command again",
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
