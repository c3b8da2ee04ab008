"""From a manifest to micro-batches: SpeechBrain's data pipeline, the tasks, the packer and the feature cache."""

from dataclasses import replace

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from speechbrain_emo.brains.speech_language_model import AudioBatch, MicroBatch
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.batching import Item, StepPlan, StepPlanner
from speechbrain_emo.dataio.feature_cache import audio_segments
from speechbrain_emo.phases import draw_slot_sources
from speechbrain_emo.prompts.segments import Slot
from speechbrain_emo.prompts.tasks import keyed_random, keyed_seed

# oneDNN compiles a kernel for every new shape and keeps it: with arbitrary widths that doubled the time of small
# models' steps and grew the process by 15 MB a step.
POSITION_MULTIPLE = 16
FRAME_MULTIPLE = 25


def spoken_audios(example):
    """Numbers of a record's audios that an example's slots take speech from, ascending."""
    return sorted({slot.audio for slot in example.slots if slot.source == "speech"})


def renumber_audios(example):
    """An example whose slots count only the audios that are used.

    Arguments
    ---------
    example : Example
        Its slots count the audios of the record.

    Returns
    -------
    tuple
        The example, and the used audios as the record numbers them, ascending.

    Example
    -------
    >>> from speechbrain_emo.prompts import Example, Turn
    >>> turns = (Turn("user", (Slot("content", 3), Slot("content", 1, "text", "hi"))),)
    >>> example, used = renumber_audios(Example("u", "t", turns))
    >>> example.slots[0].audio, used
    (0, [3])
    """
    used = spoken_audios(example)
    number = {audio: i for i, audio in enumerate(used)}

    def moved(part):
        if isinstance(part, Slot) and part.source == "speech":
            return replace(part, audio=number[part.audio])
        return part

    turns = tuple(replace(t, parts=tuple(moved(p) for p in t.parts)) for t in example.turns)
    return replace(example, turns=turns), used


def source_counts(task, example):
    """Where an example's slots get their embeddings from, as one word for the log.

    Example
    -------
    >>> from speechbrain_emo.prompts import Example, Turn
    >>> turns = (Turn("user", (Slot("p", 0, "text", "low"), Slot("l"))), Turn("user", (Slot("p"), Slot("l", 1))))
    >>> source_counts("chat", Example("u", "chat", turns))
    'chat: l=speech,p=speech+text'
    """
    sources = {}
    for slot in example.slots:
        sources.setdefault(slot.kind, set()).add(slot.source)
    listed = ",".join(f"{kind}={'+'.join(sorted(found))}" for kind, found in sorted(sources.items()))
    return f"{task}: {listed}" if listed else ""


class SpeechRecords:
    """Records with their audio, read through SpeechBrain's ``DynamicItemDataset``.

    Arguments
    ---------
    records : dict of str to mapping
        A manifest (see ``docs/architecture.md``).
    sample_rate : int
        Hz, of the waveforms.
    cache : FeatureCache, optional
        Where features are read from; None to read waveforms.
    frames_of_samples : callable, optional
        Number of samples -> encoder frames; None for text-only records.
    max_duration : float, optional
        Longest audio in seconds; a longer one is an error that names the file.

    Example
    -------
    >>> records = SpeechRecords({"u": {"transcript": "hi", "duration": 0.0}}, 16000)
    >>> len(records), records[0]["id"]
    (1, 'u')
    """

    def __init__(self, records, sample_rate, cache=None, frames_of_samples=None, max_duration=None):
        self.sample_rate = sample_rate
        self.cache = cache
        self.frames_of_samples = frames_of_samples
        self.max_duration = max_duration
        self.records = [{**record, "id": key} for key, record in records.items()]
        self._data = DynamicItemDataset({key: {"record": {**r, "id": key}} for key, r in records.items()})

        @takes("record")
        @provides("audio")
        def audio(record):
            return [self.load(a) for a in audio_segments(record)]

        self._data.add_dynamic_item(audio)
        self._data.set_output_keys(["audio"])

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        """The record itself, without its audio."""
        return self.records[index]

    def load(self, audio):
        """Features (T, L, D) from the cache, or the waveform (samples,)."""
        if self.cache is not None:
            return self.cache.get(self.cache.key(audio))
        return load_audio(
            audio["wav"],
            self.sample_rate,
            audio.get("start"),
            audio.get("stop"),
            max_duration=self.max_duration,
        )

    def audio(self, index, numbers=None):
        """Audio of a record, all of it or the audios of these numbers: list of tensors, features or waveforms."""
        if numbers is None:
            return self._data[index]["audio"]
        segments = audio_segments(self[index])
        return [self.load(segments[n]) for n in numbers]

    def num_frames(self, index):
        """Encoder frames of each audio of a record, from its duration."""
        return [
            self.frames_of_samples(round(a["duration"] * self.sample_rate))
            for a in audio_segments(self[index])
        ]


class SpeechData(Dataset):
    """Turns step plans into micro-batches; picklable, without state that training changes.

    Arguments
    ---------
    records : SpeechRecords
        What to draw from.
    tasks : dict of str to InstructionTask
        Tasks by name.
    packer : Packer
        Lays out the prompts.
    positions_of_frames : callable, optional
        (slot kind, frames) -> slot positions (the front end's ``num_positions``); None for text only.
    seed : int
        Key of every random draw, with epoch and utterance id.
    phases : dict of str to Phase
        Phases by name, for their slot sources.

    Example
    -------
    >>> SpeechData.__mro__[1].__name__
    'Dataset'
    """

    def __init__(self, records, tasks, packer, positions_of_frames=None, seed=0, phases=None):
        self.records = records
        self.tasks = tasks
        self.packer = packer
        self.positions_of_frames = positions_of_frames
        self.seed = seed
        self.phases = phases or {}
        self._lengths = {}

    def slot_lengths(self, frames):
        """Slot positions of each audio, for every kind the packer knows."""
        kinds = self.packer.slot_kinds
        return [{k: self.positions_of_frames(k, f) for k in kinds} for f in frames]

    def positions(self, index, task):
        """Packed positions of a record under a task, with its first wording and speech in every slot."""
        key = (index, task)
        if key not in self._lengths:
            example = self.tasks[task].build(self.records[index], prompt_number=0)
            lengths = self.slot_lengths(self.records.num_frames(index)) if example.slots else ()
            self._lengths[key] = self.packer.encode(example, lengths).num_positions
        return self._lengths[key]

    def frames(self, index, task):
        """Encoder frames of the longest audio of a record, 0 for a task without slots."""
        if not self.tasks[task].slot_kinds or self.positions_of_frames is None:
            return 0
        key = (index, task, "frames")
        if key not in self._lengths:
            all_frames = self.records.num_frames(index)
            used = spoken_audios(self.tasks[task].build(self.records[index], prompt_number=0))
            frames = [all_frames[n] for n in used]
            self._lengths[key] = max(frames) * len(frames) if frames else 0
        return self._lengths[key]

    def planner(self, max_positions, max_frames, max_rows=10**9):
        """A planner over these records."""
        frames = self.frames if self.positions_of_frames else (lambda index, task: 0)
        positions = self.positions if self.positions_of_frames else self._text_positions
        return StepPlanner(positions, frames, max_positions, max_frames, max_rows)

    def _text_positions(self, index, task):
        key = (index, task)
        if key not in self._lengths:
            built = self.tasks[task].build(
                self.records[index],
                prompt_number=0,
                slot_sources=dict.fromkeys(self.packer.slot_kinds, "text"),
            )
            self._lengths[key] = self.packer.encode(built).num_positions
        return self._lengths[key]

    def draw_items(self, phase, key, epoch):
        """Records of an epoch and the task of each, drawn by (seed, phase, epoch, utterance).

        Arguments
        ---------
        phase : Phase
            With tasks and their shares.
        key : str
            Key of the phase.
        epoch : int
            Global epoch.

        Returns
        -------
        list of Item
        """
        names = sorted(phase.tasks)
        shares = [phase.tasks[n] for n in names]
        numbers = [n for n in range(len(self.records)) if self._drawn(phase, key, epoch, n)]
        if phase.records_per_epoch is not None and phase.records_per_epoch < len(numbers):
            keyed_random(self.seed, key, epoch, "subset").shuffle(numbers)
            numbers = sorted(numbers[: phase.records_per_epoch])
        items = []
        for number in numbers:
            rng = keyed_random(self.seed, key, epoch, self.records[number]["id"], "task")
            possible = [self._applies(number, n) for n in names]
            if any(possible):
                weights = [share if p else 0.0 for share, p in zip(shares, possible)]
                items.append(Item(number, rng.choices(names, weights)[0]))
        return items

    def _applies(self, number, task):
        """Whether a record has what a task's answer needs."""
        key = (number, task, "applies")
        if key not in self._lengths:
            self._lengths[key] = self.tasks[task].applies(self.records[number])
        return self._lengths[key]

    def _drawn(self, phase, key, epoch, number):
        """Whether an epoch draws a record, by the share of its corpus."""
        share = phase.corpora.get(self.records[number].get("corpus"), 1.0)
        if share >= 1.0:
            return True
        return keyed_random(self.seed, key, epoch, self.records[number]["id"], "corpus").random() < share

    def all_items(self, tasks, corpora=None):
        """Every record under every one of the tasks that it has an answer for (validation).

        Arguments
        ---------
        tasks : sequence of str
            Names of tasks.
        corpora : dict of str to float, optional
            Shares of corpora, as of a phase: records of a corpus with share 0 take no part, so that a phase that does
            not
            train on a corpus is not judged by it either.

        Returns
        -------
        list of Item
        """
        shares = corpora or {}
        numbers = [
            i for i in range(len(self.records)) if shares.get(self.records[i].get("corpus"), 1.0) > 0.0
        ]
        return [Item(i, t) for t in tasks for i in numbers if self._applies(i, t)]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, plan: StepPlan):
        """The micro-batches of a step: list of MicroBatch."""
        return [self.micro_batch(items, plan.epoch, plan.phase) for items in plan.micro_batches]

    def micro_batch(self, items, epoch, phase_key):
        """Build one micro-batch.

        Arguments
        ---------
        items : sequence of Item
            Its rows.
        epoch : int
            Global epoch; 0 in evaluation, where the wording is chosen by a hash and every slot takes its
            phase's first source or speech.
        phase_key : str or None
            Key of the phase.

        Returns
        -------
        MicroBatch
        """
        phase = self.phases.get(phase_key.split(".", 1)[1]) if phase_key else None
        rows, offsets, audios, seeds, kinds, sources = [], [], [], [], set(), []
        for item in items:
            record, task = self.records[item.record], self.tasks[item.task]
            if epoch and phase is not None and phase.draw_votes and record.get("soft_labels"):
                votes = sorted(record["soft_labels"].items())
                draw = keyed_random(self.seed, phase_key, epoch, record["id"], "votes")
                (emotion,) = draw.choices([label for label, _ in votes], [share for _, share in votes])
                record = {**record, "emotion": emotion}
            rng = keyed_random(self.seed, phase_key, epoch, record["id"], "prompt") if epoch else None
            drawn = {}
            if phase is not None:
                source_rng = keyed_random(self.seed, phase_key, epoch, record["id"], "sources")
                drawn = draw_slot_sources(phase, task.slot_kinds, source_rng, item.task)
            example = task.build(record, rng, drawn)
            sources.append(source_counts(item.task, example))
            example, used = renumber_audios(example)
            speech = {s.kind for s in example.slots if s.source == "speech"}
            offsets.append(len(audios))
            lengths = ()
            if speech:
                kinds |= speech
                loaded = self.records.audio(item.record, used)
                lengths = self.slot_lengths([self._frames(x) for x in loaded])
                for number, x in zip(used, loaded):
                    audios.append(x)
                    seeds.append(keyed_seed(self.seed, epoch, record["id"], number, "noise"))
            rows.append(self.packer.encode(example, lengths))
        packed = self.packer.collate(rows, "right", offsets, POSITION_MULTIPLE)
        audio = self.collate_audio(audios, seeds) if audios else None
        return MicroBatch(
            packed,
            audio,
            tuple(k for k in self.packer.slot_kinds if k in kinds),
            sum(self._frames(x) for x in audios),
            tuple(i.task for i in items),
            tuple(sources),
        )

    def _frames(self, x):
        return x.shape[0] if x.dim() == 3 else self.records.frames_of_samples(len(x))

    def collate_audio(self, audios, seeds=()):
        """Pad features (T, L, D) or waveforms (samples,) to an AudioBatch."""
        lengths = torch.tensor([len(x) for x in audios])
        padded = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True)
        name = "features" if audios[0].dim() == 3 else "waveforms"
        if name == "features":
            padded = F.pad(padded, (0, 0, 0, 0, 0, -padded.shape[1] % FRAME_MULTIPLE))
        return AudioBatch(lengths, **{name: padded}, noise_seeds=tuple(seeds))


class StepSampler:
    """Yields the plans of an epoch; the brain sets them before each epoch.

    Example
    -------
    >>> sampler = StepSampler(); sampler.plans = ["a", "b"]
    >>> list(sampler)
    ['a', 'b']
    """

    def __init__(self):
        self.plans = []
        self.start = 0

    def __iter__(self):
        return iter(self.plans[self.start :])

    def __len__(self):
        return len(self.plans)


def step_loader(data, sampler, num_workers=0):
    """A loader whose batch is one optimiser step.

    Arguments
    ---------
    data : SpeechData
        Builds the micro-batches of a plan.
    sampler : StepSampler
        Says which plans.
    num_workers : int
        Worker processes; the result does not depend on it.

    Returns
    -------
    torch.utils.data.DataLoader
    """
    # A generator of its own: an iterator draws a number when it starts, and from the global generator that would
    # shift the dropout of a run that goes on in the middle of an epoch.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=num_workers, generator=generator)


class _Calls(Dataset):
    """What a function says about each of some keys."""

    def __init__(self, load, keys):
        self.load = load
        self.keys = keys

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return self.load(self.keys[index])


def _as_it_is(item):
    return item


def read_ahead(load, keys, num_workers=0):
    """What ``load`` says about each key, in their order, read by other processes while the model is busy.

    Arguments
    ---------
    load : callable
        Key -> what a worker can send: tensors, or lists and tuples of them.
    keys : sequence
        What is wanted.
    num_workers : int
        Processes that read; 0: this one reads. The result does not depend on it.

    Returns
    -------
    iterator

    Example
    -------
    >>> list(read_ahead(len, ["ab", "c"]))
    [2, 1]
    """
    # As in step_loader: a generator of its own.
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        _Calls(load, keys),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        generator=generator,
    )
    return iter(loader)
