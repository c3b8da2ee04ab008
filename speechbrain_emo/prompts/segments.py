"""What a prompt is made of: text, slots that speech fills, and the answer.

Every front end of this toolkit names the kinds of slots it fills; every task arranges them. Nothing in
this file knows about tokens: see ``packer.py``.
"""

from dataclasses import dataclass

SLOT_SOURCES = ("speech", "text", "nothing")


@dataclass(frozen=True)
class Slot:
    """A place in a prompt that an audio of the record fills.

    Arguments
    ---------
    kind : str
        Name of the front end's output that goes here (``content``, ``descriptor``, ``emotion``, ...).
    audio : int
        Which audio of the record, counted from 0.
    source : str
        ``speech``: the front end's embeddings. ``text``: the token embeddings of ``text``, which keep the
        kind of the slot. ``nothing``: no position at all.
    text : str
        The text that stands in for the speech when ``source`` is ``text``.

    Raises
    ------
    ValueError
        If ``source`` is unknown or ``audio`` is negative.

    Example
    -------
    >>> Slot("content").source
    'speech'
    """

    kind: str
    audio: int = 0
    source: str = "speech"
    text: str = ""

    def __post_init__(self):
        if self.source not in SLOT_SOURCES:
            raise ValueError(
                f"slot {self.kind!r} has source {self.source!r}; allowed: {', '.join(SLOT_SOURCES)}"
            )
        if self.audio < 0:
            raise ValueError(f"slot {self.kind!r} has audio {self.audio}; allowed: 0 and above")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: a role of the chat template and parts that are text or slots.

    Example
    -------
    >>> Turn("user", ("Listen: ", Slot("content"))).role
    'user'
    """

    role: str
    parts: tuple[str | Slot, ...]


@dataclass(frozen=True)
class AnswerField:
    """One field of an answer, for example the transcript or the emotion.

    Header and value are tokenised apart, so that the value of a field has the same tokens in training, in
    generation and in label scoring.

    Arguments
    ---------
    name : str
        ``transcript``, ``descriptors``, ``emotion``, ...
    header : str
        What the model writes before the value, for example ``"emotion:"``.
    value : str
        The value, with its leading space where the format has one.
    weight : float
        Weight of the value's tokens in the loss. The header's tokens have weight 1.

    Example
    -------
    >>> AnswerField("emotion", "emotion:", " sad", weight=4.0).value
    ' sad'
    """

    name: str
    header: str
    value: str
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """A record arranged by a task: the conversation so far and the answer to learn or to give.

    Arguments
    ---------
    id : str
        The record's id.
    task : str
        Name of the task that made it.
    turns : tuple of Turn
        The conversation before the answer.
    answer : tuple of AnswerField
        Fields in the order in which the model writes them; empty when there is no target.

    Example
    -------
    >>> Example("u1", "asr", (Turn("user", ("Hi",)),), ()).task
    'asr'
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    answer: tuple[AnswerField, ...] = ()

    @property
    def slots(self):
        """All slots in the order of the conversation."""
        return tuple(p for t in self.turns for p in t.parts if isinstance(p, Slot))
