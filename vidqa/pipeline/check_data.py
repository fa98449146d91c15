"""A recipe's data -> everything that would go wrong in training, before a GPU is booked. Loads no weights."""

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
from vidqa.common.display import human_bytes
from vidqa.errors import CacheError
from vidqa.model.bundle.bundle import load_bundle
from vidqa.model.llm import load_tokenizer
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.train import shown, sources
from vidqa.prompts.chat_formats import get_format
from vidqa.train.batching.sampler import BatchPlan
from vidqa.train.data import Corpus
from vidqa.train.data.data_check import Checked, check_data
from vidqa.train.data.media_facts import Prober
from vidqa.train.data.media_shapes import SpecShapes
from vidqa.train.data.tokenize import RecordTokenizer
from vidqa.train.data.unseen_pairs import IgnoredTokens, read_unseen
from vidqa.train.recipe.definition import Stage
from vidqa.train.recipe.load import read_recipe
from vidqa.train.recipe.requirements import disk_bytes
from vidqa.train.stage.stage import chat_of, plan_of

log = logging.getLogger(__name__)

_HELD_OUT = "held-out"  # stages have a number in front


@dataclass(frozen=True)
class DiskSpace:
    """What a stage takes on disk, in bytes, and what is free there."""

    features: int  # at most, of all media
    cache_free: int  # on the disk of the cache
    checkpoints: int | None  # at most, with the model; none for the held-out file
    disk_free: int  # on the disk of the run

    def lines(self) -> list[str]:
        """For people."""
        wanted = [("features", self.features, self.cache_free, "cache")]
        if self.checkpoints is not None:
            wanted.append(("checkpoints and model", self.checkpoints, self.disk_free, "run"))
        return [
            f"  {what}: up to {human_bytes(need)}, {human_bytes(free)} free on the disk of the {place}"
            + (": TOO LITTLE" if free < need else "")
            for what, need, free, place in wanted
        ]


@dataclass(frozen=True)
class StageCheck:
    """What was found for the data of one stage, or of the held-out file."""

    name: str
    checked: Checked
    rejects: Path  # the table
    histogram: Path  # the picture
    plan: BatchPlan | None  # how the stage would go through the data; none for the held-out file
    room: DiskSpace

    def as_text(self) -> str:
        """For people."""
        lines = [f"{self.name}:", *(f"  {line}" for line in self.checked.lines())]
        if plan := self.plan:
            lines.append(f"  steps: {plan.n_steps} of {plan.batch} sequences, {plan.epochs:.4g} epochs")
        return "\n".join([*lines, *self.room.lines(), f"  {self.rejects}", f"  {self.histogram}"])

    def as_dict(self) -> dict[str, object]:
        """For machines."""
        checked = self.checked
        kinds = [r.kind for r in checked.rejected]
        return {
            "name": self.name,
            "records": checked.n_records,
            "rejected": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "passes": checked.passes,
            "unseen_pairs_said": dict(sorted(checked.said.items())),
            "longest": int(checked.tokens.max(initial=0)),
            "fingerprint": checked.fingerprint,
            "steps": self.plan.n_steps if self.plan else None,
            "cache_bytes": self.room.features,
            "cache_free_bytes": self.room.cache_free,
            "disk_bytes": self.room.checkpoints,
            "disk_free_bytes": self.room.disk_free,
            "rejects": str(self.rejects),
            "histogram": str(self.histogram),
        }


def check(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    options: RunOptions | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter = QUIET,
) -> list[StageCheck]:
    """Read every record, find and open every medium, count every token.

    Args:
        recipe: a TOML file.
        out: gets a folder `check` with tables and pictures; None is a folder named like the recipe.
        options: cache folder, time limit of decoding.
        overrides: as `train` takes them.
        reporter: hears progress.

    Returns:
        One for each stage, and one for the held-out file.

    Raises:
        UsageError: the recipe, or what it names, is wrong.
        BundleError: the base cannot be read.
    """
    words, options = read_recipe(recipe, overrides), options or RunOptions()
    bundle = load_bundle(words.model.base)
    tokenizer = load_tokenizer(bundle.llm_folder)
    folder = Path(out or Path(recipe).stem) / "check"
    wanted = [(name, sources(words, s), s) for name, s in zip(words.stage_names(), words.stage, strict=True)]
    if words.eval is not None:
        wanted.append((_HELD_OUT, sources(words.eval), words.stage[-1]))
    found = []
    with ExitStack() as stack:
        prober = Prober(options.n_workers, options.timeout_s, _index(options.cache_dir, stack))
        for name, files, stage in wanted:
            corpus = Corpus(files, words.seed, cache_dir=options.cache_dir, progress=shown(reporter))
            reader = RecordTokenizer(
                tokenizer,
                chat_of(stage, get_format(bundle.spec.prompt.format, bundle.spec.prompt.system)),
                SpecShapes(bundle.spec),
                bundle.spec.llm.context,
                _left_out(stage, tokenizer) if name != _HELD_OUT else None,
            )
            checked = check_data(
                corpus,
                reader,
                prober=prober,
                max_reject_rate=words.max_reject_rate,
                n_processes=options.n_workers or cpu_threads(),
                progress=shown(reporter),
            )
            trained = None if name == _HELD_OUT else stage
            plan = plan_of(trained, corpus, words.seed) if trained else None
            features = len(corpus.look().media) * bundle.spec.encoders.video.entry_bytes
            disk = disk_bytes(words, trained, bundle) if trained else None
            room = DiskSpace(features, free_disk_bytes(Path(options.cache_dir)), disk, free_disk_bytes(folder))
            found.append(StageCheck(name, checked, *checked.save(folder / name), plan, room))
    return found


def _left_out(stage: Stage, tokenizer: Any) -> IgnoredTokens | None:
    return IgnoredTokens(read_unseen(Path(stage.unseen_pairs)), tokenizer) if stage.unseen_pairs else None


def _index(cache_dir: str | os.PathLike[str], stack: ExitStack) -> MediaIndex | None:
    """Where good media are remembered; a check does without where the cache cannot be written."""
    try:
        return stack.enter_context(closing(MediaIndex(cache_dir)))
    except CacheError as e:
        log.warning("good media are not remembered: %s", e.what)
        return None
