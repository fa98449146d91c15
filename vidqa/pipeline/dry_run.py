"""`describe --dry-run`: what a run would do, without doing it: files, rows, hours of video, disk space, time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.common.display import counts, human_bytes, human_duration, plural
from vidqa.errors import ItemError, MediaError
from vidqa.media.probe import probe
from vidqa.media.segments import plan_segments
from vidqa.media.workers.decode_pool import DecodePool
from vidqa.pipeline.describe import open_table
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.summary import excluded_line
from vidqa.pipeline.monitor.throughput_history import load_rates
from vidqa.pipeline.run.bookkeeping import RunBookkeeper
from vidqa.pipeline.run.hashing import hash_files
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import PendingAnswers
from vidqa.pipeline.run.pruning import prune_table
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media
from vidqa.records import MediaFacts, MediaItem, Question, Segment, WorkItem


@dataclass
class DryRunPlan:
    """What `describe` would find and do. Durations are from headers if a file was not decoded yet."""

    table: str
    files: int = 0
    files_to_do: int = 0
    files_complete: int = 0  # all their rows exist
    files_to_decode: int = 0  # part of files_to_do: features are not cached
    files_unreadable: int = 0  # part of files_to_do: will have failed rows
    segments_to_encode: int = 0
    frames_to_encode: int = 0  # of these segments; an image has one frame
    new_rows: int = 0
    existing_rows: int = 0
    hours_of_video: float = 0.0  # of the files to do
    files_pruned: int = 0  # removed or replaced files whose rows would be dropped
    quarantined: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)  # number of files and folders by option
    path_problems: dict[str, str] = field(default_factory=dict)  # path without media, or unreadable -> reason
    cache_bytes_needed: int = 0
    cache_bytes_free: int = 0
    table_bytes_needed: int = 0  # for part files and the new table, while the old one still exists
    table_bytes_free: int = 0
    seconds: float | None = None  # None if no run was measured
    measured_runs: int = 0
    roughly: bool = False  # the measured runs were far smaller

    @property
    def enough_disk(self) -> bool:
        """Whether cache and table fit. Equal free space means that they are on the same disk and share it."""
        both = self.cache_bytes_needed + self.table_bytes_needed
        if self.cache_bytes_free == self.table_bytes_free:
            return both <= self.cache_bytes_free
        return self.cache_bytes_needed <= self.cache_bytes_free and self.table_bytes_needed <= self.table_bytes_free

    def as_dict(self) -> dict[str, object]:
        """Return plain values for `--json`."""
        problems = [{"path": path, "reason": reason} for path, reason in self.path_problems.items()]
        return asdict(self) | {"path_problems": problems, "enough_disk": self.enough_disk}

    def as_text(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"{plural(self.files, 'file')}: {self.files_complete:,} complete, {self.files_to_do:,} to do "
            f"({self.files_to_decode:,} to decode), {human_duration(3600 * self.hours_of_video)} of video",
            f"rows: {self.new_rows:,} new, {self.existing_rows:,} existing in {self.table}",
        ]
        if self.files_unreadable:
            lines.append(f"unreadable: {plural(self.files_unreadable, 'file')}, which will have failed rows")
        if self.files_pruned:
            lines.append(f"rows to drop: those of {plural(self.files_pruned, 'removed or replaced file')}")
        if self.quarantined:
            lines.append(f"quarantined: {plural(len(self.quarantined), 'file')}; --retry all tries again")
        if self.ignored:
            lines.append(f"ignored files: {counts(self.ignored)}")
        if self.excluded:
            lines.append(excluded_line(self.excluded))
        if self.path_problems:
            lines.append(f"path problems: {plural(len(self.path_problems), 'path')} without readable media")
        lines.append(
            f"disk: cache needs {human_bytes(self.cache_bytes_needed)} of {human_bytes(self.cache_bytes_free)} free, "
            f"table needs {human_bytes(self.table_bytes_needed)} of {human_bytes(self.table_bytes_free)} free"
            + ("" if self.enough_disk else ": NOT ENOUGH")
        )
        if self.seconds is None:
            lines.append("time: unknown until a run has measured this model on this machine")
        else:
            rough = "; a rough estimate, because they were far smaller" if self.roughly else ""
            runs = plural(self.measured_runs, "earlier run")
            lines.append(f"time: about {human_duration(self.seconds)}, estimated from {runs} on this machine{rough}")
        return "\n".join(lines)


def plan_run(
    paths: Sequence[str],
    out: str | Path,
    *,
    questions: Sequence[Question],
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> DryRunPlan:
    """Inspect files, table and cache as `describe` would. Only the index of file contents is updated.

    Files that are not in the index are read once, to hash their content.

    Args:
        paths: as for `describe`.
        out: as for `describe`.
        questions: of the run.
        model: as for `describe`.
        options: as for `describe`.
        reporter: as for `describe`.

    Raises:
        VidqaError: as for `describe`.
    """
    run = RunContext.create(model, options, reporter)
    run.model.require_packages()
    table = open_table(out).load()
    searched = run.options.files.paths(paths)
    found = find_media(run, searched)
    pending = PendingAnswers(table, questions, run, RetryPolicy(table.path).load())
    plan = DryRunPlan(str(out), ignored=run.summary.ignored, path_problems=run.summary.path_problems)
    cache_dir = run.options.cache_dir
    with closing(MediaIndex(cache_dir)) as index, reporter.progress(len(found.items), "file", phase="read"):
        _Counter(plan, run, pending, index).count(found.items)
        if run.options.prune_missing:
            prune_table(run, RunBookkeeper(pending, run), searched, found)  # in memory only
            plan.files_pruned = run.summary.pruned
    plan.files, plan.excluded = run.summary.files, dict(run.summary.excluded)
    plan.existing_rows = sum(run.summary.existing.values())
    plan.quarantined = list(run.summary.quarantined)
    plan.table_bytes_needed = table.bytes_needed(plan.new_rows)
    plan.cache_bytes_free = shutil.disk_usage(cache_dir).free
    plan.table_bytes_free = shutil.disk_usage(table.path.parent).free
    rates = load_rates(cache_dir, run.model.history_key)
    plan.seconds = rates.estimate_s(plan.files, plan.frames_to_encode, plan.new_rows)
    plan.roughly = plan.seconds is not None and rates.is_rough(plan.frames_to_encode, plan.new_rows)
    plan.measured_runs = rates.n_runs
    return plan


class _Counter:
    """Adds files to a plan, one after another."""

    def __init__(self, plan: DryRunPlan, run: RunContext, pending: PendingAnswers, index: MediaIndex) -> None:
        self._plan, self._run, self._pending, self._index = plan, run, pending, index
        self._store = FeatureStore(run.options.cache_dir)
        self._probing: dict[str, WorkItem] = {}  # by path
        self._rows: dict[str, int | None] = {}  # media_id -> new rows per file; None while it is probed
        self._duplicates: Counter[str] = Counter()  # media_id -> duplicates of a file that is probed

    def count(self, items: Sequence[MediaItem]) -> None:
        """Count all files. Unknown containers are opened in decoder processes, which they may crash."""
        options = self._run.options
        n_workers = options.n_workers or cpu_threads()
        with DecodePool(n_workers=n_workers, timeout_s=options.timeout_s, memory_bytes=options.memory_bytes) as pool:
            for path, facts in pool.map_unordered(probe, self._to_probe(items)):
                self._add(self._probing.pop(path), facts)

    def _to_probe(self, items: Sequence[MediaItem]) -> Iterator[str]:
        """Yield the paths of files whose facts are not in the index; count all others."""
        for n_hashed, (item, media_id) in enumerate(hash_files(self._index, items), start=1):
            self._run.reporter.advance()
            if isinstance(media_id, ItemError):
                self._plan.files_to_do += 1
                self._plan.files_unreadable += 1
                self._plan.new_rows += len(self._pending.questions)
                continue
            work = self._pending.select(item, media_id)
            facts = work and self._index.facts(media_id)
            if work is None:
                self._add_complete(media_id)
            elif facts:
                self._add(work, facts)
            else:
                self._rows[media_id], self._probing[item.path] = None, work
                yield item.path
            if self._pending.is_full:
                self._run.summary.exclude_rest(len(items) - n_hashed)
                return

    def _add_complete(self, media_id: str) -> None:
        """Count a file that needs no work: its rows exist, or it is a duplicate and will get copies."""
        if media_id not in self._rows:
            self._plan.files_complete += 1
        elif (n_rows := self._rows[media_id]) is None:
            self._duplicates[media_id] += 1
        else:
            self._plan.new_rows += n_rows

    def _add(self, work: WorkItem, facts: MediaFacts | MediaError) -> None:
        """Count a file with pending work."""
        plan, run, media_id = self._plan, self._run, str(work.media_id)
        segments: tuple[Segment, ...] = ()
        if not isinstance(facts, MediaError):
            try:
                segments = plan_segments(facts, run.options.segment_s)
            except MediaError as error:
                facts = error
        n_rows = len(work.questions) * max(1, len(segments))  # a failed file has one row per question
        n_existing = sum(work.is_answered(q, s.start_s, len(segments)) for q in work.questions for s in segments)
        self._rows[media_id] = n_rows
        plan.files_to_do += 1
        plan.new_rows += n_rows * (1 + self._duplicates[media_id]) - n_existing
        if isinstance(facts, MediaError):
            plan.files_unreadable += 1
            return
        needed = [segment for segment in segments if work.needs(segment.start_s, len(segments))]
        keys = [CacheKey(media_id, segment.key, run.model.bundle.encoder_id) for segment in needed]
        n_missing = sum(not self._store.has(key) for key in keys)
        encoders = run.model.bundle.spec.encoders
        encoder = encoders.image if facts.kind == "image" else encoders.video
        plan.files_to_decode += n_missing > 0
        plan.segments_to_encode += n_missing
        plan.frames_to_encode += n_missing * encoder.n_sampled_frames
        plan.cache_bytes_needed += n_missing * encoder.entry_bytes
        plan.hours_of_video += (facts.duration_s or 0.0) / 3600
