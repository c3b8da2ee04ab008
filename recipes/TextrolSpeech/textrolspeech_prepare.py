"""Preparation of TextrolSpeech: speech with gender, pitch, tempo, energy, emotion and a sentence about the style.

Source: S. Ji et al., "TextrolSpeech: A Text Style Control Speech Corpus with Codec Language Text-to-Speech Models",
ICASSP 2024 (arXiv 2308.14430). Layout, licence and known faults: ``README.md`` beside this file.
"""

import csv
import random
import re
from collections import Counter
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

#: Labels in the order of reports.
EMOTIONS = ("neutral", "angry", "contempt", "disgusted", "fearful", "happy", "sad", "surprised")
EMOTION_OF_LABEL = {
    **{label: label for label in EMOTIONS},
    **{"anger": "angry", "disgust": "disgusted", "disgusting": "disgusted", "fear": "fearful"},
    **{"happiness": "happy", "sadness": "sad", "surprise": "surprised", "surprising": "surprised"},
}
GENDER_OF_LABEL = {
    "m": "male",
    "male": "male",
    "man": "male",
    "f": "female",
    "female": "female",
    "woman": "female",
}
LEVELS = ("low", "normal", "high")
SPEED_OF_TEMPO = {"low": "slow", "normal": "normal", "high": "fast"}

#: Names of a column in the tables that circulate.
COLUMNS = {
    "name": ("item_name",),
    "file": ("wav_fp",),
    "speed": ("tempo", "dur"),
    "pitch": ("pitch",),
    "energy": ("energy",),
    "gender": ("gender",),
    "emotion": ("emotion",),
    "speaker": ("spk",),
    "text": ("txt", "content_prompt"),
    "description": ("style_prompt",),
}
NEEDED = ("name", "speed", "pitch", "energy", "gender", "emotion", "text", "description")

_WHERE = (
    "TextrolSpeech is linked from https://github.com/jishengpeng/TextrolSpeech: its emotional recordings and tables "
    "there, LibriTTS from https://www.openslr.org/60/, VCTK from https://datashare.ed.ac.uk/handle/10283/3443; put all "
    "into one folder and pass it as data_folder; see recipes/TextrolSpeech/README.md"
)
_SUFFIXES = (".wav", ".flac", ".ogg")
_LIBRITTS = re.compile(r"(\d+)_\d+_\d+_\d+")
_VCTK = re.compile(r"([ps]\d+)_\d+(?:_mic[12])?")
_FAST = re.compile(r"\b(?:fast|quick|rapid|swift|speedy|brisk|hurried|hast)\w*", re.IGNORECASE)
_SLOW = re.compile(r"\b(?:slow|leisure|unhurried|sluggish|lethargic)\w*", re.IGNORECASE)


def prepare_textrolspeech(
    data_folder,
    save_folder,
    tables=None,
    valid_share=0.05,
    test_share=0.05,
    dur_means="auto",
    seed=0,
    measure=False,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json and preparation.json, disjoint in speakers.

    The corpus's own test set is 200 random recordings of speakers that train. Here whole speakers are held out: of each
    source (LibriTTS, VCTK, each emotional corpus) and gender, so that every source and both genders are tested.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds the tables and, anywhere below it, the recordings. Paths in the manifests begin with
        ``{data_root}``.
    save_folder : str or pathlib.Path
        Folder for the manifests.
    tables : sequence of str, optional
        CSV files relative to ``data_folder``. Default: all with the needed columns in it and in ``caption``.
    valid_share, test_share : float
        Shares of the speakers of each source and gender, rounded up where a source has at least three such speakers.
    dur_means : str
        What a ``dur`` column says: ``tempo`` (high is fast), ``duration`` (high is slow) or ``auto``: what the style
        sentences with a word for speed agree with; the counts are in preparation.json. A ``tempo`` column needs none
        of this.
    seed : int
        Draws the speakers.
    measure : bool
        Also measure pitch, volume and speed; the corpus's labels are kept, the measurements stand beside them.
    num_workers : int, optional
        Processes that measure.
    progress : bool
        Show a progress bar.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not TextrolSpeech (with what is missing), or what would be written has a fault.
    ValueError
        If ``dur_means`` is unknown.
    """
    if dur_means not in ("auto", "tempo", "duration"):
        raise ValueError(f"dur_means is {dur_means!r}; allowed: auto, tempo, duration")
    records, findings = read_corpus(data_folder, tables, dur_means)
    return write_fold(
        "TextrolSpeech",
        records,
        lambda usable: speaker_split(usable, valid_share, test_share, seed),
        data_folder,
        save_folder,
        EMOTIONS,
        measure=measure,
        num_workers=num_workers,
        progress=progress,
        settings={"seed": seed, "valid_share": valid_share, "test_share": test_share},
        findings=findings,
        check_audio="headers",  # 330 hours are not decoded for it
    )


def speaker_split(records, valid_share, test_share, seed):
    """Hold out speakers of every source and gender.

    Arguments
    ---------
    records : dict
        id -> record with ``speaker``, ``gender`` and ``source``.
    valid_share, test_share : float
        Shares of the speakers of each source and gender.
    seed : int
        Of the draw.

    Returns
    -------
    speechbrain_emo.dataio.splits.Split

    Example
    -------
    >>> records = {s: {"speaker": s, "gender": "male", "source": "x"} for s in "abcd"}
    >>> split = speaker_split(records, 0.05, 0.05, 0)
    >>> len(split.train), len(split.valid), len(split.test)
    (2, 1, 1)
    """
    groups = {}
    for record in records.values():
        groups.setdefault((record["source"], str(record["gender"])), set()).add(record["speaker"])
    part = {}
    for source, gender in sorted(groups):
        # A speaker whose rows name both genders is drawn once, with the first.
        speakers = sorted(s for s in groups[source, gender] if s not in part)
        random.Random(f"TextrolSpeech/{source}/{gender}/{seed}").shuffle(speakers)
        counts = [_at_least_one(share, len(speakers)) for share in (test_share, valid_share)]
        part.update(dict.fromkeys(speakers[: counts[0]], "test"))
        part.update(dict.fromkeys(speakers[counts[0] : sum(counts)], "valid"))
        part.update(dict.fromkeys(speakers[sum(counts) :], "train"))
    ids = {"train": [], "valid": [], "test": []}
    for name, record in records.items():
        ids[part[record["speaker"]]].append(name)
    return Split("speakers", *(tuple(sorted(ids[k])) for k in ("train", "valid", "test")))


def _at_least_one(share, number):
    if share <= 0 or number < 3:
        return 0
    return max(1, round(share * number))


def read_corpus(data_folder, tables=None, dur_means="auto"):
    """Read the tables and the recordings' headers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        As in :func:`prepare_textrolspeech`.
    tables : sequence of str, optional
        CSV files.
    dur_means : str
        As in :func:`prepare_textrolspeech`.

    Returns
    -------
    records : dict
        Item -> record with, beside the keys of every manifest, ``source`` and ``language``; ``descriptors`` hold
        gender, pitch, volume, speed and the style sentence (``description``), ``descriptions`` all that the tables
        have for the item.
    findings : list of Finding
        Rows that are left out and odd values.

    Raises
    ------
    ManifestError
        If there is no table or no usable row.
    """
    data_folder = Path(data_folder)
    if not data_folder.is_dir():
        raise ManifestError(f"{data_folder} does not exist. {_WHERE}")
    rows, findings = [], []
    for path in _tables(data_folder, tables):
        rows += [(f"{path.name}:{number}", row) for number, row in _rows(path)]
    index = _Index(data_folder)
    if not index.num_files:
        raise ManifestError(f"{data_folder} holds no recording ({', '.join(_SUFFIXES)}). {_WHERE}")
    reading, votes = _reading(rows, dur_means)
    if any("dur" in row.columns for _, row in rows):
        findings.append(
            Finding(
                "dur",
                f"read as {reading}: {votes[0]} style sentences agree with tempo, {votes[1]} with duration",
            )
        )
    records, first_error = {}, None
    for where, row in rows:
        name = row.get("name")
        if name in records:
            sentence = row.get("description")
            if sentence and sentence not in records[name]["descriptions"]:
                records[name]["descriptions"].append(sentence)
            continue
        try:
            records[name] = _record(index, row, reading)
        except (AudioError, ValueError) as error:
            first_error = first_error or error
            findings.append(Finding(where, f"{name}: left out: {error}"))
    if not records:
        raise ManifestError(
            f"{data_folder}: none of the {len(rows)} rows can be used; the first: {first_error}. {_WHERE}"
        )
    unknown = sum(r["speaker_from"] != "spk" for r in records.values())
    if unknown:
        findings.append(
            Finding("spk", f"{unknown} rows have no speaker: taken from the name or folder of the recording")
        )
    for record in records.values():
        del record["speaker_from"]
    return records, findings


class _Row:
    """A row of a table under the names of COLUMNS."""

    def __init__(self, values):
        self.columns = {k for k, v in values.items() if k is not None}
        self.values = values

    def get(self, key):
        for column in COLUMNS[key]:
            value = self.values.get(column)
            if isinstance(value, str) and value.strip():
                return " ".join(value.split())
        return None


def _tables(data_folder, tables):
    if tables is not None:
        paths = [data_folder / name for name in tables]
        missing = [str(p) for p in paths if not p.is_file()]
        if missing:
            raise ManifestError(f"no such table: {', '.join(missing)}. {_WHERE}")
    else:
        found = sorted([*data_folder.glob("*.csv"), *data_folder.glob("caption/*.csv")])
        paths = [p for p in found if not _missing_columns(p)]
        if not paths:
            odd = "".join(f"\n  {p.name} lacks {', '.join(_missing_columns(p))}" for p in found[:5])
            raise ManifestError(
                f"{data_folder} holds no table (*.csv) with the columns of TextrolSpeech.{odd}\n{_WHERE}"
            )
    for path in paths:
        missing = _missing_columns(path)
        if missing:
            raise ManifestError(f"{path} lacks the columns {', '.join(missing)}. {_WHERE}")
    return paths


def _missing_columns(path):
    with open(path, encoding="utf-8-sig", newline="", errors="replace") as table:
        names = next(csv.reader(table), [])
    return ["/".join(COLUMNS[key]) for key in NEEDED if not set(COLUMNS[key]) & set(names)]


def _rows(path):
    with open(path, encoding="utf-8-sig", newline="", errors="replace") as table:
        for number, row in enumerate(csv.DictReader(table), 2):
            yield number, _Row(row)


def _reading(rows, dur_means):
    """How ``dur`` is read, and how many style sentences agree with either."""
    votes = Counter()
    for _, row in rows:
        value, sentence = (row.values.get("dur") or "").strip().lower(), row.get("description") or ""
        fast, slow = bool(_FAST.search(sentence)), bool(_SLOW.search(sentence))
        if value in ("low", "high") and fast != slow:
            votes["tempo" if (value == "high") == fast else "duration"] += 1
    agreed = "duration" if votes["duration"] > votes["tempo"] else "tempo"
    return (agreed if dur_means == "auto" else dur_means), (votes["tempo"], votes["duration"])


def _record(index, row, reading):
    name = row.get("name")
    if name is None:
        raise ValueError("no item_name")
    path, source = index.find(name, row.get("file"))
    info = audio_info(index.folder / path)
    levels = {key: _level(row, key) for key in ("pitch", "energy", "speed")}
    tempo = levels["speed"]
    if "tempo" not in row.columns and reading == "duration":
        tempo = {"low": "high", "high": "low"}.get(tempo, tempo)
    gender = GENDER_OF_LABEL.get((row.get("gender") or "").lower())
    if gender is None:
        raise ValueError(f"gender {row.get('gender')!r} is not one of {', '.join(GENDER_OF_LABEL)}")
    emotion = EMOTION_OF_LABEL.get((row.get("emotion") or "").lower())
    if emotion is None:
        raise ValueError(
            f"emotion {row.get('emotion')!r} is not one of {', '.join(sorted(EMOTION_OF_LABEL))}"
        )
    speaker, speaker_from = _speaker(row, path)
    description = row.get("description")
    descriptors = {
        "gender": gender,
        "pitch": levels["pitch"],
        "volume": levels["energy"],
        "speed": SPEED_OF_TEMPO[tempo],
    }
    if description:
        descriptors["description"] = description
    return {
        "wav": f"{{data_root}}/{path}",
        "duration": round(info.duration, 6),
        # The same number can be another person in another source.
        "speaker": f"{source}:{speaker}",
        "gender": gender,
        "transcript": row.get("text"),
        "emotion": emotion,
        "descriptors": descriptors,
        "descriptions": [description] if description else [],
        "source": source,
        "language": "en",
        "speaker_from": speaker_from,
    }


def _level(row, key):
    value = (row.get(key) or "").lower()
    if value not in LEVELS:
        raise ValueError(f"{'/'.join(COLUMNS[key])} {value!r} is not one of {', '.join(LEVELS)}")
    return value


def _speaker(row, path):
    given = row.get("speaker")
    if given:
        return given, "spk"
    stem = Path(path).stem
    match = _LIBRITTS.fullmatch(stem) or _VCTK.fullmatch(stem)
    if match:
        return match[1], "name"
    return Path(path).parent.name or "unknown", "folder"


class _Index:
    """Where the recording of an item lies.

    LibriTTS and VCTK items are called as their file; items of the emotional corpora as their path with hyphens
    for slashes.
    """

    def __init__(self, folder):
        self.folder = folder
        self.by_stem, self.by_path = {}, {}
        self.num_files = 0
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
                continue
            relative = path.relative_to(folder).as_posix()
            self.num_files += 1
            self.by_stem.setdefault(path.stem, []).append(relative)
            parts = Path(relative).with_suffix("").parts
            for start in range(len(parts) - 1):
                self.by_path.setdefault("-".join(parts[start:]), []).append(relative)

    def find(self, name, given=None):
        """Path of an item relative to the folder, and the source that it belongs to."""
        if given:
            ends = [
                p for p in self.by_stem.get(Path(given).stem, []) if p == given or p.endswith("/" + given)
            ]
            if len(ends) == 1:
                return ends[0], _source(ends[0])
        stem = re.sub(r"\.(?:wav|flac|ogg)$", "", name)
        candidates = self.by_stem.get(stem) or self.by_path.get(stem) or self.by_stem.get(f"{stem}_mic2")
        candidates = candidates or self.by_stem.get(f"{stem}_mic1")
        if not candidates:
            raise ValueError("no recording of this name")
        if len(candidates) > 1:
            raise ValueError(f"{len(candidates)} recordings of this name: {', '.join(candidates[:3])}")
        return candidates[0], _source(candidates[0])


def _source(path):
    stem = Path(path).stem
    if _LIBRITTS.fullmatch(stem):
        return "libritts"
    if _VCTK.fullmatch(stem):
        return "vctk"
    folders = [
        p
        for p in Path(path).parts[:-1]
        if p.lower() not in ("audio", "wav", "wavs", "data", "emotion_dataset")
    ]
    return folders[0].lower() if folders else "unknown"
