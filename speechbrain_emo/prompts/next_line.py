"""Tasks of conversational speech: the emotion of what was said, and of the line that comes next.

JELLY (arXiv 2501.04904, section 2.4): stage 1 names the emotion of one recording, alone or with its intensity; stage 2
predicts that of the next line from its words, its speaker and at most ten utterances before it, whose emotions stand
in the prompt as words (2-1, text alone) or as emotion embeddings (2-2). The next line's own emotion is the answer: it
never reaches a prompt.
"""

import re
from collections.abc import Mapping

from .segments import AnswerField, Example, Slot, Turn
from .tasks import EMOTION, InstructionTask

INTENSITY = "intensity"
HISTORY, LINE_TEXT, SPEAKER = "history", "text", "speaker"
NEUTRAL = "neutral"
#: What is asked about: the next line, or, to teach a small language model to read, a line of the history.
ASKED = ("next", "last", "own")
_MARKER = re.compile(r"\{(\w+)\}")
_NAMES = "ABCDEFGHIJ"


def labels_of(answer_format, intensity):
    """All labels as text: emotions, or the valid pairs of intensity and emotion; neutral has no intensity.

    Arguments
    ---------
    answer_format : AnswerFormat
        With the fields ``emotion`` and, for pairs, ``intensity``.
    intensity : bool
        Whether labels have an intensity.

    Returns
    -------
    tuple of str

    Example
    -------
    >>> from speechbrain_emo.prompts import AnswerFormat
    >>> fmt = AnswerFormat({"intensity": ["weak", "strong"], "emotion": ["neutral", "sad"]})
    >>> labels_of(fmt, True), labels_of(fmt, False)
    (('neutral', 'weak sad', 'strong sad'), ('neutral', 'sad'))
    """
    if not intensity:
        return tuple(answer_format.labels)
    pairs = []
    for emotion in answer_format.labels:
        degrees = answer_format.spec[INTENSITY]
        pairs += [emotion] if emotion == NEUTRAL else [f"{degree} {emotion}" for degree in degrees]
    return tuple(pairs)


def split_label(label):
    """(intensity or None, emotion) of a label.

    Example
    -------
    >>> split_label("weak sad"), split_label("neutral")
    (('weak', 'sad'), (None, 'neutral'))
    """
    degree, _, emotion = label.rpartition(" ")
    return degree or None, emotion


def label_of(answer_format, line, intensity):
    """The label of a record, a turn or a response; None where it is not known as far as asked.

    Arguments
    ---------
    answer_format : AnswerFormat
        Says the allowed values.
    line : mapping
        With ``emotion`` and ``descriptors.intensity``.
    intensity : bool
        Whether the label has an intensity.

    Returns
    -------
    str or None

    Raises
    ------
    ValueError
        If a value is not allowed.

    Example
    -------
    >>> from speechbrain_emo.prompts import AnswerFormat
    >>> fmt = AnswerFormat({"intensity": ["weak", "strong"], "emotion": ["neutral", "sad"]})
    >>> line = {"emotion": "sad", "descriptors": {"intensity": "weak"}}
    >>> label_of(fmt, line, True), label_of(fmt, {"emotion": "sad"}, True), label_of(fmt, {"emotion": "sad"}, False)
    ('weak sad', None, 'sad')
    """
    emotion = answer_format.value_of(line, EMOTION)
    if emotion is None or not intensity or emotion == NEUTRAL:
        return emotion
    degree = answer_format.value_of(line, INTENSITY)
    return None if degree is None else f"{degree} {emotion}"


class EmotionTask(InstructionTask):
    """The emotion of one recording in one word, or with its intensity before it (stages 1-1 and 1-2).

    A record of a dialogue has several audios; the question is about the last one.

    Arguments
    ---------
    name : str
        Name of the task.
    prompts : sequence of str
        Wordings with the slot, for example ``{emotion}\\nHow does it sound?``.
    format : AnswerFormat
        With ``emotion`` and, where it is asked for, ``intensity``.
    intensity : bool
        Whether the answer has the intensity; records without one are left out then.
    corpora : sequence of str, optional
        Corpora that the task is for.

    Example
    -------
    >>> from speechbrain_emo.prompts import AnswerFormat
    >>> fmt = AnswerFormat({"intensity": ["weak", "strong"], "emotion": ["neutral", "sad"]})
    >>> task = EmotionTask("e", ["{emotion} How?"], fmt, intensity=True)
    >>> record = {"id": "u", "emotion": "sad", "descriptors": {"intensity": "weak"}}
    >>> task.build(record).answer[0].value, task.applies({"id": "u", "emotion": "sad"})
    ('weak sad', False)
    """

    def __init__(self, name, prompts, format, intensity=False, corpora=()):
        super().__init__(name, prompts, [], format, corpora=corpora)
        self.intensity = bool(intensity)
        self.values = labels_of(format, self.intensity)

    def label(self, record):
        """The true label, or None."""
        return label_of(self.format, record, self.intensity)

    def applies(self, record):
        """Whether a record is of the task's corpora, has audio and a label."""
        spoken = bool(record.get("audios")) if "audios" in record else bool(record.get("wav"))
        return self._is_for(record) and spoken and self.label(record) is not None

    def build(self, record, rng=None, slot_sources: Mapping[str, str] = None, prompt_number=None):
        """Arrange a record; see :meth:`InstructionTask.build`."""
        example = super().build(record, rng, slot_sources, prompt_number)
        return Example(example.id, self.name, example.turns, self.answer_fields(self.label(record)))

    def slot_text(self, record, kind, rng=None):
        """What stands for the slot in text: the label's words."""
        return " " + (label_of(self.format, record, True) or record[EMOTION])

    def answer_fields(self, label):
        """A label as the answer; none for None."""
        if label is None:
            return ()
        return (AnswerField(EMOTION, "", label, self.format.weights.get(EMOTION, 1.0)),)


class NextLineTask(InstructionTask):
    """The emotion of a dialogue's next line, from its words, its speaker and what was said before (stage 2).

    A record has ``turns`` (what was said, by anyone; where it was spoken, ``audio`` is an index into ``audios``) and
    ``response``, the next line: ``text``, ``speaker``, and the answer: ``emotion`` and ``descriptors.intensity``. The
    source of the slot ``emotion`` says what stands for the emotions of the history: ``speech`` (embeddings; a turn
    without audio has its label's words), ``text`` (labels as words, tokens of the kind text: stage 2-1) or ``nothing``.

    Arguments
    ---------
    name : str
        Name of the task.
    prompts : sequence of str
        Wordings with ``{history}``, ``{speaker}`` and ``{text}`` of the next line.
    line : str
        Template of a line of the history: ``{speaker}``, ``{text}`` and ``{emotion}``.
    format : AnswerFormat
        With ``emotion`` and, where it is asked for, ``intensity``.
    intensity : bool
        Whether the answer has the intensity; records without one are left out then.
    max_turns : int
        Most utterances of history, the last ones (10 in the paper).
    ask : str
        ``next``; ``last`` or ``own`` ask about the last line, or the last one of the next line's speaker: what a small
        language model learns to read by.
    corpora : sequence of str, optional
        Corpora that the task is for.
    need_audio : bool
        Whether records without any audio are left out.

    Raises
    ------
    ValueError
        If a template lacks a marker, or ``ask`` or ``max_turns`` is not allowed.

    Example
    -------
    >>> from speechbrain_emo.prompts import AnswerFormat
    >>> fmt = AnswerFormat({"intensity": ["weak", "strong"], "emotion": ["neutral", "sad"]})
    >>> task = NextLineTask("n", ["{history}Next, {speaker}: {text}"], "{speaker}: {text} ({emotion})\\n", fmt)
    >>> turns = [{"speaker": "x", "text": "Hello.", "emotion": "sad", "descriptors": {"intensity": "weak"}}]
    >>> record = {"id": "d", "turns": turns, "response": {"speaker": "y", "text": "Well?", "emotion": "neutral"}}
    >>> "".join(task.build(record, slot_sources={"emotion": "text"}).turns[0].parts)
    'A: Hello. (weak sad)\\nNext, B: Well?'
    """

    other_markers = (HISTORY, LINE_TEXT, SPEAKER)

    def __init__(
        self,
        name,
        prompts,
        line,
        format,
        intensity=False,
        max_turns=10,
        ask="next",
        corpora=(),
        need_audio=False,
    ):
        super().__init__(name, prompts, [], format, corpora=corpora)
        if ask not in ASKED or max_turns < 1:
            raise ValueError(
                f"task {name!r}: ask is {ask!r} and max_turns {max_turns}; allowed: {', '.join(ASKED)}, 1 and above"
            )
        wanted = {HISTORY, LINE_TEXT, SPEAKER} if ask == "next" else {HISTORY}
        for prompt in self.prompts:
            if not wanted <= set(_MARKER.findall(prompt)):
                raise ValueError(f"task {name!r}: the wording {prompt!r} needs {sorted(wanted)}")
        self.line = line
        self.intensity = bool(intensity)
        self.max_turns = int(max_turns)
        self.ask = ask
        self.need_audio = bool(need_audio)
        self.values = labels_of(format, self.intensity)
        self.slot_kinds = tuple(sorted(set(_MARKER.findall(line)) - set(self.other_markers)))

    def label(self, record):
        """The true label, or None."""
        return label_of(self.format, self._asked(record), self.intensity)

    def _asked(self, record):
        """The line whose emotion is the answer; empty where there is none."""
        response = record.get("response") or {}
        if self.ask == "next":
            return response
        turns = self.history(record)
        if self.ask == "own":
            turns = [t for t in turns if t.get("speaker") == response.get("speaker")]
        return turns[-1] if turns else {}

    def history(self, record):
        """The turns of the prompt."""
        return (record.get("turns") or [])[-self.max_turns :]

    def applies(self, record):
        """Whether a record is of the task's corpora, is a dialogue and has a label (and audio, where needed)."""
        if not (self._is_for(record) and record.get("turns") and record.get("response")):
            return False
        if self.need_audio and not any(t.get("audio") is not None for t in self.history(record)):
            return False
        return self.label(record) is not None

    def build(self, record, rng=None, slot_sources: Mapping[str, str] = None, prompt_number=None):
        """Arrange a dialogue; see :meth:`InstructionTask.build`.

        Raises
        ------
        ValueError
            If a turn has neither audio nor an emotion where speech is asked for.
        """
        number = self.prompt_number(record, rng) if prompt_number is None else prompt_number
        turns, response = self.history(record), record["response"]
        names = {}
        for line in (*turns, response):
            names.setdefault(line.get("speaker"), _NAMES[min(len(names), len(_NAMES) - 1)])
        parts = []
        for piece in self._pieces(self.wording(number)):
            if piece == f"{{{HISTORY}}}":
                for turn in turns:
                    parts += self._line(record, turn, names, slot_sources or {})
            else:
                parts.append(_filled(piece, names[response.get("speaker")], response.get("text") or ""))
        parts = _joined(parts)
        return Example(
            record["id"], self.name, (Turn("user", parts),), self.answer_fields(self.label(record))
        )

    @staticmethod
    def _pieces(template):
        return [p for p in re.split(rf"(\{{{HISTORY}\}})", template) if p]

    def _line(self, record, turn, names, sources):
        parts = []
        for piece in re.split(r"(\{\w+\})", self.line):
            kind = piece[1:-1]
            if piece.startswith("{") and kind in self.slot_kinds:
                parts.append(self._emotion(record, turn, kind, sources.get(kind, "speech")))
            elif piece:
                parts.append(_filled(piece, names[turn.get("speaker")], turn.get("text") or ""))
        return parts

    def _emotion(self, record, turn, kind, source):
        if source == "nothing":
            return ""
        if source == "speech" and turn.get("audio") is not None:
            return Slot(kind, turn["audio"])
        # Words are text to the language model: tokens of the kind text, not of the slot's.
        words = label_of(self.format, turn, INTENSITY in self.format.spec) or turn.get(EMOTION)
        if words is None and source == "speech":
            raise ValueError(
                f"record {record['id']!r}: the turn {str(turn.get('text'))[:40]!r} has neither audio nor an emotion: "
                "give one of them"
            )
        return words or ""

    def answer_fields(self, label):
        """A label as the answer; none for None."""
        if label is None:
            return ()
        return (AnswerField(EMOTION, "", label, self.format.weights.get(EMOTION, 1.0)),)


def _filled(piece, speaker, text):
    """A piece of a template with its markers; braces in the words stay."""
    values = {SPEAKER: speaker, LINE_TEXT: text}
    return _MARKER.sub(lambda m: values.get(m[1], m[0]), piece)


def _joined(parts):
    """Neighbouring strings as one, so that they are tokenised together."""
    out = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        elif part != "":
            out.append(part)
    return tuple(out)


def match_label(text, values):
    """The label that a written answer is, or None.

    Example
    -------
    >>> match_label(" Weak  sad.", ("neutral", "weak sad")), match_label("sad", ("neutral", "weak sad"))
    ('weak sad', None)
    """
    words = " ".join(re.findall(r"\w+", text.lower()))
    return words if words in values else None
