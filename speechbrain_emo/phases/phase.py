"""What trains when: phases, cycles, and the state that lets a run go on where it stopped.

VIB-SER alternates between phases (arXiv 2505.23236, section 2): speech recognition trains the content branch,
the joint phase trains the descriptor branch. The dual-adapter model and JELLY are lists of phases too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from speechbrain_emo.prompts.segments import SLOT_SOURCES

DECAYS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Arguments
    ---------
    name : str
        Unique in the schedule.
    train : tuple of str
        Groups of modules that train, as the model's ``trainable_groups`` names them; all else is frozen.
    tasks : dict of str to float
        Tasks and their share of the records.
    epochs : int
        Passes over the training records.
    lr : float
        Peak learning rate.
    batch_size : int
        Records in an optimiser step, over all ranks.
    warmup : float
        Share of the phase's steps (below 1) or number of steps (1 and above) with a rising learning rate.
    decay : str
        ``constant``, ``linear`` or ``cosine``, after the warm-up, down to ``final_lr_share * lr``.
    final_lr_share : float
        In [0, 1].
    weight_decay : float
        AdamW's, on matrices only (not on biases, norms and layer weights).
    beta : dict
        Weight of the KL term: ``{start, end}``, log-linear over the phase's steps; equal values are constant.
    slot_sources : dict of str to dict of str to float
        For a kind of slot, the probabilities of the sources speech, text and nothing. Default: speech.
    slot_sources_by_task : dict of str to dict
        Task -> kind of slot -> probabilities, where tasks differ; goes before ``slot_sources`` (equivalence
        replacement, arXiv 2508.08095: which slot is replaced depends on the task).
    step_by_task : bool
        True: a step holds records of one task only.
    train_by_task : dict of str to list of str
        Groups that train only in steps of a task (equivalence replacement freezes per step); needs
        ``step_by_task``.
    keep_optimizer : bool
        False: the phase starts with a fresh optimiser.
    records_per_epoch : int, optional
        Records drawn for an epoch; default all.
    corpora : dict of str to float
        Share in [0, 1] of the records of a corpus (a record's ``corpus``) that an epoch draws; 1 where not named. A
        corpus
        with share 0 takes no part in the phase's validation either.
    draw_votes : bool
        The emotion to learn is drawn anew for every epoch from the listeners' votes (``soft_labels``) of records that
        have
        them: over the epochs the expected loss is the cross-entropy against the votes.

    Raises
    ------
    ValueError
        If a value is not allowed.

    Example
    -------
    >>> Phase("asr", ("front_end.content",), {"asr": 1.0}, epochs=2, lr=1e-3).batch_size
    16
    """

    name: str
    train: tuple[str, ...]
    tasks: dict[str, float]
    epochs: int
    lr: float
    batch_size: int = 16
    warmup: float = 0.1
    decay: str = "linear"
    final_lr_share: float = 0.0
    weight_decay: float = 0.01
    beta: dict[str, float] = field(default_factory=lambda: {"start": 0.0, "end": 0.0})
    slot_sources: dict[str, dict[str, float]] = field(default_factory=dict)
    slot_sources_by_task: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    step_by_task: bool = False
    train_by_task: dict[str, tuple[str, ...]] = field(default_factory=dict)
    keep_optimizer: bool = False
    records_per_epoch: int | None = None
    corpora: dict[str, float] = field(default_factory=dict)
    draw_votes: bool = False

    def __post_init__(self):
        def fail(name, value, allowed):
            raise ValueError(f"phase {self.name!r}: {name} is {value!r}; allowed: {allowed}")

        if not self.tasks or any(w <= 0 for w in self.tasks.values()):
            fail("tasks", self.tasks, "at least one task, each with a positive share")
        if self.epochs < 1:
            fail("epochs", self.epochs, "1 and above")
        if self.batch_size < 1:
            fail("batch_size", self.batch_size, "1 and above")
        if self.decay not in DECAYS:
            fail("decay", self.decay, ", ".join(DECAYS))
        if set(self.beta) != {"start", "end"} or any(b < 0 for b in self.beta.values()):
            fail("beta", self.beta, "{start: x, end: y} with x, y at least 0")
        if (self.beta["start"] == 0) != (self.beta["end"] == 0):
            fail("beta", self.beta, "both 0 or both positive: annealing is log-linear")
        if self.train_by_task and (not self.step_by_task or set(self.train_by_task) != set(self.tasks)):
            fail(
                "train_by_task", self.train_by_task, "with step_by_task: true, an entry for each of the tasks"
            )
        unknown = set(self.slot_sources_by_task) - set(self.tasks)
        if unknown:
            fail("slot_sources_by_task", sorted(unknown), f"tasks of the phase: {', '.join(self.tasks)}")
        policies = [("slot_sources", self.slot_sources)]
        policies += [(f"slot_sources_by_task[{t}]", p) for t, p in self.slot_sources_by_task.items()]
        for where, policy in policies:
            for kind, sources in policy.items():
                if set(sources) - set(SLOT_SOURCES) or abs(sum(sources.values()) - 1) > 1e-6:
                    fail(
                        f"{where}[{kind}]",
                        sources,
                        f"probabilities of {', '.join(SLOT_SOURCES)} that sum to 1",
                    )
        if any(not 0 <= share <= 1 for share in self.corpora.values()):
            fail("corpora", self.corpora, "a share in [0, 1] for each corpus")

    @property
    def groups(self):
        """All groups that train in some step, sorted."""
        return sorted({*self.train, *(g for names in self.train_by_task.values() for g in names)})

    @classmethod
    def from_mapping(cls, mapping: Mapping):
        """A phase from a YAML mapping; unknown keys raise a TypeError."""
        values = dict(mapping)
        if "train" not in values:
            raise ValueError(f"phase {values.get('name')!r} has no key 'train': name the groups that train")
        values["train"] = tuple(values["train"])
        tasks = values.get("tasks")
        values["tasks"] = dict(tasks) if isinstance(tasks, Mapping) else {t: 1.0 for t in tasks or ()}
        if isinstance(values.get("beta"), (int, float)):
            values["beta"] = {"start": float(values["beta"]), "end": float(values["beta"])}
        return cls(**values)

    def lr_at(self, step, num_steps):
        """Learning rate of a step.

        Arguments
        ---------
        step : int
            Step inside the phase, from 0.
        num_steps : int
            Steps of the phase.

        Returns
        -------
        float

        Example
        -------
        >>> phase = Phase("p", (), {"t": 1.0}, epochs=1, lr=1.0, warmup=2, decay="linear")
        >>> [round(phase.lr_at(s, 6), 2) for s in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        warmup = int(self.warmup * num_steps) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
        if self.decay == "constant":
            share = 1.0
        elif self.decay == "linear":
            share = 1.0 - done
        else:
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        return self.lr * (self.final_lr_share + (1.0 - self.final_lr_share) * share)

    def beta_at(self, step, num_steps):
        """Weight of the KL term at a step, log-linear between start and end.

        Example
        -------
        >>> p = Phase("p", (), {"t": 1.0}, epochs=1, lr=1.0, beta={"start": 1.0, "end": 1e-4})
        >>> [round(p.beta_at(s, 5), 6) for s in (0, 2, 4)]
        [1.0, 0.01, 0.0001]
        """
        start, end = self.beta["start"], self.beta["end"]
        if start == end:
            return start
        done = min(step / max(num_steps - 1, 1), 1.0)
        return math.exp((1.0 - done) * math.log(start) + done * math.log(end))


@dataclass(frozen=True)
class EpochPosition:
    """Where a global epoch lies in the schedule.

    Arguments
    ---------
    phase : Phase
        What trains in it.
    cycle : int
        Pass over the list of phases, from 1.
    epoch : int
        Epoch inside the phase, from 1.
    key : str
        Name of this pass of the phase, ``<cycle>.<phase name>``; checkpoints carry it.
    first, last : bool
        Whether it is the phase's first or last epoch.

    Example
    -------
    >>> schedule = PhaseSchedule([{"name": "a", "train": [], "tasks": ["t"], "epochs": 2, "lr": 1.0}])
    >>> schedule.at(2).last
    True
    """

    phase: Phase
    cycle: int
    epoch: int
    key: str
    first: bool
    last: bool


class PhaseSchedule:
    """The phases of an experiment as one run over global epochs.

    One experiment is one ``Brain.fit``: calling it once a phase would recover, wrap and build optimisers
    again. The position is a pure function of the global epoch, so nothing but the epoch needs saving.

    Arguments
    ---------
    phases : list of mapping
        Keywords of :class:`Phase`.
    cycles : int
        How often the list is gone through.

    Raises
    ------
    ValueError
        If there is no phase or two have the same name.

    Example
    -------
    >>> p = {"train": [], "tasks": ["t"], "lr": 1.0}
    >>> schedule = PhaseSchedule([{"name": "a", "epochs": 2, **p}, {"name": "b", "epochs": 1, **p}], cycles=2)
    >>> [schedule.at(e).key for e in range(1, schedule.num_epochs + 1)]
    ['1.a', '1.a', '1.b', '2.a', '2.a', '2.b']
    """

    def __init__(self, phases, cycles=1):
        self.phases = [p if isinstance(p, Phase) else Phase.from_mapping(p) for p in phases]
        names = [p.name for p in self.phases]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"phases are named {names}; at least one phase, each name once")
        if cycles < 1:
            raise ValueError(f"cycles is {cycles}; allowed: 1 and above")
        self.cycles = cycles
        self._positions = []
        for cycle in range(1, cycles + 1):
            for phase in self.phases:
                for epoch in range(1, phase.epochs + 1):
                    self._positions.append(
                        EpochPosition(
                            phase, cycle, epoch, f"{cycle}.{phase.name}", epoch == 1, epoch == phase.epochs
                        )
                    )

    @property
    def num_epochs(self):
        """Global epochs of the experiment."""
        return len(self._positions)

    @property
    def keys(self):
        """Keys of the passes in order."""
        return list(dict.fromkeys(p.key for p in self._positions))

    @property
    def tasks(self):
        """Names of all tasks that some phase uses."""
        return sorted({t for p in self.phases for t in p.tasks})

    def at(self, epoch):
        """Position of a global epoch, counted from 1."""
        return self._positions[epoch - 1]

    def first_epoch(self, key):
        """Global epoch with which a pass starts."""
        return next(i for i, p in enumerate(self._positions, 1) if p.key == key)


def draw_slot_sources(phase, kinds, rng, task=None):
    """Draw where each kind of slot of an utterance gets its embeddings from.

    Equivalence replacement (arXiv 2508.08095, section on ERR) is such a draw with 1/3 each.

    Arguments
    ---------
    phase : Phase
        With ``slot_sources`` and ``slot_sources_by_task``.
    kinds : sequence of str
        Kinds of the task's slots.
    rng : random.Random
        Keyed by (seed, epoch, utterance).
    task : str, optional
        Name of the utterance's task.

    Returns
    -------
    dict of str to str

    Example
    -------
    >>> import random
    >>> p = Phase("p", (), {"t": 1.0}, epochs=1, lr=1.0, slot_sources={"content": {"text": 1.0}})
    >>> draw_slot_sources(p, ["content", "descriptor"], random.Random(0))
    {'content': 'text', 'descriptor': 'speech'}
    """
    drawn = {}
    policy = {**phase.slot_sources, **phase.slot_sources_by_task.get(task, {})}
    for kind in kinds:
        probabilities = policy.get(kind)
        if probabilities is None:
            drawn[kind] = "speech"
        else:
            names = [s for s in SLOT_SOURCES if probabilities.get(s, 0) > 0]
            drawn[kind] = rng.choices(names, [probabilities[s] for s in names])[0]
    return drawn
