"""Preparation of RAVDESS, speech, eight emotions, 24 actors.

Source: S. R. Livingstone, F. A. Russo, "The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS)",
PLoS ONE
13(5), 2018.
Layout, licence and known faults: ``README.md`` beside this file.
"""

from speechbrain_emo.dataio.corpus_reader import new_record, read_files
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import speaker_folds

#: Labels in the order of reports; the file names count them from 01.
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
SENTENCES = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
INTENSITIES = {"01": "normal", "02": "strong"}
NUM_RECORDINGS = 1440
PATTERN = (
    r"(?P<id>(?P<modality>\d\d)-(?P<channel>\d\d)-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<sentence>\d\d)-(?P<take>\d\d)"
    r"-(?P<speaker>\d\d))"
)
WHERE = (
    "RAVDESS is at https://zenodo.org/records/1188976 (CC BY-NC-SA 4.0): unpack Audio_Speech_Actors_01-24.zip and "
    "pass the folder of Actor_01 to Actor_24; see recipes/RAVDESS/README.md"
)


def prepare_ravdess(
    data_folder,
    save_folder,
    fold="1",
    num_folds=6,
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
        Folder that holds ``Actor_01`` to ``Actor_24``.
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
        If the folder is not RAVDESS, or what would be written has a fault.
    """
    records, findings = read_files(data_folder, PATTERN, _record, WHERE, NUM_RECORDINGS, "RAVDESS")
    return write_fold(
        "RAVDESS",
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
    if found["channel"] != "01":
        raise ValueError(f"vocal channel {found['channel']} is song, not speech")
    if not 1 <= int(found["emotion"]) <= len(EMOTIONS):
        raise ValueError(f"emotion {found['emotion']} is none of 01 to {len(EMOTIONS):02d}")
    return found["id"], new_record(
        wav,
        duration,
        EMOTIONS[int(found["emotion"]) - 1],
        found["speaker"],
        "male" if int(found["speaker"]) % 2 else "female",
        SENTENCES.get(found["sentence"]),
        sentence=found["sentence"],
        acted_intensity=INTENSITIES.get(found["intensity"]),
        language="en",
    )
