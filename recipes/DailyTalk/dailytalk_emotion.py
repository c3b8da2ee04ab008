"""JELLY's public annotation of DailyTalk, read as it is: conversations with emotion and intensity, without their leak.

The files (``stage02_1_*.json`` and so on) give, for a line of a conversation, all lines up to and WITH that one, joined
by ``|``: words, emotions, speakers. The last emotion is the answer (``text``). Here it goes into ``response``, where no
prompt looks for an emotion, and every dialogue that any test file names is left out of training.
"""

import json
import random
import re
from pathlib import Path

from recipes.MELD.meld_dialogues import write_meld_dialogues
from speechbrain_emo.dataio.dialogue import make_turn, next_line_record
from speechbrain_emo.dataio.manifest import (
    Finding,
    ManifestError,
    split_hash,
    write_manifest,
    write_text_atomically,
)
from speechbrain_emo.dataio.preparation import Preparation
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm

EMOTIONS = ("neutral", "angry", "disgust", "fear", "happy", "sad", "surprise")
INTENSITIES = ("weak", "medium", "strong")
CORPUS = "dailytalk_emotion"
_NAME = re.compile(r"(\d+)_(\d+)_d(\d+)\.wav$")


def parse_label(text):
    """(emotion, intensity or None) of a label as the files write it.

    Raises
    ------
    ValueError
        If it is none.

    Example
    -------
    >>> parse_label("weak happy"), parse_label("surprise"), parse_label("neutral")
    (('happy', 'weak'), ('surprise', None), ('neutral', None))
    """
    words = str(text).split()
    intensity = words[0] if len(words) == 2 else None
    if not words or words[-1] not in EMOTIONS or len(words) > 2 or (intensity or "weak") not in INTENSITIES:
        raise ValueError(
            f"label {text!r} is none of: {', '.join(EMOTIONS)}, with {', '.join(INTENSITIES)} before it"
        )
    return words[-1], intensity


def read_annotations(path):
    """The conversations of one file.

    Arguments
    ---------
    path : str or pathlib.Path
        A JSON file of stage 2.

    Returns
    -------
    records : dict
        ``d<dialogue>_<turn>`` -> record whose ``response`` is the line with the answer.
    findings : list of Finding
        Rows that are left out.

    Raises
    ------
    ManifestError
        If the file is missing or has another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such annotation file of stage 2")
    records, findings = {}, []
    for number, row in enumerate(_rows(path)):
        where = f"{path.name}, row {number}"
        match = _NAME.search(str(row.get("path")))
        columns = {k: str(row.get(k, "")).split("|") for k in ("transcript", "emotion", "speaker")}
        lengths = {k: len(v) for k, v in columns.items()}
        try:
            if match is None:
                raise ValueError(f"path {row.get('path')!r} names no <turn>_<speaker>_d<dialogue>.wav")
            if len(set(lengths.values())) != 1 or lengths["speaker"] < 2:
                raise ValueError(f"columns of {lengths} items; alike and at least 2 are needed")
            if columns["emotion"][-1] != row.get("text"):
                raise ValueError(
                    f"the last emotion {columns['emotion'][-1]!r} is not the answer {row['text']!r}"
                )
            turns = [
                _turn(*line)
                for line in zip(columns["transcript"], columns["emotion"], columns["speaker"], strict=True)
            ]
        except ValueError as error:
            findings.append(Finding(where, f"left out: {error}"))
            continue
        key = f"d{match[3]}_{match[1]}"
        if key in records:
            # Read as they are: such rows count twice in the published scores too.
            key = f"{key}#{number}"
            findings.append(Finding(where, f"this line occurs before; kept as {key}"))
        records[key] = next_line_record(turns[:-1], turns[-1], match[3], corpus=CORPUS)
    if not records:
        raise ManifestError(
            f"{path}: no usable row: {findings[0] if findings else 'the file has no annotation'}"
        )
    return records, findings


def _rows(path):
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["annotation"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: no JSON object with a list 'annotation': {error!r}") from error
    return rows


def _turn(text, label, speaker):
    emotion, intensity = parse_label(label)
    words = " ".join(text.split())
    if not words:
        raise ValueError("a line without words")
    return make_turn(
        "user", words, None, speaker, None, emotion, {"intensity": intensity} if intensity else {}
    )


def dialogues_of_tests(folder):
    """Dialogues that any test file of a folder names, also those of stage 1: set of str."""
    found = set()
    for path in sorted(Path(folder).glob("*_test.json")):
        for row in _rows(path):
            match = _NAME.search(str(row.get("path")))
            if match:
                found.add(match[3])
    return found


def repeated_dialogues(known, test, shared_lines=2, min_words=6):
    """Dialogues that are a test dialogue under another number: DailyTalk has some conversations twice.

    Arguments
    ---------
    known, test : dict
        id -> record.
    shared_lines : int
        So many lines of ``min_words`` words or more in common make two dialogues the same one.
    min_words : int
        Shorter lines are everybody's.

    Returns
    -------
    dict
        Dialogue of ``known`` -> dialogue of ``test``.

    Example
    -------
    >>> def talk(name, *lines):
    ...     turns = [make_turn("user", line, None, "0", None, "sad") for line in lines]
    ...     return {f"d{name}": next_line_record(turns[:-1], turns[-1], name)}
    >>> first, second = "we went to the sea last week", "and it rained on all the days"
    >>> repeated_dialogues(talk("1", first, second, "oh"), talk("2", first, second))
    {'1': '2'}
    """
    owners = {}
    for record in test.values():
        for line in _long_lines(record, min_words):
            owners.setdefault(line, set()).add(record["dialogue"])
    common = {}
    for record in known.values():
        for line in _long_lines(record, min_words):
            for other in owners.get(line, ()):
                common.setdefault((record["dialogue"], other), set()).add(line)
    return {one: two for (one, two), lines in sorted(common.items()) if len(lines) >= shared_lines}


def _long_lines(record, min_words):
    lines = (" ".join(t["text"].lower().split()) for t in (*record["turns"], record["response"]))
    return [line for line in lines if len(line.split()) >= min_words]


def prepare_dailytalk_emotion(
    annotation_folder,
    save_folder,
    llm_folder=None,
    train_file="stage02_1_valid.json",
    test_file="stage02_1_test.json",
    valid_share=0.1,
    vocab_size=2000,
    wordings=(),
    model=None,
    seed=0,
    meld_folder=None,
):
    """Write text manifests of next-line prediction and, where asked for, a small language model with its tokenizer.

    Arguments
    ---------
    annotation_folder : str or pathlib.Path
        Folder with ``stage0*_*_{valid,test}.json``.
    save_folder : str or pathlib.Path
        Folder for train.json, valid.json, test.json and preparation.json.
    llm_folder : str, optional
        Where a randomly initialised language model goes, whose tokenizer has seen training text only.
    train_file, test_file : str
        The public files have no training part: the paper's validation part trains here.
    valid_share : float
        Share of the training dialogues that validate.
    vocab_size : int
        Of the tokenizer.
    wordings : sequence of str
        Prompts whose words the tokenizer should know.
    model : dict, optional
        Sizes of the model: keywords of ``build_tiny_llm``.
    seed : int
        Draws the validation dialogues and the weights.
    meld_folder : str or pathlib.Path, optional
        Tables of MELD, whose test scenes go to ``meld.json``: another domain to test in.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If a file is missing or faulty, or nothing is left to train on.
    """
    folder, save_folder = Path(annotation_folder), Path(save_folder)
    known, findings = read_annotations(folder / train_file)
    test, more = read_annotations(folder / test_file)
    findings += more
    tested = dialogues_of_tests(folder) | {r["dialogue"] for r in test.values()}
    repeated = repeated_dialogues({k: r for k, r in known.items() if r["dialogue"] not in tested}, test)
    for one, two in repeated.items():
        findings.append(Finding(f"d{one}", f"the same conversation as d{two} of the test file: left out"))
    tested |= set(repeated)
    kept = {k: r for k, r in known.items() if r["dialogue"] not in tested}
    dropped = len({r["dialogue"] for r in known.values()} & tested)
    findings.append(
        Finding(
            train_file,
            f"{len(known) - len(kept)} of {len(known)} rows are of {dropped} dialogues that a test file names, or "
            "that repeat one: left out",
        )
    )
    names = sorted({r["dialogue"] for r in kept.values()}, key=int)
    random.Random(f"DailyTalk emotion/{seed}").shuffle(names)
    valid = set(names[: max(round(valid_share * len(names)), 1)])
    parts = {
        "train": {k: r for k, r in kept.items() if r["dialogue"] not in valid},
        "valid": {k: r for k, r in kept.items() if r["dialogue"] in valid},
        "test": test,
    }
    for part, records in parts.items():
        if not records:
            raise ManifestError(f"{folder}: nothing is left for the {part} part")
        write_manifest(save_folder / f"{part}.json", records)
    if meld_folder is not None:
        findings += write_meld_dialogues(meld_folder, save_folder / "meld.json")
    if llm_folder is not None:
        texts = [t["text"] for r in parts["train"].values() for t in (*r["turns"][-2:], r["response"])]
        labels = [f" {i} {e}" for i in INTENSITIES for e in EMOTIONS] + list(EMOTIONS)
        texts += labels * 20 + [str(w) for w in wordings] * 40
        build_tiny_llm(llm_folder, texts, vocab_size=vocab_size, seed=seed, **(model or {}))
    digest = split_hash(parts)
    summary = {
        "corpus": CORPUS,
        "num_records": {part: len(records) for part, records in parts.items()},
        "num_dialogues": {
            part: len({r["dialogue"] for r in records.values()}) for part, records in parts.items()
        },
        "split_hash": digest,
        "findings": [str(f) for f in findings],
    }
    write_text_atomically(save_folder / "preparation.json", json.dumps(summary, indent=1) + "\n")
    manifests = {part: str(save_folder / f"{part}.json") for part in parts}
    return Preparation(manifests, None, digest, tuple(findings))
