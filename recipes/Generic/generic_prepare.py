"""Preparation of any corpus: a table of paths and emotions, or a folder whose paths say them. No code to write."""

from pathlib import Path

from speechbrain_emo.dataio.corpus_reader import read_any
from speechbrain_emo.dataio.labels import apply_label_map, automatic_map, read_label_map
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import best_split


def prepare_generic(
    data_folder,
    save_folder,
    labels=None,
    label_map=None,
    name="Generic",
    pattern=None,
    columns=None,
    audio_root=None,
    fold="1",
    num_folds=5,
    num_valid_speakers=2,
    seed=0,
    language="en",
    max_duration=None,
    measure=True,
    check_audio="full",
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, thresholds.json, preparation.json and data_check.json.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        A table (CSV, TSV, JSON lines, JSON) with columns path, emotion and, optionally, speaker, gender, transcript,
        split;
        a folder that holds one such table; or a folder of audio (see
        :func:`speechbrain_emo.dataio.corpus_reader.read_any`).
    save_folder : str or pathlib.Path
        Folder for the manifests.
    labels : sequence of str or str, optional
        The experiment's labels, or all of them between commas. Labels of the corpus that differ in spelling only
        (``anger`` for ``angry``) become these; others are left out and counted. Default: the corpus's own.
    label_map : str or pathlib.Path, optional
        YAML or JSON of their label -> our label; null leaves out.
    name : str
        What the corpus is called; also its entry in a label map of several corpora.
    pattern : str, optional
        Regular expression over paths, for folders: see :func:`speechbrain_emo.dataio.corpus_reader.read_folder`.
    columns : dict, optional
        Field -> column, for unusual names.
    audio_root : str or pathlib.Path, optional
        What relative paths of a table start from; default: the table's folder.
    fold, num_folds, num_valid_speakers, seed :
        As in :func:`speechbrain_emo.dataio.splits.best_split`, where the corpus names no splits of its own.
    language : str
        ISO 639-1 code of the transcripts.
    max_duration : float, optional
        Seconds; longer recordings are left out.
    measure : bool
        Measure pitch, volume and speed.
    check_audio : str
        ``full``, ``headers`` or ``off``.
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
        If there is nothing to read, or what would be written has a fault.
    """
    if isinstance(labels, str):  # --labels=angry,sad, as the other commands take it
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    records, findings, root = read_any(data_folder, pattern, columns, audio_root)
    present = {r["emotion"] for r in records.values() if r.get("emotion") is not None}
    chosen = {k: v for k, v in automatic_map(present, labels).items() if v is not None} if labels else {}
    if label_map is not None:
        chosen.update(read_label_map(label_map, name))
    if chosen or labels:
        records, notes = apply_label_map(records, chosen, labels)
        findings += notes
    if max_duration is not None:
        long = [key for key, record in records.items() if record["duration"] > max_duration]
        findings += [Finding(key, f"left out: {records.pop(key)['duration']:.1f} s") for key in long]
    if not records:
        raise ManifestError(
            f"{data_folder}: none of its labels ({', '.join(sorted(present)) or 'none'}) is one of "
            f"{', '.join(labels or ())}: give a label_map"
        )
    left = sorted({r["emotion"] for r in records.values()} - {None})
    if len(left) == 1 < len(present):
        raise ManifestError(
            f"{data_folder}: of its labels ({', '.join(sorted(present))}) only {left[0]!r} is left under labels and "
            "label_map: two at least can be told apart"
        )
    own = list(labels) if labels else left
    return write_fold(
        name,
        records,
        lambda usable: best_split(usable, fold, num_folds, num_valid_speakers, seed),
        root,
        Path(save_folder),
        own,
        language=language,
        require_transcript=False,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"source": str(data_folder), "labels": own},
        findings=findings,
        check_audio=check_audio,
    )
