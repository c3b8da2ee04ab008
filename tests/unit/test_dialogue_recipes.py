"""StyleTalk and DailyTalk: small trees in the corpora's true layout, and the real tables."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.DailyTalk import dailytalk_prepare as dailytalk
from recipes.StyleTalk import styletalk_prepare as styletalk
from speechbrain_emo.dataio.dialogue import check_dialogue, open_turns
from speechbrain_emo.dataio.manifest import ManifestError


def wav(path, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(16000 * seconds)), 16000)


def load(done, part):
    return json.loads(Path(done.manifests[part]).read_text(encoding="utf-8"))


# -- StyleTalk -------------------------------------------------------------------------------------------------


def style_row(name, number, **changes):
    return {
        "diag_id": name,
        "context": "A : I got the job! B : Really? That is great. A : Yes, finally.",
        "curr_audio_id": f"{name}/c_{number}.wav",
        "res_audio_id": f"{name}/r_{number}.wav",
        "curr_text": "B: When do you start?  ",
        "res_text": "  Next week: I can hardly wait!",
        **dict(zip(("curr_emotion", "curr_speed", "curr_volume"), ("friendly", "slow", "quiet"))),
        **dict(zip(("res_emotion", "res_speed", "res_volume"), ("cheerful", "fast", "loud"))),
        **changes,
    }


def write_styletalk(root, tables):
    root.mkdir(parents=True, exist_ok=True)
    for subset, rows in tables.items():
        with open(root / f"{subset}.csv", "w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            wav(root / "audio" / row["curr_audio_id"], 0.2)
            wav(root / "audio" / row["res_audio_id"], 0.3)


@pytest.fixture
def style_tree(tmp_path):
    root = tmp_path / "StyleTalk"
    train = [style_row(f"work_{i}", n) for i in range(10) for n in (0, 2)]
    write_styletalk(
        root, {"train": train, "eval": [style_row(f"food_{i}", n) for i in range(4) for n in (0, 1)]}
    )
    return root


def test_styletalk(style_tree, tmp_path):
    done = styletalk.prepare_styletalk(style_tree, tmp_path / "out")
    train, valid, test = (load(done, part) for part in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (18, 2, 16)
    assert not {r["dialogue"] for r in train.values()} & {r["dialogue"] for r in valid.values()}
    record = test["eval/food_1/c_0"]
    assert [(t["role"], t["text"]) for t in record["turns"]] == [
        ("assistant", "I got the job!"),
        ("user", "Really? That is great."),
        ("assistant", "Yes, finally."),
        ("user", "When do you start?"),
    ]
    assert record["audios"] == [{"wav": "{data_root}/audio/food_1/c_0.wav", "duration": 0.2}]
    assert [t["audio"] for t in record["turns"]] == [None, None, None, 0]
    assert record["descriptors"] == {"speed": "slow", "volume": "low"} and record["emotion"] == "friendly"
    assert record["response"]["text"] == "Next week: I can hardly wait!"
    assert record["response"]["descriptors"] == {"speed": "fast", "volume": "high"}
    # The doubled half: what was the reply is now the user's spoken turn.
    swapped = test["eval/food_1/c_0-reversed"]
    assert swapped["reversed"] and swapped["transcript"] == record["response"]["text"]
    assert [t["role"] for t in swapped["turns"]] == ["user", "assistant", "user", "assistant", "user"]
    assert swapped["audios"][swapped["turns"][-1]["audio"]]["wav"] == "{data_root}/audio/food_1/r_0.wav"
    assert swapped["emotion"] == "cheerful" and swapped["response"] is None
    assert not any("reversed" in name for name in train)
    plain = styletalk.prepare_styletalk(style_tree, tmp_path / "plain", role_reversal=False)
    assert len(load(plain, "test")) == 8


def test_styletalk_survives_faults(style_tree, tmp_path):
    rows = styletalk.read_table(style_tree / "train.csv")
    rows[0]["context"] = "no speaker here"
    rows[1]["curr_emotion"] = "furious"
    rows[2]["res_text"] = " "
    write_styletalk(style_tree, {"train": [*rows, rows[3]]})
    audio = style_tree / "audio"
    (audio / rows[4]["curr_audio_id"]).unlink()
    (audio / rows[5]["curr_audio_id"]).write_bytes(b"")
    (audio / "food_0" / "r_0.wav").unlink()
    done = styletalk.prepare_styletalk(style_tree, tmp_path / "out")
    found = "\n".join(map(str, done.findings))
    for words in (
        r"train/work_0/c_0: left out: the context does not begin with 'A : ' or 'B : ': 'no speaker here'",
        r"train/work_0/c_2: left out: style 'furious' is not one of neutral, ",
        r"train/work_1/c_0: left out: the reply has no words",
        r"train/work_2/c_0: left out: .*c_0.wav: no such file",
        r"train/work_2/c_2: left out: .*c_2.wav: the file is empty",
        r"train/work_1/c_2: a second time in the table",
        r"eval/food_0/c_0: reply without recording: .*r_0.wav: no such file",
        r"eval/food_0/c_0: no reversed row",
        r"train.csv: 21 rows; the complete table has 1838",
    ):
        assert re.search(words, found), words
    assert len(load(done, "train")) + len(load(done, "valid")) == 15 and len(load(done, "test")) == 15


def test_styletalk_missing(tmp_path, style_tree):
    with pytest.raises(
        ManifestError, match="is not StyleTalk; missing: train.csv, eval.csv. .*github.com/DanielLin"
    ):
        styletalk.prepare_styletalk(tmp_path / "none", tmp_path / "out")
    (style_tree / "eval.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="eval.csv: no column diag_id, context"):
        styletalk.prepare_styletalk(style_tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_tables_of_styletalk(shared_data, tmp_path):
    """All 1838 and 858 rows, over recordings that the test makes (hard links of one)."""
    folder = shared_data / "annotations" / "styletalk"
    if not folder.is_dir():
        pytest.skip(f"StyleTalk's tables are not in {folder}")
    root = tmp_path / "styletalk"
    wav(root / "tone.wav")
    for subset in ("train", "eval"):
        (root / f"{subset}.csv").write_bytes((folder / f"{subset}.csv").read_bytes())
        for row in styletalk.read_table(root / f"{subset}.csv"):
            for key in ("curr_audio_id", "res_audio_id"):
                path = root / row[key]
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.hardlink_to(root / "tone.wav")
    records, findings = styletalk.read_corpus(root)
    assert findings == []
    assert Counter(r["subset"] for r in records.values()) == {"train": 1838, "eval": 858}
    assert Counter(len(r["turns"]) for r in records.values()) == {4: 2696}
    assert all(t["text"] and t["role"] in ("user", "assistant") for r in records.values() for t in r["turns"])
    # Speakers take turns, so that the answer is always the other one's.
    assert all(
        a["speaker"] != b["speaker"] for r in records.values() for a, b in zip(r["turns"], r["turns"][1:])
    )
    assert Counter(r["turns"][-1]["speaker"] for r in records.values()) == {"B": 2667, "A": 29}
    assert Counter(r["emotion"] for r in records.values() if r["subset"] == "eval")["friendly"] == 275


# -- DailyTalk -------------------------------------------------------------------------------------------------


def daily_turn(number, turn, **changes):
    return {
        "utterance_idx": turn,
        "dialog_idx": number,
        "act": "inform",
        "emotion": "no emotion" if turn % 3 else "happiness",
        "topic": "work",
        "speaker": turn % 2,
        "text": f"This is turn {turn} of {number} .",
        **changes,
    }


def write_dailytalk(root, dialogues):
    metadata = {}
    for number, entries in dialogues.items():
        metadata[str(number)] = {str(t): e for t, e in enumerate(entries)}
        for turn, entry in enumerate(entries):
            stem = f"{turn}_{entry['speaker']}_d{number}"
            wav(root / "data" / str(number) / f"{stem}.wav", 0.1 + 0.01 * turn)
            (root / "data" / str(number) / f"{stem}.txt").write_text(entry["text"] + "\n")
    (root / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture
def daily_tree(tmp_path):
    root = tmp_path / "dailytalk"
    write_dailytalk(root, {n: [daily_turn(n, t) for t in range(4 + n % 9)] for n in range(40)})
    return root


def test_dailytalk(daily_tree, tmp_path):
    done = dailytalk.prepare_dailytalk(
        daily_tree, tmp_path / "out", speaker_genders={"0": "male", "1": "female"}
    )
    parts = {name: load(done, name) for name in done.manifests}
    dialogues = [{r["dialogue"] for r in part.values()} for part in parts.values()]
    assert [len(d) for d in dialogues] == [36, 2, 2] and len(set.union(*dialogues)) == 40
    for part in parts.values():
        for name, record in part.items():
            check_dialogue(name, record)
            assert record["response"]["speaker"] != record["speaker"] and len(record["turns"]) <= 10
            for turn in open_turns(record):
                stem = Path(turn["recording"]["wav"]).stem
                assert (
                    stem.split("_")[1] == turn["speaker"] and f"turn {stem.split('_')[0]} of" in turn["text"]
                )
            assert len(record["audios"]) == sum(t["role"] == "user" for t in record["turns"])
    cut = [r for name, r in parts["train"].items() if "@" in name]
    assert len(cut) >= 30 and not any("@" in name for part in ("valid", "test") for name in parts[part])
    record = parts["train"][next(n for n in parts["train"] if "@" not in n)]
    assert record["turns"][0]["emotion"] == "happiness" and record["turns"][0]["gender"] == "male"
    assert any("speaker 0 is in train and test" in str(f) for f in done.findings)
    without = dailytalk.prepare_dailytalk(daily_tree, tmp_path / "no_cuts", cuts=0)
    assert len(load(without, "train")) == 36
    assert set(load(without, "test")) == set(parts["test"])
    assert any("gender is null" in str(f) for f in without.findings)


def test_dailytalk_lists_keep_dialogues_out_of_training(daily_tree, tmp_path):
    (tmp_path / "val_phone.txt").write_text("".join(f"0_0_d{n}|0|{{AH0}}|x|none\n" for n in (3, 4, 5)))
    rows = [{"path": f"/data/{n}/1_1_d{n}.wav", "emotion": "neutral|happy"} for n in (5, 6, 77)]
    (tmp_path / "test.json").write_text(json.dumps({"annotation": rows}))
    done = dailytalk.prepare_dailytalk(
        daily_tree,
        tmp_path / "out",
        test_lists=[str(tmp_path / "test.json")],
        valid_lists=[str(tmp_path / "val_phone.txt")],
    )
    names = {part: {r["dialogue"] for r in load(done, part).values()} for part in done.manifests}
    assert names["test"] == {"5", "6"} and names["valid"] == {"3", "4"}
    assert not names["train"] & {"3", "4", "5", "6"}
    assert any("1 dialogues of the test lists are not in the corpus: ['77']" in str(f) for f in done.findings)


def test_dailytalk_survives_faults(daily_tree, tmp_path):
    dialogues = {n: [daily_turn(n, t) for t in range(5)] for n in range(12)}
    dialogues[1][3]["emotion"] = "melancholy"
    dialogues[2][0]["text"] = " "
    dialogues[3][1]["speaker"] = 0
    write_dailytalk(daily_tree, dialogues)
    (daily_tree / "data" / "0" / "2_0_d0.wav").unlink()
    (daily_tree / "data" / "4" / "4_0_d4.wav").write_bytes(b"RIFF")
    metadata = json.loads((daily_tree / "metadata.json").read_text())
    del metadata["5"]["1"]
    (daily_tree / "metadata.json").write_text(json.dumps(metadata))
    records, findings = dailytalk.read_corpus(daily_tree)
    found = "\n".join(map(str, findings))
    for words in (
        r"2_0_d0: the dialogue ends before this turn: .*2_0_d0.wav: no such file",
        r"3_1_d1: the dialogue ends before this turn: emotion 'melancholy' is not one of",
        r"0_0_d2: the dialogue ends before this turn: no words",
        r"d2: left out: 0 usable turns",
        r"4_0_d4: the dialogue ends before this turn: .*4_0_d4.wav",
        r"2_0_d5: the dialogue ends before this turn: turn 1 is not in metadata.json",
        r"d5: left out: 1 usable turns",
        r"d3: 2 turns follow one of the same speaker",
        r"metadata.json: 12 dialogues; the complete corpus has 2541",
    ):
        assert re.search(words, found), words
    assert set(records) == {f"d{n}" for n in range(12)} - {"d2", "d5"}
    assert len(records["d0"]["turns"]) == 1 and records["d0"]["response"]["text"].startswith("This is turn 1")


def test_dailytalk_missing(tmp_path, daily_tree):
    with pytest.raises(
        ManifestError, match="missing: metadata.json, data. Perhaps you mean .*dailytalk. DailyTalk is linked"
    ):
        dailytalk.prepare_dailytalk(tmp_path, tmp_path / "out")
    (daily_tree / "metadata.json").write_text("{")
    with pytest.raises(ManifestError, match="metadata.json: not a JSON file"):
        dailytalk.prepare_dailytalk(daily_tree, tmp_path / "out")


def test_the_real_annotations_of_dailytalk(shared_data, tmp_path):
    """Every dialogue of the corpus's own lists, rebuilt as metadata.json; JELLY's lists decide what does not train."""
    folder = shared_data / "annotations" / "dailytalk"
    jelly = shared_data / "annotations" / "dailytalk_emotion"
    if not folder.is_dir() or not jelly.is_dir():
        pytest.skip(f"DailyTalk's annotations are not in {folder}")
    lists = [jelly / "stage02_1_test.json", jelly / "stage02_2_test.json"]
    tested = dailytalk._read_lists(lists)
    validated = dailytalk._read_lists([jelly / "stage02_1_valid.json", jelly / "stage02_2_valid.json"])
    assert len(tested) >= 453 and len(tested & validated) >= 112
    assert len(dailytalk._read_lists([folder / "val_phone.txt"])) == 128
    dialogues = {}
    for name in ("train_phone.txt", "val_phone.txt"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            base, speaker, _, text, emotion = line.split("|")
            turn, _, number = base.split("_")
            entry = {"speaker": int(speaker), "text": text, "emotion": emotion}
            dialogues.setdefault(number[1:], {})[turn] = entry
    chosen = sorted(dialogues, key=int)[::25]
    root = tmp_path / "dailytalk"
    wav(root / "tone.wav")
    for number in chosen:
        for turn, entry in dialogues[number].items():
            path = root / "data" / number / f"{turn}_{entry['speaker']}_d{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(root / "tone.wav")
    (root / "metadata.json").write_text(json.dumps({n: dialogues[n] for n in chosen}))
    done = dailytalk.prepare_dailytalk(root, tmp_path / "out", test_lists=lists)
    names = {part: {r["dialogue"] for r in load(done, part).values()} for part in done.manifests}
    assert names["test"] <= tested and not names["train"] & tested and len(names["test"]) >= 5
    assert len(set.union(*names.values())) >= 0.95 * len(chosen), (
        "more dialogues are lost than the lists explain"
    )
