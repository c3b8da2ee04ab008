"""Preparation of the Berlin Database of Emotional Speech (EmoDB) for one speaker-independent fold.

Source: F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss, "A Database of German Emotional Speech",
Interspeech 2005. Layout, licence and known faults: ``README.md`` beside this file.
"""

import functools
import re
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import (
    leave_one_speaker_and_sentence_out,
    leave_one_speaker_out,
    speaker_and_sentence_folds,
)

#: Labels in the order of reports.
EMOTIONS = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")

_EMOTION_OF_LETTER = dict(zip("WLEAFTN", EMOTIONS))

#: Speaker -> (gender, age in years when recorded), from the corpus's documentation.
SPEAKERS = {
    "03": ("male", 31),
    "08": ("female", 34),
    "09": ("female", 21),
    "10": ("male", 32),
    "11": ("male", 26),
    "12": ("male", 30),
    "13": ("female", 32),
    "14": ("female", 35),
    "15": ("male", 25),
    "16": ("female", 31),
}

#: Sentence -> text. a05 is printed as "Das schwarze Stück Papier ..." in descriptions of the corpus; all 62
#: hand-made label files of the recordings have "Blatt".
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute Abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Blatt Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}

#: Recordings of the complete corpus.
NUM_RECORDINGS = 535

HOLDOUTS = ("speaker", "speaker_and_sentence")

_NAME = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[A-Z])(?P<version>[a-z])")

_WHERE = (
    "Download http://emodb.bilderbar.info/download/download.zip (40 MB), unpack it and pass the folder that holds "
    "'wav' as data_folder; see recipes/EmoDB/README.md"
)


def folds(holdout="speaker", num_sentence_groups=2):
    """Names of the folds.

    Arguments
    ---------
    holdout : str
        ``speaker``: one fold a speaker. ``speaker_and_sentence``: one a speaker and group of sentences.
    num_sentence_groups : int
        Groups of sentences for the latter.

    Returns
    -------
    list of str

    Example
    -------
    >>> folds()[:3], folds("speaker_and_sentence")[:3]
    (['03', '08', '09'], ['03-0', '03-1', '08-0'])
    """
    _check_holdout(holdout)
    if holdout == "speaker":
        return sorted(SPEAKERS)
    return speaker_and_sentence_folds({s: {"speaker": s} for s in SPEAKERS}, num_sentence_groups)


def prepare_emodb(
    data_folder,
    save_folder,
    fold,
    seed=0,
    num_valid_speakers=2,
    holdout="speaker",
    num_sentence_groups=2,
    valid_share=0.0,
    measure=True,
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, thresholds.json and preparation.json of one fold.

    Descriptors are measured; their thresholds are fitted on the training part of the fold only. A call with the
    same arguments writes the same files.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``wav`` (and, optionally, ``silb``, ``erkennung.txt``).
    save_folder : str or pathlib.Path
        Folder for the manifests of this fold. Paths in them begin with ``{data_root}``.
    fold : str or int
        One of :func:`folds`: the test speaker, or ``speaker-group`` (an integer from the command line is taken as
        the two-digit speaker).
    seed : int
        Draws the validation speakers from the training speakers.
    num_valid_speakers : int
        Speakers of the validation part, one of each gender by default.
    holdout : str
        ``speaker``, or ``speaker_and_sentence``: training and validation have neither the speaker nor the
        sentences of the test (see :func:`speechbrain_emo.dataio.splits.leave_one_speaker_and_sentence_out`).
    num_sentence_groups : int
        For ``speaker_and_sentence``: the ten sentences are cut into so many groups, each the test group of a
        fold. 2 makes 20 folds that train on five sentences, 5 makes 50 folds that train on eight.
    valid_share : float
        With ``num_valid_speakers=0``: share of the recordings of every training speaker that validates instead.
    measure : bool
        Measure descriptors (about one minute on two cores, once: see ``descriptor_cache``).
    descriptor_cache : str or pathlib.Path, optional
        File of measurements. Default: ``descriptors.jsonl`` in ``save_folder``. Give all folds the same file, and
        the corpus is measured once.
    num_workers : int, optional
        Processes that measure; default: all cores, at most 8.
    progress : bool
        Show a progress bar.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not EmoDB (with a list of what is missing), or what would be written has a fault.
    ValueError
        If an argument is not one of the allowed values.
    """
    data_folder = Path(data_folder)
    _check_holdout(holdout)
    fold = f"{fold:02d}" if isinstance(fold, int) else str(fold)
    allowed = folds(holdout, num_sentence_groups)
    if fold not in allowed:
        raise ValueError(f"fold {fold!r} is not one of {', '.join(allowed)} (holdout={holdout})")
    records, findings = read_corpus(data_folder)
    speakers = {record["speaker"] for record in records.values()}
    if fold[:2] not in speakers:
        raise ManifestError(
            f"{data_folder}: no recordings of test speaker {fold[:2]}; speakers found: {', '.join(sorted(speakers))}. "
            f"{_WHERE}"
        )

    def make_split(usable):
        if holdout == "speaker":
            return leave_one_speaker_out(usable, fold, num_valid_speakers, seed, valid_share)
        return leave_one_speaker_and_sentence_out(
            usable, fold, num_valid_speakers, seed, num_sentence_groups, valid_share
        )

    return write_fold(
        "EmoDB",
        records,
        make_split,
        data_folder,
        save_folder,
        EMOTIONS,
        language="de",
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"holdout": holdout, "num_sentence_groups": num_sentence_groups, "seed": seed},
        findings=findings,
    )


def read_corpus(data_folder):
    """Read file names, labels, perception test and word times of the whole corpus.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``wav``.

    Returns
    -------
    records : dict
        id (name of the wav without suffix) -> record with, beside the keys of every manifest, ``sentence``,
        ``version``, ``age`` (years), ``language``, ``perception`` (shares of 20 listeners who recognised the
        emotion and found it natural) and ``words`` (``word``, ``start``, ``end`` in seconds, of hand-made
        syllable labels); the last two where the corpus has them.
    findings : list of Finding
        Files that are left out, incomplete or unknown.

    Raises
    ------
    ManifestError
        If the folder is not EmoDB.
    """
    data_folder = Path(data_folder)
    _check_layout(data_folder)
    findings = []
    perception, notes = _read_perception(data_folder / "erkennung.txt")
    findings += notes
    records = {}
    for path in sorted((data_folder / "wav").iterdir()):
        if path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.stem)
        if path.suffix.lower() != ".wav" or not match:
            findings.append(
                Finding(f"wav/{path.name}", "left out: not a name of EmoDB (such as 03a01Fa.wav)")
            )
            continue
        unknown = [
            f"{what} {match[what]!r}"
            for what, known in (
                ("speaker", SPEAKERS),
                ("sentence", SENTENCES),
                ("emotion", _EMOTION_OF_LETTER),
            )
            if match[what] not in known
        ]
        if unknown:
            findings.append(Finding(f"wav/{path.name}", f"left out: unknown {' and '.join(unknown)}"))
            continue
        try:
            info = audio_info(path)
        except AudioError as error:
            findings.append(Finding(path.stem, f"left out: {error}"))
            continue
        gender, age = SPEAKERS[match["speaker"]]
        record = {
            "wav": f"{{data_root}}/wav/{path.name}",
            "duration": round(info.duration, 6),
            "speaker": match["speaker"],
            "gender": gender,
            "transcript": SENTENCES[match["sentence"]],
            "emotion": _EMOTION_OF_LETTER[match["emotion"]],
            "descriptors": {"gender": gender, "age": age_band(age)},
            "sentence": match["sentence"],
            "version": match["version"],
            "age": age,
            "language": "de",
        }
        if path.stem in perception:
            record["perception"] = perception[path.stem]
        elif perception:
            findings.append(Finding(path.stem, "no result of the perception test"))
        if (data_folder / "silb").is_dir():
            words, message = _read_words(data_folder / "silb" / f"{path.stem}.silb", record)
            if words:
                record["words"] = words
            if message:
                findings.append(Finding(path.stem, message))
        records[path.stem] = record
    if not records:
        raise ManifestError(f"{data_folder}: none of the files in 'wav' can be used. {_WHERE}")
    findings += _orphans(data_folder, records)
    if len(records) != NUM_RECORDINGS:
        findings.append(Finding("", f"{len(records)} recordings; the complete corpus has {NUM_RECORDINGS}"))
    return records, findings


def age_band(years):
    """Word for an age: child (to 12), teenager (to 19), young adult (to 29), adult (to 59), senior.

    Example
    -------
    >>> age_band(25), age_band(31)
    ('young adult', 'adult')
    """
    for limit, band in ((12, "child"), (19, "teenager"), (29, "young adult"), (59, "adult")):
        if years <= limit:
            return band
    return "senior"


def word_intervals(syllables, transcript):
    """Group syllable intervals into the words of a sentence.

    The labels write syllables as they were spoken ("könnte te", "neben bn"), so they are matched to the words by
    least edit distance, in order, at least one syllable a word.

    Arguments
    ---------
    syllables : list of (str, float, float)
        Text, start and end in seconds, without pauses.
    transcript : str
        The sentence.

    Returns
    -------
    list of dict
        ``word`` (without punctuation), ``start``, ``end``; empty if there are fewer syllables than words.

    Example
    -------
    >>> word_intervals([("der", 0.0, 0.1), ("la", 0.1, 0.2), ("pen", 0.2, 0.4)], "Der Lappen.")
    [{'word': 'Der', 'start': 0.0, 'end': 0.1}, {'word': 'Lappen', 'start': 0.1, 'end': 0.4}]
    """
    words = re.findall(r"\w+", transcript)
    bounds = _group(tuple(text.lower() for text, _, _ in syllables), tuple(word.lower() for word in words))
    return [
        {"word": word, "start": syllables[begin][1], "end": syllables[end - 1][2]}
        for word, (begin, end) in zip(words, bounds)
    ]


@functools.lru_cache(maxsize=1024)
def _group(syllables, words):
    """(first syllable, end) of every word; empty if there are fewer syllables than words."""
    if not words or len(syllables) < len(words):
        return ()
    longest = 6
    # best[w][s]: least distance when the first w words hold the first s syllables, and where the last one began.
    # Of equal ones the later beginning is taken: a reduced syllable ("neben bm dem") belongs to the word before.
    best = [{0: (0, 0)}]
    for word in words:
        row = {}
        for begin, (distance, _) in best[-1].items():
            for end in range(begin + 1, min(begin + longest, len(syllables)) + 1):
                candidate = (distance + _edit_distance("".join(syllables[begin:end]), word), -begin)
                row[end] = min(row.get(end, candidate), candidate)
        best.append(row)
    if len(syllables) not in best[-1]:
        return ()
    end, bounds = len(syllables), []
    for row in reversed(best[1:]):
        begin = -row[end][1]
        bounds.append((begin, end))
        end = begin
    return tuple(reversed(bounds))


def _edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def _check_holdout(holdout):
    if holdout not in HOLDOUTS:
        raise ValueError(f"holdout {holdout!r} is not one of {', '.join(HOLDOUTS)}")


def _check_layout(data_folder):
    """Refuse a folder that is not EmoDB with a list of what is missing."""
    missing = []
    if not data_folder.exists():
        missing.append(f"the folder {data_folder} itself")
    elif not data_folder.is_dir():
        missing.append(f"a folder: {data_folder} is a file")
    elif not (data_folder / "wav").is_dir():
        held = sorted(p.name + ("/" if p.is_dir() else "") for p in data_folder.iterdir())
        missing.append(f"the folder 'wav' (found instead: {', '.join(held[:10]) or 'nothing'})")
        inner = [p.parent.name for p in data_folder.glob("*/wav") if p.is_dir()]
        if inner:
            missing.append(f"perhaps you mean {data_folder / inner[0]}")
    elif not any(
        _NAME.fullmatch(p.stem) and p.suffix.lower() == ".wav" for p in (data_folder / "wav").iterdir()
    ):
        held = sorted(p.name for p in (data_folder / "wav").iterdir())
        missing.append(
            f"recordings named like 03a01Fa.wav in {data_folder / 'wav'} (found: {', '.join(held[:5]) or 'nothing'})"
        )
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        raise ManifestError(f"this is not EmoDB; missing:\n{lines}\n{_WHERE}")


def _read_perception(path):
    """Wav name -> shares of listeners; Latin-1, tabs, non-breaking spaces, decimal commas."""
    if not path.is_file():
        return {}, [Finding(path.name, "not there: no results of the perception test")]
    results, findings = {}, []
    # Not splitlines(): it also cuts at Latin-1's control character 0x85.
    for number, line in enumerate(path.read_bytes().decode("latin-1").split("\n")[1:], 2):
        cells = [cell.replace("\xa0", " ").strip() for cell in line.split("\t")]
        if cells == [""]:
            continue
        try:
            _, name, recognised, natural = cells
            shares = [round(float(cell.replace(",", ".")) / 100, 4) for cell in (recognised, natural)]
        except ValueError:
            findings.append(Finding(f"{path.name}:{number}", f"line left out: {line.strip()[:60]!r}"))
            continue
        results[name.removesuffix(".wav")] = {"recognised": shares[0], "natural": shares[1]}
    return results, findings


def _read_words(path, record):
    """(word intervals or None, message or None) of one syllable label file.

    A time is where its label STARTS, whatever xlabel's convention: over the corpus, what lies before the first time
    and behind the last ('.') is 25 dB below what lies between the last two, and the fricatives of ``lablaut`` are
    noise from their time on, not up to it (test_label_times_are_starts).
    """
    if not path.is_file():
        return None, f"no word times: {path.name} is not there"
    lines = [line.split() for line in path.read_bytes().decode("latin-1").split("\n") if line.strip()]
    if not lines:
        return None, f"no word times: {path.name} is empty"
    marks = []
    for cells in lines:
        try:
            time, label = float(cells[0]), cells[1]
        except (ValueError, IndexError):
            return None, f"no word times: {path.name} has the line {' '.join(cells)[:40]!r}"
        if marks and time < marks[-1][0]:
            return None, f"no word times: times in {path.name} go back at {time:.3f} s"
        marks.append((time, label))
    if any(c.isalpha() for c in marks[-1][1]):
        return None, f"no word times: {path.name} does not say where its last syllable ends"
    # '(' starts a pause, '.' what follows the last syllable.
    syllables = [
        (label, round(start, 4), round(end, 4))
        for (start, label), (end, _) in zip(marks, marks[1:])
        if any(c.isalpha() for c in label)
    ]
    words = word_intervals(syllables, record["transcript"])
    if not words:
        return None, f"no word times: {path.name} has {len(syllables)} syllables, too few for the sentence"
    empty = [word["word"] for word in words if word["end"] <= word["start"]]
    if empty:
        return None, f"no word times: {path.name} has an interval of length 0 for {', '.join(empty)}"
    if words[-1]["end"] > record["duration"] + 0.05:
        return (
            None,
            f"no word times: {path.name} ends at {words[-1]['end']} s, the recording at {record['duration']} s",
        )
    return words, None


def _orphans(data_folder, records):
    """Label files of recordings that are not there."""
    findings = []
    for folder in ("silb", "labsilb", "lablaut"):
        if (data_folder / folder).is_dir():
            names = {p.stem[:7] for p in (data_folder / folder).iterdir() if _NAME.fullmatch(p.stem[:7])}
            for name in sorted(names - set(records)):
                findings.append(Finding(name, f"labels in {folder} without a usable recording"))
    return findings
