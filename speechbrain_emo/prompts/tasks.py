"""Tasks: from a record of a manifest to a prompt with slots and an answer.

The answer is a list of lines ``name: value`` in a fixed order (transcript, descriptors, emotion label: VIB-SER,
arXiv 2505.23236). :class:`AnswerFormat` writes and reads it; :class:`InstructionTask` adds an instruction,
drawn from several wordings, and the slots that speech fills.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence

from .segments import AnswerField, Example, Slot, Turn

TRANSCRIPT = "transcript"
HEARD = "heard"  # of a record without audio: text in place of its speech that is not simply the transcript
EMOTION = "emotion"
_MARKER = re.compile(r"\{(\w+)\}")


def keyed_random(*key):
    """Random generator that depends on the key only, not on batch, worker or rank.

    Arguments
    ---------
    *key : object
        For example (seed, epoch, utterance id).

    Returns
    -------
    random.Random

    Example
    -------
    >>> keyed_random(1, 2, "u").random() == keyed_random(1, 2, "u").random()
    True
    """
    return random.Random(keyed_seed(*key))


def keyed_seed(*key):
    """Integer in [0, 2**63) that depends on the key only.

    Example
    -------
    >>> keyed_seed("a") == keyed_seed("a"), keyed_seed("a") == keyed_seed("b")
    (True, False)
    """
    digest = hashlib.sha256("\x1f".join(str(k) for k in key).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class AnswerFormat:
    """Writes a record's transcript, descriptors and emotion as lines, and reads such lines back.

    Arguments
    ---------
    fields : mapping of str to (list of str or str)
        Every field in the order of the answer. A list gives the allowed values; ``text`` is free text;
        ``words`` is a list of words, written with commas, ``none`` when empty.
    weights : mapping of str to float, optional
        Loss weight of the value tokens of a field; 1 where a field is not named.

    Raises
    ------
    ValueError
        If a field's type is unknown or a weight names no field.

    Example
    -------
    >>> f = AnswerFormat({"transcript": "text", "pitch": ["low", "high"], "emotion": ["sad", "happy"]})
    >>> record = {"id": "u", "transcript": "good day", "descriptors": {"pitch": "low"}, "emotion": "sad"}
    >>> print(f.text(f.fields_of(record)))
    transcript: good day
    pitch: low
    emotion: sad
    >>> f.parse("transcript: good day\\npitch: lo")
    {'transcript': 'good day', 'pitch': None, 'emotion': None}
    """

    def __init__(self, fields: Mapping, weights: Mapping = None):
        self.spec = {}
        for name, kind in fields.items():
            if kind not in ("text", "words") and isinstance(kind, str):
                raise ValueError(
                    f"answer field {name!r} has type {kind!r}; allowed: text, words, or a list of values"
                )
            self.spec[name] = kind if isinstance(kind, str) else tuple(str(v) for v in kind)
        self.weights = dict(weights or {})
        unknown = set(self.weights) - set(self.spec)
        if unknown:
            raise ValueError(
                f"weights name unknown answer fields {sorted(unknown)}; known: {list(self.spec)}"
            )

    @property
    def names(self):
        """Names of the fields in order."""
        return tuple(self.spec)

    @property
    def labels(self):
        """The allowed emotion labels."""
        return self.spec[EMOTION]

    @property
    def descriptor_names(self):
        """Names of the fields between transcript and emotion."""
        return tuple(n for n in self.spec if n not in (TRANSCRIPT, EMOTION))

    def value_of(self, record, name):
        """A field's value in a record as text, or None where the record does not have it.

        Raises
        ------
        ValueError
            If the value is not one of the field's allowed values.
        """
        raw = record.get(name) if name in (TRANSCRIPT, EMOTION) else record.get("descriptors", {}).get(name)
        if raw is None:
            return None
        kind = self.spec[name]
        if kind == "words":
            return ", ".join(raw) if raw else "none"
        value = " ".join(str(raw).split())
        if isinstance(kind, tuple) and value not in kind:
            raise ValueError(
                f"record {record.get('id')!r}: {name} is {value!r}; allowed: {', '.join(kind)} "
                "(answer format in the YAML)"
            )
        return value

    def fields_of(self, record, names: Sequence[str] = None):
        """The answer's fields for a record; fields that the record does not have are left out.

        Arguments
        ---------
        record : mapping
            A record of a manifest.
        names : sequence of str, optional
            Which fields; their order is that of the format. Default: all.

        Returns
        -------
        tuple of AnswerField
        """
        values = {n: self.value_of(record, n) for n in (names or self.names)}
        return self.fields_from({n: v for n, v in values.items() if v is not None})

    def fields_from(self, values: Mapping[str, str]):
        """Answer fields from values that are text already, in the order of the format."""
        out = []
        for name in self.names:
            if name in values:
                out.append(
                    AnswerField(
                        name, self.header(name, not out), " " + values[name], self.weights.get(name, 1.0)
                    )
                )
        return tuple(out)

    def python_value(self, name, value):
        """A value as manifests hold it: a list of words for a field of words, else the text.

        Example
        -------
        >>> AnswerFormat({"emphasis": "words"}).python_value("emphasis", "dog, runs")
        ['dog', 'runs']
        """
        if value is None or self.spec[name] != "words":
            return value
        return [] if value == "none" else [w.strip() for w in value.split(",") if w.strip()]

    def header(self, name, first):
        """What stands before a value."""
        return f"{name}:" if first else f"\n{name}:"

    def label_prefix(self, values: Mapping[str, str]):
        """Fields up to and with the emotion's header, with an empty value: what a label is scored after."""
        before = self.fields_from({n: v for n, v in values.items() if n != EMOTION and v is not None})
        return before + (AnswerField(EMOTION, self.header(EMOTION, not before), ""),)

    @staticmethod
    def text(fields):
        """The fields as the model writes them."""
        return "".join(f.header + f.value for f in fields)

    def parse(self, text):
        """Read an answer.

        Arguments
        ---------
        text : str
            What a model wrote.

        Returns
        -------
        dict of str to (str or None)
            Every field; None where it is missing or its value is not an allowed one.
        """
        values = dict.fromkeys(self.names)
        for line in text.split("\n"):
            name, colon, value = line.partition(":")
            name, value = name.strip(), value.strip()
            if not colon or name not in self.spec or values[name] is not None:
                continue
            kind = self.spec[name]
            if kind in ("text", "words") or value in kind:
                values[name] = value
        return values


class InstructionTask:
    """An instruction over one recording, answered with some fields of the answer format.

    Arguments
    ---------
    name : str
        Name of the task.
    prompts : sequence of str
        Wordings of the user's turn. ``{kind}`` stands for a slot, for example ``{content}``; the text
        between is kept as it is.
    answer : sequence of str
        Names of the answer's fields.
    format : AnswerFormat
        How fields are written.
    system : str, optional
        A system turn before the user's.
    captions : sequence of str, optional
        Templates for the text that can stand in for a slot other than ``content``; ``{pitch}`` and so on are
        the record's fields. Used where a phase draws the source ``text``.

    Raises
    ------
    ValueError
        If there is no prompt or the answer names an unknown field.

    Example
    -------
    >>> fmt = AnswerFormat({"transcript": "text", "emotion": ["sad", "happy"]})
    >>> task = InstructionTask("ser", ["{content} How does it sound?"], ["emotion"], fmt)
    >>> example = task.build({"id": "u", "emotion": "sad"})
    >>> example.slots[0].kind, example.answer[0].value
    ('content', ' sad')
    """

    def __init__(self, name, prompts, answer, format, system=None, captions=()):
        if not prompts:
            raise ValueError(f"task {name!r} has no prompt: give at least one")
        unknown = [n for n in answer if n not in format.names]
        if unknown:
            raise ValueError(
                f"task {name!r} answers with unknown fields {unknown}; known: {list(format.names)}"
            )
        self.name = name
        self.prompts = list(prompts)
        self.answer = tuple(answer)
        self.format = format
        self.system = system
        self.captions = list(captions)
        self.slot_kinds = tuple(sorted({k for p in self.prompts for k in _MARKER.findall(p)}))

    def prompt_number(self, record, rng=None):
        """Which wording: drawn from ``rng`` in training, by a hash of utterance and task otherwise."""
        if rng is not None:
            return rng.randrange(len(self.prompts))
        return keyed_seed("prompt", record["id"], self.name) % len(self.prompts)

    def build(self, record, rng=None, slot_sources: Mapping[str, str] = None, prompt_number=None):
        """Arrange a record.

        Arguments
        ---------
        record : mapping
            A record with its ``id``.
        rng : random.Random, optional
            Draws the wording (and the caption's) in training.
        slot_sources : mapping of str to str, optional
            ``speech``, ``text`` or ``nothing`` for a kind of slot; ``speech`` where not named.
        prompt_number : int, optional
            A wording by its number.

        Returns
        -------
        Example
        """
        number = self.prompt_number(record, rng) if prompt_number is None else prompt_number
        parts, template, end = [], self.prompts[number], 0
        for marker in _MARKER.finditer(template):
            if marker.start() > end:
                parts.append(template[end : marker.start()])
            kind = marker.group(1)
            source = (slot_sources or {}).get(kind, "speech")
            text = self.slot_text(record, kind, rng) if source == "text" else ""
            parts.append(Slot(kind, 0, source, text))
            end = marker.end()
        if end < len(template):
            parts.append(template[end:])
        turns = (Turn("user", tuple(parts)),)
        if self.system:
            turns = (Turn("system", (self.system,)),) + turns
        return Example(record["id"], self.name, turns, self.format.fields_of(record, self.answer))

    def slot_text(self, record, kind, rng=None):
        """The text that stands in for a slot: for ``content`` what the record says was ``heard``, or its transcript;
        else a caption of the style.

        Raises
        ------
        ValueError
            If the record has no transcript, or the task has no captions.
        """
        if kind == "content":
            if record.get(TRANSCRIPT) is None:
                raise ValueError(
                    f"record {record['id']!r} has no transcript to stand in for its content slot"
                )
            return " " + (record.get(HEARD) or record[TRANSCRIPT])
        if not self.captions:
            raise ValueError(f"task {self.name!r} has no captions to stand in for its slot {kind!r}")
        template = self.captions[rng.randrange(len(self.captions)) if rng else 0]
        values = {n: self.format.value_of(record, n) or "unknown" for n in self.format.names}
        return " " + template.format(**values)
