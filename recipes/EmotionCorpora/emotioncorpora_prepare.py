"""The acted corpora of JELLY's stage 1: MEAD, TESS, EmoV-DB and CREMA-D, with one map of labels.

Seven emotions; three intensities where the corpus has them (MEAD's levels, CREMA-D's LO, MD, HI); neutral has none.
Layouts, licences and known faults: ``README.md`` beside this file.
"""

import random
import re
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

EMOTIONS = ("neutral", "angry", "disgust", "fear", "happy", "sad", "surprise")
INTENSITIES = ("weak", "medium", "strong")
#: Corpus -> spelling in its file names -> emotion; None is no class of JELLY's.
LABELS = {
    "MEAD": {
        "angry": "angry",
        "contempt": None,
        "disgusted": "disgust",
        "fear": "fear",
        "happy": "happy",
        "neutral": "neutral",
        "sad": "sad",
        "surprised": "surprise",
    },
    "TESS": {
        "angry": "angry",
        "disgust": "disgust",
        "fear": "fear",
        "happy": "happy",
        "neutral": "neutral",
        "ps": "surprise",
        "sad": "sad",
    },
    "EmoV-DB": {
        "amused": "happy",
        "angry": "angry",
        "anger": "angry",
        "disgusted": "disgust",
        "disgust": "disgust",
        "neutral": "neutral",
        "sleepy": None,
        "sleepiness": None,
    },
    "CREMA-D": {
        "ANG": "angry",
        "DIS": "disgust",
        "FEA": "fear",
        "HAP": "happy",
        "NEU": "neutral",
        "SAD": "sad",
    },
}
LEVELS = {
    "MEAD": {"level_1": "weak", "level_2": "medium", "level_3": "strong"},
    "CREMA-D": {"LO": "weak", "MD": "medium", "HI": "strong"},
}
#: Path below the corpus's folder -> speaker, emotion and, where there is one, level.
PATTERNS = {
    "MEAD": re.compile(r"(?P<speaker>[MW]\d{3})/audio/(?P<emotion>\w+)/(?P<level>level_\d)/\w+\.(wav|m4a)$"),
    "TESS": re.compile(r"(?:.*/)?(?P<speaker>[A-Z]{2,3})_\w+_(?P<emotion>[a-z]+)\.wav$"),
    "EmoV-DB": re.compile(r"(?P<speaker>bea|jenie|josh|sam)_(?P<emotion>[A-Za-z]+)/.*\.wav$"),
    "CREMA-D": re.compile(
        r"AudioWAV/(?P<speaker>\d{4})_\w{3}_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]{2})\.wav$"
    ),
}
GENDERS = {
    "EmoV-DB": {"bea": "female", "jenie": "female", "josh": "male", "sam": "male"},
    "TESS": {"OAF": "female", "YAF": "female"},
}


def read_file(corpus, relative):
    """Speaker, gender, emotion and intensity of a file by its name.

    Arguments
    ---------
    corpus : str
        One of ``LABELS``.
    relative : str
        Path below the corpus's folder.

    Returns
    -------
    dict or None
        ``speaker``, ``gender``, ``emotion`` (None: no class of JELLY's), ``intensity`` (None: unknown, or neutral);
        None where the name is not the corpus's.

    Raises
    ------
    ValueError
        If the emotion or the level is unknown.

    Example
    -------
    >>> read_file("CREMA-D", "AudioWAV/1001_DFA_ANG_HI.wav")["intensity"]
    'strong'
    >>> read_file("TESS", "OAF_back_ps.wav")["emotion"], read_file("TESS", "readme.txt")
    ('surprise', None)
    """
    match = PATTERNS[corpus].fullmatch(relative)
    if match is None:
        return None
    spelling, level = match["emotion"], match.groupdict().get("level")
    spelling = spelling if corpus == "CREMA-D" else spelling.lower()
    if spelling not in LABELS[corpus]:
        raise ValueError(f"emotion {spelling!r} is not one of {', '.join(LABELS[corpus])}")
    emotion = LABELS[corpus][spelling]
    # CREMA-D's XX: no level was asked for. MEAD's neutral has a level_1 that is none.
    intensity = None if emotion in (None, "neutral") else LEVELS.get(corpus, {}).get(level)
    if corpus == "MEAD" and level not in LEVELS["MEAD"]:
        raise ValueError(f"level {level!r} is not one of {', '.join(LEVELS['MEAD'])}")
    speaker = match["speaker"]
    gender = GENDERS.get(corpus, {}).get(speaker)
    if corpus == "MEAD":
        gender = "male" if speaker.startswith("M") else "female"
    return {"speaker": speaker, "gender": gender, "emotion": emotion, "intensity": intensity}


def prepare_emotion_corpus(data_folder, save_folder, corpus, test_speakers=(), valid_speakers=(), seed=0):
    """Write train.json, valid.json and test.json of one of the corpora, apart in speakers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The corpus's folder; see ``README.md``.
    save_folder : str or pathlib.Path
        Folder for the manifests.
    corpus : str
        MEAD, TESS, EmoV-DB or CREMA-D.
    test_speakers, valid_speakers : sequence of str
        Empty: a tenth of the speakers each, drawn, at least one; a corpus of two speakers has no validation part.
    seed : int
        Of the draw.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the corpus is unknown, or its folder holds none of its files.
    """
    if corpus not in LABELS:
        raise ManifestError(f"corpus is {corpus!r}; allowed: {', '.join(LABELS)}")
    data_folder = Path(data_folder)
    records, findings, unused = {}, [], 0
    for path in sorted(data_folder.rglob("*")) if data_folder.is_dir() else ():
        if path.suffix.lower() not in (".wav", ".m4a"):
            continue
        relative = path.relative_to(data_folder).as_posix()
        try:
            found = read_file(corpus, relative)
            if found is None or found["emotion"] is None:
                unused += 1
                continue
            info = audio_info(path)
        except (ValueError, AudioError) as error:
            findings.append(Finding(relative, f"left out: {error}"))
            continue
        intensity = found.pop("intensity")
        records[relative.rsplit(".", 1)[0].replace("/", "_")] = {
            "wav": f"{{data_root}}/{relative}",
            "duration": round(info.duration, 6),
            **found,
            "transcript": None,
            "descriptors": {"intensity": intensity} if intensity else {},
        }
    if not records:
        raise ManifestError(
            f"{data_folder} holds no recording of {corpus}: files are called as in {PATTERNS[corpus].pattern}; see "
            "recipes/EmotionCorpora/README.md"
        )
    if unused:
        findings.append(
            Finding("", f"{unused} files are left out: another name, or no class of {', '.join(EMOTIONS)}")
        )
    speakers = sorted({r["speaker"] for r in records.values()})
    random.Random(f"{corpus}/{seed}").shuffle(speakers)
    tenth = max(len(speakers) // 10, 1)
    test = {str(s) for s in test_speakers} or set(speakers[:tenth])
    valid = {str(s) for s in valid_speakers}
    if not valid and len(speakers) > 2:
        valid = set([s for s in speakers if s not in test][:tenth])

    def split(usable):
        parts = {"train": [], "valid": [], "test": []}
        for key, record in usable.items():
            who = record["speaker"]
            parts["test" if who in test else "valid" if who in valid else "train"].append(key)
        ids = (tuple(sorted(parts[kind])) for kind in ("train", "valid", "test"))
        return Split("speakers", *ids)

    return write_fold(
        corpus,
        records,
        split,
        data_folder,
        save_folder,
        EMOTIONS,
        require_transcript=False,
        measure=False,
        settings={"test_speakers": sorted(test), "valid_speakers": sorted(valid)},
        findings=findings,
    )
