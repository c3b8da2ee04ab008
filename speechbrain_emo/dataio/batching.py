"""Which records go into which optimiser step, and how a step is cut into micro-batches that fit in memory.

SpeechBrain's ``DynamicBatchSampler`` bounds one length and lets the number of records vary; here an optimiser
step has a fixed number of records (the published batch sizes), and its micro-batches are bounded by packed
positions AND by encoder frames. A plan depends on (seed, epoch) only; ranks take their share of each step, so
the global batch is the same for any number of processes.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A record and the task that is drawn for it in an epoch.

    Arguments
    ---------
    record : int
        Index of the record in the data set.
    task : str
        Name of the task.

    Example
    -------
    >>> Item(3, "asr").task
    'asr'
    """

    record: int
    task: str


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step of one rank: micro-batches of items.

    Arguments
    ---------
    epoch : int
        Global epoch that the random draws are keyed by; 0 in evaluation.
    phase : str or None
        Key of the phase; None in evaluation.
    micro_batches : tuple of tuple of Item
        This rank's share, at least one item.

    Example
    -------
    >>> StepPlan(1, "1.asr", ((Item(0, "asr"),),)).num_items
    1
    """

    epoch: int
    phase: object
    micro_batches: tuple[tuple[Item, ...], ...]

    @property
    def num_items(self):
        """Number of items of this rank."""
        return sum(len(m) for m in self.micro_batches)


class StepPlanner:
    """Plans epochs as optimiser steps of similar lengths.

    Arguments
    ---------
    positions_of : callable
        (record index, task) -> packed positions.
    frames_of : callable
        (record index, task) -> encoder frames of all its audios; 0 where no audio is used.
    max_positions : int
        Bound of rows x longest row of a micro-batch.
    max_frames : int
        Bound of audios x longest audio of a micro-batch, in frames.
    max_rows : int
        Bound of the rows of a micro-batch.
    pool_steps : int
        Steps over which records are sorted by length; 1 turns bucketing off.

    Example
    -------
    >>> planner = StepPlanner(lambda i, t: 10 + i, lambda i, t: 5, max_positions=64, max_frames=100)
    >>> items = [Item(i, "t") for i in range(7)]
    >>> plans = planner.plan(items, batch_size=4, epoch=1, phase="1.p", seed=0)
    >>> sorted(p.num_items for p in plans)
    [3, 4]
    """

    def __init__(
        self,
        positions_of: Callable,
        frames_of: Callable,
        max_positions: int,
        max_frames: int,
        max_rows: int = 10**9,
        pool_steps: int = 8,
    ):
        self.positions_of = positions_of
        self.frames_of = frames_of
        self.max_positions = max_positions
        self.max_frames = max_frames
        self.max_rows = max_rows
        self.pool_steps = pool_steps

    def plan(self, items, batch_size, epoch, phase, seed, step_by_task=False, rank=0, world_size=1):
        """Plan an epoch of training.

        Arguments
        ---------
        items : sequence of Item
            What the epoch consists of.
        batch_size : int
            Items of a step over all ranks.
        epoch, phase, seed :
            Key of the shuffling; ``epoch`` and ``phase`` go into the plans.
        step_by_task : bool
            Steps hold one task only.
        rank, world_size : int
            Which share of each step.

        Returns
        -------
        list of StepPlan

        Raises
        ------
        ValueError
            If a rank could be left without an item.
        """
        rng = random.Random(f"{seed}/{phase}/{epoch}")
        items = list(items)
        rng.shuffle(items)
        groups = {}
        for item in items:
            groups.setdefault(item.task if step_by_task else None, []).append(item)
        steps = []
        for name in sorted(groups, key=str):
            steps += self._cut(groups[name], batch_size, rng)
        rng.shuffle(steps)
        smallest = min((len(s) for s in steps), default=0)
        if smallest < world_size:
            raise ValueError(
                f"an optimiser step of {smallest} records cannot be shared by {world_size} processes: "
                f"raise batch_size (now {batch_size}) or use fewer processes"
            )
        return [StepPlan(epoch, phase, self.micro_batches(step[rank::world_size])) for step in steps]

    def _cut(self, items, batch_size, rng):
        """Steps of ``batch_size`` items of similar length; a small remainder joins the step before it."""
        key = self._length
        steps, size = [], batch_size * self.pool_steps
        for start in range(0, len(items), size):
            pool = items[start : start + size]
            if self.pool_steps > 1:
                pool.sort(key=key)
            cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
            if len(cut) > 1 and len(cut[-1]) < batch_size / 2:
                remainder = cut.pop()
                cut[-1] = cut[-1] + remainder
            steps += cut
        if len(steps) > 1 and len(steps[-1]) < batch_size / 2:
            remainder = steps.pop()
            steps[-1] = steps[-1] + remainder
        return steps

    def _length(self, item):
        return (
            self.positions_of(item.record, item.task),
            self.frames_of(item.record, item.task),
            item.record,
        )

    def micro_batches(self, items: Sequence[Item]):
        """Cut items into micro-batches that respect the bounds; an item over a bound stands alone.

        Arguments
        ---------
        items : sequence of Item

        Returns
        -------
        tuple of tuple of Item
        """
        cut, current, longest, most_frames = [], [], 0, 0
        for item in sorted(items, key=self._length):
            positions = max(longest, self.positions_of(item.record, item.task))
            frames = max(most_frames, self.frames_of(item.record, item.task))
            rows = len(current) + 1
            full = (
                rows * positions > self.max_positions
                or rows * frames > self.max_frames
                or rows > self.max_rows
            )
            if current and full:
                cut.append(tuple(current))
                current = []
                positions = self.positions_of(item.record, item.task)
                frames = self.frames_of(item.record, item.task)
            current.append(item)
            longest, most_frames = positions, frames
        if current:
            cut.append(tuple(current))
        return tuple(cut)

    def plan_evaluation(self, items, phase=None, rank=0, world_size=1):
        """Plan a pass in which every item occurs once over all ranks, a micro-batch a step."""
        return [StepPlan(0, phase, (m,)) for m in self.micro_batches(list(items)[rank::world_size])]

    def padding_share(self, plans):
        """Share of packed positions that are padding, in [0, 1]."""
        used = padded = 0
        for plan in plans:
            for micro in plan.micro_batches:
                lengths = [self.positions_of(i.record, i.task) for i in micro]
                used += sum(lengths)
                padded += len(lengths) * max(lengths)
        return 1.0 - used / padded if padded else 0.0
