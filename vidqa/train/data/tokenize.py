"""Every record of a corpus -> its tokens counted, or the reason why it is none. In several processes on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

from vidqa.prompts.build import IGNORE_INDEX, LabelledPrompt, Tokenizer
from vidqa.prompts.chat_formats import ChatFormat
from vidqa.records import MediaShape
from vidqa.train.data.corpus import Corpus
from vidqa.train.data.labels import check_length, labelled
from vidqa.train.data.rejects import Rejected
from vidqa.train.data.sample import MediaRef, SampleError
from vidqa.train.data.unseen_pairs import IgnoredTokens

_CHUNK = 128  # records that go to a process together
_WORTH = 4096  # records that pay for the start of a process


@dataclass(frozen=True)
class RecordTokenizer:
    """How samples become tokens, without a model. Must be picklable where several processes are wanted."""

    tokenizer: Tokenizer
    chat: ChatFormat
    shape_of: Callable[[MediaRef], MediaShape]  # room for the visual tokens of a medium
    max_tokens: int | None = None
    left_out: IgnoredTokens | None = None  # answers about media that the loss leaves out


@dataclass
class TokenizedChunk:
    """What some records told; lists run side by side."""

    numbers: list[int] = field(default_factory=list)  # of the samples that could be tokenised, too long ones among them
    tokens: list[int] = field(default_factory=list)  # all positions of each
    visual: list[int] = field(default_factory=list)  # those that hold visual tokens
    learned: list[int] = field(default_factory=list)  # those with a loss
    media: list[tuple[MediaRef, ...]] = field(default_factory=list)
    narrowed: list[int] = field(default_factory=list)  # answer words whose loss leaves some words out
    said: list[Counter[str]] = field(default_factory=list)  # pairs that were not to be there -> how often answers do
    rejected: dict[int, Rejected] = field(default_factory=dict)  # by number of the sample


def look_at(corpus: Corpus, reader: RecordTokenizer, n_processes: int = 1) -> Iterator[TokenizedChunk]:
    """Read and tokenise all records, some at a time, in their order.

    Args:
        corpus: the records.
        reader: how samples become tokens.
        n_processes: at most; few records are read in this process.
    """
    chunks = [range(start, min(start + _CHUNK, len(corpus))) for start in range(0, len(corpus), _CHUNK)]
    work = partial(_look, corpus, reader)
    n_processes = min(n_processes, len(corpus) // _WORTH)
    if n_processes < 2:
        yield from map(work, chunks)
        return
    # spawn: the caller may hold threads. What does not change is sent once, not with every chunk.
    with ProcessPoolExecutor(n_processes, get_context("spawn"), initializer=_begin, initargs=(corpus, reader)) as pool:
        yield from pool.map(_look_here, chunks)


_here: list[tuple[Corpus, RecordTokenizer]] = []  # in a worker process: what it was started with


def _begin(corpus: Corpus, reader: RecordTokenizer) -> None:
    _here.append((corpus, reader))


def _look_here(numbers: range) -> TokenizedChunk:
    return _look(*_here[0], numbers)


def _look(corpus: Corpus, reader: RecordTokenizer, numbers: range) -> TokenizedChunk:
    look = TokenizedChunk()
    for number in numbers:
        name = None
        try:
            sample = corpus[number]
            name = sample.id
            shapes = [reader.shape_of(ref) for ref in sample.media]
            made = labelled(sample, reader.tokenizer, reader.chat, shapes)
            look.numbers.append(number)
            look.tokens.append(len(made.labels))
            look.visual.append(int(made.prompt.slots.sum()))
            look.learned.append(int((made.labels != IGNORE_INDEX).sum()))
            look.media.append(sample.media)
            n_narrowed, said = _left_out(reader.left_out if sample.media else None, made)
            look.narrowed.append(n_narrowed)
            look.said.append(said)
            check_length(made, reader.max_tokens)
        except SampleError as e:
            look.rejected[number] = corpus.rejected(number, e, name)
    return look


def _left_out(left_out: IgnoredTokens | None, made: LabelledPrompt) -> tuple[int, Counter[str]]:
    """Positions of a conversation where the loss leaves words out, and the pairs that it says nevertheless."""
    if left_out is None:
        return 0, Counter()
    words = left_out.unseen.words
    said = [s for s in left_out.answers(made) if left_out.is_unseen(s)]
    names = (" ".join(words[n] for n in sorted((s.word, s.partner))) for s in said)
    return int((left_out.where(made) > 0).sum()), Counter(names)
