"""What a run would do, without doing it: files, hours of video, new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidqa.cache.index import MediaIndex
from vidqa.cache.key import CacheKey
from vidqa.cache.store import FeatureStore
from vidqa.errors import ItemError
from vidqa.media.probe import probe
from vidqa.media.segments import plan_segments
from vidqa.pipeline.describe import Run, open_table
from vidqa.pipeline.ledger import Ledger
from vidqa.pipeline.loaded import LoadedModel
from vidqa.pipeline.options import RunOptions
from vidqa.pipeline.progress import QUIET, Reporter
from vidqa.records import MediaFacts, MediaItem, Question


@dataclass
class Plan:
    """Counts of what `describe` would find and do. Lengths come from headers where no file was decoded yet."""

    table: str
    files: int = 0
    files_to_do: int = 0
    files_to_decode: int = 0  # of these: not in the feature cache
    files_unreadable: int = 0  # of these: will give failed rows
    new_rows: int = 0
    known_rows: int = 0  # answers that the table has
    hours_of_video: float = 0.0  # of the files to do
    left_out: dict[str, int] | None = None

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{self.files} files, {self.files_to_do} to do ({self.files_to_decode} to decode), "
            f"{self.hours_of_video:.2f} hours of video",
            f"{self.new_rows} new rows, {self.known_rows} already in {self.table}",
        ]
        if self.files_unreadable:
            lines.append(f"{self.files_unreadable} files cannot be read and will give failed rows")
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{number} {reason}" for reason, number in self.left_out.items()))
        return "\n".join(lines)


def plan(
    paths: Sequence[str],
    out: str | Path,
    *,
    questions: Sequence[Question],
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> Plan:
    """Look at everything and change nothing but the index of contents.

    Args and Raises as for `describe`. Files that the index does not know are read once, to know their content.
    """
    run = Run.begin(model, options, reporter)
    table = open_table(out).load()
    found = run.find(paths)
    ledger = Ledger(table, questions, run.model.identity, run.options, run.summary, run.clock)
    made = Plan(str(out), files=len(found.items), left_out=found.counts())
    index, store = MediaIndex(run.options.cache_dir), FeatureStore(run.options.cache_dir)
    with reporter.progress(len(found.items), "file"):
        for item in found.items:
            _add(made, item, run, ledger, index, store)
            reporter.advance()
    index.close()
    made.known_rows = sum(run.summary.known.values())
    return made


def _add(made: Plan, item: MediaItem, run: Run, ledger: Ledger, index: MediaIndex, store: FeatureStore) -> None:
    """Count one file."""
    try:
        media_id = index.media_id(item)
        work = ledger.owed(item, media_id)
        if work is None:
            return
        made.files_to_do += 1
        facts: MediaFacts = index.facts(media_id) or probe(item.path)
    except ItemError:
        made.files_unreadable += 1
        made.new_rows += ledger.n_questions
        return
    segments = plan_segments(facts, run.options.segment_s)
    keys = [CacheKey(media_id, segment.key, run.model.bundle.encoder_id) for segment in segments]
    made.files_to_decode += not all(map(store.has, keys))
    made.new_rows += len(work.questions) * len(segments)
    made.hours_of_video += (facts.duration_s or 0.0) / 3600
