"""First stage of a run: paths -> media files. Ignored files are counted and logged."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from vidqa.common.display import counts, display_path, plural
from vidqa.errors import VidqaError
from vidqa.media.scan import ScanResult, scan
from vidqa.pipeline.run.run_context import RunContext

#: Reason of a glob that matches no file.
_NO_MATCH = "no file matches"


def find_media(run: RunContext, paths: Sequence[str]) -> ScanResult:
    """Scan the paths and report which files are ignored.

    Args:
        run: its summary and event log are updated.
        paths: files, folders and globs.

    Returns:
        Media files and ignored files.

    Raises:
        UsageError: there is no path, or an empty one.
        VidqaError: there is no media file.
    """
    start = time.perf_counter()
    with run.clock.stage("read"):
        found = scan(paths)
    for ignored in found.ignored:
        run.reporter.message(f"ignored: {display_path(ignored.path)}: {ignored.reason}", level=2)
        run.reporter.event("scan", "ignored", media=ignored.path, note=ignored.reason)
    run.reporter.event("scan", "ok", seconds=time.perf_counter() - start, note=plural(len(found.items), "file"))
    run.summary.files, run.summary.ignored = len(found.items), found.counts()
    if not found.items:
        raise _nothing_found(found, paths)
    return found


def _nothing_found(found: ScanResult, paths: Sequence[str]) -> VidqaError:
    hint = "check the path, and whether the disk is mounted"
    unmatched = [display_path(one.path) for one in found.ignored if one.reason == _NO_MATCH]
    if unmatched and len(unmatched) == len(found.ignored):
        return VidqaError(f"no media found: no file matches {', '.join(map(repr, unmatched))}", hint=hint)
    where = ", ".join(display_path(os.fspath(path)) for path in paths)
    ignored = f" (ignored: {counts(found.counts())})" if found.ignored else ""
    return VidqaError(f"no media found in {where}{ignored}", hint=hint)
