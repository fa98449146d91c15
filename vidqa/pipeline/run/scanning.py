"""First stage of a run: paths -> the media files that it processes.

Ignored and excluded files are counted; paths without readable media are errors.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.common.display import counts, display_path, plural
from vidqa.errors import VidqaError
from vidqa.media.scan import ExcludedPath, PathProblem, ScanResult, scan
from vidqa.media.selection.choose import choose_files
from vidqa.media.selection.path_patterns import Exclusion, PathPatterns
from vidqa.pipeline.run.run_context import RunContext
from vidqa.records import MediaItem

log = logging.getLogger(__name__)

#: Paths in the message of a run that finds nothing.
_MAX_PATHS = 5


@dataclass(frozen=True)
class FoundMedia:
    """Media files of a run. The paths without media are needed to recognize a disk that is not mounted."""

    items: tuple[MediaItem, ...]  # sorted by path
    excluded: tuple[MediaItem, ...]  # media files that filters exclude, patterns aside
    excluded_paths: tuple[ExcludedPath, ...]  # what patterns exclude
    without_media: tuple[PathProblem, ...]  # paths of the user, and unreadable ones


def find_media(run: RunContext, paths: Sequence[str]) -> FoundMedia:
    """Scan the paths, choose files, and report what is ignored or excluded and which paths lead to no media.

    Args:
        run: its summary and event log are updated. Its options select files; `limit` is applied by `first_files` or
            `encode_files`.
        paths: files, folders and globs; none if the list of the user is empty.

    Raises:
        UsageError: a path is empty, or patterns are invalid.
        VidqaError: there is no media file, and none was excluded.
    """
    start, selection = time.perf_counter(), run.options.files
    patterns = selection.patterns()
    with run.clock.stage("read"), run.reporter.progress(None, "file", phase="scan"):
        found = scan(paths, patterns) if paths else ScanResult(())
        run.reporter.advance(len(found.items))
    for ignored in found.ignored:
        run.reporter.message(f"ignored: {display_path(ignored.path)}: {ignored.reason}", level=2)
        run.reporter.event("scan", "ignored", media=ignored.path, note=ignored.reason)
    for problem in found.problems:
        run.reporter.event("scan", "failed", media=problem.path, note=problem.reason)
    run.summary.ignored = found.counts()
    run.summary.path_problems = {problem.path: problem.reason for problem in found.problems}
    check_found(found)
    if selection.exclude or selection.include:
        _report_named(run, found.items, patterns)
    with run.clock.stage("read"):
        chosen = choose_files(found.items, selection, lambda items: _durations(run, items))
    for path in found.excluded:
        _exclude(run, path.path, path.why)
    for file in chosen.excluded:
        _exclude(run, file.item.path, file.why)
    note = plural(len(chosen.items), "file")
    if run.summary.excluded:
        note += f"; excluded: {counts(run.summary.excluded)}"
    run.reporter.event("scan", "ok", seconds=time.perf_counter() - start, note=note)
    run.summary.files = len(chosen.items)
    without_media = found.problems + found.all_excluded
    return FoundMedia(chosen.items, tuple(one.item for one in chosen.excluded), found.excluded, without_media)


def first_files(run: RunContext, found: FoundMedia) -> tuple[MediaItem, ...]:
    """Return the first files up to `--limit`, for commands in which every file has something to do.

    Args:
        run: its summary is updated.
        found: the files.
    """
    items = found.items[: run.options.files.limit]
    run.summary.exclude_rest(len(found.items) - len(items))
    return items


def _exclude(run: RunContext, path: str, why: Exclusion) -> None:
    run.summary.excluded[why.by] += 1
    if why.by == "--sample":  # does not depend on the file, and may concern nearly all of them
        return
    run.reporter.message(f"excluded: {display_path(path)}: {display_path(why.rule)}", level=2)
    run.reporter.event("scan", "excluded", media=path, note=why.rule)


def _report_named(run: RunContext, items: Sequence[MediaItem], patterns: PathPatterns) -> None:
    """Report that patterns do not apply to named files, among them those that the shell expanded from a wildcard."""
    here = os.getcwd()
    named = [item for item in items if item.named and item.path.startswith(os.path.join(here, ""))]
    if n := sum(patterns.exclusion(item.path, here) is not None for item in named):
        run.reporter.message(
            f"note: {plural(n, 'file')} that you named would be excluded by patterns, which apply to folders and globs "
            "only"
        )


def _durations(run: RunContext, items: Sequence[MediaItem]) -> Mapping[str, float | None]:
    """Return the durations of files; open those whose duration is not in the index, with progress."""
    from vidqa.media.selection.file_durations import probe_durations, stored_durations
    from vidqa.media.workers.decode_pool import DecodePool

    options = run.options
    with closing(MediaIndex(options.cache_dir)) as index:
        found = stored_durations(items, index)
        unknown = [item for item in items if item.path not in found]
        if not unknown:
            return found
        run.reporter.message(f"reading the durations of {plural(len(unknown), 'new or changed file')}")
        n_workers = min(len(unknown), options.n_workers or cpu_threads())
        with (
            run.reporter.progress(len(unknown), "file", phase="scan"),
            DecodePool(n_workers, options.timeout_s, options.memory_bytes) as pool,
        ):
            for path, duration_s in probe_durations(unknown, index, pool):
                found[path] = duration_s
                run.reporter.advance()
    return found


def check_found(found: ScanResult) -> None:
    """Log each problem of a scan as an error; if there is nothing else, not even an excluded file, raise them.

    The log reaches the user of the command line also with `-q`, and the user of the Python API.

    Args:
        found: result of the scan.

    Raises:
        VidqaError: there is no media file.
    """
    problems = [f"{display_path(problem.path)}: {problem.reason}" for problem in found.problems]
    if found.items or found.excluded or not problems:
        for problem in problems:
            log.error("%s", problem)
        return
    more = [f"{len(problems) - _MAX_PATHS:,} more"] if len(problems) > _MAX_PATHS else []
    ignored = f" (ignored: {counts(found.counts())})" if found.ignored else ""
    what = f"no media found: {'; '.join(problems[:_MAX_PATHS] + more)}{ignored}"
    raise VidqaError(what, hint="check the path, and whether the disk is mounted")
