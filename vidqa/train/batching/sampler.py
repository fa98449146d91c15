"""Numbers of samples -> the sequences of a whole run, step by step. Pure: the same seed gives the same plan anywhere.

Nothing here remembers where it was: a run that goes on after a break asks for the same plan and begins further down.
Knows numbers, groups and lengths; does not know what a sample holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: The samples of one sequence; none in the fillers of a last step that is not full.
Sequence_ = tuple[int, ...]

_WINDOW = 50  # batches that are sorted by length together, and then shuffled


@dataclass(frozen=True)
class Packing:
    """How conversations share sequences.

    `limit` is the most conversations in one; 1 leaves each alone. With `draw`, a group that does not fit one sequence
    gives one of `limit` conversations an epoch, drawn anew; with `all` it is cut into as many as it takes.
    """

    limit: int = 1
    visits: Literal["all", "draw"] = "all"
    by_length: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """Every sequence of a stage, `batch` of them a step."""

    sequences: tuple[Sequence_, ...]
    batch: int
    epochs: float  # how many the plan covers

    @property
    def n_steps(self) -> int:
        """Steps of the optimizer."""
        return len(self.sequences) // self.batch


@dataclass(frozen=True)
class Survey:
    """What one look at each sample told, where packing or sorting needs it."""

    groups: Sequence[Hashable]  # of each sample: those with the same one may share a sequence; None stands alone
    lengths: Sequence[int]  # of each sample, in tokens or anything that grows with them


def plan_run(
    epoch_order: Callable[[int], Sequence[int] | np.ndarray],
    batch: int,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    packing: Packing | None = None,
    survey: Survey | None = None,
    seed: int = 0,
) -> BatchPlan:
    """Lay out a stage.

    Args:
        epoch_order: the samples that an epoch sees, shuffled, by its number.
        batch: sequences in one step, over all processes.
        epochs: how often the data are seen; a fraction ends within one. The last step is filled up with empty
            sequences.
        steps: instead of `epochs`: exactly as many steps, through as many epochs as it takes.
        packing: which conversations share a sequence; None leaves each alone.
        survey: needed where `packing` joins or sorts.
        seed: of the order of sequences.

    Raises:
        ValueError: neither or both of `epochs` and `steps`, or an epoch without samples.
    """
    if (epochs is None) == (steps is None):
        raise ValueError("either epochs or steps says how long")
    packing = packing or Packing()
    wanted = None if steps is None else steps * batch
    out: list[Sequence_] = []
    done, epoch = 0.0, 0
    while (epochs is not None and done < epochs) or (wanted is not None and len(out) < wanted):
        found = list(_epoch(epoch_order(epoch), batch, packing, survey, np.random.default_rng([seed, 3, epoch])))
        if not found:
            raise ValueError("an epoch needs at least one sample")
        if epochs is not None:
            share = min(1.0, epochs - done)
            taken = found[: max(1, round(share * len(found)))]
            done += share
        else:
            taken = found[: (wanted or 0) - len(out)]
            done += len(taken) / len(found)
        out += taken
        epoch += 1
    out += [()] * (-len(out) % batch)
    return BatchPlan(tuple(out), batch, done)


def _epoch(
    order: Sequence[int] | np.ndarray, batch: int, packing: Packing, survey: Survey | None, rng: np.random.Generator
) -> Iterator[Sequence_]:
    """The sequences of one epoch."""
    numbers = [int(i) for i in order]
    if packing.limit == 1 and not packing.by_length:
        yield from ((i,) for i in numbers)
        return
    if survey is None:
        raise ValueError("packing and sorting need a survey")
    packed = _packed(numbers, packing, survey)
    shuffled = [packed[k] for k in rng.permutation(len(packed))]
    yield from _by_length(shuffled, batch, survey, rng) if packing.by_length else shuffled


def _packed(numbers: Sequence[int], packing: Packing, survey: Survey) -> list[Sequence_]:
    """Put samples of one group side by side. `numbers` are shuffled, so the first ones of a group are a draw."""
    groups: dict[Hashable, list[int]] = {}
    for i in numbers:
        group = survey.groups[i]
        groups.setdefault(("alone", i) if group is None else group, []).append(i)
    limit = packing.limit
    if packing.visits == "draw":
        return [tuple(group[:limit]) for group in groups.values()]
    return [tuple(group[i : i + limit]) for group in groups.values() for i in range(0, len(group), limit)]


def _by_length(
    sequences: Sequence[Sequence_], batch: int, survey: Survey, rng: np.random.Generator
) -> Iterator[Sequence_]:
    """Sort inside windows, then shuffle the batches: little padding, and still all kinds side by side over time."""

    def length(sequence: Sequence_) -> int:
        return sum(survey.lengths[i] for i in sequence)

    for start in range(0, len(sequences), _WINDOW * batch):
        part = sorted(sequences[start : start + _WINDOW * batch], key=length)
        batches = [part[i : i + batch] for i in range(0, len(part), batch)]
        for k in rng.permutation(len(batches)):
            yield from batches[k]
