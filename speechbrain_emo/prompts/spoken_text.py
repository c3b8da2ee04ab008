"""A marked text as it is spoken: numbers and signs as words, without what nobody can say, marks on their words."""

import unicodedata
from dataclasses import dataclass

from speechbrain_emo.prompts.markup import EmotionSpan, MarkedText

#: Unicode categories without a sound: symbols (emoji among them), surrogates, private and unassigned characters, marks
#: that change emoji, controls. Letters with marks of their own language (Mn) stay.
_SILENT = ("So", "Sk", "Cs", "Co", "Cn", "Cc", "Cf")
_VARIATIONS = range(0xFE00, 0xFE10)


@dataclass(frozen=True)
class SpokenText:
    """What is spoken, and what was left out.

    Arguments
    ---------
    marked : MarkedText
        The text to speak, with its marks.
    dropped : tuple of str
        Characters that have no sound.
    replaced : tuple of (str, str)
        Words that are spoken otherwise than they are written.
    """

    marked: MarkedText
    dropped: tuple = ()
    replaced: tuple = ()


def _silent(character):
    if character.isspace():
        return False
    return ord(character) in _VARIATIONS or unicodedata.category(character) in _SILENT


def spoken_text(marked, words, plain_words=False):
    """The text to speak.

    Arguments
    ---------
    marked : MarkedText
        As it was written.
    words : sequence of (int, int, sequence of str)
        Start, stop (characters of the text) and spoken tokens of each word, in order, as
        ``alignment.normalize.normalize`` finds them.
    plain_words : bool
        Whether the model knows nothing but lower-case words with blanks between them.

    Returns
    -------
    SpokenText
        A word with digits is written as it is spoken; others keep their spelling unless ``plain_words``. Its text may
        be empty.

    Example
    -------
    >>> marked = MarkedText("Wow 😀, 2 goals!", (EmotionSpan(0, 15, "hap", "high"),))
    >>> spoken = spoken_text(marked, [(0, 3, ["wow"]), (7, 8, ["two"]), (9, 14, ["goals"])])
    >>> spoken.marked.text, spoken.dropped, spoken.replaced
    ('Wow , two goals!', ('😀',), (('2', 'two'),))
    >>> spoken_text(marked, [(0, 3, ["wow"]), (7, 8, ["two"]), (9, 14, ["goals"])], plain_words=True).marked.text
    'wow two goals'
    """
    text = marked.text
    owner = [-1] * len(text)
    for number, span in enumerate(marked.spans):
        owner[span.start : span.stop] = [number] * (span.stop - span.start)
    pieces, dropped, replaced, at = [], [], [], 0

    def between(start, stop):
        for position in range(start, stop):
            character = text[position]
            if _silent(character):
                dropped.append(character)
            elif character.isspace():
                pieces.append((" ", owner[position]))
            elif not plain_words:
                pieces.append((character, owner[position]))

    for start, stop, tokens in words:
        between(at, start)
        written, said = text[start:stop], " ".join(tokens)
        at = stop
        if plain_words:
            pieces.append((said, owner[start]))
            pieces.append((" ", -1))
            if said != written.lower():
                replaced.append((written, said))
        elif any(c.isdigit() for c in written) or any(_silent(c) for c in written):
            pieces.append((said, owner[start]))
            replaced.append((written, said))
        else:
            pieces.append((written, owner[start]))
    between(at, len(text))
    out, owners = [], []
    for piece, number in pieces:
        for character in piece:
            # One blank between words, none at the ends.
            if character == " " and (not out or out[-1] == " "):
                continue
            out.append(character)
            owners.append(number)
    while out and out[-1] == " ":
        out.pop()
        owners.pop()
    return SpokenText(MarkedText("".join(out), _spans(owners, out, marked)), tuple(dropped), tuple(replaced))


def _spans(owners, characters, marked):
    """Spans of the new text; a blank that stands between two words of one span belongs to it."""
    spans = []
    for number, span in enumerate(marked.spans):
        places = [i for i, owner in enumerate(owners) if owner == number and characters[i] != " "]
        if places:
            spans.append(EmotionSpan(places[0], places[-1] + 1, span.emotion, span.intensity))
    return tuple(spans)


def split_sentences(marked, max_characters):
    """Pieces of a marked text at the ends of sentences, else of clauses, else between words.

    Arguments
    ---------
    marked : MarkedText
        Any text.
    max_characters : int
        Longest piece; a single word may be longer.

    Returns
    -------
    list of MarkedText
        Without blanks around them; their texts joined by blanks are the text.

    Raises
    ------
    ValueError
        If ``max_characters`` is below 1.

    Example
    -------
    >>> [piece.text for piece in split_sentences(MarkedText("One two. Three four, five six!"), 14)]
    ['One two.', 'Three four,', 'five six!']
    """
    if max_characters < 1:
        raise ValueError(f"max_characters is {max_characters}; it must be at least 1")
    text, pieces, start = marked.text, [], 0
    while start < len(text):
        while start < len(text) and text[start].isspace():
            start += 1
        if start >= len(text):
            break
        stop = len(text)
        if stop - start > max_characters:
            stop = _best_cut(text, start, start + max_characters)
        piece = text[start:stop].rstrip()
        spans = tuple(
            EmotionSpan(
                max(s.start, start) - start, min(s.stop, start + len(piece)) - start, s.emotion, s.intensity
            )
            for s in marked.spans
            if max(s.start, start) < min(s.stop, start + len(piece))
        )
        pieces.append(MarkedText(piece, spans))
        start = stop
    return pieces


def _best_cut(text, start, limit):
    """Where to cut before ``limit``: behind a sentence, a clause or a word; else behind the word that is there."""
    for signs in (".!?。！？\n", ",;:、，；：", ""):
        for position in range(limit, start, -1):
            if text[position : position + 1].isspace() and (not signs or text[position - 1] in signs):
                return position
    while limit < len(text) and not text[limit].isspace():
        limit += 1
    return limit
