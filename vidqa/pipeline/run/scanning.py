"""First stage of a run: paths -> media files. Ignored files are counted; paths without readable media are errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from vidqa.common.display import counts, display_path, plural
from vidqa.errors import VidqaError
from vidqa.media.scan import ScanResult, scan
from vidqa.pipeline.run.run_context import RunContext

log = logging.getLogger(__name__)

#: Paths in the message of a run that finds nothing.
_MAX_PATHS = 5


def find_media(run: RunContext, paths: Sequence[str]) -> ScanResult:
    """Scan the paths, and report which files are ignored and which paths lead to no media.

    Args:
        run: its summary and event log are updated.
        paths: files, folders and globs.

    Returns:
        Media files, ignored files and problems.

    Raises:
        UsageError: there is no path, or an empty one.
        VidqaError: there is no media file.
    """
    start = time.perf_counter()
    with run.clock.stage("read"), run.reporter.progress(None, "file", phase="scan"):
        found = scan(paths)
        run.reporter.advance(len(found.items))
    for ignored in found.ignored:
        run.reporter.message(f"ignored: {display_path(ignored.path)}: {ignored.reason}", level=2)
        run.reporter.event("scan", "ignored", media=ignored.path, note=ignored.reason)
    for problem in found.problems:
        run.reporter.event("scan", "failed", media=problem.path, note=problem.reason)
    run.reporter.event("scan", "ok", seconds=time.perf_counter() - start, note=plural(len(found.items), "file"))
    run.summary.files, run.summary.ignored = len(found.items), found.counts()
    run.summary.path_problems = {problem.path: problem.reason for problem in found.problems}
    check_found(found)
    return found


def check_found(found: ScanResult) -> None:
    """Log each problem of a scan as an error; if there is nothing else, raise them.

    The log reaches the user of the command line also with `-q`, and the user of the Python API.

    Args:
        found: result of the scan.

    Raises:
        VidqaError: there is no media file.
    """
    problems = [f"{display_path(problem.path)}: {problem.reason}" for problem in found.problems]
    if found.items:
        for problem in problems:
            log.error("%s", problem)
        return
    more = [f"{len(problems) - _MAX_PATHS:,} more"] if len(problems) > _MAX_PATHS else []
    ignored = f" (ignored: {counts(found.counts())})" if found.ignored else ""
    what = f"no media found: {'; '.join(problems[:_MAX_PATHS] + more)}{ignored}"
    raise VidqaError(what, hint="check the path, and whether the disk is mounted")
