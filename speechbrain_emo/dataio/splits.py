"""Which speakers and sentences train, validate and test.

Functions take records (id -> record, see ``docs/architecture.md``) and return ids, so that one corpus can be
split in several ways without copying its records. Nothing here depends on the order of the records.
"""

import logging
import random
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

RANDOM_SPLIT_WARNING = (
    "random split: speakers occur in training and test. Its numbers are not comparable with speaker-independent "
    "ones and are usually far higher; use leave_one_speaker_out or leave_one_session_out for results"
)


@dataclass(frozen=True)
class Split:
    """Ids of the three parts of one fold.

    Arguments
    ---------
    fold : str
        Name of the fold.
    train, valid, test : tuple of str
        Sorted ids.
    speaker_independent : bool or "test"
        Whether no speaker of one part occurs in another; ``"test"``: no test speaker does, while training and
        validation share theirs.
    warnings : tuple of str
        What a result file has to say about the split.

    Example
    -------
    >>> Split("03", ("b",), ("c",), ("a",)).parts()["test"]
    ('a',)
    """

    fold: str
    train: tuple
    valid: tuple
    test: tuple
    speaker_independent: bool | str = True
    warnings: tuple = field(default=())

    def parts(self):
        """Part name -> ids."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def select(self, records):
        """Part name -> (id -> record)."""
        return {name: {key: records[key] for key in ids} for name, ids in self.parts().items()}


def leave_one_speaker_out(records, fold, num_valid_speakers=2, seed=0, valid_share=0.0):
    """Test on one speaker, validate on some of the others, train on the rest.

    Arguments
    ---------
    records : dict
        id -> record with ``speaker`` and ``gender``.
    fold : str
        The test speaker.
    num_valid_speakers : int
        Speakers taken from the others for validation; 0 gives an empty validation part.
    seed : int
        Which validation speakers are drawn (see :func:`choose_valid_speakers`).
    valid_share : float
        With ``num_valid_speakers=0``: this share of the utterances of every remaining speaker validates, the rest
        trains. Where speakers are few, all of them are worth more in training than one is as a judge; such a
        part can fit a temperature, but tells nothing about unseen voices.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If the speaker does not exist or too few speakers are left to train on.

    Example
    -------
    >>> records = {f"{s}{i}": {"speaker": s, "gender": None} for s in "abcd" for i in range(2)}
    >>> split = leave_one_speaker_out(records, "b", num_valid_speakers=1)
    >>> split.test, len(split.valid), len(split.train)
    (('b0', 'b1'), 2, 4)
    >>> split = leave_one_speaker_out(records, "b", num_valid_speakers=0, valid_share=0.5)
    >>> len(split.valid), len(split.train), split.speaker_independent
    (3, 3, 'test')
    """
    return _leave_group_out(records, fold, "speaker", num_valid_speakers, seed, valid_share)


def leave_one_session_out(records, fold, num_valid_speakers=2, seed=0):
    """Test on one session (``record["session"]``), validate on speakers of the other sessions.

    Arguments
    ---------
    records : dict
        id -> record with ``session``, ``speaker`` and ``gender``.
    fold : str
        The test session.
    num_valid_speakers : int
        Speakers taken from the training sessions for validation.
    seed : int
        Which validation speakers are drawn.

    Returns
    -------
    Split

    Example
    -------
    >>> records = {s: {"speaker": s, "session": s[0], "gender": None} for s in ("1F", "1M", "2F", "2M")}
    >>> leave_one_session_out(records, "2", num_valid_speakers=1).test
    ('2F', '2M')
    """
    return _leave_group_out(records, fold, "session", num_valid_speakers, seed)


def leave_one_speaker_and_sentence_out(
    records, fold, num_valid_speakers=2, seed=0, num_groups=2, valid_share=0.0
):
    """Test on sentences that no training speaker says, by a speaker who does not train.

    Leaving out one speaker AND one sentence at a time would need speakers x sentences trainings (100 for EmoDB),
    so sentences are drawn into ``num_groups`` groups. Fold ``speaker-g`` tests on the speaker's utterances of
    group g; it trains and validates on other speakers' utterances of the other groups. Over all folds
    each utterance is tested exactly once. The groups depend on (sentences, num_groups) only, never on the seed
    of a training, so that runs with different seeds can be compared.

    Arguments
    ---------
    records : dict
        id -> record with ``speaker``, ``gender`` and ``sentence``.
    fold : str
        ``speaker-group``, group from 0: see :func:`speaker_and_sentence_folds`.
    num_valid_speakers : int
        Speakers taken from the others for validation.
    seed : int
        Which validation speakers are drawn.
    num_groups : int
        Number of sentence groups, at least 2. 2 halves the training data; more groups leave more of it.
    valid_share : float
        As in :func:`leave_one_speaker_out`.

    Returns
    -------
    Split

    Example
    -------
    >>> records = {s + t: {"speaker": s, "sentence": t, "gender": None} for s in "abc" for t in "12"}
    >>> split = leave_one_speaker_and_sentence_out(records, "a-0", num_valid_speakers=1)
    >>> len(split.train), len(split.valid), len(split.test)
    (1, 1, 1)
    >>> {i[1] for i in split.train + split.valid} & {i[1] for i in split.test}
    set()
    """
    groups = sentence_groups({r["sentence"] for r in records.values()}, num_groups)
    folds = speaker_and_sentence_folds(records, num_groups)
    if fold not in folds:
        raise ValueError(f"fold {fold!r} is not one of {', '.join(folds)}")
    speaker, _, group = fold.rpartition("-")
    held_out = set(groups[int(group)])
    by_speaker = leave_one_speaker_out(records, speaker, num_valid_speakers, seed, valid_share)
    test = tuple(i for i in by_speaker.test if records[i]["sentence"] in held_out)
    train = tuple(i for i in by_speaker.train if records[i]["sentence"] not in held_out)
    valid = tuple(i for i in by_speaker.valid if records[i]["sentence"] not in held_out)
    return Split(fold, train, valid, test, by_speaker.speaker_independent)


def speaker_and_sentence_folds(records, num_groups=2):
    """Names of the folds of :func:`leave_one_speaker_and_sentence_out`.

    Arguments
    ---------
    records : dict
        id -> record with ``speaker``.
    num_groups : int
        Number of sentence groups.

    Returns
    -------
    list of str

    Example
    -------
    >>> speaker_and_sentence_folds({"x": {"speaker": "03"}})
    ['03-0', '03-1']
    """
    return [f"{s}-{g}" for s in sorted({r["speaker"] for r in records.values()}) for g in range(num_groups)]


def sentence_groups(sentences, num_groups=2):
    """Draw sentences into groups of equal size; the draw is fixed.

    Arguments
    ---------
    sentences : iterable of str
        Names of the sentences.
    num_groups : int
        Number of groups, between 2 and the number of sentences.

    Returns
    -------
    list of tuple of str

    Example
    -------
    >>> [len(g) for g in sentence_groups(["a01", "a02", "b01", "b02", "b03"])]
    [3, 2]
    """
    names = sorted(set(sentences))
    if not 2 <= num_groups <= len(names):
        raise ValueError(
            f"num_groups {num_groups} is not between 2 and the number of sentences, {len(names)}"
        )
    random.Random("sentence groups").shuffle(names)
    return [tuple(sorted(names[g::num_groups])) for g in range(num_groups)]


def speaker_folds(records, fold, num_folds=5, num_valid_speakers=2, seed=0):
    """Test on one of several groups of speakers; the groups are drawn once, by gender.

    The groups depend on the speakers and ``num_folds`` only, so that runs with different seeds can be compared. As many
    folds as speakers leave one speaker out. Where too few speakers are left to validate on, every tenth sentence of the
    training speakers validates, and a warning says so.

    Arguments
    ---------
    records : dict
        id -> record with ``speaker``, ``gender`` and, for the last resort, ``sentence`` or ``transcript``.
    fold : str or int
        ``1`` to ``num_folds``.
    num_folds : int
        Groups, at least 2 and at most the number of speakers.
    num_valid_speakers : int
        Speakers of the other groups that validate.
    seed : int
        Which validation speakers are drawn.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If the fold does not exist or there are fewer speakers than folds.

    Example
    -------
    >>> records = {f"{s}{i}": {"speaker": s, "gender": None, "sentence": i} for s in "abcdef" for i in range(2)}
    >>> split = speaker_folds(records, 1, num_folds=3, num_valid_speakers=1)
    >>> [len({i[0] for i in ids}) for ids in split.parts().values()]
    [3, 1, 2]
    """
    genders = {r["speaker"]: str(r.get("gender")) for r in records.values()}
    if not 2 <= num_folds <= len(genders):
        raise ValueError(f"num_folds is {num_folds}; allowed: 2 to the number of speakers, {len(genders)}")
    if str(fold) not in {str(n) for n in range(1, num_folds + 1)}:
        raise ValueError(f"fold is {fold!r}; allowed: 1 to {num_folds}")
    names = sorted(genders)
    random.Random("speaker folds").shuffle(names)
    names.sort(key=genders.get)
    test_speakers = set(names[int(fold) - 1 :: num_folds])
    rest = {i: r for i, r in records.items() if r["speaker"] not in test_speakers}
    test = tuple(sorted(set(records) - set(rest)))
    num_left = len({r["speaker"] for r in rest.values()})
    if 0 < num_valid_speakers < num_left:
        chosen = set(choose_valid_speakers(rest, num_valid_speakers, seed, key=str(fold)))
        valid = {i for i, r in rest.items() if r["speaker"] in chosen}
        return Split(str(fold), tuple(sorted(set(rest) - valid)), tuple(sorted(valid)), test)
    said = {i: str(r.get("sentence") or r.get("transcript") or i) for i, r in rest.items()}
    sentences = sorted(set(said.values()))
    random.Random(f"validation sentences/{seed}").shuffle(sentences)
    held_out = set(sentences[: max(len(sentences) // 10, 1)])
    valid = {i for i in rest if said[i] in held_out}
    warning = (
        f"{num_left} training speakers are too few to take {max(num_valid_speakers, 1)} for validation: the "
        f"validation part holds "
        "other sentences of the training speakers; the test speakers are new"
    )
    train = tuple(sorted(set(rest) - valid))
    return Split(str(fold), train, tuple(sorted(valid)), test, speaker_independent=False, warnings=(warning,))


def official_split(records, names=None):
    """The parts that a corpus says itself (``subset`` of its records).

    Arguments
    ---------
    records : dict
        id -> record; those without a ``subset`` are in no part.
    names : dict, optional
        Part -> values of ``subset``. Default: train, valid and test, each its own.

    Returns
    -------
    Split
        ``speaker_independent`` is what is the case; where it is not, a warning says so.

    Example
    -------
    >>> records = {"a": {"subset": "train", "speaker": "1"}, "b": {"subset": "test", "speaker": "1"}}
    >>> split = official_split(records)
    >>> split.train, split.test, split.speaker_independent
    (('a',), ('b',), False)
    """
    names = names or {part: (part,) for part in ("train", "valid", "test")}
    parts = {p: tuple(sorted(i for i, r in records.items() if r.get("subset") in names[p])) for p in names}
    speakers = [
        {records[i]["speaker"] for i in ids if not records[i].get("speaker_unknown")}
        for ids in parts.values()
    ]
    shared = set.union(*(a & b for n, a in enumerate(speakers) for b in speakers[n + 1 :]))
    unknown = any(r.get("speaker_unknown") for r in records.values())
    warnings = ()
    if shared:
        warnings = (
            f"{len(shared)} speakers are in more than one of the corpus's own parts: not speaker-independent",
        )
    elif unknown:
        warnings = ("speakers are not known: nobody can say whether the parts share some",)
    return Split(
        "official",
        parts["train"],
        parts["valid"],
        parts["test"],
        speaker_independent=not shared and not unknown,
        warnings=warnings,
    )


def hashed_split(records, valid_share=0.01, test_share=0.01, group="speaker"):
    """Parts by a hash of each group's name: the same for a corpus that grows or is read in part.

    Arguments
    ---------
    records : dict
        id -> record.
    valid_share, test_share : float
        Shares of the groups, in [0, 1), together below 1.
    group : str
        Key of the records whose values are kept together.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If the shares are not allowed.

    Example
    -------
    >>> records = {str(i): {"speaker": str(i // 2)} for i in range(200)}
    >>> parts = hashed_split(records, 0.2, 0.2).parts()
    >>> {int(i) // 2 for i in parts["train"]} & {int(i) // 2 for i in parts["test"]}, 20 < len(parts["test"]) < 60
    (set(), True)
    """
    if valid_share < 0 or test_share < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share {valid_share} and test_share {test_share} must be at least 0 and together below 1"
        )
    parts = {"train": [], "valid": [], "test": []}
    for key in sorted(records):
        place = random.Random(f"hashed split/{records[key][group]}").random()
        name = "test" if place < test_share else "valid" if place < test_share + valid_share else "train"
        parts[name].append(key)
    return Split("hashed", *(tuple(parts[name]) for name in ("train", "valid", "test")))


def best_split(records, fold="1", num_folds=5, num_valid_speakers=2, seed=0):
    """The strictest split that the records allow: the corpus's own, by speakers, or at random with a warning.

    Arguments
    ---------
    records : dict
        id -> record.
    fold, num_folds, num_valid_speakers, seed :
        As in :func:`speaker_folds`, where the records say no parts. ``num_folds`` is at most the number of speakers.

    Returns
    -------
    Split

    Example
    -------
    >>> records = {str(i): {"speaker": "unknown", "speaker_unknown": True} for i in range(10)}
    >>> best_split(records).fold
    'random'
    """
    if any(r.get("subset") for r in records.values()):
        return official_split(records)
    known = {r["speaker"] for r in records.values() if not r.get("speaker_unknown")}
    if len(known) < 2 or any(r.get("speaker_unknown") for r in records.values()):
        return random_split(records, 0.1, 0.2, seed)
    return speaker_folds(records, fold, min(num_folds, len(known)), num_valid_speakers, seed)


def random_split(records, valid_share=0.1, test_share=0.1, seed=0):
    """Split utterances at random, speakers mixed: for debugging only; logs and returns a warning.

    Arguments
    ---------
    records : dict
        id -> record.
    valid_share, test_share : float
        Shares of the utterances, in [0, 1), together below 1.
    seed : int
        Seed of the draw.

    Returns
    -------
    Split
        With ``speaker_independent=False`` and the warning in ``warnings``.

    Example
    -------
    >>> split = random_split({str(i): {"speaker": "s"} for i in range(10)}, 0.2, 0.2)
    >>> [len(ids) for ids in split.parts().values()], split.speaker_independent
    ([6, 2, 2], False)
    """
    if valid_share < 0 or test_share < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share {valid_share} and test_share {test_share} must be at least 0 and together below 1"
        )
    logger.warning(RANDOM_SPLIT_WARNING)
    ids = sorted(records)
    random.Random(f"random split/{seed}").shuffle(ids)
    num_test, num_valid = round(len(ids) * test_share), round(len(ids) * valid_share)
    test, valid, train = ids[:num_test], ids[num_test : num_test + num_valid], ids[num_test + num_valid :]
    return Split(
        "random",
        tuple(sorted(train)),
        tuple(sorted(valid)),
        tuple(sorted(test)),
        False,
        (RANDOM_SPLIT_WARNING,),
    )


def choose_valid_speakers(records, num_speakers, seed=0, key=""):
    """Draw validation speakers from the records of training, alternating over genders where that is possible.

    Arguments
    ---------
    records : dict
        Records that may train; the test speakers must not be among them.
    num_speakers : int
        How many to draw; at least one speaker is left to train on.
    seed : int
        Seed of the draw.
    key : str
        Further key of the draw, such as the fold's name.

    Returns
    -------
    list of str
        Sorted. Independent of the order of ``records``.

    Raises
    ------
    ValueError
        If no speaker would be left for training.

    Example
    -------
    >>> records = {s: {"speaker": s, "gender": g} for s, g in zip("abcd", ["female", "male"] * 2)}
    >>> sorted(records[s]["gender"] for s in choose_valid_speakers(records, 2, seed=7))
    ['female', 'male']
    """
    genders = {}
    for record in records.values():
        genders.setdefault(record["speaker"], record.get("gender"))
    if not 0 <= num_speakers < len(genders):
        raise ValueError(
            f"num_valid_speakers {num_speakers} leaves nobody to train on: there are {len(genders)} speakers "
            f"({', '.join(sorted(genders))}); use 0 to {len(genders) - 1}"
        )
    rng = random.Random(f"validation speakers/{key}/{seed}")
    queues = {}
    for speaker in sorted(genders):
        queues.setdefault(str(genders[speaker]), []).append(speaker)
    for gender in sorted(queues):
        rng.shuffle(queues[gender])
    order = sorted(queues)
    rng.shuffle(order)  # with an odd number, which gender gives one more is a draw too
    chosen = []
    while len(chosen) < num_speakers:
        for gender in order:
            if queues[gender] and len(chosen) < num_speakers:
                chosen.append(queues[gender].pop())
    return sorted(chosen)


def _leave_group_out(records, fold, group, num_valid_speakers, seed, valid_share=0.0):
    if not 0 <= valid_share < 1 or (valid_share and num_valid_speakers):
        raise ValueError(
            f"valid_share {valid_share} must be at least 0 and below 1, and 0 when speakers validate "
            f"(num_valid_speakers is {num_valid_speakers})"
        )
    groups = sorted({str(record[group]) for record in records.values()})
    if fold not in groups:
        raise ValueError(f"fold {fold!r} is not a {group} of the records: {', '.join(groups)}")
    test = sorted(i for i, r in records.items() if str(r[group]) == fold)
    test_speakers = {records[i]["speaker"] for i in test}
    rest = {i: r for i, r in records.items() if str(r[group]) != fold}
    leaked = sorted(test_speakers & {r["speaker"] for r in rest.values()})
    if leaked:
        raise ValueError(
            f"{group} {fold} does not hold out its speakers: {', '.join(leaked)} also occur elsewhere"
        )
    if valid_share:
        valid = _share_of_each_speaker(rest, valid_share, f"{fold}/{seed}")
        train = tuple(sorted(set(rest) - set(valid)))
        return Split(fold, train, valid, tuple(test), "test")
    chosen = set(choose_valid_speakers(rest, num_valid_speakers, seed, key=fold))
    valid = sorted(i for i, r in rest.items() if r["speaker"] in chosen)
    train = sorted(i for i, r in rest.items() if r["speaker"] not in chosen)
    return Split(fold, tuple(train), tuple(valid), tuple(test))


def _share_of_each_speaker(records, share, key):
    """Sorted ids of at least one utterance, and this share, of every speaker."""
    by_speaker = {}
    for i in sorted(records):
        by_speaker.setdefault(records[i]["speaker"], []).append(i)
    drawn = []
    for speaker, ids in by_speaker.items():
        drawn += random.Random(f"validation share/{key}/{speaker}").sample(
            ids, max(1, round(share * len(ids)))
        )
    return tuple(sorted(drawn))
