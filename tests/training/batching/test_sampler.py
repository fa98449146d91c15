from collections import Counter

import numpy as np
import pytest

from vidqa.training.batching.sampler import Packing, SampleStats, plan_batches


def order(n, seed=0):
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n)


GROUPS = SampleStats([i // 4 for i in range(22)], [10 if i < 12 else 1 for i in range(22)])


def test_without_packing_an_epoch_has_every_sample_once_and_the_last_step_is_filled():
    plan = plan_batches(order(22), 4, epochs=2)
    numbers = [i for s in plan.sequences for i in s]
    assert Counter(numbers) == dict.fromkeys(range(22), 2)
    assert plan.n_steps == 11 and len(plan.sequences) == 44 and plan.epochs == 2
    assert [len(s) for s in plan_batches(order(22), 4, epochs=1).sequences][-2:] == [0, 0]


def test_packing_joins_groups_and_loses_no_sample():
    plan = plan_batches(order(22), 2, epochs=1, packing=Packing(3), stats=GROUPS)
    filled = [s for s in plan.sequences if s]
    assert sorted(i for s in filled for i in s) == list(range(22))
    assert all(len(s) <= 3 and len({GROUPS.groups[i] for i in s}) == 1 for s in filled)


def test_one_sequence_per_media_is_sampled_again_in_every_epoch():
    plan = plan_batches(order(22), 1, epochs=2, packing=Packing(2, "one"), stats=GROUPS)
    first, second = plan.sequences[:6], plan.sequences[6:]
    assert sorted(GROUPS.groups[s[0]] for s in first) == sorted(GROUPS.groups[s[0]] for s in second) == list(range(6))
    assert {frozenset(s) for s in first} != {frozenset(s) for s in second}


def test_group_by_length_makes_batches_of_similar_lengths():
    plan = plan_batches(order(22), 2, epochs=1, packing=Packing(1, group_by_length=True), stats=GROUPS)
    pairs = [plan.sequences[i : i + 2] for i in range(0, 22, 2)]
    lengths = [[GROUPS.lengths[i] for s in pair for i in s] for pair in pairs]
    assert all(len(set(pair)) == 1 for pair in lengths)
    assert lengths != sorted(lengths)  # the batches themselves are shuffled


def test_the_plan_is_deterministic_and_a_longer_one_starts_the_same():
    plans = [plan_batches(order(22), 4, steps=n, packing=Packing(2), stats=GROUPS, seed=5).sequences for n in (6, 6, 9)]
    assert plans[0] == plans[1] == plans[2][:24]
    assert plan_batches(order(22), 4, steps=6, packing=Packing(2), stats=GROUPS, seed=6).sequences != plans[0]


def test_fractional_epochs():
    assert plan_batches(order(100), 10, epochs=0.12).n_steps == 2  # 12 sequences
    assert plan_batches(order(100), 10, epochs=1.5).n_steps == 15
    assert plan_batches(order(3), 4, steps=5).epochs == pytest.approx(20 / 3)


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}])
def test_exactly_one_of_epochs_and_steps_is_required(length):
    with pytest.raises(ValueError, match="exactly one of epochs and steps"):
        plan_batches(order(3), 1, **length)
