"""`vidqa train`: recipe -> trained model. Encodes features, runs the stages in order, writes bundle and report.

An interrupted run resumes where it stopped. Several processes (torchrun) do the same run together; the first one writes
all files and messages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidqa.common.display import human_bytes
from vidqa.common.file_lock import FileLock
from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import BUNDLE_FILE, load_bundle
from vidqa.pipeline.monitor.progress_display import Progress
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.training_features import CachedFeatures, LiveFeatures, fill_cache
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.sample import MediaRef
from vidqa.training.distributed import init_process_group, is_first, local_device, wait_for_all
from vidqa.training.outputs.plots import NO_MATPLOTLIB, has_matplotlib
from vidqa.training.outputs.report import RunReport, write_results
from vidqa.training.outputs.run_dir import StageFacts, has_progress, open_run, require_own_folder, run_identity
from vidqa.training.outputs.trained_bundle import InitialModel
from vidqa.training.recipe.definition import Evaluation, Recipe, Stage
from vidqa.training.recipe.load import read_recipe, settings_as_written, where_set
from vidqa.training.recipe.requirements import check_base, check_machine, check_space
from vidqa.training.stage.callbacks import Interrupted
from vidqa.training.stage.checkpoints import disk_full_as_train_error
from vidqa.training.stage.metrics import MetricsFile
from vidqa.training.stage.stage import StageRunner

Encode = Literal["cache", "on-the-fly"]

_RESULTS = (BUNDLE_FILE, "metrics.jsonl", "rejects.parquet", "samples.parquet", "report.md", "curves.png")


@dataclass(frozen=True)
class TrainSummary:
    """Result of a run."""

    out: str  # folder of the model
    model_id: str  # of the new model
    n_steps: int  # of all stages
    n_samples: int  # of all stages
    n_rejected: int  # records that could not be used
    seconds: float  # of training only
    final_loss: float | None  # of the last stage; None if no step had targets
    eval_loss: float | None  # on the held-out data; None without any

    def as_text(self) -> str:
        """The summary for people."""
        loss = "no loss" if self.final_loss is None else f"loss {self.final_loss:.4f}"
        held_out = "" if self.eval_loss is None else f", held-out loss {self.eval_loss:.4f}"
        return (
            f"{self.n_steps} steps over {self.n_samples} samples in {self.seconds:.0f} s, {self.n_rejected} rejected, "
            f"{loss}{held_out}\nmodel written to {self.out}; use it with --model {self.out}"
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
    progress: Callable[[Progress], object] | None = None,
) -> TrainSummary | None:
    """Train a model.

    Args:
        recipe: a TOML file.
        out: folder of the run and its result; None: a folder in the current folder with the name of the recipe.
        encode: `cache` encodes features once and stores them; `on-the-fly` encodes them again for every step.
        resume: resume a run in `out`; False starts from scratch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        options: cache folder, time limit and batch size for encoding.
        overrides: `PATH=VALUE` settings that replace those of the recipe, such as `stage.2.learning_rate=2e-5`.
        reporter: receives progress and messages.
        progress: called with the progress in the first process; see `describe`. If it raises an exception, the run ends
            as after any other error: the same call continues from the last checkpoint.

    Returns:
        The summary; None in all processes except the first.

    Raises:
        UsageError: the recipe, or a file that it names, is invalid; lists all problems.
        LockedError: another run is writing `out`.
        TrainError: training cannot start or continue; the message has the reason, and the checkpoint that remains.
        KeyboardInterrupt: the run was asked to stop, and has saved a checkpoint. Or the exception that
            `reporter.stop` raises.
        VidqaError: the base or the cache cannot be used.
    """
    settings = read_recipe(recipe, overrides)
    check_machine(settings, device)
    target = Path(out or Path(recipe).stem)
    require_own_folder(target)
    init_process_group(device)
    reporter = reporter.calling(progress) if is_first() else Reporter(level=0, style="none", stop=reporter.stop)
    with FileLock(target) if is_first() else nullcontext():
        run = _Run(settings, Path(recipe), overrides, target, options or RunOptions(), reporter, device)
        with disk_full_as_train_error(target):
            return run.run(encode, resume)


def sources_of_stage(recipe: Recipe, stage: Stage) -> list[Source]:
    """The training data of a stage."""
    return [Source(d.file, d.media, d.weight, d.format) for d in recipe.data_of(stage)]


def held_out_sources(evaluation: Evaluation) -> list[Source]:
    """The held-out data."""
    return [Source(evaluation.file, evaluation.media)]


class _Run:
    """A training run in this process."""

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
        self.overrides = tuple(overrides)
        self.settings = settings_as_written(recipe, file, overrides)  # now, because the file may change during the run
        bundle = load_bundle(recipe.model.base)
        check_base(recipe, bundle, where_set(file, overrides, "output", "transformers"))
        self.loaded = LoadedModel(bundle, device, reporter=reporter)
        self.initial = InitialModel(bundle, recipe.model.connector == "reinitialize", recipe.seed)
        self.device = local_device(device)
        self.work = out / "work"

    def run(self, encode: Encode, resume: bool) -> TrainSummary | None:
        """Encode, train all stages, and write the results."""
        corpora = [self._corpus(sources_of_stage(self.recipe, stage)) for stage in self.recipe.stage]
        held_out = self._corpus(held_out_sources(self.recipe.eval)) if self.recipe.eval else None
        identity = run_identity(self.recipe, self.initial.base.model_id, [c.fingerprint for c in corpora])
        if is_first():
            if not resume or self._is_without_progress():
                self._remove()
            open_run(self.work, identity, resume, self.overrides)
            check_space(self.recipe, self.initial.base, self.out)
        wait_for_all()
        runner = StageRunner(
            self.recipe,
            self.initial,
            self.out,
            self.device,
            MetricsFile(self.out / "metrics.jsonl", active=is_first()),
            self.reporter,
            lambda: self.reporter.stop.is_requested,
        )
        with self._features(encode, [*corpora, *([held_out] if held_out else [])]) as features:
            stages = [
                self._run_stage(runner, number, corpus, held_out, features)
                for number, corpus in enumerate(corpora, start=1)
            ]
        return self._write_results(stages, corpora, identity["data"]) if is_first() else None

    def _corpus(self, files: Sequence[Source]) -> Corpus:
        return Corpus(files, self.recipe.seed, cache_dir=self.options.cache_dir, progress=self.reporter.shows_bar)

    def _is_without_progress(self) -> bool:
        """Whether `out` has a run without any checkpoint: any recipe may replace it."""
        return self.work.is_dir() and not has_progress(self.work) and not (self.out / BUNDLE_FILE).exists()

    def _remove(self) -> None:
        """Remove an earlier run and its results; bundle.json first, so that no incomplete model remains visible."""
        for name in _RESULTS:
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def _features(
        self, encode: Encode, corpora: Sequence[Corpus]
    ) -> AbstractContextManager[CachedFeatures | LiveFeatures]:
        """Where features come from. With the cache, the first process encodes missing ones first.

        The other processes wait for it, and then read the metadata of records and media that it has cached.
        """
        if encode == "cache" and not is_first():
            wait_for_all()
        refs = self._media(corpora)
        if encode == "on-the-fly":
            size = human_bytes(len(refs) * self.initial.base.spec.encoders.video.entry_bytes)
            self.reporter.message(f"features are encoded again for every step; the cache would need up to {size}")
            if self.recipe.hardware.workers:
                raise UsageError(
                    f"{self.file}: hardware.workers = {self.recipe.hardware.workers} with --encode on-the-fly: data "
                    "loader processes cannot share the encoder",
                    hint="hardware.workers = 0",
                )
            return LiveFeatures(self.loaded, self.options)
        features = fill_cache(refs, self.loaded, self.options, self.reporter)
        if is_first():
            wait_for_all()
        return nullcontext(features)

    def _media(self, corpora: Sequence[Corpus]) -> list[MediaRef]:
        """The media of all samples, each once; bad samples are rejected when training reaches them."""
        with self.reporter.progress(sum(map(len, corpora)), "record", phase="read"):
            stats = [corpus.token_stats(self.reporter.advance) for corpus in corpora]
        return list(dict.fromkeys(ref for one in stats for ref in one.media))

    def _run_stage(
        self,
        runner: StageRunner,
        number: int,
        corpus: Corpus,
        held_out: Corpus | None,
        features: CachedFeatures | LiveFeatures,
    ) -> StageFacts:
        facts = None
        with self.reporter.stop.deferred(), suppress(Interrupted):  # the first signal waits for a checkpoint
            facts = runner.run(number, corpus, held_out, features)
        if facts is None:  # another process received the signal
            raise KeyboardInterrupt
        return facts

    def _write_results(self, stages: Sequence[StageFacts], corpora: Sequence[Corpus], fingerprint: str) -> TrainSummary:
        name = self.recipe.model.name or self.file.stem
        report = RunReport(self.settings, self.overrides, fingerprint, self.device)
        bundle, n_rejected = write_results(self.recipe, self.initial, name, self.out, stages, corpora, report)
        if not has_matplotlib():
            self.reporter.message(f"loss curves: {NO_MATPLOTLIB}")
        return TrainSummary(
            str(self.out),
            bundle.model_id,
            sum(s.n_steps for s in stages),
            sum(s.n_samples for s in stages),
            n_rejected,
            sum(s.seconds for s in stages),
            stages[-1].final_loss,
            stages[-1].eval_loss,
        )
