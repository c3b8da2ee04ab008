"""Preparation of SpeechCraft's English GigaSpeech-M part: descriptors of how 670 070 clips are spoken.

Source: Z. Jin et al., "SpeechCraft: A Fine-Grained Expressive Speech Dataset with Natural Language Description", ACM
Multimedia 2024. Layout, licence and known faults: ``README.md`` beside this file.
"""

import re
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.corpus_reader import audio_files, new_record, table_rows
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import hashed_split

#: Labels in the order of reports; they come from a classifier, not from listeners.
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
NUM_CLIPS = 670070
#: Field -> names of it in the annotation files.
FIELDS = {
    "id": ("id", "key", "segment_id", "name", "utt", "filename", "file", "wav", "path", "audio"),
    "transcript": ("transcript", "text", "transcription"),
    "gender": ("gender",),
    "age": ("age",),
    "pitch": ("pitch",),
    "speed": ("speed", "speaking_rate"),
    "volume": ("volume", "energy"),
    "emotion": ("emotion", "tone", "emotion_tone"),
    "emphasis": ("emphasis", "stress"),
    "description": ("description", "caption", "prompt"),
}
#: Their word -> ours.
WORDS = {
    "age": {
        "child": "child",
        "teenager": "teenager",
        "youth adult": "young adult",
        "young adult": "young adult",
        "middle-aged": "adult",
        "elderly": "senior",
    },
    "emotion": {
        "angry": "angry",
        "disgusted": "disgust",
        "fearful": "fear",
        "happy": "happy",
        "neutral": "neutral",
        "sad": "sad",
        "surprised": "surprise",
    },
    "pitch": {word: word for word in ("low", "normal", "high")},
    "volume": {word: word for word in ("low", "normal", "high")},
    "speed": {word: word for word in ("slow", "normal", "fast")},
}
_TAGS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
_SEGMENT = re.compile(r"(?P<recording>(?:POD|AUD|YOU)\d+)_S\d+")
WHERE = (
    "SpeechCraft's annotations are at https://github.com/thuhcsi/SpeechCraft, the clips are GigaSpeech's subset M "
    "(https://github.com/SpeechColab/GigaSpeech): put both into one folder; see recipes/SpeechCraft/README.md"
)


def prepare_speechcraft(
    data_folder,
    save_folder,
    annotations=None,
    valid_share=0.005,
    test_share=0.005,
    min_duration=0.5,
    max_duration=30.0,
    check_audio="headers",
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, preparation.json and data_check.json.

    GigaSpeech does not know its speakers: ``speaker`` is the recording (a podcast, an audiobook, a video), and the
    parts
    share no recording.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds the annotation files and, somewhere below it, the clips (``POD0000000004_S0000000.wav``).
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    annotations : sequence of str, optional
        Files below ``data_folder`` (CSV, TSV, JSON, JSON lines), of which later ones add fields to the clips of earlier
        ones. Default: all such files in ``data_folder`` itself.
    valid_share, test_share : float
        Shares of the recordings, chosen by a hash of their name.
    min_duration, max_duration : float
        Seconds; clips outside are left out and counted.
    check_audio : str
        ``full``, ``headers`` or ``off``: how much the data check reads.
    num_workers : int, optional
        Threads of the data check.
    progress : bool
        Show progress bars.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not SpeechCraft, or what would be written has a fault.
    """
    records, findings = read_corpus(data_folder, annotations, min_duration, max_duration, progress)
    return write_fold(
        "SpeechCraft",
        records,
        lambda usable: hashed_split(usable, valid_share, test_share),
        data_folder,
        save_folder,
        EMOTIONS,
        require_transcript=False,
        measure=False,
        num_workers=num_workers,
        progress=progress,
        settings={"valid_share": valid_share, "test_share": test_share},
        findings=findings,
        check_audio=check_audio,
        max_duration=max_duration,
    )


def read_corpus(data_folder, annotations=None, min_duration=0.5, max_duration=30.0, progress=True):
    """Read annotations and the clips' headers.

    Arguments
    ---------
    data_folder, annotations, min_duration, max_duration, progress :
        As in :func:`prepare_speechcraft`.

    Returns
    -------
    records : dict
        Clip -> record with ``descriptors`` (gender, age, pitch, volume, speed, emphasis, description; those it has).
    findings : list of Finding

    Raises
    ------
    ManifestError
        If there are no annotations, or none of the clips.
    """
    folder = Path(data_folder)
    suffixes = (".csv", ".tsv", ".json", ".jsonl")
    files = (
        [folder / name for name in annotations]
        if annotations
        else sorted(p for p in folder.glob("*") if p.suffix in suffixes)
    )
    if not files or not all(p.is_file() for p in files):
        lacking = (
            ", ".join(str(p) for p in files if not p.is_file())
            or "annotation files (CSV, JSON) in the folder"
        )
        raise ManifestError(f"{folder} is not SpeechCraft; missing: {lacking}. {WHERE}")
    clips = {}
    for file in files:
        for row in table_rows(file):
            values = _fields(row)
            if values.get("id"):
                clips.setdefault(Path(str(values.pop("id"))).stem, {}).update(values)
    places = {path.stem: path for path in audio_files(folder)}
    records, findings, left_out, unknown = {}, [], Counter(), Counter()
    for name, values in tqdm(clips.items(), desc="SpeechCraft", unit="clip", disable=not progress):
        match = _SEGMENT.fullmatch(name)
        if match is None:
            left_out["not a clip of GigaSpeech"] += 1
            continue
        if name not in places:
            left_out["no audio"] += 1
            continue
        try:
            info = audio_info(places[name])
        except AudioError as error:
            findings.append(Finding(name, f"left out: {error}"))
            continue
        if not min_duration <= info.duration <= max_duration:
            left_out[f"outside {min_duration:g} to {max_duration:g} s"] += 1
            continue
        wav = "{data_root}/" + places[name].relative_to(folder).as_posix()
        records[name] = _record(wav, info.duration, match["recording"], values, unknown)
    findings += [Finding("", f"{count} clips left out: {why}") for why, count in sorted(left_out.items())]
    findings += [
        Finding("", f"{field} {value!r} of {count} clips is unknown: without it")
        for (field, value), count in sorted(unknown.items())
    ]
    if not records:
        reasons = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "no annotation has an id"
        raise ManifestError(f"{folder}: none of {len(clips)} clips can be used ({reasons}). {WHERE}")
    if len(records) != NUM_CLIPS:
        findings.append(Finding("", f"{len(records)} clips; the complete part has {NUM_CLIPS}"))
    return records, findings


def _fields(row):
    plain = {str(key).strip().casefold().replace(" ", "_"): value for key, value in row.items()}
    found = {}
    for field, names in FIELDS.items():
        value = next((plain[n] for n in names if plain.get(n) not in (None, "")), None)
        if value is not None:
            found[field] = value
    return found


def _record(wav, duration, recording, values, unknown):
    words = {}
    for field, known in WORDS.items():
        value = str(values.get(field) or "").strip().casefold().replace("_", " ")
        if value in known:
            words[field] = known[value]
        elif value:
            unknown[field, value] += 1
    emotion = words.pop("emotion", None)
    record = new_record(
        wav,
        duration,
        emotion,
        recording,
        values.get("gender"),
        clean_text(values.get("transcript")),
        language="en",
    )
    record["descriptors"].update(words)
    emphasis = values.get("emphasis")
    if emphasis is not None:
        listed = emphasis if isinstance(emphasis, list) else str(emphasis).replace(";", ",").split(",")
        record["descriptors"]["emphasis"] = [
            str(w).strip() for w in listed if str(w).strip().casefold() not in ("", "none")
        ]
    if values.get("description"):
        record["descriptors"]["description"] = " ".join(str(values["description"]).split())
    return record


def clean_text(text):
    """GigaSpeech's capitals and tags of punctuation as ordinary text.

    Arguments
    ---------
    text : str or None

    Returns
    -------
    str or None

    Example
    -------
    >>> clean_text("AS THEY WERE LEAVING <COMMA> HE SAID <PERIOD>"), clean_text("Come in."), clean_text("<MUSIC>")
    ('As they were leaving, he said.', 'Come in.', None)
    """
    text = str(text or "")
    for tag, sign in _TAGS.items():
        text = text.replace(f" {tag}", sign).replace(tag, sign)
    text = " ".join(re.sub(r"<[A-Z]+>", " ", text).split())
    if not text:
        return None
    return text.capitalize() if text.isupper() else text
