"""Preparation of EmoV-DB, English: five emotions, four speakers.

Source: A. Adigwe et al., "The emotional voices database: towards controlling the emotion dimension in voice
generation systems",
arXiv 1806.09514, 2018.
Layout, licence and known faults: ``README.md`` beside this file.
"""

import re
from pathlib import Path

from speechbrain_emo.dataio.corpus_reader import new_record, read_files
from speechbrain_emo.dataio.manifest import Finding
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import speaker_folds

#: Labels in the order of reports.
EMOTIONS = ("amused", "anger", "disgust", "neutral", "sleepiness")
GENDERS = {"bea": "female", "jenie": "female", "josh": "male", "sam": "male"}
_SPELT = {"angry": "anger", "disgusted": "disgust", "sleepy": "sleepiness"}
NUM_RECORDINGS = None  # 6893 by OpenSLR's page; the releases differ
# The archives are bea_Amused.tar.gz and so on; some copies have bea/Amused.
PATTERN = (
    r"(?P<speaker>bea|jenie|josh|sam)[/_](?:.*[/_])?(?P<emotion>amused|angry|anger|disgusted|disgust|neutral|sleepiness|sleepy)"
    r"_(?P<range>\d+-\d+)_(?P<number>\d{4})"
)
WHERE = (
    "EmoV-DB is at https://www.openslr.org/115/ (for non-commercial use): unpack the archives into one folder and "
    "pass it; see recipes/EmoVDB/README.md"
)


def prepare_emovdb(
    data_folder,
    save_folder,
    fold="1",
    num_folds=4,
    num_valid_speakers=1,
    seed=0,
    measure=True,
    check_audio="full",
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, thresholds.json, preparation.json and data_check.json of one fold.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder of the unpacked archives of OpenSLR 115, with ``cmuarctic.data`` for the texts.
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    fold, num_folds, num_valid_speakers, seed :
        As in :func:`speechbrain_emo.dataio.splits.speaker_folds`.
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
        If the folder is not EmoV-DB, or what would be written has a fault.
    """
    texts, notes = _read_texts(Path(data_folder) / "cmuarctic.data")

    def record(found, wav, duration):
        speaker, emotion = found["speaker"].lower(), found["emotion"].lower()
        emotion, number = _SPELT.get(emotion, emotion), found["number"]
        text = texts.get(number)
        entry = new_record(
            wav, duration, emotion, speaker, GENDERS[speaker], text, sentence=number, language="en"
        )
        return f"{speaker}_{emotion}_{number}", entry

    records, findings = read_files(data_folder, PATTERN, record, WHERE, NUM_RECORDINGS, "EmoV-DB")
    findings += notes
    return write_fold(
        "EmoV-DB",
        records,
        lambda usable: speaker_folds(usable, fold, num_folds, num_valid_speakers, seed),
        data_folder,
        save_folder,
        EMOTIONS,
        require_transcript=False,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"num_folds": num_folds, "seed": seed},
        findings=findings,
        check_audio=check_audio,
    )


def _read_texts(path):
    """Number of a sentence (of list A, as in the file names) -> text."""
    if not path.is_file():
        return {}, [
            Finding(path.name, "not there (it is at http://festvox.org/cmu_arctic): recordings have no text")
        ]
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (re.match(r'\(\s*arctic_a(\d{4})\s+"(.*)"\s*\)', line) for line in lines)
    return {match[1]: match[2] for match in found if match}, []
