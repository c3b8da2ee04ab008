"""Emotion markup: ``<emotion type='hap' intensity='high'>words</emotion>`` to spans of characters, words and tokens.

The form is Emo-FiLM's (arXiv 2509.20378): labels ang, hap, neu, sad, sur, intensities low, medium, high, untagged
text is neu/low, and tags are no tokens: each sub-word token inherits the span that its characters lie in. Labels
and intensities are arguments here.
"""

import re
from dataclasses import dataclass

__all__ = [
    "INTENSITIES",
    "LABELS",
    "EmotionMarkup",
    "EmotionSpan",
    "MarkedText",
    "MarkupError",
    "TokenEmotions",
    "locate_words",
]

LABELS = ("ang", "hap", "neu", "sad", "sur")
INTENSITIES = ("low", "medium", "high")
UNTAGGED = ("neu", "low")

_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "apos": "'", "quot": '"'}
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_NAME = re.compile(r"[A-Za-z][\w-]*")
_ATTRIBUTE = re.compile(r"\s+([A-Za-z][\w-]*)\s*=\s*('[^']*'|\"[^\"]*\")")
_ENTITY = re.compile(r"&([A-Za-z]\w*);")
_CLOSING = re.compile(r"</emotion\s*>")
_HOW = "a literal < is written &lt;"


class MarkupError(ValueError):
    """Markup that cannot be read; the message says what is wrong and where.

    Arguments
    ---------
    message : str
        What is wrong.
    text : str
        The markup.
    position : int
        Character (from 0) at which it goes wrong.

    Example
    -------
    >>> try:
    ...     EmotionMarkup().parse("so <emotion type='hap'>good")
    ... except MarkupError as error:
    ...     print(error.position, error)
    3 line 1, column 4: <emotion> has no intensity='...'; needed are type and intensity: '<emotion type='hap'>good'
    """

    def __init__(self, message, text, position):
        line = text.count("\n", 0, position) + 1
        column = position - text.rfind("\n", 0, position)
        excerpt = text[position : position + 40]
        super().__init__(f"line {line}, column {column}: {message}: '{excerpt}'")
        self.position, self.line, self.column = position, line, column


@dataclass(frozen=True)
class EmotionSpan:
    """One marked stretch of a text.

    Arguments
    ---------
    start, stop : int
        Characters of the plain text, ``stop`` exclusive.
    emotion : str
        Label.
    intensity : str
        Its intensity.
    """

    start: int
    stop: int
    emotion: str
    intensity: str


@dataclass(frozen=True)
class MarkedText:
    """A plain text and what is marked in it.

    Arguments
    ---------
    text : str
        Without tags and escapes.
    spans : tuple of EmotionSpan
        In order, none empty, none overlapping. What no span covers is untagged.

    Raises
    ------
    ValueError
        If the spans are not like that.

    Example
    -------
    >>> MarkedText("so good", (EmotionSpan(3, 7, "hap", "high"),)).spans[0].emotion
    'hap'
    """

    text: str
    spans: tuple = ()

    def __post_init__(self):
        object.__setattr__(self, "spans", tuple(self.spans))
        before = 0
        for span in self.spans:
            if not before <= span.start < span.stop <= len(self.text):
                raise ValueError(
                    f"span {span} of a text of {len(self.text)} characters: spans must be in order, not empty and "
                    f"not overlapping; this one must start at {before} or later and end inside the text"
                )
            before = span.stop


@dataclass(frozen=True)
class TokenEmotions:
    """Sub-word tokens of a plain text with the emotion that each inherits.

    Arguments
    ---------
    token_ids : list of int
        Of the tokenizer, P of them.
    emotions, intensities : list of int
        Index into the markup's labels and intensities, P each.
    spans : list of int
        Index into ``MarkedText.spans``, -1 where untagged, P of them.
    offsets : list of tuple of int
        (start, stop) characters of each token, as the tokenizer gives them.
    """

    token_ids: list
    emotions: list
    intensities: list
    spans: list
    offsets: list


class EmotionMarkup:
    """Reads and writes emotion markup over given labels and intensities.

    Arguments
    ---------
    labels : sequence of str
        Allowed values of ``type``.
    intensities : sequence of str
        Allowed values of ``intensity``, weakest first.
    untagged : tuple of str, optional
        (label, intensity) of text outside all tags. Default: neu/low where these exist, else the first of each.

    Raises
    ------
    ValueError
        If a name is empty, repeated or not made of letters, digits, ``_`` and ``-``, or ``untagged`` is unknown.

    Example
    -------
    >>> markup = EmotionMarkup()
    >>> marked = markup.parse("It is <emotion type='hap' intensity='high'>great &amp; new</emotion>.")
    >>> marked.text, marked.spans
    ('It is great & new.', (EmotionSpan(start=6, stop=17, emotion='hap', intensity='high'),))
    >>> markup.write(marked)
    "It is <emotion type='hap' intensity='high'>great &amp; new</emotion>."
    """

    def __init__(self, labels=LABELS, intensities=INTENSITIES, untagged=None):
        self.labels, self.intensities = tuple(labels), tuple(intensities)
        for what, names in (("labels", self.labels), ("intensities", self.intensities)):
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{what} are {names}: give at least one, each once")
            wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name)]
            if wrong:
                raise ValueError(f"{what} hold {wrong}: names are letters, digits, _ and -")
        if untagged is None:
            pairs = zip(UNTAGGED, (self.labels, self.intensities))
            untagged = tuple(name if name in names else names[0] for name, names in pairs)
        self.untagged = tuple(untagged)
        if len(self.untagged) != 2 or not self._known(*self.untagged):
            raise ValueError(
                f"untagged is {untagged}: give (label, intensity) from {self.labels} and {self.intensities}"
            )

    def _known(self, emotion, intensity):
        return emotion in self.labels and intensity in self.intensities

    # -- reading -------------------------------------------------------------------------------------------

    def parse(self, marked):
        """Read markup.

        Text may hold ``&amp; &lt; &gt; &apos; &quot;``; an ``&`` that begins no such entity and a ``>`` stand for
        themselves. Every ``<`` begins a tag.

        Arguments
        ---------
        marked : str
            Text with tags.

        Returns
        -------
        MarkedText

        Raises
        ------
        MarkupError
            On a tag inside another one, an unknown tag, attribute, label or intensity, a tag that is not closed
            or closes nothing, a span without text, an unknown entity, or a stray ``<``; with the position.

        Example
        -------
        >>> EmotionMarkup().parse("1 < 2")
        Traceback (most recent call last):
        speechbrain_emo.prompts.markup.MarkupError: line 1, column 3: stray <: a literal < is written &lt;: '< 2'
        """
        plain, length, spans = [], 0, []
        opened = None
        at = 0
        while at < len(marked):
            character = marked[at]
            if character == "<":
                if marked.startswith("</", at):
                    closing = _CLOSING.match(marked, at)
                    if closing is None:
                        raise MarkupError("not a closing tag; the only one is </emotion>", marked, at)
                    if opened is None:
                        raise MarkupError("</emotion> closes nothing that is open", marked, at)
                    position, start, emotion, intensity = opened
                    if start == length:
                        raise MarkupError("<emotion> holds no text", marked, position)
                    spans.append(EmotionSpan(start, length, emotion, intensity))
                    opened, at = None, closing.end()
                    continue
                emotion, intensity, stop = self._opening(marked, at)
                if opened is not None:
                    raise MarkupError(
                        f"<emotion> inside the one of column {self._column(marked, opened[0])}: emotions do not "
                        "nest, close that one first",
                        marked,
                        at,
                    )
                opened, at = (at, length, emotion, intensity), stop
                continue
            if character == "&":
                entity = _ENTITY.match(marked, at)
                if entity is not None:
                    if entity[1] not in _ENTITIES:
                        known = " ".join(f"&{name};" for name in _ENTITIES)
                        raise MarkupError(f"unknown entity {entity[0]}; known are {known}", marked, at)
                    character, stop = _ENTITIES[entity[1]], entity.end()
                else:
                    stop = at + 1
            else:
                stop = at + 1
                while stop < len(marked) and marked[stop] not in "<&":
                    stop += 1
                character = marked[at:stop]
            plain.append(character)
            length += len(character)
            at = stop
        if opened is not None:
            raise MarkupError("<emotion> is not closed; write </emotion> after its words", marked, opened[0])
        return MarkedText("".join(plain), tuple(spans))

    @staticmethod
    def _column(text, position):
        return position - text.rfind("\n", 0, position)

    def _opening(self, marked, at):
        """(emotion, intensity, position behind) of an opening tag."""
        name = _NAME.match(marked, at + 1)
        if name is None:
            raise MarkupError(f"stray <: {_HOW}", marked, at)
        if name[0] != "emotion":
            raise MarkupError(f"unknown tag <{name[0]}>; the only one is <emotion>, and {_HOW}", marked, at)
        allowed = {"type": self.labels, "intensity": self.intensities}
        found, stop = {}, name.end()
        while attribute := _ATTRIBUTE.match(marked, stop):
            key, value = attribute[1], attribute[2][1:-1]
            where = attribute.start(1)
            if key not in allowed:
                raise MarkupError(f"unknown attribute {key!r}; allowed are type and intensity", marked, where)
            if key in found:
                raise MarkupError(f"attribute {key!r} stands there twice", marked, where)
            if value not in allowed[key]:
                raise MarkupError(
                    f"{key} is {value!r}; allowed are {', '.join(allowed[key])}", marked, attribute.start(2)
                )
            found[key], stop = value, attribute.end()
        rest = re.compile(r"\s*>").match(marked, stop)
        if rest is None:
            raise MarkupError(
                "not a complete tag; the form is <emotion type='LABEL' intensity='INTENSITY'>", marked, at
            )
        for key in allowed:
            if key not in found:
                raise MarkupError(f"<emotion> has no {key}='...'; needed are type and intensity", marked, at)
        return found["type"], found["intensity"], rest.end()

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, marked):
        """Write markup; :meth:`parse` reads it back as it was.

        Arguments
        ---------
        marked : MarkedText
            Every span is written, also one that says what untagged text means.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If a span has an unknown label or intensity.
        """
        parts, before = [], 0
        for span in marked.spans:
            if not self._known(span.emotion, span.intensity):
                raise ValueError(
                    f"span {span}: allowed are the labels {self.labels} and the intensities {self.intensities}"
                )
            parts.append(self._escape(marked.text[before : span.start]))
            tag = f"<emotion type='{span.emotion}' intensity='{span.intensity}'>"
            parts.append(f"{tag}{self._escape(marked.text[span.start : span.stop])}</emotion>")
            before = span.stop
        parts.append(self._escape(marked.text[before:]))
        return "".join(parts)

    @staticmethod
    def _escape(text):
        return "".join(_ESCAPES.get(character, character) for character in text)

    def from_words(self, text, words, emotions, intensities):
        """Mark a text from labels of its words; neighbours of equal emotion and intensity become one span.

        A span goes from its first word to its last one with what is attached to them: punctuation up to the next
        blank belongs to its word. Words that mean the same as untagged text get no tag.

        Arguments
        ---------
        text : str
            Plain text.
        words : sequence of str or of tuple of int
            Its words in order, as text or as (start, stop) characters.
        emotions, intensities : sequence of str
            One each a word.

        Returns
        -------
        MarkedText

        Raises
        ------
        ValueError
            If the numbers differ, a word is not found, or a label is unknown.

        Example
        -------
        >>> marked = EmotionMarkup().from_words(
        ...     "Oh no, not again!", ["Oh", "no", "not", "again"], ["neu", "sad", "sad", "ang"],
        ...     ["low", "low", "low", "high"])
        >>> print(EmotionMarkup().write(marked))
        Oh <emotion type='sad' intensity='low'>no, not</emotion> <emotion type='ang' intensity='high'>again!</emotion>
        """
        words = list(words)
        if not len(words) == len(emotions) == len(intensities):
            raise ValueError(
                f"{len(words)} words, {len(emotions)} emotions, {len(intensities)} intensities: give one of each a word"
            )
        places = locate_words(text, words) if words and isinstance(words[0], str) else words
        merged = []
        for number, ((start, stop), emotion, intensity) in enumerate(zip(places, emotions, intensities)):
            if not self._known(emotion, intensity):
                raise ValueError(
                    f"word {number} is {emotion!r}, {intensity!r}; allowed are {self.labels} and {self.intensities}"
                )
            low = places[number - 1][1] if number else 0
            high = places[number + 1][0] if number + 1 < len(places) else len(text)
            while start > low and not text[start - 1].isspace():
                start -= 1
            while stop < high and not text[stop].isspace():
                stop += 1
            if merged and start < merged[-1][1]:
                # Punctuation between two words without a blank ("well-known") belongs to the first.
                start = merged[-1][1]
            if merged and merged[-1][2:] == (emotion, intensity):
                merged[-1] = (merged[-1][0], stop, emotion, intensity)
            else:
                merged.append((start, stop, emotion, intensity))
        return MarkedText(text, tuple(EmotionSpan(*m) for m in merged if m[2:] != self.untagged))

    # -- tokens --------------------------------------------------------------------------------------------

    def label_at(self, marked, position):
        """(emotion, intensity) of a character of the plain text.

        Arguments
        ---------
        marked : MarkedText
            The text.
        position : int
            Character, from 0.

        Returns
        -------
        tuple of str
        """
        for span in marked.spans:
            if span.start <= position < span.stop:
                return span.emotion, span.intensity
        return self.untagged

    def tokenize(self, marked, tokenizer):
        """Tokens of the plain text, each with the emotion of the span that its characters lie in.

        The text is tokenised as a whole, without tags and special tokens, so the tokens are those of the same text
        without markup. A token that reaches over the border of two spans takes the one that holds most of its
        characters that are no blanks, the earlier one of two equal shares; a token of blanks alone takes the span of
        its first character.

        Arguments
        ---------
        marked : MarkedText
            The text.
        tokenizer : transformers.PreTrainedTokenizerBase
            A fast one: offsets of characters are needed.

        Returns
        -------
        TokenEmotions

        Raises
        ------
        ValueError
            If the tokenizer is not a fast one.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} gives no character offsets: load the fast tokenizer (use_fast=True)"
            )
        encoded = tokenizer(marked.text, add_special_tokens=False, return_offsets_mapping=True)
        owner = [-1] * len(marked.text)
        for number, span in enumerate(marked.spans):
            owner[span.start : span.stop] = [number] * (span.stop - span.start)
        chosen = []
        offsets = [tuple(offset) for offset in encoded["offset_mapping"]]
        for start, stop in offsets:
            counts = {}
            for position in range(start, stop):
                if not marked.text[position].isspace():
                    counts[owner[position]] = counts.get(owner[position], 0) + 1
            if counts:
                # `max` keeps the first of equals, and the counts were made from left to right.
                chosen.append(max(counts, key=counts.get))
            else:
                # Blanks, or a mark of the tokenizer's own without characters.
                chosen.append(owner[min(start, len(owner) - 1)] if owner else -1)
        spans = [(marked.spans[n].emotion, marked.spans[n].intensity) for n in range(len(marked.spans))]
        pairs = [self.untagged if n < 0 else spans[n] for n in chosen]
        return TokenEmotions(
            list(encoded["input_ids"]),
            [self.labels.index(emotion) for emotion, _ in pairs],
            [self.intensities.index(intensity) for _, intensity in pairs],
            chosen,
            offsets,
        )


def locate_words(text, words):
    """Characters of each word in a text, in order.

    Arguments
    ---------
    text : str
        The text.
    words : sequence of str
        Words as they stand in the text, or in another case; none may be empty.

    Returns
    -------
    list of tuple of int
        (start, stop) of each word.

    Raises
    ------
    ValueError
        If a word does not follow the one before it in the text.

    Example
    -------
    >>> locate_words("No, no!", ["No", "no"])
    [(0, 2), (4, 6)]
    """
    places, at = [], 0
    for number, word in enumerate(words):
        if not word:
            raise ValueError(f"word {number} is empty")
        # As a word of its own if it stands so, else as a part of one.
        whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE).search(text, at)
        found = whole or re.compile(re.escape(word), re.IGNORECASE).search(text, at)
        if found is None:
            raise ValueError(
                f"word {number}, {word!r}, does not follow in {text[at:]!r}: give the words of the text"
            )
        places.append(found.span())
        at = found.end()
    return places
