"""Preparation of CREMA-D: six emotions, 91 actors, what a crowd heard in each recording.

Source: H. Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Transactions on Affective
Computing 5(4), 2014. Layout, licence and known faults: ``README.md`` beside this file.
"""

from collections import Counter, defaultdict
from pathlib import Path

from speechbrain_emo.dataio.corpus_reader import new_record, read_files, table_rows
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import speaker_folds

#: Labels in the order of reports.
EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
_OF_CODE = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
_OF_LETTER = {label[0].upper(): label for label in EMOTIONS}
INTENSITIES = {"LO": "weak", "MD": "medium", "HI": "strong"}
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
NUM_RECORDINGS = 7442
LABELS_FROM = ("acted", "heard")
#: Kind of question in finishedResponses.csv: the crowd heard the voice alone.
VOICE_ONLY = "1"
PATTERN = r"(?P<id>(?P<speaker>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]{2,3}))"
WHERE = (
    "CREMA-D is at https://github.com/CheyneyComputerScience/CREMA-D (ODbL): pass the clone's folder, with AudioWAV "
    "(Git LFS); see recipes/CREMAD/README.md"
)


def prepare_cremad(
    data_folder,
    save_folder,
    fold="1",
    num_folds=5,
    num_valid_speakers=8,
    seed=0,
    labels_from="acted",
    measure=True,
    check_audio="full",
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, thresholds.json, preparation.json and data_check.json of one fold.

    Records have ``soft_labels`` (label -> share of the votes) where the crowd's answers to the voice alone are there.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``AudioWAV`` and the tables.
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    fold, num_folds, num_valid_speakers, seed :
        As in :func:`speechbrain_emo.dataio.splits.speaker_folds`.
    labels_from : str
        ``acted``: the emotion that the actor was asked for. ``heard``: the one most of the crowd heard in the voice;
        recordings with a tie have no label and are left out.
    measure : bool
        Measure pitch, volume and speed.
    check_audio : str
        ``full``, ``headers`` or ``off``: how much the data check reads.
    descriptor_cache : str or pathlib.Path, optional
        File of measurements, shared by folds.
    num_workers : int, optional
        Processes that measure.
    progress : bool
        Show progress bars.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not CREMA-D, or what would be written has a fault.
    ValueError
        If ``labels_from`` is unknown.
    """
    if labels_from not in LABELS_FROM:
        raise ValueError(f"labels_from is {labels_from!r}; allowed: {', '.join(LABELS_FROM)}")
    people, findings = read_demographics(data_folder)
    votes, notes = read_votes(data_folder)
    findings += notes
    if labels_from == "heard" and not votes:
        raise ManifestError(f"{data_folder} holds no votes, which labels_from=heard needs. {WHERE}")

    def record(found, wav, duration):
        key, code = found["id"].upper(), found["emotion"].upper()
        if code not in _OF_CODE:
            raise ValueError(f"emotion {code} is none of {', '.join(_OF_CODE)}")
        emotion, shares = _OF_CODE[code], votes.get(key)
        if labels_from == "heard":
            emotion = heard(shares)
            if emotion is None:
                raise ValueError("no emotion that most of the crowd heard")
        person = people.get(found["speaker"], {})
        return key, new_record(
            wav,
            duration,
            emotion,
            found["speaker"],
            person.get("gender"),
            SENTENCES.get(found["sentence"].upper()),
            age=person.get("age"),
            sentence=found["sentence"].upper(),
            acted=_OF_CODE[code],
            intensity=INTENSITIES.get(found["level"].upper()),
            soft_labels=shares,
            language="en",
        )

    records, more = read_files(Path(data_folder), PATTERN, record, WHERE, NUM_RECORDINGS, "CREMA-D")
    without = [key for key in records if key not in votes]
    if votes and without:
        more.append(Finding("", f"{len(without)} recordings have no votes, the first {without[0]}"))
    return write_fold(
        "CREMA-D",
        records,
        lambda usable: speaker_folds(usable, fold, num_folds, num_valid_speakers, seed),
        data_folder,
        save_folder,
        EMOTIONS,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"num_folds": num_folds, "seed": seed, "labels_from": labels_from},
        findings=findings + more,
        check_audio=check_audio,
    )


def read_demographics(data_folder):
    """Gender and age of the actors.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Holds ``VideoDemographics.csv``.

    Returns
    -------
    people : dict
        Actor -> ``gender``, ``age``.
    findings : list of Finding
    """
    path = Path(data_folder) / "VideoDemographics.csv"
    if not path.is_file():
        return {}, [Finding(path.name, "not there: genders are unknown")]
    return {
        row["ActorID"]: {"gender": row["Sex"], "age": int(row["Age"]) if row["Age"].isdigit() else None}
        for row in table_rows(path)
    }, []


def read_votes(data_folder):
    """What the crowd heard in the voice alone.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Holds ``finishedResponses.csv`` (each answer), or ``processedResults/summaryTable.csv`` or ``summaryTable.csv``
        (the emotions with most votes only).

    Returns
    -------
    votes : dict
        Recording -> (label -> share). From the summary a tie is shared equally, and what fewer heard is lost.
    findings : list of Finding
        Which table was used, rows that are left out.
    """
    folder = Path(data_folder)
    answers = folder / "finishedResponses.csv"
    if answers.is_file():
        counts, odd = defaultdict(Counter), 0
        for row in table_rows(answers):
            if str(row.get("queryType")).strip() != VOICE_ONLY:
                continue
            letter = str(row.get("respEmo")).strip().upper()[:1]
            if letter in _OF_LETTER:
                counts[Path(row["clipName"].strip()).stem.upper()][_OF_LETTER[letter]] += 1
            else:
                odd += 1
        votes = {key: _shares(of) for key, of in counts.items()}
        return votes, [Finding(answers.name, f"{odd} answers are no emotion: left out")] if odd else []
    for path in (folder / "processedResults" / "summaryTable.csv", folder / "summaryTable.csv"):
        if path.is_file():
            findings = [
                Finding(
                    path.name,
                    "soft labels hold the emotions with most votes only: finishedResponses.csv is not there",
                )
            ]
            votes = {}
            for number, row in enumerate(table_rows(path), 2):
                letters = str(row.get("VoiceVote")).split(":")
                if not set(letters) <= set(_OF_LETTER):
                    findings.append(
                        Finding(f"{path.name}:{number}", f"row left out: vote {row.get('VoiceVote')!r}")
                    )
                    continue
                votes[row["FileName"]] = _shares(Counter(_OF_LETTER[letter] for letter in letters))
            return votes, findings
    return {}, [Finding("summaryTable.csv", "not there: no votes of the crowd")]


def heard(shares):
    """The emotion with most votes, None for a tie or no vote.

    Example
    -------
    >>> heard({"fear": 0.75, "neutral": 0.25}), heard({"fear": 0.5, "neutral": 0.5}), heard(None)
    ('fear', None, None)
    """
    if not shares:
        return None
    best = max(shares.values())
    winners = [label for label, share in shares.items() if share == best]
    return winners[0] if len(winners) == 1 else None


def _shares(counts):
    total = sum(counts.values())
    return {label: round(counts[label] / total, 6) for label in EMOTIONS if counts[label]}
