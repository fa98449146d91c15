"""Several files of conversations -> one numbered set of samples, and their order in each epoch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vidqa.cache.key import default_cache_dir
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import UsageError
from vidqa.training.data.media_paths import MediaFolder
from vidqa.training.data.metadata import TokenStats, join_token_stats, read_token_stats
from vidqa.training.data.record_formats import FORMATS, Format, to_sample
from vidqa.training.data.record_index import RecordFile, digest
from vidqa.training.data.rejects import Rejected
from vidqa.training.data.sample import Sample, SampleError


@dataclass(frozen=True)
class Source:
    """One file of conversations.

    `weight` is how often an epoch sees each record: 1 once, 2 twice, 0.25 a quarter of the records, and another quarter
    in the next epoch.
    """

    path: str
    media_root: str | None = None  # None: the folder of the file
    weight: float = 1.0
    format: Format = "auto"


@dataclass(frozen=True)
class FileFacts:
    """Facts about a source for reports."""

    path: str
    n_records: int
    size: int  # bytes
    sha256: str
    weight: float


class Corpus:
    """All records of all sources, numbered consecutively.

    It stores the offsets of records but no texts, and can be pickled for other processes.

    Args:
        sources: the files.
        seed: seed for shuffling.
        cache_dir: where record offsets are cached; None is the default cache folder.
        progress: show progress bars on stderr while files are read for the first time.

    Raises:
        UsageError: lists all unusable sources.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int = 0,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> None:
        self.sources, self.seed = tuple(sources), seed
        root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        problems, opened = [], []
        if not self.sources:
            problems.append("no file of conversations is given")
        for source in self.sources:
            try:
                opened.append(_open(source, root, progress))
            except UsageError as e:
                problems.append(str(e))
        if problems:
            raise UsageError("\n".join(problems))
        self._opened = opened
        self._first = np.cumsum([0, *(len(file) for file, _ in opened)])
        self._token_stats: TokenStats | None = None

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def n_records(self) -> int:
        """Number of distinct records, on which reject rates are based; a file in two sources counts once."""
        return distinct_records(self.files)

    def locate(self, index: int) -> tuple[int, int]:
        """Find a sample.

        Returns:
            Index of its source, and index of its record in the file.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        return which, index - int(self._first[which])

    def __getitem__(self, index: int) -> Sample:
        """Read one sample, whose media files exist.

        Raises:
            SampleError: it cannot be trained on.
            TrainError: its file was changed or removed.
        """
        which, number = self.locate(index)
        source, (file, folder) = self.sources[which], self._opened[which]
        return to_sample(file.record(number), folder, source=source.path, number=number, format=source.format)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def token_stats(self, advance: Callable[[int], object] = lambda n: None) -> TokenStats:
        """Return the metadata of all records, read once and then cached on disk and in memory.

        Args:
            advance: called with the number of records that were read.
        """
        if self._token_stats is None:
            parts = []
            for source, (file, folder), first in zip(
                self.sources, self._opened, self._first[:-1].tolist(), strict=True
            ):
                cached = file.index.with_name(f"{file.index.stem}-{digest([folder.root, source.format])}.npz")
                parts.append(read_token_stats(len(file), partial(self._at, first), cached, file.sha256, advance))
            self._token_stats = join_token_stats(parts)
        else:
            advance(len(self))
        return self._token_stats

    def _at(self, first: int, number: int) -> Sample:
        return self[first + number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_token_stats": None}  # worker processes do not need the stats

    def get(self, index: int) -> Sample | Rejected:
        """Return `corpus[index]`, or a `Rejected` instead of raising SampleError."""
        try:
            return self[index]
        except SampleError as e:
            return self.rejected(index, e)

    def rejected(self, index: int, error: SampleError, id: str | None = None) -> Rejected:
        """Return the row of a bad sample for the table of rejects."""
        which, number = self.locate(index)
        source, name = self.sources[which].path, id or self._id(which, number)
        return Rejected(
            escape_surrogates(source), number, escape_surrogates(name), error.kind, escape_surrogates(error.what)
        )

    def _id(self, which: int, number: int) -> str:
        try:
            record = self._opened[which][0].record(number)
        except SampleError:
            return str(number)
        ids = (record.get(key) for key in ("id", "video_id"))  # in Parquet, missing keys are null
        return str(next((value for value in ids if value is not None), number))

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the shuffled sample numbers of an epoch, int64 [M]; the same on every machine.

        Each source is a sequence of shuffled passes over its records, and every epoch takes the next
        `weight * n_records` of them. So all records of a source are seen equally often, whatever its weight.
        """
        parts = []
        for which, source in enumerate(self.sources):
            n = len(self._opened[which][0])
            take = round(n * source.weight)
            start, end = epoch * take, (epoch + 1) * take
            for n_pass in range(start // n, -(-end // n)):
                order = np.random.default_rng([self.seed, 1, which, n_pass]).permutation(n)
                parts.append(order[max(0, start - n_pass * n) : end - n_pass * n] + self._first[which])
        order = np.concatenate(parts).astype(np.int64)
        return order[np.random.default_rng([self.seed, 2, epoch]).permutation(len(order))]

    @property
    def files(self) -> tuple[FileFacts, ...]:
        """Facts about the sources for reports."""
        return tuple(
            FileFacts(escape_surrogates(source.path), len(file), file.size, file.sha256, source.weight)
            for source, (file, _) in zip(self.sources, self._opened, strict=True)
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the contents, weights and order of all files, but not of their paths."""
        parts = [(f.sha256, f.weight, s.format) for f, s in zip(self.files, self.sources, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def distinct_records(files: Sequence[FileFacts]) -> int:
    """Return the number of records of some files, counting each file once."""
    return sum({f.path: f.n_records for f in files}.values())


def _open(source: Source, cache_dir: Path, progress: bool) -> tuple[RecordFile, MediaFolder]:
    if not 0 < source.weight < 1000:
        raise UsageError(f"{source.path}: `weight` must be above 0 and below 1000, not {source.weight}")
    if source.format not in FORMATS:
        raise UsageError(f"{source.path}: unknown format {source.format!r}; available: {', '.join(FORMATS)}")
    root = Path(source.media_root) if source.media_root is not None else Path(source.path).parent
    if not root.is_dir():
        raise UsageError(f"{source.path}: the media folder {root} does not exist")
    file = RecordFile(source.path, cache_dir, progress=progress)
    if round(len(file) * source.weight) < 1:
        raise UsageError(f"{source.path}: weight {source.weight} of {len(file)} records leaves no record per epoch")
    return file, MediaFolder(root)
