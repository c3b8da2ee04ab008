"""Alignments that somebody made before: a folder of TextGrids as an aligner like the others."""

import difflib
import re
from pathlib import Path

from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.alignment.textgrid import SILENCE, read_textgrid
from speechbrain_emo.alignment.types import AlignedInterval, Alignment, AlignmentError, align_each


def import_textgrid(path, text=None, duration=None, speaker=None, words=None, phones=None, language="en"):
    """The alignment that a TextGrid holds.

    Arguments
    ---------
    path : str or pathlib.Path
        TextGrid of any form and encoding.
    text : str, optional
        The text as it should appear. Its words, spoken as :func:`~speechbrain_emo.alignment.normalize.normalize` says
        or as they are written, must be the TextGrid's. Default: the TextGrid's own words.
    duration : float, optional
        Of the audio, in seconds. Default: the TextGrid's end.
    speaker : str, optional
        Whose tiers are read, where there are several speakers.
    words, phones : str, optional
        Names of the tiers. Default: ``words`` and ``phones``, alone or behind the speaker's name and `` - ``.
    language : str
        Of the text.

    Returns
    -------
    Alignment
        Without confidences; the aligner is ``textgrid``.

    Raises
    ------
    AlignmentError
        If there is no such file, tier or speaker, no word, or the words are not those of the text.

    Example
    -------
    >>> from speechbrain_emo.alignment.textgrid import TextGrid, Tier, write_textgrid
    >>> path = getfixture("tmp_path") / "a.TextGrid"
    >>> tier = Tier("words", ((0.1, 0.4, "nineteen"), (0.4, 0.7, "ninety"), (0.7, 0.9, "five")))
    >>> write_textgrid(path, TextGrid((tier,), 0.0, 1.0))
    >>> [(word.label, word.start, word.end) for word in import_textgrid(path, "1995!").words]
    [('1995', 0.1, 0.9)]
    """
    grid = read_textgrid(path)
    word_tier, phone_tier = _tiers(path, grid, speaker, words, phones)
    if grid.start != 0:
        raise AlignmentError(
            f"{path}: starts at {grid.start} s; only TextGrids that start at 0 fit their audio"
        )
    length = float(duration) if duration is not None else grid.end
    if abs(length - grid.end) > 0.1:
        raise AlignmentError(
            f"{path}: ends at {grid.end:.3f} s and the audio at {length:.3f} s: they do not belong together"
        )
    spoken_words = _intervals(path, word_tier, length)
    if not spoken_words:
        raise AlignmentError(f"{path}: tier {word_tier.name!r} has no word")
    if text is None or not text.strip():
        text = " ".join(word.label for word in spoken_words)
    else:
        spoken_words = _match(path, text, spoken_words, language)
    return Alignment(
        spoken_words,
        None if phone_tier is None else _intervals(path, phone_tier, length),
        text,
        length,
        "textgrid",
    )


def _tiers(path, grid, speaker, words, phones):
    names = [tier.name for tier in grid.tiers if not tier.points]
    if words is not None:
        chosen = []
        for name in (words, phones):
            own = [tier for tier in grid.tiers if tier.name == name and not tier.points]
            if name is not None and len(own) != 1:
                raise AlignmentError(f"{path}: {len(own)} interval tiers are called {name!r}; it has {names}")
            chosen.append(own[0] if own else None)
        return chosen
    speakers = grid.speakers()
    if speaker is None and len(speakers) == 1:
        speaker = next(iter(speakers))
    if speaker not in speakers:
        if speaker is None and len(speakers) > 1:
            raise AlignmentError(
                f"{path}: has {len(speakers)} speakers; give speaker, one of {sorted(speakers)}"
            )
        wanted = "tier of words" if speaker is None else f"speaker {speaker!r}"
        raise AlignmentError(
            f"{path}: has no {wanted}; its interval tiers are {names}: give words (and phones)"
        )
    return speakers[speaker]


def _intervals(path, tier, duration):
    """Labelled intervals; the last may end a rounding behind the audio."""
    found = []
    for start, end, label in tier.entries:
        if label.strip().lower() in SILENCE:
            continue
        try:
            found.append(AlignedInterval(label.strip(), start, min(end, duration)))
        except AlignmentError as error:
            raise AlignmentError(f"{path}: tier {tier.name!r}: {error}") from error
    return tuple(found)


def _pieces(tokens):
    """Tokens without what aligners treat in different ways: hyphens, apostrophes, case."""
    return [
        piece for token in tokens for piece in re.split(r"[\s\-_]+", token.lower().replace("'", "")) if piece
    ]


def _match(path, text, intervals, language):
    """Intervals with the words of the text as labels."""
    spoken = normalize(text, language)
    # Aligners write "health-conscious" in one and some write "mr" where a text is read "mister": compare by pieces,
    # in the spoken form first and as written second.
    owners, pieces = [], []
    for index, interval in enumerate(intervals):
        own = _pieces([interval.label])
        owners += [index] * len(own)
        pieces += own
    readings = [[_pieces(word.tokens) for word in spoken.words]]
    readings.append([_pieces([re.sub(r"[^\w'\-]", "", word.label)]) for word in spoken.words])
    for reading in readings:
        if [piece for word in reading for piece in word] == pieces and all(reading):
            break
    else:
        _complain(path, [piece for word in readings[0] for piece in word], pieces)
    words, position = [], 0
    for word, own in zip(spoken.words, reading):
        first, last = owners[position], owners[position + len(own) - 1]
        if words and first == owners[position - 1]:
            raise AlignmentError(
                f"{path}: its interval {intervals[first].label!r} holds more than one word of the text {text!r}"
            )
        words.append(AlignedInterval(word.label, intervals[first].start, intervals[last].end))
        position += len(own)
    return tuple(words)


def _complain(path, wanted, found):
    for kind, a, b, c, d in difflib.SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes():
        if kind != "equal":
            raise AlignmentError(
                f"{path}: its words are not those of the text: from word {a + 1} the text has "
                f"{' '.join(wanted[a:b][:6])!r}, the TextGrid {' '.join(found[c:d][:6])!r}"
            )


class TextGridAligner:
    """Look alignments up in a folder of TextGrids, such as the Montreal Forced Aligner's output.

    Arguments
    ---------
    folder : str
        Holds ``<name>.TextGrid``, anywhere below it.
    speaker, words, phones, language
        As of :func:`import_textgrid`.

    Raises
    ------
    AlignmentError
        If there is no such folder, or no TextGrid in it.

    Example
    -------
    >>> TextGridAligner("no/such/folder")
    Traceback (most recent call last):
    ...
    speechbrain_emo.alignment.types.AlignmentError: no/such/folder: no such folder of TextGrids
    """

    name = "textgrid"

    def __init__(self, folder, speaker=None, words=None, phones=None, language="en"):
        if not Path(folder).is_dir():
            raise AlignmentError(f"{folder}: no such folder of TextGrids")
        self.folder = Path(folder)
        self.options = {"speaker": speaker, "words": words, "phones": phones, "language": language}
        self._paths = {}
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() == ".textgrid":
                self._paths.setdefault(path.stem, []).append(path)
        if not self._paths:
            raise AlignmentError(f"{folder}: holds no file *.TextGrid")

    def align(self, samples, sample_rate, text, name=None):
        """Look up one utterance; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        samples : numpy.ndarray
            Shape (N,); only its length is used, which must be the TextGrid's to 0.1 s.
        sample_rate : int
            In Hz.
        text : str or None
            What is said; empty for the TextGrid's own words.
        name : str
            Of the utterance: the TextGrid's name without its ending.

        Returns
        -------
        Alignment

        Raises
        ------
        AlignmentError
            If there is no TextGrid of this name, or several, or it does not fit the text or the audio.
        """
        paths = self._paths.get(name, [])
        if len(paths) != 1:
            raise AlignmentError(
                f"{self.folder}: has {len(paths) or 'no'} file{'s' * (len(paths) > 1)} {name}.TextGrid; each "
                "utterance needs one of its own name"
            )
        return import_textgrid(paths[0], text, len(samples) / sample_rate, **self.options)

    def align_corpus(self, items):
        """Look up many utterances; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        items : iterable of AlignmentItem
            Utterances.

        Yields
        ------
        (str, Alignment or Exception)
        """
        yield from align_each(self, items)
