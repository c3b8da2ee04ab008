"""Manifests: JSON objects ``id -> record``, written by every preparation and read by every experiment.

The keys of a record are listed in ``docs/architecture.md``. Every preparation ends in
:func:`validate_manifest` and :func:`validate_splits`, so that what training reads has been checked once.
"""

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info

#: Values of ``gender`` in a record.
GENDERS = ("female", "male", None)


class ManifestError(ValueError):
    """A manifest that cannot be used; the message lists what is wrong, record by record.

    Example
    -------
    >>> validate_manifest({"a": {"wav": "missing.wav", "duration": 1.0, "speaker": "s"}})
    Traceback (most recent call last):
    ...
    speechbrain_emo.dataio.manifest.ManifestError: 1 fault in the manifest:
      a: missing.wav: no such file
    """


@dataclass(frozen=True)
class Finding:
    """One thing that validation or a preparation noticed.

    Arguments
    ---------
    id : str
        Record or file that it is about; empty for the manifest as a whole.
    message : str
        What was found.

    Example
    -------
    >>> str(Finding("03a01Fa", "no transcript"))
    '03a01Fa: no transcript'
    """

    id: str
    message: str

    def __str__(self):
        return f"{self.id}: {self.message}" if self.id else self.message


def write_manifest(path, records):
    """Write records as JSON; the file appears complete or not at all.

    Arguments
    ---------
    path : str or pathlib.Path
        File to write; its folder is made.
    records : dict
        id -> record.

    Raises
    ------
    ManifestError
        If a record holds a value that JSON cannot (NaN included).

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.json"
    >>> write_manifest(path, {"a": {"wav": "{data_root}/a.wav", "duration": 1.0, "speaker": "s"}})
    >>> read_manifest(path, {"data_root": "corpus"})["a"]["wav"]
    'corpus/a.wav'
    """
    try:
        text = json.dumps(records, ensure_ascii=False, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{path}: the records cannot be written as JSON: {error}") from error
    write_text_atomically(path, text + "\n")


def write_text_atomically(path, text):
    """Write a UTF-8 file through a temporary one beside it, so that a kill leaves the old or the new content.

    Arguments
    ---------
    path : str or pathlib.Path
        File to write; its folder is made.
    text : str
        Content.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a" / "note.txt"
    >>> write_text_atomically(path, "done")
    >>> path.read_text()
    'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner reads; a manifest gets what the umask allows.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_manifest(path, replacements=None):
    """Read records and fill the placeholders of their paths.

    Arguments
    ---------
    path : str or pathlib.Path
        JSON manifest.
    replacements : dict, optional
        Placeholder -> folder, for ``{data_root}`` at the start of ``wav`` (also inside ``audios``).
        Transcripts are not touched: braces in them stay.

    Returns
    -------
    dict
        id -> record, in the file's order.

    Raises
    ------
    ManifestError
        If the file is missing, is not a JSON object of objects, has an id twice, or a placeholder is left.

    Example
    -------
    >>> path = getfixture("tmp_path") / "m.json"
    >>> _ = path.write_text('{"a": {"wav": "{data_root}/a.wav"}, "a": {"wav": "b.wav"}}')
    >>> read_manifest(path)
    Traceback (most recent call last):
    ...
    speechbrain_emo.dataio.manifest.ManifestError: ...m.json: ids that occur twice: a
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such manifest; run the corpus's preparation first (recipes/<Corpus>)"
        )

    def unique(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if repeated:
            raise ManifestError(f"{path}: ids that occur twice: {_shorten(repeated)}")
        return dict(pairs)

    try:
        records = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(records, dict) or not all(isinstance(r, dict) for r in records.values()):
        raise ManifestError(
            f"{path}: a manifest is a JSON object of id -> record (an object); see docs/architecture.md"
        )
    missing = set()
    for record in records.values():
        for audio in [record, *(record.get("audios") or [])]:
            if isinstance(audio.get("wav"), str):
                audio["wav"] = _fill(audio["wav"], replacements or {}, missing)
    if missing:
        raise ManifestError(
            f"{path}: no value given for {', '.join(sorted(missing))}: pass replacements={{'data_root': FOLDER}}"
        )
    return records


def _fill(wav, replacements, missing):
    for key, value in replacements.items():
        placeholder = "{" + key + "}"
        if wav.startswith(placeholder):
            return str(value) + wav[len(placeholder) :]
    if wav.startswith("{") and "}" in wav:
        missing.add(wav[: wav.index("}") + 1])
    return wav


def validate_manifest(
    records,
    labels=None,
    require_transcript=False,
    check_audio=True,
    duration_tolerance=0.02,
    min_duration=0.025,
    replacements=None,
    descriptor_values=None,
):
    """Check every record of one manifest.

    Arguments
    ---------
    records : dict or iterable of (str, dict)
        id -> record; pairs are accepted so that duplicate ids can be seen before a dict hides them.
    labels : sequence of str, optional
        Allowed emotions; None leaves ``emotion`` unchecked.
    require_transcript : bool
        An empty transcript is a fault (else it is a finding).
    check_audio : bool
        Open every file's header and compare its length with the record.
    duration_tolerance : float
        Largest accepted difference between ``duration`` and the file, in seconds.
    min_duration : float
        Shortest accepted audio, in seconds.
    replacements : dict, optional
        As in :func:`read_manifest`, for records that still hold ``{data_root}``.
    descriptor_values : dict, optional
        Field -> allowed values, for the fields of ``descriptors``.

    Returns
    -------
    list of Finding
        Things worth knowing that do not prevent use: empty transcripts, missing emotions, one audio under two
        ids.

    Raises
    ------
    ManifestError
        With the list of all faults.

    Example
    -------
    >>> record = {"wav": "a.wav", "duration": 1.0, "speaker": "s", "transcript": "", "emotion": "joy"}
    >>> validate_manifest({"a": record}, labels=["joy", "fear"], check_audio=False)
    [Finding(id='a', message='empty transcript')]
    >>> validate_manifest({"a": record}, labels=["fear"], check_audio=False)
    Traceback (most recent call last):
    ...
    speechbrain_emo.dataio.manifest.ManifestError: 1 fault in the manifest:
      a: emotion 'joy' is not one of fear
    """
    pairs = list(records.items() if isinstance(records, dict) else records)
    faults, findings = [], []
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            faults.append(Finding(key, f"the id occurs {count} times"))
    if not pairs:
        faults.append(Finding("", "the manifest has no records"))
    seen = {}
    for key, record in pairs:
        if not isinstance(record, dict):
            faults.append(Finding(key, f"the record is {type(record).__name__}, not an object"))
            continue
        for message in _record_faults(record, labels, require_transcript, descriptor_values):
            faults.append(Finding(key, message))
        if not require_transcript and not _text(record.get("transcript")):
            findings.append(Finding(key, "empty transcript"))
        if labels is not None and record.get("emotion") is None:
            findings.append(Finding(key, "no emotion"))
        for audio in record.get("audios") or [record]:
            faults += [
                Finding(key, message)
                for message in _audio_faults(
                    audio, check_audio, duration_tolerance, min_duration, replacements or {}
                )
            ]
        if not record.get("audios"):
            segment = (record.get("wav"), record.get("start"), record.get("stop"))
            if segment in seen:
                findings.append(Finding(key, f"the same audio as {seen[segment]}"))
            seen.setdefault(segment, key)
    _raise(faults, "the manifest")
    return findings


def validate_splits(splits, speaker_independent=True, min_records=1):
    """Check that the splits of an experiment keep apart what they promise to.

    Arguments
    ---------
    splits : dict
        Split name -> (id -> record).
    speaker_independent : bool or "test"
        A speaker in two splits is a fault; ``"test"``: only a speaker of ``test`` in another split is.
    min_records : int
        Fewest records of a split.

    Returns
    -------
    list of Finding
        The speakers that splits share where they may.

    Raises
    ------
    ManifestError
        If a split is too small, splits share an id or an audio segment, or share a speaker although that is
        promised not to happen.

    Example
    -------
    >>> a, b = {"wav": "a.wav", "speaker": "1"}, {"wav": "b.wav", "speaker": "1"}
    >>> validate_splits({"train": {"a": a}, "test": {"b": b}})
    Traceback (most recent call last):
    ...
    speechbrain_emo.dataio.manifest.ManifestError: 1 fault in the splits:
      speaker 1 is in train and test: the split promises to be speaker-independent
    """
    faults, findings = [], []
    for name, records in splits.items():
        if len(records) < min_records:
            faults.append(Finding(name, f"{len(records)} records, at least {min_records} are needed"))
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            ids = sorted(set(splits[first]) & set(splits[second]))
            if ids:
                faults.append(Finding("", f"ids in {first} and {second}: {_shorten(ids)}"))
            audio = sorted((_segments(splits[first]) & _segments(splits[second])), key=str)
            if audio and not ids:
                faults.append(Finding("", f"audio in {first} and {second}: {_shorten(a[0] for a in audio)}"))
            for speaker in sorted(_speakers(splits[first]) & _speakers(splits[second])):
                finding = Finding("", f"speaker {speaker} is in {first} and {second}")
                apart = "test" in (first, second) if speaker_independent == "test" else speaker_independent
                if apart:
                    finding = Finding("", f"{finding.message}: the split promises to be speaker-independent")
                (faults if apart else findings).append(finding)
    _raise(faults, "the splits")
    return findings


def split_hash(records_by_split):
    """Hash of which ids are in which split; it goes into the result file.

    Arguments
    ---------
    records_by_split : dict
        Split name -> records (dict) or ids (iterable of str). Order does not matter.

    Returns
    -------
    str
        64 hexadecimal digits (SHA-256).

    Example
    -------
    >>> split_hash({"train": ["b", "a"], "test": ["c"]}) == split_hash({"test": ["c"], "train": ["a", "b"]})
    True
    >>> split_hash({"train": ["a"], "test": ["b", "c"]}) == split_hash({"test": ["c"], "train": ["a", "b"]})
    False
    """
    content = {name: sorted(ids) for name, ids in records_by_split.items()}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _record_faults(record, labels, require_transcript, descriptor_values):
    faults = []
    if not record.get("audios") and not _text(record.get("wav")):
        faults.append("no 'wav' and no 'audios'")
    if not _text(record.get("speaker")):
        faults.append("no 'speaker' (a non-empty string)")
    if record.get("gender") not in GENDERS:
        faults.append(f"gender {record['gender']!r} is not female, male or null")
    if require_transcript and not _text(record.get("transcript")):
        faults.append("empty transcript")
    if record.get("transcript") is not None and not isinstance(record["transcript"], str):
        faults.append(f"transcript is {type(record['transcript']).__name__}, not a string")
    emotion = record.get("emotion")
    if labels is not None and emotion is not None and emotion not in labels:
        faults.append(f"emotion {emotion!r} is not one of {', '.join(map(str, labels))}")
    descriptors = record.get("descriptors")
    if descriptors is not None and not isinstance(descriptors, dict):
        faults.append(f"descriptors is {type(descriptors).__name__}, not an object of field -> value")
    elif descriptors:
        for field, value in descriptors.items():
            allowed = (descriptor_values or {}).get(field)
            if allowed is not None and value not in allowed:
                faults.append(f"descriptor {field} = {value!r} is not one of {', '.join(map(str, allowed))}")
    return faults


def _audio_faults(audio, check_audio, tolerance, min_duration, replacements):
    if not isinstance(audio, dict):
        return [f"an entry of 'audios' is {type(audio).__name__}, not an object"]
    faults = []
    duration, wav = audio.get("duration"), audio.get("wav")
    numeric = (
        isinstance(duration, (int, float)) and not isinstance(duration, bool) and math.isfinite(duration)
    )
    if not numeric or duration < min_duration:
        faults.append(f"duration {duration!r} is not a number of at least {min_duration} seconds")
        numeric = False
    start, stop = audio.get("start"), audio.get("stop")
    for name, value in (("start", start), ("stop", stop)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            return faults + [
                f"{name} {value!r} is not a non-negative integer (samples at the file's own rate)"
            ]
    if not check_audio or not _text(wav):
        return faults
    missing = set()
    path = _fill(wav, replacements, missing)
    if missing:
        return faults + [f"{wav}: no value given for {missing.pop()}: pass replacements"]
    try:
        info = audio_info(path)
    except AudioError as error:
        return faults + [str(error)]
    first, last = start or 0, info.num_samples if stop is None else stop
    if not first < last <= info.num_samples:
        return faults + [
            f"{path}: segment start={start}, stop={stop} is outside its {info.num_samples} samples"
        ]
    true = (last - first) / info.sample_rate
    if numeric and abs(true - duration) > tolerance:
        faults.append(f"{path}: duration {duration:.3f} s in the record, {true:.3f} s in the file")
    return faults


def _text(value):
    return isinstance(value, str) and bool(value.strip())


def _speakers(records):
    return {record["speaker"] for record in records.values()}


def _segments(records):
    found = set()
    for record in records.values():
        for audio in record.get("audios") or [record]:
            found.add((audio["wav"], audio.get("start"), audio.get("stop")))
    return found


def _shorten(names, most=10):
    names = [str(n) for n in names]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _raise(faults, what, most=50):
    if not faults:
        return
    lines = [f"  {fault}" for fault in faults[:most]]
    if len(faults) > most:
        lines.append(f"  ... and {len(faults) - most} more")
    raise ManifestError(
        f"{len(faults)} fault{'s' if len(faults) != 1 else ''} in {what}:\n" + "\n".join(lines)
    )
