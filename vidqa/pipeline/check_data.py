"""`vidqa train --check-data`: finds everything in a recipe's data that would fail in training. Loads no weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.common.disk_space import free_disk_bytes
from vidqa.common.display import human_bytes, plural
from vidqa.errors import CacheError
from vidqa.model.bundle.bundle import Bundle, load_bundle
from vidqa.model.llm import load_tokenizer
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.train import held_out_sources, sources_of_stage
from vidqa.prompts.chat_formats import get_format
from vidqa.training.batching.sampler import BatchPlan
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.data_check import DataCheck, check_corpus
from vidqa.training.data.media_facts import Prober
from vidqa.training.data.media_shapes import SpecShapes
from vidqa.training.data.rejects import write_rejects
from vidqa.training.data.tokenize import RecordTokenizer
from vidqa.training.data.unseen_pairs import IgnoredTokens, UnseenPairs
from vidqa.training.outputs.plots import NO_MATPLOTLIB, has_matplotlib, save_figure, token_histogram
from vidqa.training.outputs.run_dir import require_own_folder
from vidqa.training.recipe.definition import Recipe, Stage
from vidqa.training.recipe.load import read_recipe, where_set
from vidqa.training.recipe.requirements import check_base, check_machine, disk_bytes
from vidqa.training.stage.stage import chat_format_of, plan_stage

log = logging.getLogger(__name__)

REJECTS, HISTOGRAM = "rejects.parquet", "token_lengths.png"
_HELD_OUT = "held-out"  # unlike stage names, without a number


@dataclass(frozen=True)
class DiskSpace:
    """Disk space that a stage needs, and free space, in bytes."""

    features: int  # upper bound for all media
    cache_free: int  # on the disk of the cache
    checkpoints: int | None  # upper bound, including the model; None for the held-out file
    disk_free: int  # on the disk of the run

    def lines(self) -> list[str]:
        """The report for people."""
        rows = [("features", self.features, self.cache_free, "cache")]
        if self.checkpoints is not None:
            rows.append(("checkpoints and model", self.checkpoints, self.disk_free, "run"))
        return [
            f"  {what}: up to {human_bytes(required)}, {human_bytes(free)} free on the disk of the {where}"
            + (": NOT ENOUGH" if free < required else "")
            for what, required, free, where in rows
        ]


@dataclass(frozen=True)
class StageCheck:
    """Result for the data of one stage, or for the held-out file."""

    name: str  # of the stage, or `held-out`
    data: DataCheck  # counts, token lengths and rejected records
    rejects: Path  # table of the rejected records
    histogram: Path | None  # of sample lengths; None without matplotlib
    plan: BatchPlan | None  # of the stage; None for the held-out file
    disk: DiskSpace  # space that the stage needs, and free space

    def __repr__(self) -> str:
        """Return the name and the result; `as_dict` has the numbers."""
        result = "passes" if self.passes else "does not pass"
        return (
            f"<StageCheck {self.name}: {plural(self.data.n_records, 'record')}, {len(self.data.rejected):,} rejected, "
            f"{result}>"
        )

    @property
    def passes(self) -> bool:
        """Whether training can use the data, and the disk of the run has space for the stage."""
        return self.data.passes and (self.disk.checkpoints is None or self.disk.checkpoints <= self.disk.disk_free)

    def as_text(self) -> str:
        """The report for people."""
        lines = [f"{self.name}:", *(f"  {line}" for line in self.data.lines())]
        if plan := self.plan:
            lines.append(
                f"  {plural(plan.n_steps, 'step')} of {plural(plan.batch, 'sequence')}, {plan.epochs:.4g} epochs"
            )
        histogram = self.histogram or f"histogram: {NO_MATPLOTLIB}"
        return "\n".join([*lines, *self.disk.lines(), f"  {self.rejects}", f"  {histogram}"])

    def as_dict(self) -> dict[str, object]:
        """The report for `--json`."""
        kinds = [r.kind for r in self.data.rejected]
        return {
            "name": self.name,
            "records": self.data.n_records,
            "rejected": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "passes": self.passes,
            "unseen_pairs_said": dict(sorted(self.data.pairs.mentions.items())),
            "longest": int(self.data.tokens.max(initial=0)),
            "fingerprint": self.data.fingerprint,
            "steps": self.plan.n_steps if self.plan else None,
            "cache_bytes": self.disk.features,
            "cache_free_bytes": self.disk.cache_free,
            "disk_bytes": self.disk.checkpoints,
            "disk_free_bytes": self.disk.disk_free,
            "rejects": str(self.rejects),
            "histogram": str(self.histogram) if self.histogram else None,
        }


def check_data(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    options: RunOptions | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter = QUIET,
) -> list[StageCheck]:
    """Read every record, find and open every media file, and count every token.

    Args:
        recipe: a TOML file.
        out: tables and histograms go to its subfolder `check`; None: a folder with the name of the recipe.
        device: as for `train`.
        options: cache folder, time limit for decoding.
        overrides: as for `train`.
        reporter: receives progress.

    Returns:
        One result per stage, and one for the held-out file.

    Raises:
        UsageError: the recipe, or a file that it names, is invalid, or training would refuse to start.
        BundleError: the base cannot be read.
        TrainError: a stage cannot be trained with its chat format.
    """
    settings, options = read_recipe(recipe, overrides), options or RunOptions()
    check_machine(settings, device)
    target = Path(out or Path(recipe).stem)
    require_own_folder(target)
    bundle = load_bundle(settings.model.base)
    check_base(settings, bundle, where_set(recipe, overrides, "output", "transformers"))
    tokenizer = load_tokenizer(bundle.llm_folder)
    folder = target / "check"
    jobs: list[tuple[str, list[Source], Stage, bool]] = [
        (name, sources_of_stage(settings, stage), stage, True)
        for name, stage in zip(settings.stage_names(), settings.stage, strict=True)
    ]
    if settings.eval is not None:
        jobs.append((_HELD_OUT, held_out_sources(settings.eval), settings.stage[-1], False))
    found = []
    with ExitStack() as stack:
        prober = Prober(options.n_workers, options.timeout_s, _media_index(options.cache_dir, stack))
        for name, files, stage, is_training in jobs:
            corpus = Corpus(files, settings.seed, cache_dir=options.cache_dir, progress=reporter.shows_bar)
            data = check_corpus(
                corpus,
                _record_tokenizer(tokenizer, bundle, stage, stage.unseen_pairs if is_training else None),
                prober=prober,
                max_reject_rate=settings.max_reject_rate,
                n_processes=options.n_workers or cpu_threads(),
                progress=reporter.shows_bar,
            )
            plan = plan_stage(stage, corpus, settings.seed) if is_training else None
            disk = _disk_space(settings, stage if is_training else None, bundle, corpus, options, folder)
            found.append(StageCheck(name, data, *_save(data, folder / name), plan, disk))
    return found


def _record_tokenizer(tokenizer: Any, bundle: Bundle, stage: Stage, pairs: UnseenPairs | None) -> RecordTokenizer:
    prompt = bundle.spec.prompt
    return RecordTokenizer(
        tokenizer,
        chat_format_of(stage, get_format(prompt.format, prompt.system)),
        SpecShapes(bundle.spec),
        bundle.spec.llm.context,
        IgnoredTokens(pairs, tokenizer) if pairs else None,
    )


def _disk_space(
    recipe: Recipe, stage: Stage | None, bundle: Bundle, corpus: Corpus, options: RunOptions, folder: Path
) -> DiskSpace:
    return DiskSpace(
        features=len(corpus.token_stats().media) * bundle.spec.encoders.video.entry_bytes,
        cache_free=free_disk_bytes(options.cache_dir),
        checkpoints=disk_bytes(recipe, stage, bundle) if stage else None,
        disk_free=free_disk_bytes(folder),
    )


def _save(data: DataCheck, folder: Path) -> tuple[Path, Path | None]:
    """Write the table of rejects and the histogram."""
    folder.mkdir(parents=True, exist_ok=True)
    histogram = None
    if has_matplotlib():
        histogram = save_figure(folder / HISTOGRAM, token_histogram(data.tokens, data.max_tokens))
    return write_rejects(folder / REJECTS, data.rejected), histogram


def _media_index(cache_dir: str | os.PathLike[str], stack: ExitStack) -> MediaIndex | None:
    """The cache of readable media; None if the cache is not writable, which only makes the next check slower."""
    try:
        return stack.enter_context(closing(MediaIndex(cache_dir)))
    except CacheError as e:
        log.warning("results for media files are not cached: %s", e.what)
        return None
