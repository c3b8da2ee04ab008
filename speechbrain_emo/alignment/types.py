"""What an aligner takes and gives: one result type, one protocol, one error."""

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

# Times come from files with three decimals, from frames and from sample counts: a tenth of a millisecond of
# overlap is rounding, not a fault.
TOLERANCE = 1e-4


class AlignmentError(ValueError):
    """A text and a recording that cannot be aligned, or an alignment that is none; the message says why."""


@dataclass(frozen=True)
class AlignedInterval:
    """A word or a phone and when it is spoken.

    Arguments
    ---------
    label : str
        The word as the text spells it, without the punctuation around it; or the phone in the aligner's alphabet.
    start, end : float
        Seconds from the first sample; ``start < end``.
    confidence : float, optional
        0 to 1: how well the sound agrees with the label. Comparable between words of one aligner, not between
        aligners. None where the aligner does not know (imported TextGrids).

    Raises
    ------
    AlignmentError
        If a time is negative or not finite, the end does not come after the start, or the confidence is not in
        [0, 1].

    Example
    -------
    >>> AlignedInterval("hello", 0.1, 0.45, 0.9).duration
    0.35
    """

    label: str
    start: float
    end: float
    confidence: float | None = None

    def __post_init__(self):
        if not (math.isfinite(self.start) and math.isfinite(self.end) and 0 <= self.start < self.end):
            raise AlignmentError(
                f"interval {self.label!r} runs from {self.start} to {self.end} s; allowed: 0 <= start < end"
            )
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise AlignmentError(
                f"interval {self.label!r} has confidence {self.confidence}; allowed: 0 to 1, or None"
            )

    @property
    def duration(self):
        """Length in seconds."""
        return self.end - self.start


def _check_order(what, intervals, duration):
    for previous, current in zip(intervals, intervals[1:]):
        if current.start < previous.end - TOLERANCE:
            raise AlignmentError(
                f"{what} {current.label!r} starts at {current.start} s, before {previous.label!r} ends at "
                f"{previous.end} s; {what}s must be in order and must not overlap"
            )
    if intervals and intervals[-1].end > duration + TOLERANCE:
        raise AlignmentError(
            f"{what} {intervals[-1].label!r} ends at {intervals[-1].end} s, behind the end of the audio at {duration} s"
        )


@dataclass(frozen=True)
class Alignment:
    """When each word of a text is spoken in a recording; what is not covered by words is silence or noise.

    Arguments
    ---------
    words : tuple of AlignedInterval
        One for each spoken word of ``text``, in order. A token with nothing to speak (a lone dash) has none.
    phones : tuple of AlignedInterval, optional
        In the aligner's own phone alphabet, without silences. None where the aligner has no phones.
    text : str
        The text as it was given. Every word's label occurs in it, in order (see :meth:`char_spans`).
    duration : float
        Of the audio, in seconds.
    aligner : str
        Name in the registry, for provenance.

    Raises
    ------
    AlignmentError
        If intervals overlap, are out of order or end behind the audio, or a label is not in the text.

    Example
    -------
    >>> words = (AlignedInterval("Hello", 0.1, 0.4, 0.8), AlignedInterval("world", 0.5, 0.9, 0.4))
    >>> alignment = Alignment(words, None, "Hello, world!", 1.0, "pocketsphinx")
    >>> alignment.char_spans()
    ((0, 5), (7, 12))
    >>> alignment.min_confidence, round(alignment.mean_confidence, 2)
    (0.4, 0.57)
    >>> Alignment.from_dict(alignment.to_dict()) == alignment
    True
    """

    words: tuple
    phones: tuple | None
    text: str
    duration: float
    aligner: str

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(self.words))
        if self.phones is not None:
            object.__setattr__(self, "phones", tuple(self.phones))
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise AlignmentError(f"duration is {self.duration} s; allowed: above 0")
        _check_order("word", self.words, self.duration)
        _check_order("phone", self.phones or (), self.duration)
        self.char_spans()

    @property
    def mean_confidence(self):
        """Mean over words weighted by their duration; None where no word has a confidence."""
        known = [word for word in self.words if word.confidence is not None]
        if not known:
            return None
        return float(
            np.average([word.confidence for word in known], weights=[word.duration for word in known])
        )

    @property
    def min_confidence(self):
        """Of the least certain word; None where no word has a confidence."""
        return min((word.confidence for word in self.words if word.confidence is not None), default=None)

    def char_spans(self):
        """Where each word stands in ``text``.

        Returns
        -------
        tuple of (int, int)
            Character offsets (start, stop) of each word; ``text[start:stop]`` is its label.

        Raises
        ------
        AlignmentError
            If a label is not in the text, or not behind the one before.
        """
        spans, position = [], 0
        for word in self.words:
            start = self.text.find(word.label, position) if word.label else -1
            if start < 0:
                raise AlignmentError(
                    f"word {word.label!r} is not in the text from character {position}: {self.text!r}; labels are the "
                    "text's own words in order"
                )
            position = start + len(word.label)
            spans.append((start, position))
        return tuple(spans)

    def to_dict(self):
        """What JSON can hold.

        Returns
        -------
        dict
            Keys ``aligner``, ``text``, ``duration``, ``confidence`` (mean) and ``words``: a list of
            {word, start, end, confidence} in seconds; ``phones``: a list of {phone, start, end, confidence} or None.
        """

        def rows(kind, intervals):
            return [
                {kind: item.label, "start": item.start, "end": item.end, "confidence": item.confidence}
                for item in intervals
            ]

        return {
            "aligner": self.aligner,
            "text": self.text,
            "duration": self.duration,
            "confidence": self.mean_confidence,
            "words": rows("word", self.words),
            "phones": None if self.phones is None else rows("phone", self.phones),
        }

    @classmethod
    def from_dict(cls, record):
        """The alignment that :meth:`to_dict` wrote.

        Arguments
        ---------
        record : dict
            As :meth:`to_dict` returns it.

        Returns
        -------
        Alignment

        Raises
        ------
        AlignmentError
            If a key is missing or the intervals are not valid.

        Example
        -------
        >>> Alignment.from_dict({"text": "hi"})
        Traceback (most recent call last):
        ...
        speechbrain_emo.alignment.types.AlignmentError: the record of an alignment lacks 'words'
        """

        def intervals(kind, items):
            return tuple(
                AlignedInterval(item[kind], item["start"], item["end"], item.get("confidence"))
                for item in items
            )

        try:
            phones = record.get("phones")
            return cls(
                intervals("word", record["words"]),
                None if phones is None else intervals("phone", phones),
                record["text"],
                record["duration"],
                record["aligner"],
            )
        except KeyError as error:
            raise AlignmentError(f"the record of an alignment lacks {error.args[0]!r}") from error


@dataclass(frozen=True)
class AlignmentItem:
    """One utterance of a corpus: a file, or samples in memory.

    Arguments
    ---------
    name : str
        Of the utterance; its TextGrid is ``<name>.TextGrid``.
    text : str
        What is said.
    wav : str, optional
        Audio file. Either this or ``samples``.
    samples : numpy.ndarray, optional
        float32, shape (N,), full scale 1.
    sample_rate : int, optional
        Of ``samples``, in Hz.
    start, stop : int, optional
        Segment of the file, in samples at its own rate. Times of the alignment count from ``start``.

    Example
    -------
    >>> AlignmentItem("a", "hello", samples=np.zeros(1600, np.float32), sample_rate=16000).load()[1]
    16000
    """

    name: str
    text: str
    wav: str | None = None
    samples: np.ndarray | None = field(default=None, repr=False, compare=False)
    sample_rate: int | None = None
    start: int | None = None
    stop: int | None = None

    def load(self, sample_rate=16000):
        """The samples and their rate.

        Arguments
        ---------
        sample_rate : int
            That a file is resampled to, in Hz; samples in memory keep their own.

        Returns
        -------
        (numpy.ndarray, int)
            float32 of shape (N,), and Hz.

        Raises
        ------
        AlignmentError
            If the item has neither a file nor samples with a rate.
        speechbrain_emo.dataio.audio.AudioError
            If the file cannot be read.
        """
        if self.samples is not None and self.sample_rate:
            return np.asarray(self.samples, dtype=np.float32), int(self.sample_rate)
        if self.wav is None:
            raise AlignmentError(f"item {self.name!r} has neither wav nor samples with a sample_rate")
        from speechbrain_emo.dataio.audio import load_audio

        samples = load_audio(self.wav, sample_rate=sample_rate, start=self.start, stop=self.stop)
        return samples.numpy(), sample_rate


@runtime_checkable
class Aligner(Protocol):
    """Finds the words of a known text in a recording."""

    #: Name in the registry.
    name: str

    def align(self, samples, sample_rate, text, name=None):
        """Align one utterance.

        Arguments
        ---------
        samples : numpy.ndarray
            float32, shape (N,), mono, full scale 1.
        sample_rate : int
            In Hz; any, an aligner resamples to its own.
        text : str
            What is said, as people write it: the aligner normalises it.
        name : str, optional
            Of the utterance, for messages, and for aligners that look alignments up by name.

        Returns
        -------
        Alignment

        Raises
        ------
        AlignmentError
            If there is nothing to align, or no path through the recording. A text that does not match the audio gives
            low confidences or this error, never confident words.
        """
        ...

    def align_corpus(self, items):
        """Align many utterances.

        Arguments
        ---------
        items : iterable of AlignmentItem
            Names are unique.

        Yields
        ------
        (str, Alignment or Exception)
            Name and result in the order of the items. What is wrong with one item
            (:class:`AlignmentError`, :class:`~speechbrain_emo.dataio.audio.AudioError`) is its result; the
            others are finished.
        """
        ...


def align_each(aligner, items):
    """``align_corpus`` of an aligner that takes one utterance at a time.

    Arguments
    ---------
    aligner : Aligner
        Whose ``align`` is called.
    items : iterable of AlignmentItem
        Utterances.

    Yields
    ------
    (str, Alignment or Exception)
        As :meth:`Aligner.align_corpus`.

    Example
    -------
    >>> [(name, str(error)) for name, error in align_each(None, [AlignmentItem("a", "hello")])]
    [('a', "item 'a' has neither wav nor samples with a sample_rate")]
    """
    from speechbrain_emo.dataio.audio import AudioError

    for item in items:
        try:
            samples, sample_rate = item.load()
            result = aligner.align(samples, sample_rate, item.text, name=item.name)
        except (AlignmentError, AudioError) as error:
            result = error
        yield item.name, result
