"""From a text as people write it to the words that are spoken, with the way back.

An acoustic aligner needs "nineteen ninety five", the user wants to know when "1995" is said. :func:`normalize` keeps
both: each word of the text with its characters in the text and the tokens that speak it, and
:meth:`NormalizedText.join` turns intervals of tokens into intervals of words.

Numbers are spelt by num2words in its some fifty languages. Abbreviations, currencies, clock times and signs are known
for English and German; elsewhere a sign without a reading is left out and listed in ``NormalizedText.silent``.
"""

import re
import unicodedata
from dataclasses import dataclass

from speechbrain_emo.alignment.types import AlignedInterval, AlignmentError

# What separates words beside blanks: dashes between words and dots of omission. A hyphen stays inside its word.
_CHUNK = re.compile(r"[^\s\u2013\u2014\u2015\u2026]+")
_OPENING, _CLOSING = (
    "\"'`([{<\u00ab\u00bb\u201c\u201d\u201e\u2018\u2019\u201a\u00bf\u00a1*_~-",
    ",;:!?.\"'`)]}>",
)
_CLOSING += "\u00ab\u00bb\u201c\u201d\u2018\u2019*_~-"

_ABBREVIATIONS = {
    "en": {
        **{"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "vs": "versus"},
        **{"messrs": "messieurs", "etc": "et cetera", "pm": "p m"},
    },
    "de": {
        "dr": "doktor",
        "prof": "professor",
        "nr": "nummer",
        "usw": "und so weiter",
        "bzw": "beziehungsweise",
    },
}
# These are words of their own without the dot.
_WITH_DOT = {
    "en": {
        **{"jr": "junior", "sr": "senior", "gen": "general", "sgt": "sergeant", "capt": "captain"},
        **{
            "col": "colonel",
            "lt": "lieutenant",
            "rev": "reverend",
            "hon": "honorable",
            "inc": "incorporated",
        },
        **{
            "ltd": "limited",
            "co": "company",
            "no": "number",
            "st": "saint",
            "ave": "avenue",
            "dept": "department",
        },
        **{"a.m": "a m", "p.m": "p m", "e.g": "for example", "i.e": "that is"},
    },
    "de": {
        "z.b": "zum beispiel",
        "d.h": "das heißt",
        "str": "straße",
        "hr": "herr",
        "fr": "frau",
        "u.a": "unter anderem",
    },
}
_SIGNS = {
    "en": {"&": "and", "@": "at", "+": "plus", "=": "equals", "%": "percent", "#": "number", "°": "degrees"},
    "de": {"&": "und", "@": "at", "+": "plus", "=": "gleich", "%": "prozent", "#": "nummer", "°": "grad"},
}
_CURRENCIES = {
    "en": {"$": ("dollar", "dollars"), "€": ("euro", "euros"), "£": ("pound", "pounds"), "¥": ("yen", "yen")},
    "de": {"$": ("dollar", "dollar"), "€": ("euro", "euro"), "£": ("pfund", "pfund"), "¥": ("yen", "yen")},
}
_UNITS = {"en": {"am": "a m", "pm": "p m", "km": "kilometers", "kg": "kilograms", "cm": "centimeters"}}
_UNITS["de"] = {"km": "kilometer", "kg": "kilogramm", "cm": "zentimeter"}
_ORDINAL = {"en": re.compile(r"(\d[\d,]*)(st|nd|rd|th)\b", re.IGNORECASE)}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_VOWELS = set("aeiouyäöüáàâéèêëíìîïóòôúùûåæœø")


@dataclass(frozen=True)
class SpokenWord:
    """A word of the text and how it is spoken.

    Arguments
    ---------
    label : str
        As it is written, without the punctuation around it.
    start, stop : int
        Characters of the text: ``text[start:stop] == label``.
    tokens : tuple of str
        Lower-case words that speak it, at least one.
    """

    label: str
    start: int
    stop: int
    tokens: tuple


@dataclass(frozen=True)
class NormalizedText:
    """A text in spoken form, with the way back to its own words.

    Arguments
    ---------
    text : str
        As it was given.
    words : tuple of SpokenWord
        The spoken words of the text, in order.
    silent : tuple of str
        Chunks and signs of the text that nothing is spoken for.
    """

    text: str
    words: tuple
    silent: tuple = ()

    @property
    def tokens(self):
        """All spoken tokens in order, a tuple of str."""
        return tuple(token for word in self.words for token in word.tokens)

    def join(self, intervals):
        """From one interval a token to one interval a word.

        Arguments
        ---------
        intervals : sequence of AlignedInterval
            As many as ``tokens``, in order.

        Returns
        -------
        tuple of AlignedInterval
            As many as ``words``. A word starts with its first token and ends with its last; its confidence is the
            mean over its tokens, weighted by their duration.

        Raises
        ------
        AlignmentError
            If there are more or fewer intervals than tokens.

        Example
        -------
        >>> spoken = normalize("In 1995.")
        >>> intervals = [AlignedInterval(t, i, i + 1.0) for i, t in enumerate(spoken.tokens)]
        >>> [(word.label, word.start, word.end) for word in spoken.join(intervals)]
        [('In', 0, 1.0), ('1995', 1, 4.0)]
        """
        if len(intervals) != len(self.tokens):
            raise AlignmentError(
                f"{len(intervals)} intervals were given for the {len(self.tokens)} spoken tokens of {self.text!r}"
            )
        joined, position = [], 0
        for word in self.words:
            own = intervals[position : position + len(word.tokens)]
            position += len(word.tokens)
            confidence = None
            if all(interval.confidence is not None for interval in own):
                total = sum(interval.duration for interval in own)
                confidence = sum(interval.confidence * interval.duration for interval in own) / total
                confidence = min(max(confidence, 0.0), 1.0)
            joined.append(AlignedInterval(word.label, own[0].start, own[-1].end, confidence))
        return tuple(joined)


def normalize(text, language="en", known=None):
    """Turn a text into the words that are spoken.

    Arguments
    ---------
    text : str
        As people write it.
    language : str
        ISO 639-1 code, also with a region (``en-us``, ``de``).
    known : callable, optional
        Token -> bool: whether the aligner has a pronunciation. A word in capitals that is not known is spelt letter
        by letter (unless the whole text is in capitals). Without it, one without a vowel is.

    Returns
    -------
    NormalizedText

    Raises
    ------
    AlignmentError
        If nothing in the text can be spoken, or a number has to be spelt in a language that num2words does not know
        or without num2words being installed.

    Example
    -------
    >>> spoken = normalize("Dr. Smith paid $5 - \\"really?\\"")
    >>> spoken.tokens
    ('doctor', 'smith', 'paid', 'five', 'dollars', 'really')
    >>> [word.label for word in spoken.words]
    ['Dr.', 'Smith', 'paid', '$5', 'really']
    """
    if not isinstance(text, str):
        raise AlignmentError(f"text is {text!r}; it must be a string")
    speaker = _Speaker(language, known, text)
    words, silent = [], []
    chunks = list(_CHUNK.finditer(text))
    for index, match in enumerate(chunks):
        start, stop = match.span()
        while start < stop and text[start] in _OPENING:
            start += 1
        while stop > start and text[stop - 1] in _CLOSING:
            stop -= 1
        if start == stop:
            silent.append(match.group())
            continue
        following = text[chunks[index + 1].start() :] if index + 1 < len(chunks) else ""
        # A minus in front of a number is no bullet.
        if start > match.start() and text[start - 1] == "-" and text[start].isdigit():
            start -= 1
        dotted = text[stop : stop + 1] == "."
        tokens, used_dot = speaker.speak(text[start:stop], dotted, following)
        if used_dot:
            stop += 1
        if tokens:
            words.append(SpokenWord(text[start:stop], start, stop, tuple(tokens)))
        else:
            silent.append(text[start:stop])
    if not words:
        raise AlignmentError(f"text is {text!r}: it has no word that can be spoken")
    return NormalizedText(text, tuple(words), tuple(silent + speaker.dropped))


class _Speaker:
    """Reads one chunk after the other in one language."""

    def __init__(self, language, known, text):
        self.language = language.lower().replace("_", "-").split("-")[0]
        self.known = known
        letters = [character for character in text if character.isalpha()]
        self.shouting = len(letters) > 5 and all(not c.islower() for c in letters)
        self.dropped = []

    def table(self, tables):
        return tables.get(self.language, {})

    def speak(self, chunk, dotted, following):
        """Tokens of a chunk, and whether the dot behind it belongs to it."""
        key = chunk.lower()
        if dotted and key in self.table(_WITH_DOT):
            reading = self.table(_WITH_DOT)[key]
            if key == "no" and not following[:1].isdigit():
                return self.plain(chunk), False
            if key == "st" and not following[:1].isupper():
                reading = "street"
            return reading.split(), True
        if key in self.table(_ABBREVIATIONS):
            # A dot behind "pm" ends the sentence.
            return self.table(_ABBREVIATIONS)[key].split(), dotted and key != "pm"
        if re.fullmatch(r"[^\W\d_](\.[^\W\d_])+", chunk):
            return [letter.lower() for letter in chunk.split(".")], dotted
        return self.parts(chunk), False

    def parts(self, chunk):
        """Tokens of a chunk of letters, digits and signs."""
        chunk = unicodedata.normalize("NFKC", chunk).replace("\u2019", "'").replace("\u2018", "'")
        chunk = chunk.replace("\u2212", "-")
        currencies = self.table(_CURRENCIES)
        money = re.fullmatch(r"([$€£¥])(\d[\d.,]*)|(\d[\d.,]*)([$€£¥])", chunk)
        if money and currencies:
            sign, amount = money.group(1) or money.group(4), money.group(2) or money.group(3)
            return self.money(amount, currencies[sign])
        clock = re.fullmatch(r"(\d{1,2}):(\d{2})(\D*)", chunk)
        if clock and int(clock[2]) < 60:
            unit = self.table(_UNITS).get(clock[3].lower())
            rest = unit.split() if unit else self.parts(clock[3])
            return self.clock(int(clock[1]), int(clock[2]), bool(rest)) + rest
        tokens = []
        position = 0
        while position < len(chunk):
            ordinal = _ORDINAL[self.language].match(chunk, position) if self.language in _ORDINAL else None
            number = _NUMBER.match(chunk, position)
            letters = re.compile(r"[^\W\d_]+(?:[^\W\d_]|['\u0300-\u036f])*").match(chunk, position)
            if ordinal:
                tokens += self.number(int(ordinal[1].replace(",", "")), "ordinal")
                position = ordinal.end()
            elif number:
                if chunk[position - 1 : position] == "-" and position == 1:
                    tokens += ["minus"]
                tokens += self.digits(number.group())
                position = number.end()
            elif letters:
                word = letters.group()
                unit = (
                    self.table(_UNITS).get(word.lower())
                    if position and chunk[position - 1].isdigit()
                    else None
                )
                tokens += unit.split() if unit else self.plain(word, any(map(str.isdigit, chunk)))
                position = letters.end()
            else:
                sign = chunk[position]
                if sign in self.table(_SIGNS):
                    tokens.append(self.table(_SIGNS)[sign])
                elif sign in currencies:
                    tokens.append(currencies[sign][1])
                elif unicodedata.category(sign) in ("Sc", "Sm", "So", "Nd", "No"):
                    self.dropped.append(sign)
                position += 1
        return tokens

    def plain(self, word, beside_digits=False):
        """Tokens of a word of letters and apostrophes."""
        word = word.strip("'")
        if not word:
            return []
        lower = word.lower()
        name, apostrophe, suffix = lower.partition("'")
        capitals = word[: len(name)].isupper() or beside_digits and not _VOWELS & set(name)
        if len(name) > 1 and capitals and not self.shouting:
            spell = (
                not _VOWELS & set(name) if self.known is None else len(name) <= 5 and not self.known(lower)
            )
            if spell:
                letters = [letter for letter in name if letter.isalpha()]
                return letters[:-1] + [letters[-1] + apostrophe + suffix]
        return [lower]

    def digits(self, number):
        """Tokens of digits with separators."""
        point, group = (",", ".") if self.language not in ("en", "zh", "ja", "ko", "th", "he") else (".", ",")
        if re.fullmatch(r"\d{1,3}(" + re.escape(group) + r"\d{3})+(" + re.escape(point) + r"\d+)?", number):
            number = number.replace(group, "")
        elif (
            re.fullmatch(r"\d+" + re.escape(group) + r"\d+", number) and point not in number and group == "."
        ):
            # A decimal point in a language that writes commas: people do.
            number = number.replace(".", ",")
        fields = number.split(point)
        if len(fields) == 2 and fields[1].isdigit() and fields[0].isdigit():
            return self.number(float(f"{fields[0]}.{fields[1]}"), "cardinal")
        tokens = []
        for field in re.split(r"[.,]", number):
            if len(field) > 1 and field[0] == "0" or len(field) > 9:
                # Codes and telephone numbers are read digit by digit.
                for digit in field:
                    tokens += self.number(int(digit), "cardinal")
            elif len(field) == 4 and (1100 <= int(field) <= 1999 or 2010 <= int(field) <= 2099):
                tokens += self.number(int(field), "year")
            else:
                tokens += self.number(int(field), "cardinal")
        return tokens

    def money(self, amount, names):
        amount = amount.rstrip(".,")
        point = "." if self.language == "en" else ","
        whole, _, cents = amount.partition(point)
        tokens = (
            self.digits(whole) if not re.fullmatch(r"\d{4}", whole) else self.number(int(whole), "cardinal")
        )
        tokens.append(names[0] if whole == "1" else names[1])
        return tokens + (self.number(int(cents), "cardinal") if cents.isdigit() and int(cents) else [])

    def clock(self, hours, minutes, suffixed):
        tokens = self.number(hours, "cardinal")
        if self.language == "de":
            tokens.append("uhr")
        if minutes:
            if self.language == "en" and minutes < 10:
                tokens.append("oh")
            tokens += self.number(minutes, "cardinal")
        elif self.language == "en" and not suffixed:
            tokens.append("o'clock")
        return tokens

    def number(self, value, kind):
        try:
            from num2words import num2words
        except ImportError as error:
            raise AlignmentError(
                f"the text has the number {value}, and the package num2words, which spells numbers, is not installed: "
                "pip install 'speechbrain_emo[align]'"
            ) from error
        try:
            spelt = num2words(value, lang=self.language, to=kind)
        except NotImplementedError as error:
            if kind == "year":
                return self.number(value, "cardinal")
            raise AlignmentError(
                f"the text has the number {value}, which num2words cannot spell in language {self.language!r}: "
                "write it out"
            ) from error
        return [token for token in re.split(r"[\s,\u2010-]+", spelt.lower()) if token]
