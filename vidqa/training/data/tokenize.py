"""Sample -> token ids and labels, or the reason for rejecting it: for training, and for counting a whole corpus.

The loss is on the answers and their end-of-sequence tokens, in every turn; all other labels are IGNORE_INDEX.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

from vidqa.errors import UsageError
from vidqa.import_path import child_environment
from vidqa.prompts.build import IGNORE_INDEX, LabeledPrompt, build_labels
from vidqa.prompts.chat_formats import ChatFormat
from vidqa.prompts.plain_text import Tokenizer
from vidqa.records import MediaKind, MediaShape
from vidqa.training.data.corpus import Corpus
from vidqa.training.data.rejects import Rejected
from vidqa.training.data.sample import MediaRef, Sample, SampleError
from vidqa.training.data.unseen_pairs import IgnoredTokens, PairCounts

_CHUNK = 128  # number of records that are sent to a process together
_MIN_PER_PROCESS = 4096  # number of records that justifies starting a process


def tokenize_sample(
    sample: Sample,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    shapes: Sequence[tuple[MediaKind, int, int] | MediaShape],
    max_tokens: int | None = None,
) -> LabeledPrompt:
    """Tokenize a sample.

    Args:
        sample: the sample to tokenize.
        tokenizer: the tokenizer of the LLM.
        chat: the chat format to train with; `plain` skips the questions.
        shapes: (kind, n_frames, tokens_per_frame) of each media item, in the order of `sample.media`.
        max_tokens: maximum length in tokens, including visual tokens.

    Raises:
        SampleError: `reserved_text`, `media_unreadable` (the wrong kind of media) or `too_long`.
        ValueError: the number of shapes differs from the number of media items.
    """
    for ref, shape in zip(sample.media, shapes, strict=True):
        if shape[0] != ref.kind:
            raise SampleError("media_unreadable", f"{ref.path}: is of kind {shape[0]}, the record has {ref.kind}")
    try:
        conversation = build_labels(tokenizer, chat, sample.turns, shapes)
    except UsageError as e:
        raise SampleError("reserved_text", e.what) from e
    if conversation.problem:
        raise SampleError("reserved_text", conversation.problem)
    check_length(conversation, max_tokens)
    return conversation


def check_length(conversation: LabeledPrompt, max_tokens: int | None) -> None:
    """Reject a sample that is too long; truncating it would train on half an answer.

    Raises:
        SampleError: `too_long`.
    """
    n = len(conversation.prompt.ids)
    if max_tokens is not None and n > max_tokens:
        n_visual = int(conversation.prompt.slots.sum())
        raise SampleError("too_long", f"{n} tokens, {n_visual} of them visual; the limit is {max_tokens}")


@dataclass(frozen=True)
class RecordTokenizer:
    """Settings for tokenizing a corpus without a model. Picklable, because worker processes receive it."""

    tokenizer: Tokenizer
    chat: ChatFormat
    shape_of: Callable[[MediaRef], MediaShape]
    max_tokens: int | None = None
    ignored: IgnoredTokens | None = None  # for counting unseen pairs


@dataclass
class TokenizedChunk:
    """Counts of some records. The lists have one entry per sample that could be tokenized, even if it is too long."""

    numbers: list[int] = field(default_factory=list)  # sample numbers
    tokens: list[int] = field(default_factory=list)  # all positions
    visual: list[int] = field(default_factory=list)  # visual tokens
    targets: list[int] = field(default_factory=list)  # tokens with a loss
    media: list[tuple[MediaRef, ...]] = field(default_factory=list)
    pairs: list[PairCounts] = field(default_factory=list)
    rejected: dict[int, Rejected] = field(default_factory=dict)  # by sample number

    def extend(self, other: TokenizedChunk) -> None:
        """Append the counts of more records."""
        self.numbers += other.numbers
        self.tokens += other.tokens
        self.visual += other.visual
        self.targets += other.targets
        self.media += other.media
        self.pairs += other.pairs
        self.rejected |= other.rejected


def tokenize_corpus(corpus: Corpus, tokenizer: RecordTokenizer, n_processes: int = 1) -> Iterator[TokenizedChunk]:
    """Read and tokenize all records in order.

    Args:
        corpus: the records.
        tokenizer: tokenizer, chat format and media shapes.
        n_processes: maximum number of processes; a small corpus is read in this process.

    Yields:
        The counts of some records at a time.
    """
    chunks = [range(start, min(start + _CHUNK, len(corpus))) for start in range(0, len(corpus), _CHUNK)]
    n_processes = min(n_processes, len(corpus) // _MIN_PER_PROCESS)
    if n_processes < 2:
        yield from map(partial(_tokenize_chunk, corpus, tokenizer), chunks)
        return
    # spawn, because the caller may have threads. Constant arguments are sent once and not with every chunk.
    with _child_environment():  # `map` submits all chunks and thereby starts all processes
        pool = ProcessPoolExecutor(
            n_processes, get_context("spawn"), initializer=_init_worker, initargs=(corpus, tokenizer)
        )
        results = pool.map(_tokenize_in_worker, chunks)
    with pool:
        yield from results


@contextmanager
def _child_environment() -> Iterator[None]:
    """Set the variables that child processes start with. multiprocessing offers no other way to pass them."""
    added = {name: value for name, value in child_environment().items() if os.environ.get(name) != value}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_worker_arguments: list[tuple[Corpus, RecordTokenizer]] = []


def _init_worker(corpus: Corpus, tokenizer: RecordTokenizer) -> None:
    _worker_arguments.append((corpus, tokenizer))


def _tokenize_in_worker(numbers: range) -> TokenizedChunk:
    return _tokenize_chunk(*_worker_arguments[0], numbers)


def _tokenize_chunk(corpus: Corpus, tokenizer: RecordTokenizer, numbers: range) -> TokenizedChunk:
    chunk = TokenizedChunk()
    for number in numbers:
        sample_id = None
        try:
            sample = corpus[number]
            sample_id = sample.id
            shapes = [tokenizer.shape_of(ref) for ref in sample.media]
            conversation = tokenize_sample(sample, tokenizer.tokenizer, tokenizer.chat, shapes)
            chunk.numbers.append(number)
            chunk.tokens.append(len(conversation.labels))
            chunk.visual.append(int(conversation.prompt.slots.sum()))
            chunk.targets.append(int((conversation.labels != IGNORE_INDEX).sum()))
            chunk.media.append(sample.media)
            ignored = tokenizer.ignored if sample.media else None
            chunk.pairs.append(ignored.count(conversation) if ignored else PairCounts())
            check_length(conversation, tokenizer.max_tokens)
        except SampleError as e:
            chunk.rejected[number] = corpus.rejected(number, e, sample_id)
    return chunk
