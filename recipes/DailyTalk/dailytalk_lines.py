"""DailyTalk line by line, for JELLY's stages 1, 2-2 and 3: every line with its history, and lines with phonemes.

Layout, licence and faults of the corpus: ``README.md`` beside this file. Emotions are those of the corpus, or, for the
recordings that a label file names, its emotion and intensity (JELLY's annotation gives both for a part of the corpus).
"""

import json
import logging
import random
import re
from pathlib import Path

from recipes.DailyTalk.dailytalk_emotion import EMOTIONS, dialogues_of_tests, parse_label
from recipes.DailyTalk.dailytalk_prepare import _WHERE, _read_turns
from speechbrain_emo.dataio.dialogue import records_of_lines
from speechbrain_emo.dataio.manifest import Finding, ManifestError, write_manifest
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

#: Labels of ``dailytalk_prepare`` -> labels of JELLY.
EMOTION_OF_CORPUS = {
    "neutral": "neutral",
    "anger": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprise": "surprise",
}
logger = logging.getLogger(__name__)
_NAME = re.compile(r"(\d+_\d+_d\d+)\.wav$")


def read_labels(paths):
    """Labels by recording from files of JELLY's annotation.

    Arguments
    ---------
    paths : sequence of str
        JSON with ``annotation[].path`` and ``.text`` (an emotion, with or without intensity).

    Returns
    -------
    dict
        ``<turn>_<speaker>_d<dialogue>`` -> (emotion, intensity or None); the entry with an intensity wins.

    Raises
    ------
    ManifestError
        If a file is missing.
    """
    found = {}
    for path in paths:
        if not Path(path).is_file():
            raise ManifestError(f"{path}: no such label file")
        for row in json.loads(Path(path).read_text(encoding="utf-8"))["annotation"]:
            match = _NAME.search(str(row.get("path")))
            if match is None:
                continue
            label = parse_label(row["text"])
            if found.get(match[1], (None, None))[1] is None:
                found[match[1]] = label
    return found


def prepare_dailytalk_lines(
    data_folder,
    save_folder,
    label_files=(),
    test_folder=None,
    valid_share=0.05,
    test_share=0.05,
    max_history=10,
    seed=0,
):
    """Write train.json, valid.json and test.json, a record for every line that has a history.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``metadata.json`` and ``data``.
    save_folder : str or pathlib.Path
        Folder for the manifests; ``lines_<part>.json`` in it are all single lines.
    label_files : sequence of str
        See :func:`read_labels`.
    test_folder : str, optional
        Folder of JELLY's annotation: every dialogue that one of its test files names is test, and no other. None:
        shares are drawn.
    valid_share, test_share : float
        Of the dialogues.
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
        If the folder is not DailyTalk, or what would be written has a fault.
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    if not (data_folder / "metadata.json").is_file() or not (data_folder / "data").is_dir():
        raise ManifestError(f"{data_folder} is not DailyTalk: it needs metadata.json and data. {_WHERE}")
    metadata = json.loads((data_folder / "metadata.json").read_text(encoding="utf-8"))
    labels = read_labels(label_files)
    names = sorted((n for n in metadata if n.isdigit()), key=int)
    drawn = list(names)
    random.Random(f"DailyTalk lines/{seed}").shuffle(drawn)
    test = set(drawn[: max(round(test_share * len(drawn)), 1)])
    if test_folder is not None:
        test = dialogues_of_tests(test_folder) & set(names)
    rest = [n for n in drawn if n not in test]
    valid = set(rest[: max(round(valid_share * len(drawn)), 1)])
    records, lines, findings = {}, {"train": {}, "valid": {}, "test": {}}, []
    part_of = {n: "test" if n in test else "valid" if n in valid else "train" for n in names}
    for number in names:
        turns, notes = _read_turns(data_folder, number, metadata[number], {})
        findings += notes
        for turn in turns:
            stem = Path(turn["recording"]["wav"]).stem
            emotion, intensity = labels.get(stem, (EMOTION_OF_CORPUS[turn["emotion"]], None))
            turn["emotion"] = emotion
            turn["descriptors"] = {"intensity": intensity} if intensity else {}
            lines[part_of[number]][stem] = {
                **turn["recording"],
                **{k: turn[k] for k in ("speaker", "gender", "emotion", "descriptors")},
                "transcript": turn["text"],
                "corpus": "DailyTalk",
            }
        if len(turns) < 2:
            findings.append(Finding(f"d{number}", f"left out: {len(turns)} usable lines"))
            continue
        records.update(records_of_lines(turns, f"d{number}", max_history=max_history, corpus="DailyTalk"))

    def split(usable):
        parts = {"train": [], "valid": [], "test": []}
        for key, record in usable.items():
            parts[part_of[record["dialogue"].removeprefix("d")]].append(key)
        ids = (tuple(sorted(parts[kind])) for kind in ("train", "valid", "test"))
        return Split("dialogues", *ids, speaker_independent=False)

    done = write_fold(
        "DailyTalk",
        records,
        split,
        data_folder,
        save_folder,
        EMOTIONS,
        measure=False,
        settings={"seed": seed, "max_history": max_history, "label_files": len(labels)},
        findings=findings,
    )
    for part, some in lines.items():
        write_manifest(save_folder / f"lines_{part}.json", some)
    return done


def prepare_dailytalk_tts(
    data_folder, save_folder, textgrid_folder, label_files=(), test_folder=None, seed=0
):
    """Write train.json, valid.json and test.json of single lines with their TextGrids, for the synthesiser.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``metadata.json`` and ``data``.
    save_folder : str or pathlib.Path
        Folder for the manifests.
    textgrid_folder : str or pathlib.Path
        ``<dialogue>/<turn>_<speaker>_d<dialogue>.TextGrid``, as the Montreal Forced Aligner writes them.
    label_files, test_folder, seed :
        As of :func:`prepare_dailytalk_lines`.

    Raises
    ------
    ManifestError
        If no line has a TextGrid, or the folder is not DailyTalk.
    """
    textgrids, save_folder = Path(textgrid_folder), Path(save_folder)
    prepare_dailytalk_lines(
        data_folder, save_folder / "lines", label_files, test_folder=test_folder, seed=seed
    )
    missing = 0
    for part in ("train", "valid", "test"):
        some = json.loads((save_folder / "lines" / f"lines_{part}.json").read_text(encoding="utf-8"))
        kept = {}
        for stem, record in some.items():
            grid = textgrids / stem.rsplit("_d", 1)[1] / f"{stem}.TextGrid"
            if grid.is_file():
                kept[stem] = {**record, "textgrid": str(grid)}
            else:
                missing += 1
        if not kept:
            raise ManifestError(
                f"{textgrids}: no line of the {part} part has a TextGrid; align the corpus first (python -m "
                "speechbrain_emo align --help)"
            )
        write_manifest(save_folder / f"{part}.json", kept)
    if missing:
        logger.warning("%d lines have no TextGrid and are left out", missing)
