"""Preparation of TESS, the Toronto emotional speech set: seven emotions, two actresses.

Source: M. K. Pichora-Fuller, K. Dupuis, "Toronto emotional speech set (TESS)", Scholars Portal Dataverse, 2020.
Layout, licence and known faults: ``README.md`` beside this file.
"""

from speechbrain_emo.dataio.corpus_reader import new_record, read_files
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import speaker_folds

#: Labels in the order of reports.
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "surprise", "sad")
#: Speaker -> years.
AGES = {"OAF": 64, "YAF": 26}
NUM_RECORDINGS = 2800
# One recording is called OA_bite_neutral.
PATTERN = (
    r"(?P<speaker>OAF?|YAF)_(?P<word>[A-Za-z]+)_"
    r"(?P<emotion>angry|disgust|fear|happy|neutral|ps|pleasant_surprised?|sad)"
)
WHERE = (
    "TESS is at https://borealisdata.ca (doi:10.5683/SP2/E8H2MF, CC BY-NC-ND 4.0): pass the folder with the "
    "recordings; see "
    "recipes/TESS/README.md"
)


def prepare_tess(
    data_folder,
    save_folder,
    fold="1",
    num_folds=2,
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
        Folder that holds ``OAF_angry`` and so on, or all recordings.
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    fold, num_folds, num_valid_speakers, seed :
        As in :func:`speechbrain_emo.dataio.splits.speaker_folds`. Two speakers: the other one trains, and every
        tenth of its words validates (with a warning).
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
        If the folder is not TESS, or what would be written has a fault.
    """
    records, findings = read_files(data_folder, PATTERN, _record, WHERE, NUM_RECORDINGS, "TESS")
    return write_fold(
        "TESS",
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


def _record(found, wav, duration):
    speaker = "YAF" if found["speaker"].upper() == "YAF" else "OAF"
    emotion, word = found["emotion"].lower(), found["word"].lower()
    emotion = "surprise" if emotion.startswith("p") else emotion
    record = new_record(
        wav,
        duration,
        emotion,
        speaker,
        "female",
        f"Say the word {word}.",
        sentence=word,
        age=AGES[speaker],
        language="en",
    )
    return f"{speaker}_{word}_{emotion}", record
