"""Dialogues in a manifest: turns by two speakers, the last of which a model answers.

A dialogue is a record with ``turns`` beside the keys of every record (``docs/architecture.md``)::

    turns     list of {role, speaker, text, audio, gender, emotion, descriptors}: the conversation up to and with
              the turn to be answered, which is the last one and the user's. ``audio`` is an index into ``audios``, or
              null. The assistant's turns are text for the model; where the corpus has them spoken, ``recording`` says
              where.
    audios    recordings of the user's spoken turns, in their order
    response  {text, speaker, emotion, descriptors, recording}: what the corpus's other speaker answers, or null
    target    text to learn: what the frozen language model answers to the styled transcript; the command ``align``
              writes it
    dialogue  name of the conversation; records cut from one conversation share it

``transcript``, ``emotion``, ``descriptors``, ``speaker`` and ``gender`` of the record are those of the last turn.
Everything here takes records and returns records: no audio is read.
"""

import copy
import hashlib
import random

ROLES = ("user", "assistant")
_OF_TURN = ("speaker", "gender", "emotion", "descriptors")


class DialogueError(ValueError):
    """A dialogue that cannot be used; the message names the record.

    Example
    -------
    >>> check_dialogue("d1", {"turns": []})
    Traceback (most recent call last):
    ...
    speechbrain_emo.dataio.dialogue.DialogueError: d1: 'turns' is empty: a dialogue has at least the turn to be answered
    """


def make_turn(role, text, recording=None, speaker=None, gender=None, emotion=None, descriptors=None):
    """One turn, before :func:`dialogue_record` puts its recording into its place.

    Arguments
    ---------
    role : str
        ``user`` or ``assistant``.
    text : str
        What is said.
    recording : dict, optional
        ``{wav, duration}``, with ``start`` and ``stop`` where it is a segment.
    speaker, gender, emotion : str, optional
        As in a record.
    descriptors : dict, optional
        Field -> value.

    Returns
    -------
    dict

    Example
    -------
    >>> make_turn("user", "Good day.", speaker="A")["text"]
    'Good day.'
    """
    return {
        "role": role,
        "speaker": speaker,
        "text": text,
        "audio": None,
        "gender": gender,
        "emotion": emotion,
        "descriptors": dict(descriptors or {}),
        "recording": recording,
    }


def dialogue_record(turns, response=None, dialogue=None, **extra):
    """A record over turns: roles from the last turn, the user's recordings as ``audios``.

    The speaker of the last turn is the user; whoever else speaks is the assistant.

    Arguments
    ---------
    turns : sequence of dict
        As :func:`make_turn` makes them; their roles are set here.
    response : dict, optional
        A turn of the other speaker.
    dialogue : str, optional
        Name of the conversation.
    **extra
        Further keys of the record.

    Returns
    -------
    dict

    Example
    -------
    >>> a, b = {"wav": "a.wav", "duration": 1.0}, {"wav": "b.wav", "duration": 2.0}
    >>> record = dialogue_record([make_turn("user", "Hi.", a, "A"), make_turn("user", "Hello.", b, "B")])
    >>> [(t["role"], t["audio"]) for t in record["turns"]], record["transcript"], record["audios"]
    ([('assistant', None), ('user', 0)], 'Hello.', [{'wav': 'b.wav', 'duration': 2.0}])
    """
    turns = [copy.deepcopy(dict(turn)) for turn in turns]
    last = turns[-1]
    audios = []
    for turn in turns:
        turn["role"] = "user" if turn["speaker"] == last["speaker"] else "assistant"
        recording = turn.pop("recording", None)
        turn["audio"] = None
        if recording is not None and turn["role"] == "user":
            turn["audio"] = len(audios)
            audios.append(recording)
        elif recording is not None:
            turn["recording"] = recording
    return {
        "audios": audios,
        "duration": round(sum(a["duration"] for a in audios), 6),
        **{key: copy.deepcopy(last[key]) for key in _OF_TURN},
        "transcript": last["text"],
        "turns": turns,
        "response": None
        if response is None
        else {k: v for k, v in response.items() if k not in ("role", "audio")},
        "dialogue": dialogue,
        **extra,
    }


def next_line_record(turns, response, dialogue=None, **extra):
    """A record about the line that comes next: the recordings of both speakers are its audios.

    The top of the record is about the last line of the history, as in every dialogue; ``response`` is the next line,
    whose emotion and intensity are what is to be predicted.

    Arguments
    ---------
    turns : sequence of dict
        What was said before, as :func:`make_turn` makes it.
    response : dict
        The next line, as :func:`make_turn` makes it.
    dialogue : str, optional
        Name of the conversation.
    **extra
        Further keys of the record.

    Returns
    -------
    dict

    Example
    -------
    >>> a, b = {"wav": "a.wav", "duration": 1.0}, {"wav": "b.wav", "duration": 2.0}
    >>> history = [make_turn("user", "Hi.", a, "A", emotion="sad"), make_turn("user", "Oh.", b, "B")]
    >>> record = next_line_record(history, make_turn("user", "Well.", None, "A", emotion="sad"))
    >>> [(t["role"], t["audio"]) for t in record["turns"]], record["response"]["emotion"], record["transcript"]
    ([('assistant', 0), ('user', 1)], 'sad', 'Oh.')
    """
    record = dialogue_record(turns, response, dialogue, **extra)
    audios = []
    for made, given in zip(record["turns"], turns, strict=True):
        made.pop("recording", None)
        made["audio"] = None
        if given.get("recording") is not None:
            made["audio"] = len(audios)
            audios.append(dict(given["recording"]))
    record["audios"] = audios
    # What is about one recording is about the last one.
    record["duration"] = audios[-1]["duration"] if audios else 0.0
    return record


def records_of_lines(turns, name, min_history=1, max_history=10, **extra):
    """A record for every line of a conversation that has a history.

    Arguments
    ---------
    turns : sequence of dict
        All lines, as :func:`make_turn` makes them.
    name : str
        Name of the conversation; the record of line i is called ``<name>_<i>``.
    min_history, max_history : int
        Fewest and most lines before it that are kept.
    **extra
        Further keys of the records.

    Returns
    -------
    dict

    Example
    -------
    >>> lines = [make_turn("user", str(i), None, "AB"[i % 2]) for i in range(4)]
    >>> {k: len(r["turns"]) for k, r in records_of_lines(lines, "d", max_history=2).items()}
    {'d_1': 1, 'd_2': 2, 'd_3': 2}
    """
    return {
        f"{name}_{i}": next_line_record(turns[max(i - max_history, 0) : i], turns[i], name, **extra)
        for i in range(min_history, len(turns))
    }


def open_turns(record):
    """The turns of a dialogue as :func:`make_turn` makes them, each with its recording.

    Arguments
    ---------
    record : dict
        A dialogue.

    Returns
    -------
    list of dict

    Example
    -------
    >>> record = dialogue_record([make_turn("user", "Hi.", {"wav": "a.wav", "duration": 1.0}, "A")])
    >>> open_turns(record)[0]["recording"]["wav"]
    'a.wav'
    """
    opened = []
    for turn in copy.deepcopy(record["turns"]):
        audio = turn.pop("audio", None)
        if audio is not None:
            turn["recording"] = dict(record["audios"][audio])
        opened.append({"recording": None, **turn, "audio": None})
    return opened


def check_dialogue(name, record):
    """Refuse a record whose turns and audios do not fit together.

    Arguments
    ---------
    name : str
        For the message.
    record : dict
        A record with ``turns``.

    Raises
    ------
    DialogueError
        If a turn has an unknown role, no words, or an audio that the record lacks, or the last turn is not the user's.

    Example
    -------
    >>> check_dialogue("d", {"turns": [make_turn("user", "Hi.")]})
    """
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise DialogueError(f"{name}: 'turns' is empty: a dialogue has at least the turn to be answered")
    audios = record.get("audios") or []
    for number, turn in enumerate(turns):
        where = f"{name}: turn {number}"
        if turn.get("role") not in ROLES:
            raise DialogueError(f"{where} has role {turn.get('role')!r}; allowed: {', '.join(ROLES)}")
        audio = turn.get("audio")
        if audio is not None and not (isinstance(audio, int) and 0 <= audio < len(audios)):
            raise DialogueError(f"{where} has audio {audio!r}, but the record has {len(audios)} audios")
        if audio is None and not str(turn.get("text") or "").strip():
            raise DialogueError(f"{where} has neither words nor audio")
    if turns[-1]["role"] != "user":
        raise DialogueError(f"{name}: the last turn is the assistant's: there is nothing to answer")


def reverse_roles(record):
    """The other half of a doubled evaluation: the response is spoken by the user, and the assistant answers it.

    StyleTalk's evaluation is doubled by swapping user and assistant (arXiv 2508.08095). No source says how; here
    what was the response becomes the user's last turn with its own style, so that what is answered is still speech. The
    corpus has no response to it: ``response`` is null, which judges do not need.

    Arguments
    ---------
    record : dict
        A dialogue whose ``response`` has a ``recording``.

    Returns
    -------
    dict

    Raises
    ------
    DialogueError
        If the response has no recording.

    Example
    -------
    >>> c, r = {"wav": "c", "duration": 2.0}, {"wav": "r", "duration": 1.0}
    >>> turn, response = make_turn("user", "Hi.", c, "B"), make_turn("user", "Hello!", r, "A", emotion="cheerful")
    >>> swapped = reverse_roles(dialogue_record([turn], response, "d"))
    >>> [(t["role"], t["text"], t["audio"]) for t in swapped["turns"]], swapped["emotion"]
    ([('assistant', 'Hi.', None), ('user', 'Hello!', 0)], 'cheerful')
    """
    response = record.get("response")
    if not response or not response.get("recording"):
        raise DialogueError(
            f"{record.get('dialogue')}: the response has no recording: roles cannot be swapped"
        )
    return dialogue_record(
        [*open_turns(record), dict(response)], None, record.get("dialogue"), **_extra(record)
    )


_MADE = {"audios", "duration", "turns", "response", "dialogue", "target", "cut", *_OF_TURN, "transcript"}


def _extra(record):
    return {k: copy.deepcopy(v) for k, v in record.items() if k not in _MADE}


def cut_dialogue(record, end, start=0):
    """A dialogue that ends earlier or starts later.

    Arguments
    ---------
    record : dict
        A dialogue.
    end : int
        Number of the turn to be answered, from 0; the turn after it is the response.
    start : int
        First turn that is kept.

    Returns
    -------
    dict
        With ``cut: [start, end]`` and without ``target``, which would be another one.

    Raises
    ------
    DialogueError
        If there is no such turn.

    Example
    -------
    >>> turns = [make_turn("user", t, None, s) for t, s in (("1", "A"), ("2", "B"), ("3", "A"))]
    >>> cut = cut_dialogue(dialogue_record(turns, make_turn("user", "4", None, "B")), 1)
    >>> [(t["role"], t["text"]) for t in cut["turns"]], cut["response"]["text"]
    ([('assistant', '1'), ('user', '2')], '3')
    """
    turns = open_turns(record)
    if not 0 <= start <= end < len(turns):
        raise DialogueError(
            f"{record.get('dialogue')}: cut from turn {start} to {end}; the dialogue has turns 0 to {len(turns) - 1}"
        )
    response = copy.deepcopy(record.get("response"))
    if end + 1 < len(turns):
        response = turns[end + 1]
    return dialogue_record(
        turns[start : end + 1], response, record.get("dialogue"), **_extra(record), cut=[start, end]
    )


def possible_ends(record, need_audio=True):
    """Turns at which a dialogue may end: another speaker answers, and there is speech where it is needed.

    Arguments
    ---------
    record : dict
        A dialogue.
    need_audio : bool
        The turn to be answered must have a recording.

    Returns
    -------
    list of int

    Example
    -------
    >>> turns = [make_turn("user", t, None, s) for t, s in (("1", "A"), ("2", "A"), ("3", "B"))]
    >>> possible_ends(dialogue_record(turns), need_audio=False)
    [1, 2]
    """
    turns = open_turns(record)
    ends = []
    for number, turn in enumerate(turns):
        if need_audio and turn["recording"] is None:
            continue
        if number + 1 == len(turns) or turns[number + 1]["speaker"] != turn["speaker"]:
            ends.append(number)
    return ends


def augment_by_cuts(records, num_cuts=1, seed=0, need_audio=True, keep_whole=True, sides="end"):
    """Cut dialogues at random midpoints, so that the length of the context varies (arXiv 2508.08095).

    A cut is drawn by (seed, id, number): it depends neither on the order nor on the other records.

    Arguments
    ---------
    records : dict
        id -> dialogue.
    num_cuts : int
        Different cuts of a dialogue, as far as it has that many.
    seed : int
        Of the draw.
    need_audio : bool
        As in :func:`possible_ends`.
    keep_whole : bool
        Whether the dialogue itself stays in the result.
    sides : str
        ``end``: the dialogue ends earlier. ``start``: its first turns are dropped (where only the last turn has audio,
        as in StyleTalk). ``both``: either is drawn.

    Returns
    -------
    dict
        id -> dialogue; a cut is called ``<id>@<start>-<end>``.

    Raises
    ------
    ValueError
        If ``sides`` is unknown.

    Example
    -------
    >>> turns = [make_turn("user", str(i), {"wav": f"{i}.wav", "duration": 1.0}, "AB"[i % 2]) for i in range(4)]
    >>> out = augment_by_cuts({"d": dialogue_record(turns)}, num_cuts=2)
    >>> len(out), all(len(out[k]["turns"]) < 4 for k in out if k != "d")
    (3, True)
    """
    if sides not in ("end", "start", "both"):
        raise ValueError(f"sides is {sides!r}; allowed: end, start, both")
    out = {}
    for name, record in records.items():
        if keep_whole:
            out[name] = copy.deepcopy(record)
        last = len(record["turns"]) - 1
        choices = []
        if sides in ("end", "both"):
            choices += [(0, end) for end in possible_ends(record, need_audio) if end < last]
        if sides in ("start", "both"):
            choices += [(start, last) for start in range(1, last + 1)]
        digest = hashlib.sha256(f"{seed}\x1fcut\x1f{name}".encode()).digest()
        random.Random(int.from_bytes(digest[:8], "big")).shuffle(choices)
        for start, end in sorted(choices[:num_cuts]):
            out[f"{name}@{start}-{end}"] = cut_dialogue(record, end, start)
    return out
