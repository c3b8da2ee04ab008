"""Preparation of DailyDialog: 13 118 written conversations with an emotion for every line.

Source: Y. Li et al., "DailyDialog: A Manually Labelled Multi-turn Dialogue Dataset", IJCNLP 2017 (arXiv 1710.03957).
Layout, licence and known faults: ``README.md`` beside this file.
"""

import json
import random
from pathlib import Path

from speechbrain_emo.dataio.dialogue import make_turn, records_of_lines
from speechbrain_emo.dataio.manifest import (
    Finding,
    ManifestError,
    split_hash,
    write_manifest,
    write_text_atomically,
)
from speechbrain_emo.dataio.preparation import Preparation

CORPUS = "DailyDialog"
#: Numbers of the emotion files -> labels of JELLY.
EMOTIONS = ("neutral", "angry", "disgust", "fear", "happy", "sad", "surprise")
_END = "__eou__"
_WHERE = (
    "DailyDialog is linked from http://yanran.li/dailydialog (CC BY-NC-SA 4.0): unpack it and pass the folder that "
    "holds dialogues_text.txt and dialogues_emotion.txt, or train/, validation/ and test/ with such files"
)


def prepare_dailydialog(
    data_folder, save_folder, exclude_manifests=(), valid_share=0.05, test_share=0.05, max_history=10, seed=0
):
    """Write train.json, valid.json and test.json; a record for every line that has a history.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder with ``dialogues_text.txt`` and ``dialogues_emotion.txt``; or with ``train``, ``validation`` and
        ``test``, whose files are called ``dialogues_train.txt`` and ``dialogues_emotion_train.txt`` and so on.
    save_folder : str or pathlib.Path
        Folder for the manifests.
    exclude_manifests : sequence of str
        Manifests of conversations that must not be read here: DailyTalk's dialogues are DailyDialog's, so that its test
        conversations would train. A conversation that shares two lines of six words with one of them is left out.
    valid_share, test_share : float
        Of the conversations, where the folder has no parts of its own.
    max_history : int
        Most lines of history.
    seed : int
        Draws the parts.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not DailyDialog, or nothing is left.
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    talks, findings = _read(data_folder)
    excluded = _long_lines_of(exclude_manifests)
    parts, seen = {"train": {}, "valid": {}, "test": {}}, set()
    drawn = random.Random(f"DailyDialog/{seed}")
    count = 0
    # Test first: of conversations that occur twice, the test part keeps its own.
    for part, name, lines in sorted(talks, key=lambda row: ("test", "valid", "train", None).index(row[0])):
        words = tuple(" ".join(text.lower().split()) for text, _ in lines)
        if words in seen:
            findings.append(Finding(name, "left out: the same conversation occurs before"))
            continue
        seen.add(words)
        if len({w for w in words if len(w.split()) >= 6} & excluded) >= 2:
            count += 1
            continue
        if part is None:
            number = drawn.random()
            part = (
                "test" if number < test_share else "valid" if number < test_share + valid_share else "train"
            )
        turns = [make_turn("user", t, None, str(i % 2), None, EMOTIONS[e]) for i, (t, e) in enumerate(lines)]
        parts[part].update(records_of_lines(turns, name, max_history=max_history, corpus=CORPUS))
    if count:
        findings.append(Finding("", f"{count} conversations are of an excluded manifest: left out"))
    for part, records in parts.items():
        if not records:
            raise ManifestError(f"{data_folder}: nothing is left for the {part} part. {_WHERE}")
        write_manifest(save_folder / f"{part}.json", records)
    digest = split_hash(parts)
    summary = {
        "corpus": CORPUS,
        "num_records": {part: len(records) for part, records in parts.items()},
        "split_hash": digest,
        "findings": [str(f) for f in findings],
    }
    write_text_atomically(save_folder / "preparation.json", json.dumps(summary, indent=1) + "\n")
    return Preparation({p: str(save_folder / f"{p}.json") for p in parts}, None, digest, tuple(findings))


def _read(data_folder):
    """(part or None, name, [(words, emotion number)]) of every conversation, and findings."""
    places = []
    if (data_folder / "dialogues_text.txt").is_file():
        places.append((None, "d", data_folder / "dialogues_text.txt", data_folder / "dialogues_emotion.txt"))
    else:
        for part, folder in (("train", "train"), ("valid", "validation"), ("test", "test")):
            own = data_folder / folder
            places.append(
                (part, part, own / f"dialogues_{folder}.txt", own / f"dialogues_emotion_{folder}.txt")
            )
    talks, findings = [], []
    for part, prefix, texts, emotions in places:
        missing = [str(p) for p in (texts, emotions) if not p.is_file()]
        if missing:
            raise ManifestError(f"{data_folder} is not DailyDialog; missing: {', '.join(missing)}. {_WHERE}")
        rows = zip(
            texts.read_text(encoding="utf-8").splitlines(),
            emotions.read_text(encoding="utf-8").splitlines(),
            strict=False,
        )
        for number, (text, labels) in enumerate(rows):
            name = f"{prefix}{number:05d}"
            lines = [" ".join(t.split()) for t in text.split(_END)]
            lines = lines[:-1] if lines and not lines[-1] else lines
            numbers = labels.split()
            if len(lines) != len(numbers) or len(lines) < 2:
                findings.append(Finding(name, f"left out: {len(lines)} lines and {len(numbers)} emotions"))
            elif not all(n.isdigit() and int(n) < len(EMOTIONS) for n in numbers) or not all(lines):
                findings.append(Finding(name, "left out: an unknown emotion or a line without words"))
            else:
                talks.append((part, name, [(t, int(n)) for t, n in zip(lines, numbers, strict=True)]))
    return talks, findings


def _long_lines_of(manifests):
    found = set()
    for path in manifests:
        if not Path(path).is_file():
            raise ManifestError(f"{path}: no such manifest to exclude; prepare that corpus first")
        for record in json.loads(Path(path).read_text(encoding="utf-8")).values():
            for turn in (*(record.get("turns") or ()), record.get("response") or {}):
                words = " ".join(str(turn.get("text") or "").lower().split())
                if len(words.split()) >= 6:
                    found.add(words)
    return found
