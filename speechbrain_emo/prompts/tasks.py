"""Tasks: from a record of a manifest to a prompt with slots and an answer.

The answer is a list of lines ``name: value`` in a fixed order (transcript, descriptors, emotion label: VIB-SER,
arXiv 2505.23236). :class:`AnswerFormat` writes and reads it; :class:`InstructionTask` adds an instruction,
drawn from several wordings, and the slots that speech fills. :class:`ChoiceTask` asks for one value out of a list
and gets a sentence; :class:`DialogueTask` answers the last turn of a dialogue (both: arXiv 2508.08095).
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence

from .segments import AnswerField, Example, Slot, Turn

TRANSCRIPT = "transcript"
EMOTION = "emotion"
# Slots whose words can stand in for them.
TRANSCRIPT_SLOTS = ("content", "linguistic")
CHOICES = "choices"
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
        # A dialogue's response is no field of a record, but its tokens may weigh too.
        unknown = set(self.weights) - set(self.spec) - {"response"}
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
        if raw is None and name == "gender":
            # Corpora that describe no voice still know who speaks.
            raw = record.get(name)
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

    A record of a dialogue has several audios; the instruction is about the last one.

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
        Templates for the text that can stand in for a slot other than ``content`` and ``linguistic``; ``{pitch}``
        and so on are the record's fields. Used where a phase draws the source ``text``; of the templates, those
        whose fields the record has.
    held_out : sequence of str, optional
        Wordings that training never sees; their numbers follow those of ``prompts``.
    draw_held_out : bool
        True: training draws them too. For a small language model that learns in text what a large one knows, before
        speech training in which they are held out.
    corpora : sequence of str, optional
        Corpora (a record's ``corpus``) that the task is for. Default: all.

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

    # Markers of a prompt that are no slots.
    other_markers = ()

    def __init__(
        self,
        name,
        prompts,
        answer,
        format,
        system=None,
        captions=(),
        held_out=(),
        draw_held_out=False,
        corpora=(),
    ):
        if not prompts:
            raise ValueError(f"task {name!r} has no prompt: give at least one")
        unknown = [n for n in answer if n not in format.names]
        if unknown:
            raise ValueError(
                f"task {name!r} answers with unknown fields {unknown}; known: {list(format.names)}"
            )
        self.name = name
        self.prompts = list(prompts)
        self.held_out = list(held_out)
        self.draw_held_out = bool(draw_held_out)
        self.answer = tuple(answer)
        self.corpora = list(corpora)
        self.format = format
        self.system = system
        self.captions = list(captions)
        kinds = {k for p in (*self.prompts, *self.held_out) for k in _MARKER.findall(p)}
        self.slot_kinds = tuple(sorted(kinds - set(self.other_markers)))

    def applies(self, record):
        """Whether a record is of the task's corpora and has at least one field of the answer."""
        return self._is_for(record) and bool(self.format.fields_of(record, self.answer))

    def _is_for(self, record):
        return not self.corpora or record.get("corpus") in self.corpora

    def prompt_number(self, record, rng=None):
        """Which wording: drawn from ``rng`` in training, by a hash of utterance and task otherwise."""
        if rng is not None:
            return rng.randrange(len(self.prompts) + self.draw_held_out * len(self.held_out))
        return keyed_seed("prompt", record["id"], self.name) % len(self.prompts)

    def wording(self, number):
        """A wording by its number; those of ``held_out`` follow those of ``prompts``."""
        return (*self.prompts, *self.held_out)[number]

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
        audio = max(len(record.get("audios") or ()) - 1, 0)
        parts = self.parts(self.wording(number), record, audio, rng, slot_sources)
        turns = (Turn("user", parts),)
        if self.system:
            turns = (Turn("system", (self.system,)),) + turns
        return Example(record["id"], self.name, turns, self.format.fields_of(record, self.answer))

    def parts(self, template, record, audio, rng=None, slot_sources=None, texts=None):
        """A wording as text and slots.

        Arguments
        ---------
        template : str
            With ``{kind}`` markers.
        record : mapping
            What stands in for a slot whose source is ``text`` is taken from it.
        audio : int
            Audio of the slots.
        rng : random.Random, optional
            Draws captions.
        slot_sources : mapping of str to str, optional
            Kind -> source.
        texts : mapping of str to str, optional
            What stands at markers that are no slots.

        Returns
        -------
        tuple of str and Slot
        """
        parts, end = [], 0
        for marker in _MARKER.finditer(template):
            if marker.start() > end:
                parts.append(template[end : marker.start()])
            kind = marker.group(1)
            end = marker.end()
            if kind in self.other_markers:
                parts.append(texts[kind])
                continue
            source = (slot_sources or {}).get(kind, "speech")
            text = self.slot_text(record, kind, rng) if source == "text" else ""
            parts.append(Slot(kind, audio, source, text))
        if end < len(template):
            parts.append(template[end:])
        return tuple(parts)

    def slot_text(self, record, kind, rng=None):
        """The text that stands in for a slot: the transcript, or a caption of the style.

        A record's own ``slot_texts`` (kind -> text) goes before both.

        Raises
        ------
        ValueError
            If the record has no transcript, or the task has no captions.
        """
        own = (record.get("slot_texts") or {}).get(kind)
        if own is not None:
            return own
        if kind in TRANSCRIPT_SLOTS:
            if record.get(TRANSCRIPT) is None:
                raise ValueError(f"record {record['id']!r} has no transcript to stand in for its {kind} slot")
            return " " + record[TRANSCRIPT]
        if not self.captions:
            raise ValueError(f"task {self.name!r} has no captions to stand in for its slot {kind!r}")
        return " " + self.caption(record, rng)

    def caption(self, record, rng=None):
        """One of the captions whose fields the record has; a list of the known fields where none fits.

        Without a random generator the first that fits.
        """
        values = {n: self.format.value_of(record, n) for n in self.format.names}
        known = {n: v for n, v in values.items() if v is not None}
        usable = [c for c in self.captions if set(_MARKER.findall(c)) <= set(known)]
        if not usable:
            return ", ".join(f"{n} {v}" for n, v in known.items() if n != TRANSCRIPT)
        return usable[rng.randrange(len(usable)) if rng else 0].format(**known)


class ChoiceTask(InstructionTask):
    """A question with a list of choices, answered with a sentence that holds the chosen one.

    The paralinguistic tasks of arXiv 2508.08095. The order of the list is drawn anew for every utterance and epoch,
    so that no position stands for a value.

    Arguments
    ---------
    name : str
        Name of the task.
    prompts : sequence of str
        Wordings with slots and ``{choices}``.
    field : str
        Field of the answer format; its allowed values are the choices.
    sentence : str
        The answer, with ``{value}`` once.
    format : AnswerFormat
        Says the allowed values and the loss weight of the value.
    system, captions, held_out, draw_held_out, corpora :
        As in :class:`InstructionTask`.
    values : sequence of str, optional
        The choices, where a corpus knows fewer values than the answer format.
    num_choices : sequence of int, optional
        How many choices a list in training can have, the true one among them. Default: all.

    Raises
    ------
    ValueError
        If the field has no list of values, or a wording or the sentence lacks its marker.

    Example
    -------
    >>> fmt = AnswerFormat({"pitch": ["low", "normal", "high"]})
    >>> task = ChoiceTask("pitch", ["{voice} Which pitch? {choices}"], "pitch", "The pitch is {value}.", fmt)
    >>> example = task.build({"id": "u", "descriptors": {"pitch": "low"}})
    >>> fmt.text(example.answer), sorted(example.turns[0].parts[-1].split(", "))
    ('The pitch is low.', ['high', 'low', 'normal'])
    >>> task.match("The pitch is low.", ["high", "low"]), task.match("low or high", ["high", "low"])
    ('low', None)
    """

    other_markers = (CHOICES,)

    def __init__(
        self,
        name,
        prompts,
        field,
        sentence,
        format,
        system=None,
        captions=(),
        held_out=(),
        num_choices=None,
        draw_held_out=False,
        corpora=(),
        values=None,
    ):
        super().__init__(name, prompts, [field], format, system, captions, held_out, draw_held_out, corpora)
        if isinstance(format.spec[field], str):
            raise ValueError(
                f"task {name!r} asks for the field {field!r}, which has no list of values in the answer format"
            )
        lacking = [p for p in (*self.prompts, *self.held_out) if CHOICES not in _MARKER.findall(p)]
        if lacking or sentence.count("{value}") != 1:
            raise ValueError(
                f"task {name!r}: every wording needs {{choices}} and the sentence {{value}} once; wrong: "
                f"{lacking or sentence!r}"
            )
        self.field = field
        self.sentence = sentence
        self.values = tuple(format.spec[field] if values is None else values)
        unknown = [v for v in self.values if v not in format.spec[field]]
        if unknown:
            raise ValueError(f"task {name!r}: values {unknown} are not allowed by the answer format")
        self.num_choices = None if num_choices is None else [int(n) for n in num_choices]
        bad = [n for n in self.num_choices or () if not 2 <= n <= len(self.values)]
        if bad:
            raise ValueError(f"task {name!r}: num_choices has {bad}; allowed: 2 to {len(self.values)}")

    def applies(self, record):
        """Whether a record is of the task's corpora and its value is one of the choices."""
        return self._is_for(record) and self.format.value_of(record, self.field) in self.values

    def draw_choices(self, record, rng=None, num_choices=None):
        """The list of an utterance: shuffled by ``rng`` in training, by a hash of the utterance otherwise.

        Arguments
        ---------
        record : mapping
            With its ``id``; its true value is in the list where it is known.
        rng : random.Random, optional
            Of training.
        num_choices : int, optional
            Length of the list.

        Returns
        -------
        list of str
        """
        if num_choices is None and rng is not None and self.num_choices:
            num_choices = rng.choice(self.num_choices)
        rng = rng or keyed_random("choices", record["id"], self.name, num_choices)
        choices = list(self.values)
        rng.shuffle(choices)
        if num_choices is not None and num_choices < len(choices):
            true = self.format.value_of(record, self.field)
            kept = [c for c in choices if c != true][: num_choices - (true is not None)]
            choices = [c for c in choices if c == true or c in kept]
        return choices

    def build(
        self,
        record,
        rng=None,
        slot_sources: Mapping[str, str] = None,
        prompt_number=None,
        choices: Sequence[str] = None,
    ):
        """Arrange a record; ``choices`` gives the list, else it is drawn. Else as in :class:`InstructionTask`."""
        number = self.prompt_number(record, rng) if prompt_number is None else prompt_number
        choices = self.draw_choices(record, rng) if choices is None else list(choices)
        audio = max(len(record.get("audios") or ()) - 1, 0)
        listed = {CHOICES: ", ".join(choices)}
        parts = self.parts(self.wording(number), record, audio, rng, slot_sources, listed)
        turns = (Turn("user", parts),)
        if self.system:
            turns = (Turn("system", (self.system,)),) + turns
        value = self.format.value_of(record, self.field)
        answer = () if value is None else self.answer_fields(value)
        return Example(record["id"], self.name, turns, answer)

    def answer_fields(self, value):
        """The answer's sentence for a value, as fields."""
        before, after = self.sentence.split("{value}")
        # The blank goes with the value: it then has the same tokens wherever a list names it after a blank.
        blank = " " if before.endswith(" ") else ""
        weight = self.format.weights.get(self.field, 1.0)
        fields = (AnswerField(self.field, before.removesuffix(" "), blank + value, weight),)
        return fields + ((AnswerField("end", after, ""),) if after else ())

    def match(self, text, choices):
        """The one choice that a written answer names as a word; None where it names none or several."""
        words = set(re.findall(r"\w+", text.lower()))
        found = [c for c in choices if set(re.findall(r"\w+", c.lower())) <= words]
        return found[0] if len(found) == 1 else None


class DialogueTask(InstructionTask):
    """The answer to the last turn of a dialogue, its tone of voice and the turns before it in view.

    arXiv 2508.08095: context, then for every spoken turn the paralinguistic slot and the linguistic slot inside the
    user's turn of the chat template. With ``text`` as the source of both slots the same prompt is the styled
    transcript that the frozen language model is asked about.

    A record has ``turns``: objects with ``role`` (user or assistant) and ``text``; a user's spoken one has ``audio``,
    an index into the record's ``audios``, and may have ``descriptors`` and ``emotion``; the assistant's are text. The
    last turn is the user's. The answer is ``target``, what the frozen language model answered to the styled
    transcript, else the corpus's own ``response``. ``system`` of the record goes before that of the task.

    Arguments
    ---------
    name : str
        Name of the task.
    prompts : sequence of str
        Templates of a spoken user turn, for example ``{paralinguistic}{linguistic}``; all turns of a dialogue use
        the same.
    format : AnswerFormat
        Of the captions' fields; its weight of ``response`` weighs the answer.
    systems : sequence of str, optional
        System prompts, one of which is drawn.
    captions, held_out, draw_held_out, corpora :
        As in :class:`InstructionTask`.
    max_history : int, optional
        How many turns before the last user turn are kept, the most recent ones. Default: all.

    Raises
    ------
    ValueError
        If there is no prompt, or a record's last turn is not the user's.

    Example
    -------
    >>> fmt = AnswerFormat({"transcript": "text", "emotion": ["sad", "happy"]})
    >>> task = DialogueTask("chat", ["{paralinguistic}{linguistic}"], fmt, captions=["({emotion})"])
    >>> turns = [{"role": "user", "audio": 0, "text": "hello", "emotion": "sad"}]
    >>> record = {"id": "d", "audios": [{}], "turns": turns, "target": "what happened?"}
    >>> example = task.build(record, slot_sources={"paralinguistic": "text"})
    >>> [s.source for s in example.slots], example.slots[0].text, example.answer[0].value
    (['text', 'speech'], ' (sad)', 'what happened?')
    """

    def __init__(
        self,
        name,
        prompts,
        format,
        systems=(),
        captions=(),
        held_out=(),
        max_history=None,
        draw_held_out=False,
        corpora=(),
    ):
        super().__init__(name, prompts, [], format, None, captions, held_out, draw_held_out, corpora)
        self.systems = list(systems)
        self.max_history = max_history

    def applies(self, record):
        """Whether a record is a dialogue with an answer to learn."""
        return self._is_for(record) and bool(record.get("turns")) and self.response(record) is not None

    @staticmethod
    def response(record):
        """The answer to learn: ``target``, else the text of ``response``, else None."""
        if record.get("target") is not None:
            return record["target"]
        response = record.get("response")
        return response.get("text") if isinstance(response, Mapping) else response

    def build(
        self,
        record,
        rng=None,
        slot_sources: Mapping[str, str] = None,
        prompt_number=None,
        history_sources: Mapping[str, str] = None,
    ):
        """Arrange a dialogue.

        Arguments
        ---------
        record : mapping
            With ``turns``.
        rng : random.Random, optional
            Draws template, system prompt and captions in training.
        slot_sources : mapping of str to str, optional
            Kind -> source, of all turns.
        prompt_number : int, optional
            A template by its number.
        history_sources : mapping of str to str, optional
            Kind -> source, of the turns before the last, where another than ``slot_sources``.

        Returns
        -------
        Example

        Raises
        ------
        ValueError
            If the last turn is not the user's.
        """
        spoken = record["turns"]
        if not spoken or spoken[-1]["role"] != "user":
            raise ValueError(f"record {record['id']!r}: the last of its turns must be the user's")
        if self.max_history is not None:
            spoken = spoken[max(len(spoken) - 1 - self.max_history, 0) :]
        number = self.prompt_number(record, rng) if prompt_number is None else prompt_number
        turns = []
        systems = [record["system"]] if record.get("system") else self.systems
        if systems:
            chosen = rng.randrange(len(systems)) if rng else keyed_seed("system", record["id"]) % len(systems)
            turns.append(Turn("system", (systems[chosen],)))
        for position, turn in enumerate(spoken):
            if turn.get("audio") is None or turn["role"] == "assistant":
                turns.append(Turn(turn["role"], (turn["text"],)))
                continue
            sources = slot_sources
            if position < len(spoken) - 1 and history_sources is not None:
                sources = history_sources
            own = {**turn, "id": record["id"], TRANSCRIPT: turn["text"]}
            parts = self.parts(self.wording(number), own, turn["audio"], rng, sources)
            turns.append(Turn(turn["role"], parts))
        answer, response = (), self.response(record)
        if response is not None:
            weight = self.format.weights.get("response", 1.0)
            answer = (AnswerField("response", "", response, weight),)
        return Example(record["id"], self.name, tuple(turns), answer)
