"""Preparation of MEAD's audio: eight emotions at three intensities.

Source: K. Wang et al., "MEAD: A Large-scale Audio-visual Dataset for Emotional Talking-face Generation", ECCV 2020.
Layout, licence and known faults: ``README.md`` beside this file.
"""

from speechbrain_emo.dataio.corpus_reader import new_record, read_files
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import speaker_folds

#: Labels in the order of reports.
EMOTIONS = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
#: Levels in JELLY's words (arXiv 2501.04904, stage 1-2); neutral has none.
INTENSITIES = {"1": "weak", "2": "medium", "3": "strong"}
NUM_RECORDINGS = None  # the published parts differ in how many speakers they hold
PATTERN = (
    rf"(?P<speaker>[MW]\d{{3}})(?:/audio)?/(?P<emotion>{'|'.join(EMOTIONS)})"
    r"/level_(?P<level>[123])/(?P<number>\d{3})"
)
WHERE = (
    "MEAD is at https://wywu.github.io/projects/MEAD/MEAD.html (for research): unpack the audio parts, convert the "
    ".m4a files to 16 kHz wav (ffmpeg -i 001.m4a -ac 1 -ar 16000 001.wav) and pass the folder of M003 and so on; "
    "see recipes/MEAD/README.md"
)


def prepare_mead(
    data_folder,
    save_folder,
    fold="1",
    num_folds=5,
    num_valid_speakers=4,
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
        Folder that holds ``M003/audio/angry/level_1/001.wav`` and so on.
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
        If the folder is not MEAD, or what would be written has a fault.
    """
    records, findings = read_files(data_folder, PATTERN, _record, WHERE, NUM_RECORDINGS, "MEAD")
    return write_fold(
        "MEAD",
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
    speaker, emotion, level = found["speaker"].upper(), found["emotion"].lower(), found["level"]
    record = new_record(
        wav,
        duration,
        emotion,
        speaker,
        "female" if speaker[0] == "W" else "male",
        intensity=None if emotion == "neutral" else INTENSITIES[level],
        sentence=f"{emotion}{found['number']}",
        language="en",
    )
    return f"{speaker}_{emotion}_{level}_{found['number']}", record
