import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.IEMOCAP.iemocap_prepare import (
    EMOTIONS,
    NUM_UTTERANCES,
    clean_transcript,
    folds,
    prepare_iemocap,
    read_corpus,
)
from speechbrain_emo.dataio.manifest import ManifestError

LABELS = ["ang", "hap", "exc", "sad", "neu", "fru", "xxx", "sur", "fea", "oth", "dis"]


def write_dialogue(root, dialogue, utterances, wav_bytes):
    """The three kinds of files of a dialogue; ``utterances`` are (name, label, seconds)."""
    session = root / f"Session{dialogue[4]}"
    evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    transcription = []
    for folder in ("dialog/EmoEvaluation/Categorical", "dialog/transcriptions", f"sentences/wav/{dialogue}"):
        (session / folder).mkdir(parents=True, exist_ok=True)
    for i, (name, label, seconds) in enumerate(utterances):
        times = f"{10 * i + 6.2901:.4f} - {10 * i + 6.2901 + seconds:.4f}"
        evaluation += [
            f"[{times}]\t{name}\t{label}\t[2.5000, 3.0000, 2.3333]",
            "C-E2:\tNeutral;\t()",
            "C-F1:\tAnger; Frustration;\t(a bit)",
            "A-E3:\tval 3; act 2; dom  2;\t()",
            "A-F1:\tval 2; act 3; dom  ;\t()",
            "",
        ]
        transcription.append(f"{name} [{times.replace(' - ', '-')}]: Excuse me, number {i}. [LAUGHTER]")
        (session / "sentences" / "wav" / dialogue / f"{name}.wav").write_bytes(wav_bytes)
    (session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt").write_text("\n".join(evaluation))
    (session / "dialog" / "transcriptions" / f"{dialogue}.txt").write_text("\n".join(transcription) + "\n")


def wav_of(folder, f0=120, seconds=0.3):
    time = np.arange(int(16000 * seconds)) / 16000
    wave = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 6)) * 0.1
    soundfile.write(folder / "tone.wav", wave, 16000, subtype="PCM_16")
    return (folder / "tone.wav").read_bytes()


@pytest.fixture
def tree(tmp_path):
    """Five sessions of two dialogues, each with every label by both speakers."""
    root, wav = tmp_path / "IEMOCAP_full_release", wav_of(tmp_path)
    for s in range(1, 6):
        for dialogue in (f"Ses0{s}F_impro01", f"Ses0{s}M_script02_1"):
            names = [(f"{dialogue}_{g}{i:03d}", label, 0.3) for g in "FM" for i, label in enumerate(LABELS)]
            write_dialogue(root, dialogue, names, wav)
    return root


def load(done, part):
    return json.loads(Path(done.manifests[part]).read_text(encoding="utf-8"))


def prepare(tree, fold, **options):
    return prepare_iemocap(
        tree, tree.parent / "out" / str(fold), fold, num_workers=1, progress=False, **options
    )


@pytest.mark.parametrize("fold", [1, "3", 5])
def test_a_fold_holds_out_a_session(tree, fold):
    done = prepare(tree, fold, measure=False)
    parts = {name: load(done, name) for name in done.manifests}
    assert {name: len(part) for name, part in parts.items()} == {"train": 60, "valid": 20, "test": 20}
    assert {r["session"] for r in parts["test"].values()} == {str(fold)}
    assert {r["gender"] for r in parts["valid"].values()} == {"female", "male"}
    speakers = [{r["speaker"] for r in part.values()} for part in parts.values()]
    assert [len(s) for s in speakers] == [6, 2, 2] and len(set.union(*speakers)) == 10
    counts = Counter(r["emotion"] for r in parts["test"].values())
    assert counts == {"anger": 4, "happiness": 8, "sadness": 4, "neutral": 4}


def test_a_record(tree):
    done = prepare(tree, 2, descriptor_cache=tree.parent / "cache.jsonl")
    record = load(done, "test")["Ses02M_script02_1_F002"]
    assert record["wav"] == "{data_root}/Session2/sentences/wav/Ses02M_script02_1/Ses02M_script02_1_F002.wav"
    assert record["emotion"] == "happiness" and record["label"] == "exc"
    # The gender is the utterance's letter, not that of the dialogue (who wears the markers).
    assert record["gender"] == "female" and record["speaker"] == "Ses02_F"
    assert record["transcript"] == "Excuse me, number 2."
    assert record["style"] == "scripted" and record["dialogue"] == "Ses02M_script02_1"
    assert (record["valence"], record["activation"], record["dominance"]) == (2.5, 3.0, 2.3333)
    assert set(record["descriptors"]) == {"gender", "pitch", "volume", "speed"}
    assert record["measured"]["f0_median"] == pytest.approx(120, rel=0.01)
    assert Path(done.thresholds).name == "thresholds.json"


def test_odd_files_are_reported(tree):
    s1 = tree / "Session1"
    wavs = s1 / "sentences" / "wav" / "Ses01F_impro01"
    (wavs / "Ses01F_impro01_F000.wav").unlink()
    (wavs / "Ses01F_impro01_F001.wav").write_bytes(b"")
    evaluation = s1 / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    with open(evaluation, "a") as file:
        file.write("[1.0 - 2.0]\tSes01F_impro01_F009\tang\n")
        file.write("[1.0 - 2.0]\tSes01F_impro01_F002\tang\t[1.0, 1.0, 1.0]\n")
        file.write("[1.0 - 2.0]\tSes02F_impro01_F090\tang\t[1.0, 1.0, 1.0]\n")
    (s1 / "dialog" / "EmoEvaluation" / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07Mac")
    (s1 / "dialog" / "EmoEvaluation" / "Ses01F_impro09.txt").write_text("% nothing\n")
    transcription = s1 / "dialog" / "transcriptions" / "Ses01F_impro01.txt"
    lines = transcription.read_text().split("\n")
    kept = [line for line in lines if "F003" not in line]
    kept = [re.sub(": .*", ": [BREATHING]", line) if "F004" in line else line for line in kept]
    transcription.write_bytes("\n".join(kept + ["M: I don\x92t know."]).encode("latin-1"))
    done = prepare(tree, 1, measure=False)
    found = "\n".join(map(str, done.findings))
    for words in (
        r"Ses01F_impro01_F000: left out: .*_F000.wav: no such file",
        r"Ses01F_impro01_F001: left out: .*_F001.wav: the file is empty",
        r"Ses01F_impro01.txt:\d+: line left out: '\[1.0 - 2.0\]\\tSes01F_impro01_F009",
        r"Ses01F_impro01_F002: a second time in Ses01F_impro01.txt",
        r"Ses02F_impro01_F090: left out: not the name of an utterance of Session1",
        r"Ses01F_impro09.txt: no labelled utterance",
        r"Ses01F_impro01_F003: no transcript in dialog/transcriptions",
        r"Ses01F_impro01_F004: empty transcript",
        r"Ses01F_impro01.txt: transcript line left out: .M: I don",
        r"Session1: 18 utterances of the four classes; the complete corpus has 1085",
    ):
        assert re.search(words, found), words
    test = load(done, "test")
    assert len(test) == 18 and test["Ses01F_impro01_F002"]["label"] == "exc"
    assert test["Ses01F_impro01_F003"]["transcript"] is None is test["Ses01F_impro01_F004"]["transcript"]


def test_a_wrong_folder_is_explained(tree, tmp_path):
    with pytest.raises(ManifestError, match="(?s)missing:.*the folder .*none itself.*sail.usc.edu"):
        prepare_iemocap(tmp_path / "none", tmp_path / "out", 1)
    with pytest.raises(
        ManifestError, match="(?s)Session1/\n.*Session5/\n.*perhaps you mean .*IEMOCAP_full_release"
    ):
        prepare_iemocap(tmp_path, tmp_path / "out", 1)
    for path in (tree / "Session3" / "dialog" / "transcriptions").iterdir():
        path.unlink()
    with pytest.raises(
        ManifestError, match="missing:\n  Session3/dialog/transcriptions/.*txt\nIEMOCAP is given"
    ):
        prepare(tree, 1)
    with pytest.raises(ValueError, match="fold '6' is not one of 1, 2, 3, 4, 5"):
        prepare(tree, 6)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[LAUGHTER] Yes.", "Yes."),
        ("++GARBAGE++ [BREATHING]", None),
        ("Oh-- oh, I'm sorry, no?", "Oh-- oh, I'm sorry, no?"),
        ("", None),
        ("...", None),
    ],
)
def test_transcripts_are_cleaned(text, expected):
    assert clean_transcript(text) == expected


def test_fold_names():
    assert folds() == ["1", "2", "3", "4", "5"]


def test_the_full_list_is_that_of_emobox(shared_data, tmp_path):
    """A tree with every utterance of EmoBox's list (5531) and others beside them gives back that list."""
    folder = shared_data / "annotations" / "emobox" / "iemocap"
    if not folder.is_dir():
        pytest.skip(f"the fold list of EmoBox is not in {folder}")
    listed = {}
    for line in (folder / "iemocap.jsonl").read_text().splitlines():
        row = json.loads(line)
        listed[row["key"].removeprefix("iemocap-")] = row
    dialogues = {}
    for name, row in listed.items():
        dialogues.setdefault(row["wav"].split("/")[-2], []).append((name, row["emo"], row["length"]))
    root, wav = tmp_path / "iemocap", wav_of(tmp_path, seconds=0.03)
    for dialogue, utterances in dialogues.items():
        unused = [(f"{dialogue}_F9{i:02d}", label, 1.0) for i, label in enumerate(LABELS[5:])]
        write_dialogue(root, dialogue, utterances + unused, wav)
    records, findings = read_corpus(root)
    assert findings == []
    assert set(records) == set(listed)
    assert Counter(int(r["session"]) for r in records.values()) == NUM_UTTERANCES
    merged = {"ang": "anger", "hap": "happiness", "exc": "happiness", "sad": "sadness", "neu": "neutral"}
    assert all(records[name]["emotion"] == merged[row["emo"]] for name, row in listed.items())
    # The sizes that the literature gives for the four classes.
    counts = Counter(r["emotion"] for r in records.values())
    assert [counts[e] for e in EMOTIONS] == [1103, 1636, 1084, 1708]
    done = prepare_iemocap(root, tmp_path / "out", 1, measure=False, progress=False)

    def names(part):
        rows = (folder / "fold_1" / f"iemocap_{part}_fold_1.jsonl").read_text().splitlines()
        return {json.loads(row)["key"].removeprefix("iemocap-") for row in rows}

    assert set(load(done, "test")) == names("test")
    # EmoBox has no validation part: ours comes from its training part.
    assert set(load(done, "train")) | set(load(done, "valid")) == names("train")
    assert len({r["speaker"] for r in load(done, "valid").values()}) == 2
