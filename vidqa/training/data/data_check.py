"""Check of a corpus: finds everything that would fail in training, before GPU time is spent on it.

Every record is read and tokenized, and one frame of every media item is decoded. No model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vidqa.common.display import bar_size, plural
from vidqa.errors import MediaError
from vidqa.records import MediaFacts
from vidqa.training.data.corpus import Corpus, FileFacts, distinct_records
from vidqa.training.data.media_facts import Prober
from vidqa.training.data.rejects import DEFAULT_MAX_RATE, Rejected
from vidqa.training.data.sample import REJECT_KINDS, SampleError
from vidqa.training.data.tokenize import RecordTokenizer, TokenizedChunk, tokenize_corpus
from vidqa.training.data.unseen_pairs import PairCounts, total_counts


@dataclass(frozen=True)
class DataCheck:
    """Result of a check."""

    files: tuple[FileFacts, ...]
    fingerprint: str
    rejected: tuple[Rejected, ...]  # each record once, in order
    tokens: np.ndarray  # int64 [N]: lengths of all samples that could be tokenized, even those that are too long
    n_visual: int  # visual tokens of the accepted samples
    n_targets: int  # tokens with a loss of the accepted samples
    n_media: Mapping[str, int]  # image, video: number of readable files
    video_s: float  # total seconds of all readable videos that have a duration
    pairs: PairCounts  # unseen pairs in the accepted samples
    media_counts: Mapping[tuple[int, int], int]  # (images, videos) of a sample -> number of samples
    max_tokens: int | None
    max_reject_rate: float

    @property
    def n_records(self) -> int:
        """Number of distinct records; a file in two sources counts once."""
        return distinct_records(self.files)

    @property
    def passes(self) -> bool:
        """True if no more records are rejected than `max_reject_rate` allows, so that training would not stop."""
        return len(self.rejected) <= self.max_reject_rate * self.n_records

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        n_rejected = {f.path: sum(r.source == f.path for r in self.rejected) for f in self.files}
        lines = [
            f"{f.path}: {plural(f.n_records, 'record')}, {n_rejected[f.path]} rejected, weight {f.weight:g}, "
            f"sha256 {f.sha256[:12]}"
            for f in self.files
        ]
        images, videos = plural(self.n_media["image"], "image"), plural(self.n_media["video"], "video")
        lines.append(f"media: {images}, {videos} ({self.video_s / 3600:.1f} hours)")
        for (n_images, n_videos), n in sorted(self.media_counts.items()):
            lines.append(f"  {plural(n, 'sample')} {_media_text(n_images, n_videos)}")
        if len(self.tokens):
            median, p95, longest = np.percentile(self.tokens, [50, 95, 100], method="nearest")
            limit = f", limit {self.max_tokens}" if self.max_tokens else ""
            lines.append(f"tokens per sample: median {median}, 95th percentile {p95}, longest {longest}{limit}")
            lines.append(f"total tokens: {self.n_visual:,} visual, {self.n_targets:,} with a loss")
        lines += self.pairs.lines()
        kinds = [r.kind for r in self.rejected]
        lines += [f"  {kinds.count(k)} rejected, {k}: {why}" for k, why in REJECT_KINDS.items() if k in kinds]
        rate = len(self.rejected) / self.n_records
        verdict = "within" if self.passes else "above"
        lines.append(
            f"rejected: {rate:.2%} of {plural(self.n_records, 'record')}, {verdict} max_reject_rate "
            f"{self.max_reject_rate:.2%}"
        )
        return lines


def check_corpus(
    corpus: Corpus,
    tokenizer: RecordTokenizer,
    *,
    prober: Prober | None = None,
    max_reject_rate: float = DEFAULT_MAX_RATE,
    n_processes: int = 1,
    progress: bool = False,
) -> DataCheck:
    """Read every record, open every media file, and count all tokens.

    Args:
        corpus: the records.
        tokenizer: tokenizer, chat format, media shapes and length limit.
        prober: opens media; several checks with the same prober open each file once.
        max_reject_rate: share of rejected records that training allows.
        n_processes: maximum number of processes that tokenize.
        progress: show progress bars on stderr.

    Raises:
        TrainError: a file of conversations changes during the check.
    """
    from tqdm import tqdm

    size = bar_size(sys.stderr)
    total = TokenizedChunk()
    with tqdm(total=len(corpus), desc="records", unit="record", disable=not progress, leave=False, **size) as bar:
        for chunk in tokenize_corpus(corpus, tokenizer, n_processes):
            bar.update(len(set(chunk.numbers) | chunk.rejected.keys()))
            total.extend(chunk)
    paths = list(dict.fromkeys(ref.path for refs in total.media for ref in refs))
    facts: dict[str, MediaFacts | MediaError] = {}
    with tqdm(total=len(paths), desc="media", unit="file", disable=not progress, leave=False, **size) as bar:
        for path, found in (prober or Prober())(paths):
            facts[path] = found
            bar.update()
    _reject_by_media(corpus, total, facts)
    return _summarize(corpus, total, facts, tokenizer.max_tokens, max_reject_rate)


def _media_text(n_images: int, n_videos: int) -> str:
    """`with one video`, `with 2 images and one video`, `with text only`."""
    counts = [(n_images, "image"), (n_videos, "video")]
    parts = [f"one {noun}" if n == 1 else plural(n, noun) for n, noun in counts if n]
    return f"with {' and '.join(parts) or 'text only'}"


def _reject_by_media(corpus: Corpus, chunk: TokenizedChunk, facts: Mapping[str, MediaFacts | MediaError]) -> None:
    """Reject samples with unusable media; samples that are rejected already keep their reason."""
    for number, refs in zip(chunk.numbers, chunk.media, strict=True):
        for ref in refs:
            found = facts[ref.path]
            if isinstance(found, MediaError):
                kind = "media_missing" if found.kind == "missing" else "media_unreadable"
                error = SampleError(kind, found.what)
            elif found.kind != ref.kind:
                what = f"{ref.path}: is of kind {found.kind}, the record has {ref.kind}"
                error = SampleError("media_unreadable", what)
            elif ref.start_s and found.duration_s is not None and ref.start_s >= found.duration_s:
                what = f"the segment starts at {ref.start_s:g} s, but the video ends at {found.duration_s:g} s"
                error = SampleError("bad_span", f"{ref.path}: {what}")
            else:
                continue
            if number not in chunk.rejected:
                chunk.rejected[number] = corpus.rejected(number, error)
            break


def _summarize(
    corpus: Corpus,
    chunk: TokenizedChunk,
    facts: Mapping[str, MediaFacts | MediaError],
    max_tokens: int | None,
    max_reject_rate: float,
) -> DataCheck:
    accepted = np.array([number not in chunk.rejected for number in chunk.numbers], np.bool_)
    media_counts: dict[tuple[int, int], int] = {}
    for is_accepted, refs in zip(accepted, chunk.media, strict=True):
        if is_accepted:
            n_videos = sum(ref.kind == "video" for ref in refs)
            key = (len(refs) - n_videos, n_videos)
            media_counts[key] = media_counts.get(key, 0) + 1
    rejected: dict[tuple[str, int], Rejected] = {}
    for number in sorted(chunk.rejected):
        one = chunk.rejected[number]
        rejected.setdefault((one.source, one.record), one)  # as in training: a file may be in two sources
    readable = [found for found in facts.values() if isinstance(found, MediaFacts)]
    return DataCheck(
        files=corpus.files,
        fingerprint=corpus.fingerprint,
        rejected=tuple(rejected.values()),
        tokens=np.array(chunk.tokens, np.int64),
        n_visual=int(np.array(chunk.visual, np.int64)[accepted].sum()),
        n_targets=int(np.array(chunk.targets, np.int64)[accepted].sum()),
        n_media={kind: sum(found.kind == kind for found in readable) for kind in ("image", "video")},
        video_s=sum(found.duration_s or 0.0 for found in readable if found.kind == "video"),
        pairs=total_counts(p for p, is_accepted in zip(chunk.pairs, accepted, strict=True) if is_accepted),
        media_counts=media_counts,
        max_tokens=max_tokens,
        max_reject_rate=max_reject_rate,
    )
