"""A corpus -> everything that would go wrong in training, found before a GPU is booked.

Reads and tokenises every record, decodes a frame of every medium. Knows decoders through a `Prober`; loads no model.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidqa.common.display import bar_size
from vidqa.errors import MediaError
from vidqa.records import MediaFacts
from vidqa.train.data.corpus import Corpus, FileFacts, distinct_records
from vidqa.train.data.histogram import save_histogram
from vidqa.train.data.media_facts import Prober
from vidqa.train.data.rejects import DEFAULT_MAX_RATE, Rejected, write_rejects
from vidqa.train.data.sample import REJECT_KINDS, SampleError
from vidqa.train.data.tokenize import RecordTokenizer, TokenizedChunk, look_at

REJECTS, HISTOGRAM = "rejects.parquet", "token_lengths.png"


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    files: tuple[FileFacts, ...]
    fingerprint: str
    rejected: tuple[Rejected, ...]  # in the order of the records, each record once
    tokens: np.ndarray  # int64 [N]: length of every sample that could be tokenised, too long ones among them
    n_visual: int  # tokens of the good samples that are visual
    n_learned: int  # tokens of the good samples with a loss
    n_media: Mapping[str, int]  # pictures, clips: files that can be read
    video_s: float  # seconds of all clips that can be read, as far as known
    n_narrowed: int  # words in answers of the good samples where the loss leaves out those of unseen pairs
    said: Mapping[str, int]  # unseen pair -> how often answers about media say it nevertheless
    placeholders: Mapping[tuple[int, int], int]  # (pictures, clips) of a sample -> samples
    max_tokens: int | None
    max_reject_rate: float

    @property
    def n_records(self) -> int:
        """All records; those of a file that is in two sources once."""
        return distinct_records(self.files)

    @property
    def passes(self) -> bool:
        """Whether training would go through."""
        return len(self.rejected) <= self.max_reject_rate * self.n_records

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `rejects.parquet` and `token_lengths.png`, each whole or not at all.

        Returns:
            Their paths.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        picture = save_histogram(Path(folder, HISTOGRAM), self.tokens, self.max_tokens)
        return write_rejects(Path(folder, REJECTS), self.rejected), picture

    def lines(self) -> list[str]:
        """The report for a person."""
        bad = {f.path: sum(r.source == f.path for r in self.rejected) for f in self.files}
        out = [
            f"{f.path}: {f.n_records} records, {bad[f.path]} rejected, weight {f.weight:g}, sha256 {f.sha256[:12]}"
            for f in self.files
        ]
        out.append(
            f"media: {self.n_media['image']} pictures, {self.n_media['video']} clips ({self.video_s / 3600:.1f} hours)"
        )
        for (images, videos), n in sorted(self.placeholders.items()):
            out.append(f"  {n} samples with {images} pictures and {videos} clips")
        if len(self.tokens):
            half, most, last = np.percentile(self.tokens, [50, 95, 100], method="nearest")
            limit = f", the limit is {self.max_tokens}" if self.max_tokens else ""
            out.append(f"tokens of a sample: median {half}, 95 % have at most {most}, longest {last}{limit}")
            out.append(f"tokens in all: {self.n_visual} visual, {self.n_learned} with a loss")
        if self.n_narrowed or self.said:
            out.append(f"unseen pairs: in answers, {self.n_narrowed} words whose loss leaves out others")
        for pair, n in sorted(self.said.items()):
            out.append(f"  {pair}: {n} answers about media say it; not unseen? The loss is the ordinary one there")
        kinds = [r.kind for r in self.rejected]
        out += [f"  {kinds.count(k)} rejected, {k}: {why}" for k, why in REJECT_KINDS.items() if k in kinds]
        share = len(self.rejected) / self.n_records
        word = "within" if self.passes else "above"
        out.append(f"rejected: {share:.2%} of {self.n_records}, {word} max_reject_rate {self.max_reject_rate:.2%}")
        return out


def check_data(
    corpus: Corpus,
    reader: RecordTokenizer,
    *,
    prober: Prober | None = None,
    max_reject_rate: float = DEFAULT_MAX_RATE,
    n_processes: int = 1,
    progress: bool = False,
) -> Checked:
    """Read every record, find and open every medium, count every token.

    Args:
        corpus: the records.
        reader: tokenizer, chat format, room for media, longest sample.
        prober: opens media; handing the same one to several checks opens each file once.
        max_reject_rate: share of rejects that training would bear.
        n_processes: processes that tokenise, at most.
        progress: show bars on stderr.

    Raises:
        TrainError: a file of conversations changes during the check.
    """
    from tqdm import tqdm

    size = bar_size(sys.stderr)
    whole = TokenizedChunk()
    with tqdm(total=len(corpus), desc="records", unit="record", disable=not progress, leave=False, **size) as bar:
        for look in look_at(corpus, reader, n_processes):
            bar.update(len(set(look.numbers) | look.rejected.keys()))
            whole.numbers += look.numbers
            whole.tokens += look.tokens
            whole.visual += look.visual
            whole.learned += look.learned
            whole.media += look.media
            whole.narrowed += look.narrowed
            whole.said += look.said
            whole.rejected |= look.rejected
    paths = list(dict.fromkeys(ref.path for refs in whole.media for ref in refs))
    facts: dict[str, MediaFacts | MediaError] = {}
    with tqdm(total=len(paths), desc="media", unit="file", disable=not progress, leave=False, **size) as bar:
        for path, found in (prober or Prober())(paths):
            facts[path] = found
            bar.update()
    _reject_by_media(corpus, whole, facts)
    return _sum_up(corpus, whole, facts, reader.max_tokens, max_reject_rate)


def _reject_by_media(corpus: Corpus, look: TokenizedChunk, facts: Mapping[str, MediaFacts | MediaError]) -> None:
    """Add the samples whose media cannot be used; those that are rejected already keep their reason."""
    for number, refs in zip(look.numbers, look.media, strict=True):
        for ref in refs:
            found = facts[ref.path]
            if isinstance(found, MediaError):
                kind = "media_missing" if found.kind == "missing" else "media_unreadable"
                error = SampleError(kind, found.what)
            elif found.kind != ref.kind:
                error = SampleError(
                    "media_unreadable", f"{ref.path}: is of kind {found.kind}, the record says {ref.kind}"
                )
            elif ref.start_s and found.duration_s is not None and ref.start_s >= found.duration_s:
                what = f"begins at {ref.start_s:g} s, the clip ends at {found.duration_s:g} s"
                error = SampleError("bad_span", f"{ref.path}: the stretch {what}")
            else:
                continue
            if number not in look.rejected:
                look.rejected[number] = corpus.rejected(number, error)
            break


def _sum_up(
    corpus: Corpus,
    look: TokenizedChunk,
    facts: Mapping[str, MediaFacts | MediaError],
    max_tokens: int | None,
    max_reject_rate: float,
) -> Checked:
    good = np.array([number not in look.rejected for number in look.numbers], np.bool_)
    placeholders: dict[tuple[int, int], int] = {}
    for fine, refs in zip(good, look.media, strict=True):
        if fine:
            n_videos = sum(ref.kind == "video" for ref in refs)
            key = (len(refs) - n_videos, n_videos)
            placeholders[key] = placeholders.get(key, 0) + 1
    rejected: dict[tuple[str, int], Rejected] = {}
    for number in sorted(look.rejected):
        one = look.rejected[number]
        rejected.setdefault((one.source, one.record), one)  # as in training: a file may be in two sources
    readable = [found for found in facts.values() if isinstance(found, MediaFacts)]
    said = sum((one for one, fine in zip(look.said, good, strict=True) if fine), Counter[str]())
    return Checked(
        files=corpus.files,
        fingerprint=corpus.fingerprint,
        rejected=tuple(rejected.values()),
        tokens=np.array(look.tokens, np.int64),
        n_visual=int(np.array(look.visual, np.int64)[good].sum()),
        n_learned=int(np.array(look.learned, np.int64)[good].sum()),
        n_media={kind: sum(found.kind == kind for found in readable) for kind in ("image", "video")},
        video_s=sum(found.duration_s or 0.0 for found in readable if found.kind == "video"),
        n_narrowed=int(np.array(look.narrowed, np.int64)[good].sum()),
        said=said,
        placeholders=placeholders,
        max_tokens=max_tokens,
        max_reject_rate=max_reject_rate,
    )
