"""Dialogues in a manifest: turns by two speakers, the last of which a model answers.

A dialogue is a record with ``turns`` beside the keys of every record::

    turns     list of {role, speaker, text, audio, gender, emotion, descriptors}: the conversation up to and with the
              turn to be answered, which is the last one and the user's; ``audio`` is an index into ``audios``, or null
              where the turn is text only
    response  {text, speaker, emotion, descriptors} that the corpus has for the answer, or null
    target    what the frozen language model answered to the styled transcript (``align`` writes it), or absent
    dialogue  name of the conversation; records cut from one conversation share it
    audios    recordings of the turns, in their order

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


def make_turn(role, text, audio=None, speaker=None, gender=None, emotion=None, descriptors=None):
    """One turn as manifests hold it.

    Arguments
    ---------
    role : str
        ``user`` or ``assistant``.
    text : str
        What is said.
    audio : int, optional
        Index into the record's ``audios``.
    speaker, gender, emotion : str, optional
        As in a record.
    descriptors : dict, optional
        Field -> value.

    Returns
    -------
    dict

    Example
    -------
    >>> make_turn("user", "Good day.", 0, "A")["audio"]
    0
    """
    return {
        "role": role,
        "speaker": speaker,
        "text": text,
        "audio": audio,
        "gender": gender,
        "emotion": emotion,
        "descriptors": dict(descriptors or {}),
    }


def dialogue_record(turns, audios, response=None, dialogue=None, **extra):
    """A record over turns: roles from the response's side, only the audios that the turns use.

    The speaker of the last turn is the user; whoever else speaks is the assistant.

    Arguments
    ---------
    turns : sequence of dict
        As :func:`make_turn` makes them; their roles are set here.
    audios : sequence of dict
        ``{wav, duration}``, with ``start`` and ``stop`` where they are segments.
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
    >>> turns = [make_turn("user", "Hi.", 0, "A"), make_turn("user", "Hello.", 1, "B")]
    >>> record = dialogue_record(turns, [{"wav": "a.wav", "duration": 1.0}, {"wav": "b.wav", "duration": 2.0}])
    >>> [t["role"] for t in record["turns"]], record["transcript"], record["duration"]
    (['assistant', 'user'], 'Hello.', 3.0)
    """
    turns = [copy.deepcopy(dict(turn)) for turn in turns]
    last = turns[-1]
    used = sorted({turn["audio"] for turn in turns if turn["audio"] is not None})
    place = {old: new for new, old in enumerate(used)}
    for turn in turns:
        turn["role"] = "user" if turn["speaker"] == last["speaker"] else "assistant"
        turn["audio"] = None if turn["audio"] is None else place[turn["audio"]]
    kept = [dict(audios[i]) for i in used]
    record = {
        "audios": kept,
        "duration": round(sum(a["duration"] for a in kept), 6),
        **{key: copy.deepcopy(last[key]) for key in _OF_TURN},
        "transcript": last["text"],
        "turns": turns,
        "response": None if response is None else {k: v for k, v in response.items() if k not in ("role", "audio")},
        "dialogue": dialogue,
        **extra,
    }
    return record


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
        If a turn has an unknown role, no text, or an audio that the record lacks, or the last turn is not the user's.

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
            raise DialogueError(f"{where} has neither text nor audio")
    if turns[-1]["role"] != "user":
        raise DialogueError(f"{name}: the last turn is the assistant's: there is nothing to answer")


def reverse_roles(record):
    """The other half of a doubled evaluation: the reply is spoken by the user, and the assistant answers it.

    StyleTalk's evaluation is doubled by swapping user and assistant (arXiv 2508.08095). No source says how; here
    what was the response becomes the user's last turn with its own style, so that what is answered is still speech. The
    corpus has no reply to it: ``response`` is null, which judges do not need.

    Arguments
    ---------
    record : dict
        A dialogue whose ``response`` has an ``audio`` (``{wav, duration}``).

    Returns
    -------
    dict

    Raises
    ------
    DialogueError
        If the response has no recording.

    Example
    -------
    >>> turn = make_turn("user", "Hi.", 0, "B")
    >>> response = {**make_turn("assistant", "Hello!", None, "A", emotion="cheerful"), "recording": {"wav": "r", "duration": 1.0}}
    >>> record = dialogue_record([turn], [{"wav": "c", "duration": 2.0}], response, "d")
    >>> swapped = reverse_roles(record)
    >>> [(t["role"], t["text"], t["audio"]) for t in swapped["turns"]], swapped["emotion"]
    ([('assistant', 'Hi.', 0), ('user', 'Hello!', 1)], 'cheerful')
    """
    response = record.get("response")
    if not response or not response.get("recording"):
        raise DialogueError(f"{record.get('dialogue')}: the response has no recording: roles cannot be swapped")
    audios = [*record["audios"], response["recording"]]
    turn = make_turn("user", response["text"], len(audios) - 1, **{k: response.get(k) for k in _OF_TURN})
    extra = {k: v for k, v in record.items() if k not in _MADE}
    return dialogue_record([*record["turns"], turn], audios, None, record.get("dialogue"), **extra)


_MADE = {"audios", "duration", "transcript", "turns", "response", "dialogue", "target", *_OF_TURN}


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
        With ``cut: [start, end]``.

    Raises
    ------
    DialogueError
        If there is no such turn.

    Example
    -------
    >>> turns = [make_turn("user", t, None, s) for t, s in (("1", "A"), ("2", "B"), ("3", "A"))]
    >>> cut = cut_dialogue(dialogue_record(turns, [], make_turn("assistant", "4", None, "B")), 1)
    >>> [t["text"] for t in cut["turns"]], cut["response"]["text"], [t["role"] for t in cut["turns"]]
    (['1', '2'], '3', ['assistant', 'user'])
    """
    turns = record["turns"]
    if not 0 <= start <= end < len(turns):
        raise DialogueError(
            f"{record.get('dialogue')}: cut from turn {start} to {end}; the dialogue has turns 0 to {len(turns) - 1}"
        )
    response = record.get("response")
    if end + 1 < len(turns):
        following = turns[end + 1]
        response = {k: v for k, v in following.items() if k not in ("role", "audio")}
        if following["audio"] is not None:
            response["recording"] = dict(record["audios"][following["audio"]])
    extra = {k: v for k, v in record.items() if k not in _MADE and k != "cut"}
    return dialogue_record(
        turns[start : end + 1], record["audios"], response, record.get("dialogue"), **extra, cut=[start, end]
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
    >>> possible_ends(dialogue_record(turns, []), need_audio=False)
    [1, 2]
    """
    turns = record["turns"]
    ends = []
    for number, turn in enumerate(turns):
        if need_audio and turn["audio"] is None:
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
        id -> dialogue; a cut is called ``<id>@<start>-<end>``. Cuts have no ``target``: it would be another one.

    Raises
    ------
    ValueError
        If ``sides`` is unknown.

    Example
    -------
    >>> turns = [make_turn("user", str(i), i, "AB"[i % 2]) for i in range(4)]
    >>> audios = [{"wav": f"{i}.wav", "duration": 1.0} for i in range(4)]
    >>> out = augment_by_cuts({"d": dialogue_record(turns, audios)}, num_cuts=2)
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
