"""Planning of optimiser steps: bounds, shares of ranks, determinism."""

import pytest

from speechbrain_emo.dataio.batching import Item, StepPlanner

LENGTHS = [7 + (13 * i) % 41 for i in range(101)]
ITEMS = [Item(i, "a" if i % 3 else "b") for i in range(101)]


@pytest.fixture
def planner():
    return StepPlanner(
        lambda i, t: LENGTHS[i], lambda i, t: 3 * LENGTHS[i], max_positions=200, max_frames=500, max_rows=6
    )


def flat(plans):
    return [item for plan in plans for micro in plan.micro_batches for item in micro]


def test_every_item_once_and_bounds_kept(planner):
    plans = planner.plan(ITEMS, batch_size=16, epoch=1, phase="1.p", seed=3)
    assert sorted(i.record for i in flat(plans)) == list(range(101))
    for plan in plans:
        for micro in plan.micro_batches:
            longest = max(LENGTHS[i.record] for i in micro)
            assert len(micro) <= 6
            assert len(micro) == 1 or (len(micro) * longest <= 200 and 3 * len(micro) * longest <= 500)


def test_ranks_share_the_steps_of_one_process(planner):
    one = planner.plan(ITEMS, 16, epoch=2, phase="1.p", seed=3)
    two = [planner.plan(ITEMS, 16, epoch=2, phase="1.p", seed=3, rank=r, world_size=2) for r in range(2)]
    assert len(two[0]) == len(two[1]) == len(one)
    for whole, left, right in zip(one, *two):
        assert sorted(i.record for i in flat([whole])) == sorted(i.record for i in flat([left, right]))


def test_epochs_differ_and_repeat(planner):
    a, b, c = (planner.plan(ITEMS, 16, epoch=e, phase="1.p", seed=3) for e in (1, 1, 2))
    assert a == b
    assert flat(a) != flat(c)


def test_step_by_task(planner):
    for plan in planner.plan(ITEMS, 16, epoch=1, phase="1.p", seed=3, step_by_task=True):
        assert len({i.task for i in flat([plan])}) == 1


def test_bucketing_wastes_less(planner):
    loose = StepPlanner(planner.positions_of, planner.frames_of, 10**9, 10**9, pool_steps=1)
    tight = StepPlanner(planner.positions_of, planner.frames_of, 10**9, 10**9, pool_steps=6)
    waste = [p.padding_share(p.plan(ITEMS, 8, epoch=1, phase="1.p", seed=3)) for p in (loose, tight)]
    assert waste[1] < 0.5 * waste[0]


def test_too_many_processes(planner):
    with pytest.raises(ValueError, match="raise batch_size"):
        planner.plan(ITEMS[:3], batch_size=2, epoch=1, phase="1.p", seed=3, world_size=3)


def test_evaluation_counts_everything_once(planner):
    shares = [planner.plan_evaluation(ITEMS, rank=r, world_size=3) for r in range(3)]
    assert sorted(i.record for i in flat(sum(shares, []))) == list(range(101))
