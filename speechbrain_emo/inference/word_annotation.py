"""Words of a recording with their emotions, as a result that a person or a program can read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from speechbrain_emo.alignment.textgrid import TextGrid, Tier, write_textgrid
from speechbrain_emo.prompts.markup import EmotionMarkup, locate_words

#: What `supervision` of a result says about the labels that the model was trained on.
SUPERVISION = {"weak": "sentence broadcast", "word": "word labels"}
_DIGITS = 6


@dataclass(frozen=True)
class AnnotatedWord:
    """One word and how it sounds.

    Arguments
    ---------
    word : str
        As the text spells it.
    start, end : float
        Seconds.
    emotion : str
        The label with the highest probability.
    intensity : str
        From the arousal.
    confidence : float
        Probability of ``emotion``.
    probabilities : dict
        Label -> probability: the whole distribution.
    valence, arousal, dominance : float
        In (0, 1).
    alignment_confidence : float or None
        Of the aligner; None where it does not know.
    """

    word: str
    start: float
    end: float
    emotion: str
    intensity: str
    confidence: float
    probabilities: dict
    valence: float
    arousal: float
    dominance: float
    alignment_confidence: float | None = None


@dataclass(frozen=True)
class WordAnnotation:
    """All words of a recording, and where the labels come from.

    Arguments
    ---------
    name : str
        File, id, or what the caller called the audio.
    text : str
        What is said.
    duration : float
        Seconds.
    words : tuple of AnnotatedWord
        In order.
    provenance : dict
        ``model`` (sha256 of its files), ``model_name``, ``aligner``, ``supervision`` ("sentence broadcast" or "word
        labels"), ``labels``, ``intensities``, ``toolkit``.
    warnings : tuple of str
        What to look at, such as a low confidence of the alignment.

    Example
    -------
    >>> word = AnnotatedWord("oh", 0.1, 0.4, "sad", "low", 0.8, {"hap": 0.2, "sad": 0.8}, 0.2, 0.3, 0.3, 0.9)
    >>> provenance = {"labels": ["hap", "sad"], "intensities": ["low", "high"], "untagged": ["hap", "low"]}
    >>> annotation = WordAnnotation("a.wav", "Oh!", 1.0, (word,), provenance)
    >>> print(annotation.to_markup())
    <emotion type='sad' intensity='low'>Oh!</emotion>
    >>> WordAnnotation.from_dict(annotation.to_dict()) == annotation
    True
    """

    name: str
    text: str
    duration: float
    words: tuple
    provenance: dict = field(default_factory=dict)
    warnings: tuple = ()

    def to_dict(self):
        """All fields as plain values for JSON; numbers with six decimals."""

        def rounded(value):
            if isinstance(value, float):
                return round(value, _DIGITS)
            if isinstance(value, dict):
                return {k: rounded(v) for k, v in value.items()}
            return value

        return {
            "name": self.name,
            "text": self.text,
            "duration": round(self.duration, _DIGITS),
            "words": [{k: rounded(v) for k, v in asdict(word).items()} for word in self.words],
            "provenance": dict(self.provenance),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, record):
        """The annotation that :meth:`to_dict` wrote.

        Raises
        ------
        ValueError
            If a key is missing or unknown.
        """
        try:
            words = tuple(AnnotatedWord(**word) for word in record["words"])
            return cls(
                record["name"],
                record["text"],
                record["duration"],
                words,
                dict(record["provenance"]),
                tuple(record["warnings"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no annotation: {error}") from error

    def to_json(self):
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def markup(self):
        """The reader and writer of markup for this annotation's labels."""
        untagged = self.provenance.get("untagged")
        return EmotionMarkup(
            self.provenance["labels"],
            self.provenance["intensities"],
            None if untagged is None else tuple(untagged),
        )

    def to_markup(self):
        """The text with ``<emotion>`` tags; neighbouring words of equal emotion and intensity share one."""
        markup = self.markup()
        places = locate_words(self.text, [word.word for word in self.words])
        emotions = [word.emotion for word in self.words]
        return markup.write(
            markup.from_words(self.text, places, emotions, [word.intensity for word in self.words])
        )

    def to_textgrid(self):
        """Tiers ``words``, ``emotion``, ``intensity``, ``confidence``, ``valence``, ``arousal``, ``dominance``."""

        def tier(name, label):
            entries, before = [], 0.0
            for word in self.words:
                # A thousandth of rounding may not make intervals overlap.
                start, end = max(word.start, before), min(max(word.end, word.start), self.duration)
                if end > start:
                    entries.append((start, end, label(word)))
                    before = end
            return Tier(name, tuple(entries))

        values = [
            tier(name, lambda word, name=name: f"{getattr(word, name):.3f}")
            for name in ("confidence", "valence", "arousal", "dominance")
        ]
        tiers = [
            tier("words", lambda word: word.word),
            tier("emotion", lambda word: word.emotion),
            tier("intensity", lambda word: word.intensity),
        ]
        return TextGrid((*tiers, *values), 0.0, self.duration)

    def write_textgrid(self, path):
        """Write :meth:`to_textgrid` to a file.

        Arguments
        ---------
        path : str or pathlib.Path
            Overwritten where it exists; its folder is made.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_textgrid(path, self.to_textgrid())

    def __str__(self):
        lines = [f"{self.name}"]
        lines.append("    start       end  word             emotion     conf.   valence arousal dominance")
        for word in self.words:
            label = f"{word.emotion}/{word.intensity}"
            lines.append(
                f"{word.start:9.3f} {word.end:9.3f}  {word.word:<16} {label:<11} {word.confidence:5.2f}   "
                f"{word.valence:7.2f} {word.arousal:7.2f} {word.dominance:9.2f}"
            )
        source = self.provenance
        lines.append(
            f"  aligner {source.get('aligner')}; model trained on {source.get('supervision')}, "
            f"{str(source.get('model'))[:12]}"
        )
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)
