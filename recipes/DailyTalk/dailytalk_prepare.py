"""Preparation of DailyTalk: 2541 recorded dialogues of two speakers.

Source: K. Lee, K. Park, D. Kim, "DailyTalk: Spoken Dialogue Dataset for Conversational Text-to-Speech", ICASSP 2023
(arXiv 2207.01063). Layout, licence and known faults: ``README.md`` beside this file.
"""

import json
import random
import re
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.dialogue import (
    augment_by_cuts,
    check_dialogue,
    cut_dialogue,
    dialogue_record,
    make_turn,
)
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

#: Labels in the order of DailyDialog.
EMOTIONS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")

#: Spellings in metadata.json -> label here.
EMOTION_OF_LABEL = {
    **{label: label for label in EMOTIONS},
    **{"no emotion": "neutral", "none": "neutral", "": "neutral", "angry": "anger", "happy": "happiness"},
    **{"sad": "sadness", "surprised": "surprise", "disgusted": "disgust", "fearful": "fear"},
}
NUM_DIALOGUES = 2541

_WHERE = (
    "DailyTalk is linked from https://github.com/keonlee9420/DailyTalk (CC BY-SA 4.0): unpack it and pass the folder "
    "that holds metadata.json and data/<dialogue>/<turn>_<speaker>_d<dialogue>.wav; see recipes/DailyTalk/README.md"
)
_NAME = re.compile(r"(\d+)_(\d+)_d(\d+)")


def prepare_dailytalk(
    data_folder,
    save_folder,
    test_lists=(),
    valid_lists=(),
    valid_share=0.05,
    test_share=0.05,
    speaker_genders=None,
    cuts=1,
    max_turns=10,
    seed=0,
):
    """Write train.json, valid.json, test.json and preparation.json; records are dialogues.

    The same two people speak in every dialogue: parts are disjoint in dialogues, never in speakers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``metadata.json`` and ``data``.
    save_folder : str or pathlib.Path
        Folder for the manifests. Paths in them begin with ``{data_root}``.
    test_lists, valid_lists : sequence of str
        Files that name dialogues of the test or validation part: lines that begin ``<turn>_<speaker>_d<dialogue>`` (the
        corpus's val_phone.txt), or JSON with ``annotation[].path`` (JELLY's). A dialogue in both is test; whatever is
        in a list never trains. Empty: shares are drawn.
    valid_share, test_share : float
        Shares of the dialogues, where there is no list.
    speaker_genders : dict, optional
        Speaker ("0", "1") -> female or male. The corpus has one of each and does not say in a file which is which.
    cuts : int
        Random midpoints at which a training dialogue is cut besides its end
        (:func:`speechbrain_emo.dataio.dialogue.augment_by_cuts`); 0 for the ablation without.
    max_turns : int
        Turns before the reply that are kept, the last ones.
    seed : int
        Draws parts and cuts.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not DailyTalk (with what is missing), or what would be written has a fault.
    """
    records, findings = read_corpus(data_folder, speaker_genders)
    lists = {"test": _read_lists(test_lists), "valid": _read_lists(valid_lists)}
    names = sorted({r["dialogue"] for r in records.values()}, key=int)
    random.Random(f"DailyTalk parts/{seed}").shuffle(names)
    part = {}
    for kind, share in (("test", test_share), ("valid", valid_share)):
        free = [n for n in names if n not in part]
        chosen = [n for n in free if n in lists[kind]] if lists[kind] else free[: round(share * len(names))]
        part.update(dict.fromkeys(chosen, kind))
        absent = sorted(lists[kind] - set(names), key=int)
        if absent:
            findings.append(
                Finding(
                    "", f"{len(absent)} dialogues of the {kind} lists are not in the corpus: {absent[:5]}"
                )
            )
    train = {i: r for i, r in records.items() if r["dialogue"] not in part}
    augmented = augment_by_cuts(train, cuts, seed) if cuts else train
    records = {**augmented, **{i: r for i, r in records.items() if r["dialogue"] in part}}
    records = {
        i: cut_dialogue(r, len(r["turns"]) - 1, len(r["turns"]) - max_turns)
        if len(r["turns"]) > max_turns
        else r
        for i, r in records.items()
    }

    def split(usable):
        parts = {"train": [], "valid": [], "test": []}
        for i, record in usable.items():
            parts[part.get(record["dialogue"], "train")].append(i)
        ids = (tuple(sorted(parts[kind])) for kind in ("train", "valid", "test"))
        return Split("dialogues", *ids, speaker_independent=False)

    return write_fold(
        "DailyTalk",
        records,
        split,
        data_folder,
        save_folder,
        EMOTIONS,
        measure=False,
        settings={
            "seed": seed,
            "cuts": cuts,
            "max_turns": max_turns,
            "lists": bool(test_lists or valid_lists),
        },
        findings=findings,
    )


def read_corpus(data_folder, speaker_genders=None):
    """Read the metadata and the recordings' headers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``metadata.json`` and ``data``.
    speaker_genders : dict, optional
        As in :func:`prepare_dailytalk`.

    Returns
    -------
    records : dict
        ``d<dialogue>`` -> dialogue up to its last turn but one, whose ``response`` is the last turn.
    findings : list of Finding
        Turns and dialogues that are left out or odd.

    Raises
    ------
    ManifestError
        If the folder is not DailyTalk.
    """
    data_folder = Path(data_folder)
    table = data_folder / "metadata.json"
    missing = [name for name in ("metadata.json", "data") if not (data_folder / name).exists()]
    if missing:
        inner = sorted(p.parent.name for p in data_folder.glob("*/metadata.json"))
        hint = f" Perhaps you mean {data_folder / inner[0]}." if inner else ""
        raise ManifestError(f"{data_folder} is not DailyTalk; missing: {', '.join(missing)}.{hint} {_WHERE}")
    try:
        metadata = json.loads(table.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{table}: not a JSON file: {error}") from error
    genders = {str(k): v for k, v in (speaker_genders or {}).items()}
    records, findings = {}, []
    if not genders:
        findings.append(Finding("", "speaker_genders is not given: gender is null for all turns"))
    for number in sorted(metadata, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0)):
        name = f"d{number}"
        turns, notes = _read_turns(data_folder, number, metadata[number], genders)
        findings += notes
        # What is answered must be said by somebody else than who answers.
        usable = [i for i in range(len(turns) - 1) if turns[i]["speaker"] != turns[i + 1]["speaker"]]
        if not usable:
            findings.append(
                Finding(name, f"left out: {len(turns)} usable turns hold no spoken turn with an answer")
            )
            continue
        end = usable[-1]
        record = dialogue_record(turns[: end + 1], turns[end + 1], number, subset="DailyTalk", language="en")
        check_dialogue(name, record)
        same = sum(a["speaker"] == b["speaker"] for a, b in zip(turns, turns[1:]))
        if same:
            findings.append(Finding(name, f"{same} turns follow one of the same speaker"))
        records[name] = record
    if len(metadata) != NUM_DIALOGUES:
        findings.append(
            Finding("metadata.json", f"{len(metadata)} dialogues; the complete corpus has {NUM_DIALOGUES}")
        )
    if not records:
        raise ManifestError(f"{data_folder}: none of the dialogues can be used. {_WHERE}")
    return records, findings


def _read_turns(data_folder, number, entries, genders):
    """Turns in order; a dialogue with a missing turn ends before it, since what follows answers what is not there."""
    turns, findings = [], []
    for position, key in enumerate(sorted(entries, key=int)):
        entry = entries[key]
        speaker = str(entry.get("speaker"))
        stem = f"{key}_{speaker}_d{number}"
        relative = f"data/{number}/{stem}.wav"
        text = " ".join(str(entry.get("text") or "").split())
        emotion = EMOTION_OF_LABEL.get(str(entry.get("emotion") or "").strip().lower())
        problem = None
        if int(key) != position:
            problem = f"turn {position} is not in metadata.json"
        elif not text:
            problem = "no words"
        elif emotion is None:
            problem = f"emotion {entry.get('emotion')!r} is not one of {', '.join(sorted(EMOTION_OF_LABEL))}"
        else:
            try:
                info = audio_info(data_folder / relative)
            except AudioError as error:
                problem = str(error)
        if problem:
            findings.append(Finding(stem, f"the dialogue ends before this turn: {problem}"))
            break
        recording = {"wav": f"{{data_root}}/{relative}", "duration": round(info.duration, 6)}
        turns.append(make_turn("user", text, recording, speaker, genders.get(speaker), emotion))
    return turns, findings


def _read_lists(paths):
    """Dialogues that files name."""
    found = set()
    for path in paths:
        path = Path(path)
        if not path.is_file():
            raise ManifestError(f"{path}: no such list of dialogues")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            names = [row["path"] for row in json.loads(text)["annotation"]]
        else:
            names = [line.split("|")[0] for line in text.splitlines() if line.strip()]
        for name in names:
            match = _NAME.search(name.rsplit("/", 1)[-1])
            if not match:
                raise ManifestError(f"{path}: {name!r} names no recording <turn>_<speaker>_d<dialogue>")
            found.add(match[3])
    return found
