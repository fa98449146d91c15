"""A recipe -> a tuned model: features made, stages run one after the other, bundle and report written.

Reads as the list of stages of the whole. A run that was broken off goes on where it was; several processes (torchrun)
do the same run together, and the first of them writes and speaks.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidqa.common.display import human_bytes
from vidqa.common.file_lock import FileLock
from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import BUNDLE_FILE, load_bundle
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.training_features import CachedFeatures, LiveFeatures, fill_cache
from vidqa.train.data import Corpus, MediaRef, RejectLog, Source
from vidqa.train.data.unseen_pairs import read_unseen
from vidqa.train.distributed import RunConfig, is_first, join, local_device, wait_for_all
from vidqa.train.outputs.report import StageFacts
from vidqa.train.outputs.results import RunReport, write_results
from vidqa.train.outputs.run_dir import finished, has_learned, open_run, run_identity
from vidqa.train.outputs.trained_bundle import InitialModel
from vidqa.train.recipe.definition import Evaluation, Recipe, Stage
from vidqa.train.recipe.load import as_written, read_recipe, where_set
from vidqa.train.recipe.requirements import check_deepspeed, check_device, check_exports, check_packages, check_space
from vidqa.train.stage.callbacks import Interrupted
from vidqa.train.stage.checkpoints import room_needed
from vidqa.train.stage.metrics import MetricsFile
from vidqa.train.stage.stage import StageRun

Encode = Literal["cache", "on-the-fly"]


@dataclass(frozen=True)
class TrainSummary:
    """What a run did."""

    out: str
    model_id: str
    n_steps: int
    n_samples: int
    n_rejected: int
    seconds: float  # of training alone
    final_loss: float
    eval_loss: float | None

    def as_text(self) -> str:
        """For people."""
        held_out = "" if self.eval_loss is None else f", held-out loss {self.eval_loss:.4f}"
        return (
            f"{self.n_steps} steps over {self.n_samples} samples in {self.seconds:.0f} s, {self.n_rejected} left out, "
            f"loss {self.final_loss:.4f}{held_out}\nthe model is in {self.out}: --model {self.out}"
        )


def train(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    encode: Encode = "cache",
    resume: bool = True,
    device: str = "auto",
    options: RunOptions | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter = QUIET,
) -> TrainSummary | None:
    """Do what a recipe says.

    Args:
        recipe: a TOML file.
        out: folder of the result and of the run; None is a folder beside the current one, named like the recipe.
        encode: `cache` makes features once and keeps them; `on-the-fly` makes them for every step.
        resume: go on with a run that lies in `out`; False begins anew.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        options: cache folder, time limit and batch size of encoding.
        overrides: `PATH=VALUE`: settings to be read as if the recipe had them, `stage.2.lr=2e-5`.
        reporter: hears progress and messages.

    Returns:
        What was done; None in all processes but the first.

    Raises:
        UsageError: the recipe, or what it names, is wrong; all problems at once.
        LockedError: another run writes `out`.
        TrainError: training cannot begin or go on; says why, and what is kept.
        KeyboardInterrupt: or what `reporter.stop` was told to raise: it was asked to stop, and stands at a checkpoint.
        VidqaError: the base or the cache cannot be used.
    """
    words = read_recipe(recipe, overrides)
    check_packages(words)
    check_deepspeed(words)
    check_device(words, local_device(device))
    target = Path(out or Path(recipe).stem)
    join(device)
    reporter = reporter if is_first() else Reporter(level=0, bar=False, stop=reporter.stop)
    with FileLock(target) if is_first() else nullcontext():
        run = _Run(words, Path(recipe), overrides, target, options or RunOptions(), reporter, device)
        with room_needed(target):
            return run.go(encode, resume)


def sources(words: Recipe | Evaluation, stage: Stage | None = None) -> list[Source]:
    """The files of a stage, or the held-out one."""
    if isinstance(words, Evaluation):
        return [Source(words.file, words.media)]
    chosen = range(len(words.data)) if stage is None else words.sources_of(stage)
    return [Source(d.file, d.media, d.weight, d.format) for d in (words.data[i] for i in chosen)]


def shown(reporter: Reporter) -> bool:
    """Whether bars are wanted by parts that draw their own."""
    return reporter.level > 0 and (sys.stderr.isatty() if reporter.bar is None else reporter.bar)


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        file: Path,
        overrides: Sequence[str],
        out: Path,
        options: RunOptions,
        reporter: Reporter,
        device: str,
    ) -> None:
        self.recipe, self.file, self.out, self.options, self.reporter = recipe, file, out, options, reporter
        self.name = recipe.model.name or file.stem
        self.overrides = tuple(overrides)
        self.unseen = [read_unseen(Path(s.unseen_pairs)) if s.unseen_pairs else None for s in recipe.stage]
        self.written = as_written(recipe, file, overrides)  # now: the file may be another one when the run ends
        bundle = load_bundle(recipe.model.base)
        check_exports(recipe, bundle, where_set(file, overrides, "output", "transformers"))
        self.loaded = LoadedModel(bundle, device, reporter=reporter)
        self.start = InitialModel(bundle, recipe.model.connector == "fresh", recipe.seed)
        self.device = local_device(device)
        self.work = out / "work"
        self.metrics = MetricsFile(out / "metrics.jsonl", active=is_first())

    def go(self, encode: Encode, resume: bool) -> TrainSummary | None:
        """All of it."""
        corpora = [self._corpus(sources(self.recipe, stage)) for stage in self.recipe.stage]
        held_out = self._held_out()
        identity = run_identity(self.recipe, self.start.base.model_id, [c.fingerprint for c in corpora], self.unseen)
        if is_first():
            if not resume or self._came_to_nothing():
                self._forget()
            open_run(self.work, identity, resume, self.overrides)
            check_space(self.recipe, self.start.base, self.out)
        wait_for_all()
        with ExitStack() as stack:
            everything = [*corpora, *([held_out] if held_out else [])]
            features = stack.enter_context(self._features(encode, everything))
            stages = [self._stage(n, corpora[n - 1], held_out, features) for n in range(1, len(corpora) + 1)]
        if not is_first():
            return None
        return self._finish(stages, corpora, identity["data"])

    def _corpus(self, files: Sequence[Source]) -> Corpus:
        return Corpus(files, self.recipe.seed, cache_dir=self.options.cache_dir, progress=shown(self.reporter))

    def _held_out(self) -> Corpus | None:
        return self._corpus(sources(self.recipe.eval)) if self.recipe.eval else None

    def _came_to_nothing(self) -> bool:
        """Whether a run lies there that learned nothing: any recipe may take its place."""
        return self.work.is_dir() and not has_learned(self.work) and not (self.out / BUNDLE_FILE).exists()

    def _forget(self) -> None:
        """Remove an earlier run and its results; the model goes first, so that no half of it is left."""
        for name in (BUNDLE_FILE, "metrics.jsonl", "rejects.parquet", "samples.parquet", "report.md", "curves.png"):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def _features(
        self, encode: Encode, corpora: Sequence[Corpus]
    ) -> AbstractContextManager[CachedFeatures | LiveFeatures]:
        """Where features come from; with the cache, missing ones are made first, by the first process: what it learns
        of records and media, the others read."""
        if encode == "cache" and not is_first():
            wait_for_all()
        refs = self._look(corpora)
        if encode == "on-the-fly":
            need = human_bytes(len(refs) * self.start.base.spec.encoders.video.entry_bytes)
            self.reporter.say(f"features are made anew for every step; the cache would take up to {need}")
            if self.recipe.hardware.workers:
                raise UsageError(
                    f"{self.file}: hardware.workers = {self.recipe.hardware.workers} with --encode on-the-fly: the "
                    "encoder cannot be shared by processes that read",
                    hint="hardware.workers = 0",
                )
            return LiveFeatures(self.loaded, self.options)
        features = fill_cache(refs, self.loaded, self.options, self.reporter)
        if is_first():
            wait_for_all()
        return nullcontext(features)

    def _look(self, corpora: Sequence[Corpus]) -> list[MediaRef]:
        """The media of all samples, each once; bad samples are rejected when their turn comes."""
        with self.reporter.progress(sum(map(len, corpora)), "record"):
            return list(dict.fromkeys(ref for corpus in corpora for ref in corpus.look(self.reporter.advance).media))

    def _stage(
        self, number: int, corpus: Corpus, held_out: Corpus | None, features: CachedFeatures | LiveFeatures
    ) -> StageFacts:
        """Run one stage, or find it done."""
        name = self.recipe.stage_names()[number - 1]
        folder = self.work / name
        if (done := finished(folder)) is not None:
            self.reporter.say(f"{name}: done already")
            return done
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        run = StageRun(
            recipe=self.recipe,
            number=number,
            unseen=self.unseen[number - 1],
            folder=folder,
            start=self.start,
            device=self.device,
            common=RunConfig(self.recipe.hardware, self.recipe.output, self.recipe.logging, self.recipe.seed),
            metrics=self.metrics,
            listener=self.reporter,
            stopping=lambda: self.reporter.stop.is_requested,
        )
        rejects = RejectLog(folder / "rejects.parquet", corpus.n_records, self.recipe.max_reject_rate)
        facts = None
        with self.reporter.stop.deferred(), suppress(Interrupted):  # the first signal waits for a checkpoint
            facts = run.go(corpus, held_out, features, rejects, self.out / "samples.parquet")
        if facts is None:  # it was another process that heard the signal
            raise KeyboardInterrupt
        wait_for_all()
        return facts

    def _finish(self, stages: Sequence[StageFacts], corpora: Sequence[Corpus], fingerprint: str) -> TrainSummary:
        """Model, exports, tables, picture and page; then what there is to say."""
        told = RunReport(self.written, self.overrides, fingerprint, self.device)
        bundle, n_rejected = write_results(self.recipe, self.start, self.name, self.out, stages, corpora, told)
        n_steps, n_samples = sum(s.n_steps for s in stages), sum(s.n_samples for s in stages)
        seconds, last = sum(s.seconds for s in stages), stages[-1]
        return TrainSummary(
            str(self.out), bundle.model_id, n_steps, n_samples, n_rejected, seconds, last.final_loss, last.eval_loss
        )
