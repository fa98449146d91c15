"""Sample numbers -> the sequences of a whole stage, step by step, in training order.

The plan is a pure function of seed, groups and lengths: it is the same on every machine. There is no sampler state to
save: a resumed run computes the same plan and skips the steps that are done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vidqa.training.recipe.definition import SequencesPerMedia

#: The samples of one sequence; empty for the padding sequences of an incomplete last step.
SampleNumbers = tuple[int, ...]

_WINDOW = 50  # number of batches whose sequences are sorted by length together before the batches are shuffled


@dataclass(frozen=True)
class Packing:
    """How conversations are packed into sequences."""

    limit: int = 1  # maximum number of conversations per sequence; 1: no packing
    sequences_per_media: SequencesPerMedia = "all"  # see the recipe
    group_by_length: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """All sequences of a stage, `batch` of them per step."""

    sequences: tuple[SampleNumbers, ...]
    batch: int
    epochs: float  # number of epochs that the plan covers

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.sequences) // self.batch


@dataclass(frozen=True)
class SampleStats:
    """Properties of each sample for packing and grouping by length."""

    groups: Sequence[Hashable]  # samples with equal groups may share a sequence; None: never
    lengths: Sequence[int]  # in tokens, or anything that grows with them


def plan_batches(
    epoch_order: Callable[[int], Sequence[int] | np.ndarray],
    batch: int,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    packing: Packing | None = None,
    stats: SampleStats | None = None,
    seed: int = 0,
) -> BatchPlan:
    """Plan the sequences of a stage.

    Args:
        epoch_order: epoch number -> shuffled sample numbers.
        batch: sequences per step, over all processes.
        epochs: number of epochs, which may be fractional. The last step is filled with empty sequences.
        steps: instead of `epochs`: the exact number of steps, over as many epochs as needed.
        packing: how to pack sequences; None packs nothing.
        stats: required for packing and for grouping by length.
        seed: seed for the order of the sequences.

    Raises:
        ValueError: neither or both of `epochs` and `steps` are given, or an epoch has no samples.
    """
    if (epochs is None) == (steps is None):
        raise ValueError("exactly one of epochs and steps must be given")
    packing = packing or Packing()
    n_sequences = None if steps is None else steps * batch
    out: list[SampleNumbers] = []
    done, epoch = 0.0, 0
    while (epochs is not None and done < epochs) or (n_sequences is not None and len(out) < n_sequences):
        found = list(_epoch(epoch_order(epoch), batch, packing, stats, np.random.default_rng([seed, 3, epoch])))
        if not found:
            raise ValueError("an epoch needs at least one sample")
        if epochs is not None:
            share = min(1.0, epochs - done)
            taken = found[: max(1, round(share * len(found)))]
            done += share
        else:
            taken = found[: (n_sequences or 0) - len(out)]
            done += len(taken) / len(found)
        out += taken
        epoch += 1
    out += [()] * (-len(out) % batch)
    return BatchPlan(tuple(out), batch, done)


def _epoch(
    order: Sequence[int] | np.ndarray, batch: int, packing: Packing, stats: SampleStats | None, rng: np.random.Generator
) -> Iterator[SampleNumbers]:
    """Yield the sequences of one epoch."""
    numbers = [int(i) for i in order]
    if packing.limit == 1 and not packing.group_by_length:
        yield from ((i,) for i in numbers)
        return
    if stats is None:
        raise ValueError("packing and grouping by length need sample stats")
    packed = _pack_groups(numbers, packing, stats)
    shuffled = [packed[k] for k in rng.permutation(len(packed))]
    yield from _group_by_length(shuffled, batch, stats, rng) if packing.group_by_length else shuffled


def _pack_groups(numbers: Sequence[int], packing: Packing, stats: SampleStats) -> list[SampleNumbers]:
    """Join the samples of each group. `numbers` are shuffled, so the first ones of a group are a random sample."""
    groups: dict[Hashable, list[int]] = {}
    for i in numbers:
        group = stats.groups[i]
        groups.setdefault(("ungrouped", i) if group is None else group, []).append(i)
    limit = packing.limit
    if packing.sequences_per_media == "one":
        return [tuple(group[:limit]) for group in groups.values()]
    return [tuple(group[i : i + limit]) for group in groups.values() for i in range(0, len(group), limit)]


def _group_by_length(
    sequences: Sequence[SampleNumbers], batch: int, stats: SampleStats, rng: np.random.Generator
) -> Iterator[SampleNumbers]:
    """Sort within windows, then shuffle the batches: there is little padding, and the order stays random."""

    def length(sequence: SampleNumbers) -> int:
        return sum(stats.lengths[i] for i in sequence)

    for start in range(0, len(sequences), _WINDOW * batch):
        window = sorted(sequences[start : start + _WINDOW * batch], key=length)
        batches = [window[i : i + batch] for i in range(0, len(window), batch)]
        for k in rng.permutation(len(batches)):
            yield from batches[k]
