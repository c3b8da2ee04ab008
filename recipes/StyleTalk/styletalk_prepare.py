"""Preparation of StyleTalk: a short dialogue whose last turn is spoken in one of several styles, and its reply.

Source: G.-T. Lin, C.-H. Chiang, H. Lee, "Advancing Large Language Models to Capture Varied Speaking Styles and Respond
Properly in Spoken Conversations", ACL 2024 (arXiv 2402.12786). Layout, licence and known faults: ``README.md``
beside this file.
"""

import csv
import random
import re
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.dialogue import check_dialogue, dialogue_record, make_turn, reverse_roles
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

#: Emotions of spoken turns; ``excited`` and ``hopeful`` occur in two replies each.
EMOTIONS = ("neutral", "friendly", "unfriendly", "cheerful", "sad", "excited", "hopeful")
SPEEDS = ("slow", "normal", "fast")
VOLUME_OF_LABEL = {"quiet": "low", "normal": "normal", "loud": "high"}

#: Rows of the tables.
NUM_ROWS = {"train": 1838, "eval": 858}

_COLUMNS = (
    *("diag_id", "context", "curr_audio_id", "res_audio_id", "curr_text", "res_text", "curr_emotion"),
    *("curr_speed", "curr_volume", "res_emotion", "res_speed", "res_volume"),
)
_WHERE = (
    "StyleTalk's tables are at https://github.com/DanielLin94144/StyleTalk (MIT), which also links the recordings: put "
    "train.csv, eval.csv and the folder of recordings (<dialogue>/c_0.wav, r_0.wav) together; see "
    "recipes/StyleTalk/README.md"
)
_SPEAKER = re.compile(r"(?:^|(?<=\s))([AB]) ?: ")


def prepare_styletalk(
    data_folder,
    save_folder,
    audio_folder=None,
    valid_share=0.1,
    role_reversal=True,
    seed=0,
):
    """Write train.json, valid.json, test.json and preparation.json.

    Test is the corpus's ``eval``; validation is drawn from ``train`` by dialogue. Records are dialogues
    (``speechbrain_emo.dataio.dialogue``).

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``train.csv`` and ``eval.csv``.
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    audio_folder : str, optional
        Folder of the recordings, relative to ``data_folder``. Default: found by looking for the first row's file.
    valid_share : float
        Share of the training dialogues that validate.
    role_reversal : bool
        Double the test part: each row a second time with the roles of user and assistant swapped
        (:func:`speechbrain_emo.dataio.dialogue.reverse_roles`), as the paper's evaluation does.
    seed : int
        Draws the validation dialogues.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not StyleTalk (with what is missing), or what would be written has a fault.
    """
    records, findings = read_corpus(data_folder, audio_folder)
    if role_reversal:
        for name in [n for n, r in records.items() if r["subset"] == "eval"]:
            if records[name]["response"]["recording"]:
                swapped = {**reverse_roles(records[name]), "speaker": "unknown", "reversed": True}
                records[f"{name}-reversed"] = swapped
            else:
                findings.append(Finding(name, "no reversed row: the reply has no usable recording"))

    def split(usable):
        names = sorted({r["dialogue"] for r in usable.values() if r["subset"] == "train"})
        random.Random(f"StyleTalk validation/{seed}").shuffle(names)
        held = set(names[: round(valid_share * len(names))])
        train = [i for i, r in usable.items() if r["subset"] == "train" and r["dialogue"] not in held]
        valid = [i for i, r in usable.items() if r["subset"] == "train" and r["dialogue"] in held]
        test = [i for i, r in usable.items() if r["subset"] == "eval"]
        return Split(
            "official", *(tuple(sorted(ids)) for ids in (train, valid, test)), speaker_independent=False
        )

    return write_fold(
        "StyleTalk",
        records,
        split,
        data_folder,
        save_folder,
        EMOTIONS,
        measure=False,
        settings={"seed": seed, "valid_share": valid_share, "role_reversal": role_reversal},
        findings=findings,
    )


def read_corpus(data_folder, audio_folder=None):
    """Read both tables and the recordings' headers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``train.csv`` and ``eval.csv``.
    audio_folder : str, optional
        As in :func:`prepare_styletalk`.

    Returns
    -------
    records : dict
        ``<subset>/<dialogue>/<recording>`` -> dialogue with ``subset`` (train or eval) and ``language``.
    findings : list of Finding
        Rows that are left out, unexpected numbers.

    Raises
    ------
    ManifestError
        If a table or all recordings are missing.
    """
    data_folder = Path(data_folder)
    missing = [name for name in ("train.csv", "eval.csv") if not (data_folder / name).is_file()]
    if missing:
        raise ManifestError(f"{data_folder} is not StyleTalk; missing: {', '.join(missing)}. {_WHERE}")
    records, findings, first_error, number_of_rows = {}, [], None, 0
    for subset in ("train", "eval"):
        rows = read_table(data_folder / f"{subset}.csv")
        number_of_rows += len(rows)
        if len(rows) != NUM_ROWS[subset]:
            findings.append(
                Finding(f"{subset}.csv", f"{len(rows)} rows; the complete table has {NUM_ROWS[subset]}")
            )
        if audio_folder is None:
            audio_folder = _find_recordings(data_folder, rows)
        for row in rows:
            name = f"{subset}/{row['curr_audio_id'].removesuffix('.wav')}"
            try:
                record = _record(data_folder, audio_folder, subset, row, findings, name)
                check_dialogue(name, record)
            except (AudioError, ValueError) as error:
                first_error = first_error or error
                findings.append(Finding(name, f"left out: {error}"))
                continue
            if name in records:
                findings.append(Finding(name, "a second time in the table: the first is used"))
                continue
            records[name] = record
    if not records:
        raise ManifestError(
            f"{data_folder}: none of the {number_of_rows} rows can be used; the first: {first_error}. {_WHERE}"
        )
    return records, findings


def read_table(path):
    """Rows of a table, checked for their columns.

    Arguments
    ---------
    path : str or pathlib.Path
        ``train.csv`` or ``eval.csv``.

    Returns
    -------
    list of dict

    Raises
    ------
    ManifestError
        If a column is missing.
    """
    with open(path, encoding="utf-8-sig", newline="") as table:
        reader = csv.DictReader(table)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ManifestError(
                f"{path}: no column {', '.join(missing)}: it is not StyleTalk's table. {_WHERE}"
            )
        return list(reader)


def split_context(text):
    """Turns of the text that comes before the spoken turn.

    Arguments
    ---------
    text : str
        ``A : ... B : ... A : ...``

    Returns
    -------
    list of (str, str)
        Speaker and words.

    Raises
    ------
    ValueError
        If it does not begin with a speaker.

    Example
    -------
    >>> split_context("A : Hi there! B : Oh, hello.")
    [('A', 'Hi there!'), ('B', 'Oh, hello.')]
    """
    parts = _SPEAKER.split(text.strip())
    if parts[0].strip() or len(parts) < 3:
        raise ValueError(f"the context does not begin with 'A : ' or 'B : ': {text.strip()[:60]!r}")
    return [(who, " ".join(words.split())) for who, words in zip(parts[1::2], parts[2::2]) if words.strip()]


def _record(data_folder, audio_folder, subset, row, findings, name):
    turns = [make_turn("user", words, None, who) for who, words in split_context(row["context"])]
    who, words = split_context(_with_space(row["curr_text"]))[0]
    other = {"A": "B", "B": "A"}[who]
    text = " ".join(row["res_text"].split())
    if not text:
        raise ValueError("the reply has no words")
    spoken = _recording(data_folder, audio_folder, row["curr_audio_id"])
    current = make_turn("user", words, spoken, who, None, *_style(row, "curr"))
    response = make_turn("user", text, None, other, None, *_style(row, "res"))
    try:
        response["recording"] = _recording(data_folder, audio_folder, row["res_audio_id"])
    except AudioError as error:
        findings.append(Finding(name, f"reply without recording: {error}"))
    record = dialogue_record([*turns, current], response, row["diag_id"])
    # The corpus does not say who speaks which recording: one name for all, so that no split seems to hold speakers out.
    record.update(speaker="unknown", subset=subset, language="en", topic=row["diag_id"].rpartition("_")[0])
    return record


def _with_space(text):
    """The spoken turn is written ``B: words``, the context ``B : words``."""
    return re.sub(r"^\s*([AB])\s*:\s*", r"\1 : ", text)


def _style(row, side):
    emotion, speed, volume = (row[f"{side}_{key}"].strip() for key in ("emotion", "speed", "volume"))
    for value, allowed in ((emotion, EMOTIONS), (speed, SPEEDS), (volume, tuple(VOLUME_OF_LABEL))):
        if value not in allowed:
            raise ValueError(f"style {value!r} is not one of {', '.join(allowed)}")
    return emotion, {"speed": speed, "volume": VOLUME_OF_LABEL[volume]}


def _recording(data_folder, audio_folder, name):
    relative = f"{audio_folder}/{name}" if audio_folder not in (None, "", ".") else name
    info = audio_info(data_folder / relative)
    return {"wav": f"{{data_root}}/{relative}", "duration": round(info.duration, 6)}


def _find_recordings(data_folder, rows):
    """Folder below ``data_folder`` in which the first recordings lie; "." where none is found."""
    for row in rows[:20]:
        for prefix in (".", "*", "*/*"):
            for path in sorted(data_folder.glob(f"{prefix}/{row['curr_audio_id']}")):
                folder = path.relative_to(data_folder).parents[1]
                return folder.as_posix()
    return "."
