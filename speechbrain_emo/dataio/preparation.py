"""The end that all corpus preparations have in common: measure, split, describe, validate, write.

A new corpus brings a function that reads its records and a split; :func:`write_fold` does the rest.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from speechbrain_emo.dataio.check import check_and_write
from speechbrain_emo.dataio.descriptors import VALUES, describe, fit_thresholds, measure_manifest
from speechbrain_emo.dataio.labels import apply_label_map, automatic_map, mapped_corpora, read_label_map
from speechbrain_emo.dataio.manifest import (
    Finding,
    ManifestError,
    split_hash,
    validate_manifest,
    validate_splits,
    write_manifest,
    write_text_atomically,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What a preparation wrote.

    Arguments
    ---------
    manifests : dict
        ``train``, ``valid``, ``test`` -> path.
    thresholds : str or None
        Path of the descriptor thresholds; None where nothing was measured.
    split_hash : str
        Of :func:`speechbrain_emo.dataio.manifest.split_hash`.
    findings : tuple of Finding
        Faults of the corpus that were survived.

    Example
    -------
    >>> Preparation({"train": "train.json"}, None, "00", ()).manifests["train"]
    'train.json'
    """

    manifests: dict
    thresholds: str
    split_hash: str
    findings: tuple


def write_fold(
    corpus,
    records,
    make_split,
    data_folder,
    save_folder,
    labels,
    language="en",
    require_transcript=True,
    measure=True,
    descriptor_cache=None,
    num_workers=None,
    progress=True,
    settings=None,
    findings=(),
    check_audio="full",
    max_duration=None,
):
    """Write train.json, valid.json, test.json, thresholds.json, preparation.json and data_check.json of one fold.

    Descriptors that a record already has are kept; the others are measured, with thresholds fitted on the
    training part only.

    Arguments
    ---------
    corpus : str
        Its name, for messages and the records' ``corpus``.
    records : dict
        id -> record, paths beginning with ``{data_root}``. Changed in place.
    make_split : callable
        records -> :class:`speechbrain_emo.dataio.splits.Split`; called after unusable records are left out.
    data_folder : str or pathlib.Path
        What ``{data_root}`` stands for.
    save_folder : str or pathlib.Path
        Folder of this fold's files.
    labels : sequence of str, optional
        Allowed emotions; None for a corpus without emotions.
    language : str
        ISO 639-1 code of the transcripts, for the syllable count.
    require_transcript : bool
        An empty transcript is a fault.
    measure : bool
        Measure descriptors.
    descriptor_cache : str or pathlib.Path, optional
        File of measurements; default: ``descriptors.jsonl`` in ``save_folder``. Folds that share it measure once.
    num_workers : int, optional
        Processes that measure.
    progress : bool
        Show a progress bar.
    settings : dict, optional
        What else preparation.json says.
    findings : sequence of Finding
        What reading the corpus found.
    check_audio : str
        How much of the audio the data check reads (see :func:`speechbrain_emo.dataio.check.check_splits`):
        ``headers`` for
        corpora of hundreds of hours.
    max_duration : float, optional
        Seconds; longer audio is a finding of the data check.

    Returns
    -------
    Preparation

    Raises
    ------
    ManifestError
        If what would be written has a fault; nothing is written then.

    Example
    -------
    >>> import numpy, soundfile
    >>> from speechbrain_emo.dataio.splits import leave_one_speaker_out
    >>> folder, records = getfixture("tmp_path"), {}
    >>> for speaker in "abc":
    ...     soundfile.write(folder / f"{speaker}.wav", numpy.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    ...     records[speaker] = {"wav": f"{{data_root}}/{speaker}.wav", "duration": 0.5, "speaker": speaker,
    ...                         "gender": None, "transcript": "yes", "emotion": "joy", "descriptors": {}}
    >>> done = write_fold("Small", records, lambda r: leave_one_speaker_out(r, "b", 1), folder, folder / "b", ["joy"],
    ...                   progress=False)
    >>> sorted(p.name for p in (folder / "b").iterdir())
    ['audio_check.jsonl', 'data_check.json', 'descriptors.jsonl', 'preparation.json', 'test.json', 'thresholds.json',
    'train.json', 'valid.json']
    """
    data_folder, save_folder, findings = Path(data_folder), Path(save_folder), list(findings)
    for record in records.values():
        record.setdefault("corpus", corpus)
    replacements = {"data_root": str(data_folder)}
    measurements = {}
    if measure:
        measurements, failures = measure_manifest(
            records,
            cache_file=descriptor_cache or save_folder / "descriptors.jsonl",
            num_workers=num_workers,
            language=language,
            replacements=replacements,
            progress=progress,
            desc=f"{corpus} descriptors",
        )
        for key, message in failures.items():
            findings.append(Finding(key, f"left out: {message}"))
            del records[key]
    split = make_split(records)
    parts = split.select(records)
    thresholds = None
    if measure:
        train = list(parts["train"])
        thresholds = fit_thresholds(
            [measurements[i] for i in train], [records[i].get("gender") for i in train]
        )
        for part in parts.values():
            for key, record in part.items():
                words = describe(measurements[key], record.get("gender"), thresholds)
                record["descriptors"] = {**words, **(record.get("descriptors") or {})}
                record["measured"] = {
                    name: None if value is None else round(value, 3)
                    for name, value in asdict(measurements[key]).items()
                }
    # A validation part may be left out on purpose, an empty training or test part is always a fault.
    needed = {name: part for name, part in parts.items() if part or name != "valid"}
    for part in needed.values():
        if part:
            findings += validate_manifest(
                part, labels, require_transcript, replacements=replacements, descriptor_values=VALUES
            )
    findings += validate_splits(needed, speaker_independent=split.speaker_independent)
    findings += [Finding("", warning) for warning in split.warnings]

    manifests = {name: str(save_folder / f"{name}.json") for name in parts}
    for name, part in parts.items():
        write_manifest(manifests[name], part)
    thresholds_file = None
    if thresholds is not None:
        thresholds_file = str(save_folder / "thresholds.json")
        write_text_atomically(thresholds_file, json.dumps(thresholds.to_dict(), indent=1) + "\n")
    digest = split_hash(parts)
    check = check_and_write(
        parts,
        save_folder,
        corpus,
        logger,
        labels=labels,
        replacements=replacements,
        audio=check_audio,
        max_duration=max_duration,
        # Folds that share their measurements share this too.
        cache_file=Path(descriptor_cache or save_folder / "descriptors").with_name("audio_check.jsonl"),
        num_workers=num_workers,
        progress=progress,
    )
    summary = {
        "corpus": corpus,
        "data_root": str(data_folder.resolve()),
        "fold": split.fold,
        **(settings or {}),
        "speakers": {name: sorted({r["speaker"] for r in part.values()}) for name, part in parts.items()},
        "num_records": {name: len(part) for name, part in parts.items()},
        "num_of_emotion": {
            name: {label: sum(r["emotion"] == label for r in part.values()) for label in labels or ()}
            for name, part in parts.items()
        },
        "split_hash": digest,
        "findings": [str(finding) for finding in findings],
        "data_check": {f.kind: f.count for f in check.findings},
    }
    write_text_atomically(
        save_folder / "preparation.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
    )
    for finding in findings:
        logger.info("%s: %s", corpus, finding)
    logger.info(
        "%s fold %s: %s records, %d findings", corpus, split.fold, summary["num_records"], len(findings)
    )
    return Preparation(manifests, thresholds_file, digest, tuple(findings))


def prepare_corpora(
    data_folder,
    save_folder,
    corpora,
    folders=None,
    skip_missing=False,
    label_map=None,
    labels=None,
    test_corpora=None,
):
    """Prepare several corpora and join them into one train.json, valid.json and test.json.

    Ids get the corpus's name before them; ``corpus`` of a record says where it comes from, which phases use for shares
    of corpora and tasks to find what they apply to.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        What ``{data_root}`` stands for in the joint manifests; the corpora lie below it.
    save_folder : str or pathlib.Path
        Folder of the joint manifests; those of a corpus go into a folder of its name.
    corpora : dict
        Name -> preparation, for example ``!name:recipes.MELD.meld_prepare.prepare_meld`` with what else it
        needs than ``data_folder`` and ``save_folder``.
    folders : dict, optional
        Name -> folder of the corpus relative to ``data_folder``, or an absolute one. Default: its name.
    skip_missing : bool
        Go on without corpora that are absent or faulty, as long as one is left, and log their messages. False: an
        error that names all of them and where to get them.
    label_map : str or pathlib.Path, optional
        YAML or JSON: corpus -> their label -> our label, null to leave a record out (see
        :func:`speechbrain_emo.dataio.labels.read_label_map`). Corpora that it does not name keep their labels.
    labels : sequence of str, optional
        The common labels. With them, spellings that mean one of them need no map; a record with any other label is
        left out
        and counted.
    test_corpora : sequence of str, optional
        Corpora whose test part is tested. Default: all.

    Returns
    -------
    Preparation

    Raises
    ------
    ManifestError
        With the messages of every corpus that could not be prepared.
    ValueError
        If ``folders`` names an unknown corpus.

    Example
    -------
    >>> prepare_corpora("data", getfixture("tmp_path"), {"X": lambda data_folder, save_folder: 1 / 0}, {"Y": "y"})
    Traceback (most recent call last):
    ...
    ValueError: folders names ['Y'], which are not among the corpora X
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    unknown = sorted(set(folders or {}) - set(corpora))
    if unknown:
        raise ValueError(f"folders names {unknown}, which are not among the corpora {', '.join(corpora)}")
    strange = sorted(set(test_corpora or ()) - set(corpora))
    if strange:
        raise ValueError(
            f"test_corpora names {strange}, which are not among the corpora {', '.join(corpora)}"
        )
    parts = {"train": {}, "valid": {}, "test": {}}
    findings, faults, settings = [], {}, {}
    for name, prepare in corpora.items():
        folder = data_folder / (folders or {}).get(name, name)
        try:
            done = prepare(data_folder=str(folder), save_folder=str(save_folder / name))
        except ManifestError as error:
            faults[name] = str(error)
            continue
        findings += [Finding(f"{name}/{f.id}" if f.id else name, f.message) for f in done.findings]
        settings[name] = done.split_hash
        root = folder.relative_to(data_folder).as_posix() if folder.is_relative_to(data_folder) else None
        for part, path in done.manifests.items():
            records = json.loads(Path(path).read_text(encoding="utf-8"))
            if part == "test" and test_corpora is not None and name not in test_corpora:
                records = {}
            records, notes = _common_labels(name, records, label_map, labels)
            findings += [Finding(f"{name} {part}", note.message) for note in notes]
            for key, record in records.items():
                place = (
                    str(folder) if root is None else "{data_root}" if root == "." else f"{{data_root}}/{root}"
                )
                parts[part][f"{name}/{key}"] = {**_moved(record, place), "corpus": name}
    if faults and (not skip_missing or not settings):
        lines = "\n".join(f"{name}: {message}" for name, message in faults.items())
        raise ManifestError(f"{len(faults)} of {len(corpora)} corpora cannot be prepared:\n{lines}")
    for name, message in faults.items():
        logger.warning("%s is left out: %s", name, message)
        findings.append(Finding(name, f"left out: {message}"))
    manifests = {part: str(save_folder / f"{part}.json") for part in parts}
    for part, path in manifests.items():
        write_manifest(path, parts[part])
    digest = split_hash(parts)
    # Between corpora: each has looked at its own audio already.
    roots = {"data_root": str(data_folder)}
    check_and_write(parts, save_folder, "all corpora", logger, labels=labels, replacements=roots, audio="off")
    summary = {
        "corpora": settings,
        "data_root": str(data_folder.resolve()),
        "num_records": {
            part: {name: sum(r["corpus"] == name for r in records.values()) for name in settings}
            for part, records in parts.items()
        },
        "split_hash": digest,
        "findings": [str(finding) for finding in findings],
    }
    write_text_atomically(
        save_folder / "preparation.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
    )
    return Preparation(manifests, None, digest, tuple(findings))


def _common_labels(corpus, records, label_map, labels):
    """Records under the common labels, and what was left out."""
    if label_map is None and labels is None:
        return records, []
    present = {r["emotion"] for r in records.values() if r.get("emotion") is not None}
    chosen = {k: v for k, v in automatic_map(present, labels).items() if v is not None} if labels else {}
    if label_map is not None and corpus in mapped_corpora(label_map):
        chosen.update(read_label_map(label_map, corpus))
        # A part may lack a label of the map: that is for the check to say, not a misspelling.
        chosen = {k: v for k, v in chosen.items() if k in present}
    return apply_label_map(records, chosen, labels)


def _moved(value, place):
    """A record whose paths begin with ``place`` instead of ``{data_root}``."""
    if isinstance(value, dict):
        return {
            k: place + v.removeprefix("{data_root}")
            if k == "wav" and isinstance(v, str) and v.startswith("{data_root}")
            else _moved(v, place)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_moved(v, place) for v in value]
    return value
