"""Praat TextGrids, long and short, in UTF-8 or UTF-16, and CTM files, in and out.

The format is read and written by praatio (https://github.com/timmahrt/praatIO, which the Montreal Forced Aligner
uses, too). What is added here: encodings by their byte-order mark, tiers of several speakers, tiers of one name twice,
a last line without its end, and checks that name the file.
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from speechbrain_emo.alignment.types import AlignedInterval, Alignment, AlignmentError

FORMS = {"long": "long_textgrid", "short": "short_textgrid"}
#: Labels of nothing, in any case; `spn` (speech that is no known word) is something.
SILENCE = ("", "sil", "sp", "<sil>", "<eps>", "<p:>", "_")
_INTERVALS, _POINTS = "IntervalTier", "TextTier"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Tier:
    """One tier of a TextGrid.

    Arguments
    ---------
    name : str
        Such as ``words``, or ``anna - words`` where there are several speakers.
    entries : tuple
        (start, end, label) of intervals, or (time, label) of points, in seconds and in order, empty labels included.
    points : bool
        Whether the entries are points.
    """

    name: str
    entries: tuple
    points: bool = False


@dataclass(frozen=True)
class TextGrid:
    """Everything that a TextGrid file says.

    Arguments
    ---------
    tiers : tuple of Tier
        In the order of the file.
    start, end : float
        Seconds.

    Example
    -------
    >>> words = Tier("words", ((0.0, 0.4, "so"), (0.4, 1.0, "")))
    >>> grid = TextGrid((words, Tier("clicks", ((0.2, "!"),), points=True)), 0.0, 1.0)
    >>> path = getfixture("tmp_path") / "a.TextGrid"
    >>> write_textgrid(path, grid, form="short", encoding="utf-16")
    >>> read_textgrid(path) == grid
    True
    """

    tiers: tuple
    start: float
    end: float

    def speakers(self):
        """Word and phone tiers of every speaker.

        Returns
        -------
        dict of str to (Tier, Tier or None)
            Speaker -> words, phones. Tiers are found by names as the Montreal Forced Aligner writes them: ``words``
            and ``phones``, alone (speaker ``""``) or behind a speaker's name and `` - ``.
        """
        found = {}
        for tier in self.tiers:
            speaker, _, kind = tier.name.rpartition(" - ")
            kind = {"words": 0, "word": 0, "phones": 1, "phone": 1}.get(kind.strip().lower())
            if kind is not None and not tier.points:
                found.setdefault(speaker.strip(), [None, None])[kind] = tier
        return {speaker: tuple(pair) for speaker, pair in found.items() if pair[0] is not None}


def _praatio():
    try:
        from praatio.utilities import errors, textgrid_io
    except ImportError as error:
        raise AlignmentError(
            "the package praatio, which reads and writes TextGrids, is not installed: "
            "pip install 'speechbrain_emo[align]'"
        ) from error
    return textgrid_io, errors.PraatioException


def read_textgrid(path):
    """Read a TextGrid.

    Arguments
    ---------
    path : str or pathlib.Path
        Long or short form; UTF-8 with or without mark, or UTF-16 with mark. Praat itself may write Latin-1, which is
        read where it is not valid UTF-8.

    Returns
    -------
    TextGrid

    Raises
    ------
    AlignmentError
        If the file is missing, is no TextGrid, or is cut off; or praatio is missing.

    Example
    -------
    >>> read_textgrid("no_such.TextGrid")
    Traceback (most recent call last):
    ...
    speechbrain_emo.alignment.types.AlignmentError: no_such.TextGrid: no such file
    """
    reader, praatio_error = _praatio()
    path = Path(path)
    if not path.is_file():
        raise AlignmentError(f"{path}: no such file")
    text = _readable_numbers(_decode(path.read_bytes(), path), path)
    if "ooTextFile" not in text[:200] or "TextGrid" not in text[:200]:
        raise AlignmentError(
            f'{path}: is no TextGrid in text form; its first line must be File type = "ooTextFile"'
        )
    try:
        # Without an end of its last line the reader would leave the last entry out.
        content = reader.parseTextgridStr(text + "\n", includeEmptyIntervals=True)
        tiers = []
        for tier in content["tiers"]:
            points = tier["class"] == _POINTS
            entries = [
                (*map(float, entry[:-1]), entry[-1].replace('""', '"') if points else entry[-1])
                for entry in tier["entries"]
            ]
            tiers.append(Tier(tier["name"], tuple(entries), points))
        grid = TextGrid(tuple(tiers), float(content["xmin"]), float(content["xmax"]))
    except (praatio_error, ValueError, IndexError, KeyError) as error:
        raise AlignmentError(f"{path}: is a damaged TextGrid ({type(error).__name__}: {error})") from error
    _check_counts(path, text, grid)
    return grid


def _decode(content, path):
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            return content.decode("latin-1")
        raise AlignmentError(f"{path}: is marked as {encoding}, and is not ({error})") from error


def _readable_numbers(text, path):
    """Spell times of the long form as praatio's patterns want them: they know no exponent and drop a sign."""

    def plain(match):
        value = float(match[3])
        if value < 0:
            raise AlignmentError(f"{path}: has the time {match[3]}; times below 0 are not supported")
        key = "number" if match[2] == "time" else match[2]
        return f"{match[1]}{key} = {match[3] if value and 'e' not in match[3].lower() else f'{value:.12f}'}"

    return re.sub(r"(?m)^(\s*)(xmin|xmax|number|time) ?= ?(-?[\d.]+(?:[eE][-+]?\d+)?)", plain, text)


def _check_counts(path, text, grid):
    """A file that was cut off parses as far as it goes: hold what was read against the announced sizes."""
    lines = [line.strip() for line in text.splitlines()]
    if any(line.startswith("item [") for line in lines):
        sizes = [int(line.rsplit("=", 1)[1]) for line in lines if ": size =" in line]
        announced = next((int(line.split("=")[1]) for line in lines if line.startswith("size =")), len(sizes))
    else:
        sizes, announced = [], None
        for number, line in enumerate(lines):
            if line in (f'"{_INTERVALS}"', f'"{_POINTS}"') and number + 4 < len(lines):
                sizes.append(int(lines[number + 4]) if lines[number + 4].isdigit() else -1)
            if line == "<exists>":
                announced = int(lines[number + 1])
    found = [len(tier.entries) for tier in grid.tiers]
    if announced != len(found) or sizes != found:
        raise AlignmentError(
            f"{path}: announces {announced} tiers with {sizes} entries, and holds {len(found)} with {found}: the file "
            "is cut off or damaged"
        )


def write_textgrid(path, grid, form="long", encoding="utf-8"):
    """Write a TextGrid.

    Arguments
    ---------
    path : str or pathlib.Path
        Overwritten where it exists.
    grid : TextGrid or Alignment
        An alignment becomes the tiers ``words`` and, where it has phones, ``phones``.
    form : str
        ``long`` or ``short``.
    encoding : str
        ``utf-8`` or ``utf-16`` (with mark).

    Raises
    ------
    AlignmentError
        If the form or the encoding is another, or intervals overlap or leave the grid's time.
    """
    writer, praatio_error = _praatio()
    if form not in FORMS:
        raise AlignmentError(f"form is {form!r}; allowed: {', '.join(FORMS)}")
    if encoding not in ("utf-8", "utf-16"):
        raise AlignmentError(f"encoding is {encoding!r}; allowed: utf-8, utf-16")
    if isinstance(grid, Alignment):
        grid = from_alignment(grid)
    tiers = []
    for tier in grid.tiers:
        entries = sorted(tier.entries)
        for previous, current in zip(entries, entries[1:]):
            if not tier.points and current[0] < previous[1] - 1e-9:
                raise AlignmentError(f"{path}: in tier {tier.name!r} {current} overlaps {previous}")
        tiers.append(
            {
                "class": _POINTS if tier.points else _INTERVALS,
                "name": tier.name,
                "xmin": grid.start,
                "xmax": grid.end,
                "entries": [tuple(entry) for entry in entries],
            }
        )
    content = {"xmin": grid.start, "xmax": grid.end, "tiers": tiers}
    try:
        text = writer.getTextgridAsStr(
            content, FORMS[form], includeBlankSpaces=True, minimumIntervalLength=None
        )
    except praatio_error as error:
        raise AlignmentError(f"{path}: cannot be written: {error}") from error
    # `utf-16` writes the mark.
    Path(path).write_text(_readable_numbers(text, path), encoding=encoding, newline="\n")


def from_alignment(alignment, speaker=""):
    """The tiers of an alignment.

    Arguments
    ---------
    alignment : Alignment
        Words and, where known, phones.
    speaker : str
        Put in front of the tiers' names: ``anna - words``.

    Returns
    -------
    TextGrid
        Without empty intervals; writing fills them in.

    Example
    -------
    >>> words = (AlignedInterval("so", 0.1, 0.4),)
    >>> from_alignment(Alignment(words, None, "so", 1.0, "x")).tiers
    (Tier(name='words', entries=((0.1, 0.4, 'so'),), points=False),)
    """
    prefix = f"{speaker} - " if speaker else ""
    tiers = []
    for name, intervals in (("words", alignment.words), ("phones", alignment.phones)):
        if intervals is not None:
            # Half a millisecond of rounding beyond the end or the neighbour must not make an invalid file.
            entries, previous = [], 0.0
            for item in intervals:
                start, end = max(item.start, previous), min(item.end, alignment.duration)
                if end > start:
                    entries.append((start, end, item.label))
                    previous = end
            tiers.append(Tier(prefix + name, tuple(entries)))
    return TextGrid(tuple(tiers), 0.0, alignment.duration)


def to_ctm(alignment, name, channel="1"):
    """Words as lines of a CTM file (NIST sclite's time-marked conversation format).

    Arguments
    ---------
    alignment : Alignment
        Whose words are written.
    name : str
        Of the recording, without blanks.
    channel : str
        Of the recording.

    Returns
    -------
    str
        A line a word: recording, channel, start and duration in seconds, word, and the confidence where known.

    Raises
    ------
    AlignmentError
        If the name or the channel has a blank, which separates the fields.

    Example
    -------
    >>> to_ctm(Alignment((AlignedInterval("so", 0.1, 0.4, 0.5),), None, "so", 1.0, "x"), "a")
    'a 1 0.100000 0.300000 so 0.500000\\n'
    """
    for field in (name, channel):
        if not field or field.split() != [field]:
            raise AlignmentError(f"{field!r} cannot stand in a CTM line: blanks separate its fields")
    lines = []
    for word in alignment.words:
        confidence = "" if word.confidence is None else f" {word.confidence:.6f}"
        label = "_".join(word.label.split())
        lines.append(f"{name} {channel} {word.start:.6f} {word.duration:.6f} {label}{confidence}\n")
    return "".join(lines)


def read_ctm(path, durations=None):
    """Read the alignments of a CTM file.

    Arguments
    ---------
    path : str or pathlib.Path
        Lines of recording, channel, start, duration, word and optionally confidence; ``;;`` starts a comment.
    durations : dict of str to float, optional
        Recording -> seconds. By default a recording ends with its last word.

    Returns
    -------
    dict of (str, str) to Alignment
        (recording, channel) -> its words, in the order of their starts.

    Raises
    ------
    AlignmentError
        If a line is wrong; the message names the file and the line.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.ctm"
    >>> _ = path.write_text("a 1 0.10 0.30 so 0.5\\na 1 0.50 0.20 what\\n")
    >>> read_ctm(path)["a", "1"].words[1].end
    0.7
    """
    path = Path(path)
    if not path.is_file():
        raise AlignmentError(f"{path}: no such file")
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        try:
            name, channel, start, duration, label, *rest = fields
            confidence = float(rest[0]) if rest and rest[0] not in ("NA", "-") else None
            interval = AlignedInterval(label, float(start), float(start) + float(duration), confidence)
        except ValueError as error:
            raise AlignmentError(
                f"{path}, line {number}: {line!r} is not `recording channel start duration word [confidence]` ({error})"
            ) from error
        rows.setdefault((name, channel), []).append(interval)
    alignments = {}
    for (name, channel), words in rows.items():
        words.sort(key=lambda word: word.start)
        duration = (durations or {}).get(name, words[-1].end)
        text = " ".join(word.label for word in words)
        alignments[name, channel] = Alignment(tuple(words), None, text, duration, "ctm")
    return alignments
