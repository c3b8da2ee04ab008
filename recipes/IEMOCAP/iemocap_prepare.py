"""Preparation of IEMOCAP, four classes, for one fold of leave-one-session-out.

Source: C. Busso et al., "IEMOCAP: interactive emotional dyadic motion capture database", Language Resources and
Evaluation 42, 2008. Layout, licence and known faults: ``README.md`` beside this file.
"""

import re
from collections import Counter
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import leave_one_session_out

#: Labels in the order of reports.
EMOTIONS = ("anger", "happiness", "sadness", "neutral")

#: Label of the corpus -> label here; excitement is merged into happiness. Others are not used.
EMOTION_OF_LABEL = {
    "ang": "anger",
    "hap": "happiness",
    "exc": "happiness",
    "sad": "sadness",
    "neu": "neutral",
}

SESSIONS = (1, 2, 3, 4, 5)

#: Utterances of the four classes in the complete corpus, by session: 5531 together.
NUM_UTTERANCES = {1: 1085, 2: 1023, 3: 1151, 4: 1031, 5: 1241}

_WHERE = (
    "IEMOCAP is given on request: https://sail.usc.edu/iemocap/ ; unpack it and pass the folder that holds "
    "Session1 to Session5 as data_folder; see recipes/IEMOCAP/README.md"
)

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_EVALUATION = re.compile(
    rf"\[{_NUMBER}\s*-\s*{_NUMBER}\]\s+(\S+)\s+(\w+)\s+\[{_NUMBER},\s*{_NUMBER},\s*{_NUMBER}\]"
)
_TRANSCRIPT = re.compile(rf"(\S+)\s+\[{_NUMBER}\s*-\s*{_NUMBER}\]:?\s*(.*)")
_UTTERANCE = re.compile(r"Ses0(?P<session>[1-5])[FM]_(?P<style>impro|script)\w*_(?P<gender>[FM])\w*\d+")
# Events in brackets ([LAUGHTER]) and garbage (++GARBAGE++, --) are annotation, not words.
_EVENTS = re.compile(r"\[[^\]]*\]|\+\+\w*\+\+|<[^>]*>")


def folds():
    """Names of the folds: the test session.

    Returns
    -------
    list of str

    Example
    -------
    >>> folds()
    ['1', '2', '3', '4', '5']
    """
    return [str(session) for session in SESSIONS]


def prepare_iemocap(
    data_folder,
    save_folder,
    fold,
    seed=0,
    num_valid_speakers=2,
    measure=True,
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, thresholds.json and preparation.json of one fold.

    The four classes of the literature: anger, happiness with excitement, sadness, neutral: 5531 utterances.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``Session1`` to ``Session5``.
    save_folder : str or pathlib.Path
        Folder for the manifests of this fold. Paths in them begin with ``{data_root}``.
    fold : str or int
        Test session, 1 to 5.
    seed : int
        Draws the validation speakers.
    num_valid_speakers : int
        Speakers of the validation part, from the training sessions; one of each gender by default.
    measure : bool
        Measure descriptors (about 7 hours of speech: 20 to 30 minutes on one core, once: see ``descriptor_cache``);
        their thresholds are fitted on the training part of the fold only.
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
        If the folder is not IEMOCAP (with a list of what is missing), or what would be written has a fault.
    ValueError
        If ``fold`` is not a session.
    """
    fold = str(fold)
    if fold not in folds():
        raise ValueError(f"fold {fold!r} is not one of {', '.join(folds())} (the test session)")
    records, findings = read_corpus(data_folder)
    return write_fold(
        "IEMOCAP",
        records,
        lambda usable: leave_one_session_out(usable, fold, num_valid_speakers, seed),
        data_folder,
        save_folder,
        EMOTIONS,
        language="en",
        # A few utterances hold laughter only: they have an emotion and no words.
        require_transcript=False,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"holdout": "session", "seed": seed},
        findings=findings,
    )


def read_corpus(data_folder):
    """Read labels, transcripts and the recordings' headers of the whole corpus.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``Session1`` to ``Session5``.

    Returns
    -------
    records : dict
        Utterance (``Ses01F_impro01_F000``) -> record with, beside the keys of every manifest, ``session``,
        ``dialogue``, ``style`` (improvised or scripted), ``label`` (the corpus's own), ``language`` and the mean
        ratings ``valence``, ``activation``, ``dominance`` (1 to 5).
    findings : list of Finding
        Utterances that are left out, lines that cannot be read, unexpected numbers.

    Raises
    ------
    ManifestError
        If the folder is not IEMOCAP.
    """
    data_folder = Path(data_folder)
    _check_layout(data_folder)
    records, findings = {}, []
    for session in SESSIONS:
        root = data_folder / f"Session{session}"
        transcripts = {}
        for path in _text_files(root / "dialog" / "transcriptions"):
            found, notes = _read_transcripts(path)
            transcripts.update(found)
            findings += notes
        num_used = 0
        for path in _text_files(root / "dialog" / "EmoEvaluation"):
            found, notes = _read_evaluation(path)
            findings += notes
            for name, (label, ratings) in found.items():
                if label not in EMOTION_OF_LABEL:
                    continue
                record, message = _record(data_folder, session, path.stem, name, label, ratings, transcripts)
                if name in records:
                    message, record = f"a second time in {path.name}: the first is used", None
                if message:
                    findings.append(Finding(name, message))
                if record:
                    records[name] = record
                    num_used += 1
        if num_used != NUM_UTTERANCES[session]:
            findings.append(
                Finding(
                    f"Session{session}",
                    f"{num_used} utterances of the four classes; the complete corpus has {NUM_UTTERANCES[session]}",
                )
            )
    if not records:
        raise ManifestError(f"{data_folder}: none of the utterances can be used. {_WHERE}")
    return records, findings


def clean_transcript(text):
    """Take events and garbage marks out of a transcript.

    Arguments
    ---------
    text : str

    Returns
    -------
    str or None
        None if no word is left.

    Example
    -------
    >>> clean_transcript("[LAUGHTER]  Yeah,  I know. ++GARBAGE++"), clean_transcript("[BREATHING]")
    ('Yeah, I know.', None)
    """
    text = " ".join(_EVENTS.sub(" ", text).split())
    return text if any(c.isalnum() for c in text) else None


def _record(data_folder, session, dialogue, name, label, ratings, transcripts):
    """(record or None, message or None) of one labelled utterance."""
    match = _UTTERANCE.fullmatch(name)
    if not match or int(match["session"]) != session:
        return None, f"left out: not the name of an utterance of Session{session}"
    relative = f"Session{session}/sentences/wav/{dialogue}/{name}.wav"
    try:
        info = audio_info(data_folder / relative)
    except AudioError as error:
        return None, f"left out: {error}"
    gender = {"F": "female", "M": "male"}[match["gender"]]
    transcript = clean_transcript(transcripts[name]) if name in transcripts else None
    record = {
        "wav": f"{{data_root}}/{relative}",
        "duration": round(info.duration, 6),
        "speaker": f"Ses0{session}_{match['gender']}",
        "gender": gender,
        "transcript": transcript,
        "emotion": EMOTION_OF_LABEL[label],
        "descriptors": {"gender": gender},
        "session": str(session),
        "dialogue": dialogue,
        "style": {"impro": "improvised", "script": "scripted"}[match["style"]],
        "label": label,
        "language": "en",
        **dict(zip(("valence", "activation", "dominance"), ratings)),
    }
    # Audio without words is found again, as an empty transcript, by the validation.
    return record, None if name in transcripts else "no transcript in dialog/transcriptions"


def _read_evaluation(path):
    """Utterance -> (label, ratings) of one dialogue; the lines between belong to single annotators."""
    found, findings = {}, []
    for number, line in enumerate(_lines(path), 1):
        if not line.startswith("["):
            continue
        match = _EVALUATION.fullmatch(line.strip())
        if not match:
            findings.append(Finding(f"{path.name}:{number}", f"line left out: {line.strip()[:80]!r}"))
            continue
        _, _, name, label, *ratings = match.groups()
        if name in found:
            findings.append(Finding(name, f"a second time in {path.name}: the first is used"))
            continue
        found[name] = (label, [float(rating) for rating in ratings])
    if not found:
        findings.append(Finding(path.name, "no labelled utterance"))
    return found, findings


def _read_transcripts(path):
    found, odd = {}, Counter()
    for line in _lines(path):
        if not line.strip():
            continue
        match = _TRANSCRIPT.fullmatch(line.strip())
        if match:
            found[match[1]] = match[4]
        else:
            odd[line.strip()[:60]] += 1
    findings = [Finding(path.name, f"transcript line left out: {line!r}") for line in odd]
    return found, findings


def _lines(path):
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.split("\n")


def _text_files(folder):
    """Files of dialogues; an unpacked archive also holds macOS's ``._Ses...txt``."""
    return sorted(p for p in folder.glob("*.txt") if not p.name.startswith("."))


def _check_layout(data_folder):
    """Refuse a folder that is not IEMOCAP with a list of what is missing."""
    missing = []
    if not data_folder.is_dir():
        missing.append(f"the folder {data_folder} itself")
    else:
        for session in SESSIONS:
            root = data_folder / f"Session{session}"
            if not root.is_dir():
                missing.append(f"Session{session}/")
                continue
            for inner in ("dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav"):
                if not (root / inner).is_dir():
                    missing.append(f"Session{session}/{inner}/")
                elif inner.startswith("dialog") and not _text_files(root / inner):
                    missing.append(f"Session{session}/{inner}/*.txt")
        inner = sorted(p.parent.name for p in data_folder.glob("*/Session1") if p.is_dir())
        if missing and inner:
            missing.append(f"perhaps you mean {data_folder / inner[0]}")
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        raise ManifestError(f"{data_folder} is not IEMOCAP; missing:\n{lines}\n{_WHERE}")
