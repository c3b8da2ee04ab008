"""Preparation of MSP-Podcast: emotions heard in podcasts, the corpus's own parts.

Source: R. Lotfian, C. Busso, "Building Naturalistic Emotionally Balanced Speech Corpus by Retrieving Emotional Speech
From Existing Podcast Recordings", IEEE Transactions on Affective Computing 10(4), 2019. Layout, licence and known
faults: ``README.md`` beside this file.
"""

import json
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.corpus_reader import new_record, table_rows
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import official_split

#: Labels in the order of reports.
EMOTIONS = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
OF_CODE = {
    "A": "angry",
    "C": "contempt",
    "D": "disgust",
    "F": "fear",
    "H": "happy",
    "N": "neutral",
    "S": "sad",
    "U": "surprise",
}
#: Codes without a label: other, no agreement.
NO_LABEL = ("O", "X")
PARTS = {"train": ("Train",), "valid": ("Development",)}
DIMENSIONS = {"EmoAct": "arousal", "EmoVal": "valence", "EmoDom": "dominance"}
_COLUMNS = ("FileName", "EmoClass", "SpkrID", "Gender", "Split_Set")
WHERE = (
    "MSP-Podcast is given under licence by the University of Texas at Dallas "
    "(the MSP lab's page of the corpus): pass the folder with Audios and Labels; "
    "see recipes/MSPPodcast/README.md"
)


def prepare_msppodcast(
    data_folder,
    save_folder,
    test_part="Test1",
    emotions=EMOTIONS,
    measure=False,
    check_audio="headers",
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, preparation.json and data_check.json of the corpus's own parts.

    Records have ``soft_labels`` (shares of the annotators' primary emotions) where ``labels_detailed`` is there, and
    ``ratings`` (arousal, valence, dominance, 1 to 7).

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``Labels/labels_consensus.csv``, ``Audios`` and, optionally, ``Transcripts``.
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    test_part : str
        ``Test1`` or ``Test2``. Labels of ``Test3`` are not published.
    emotions : sequence of str
        Which of the eight are used; recordings of others, and those without agreement, are left out and counted.
    measure : bool
        Measure pitch, volume and speed.
    check_audio : str
        ``full``, ``headers`` or ``off``: how much the data check reads.
    descriptor_cache : str or pathlib.Path, optional
        File of measurements.
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
        If the folder is not MSP-Podcast, or what would be written has a fault.
    ValueError
        If an emotion or the test part is unknown.
    """
    unknown = sorted(set(emotions) - set(EMOTIONS))
    if unknown or test_part not in ("Test1", "Test2"):
        raise ValueError(
            f"emotions {unknown} or test part {test_part!r} unknown; allowed: {', '.join(EMOTIONS)}; Test1, Test2"
        )
    records, findings = read_corpus(data_folder, emotions, progress)
    names = {**PARTS, "test": (test_part,)}
    known = {value for values in names.values() for value in values}
    return write_fold(
        "MSP-Podcast",
        {key: record for key, record in records.items() if record["subset"] in known},
        lambda usable: official_split(usable, names),
        data_folder,
        save_folder,
        tuple(emotions),
        require_transcript=False,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"test_part": test_part},
        findings=findings,
        check_audio=check_audio,
    )


def read_corpus(data_folder, emotions=EMOTIONS, progress=True):
    """Read labels, transcripts and the recordings' headers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        As in :func:`prepare_msppodcast`.
    emotions : sequence of str
        As in :func:`prepare_msppodcast`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    records : dict
        File name without suffix -> record; ``subset`` is the corpus's own name of the part.
    findings : list of Finding
        What was left out, counted by reason.

    Raises
    ------
    ManifestError
        If the folder is not MSP-Podcast.
    """
    folder = Path(data_folder)
    table = folder / "Labels" / "labels_consensus.csv"
    lacking = [str(p.relative_to(folder)) for p in (table, folder / "Audios") if not p.exists()]
    if lacking:
        raise ManifestError(f"{folder} is not MSP-Podcast; missing: {', '.join(lacking)}. {WHERE}")
    rows = table_rows(table)
    absent = [c for c in _COLUMNS if not rows or c not in rows[0]]
    if absent:
        raise ManifestError(f"{table}: no column {', '.join(absent)}. {WHERE}")
    votes, findings = _read_votes(folder / "Labels")
    left_out, records = Counter(), {}
    for row in tqdm(rows, desc="MSP-Podcast", unit="file", disable=not progress):
        name, code = Path(row["FileName"].strip()).stem, row["EmoClass"].strip()
        emotion = OF_CODE.get(code)
        if emotion not in emotions:
            left_out[f"emotion {code}" + (" (no label)" if code in NO_LABEL else "")] += 1
            continue
        try:
            info = audio_info(folder / "Audios" / f"{name}.wav")
        except AudioError as error:
            findings.append(Finding(name, f"left out: {error}"))
            continue
        text = folder / "Transcripts" / f"{name}.txt"
        speaker = row["SpkrID"].strip()
        records[name] = new_record(
            f"{{data_root}}/Audios/{name}.wav",
            info.duration,
            emotion,
            None if speaker.casefold() in ("", "unknown") else speaker,
            row["Gender"],
            text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None,
            subset=row["Split_Set"].strip(),
            soft_labels=votes.get(name),
            ratings={ours: float(row[theirs]) for theirs, ours in DIMENSIONS.items() if row.get(theirs)}
            or None,
            language="en",
        )
    findings += [
        Finding("", f"{count} recordings left out: {why}") for why, count in sorted(left_out.items())
    ]
    if not records:
        first = next((str(f) for f in findings), "no row")
        raise ManifestError(
            f"{folder}: none of {len(rows)} recordings can be used; the first: {first}. {WHERE}"
        )
    return records, findings


def _read_votes(folder):
    """Recording -> shares of the annotators' primary emotions, from ``labels_detailed.json``."""
    path = folder / "labels_detailed.json"
    if not path.is_file():
        return {}, [Finding(path.name, "not there: no soft labels")]
    votes = {}
    for name, workers in json.loads(path.read_text(encoding="utf-8")).items():
        counts = Counter()
        for answers in workers.values():
            label = str(answers.get("EmoClass_Major", "")).strip().casefold()
            label = {"happiness": "happy", "anger": "angry", "sadness": "sad"}.get(label, label)
            if label in EMOTIONS:
                counts[label] += 1
        if counts:
            total = sum(counts.values())
            votes[Path(name).stem] = {k: round(counts[k] / total, 6) for k in EMOTIONS if counts[k]}
    return votes, []
