"""Preparation of SAVEE: seven emotions, four male speakers.

Source: S. Haq, P. J. B. Jackson, "Multimodal emotion recognition", in: Machine Audition, IGI Global, 2010.
Layout, licence and known faults: ``README.md`` beside this file.
"""

from speechbrain_emo.dataio.corpus_reader import new_record, read_files
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import speaker_folds

#: Labels in the order of reports.
EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
_OF_LETTER = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
NUM_RECORDINGS = 480
PATTERN = r"(?P<speaker>DC|JE|JK|KL)[/_](?P<emotion>sa|su|[adfhn])(?P<number>\d\d)"
WHERE = (
    "SAVEE is given for research: http://kahlan.eps.surrey.ac.uk/savee/ (a form): pass the folder with AudioData; see "
    "recipes/SAVEE/README.md"
)


def prepare_savee(
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
        Folder that holds ``AudioData/DC`` and so on, or recordings called ``DC_a01.wav``.
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
        If the folder is not SAVEE, or what would be written has a fault.
    """
    records, findings = read_files(data_folder, PATTERN, _record, WHERE, NUM_RECORDINGS, "SAVEE")
    return write_fold(
        "SAVEE",
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
    speaker, letter = found["speaker"].upper(), found["emotion"].lower()
    # Sentence 1 to 3 of an emotion are common to all emotions; which text it is, the archive's names do not say.
    record = new_record(
        wav,
        duration,
        _OF_LETTER[letter],
        speaker,
        "male",
        None,
        sentence=f"{letter}{found['number']}",
        language="en",
    )
    return f"{speaker}_{letter}{found['number']}", record
