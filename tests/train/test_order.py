from collections import Counter

import numpy as np
import pytest

from vidqa.train.batching.sampler import Packing, Survey, plan_run


def order(n, seed=0):
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n)


GROUPS = Survey([i // 4 for i in range(22)], [10 if i < 12 else 1 for i in range(22)])


def test_alone_every_sample_comes_once_an_epoch_and_the_last_step_is_filled_up():
    plan = plan_run(order(22), 4, epochs=2)
    numbers = [i for s in plan.sequences for i in s]
    assert Counter(numbers) == dict.fromkeys(range(22), 2)
    assert plan.n_steps == 11 and len(plan.sequences) == 44 and plan.epochs == 2
    assert [len(s) for s in plan_run(order(22), 4, epochs=1).sequences][-2:] == [0, 0]


def test_packing_keeps_groups_together_and_loses_nobody():
    plan = plan_run(order(22), 2, epochs=1, packing=Packing(3), survey=GROUPS)
    filled = [s for s in plan.sequences if s]
    assert sorted(i for s in filled for i in s) == list(range(22))
    assert all(len(s) <= 3 and len({GROUPS.groups[i] for i in s}) == 1 for s in filled)


def test_a_draw_takes_one_sequence_of_each_group_and_another_one_the_next_time():
    plan = plan_run(order(22), 1, epochs=2, packing=Packing(2, "draw"), survey=GROUPS)
    first, second = plan.sequences[:6], plan.sequences[6:]
    assert sorted(GROUPS.groups[s[0]] for s in first) == sorted(GROUPS.groups[s[0]] for s in second) == list(range(6))
    assert {frozenset(s) for s in first} != {frozenset(s) for s in second}


def test_by_length_a_batch_holds_samples_of_like_length():
    plan = plan_run(order(22), 2, epochs=1, packing=Packing(1, by_length=True), survey=GROUPS)
    pairs = [plan.sequences[i : i + 2] for i in range(0, 22, 2)]
    lengths = [[GROUPS.lengths[i] for s in pair for i in s] for pair in pairs]
    assert all(len(set(pair)) == 1 for pair in lengths)
    assert lengths != sorted(lengths)  # the batches themselves are shuffled


def test_the_plan_is_a_pure_function_and_a_longer_one_begins_the_same():
    made = [plan_run(order(22), 4, steps=n, packing=Packing(2), survey=GROUPS, seed=5).sequences for n in (6, 6, 9)]
    assert made[0] == made[1] == made[2][:24]
    assert plan_run(order(22), 4, steps=6, packing=Packing(2), survey=GROUPS, seed=6).sequences != made[0]


def test_part_of_an_epoch():
    assert plan_run(order(100), 10, epochs=0.12).n_steps == 2  # 12 sequences
    assert plan_run(order(100), 10, epochs=1.5).n_steps == 15
    assert plan_run(order(3), 4, steps=5).epochs == pytest.approx(20 / 3)


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}])
def test_one_of_epochs_and_steps_is_needed(length):
    with pytest.raises(ValueError, match="either epochs or steps"):
        plan_run(order(3), 1, **length)
