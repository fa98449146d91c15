"""What a run would do, without doing it: files, rows, hours of video, disk, time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.common.display import human_duration
from vidqa.errors import ItemError, MediaError
from vidqa.media.probe import probe
from vidqa.media.segments import plan_segments
from vidqa.media.workers.decode_pool import DecodePool
from vidqa.model.bundle.spec import EncoderSpec
from vidqa.pipeline.describe import open_table
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.throughput_history import recall
from vidqa.pipeline.run.bookkeeping import RunBookkeeper
from vidqa.pipeline.run.hashing import identify_all
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pruning import vanished
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import MediaFacts, MediaItem, Question, WorkItem

#: Bytes of an entry beside its numbers (safetensors header with the facts), and of a row that nobody measured yet.
_ENTRY_BYTES = 1500
_ROW_BYTES = 400


@dataclass
class DryRunPlan:
    """Counts of what `describe` would find and do. Lengths come from headers where no file was decoded yet."""

    table: str
    files: int = 0
    files_to_do: int = 0
    files_known: int = 0  # nothing is asked about them
    files_to_decode: int = 0  # of those to do: not in the feature cache
    files_unreadable: int = 0  # of those to do: will give failed rows
    segments_to_encode: int = 0
    frames_to_encode: int = 0  # of these segments; a picture is one
    new_rows: int = 0  # cells to fill
    known_rows: int = 0  # answers that the table has
    hours_of_video: float = 0.0  # of the files to do
    files_pruned: int = 0  # vanished; their rows would go
    quarantined: list[str] = field(default_factory=list)
    left_out: dict[str, int] | None = None
    cache_bytes_needed: int = 0
    cache_bytes_free: int = 0
    table_bytes_needed: int = 0  # old and new table side by side, while the new one is written
    table_bytes_free: int = 0
    seconds: float | None = None  # None: no run measured the rates
    measured_runs: int = 0
    roughly: bool = False  # those runs were far smaller

    @property
    def enough_disk(self) -> bool:
        """Whether both folders have room; on one disk they share it, so both must fit together."""
        both = self.cache_bytes_needed + self.table_bytes_needed
        if self.cache_bytes_free == self.table_bytes_free:
            return both <= self.cache_bytes_free
        return self.cache_bytes_needed <= self.cache_bytes_free and self.table_bytes_needed <= self.table_bytes_free

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self) | {"enough_disk": self.enough_disk}

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{self.files} file{'' if self.files == 1 else 's'}: {self.files_known} known, {self.files_to_do} to do "
            f"({self.files_to_decode} to decode), {human_duration(3600 * self.hours_of_video)} of video",
            f"{self.new_rows} new rows, {self.known_rows} already in {self.table}",
        ]
        if self.files_unreadable:
            lines.append(f"cannot be read and will give failed rows: {self.files_unreadable} of the files")
        if self.files_pruned:
            lines.append(f"vanished files whose rows would be removed: {self.files_pruned}")
        if self.quarantined:
            lines.append(f"files in quarantine: {len(self.quarantined)}; --retry all asks them again")
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{number} {reason}" for reason, number in self.left_out.items()))
        lines.append(
            f"disk: cache {_gb(self.cache_bytes_needed)} of {_gb(self.cache_bytes_free)} free, "
            f"table {_gb(self.table_bytes_needed)} of {_gb(self.table_bytes_free)} free"
            + ("" if self.enough_disk else ": NOT ENOUGH")
        )
        if self.seconds is None:
            lines.append("time: not known, as this machine has no rates of this model yet; a first run measures them")
        else:
            runs = f"{self.measured_runs} earlier run{'' if self.measured_runs == 1 else 's'}"
            small = "; a rough figure, as they were far smaller" if self.roughly else ""
            lines.append(f"time: about {_duration(self.seconds)}, by the rates of {runs} on this machine{small}")
        return "\n".join(lines)


def plan(
    paths: Sequence[str],
    out: str | Path,
    *,
    questions: Sequence[Question],
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> DryRunPlan:
    """Look at everything and change nothing but the index of contents.

    Args and Raises as for `describe`. Files that the index does not know are read once, to know their content.
    """
    run = RunContext.begin(model, options, reporter)
    table = open_table(out).load()
    found = run.find(paths)
    ledger = RunBookkeeper(table, questions, run, RetryPolicy(table.path).load())
    made = DryRunPlan(str(out), files=len(found.items), left_out=found.counts())
    cache_dir = run.options.cache_dir
    index = MediaIndex(cache_dir)
    try:
        with reporter.progress(len(found.items), "file"):
            _Count(made, run, ledger, index).files(found.items)
    finally:
        index.close()
    made.known_rows = sum(run.summary.known.values())
    if run.options.prune_missing:
        ledger.prune(vanished(paths))  # in memory only
        made.files_pruned = run.summary.pruned
    made.quarantined = list(run.summary.quarantined)
    old = table.path.stat().st_size if table.path.is_file() else 0  # to a data set, files are only added
    made.table_bytes_needed = old + round(made.new_rows * (old / len(table) if old and len(table) else _ROW_BYTES))
    made.cache_bytes_free = shutil.disk_usage(cache_dir).free
    made.table_bytes_free = shutil.disk_usage(table.path.parent).free
    rates = recall(cache_dir, run.model)
    made.seconds = rates.estimate_s(made.files, made.frames_to_encode, made.new_rows)
    made.roughly = made.seconds is not None and rates.is_rough(made.frames_to_encode, made.new_rows)
    made.measured_runs = rates.n_runs
    return made


class _Count:
    """Counts files, one after another, into a plan."""

    def __init__(self, made: DryRunPlan, run: RunContext, ledger: RunBookkeeper, index: MediaIndex) -> None:
        self._made, self._run, self._ledger, self._index = made, run, ledger, index
        self._store = FeatureStore(run.options.cache_dir)
        self._waiting: dict[str, WorkItem] = {}  # by path: files that are looked into
        self._rows: dict[str, int | None] = {}  # media_id -> new rows of each of its files; None: not known yet
        self._twins: Counter[str] = Counter()  # further files with a content that is not known yet

    def files(self, items: Sequence[MediaItem]) -> None:
        """Count all; contents that no run has decoded are looked into, in processes that they may kill."""
        options = self._run.options
        n_workers = options.n_workers or cpu_threads()
        with DecodePool(n_workers=n_workers, timeout_s=options.timeout_s, memory_bytes=options.memory_bytes) as pool:
            for path, facts in pool.map_unordered(probe, self._unknown(items)):
                self._add(self._waiting.pop(path), facts)

    def _unknown(self, items: Sequence[MediaItem]) -> Iterator[str]:
        """Paths of files whose facts nobody knows; counts all others."""
        for item, media_id in identify_all(self._index, items):
            self._run.reporter.advance()
            if isinstance(media_id, ItemError):
                self._made.files_to_do += 1
                self._made.files_unreadable += 1
                self._made.new_rows += self._ledger.n_questions
                continue
            work = self._ledger.owed(item, media_id)
            facts = work and self._index.facts(media_id)
            if work is None:
                self._known(media_id)
            elif facts:
                self._add(work, facts)
            else:
                self._rows[media_id], self._waiting[item.path] = None, work
                yield item.path

    def _known(self, media_id: str) -> None:
        """A file for which nothing is done: its rows are there, or copied from another file with the same content."""
        if media_id not in self._rows:
            self._made.files_known += 1
        elif (n_rows := self._rows[media_id]) is None:
            self._twins[media_id] += 1
        else:
            self._made.new_rows += n_rows

    def _add(self, work: WorkItem, facts: MediaFacts | MediaError) -> None:
        """A file to do."""
        made, run, media_id = self._made, self._run, str(work.media_id)
        segments = () if isinstance(facts, MediaError) else plan_segments(facts, run.options.segment_s)
        n_rows = len(work.questions) * max(1, len(segments))  # a failed file has a row for each question
        self._rows[media_id] = n_rows
        made.files_to_do += 1
        made.new_rows += n_rows * (1 + self._twins[media_id])
        if isinstance(facts, MediaError):
            made.files_unreadable += 1
            return
        keys = [CacheKey(media_id, segment.key, run.model.bundle.encoder_id) for segment in segments]
        missing = sum(not self._store.has(key) for key in keys)
        encoders = run.model.bundle.spec.encoders
        encoder = encoders.image if facts.kind == "image" else encoders.video
        made.files_to_decode += missing > 0
        made.segments_to_encode += missing
        made.frames_to_encode += missing * encoder.n_frames
        made.cache_bytes_needed += missing * entry_bytes(encoder)
        made.hours_of_video += (facts.duration_s or 0.0) / 3600


def entry_bytes(spec: EncoderSpec) -> int:
    """Bytes of a cache entry: float16 tokens [T, P, D], float32 embedding [E], and what describes them."""
    n_tokens = spec.n_frames * (spec.n_patches + spec.keep_cls)
    return n_tokens * spec.hidden_size * 2 + spec.embedding_size * 4 + _ENTRY_BYTES


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
