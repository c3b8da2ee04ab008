"""Small trees of the corpora of JELLY: labels, parts, leaks, broken files. (One file: they share a recipe's shape.)"""

import json

import numpy as np
import pytest
import soundfile

from recipes.DailyDialog.dailydialog_prepare import prepare_dailydialog
from recipes.DailyTalk.dailytalk_lines import prepare_dailytalk_lines, prepare_dailytalk_tts
from recipes.DemoConversation import democonversation_prepare as conversations
from recipes.EmotionCorpora.emotioncorpora_prepare import LABELS, prepare_emotion_corpus, read_file
from speechbrain_emo.dataio.manifest import ManifestError


def sound(path, seconds=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.1), 16000)


def parts_of(done):
    return {p: json.loads(open(path).read()) for p, path in done.manifests.items()}


# --------------------------------------------------------------------------------------------- acted corpora
TREES = {
    "MEAD": [
        f"{s}/audio/{e}/level_{n}/001.wav"
        for s in ("M003", "W009", "M005")
        for e in ("angry", "neutral", "contempt")
        for n in (1, 3)
    ],
    "TESS": [f"OAF_angry/{s}_back_{e}.wav" for s in ("OAF", "YAF") for e in ("angry", "ps", "neutral")],
    "EmoV-DB": [f"{s}_{e}/x_1.wav" for s in ("bea", "sam", "josh") for e in ("Amused", "Sleepy", "Neutral")],
    "CREMA-D": [
        f"AudioWAV/{s}_DFA_{e}.wav"
        for s in (1001, 1002, 1003)
        for e in ("ANG_HI", "NEU_XX", "SAD_LO", "FEA_XX")
    ],
}


@pytest.mark.parametrize("corpus", sorted(TREES))
def test_acted_corpora(tmp_path, corpus):
    for name in TREES[corpus]:
        sound(tmp_path / "data" / name)
    (tmp_path / "data" / "broken_sad.wav").write_text("no sound")
    first = tmp_path / "data" / TREES[corpus][0]
    first.write_bytes(b"RIFF")
    done = prepare_emotion_corpus(tmp_path / "data", tmp_path / "out", corpus)
    parts = parts_of(done)
    records = {k: r for p in parts.values() for k, r in p.items()}
    speakers = [{r["speaker"] for r in p.values()} for p in parts.values()]
    assert not speakers[0] & speakers[2] and len(records) > 3
    assert any(str(first.name) in str(f) or first.stem in str(f) for f in done.findings)
    for record in records.values():
        assert (record["descriptors"] == {}) or record["emotion"] != "neutral"
        assert set(record["descriptors"].values()) <= {"weak", "medium", "strong"}
    if corpus == "MEAD":
        assert not any("contempt" in k for k in records)
        assert {r["descriptors"].get("intensity") for r in records.values() if r["emotion"] == "angry"} == {
            "weak",
            "strong",
        }
    if corpus == "TESS":
        assert len(parts["valid"]) == 0 and any(r["emotion"] == "surprise" for r in records.values())
    with pytest.raises(ManifestError, match="holds no recording"):
        prepare_emotion_corpus(tmp_path / "empty", tmp_path / "out", corpus)


def test_every_label_of_the_public_annotation_is_in_the_maps(shared_data):
    """What the maps give for a file is what JELLY's own annotation says of it."""
    folder = shared_data / "annotations" / "dailytalk_emotion"
    if not folder.is_dir():
        pytest.skip("no dailytalk_emotion")
    names = {"MEAD_16khz": "MEAD", "tess_16khz": "TESS", "CREMA-D": "CREMA-D", "emovdb_16khz": "EmoV-DB"}
    seen, differ = dict.fromkeys(LABELS, 0), []
    for path in sorted(folder.glob("stage01_*.json")):
        for row in json.loads(path.read_text())["annotation"]:
            for marker, corpus in names.items():
                if f"/{marker}/" in row["path"]:
                    found = read_file(corpus, row["path"].split(f"/{marker}/")[1])
                    assert found is not None, row["path"]
                    label = found["emotion"]
                    if "02" in path.stem[7:] or row["task"].endswith("intensity"):
                        label = " ".join(x for x in (found["intensity"], found["emotion"]) if x)
                    seen[corpus] += 1
                    if label != row["text"]:
                        differ.append((row["path"].split("/")[-1], label, row["text"]))
    assert min(seen.values()) > 100
    assert not differ, differ[:5]


# ------------------------------------------------------------------------------------------------ DailyDialog
TALKS = [
    (
        "Hello my dear old friend of mine . __eou__ How are you doing these days then ? __eou__ Fine . __eou__",
        "4 0 0",
    ),
    ("We should go to the beach . __eou__ No . __eou__", "0 1"),
    ("What a day it was . __eou__ Yes . __eou__", "0"),
    ("Odd . __eou__ Very . __eou__", "0 9"),
    ("We should go to the beach . __eou__ No . __eou__", "0 1"),
]


def test_dailydialog_in_both_layouts(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    talks = TALKS + [
        (f"Line {i} of some talk goes here . __eou__ Answer {i} . __eou__", "6 2") for i in range(60)
    ]
    (flat / "dialogues_text.txt").write_text("".join(t + "\n" for t, _ in talks))
    (flat / "dialogues_emotion.txt").write_text("".join(e + " \n" for _, e in talks))
    done = prepare_dailydialog(flat, tmp_path / "out", valid_share=0.2, test_share=0.2)
    parts = parts_of(done)
    names = {p: {r["dialogue"] for r in records.values()} for p, records in parts.items()}
    assert not names["train"] & names["test"] and not names["train"] & names["valid"]
    everything = {k: r for p in parts.values() for k, r in p.items()}
    first = everything["d00000_2"]
    assert [t["emotion"] for t in first["turns"]] == ["happy", "neutral"] and first["audios"] == []
    assert everything["d00001_1"]["response"]["emotion"] == "angry"
    assert sum("left out" in str(f) for f in done.findings) == 3
    # DailyTalk's test conversations are DailyDialog's.
    manifest = tmp_path / "test.json"
    manifest.write_text(json.dumps({"x": first}))
    again = parts_of(
        prepare_dailydialog(
            flat, tmp_path / "two", exclude_manifests=[manifest], valid_share=0.2, test_share=0.2
        )
    )
    assert not any(r["dialogue"] == "d00000" for p in again.values() for r in p.values())
    with pytest.raises(ManifestError, match="not DailyDialog"):
        prepare_dailydialog(tmp_path, tmp_path / "no")
    for folder in ("train", "validation", "test"):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        (tmp_path / "parts" / folder / f"dialogues_{folder}.txt").write_text(
            f"Hi {folder} . __eou__ So . __eou__\n" + TALKS[1][0] + "\n"
        )
        (tmp_path / "parts" / folder / f"dialogues_emotion_{folder}.txt").write_text("0 5\n0 1\n")
    parts = parts_of(prepare_dailydialog(tmp_path / "parts", tmp_path / "three"))
    # A conversation that occurs in several parts stays in the test part.
    assert {p: len(r) for p, r in parts.items()} == {"train": 1, "valid": 1, "test": 2}


# -------------------------------------------------------------------------------------------------- DailyTalk
GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.3
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.3
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.3
            text = "so"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.3
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = "S"
        intervals [2]:
            xmin = 0.1
            xmax = 0.3
            text = "OW1"
"""


def test_dailytalk_line_by_line(tmp_path):
    data, metadata = tmp_path / "DailyTalk", {}
    for d in range(12):
        metadata[str(d)] = {}
        for t in range(4):
            emotion = ("happiness", "no emotion", "anger", "sadness")[t]
            metadata[str(d)][str(t)] = {"text": f"line {t} of {d}", "speaker": t % 2, "emotion": emotion}
            stem = f"{t}_{t % 2}_d{d}"
            sound(data / "data" / str(d) / f"{stem}.wav")
            grid = tmp_path / "TextGrid" / str(d) / f"{stem}.TextGrid"
            grid.parent.mkdir(parents=True, exist_ok=True)
            if (d, t) != (0, 0):
                grid.write_text(GRID)
    (data / "metadata.json").write_text(json.dumps(metadata))
    labels = tmp_path / "stage01_2_test.json"
    rows = [{"path": "/x/data/3/2_0_d3.wav", "text": "strong angry", "task": "t"}]
    labels.write_text(json.dumps({"annotation": rows}))
    done = prepare_dailytalk_lines(data, tmp_path / "out", [str(labels)], test_folder=tmp_path)
    parts = parts_of(done)
    assert {r["dialogue"] for r in parts["test"].values()} == {"d3"}
    assert not {r["dialogue"] for r in parts["train"].values()} & {
        r["dialogue"] for r in parts["valid"].values()
    }
    record = parts["test"]["d3_3"]
    assert [t["emotion"] for t in record["turns"]] == ["happy", "neutral", "angry"]
    assert (
        record["turns"][2]["descriptors"] == {"intensity": "strong"}
        and record["response"]["emotion"] == "sad"
    )
    assert [t["audio"] for t in record["turns"]] == [0, 1, 2] and len(record["audios"]) == 3
    prepare_dailytalk_tts(data, tmp_path / "tts", tmp_path / "TextGrid")
    lines = {
        k: r
        for p in ("train", "valid", "test")
        for k, r in json.loads((tmp_path / "tts" / f"{p}.json").read_text()).items()
    }
    assert len(lines) == 47 and "0_0_d0" not in lines
    from speechbrain_emo.brains.conversational_tts import phones_of

    assert phones_of(lines["1_1_d5"]) == [
        {"phone": "S", "start": 0.0, "end": 0.1},
        {"phone": "OW", "start": 0.1, "end": 0.3},
    ]
    with pytest.raises(ManifestError, match="no line"):
        prepare_dailytalk_tts(data, tmp_path / "none", tmp_path / "absent")


# ----------------------------------------------------------------------------------------- embedded conversations
def test_the_oracle_leaves_room_and_the_rule_is_kept():
    """On the full test part, whose labels need no synthesis."""
    made = conversations._conversations(2000, "test", 1)
    records = [
        r
        for i, lines in enumerate(made)
        for r in conversations.records_of_lines(conversations._turns(lines), str(i)).values()
    ]
    report = conversations.oracle(records)
    assert 0.65 < report["expected"] <= 0.85 and abs(report["emotion"] - report["expected"]) < 0.02
    hits = [
        r["response"]["emotion"]
        == conversations.rule(
            r["turns"][-1]["emotion"], r["turns"][-2]["emotion"] if len(r["turns"]) > 1 else None
        )
        for r in records
    ]
    assert sum(hits) / len(hits) == pytest.approx(conversations.P_RULE, abs=0.02)


def test_the_conversations_are_made(tmp_path):
    sizes = {"num_train": 3, "num_valid": 2, "num_test": 3, "num_text": 4}
    report = conversations.prepare_demo_conversation(tmp_path, tmp_path / "m", num_processes=1, **sizes)
    manifests = {
        s: json.loads((tmp_path / "m" / f"{s}.json").read_text()) for s in ("train", "valid", "test")
    }
    voices = {
        s: {t["speaker"] for r in records.values() if r["corpus"] == "democonversation" for t in r["turns"]}
        for s, records in manifests.items()
    }
    assert not voices["test"] & (voices["train"] | voices["valid"]) and 0 < report["emotion"] <= 1
    for record in manifests["test"].values():
        assert 1 <= len(record["turns"]) <= 10 and len(record["audios"]) == len(record["turns"])
        assert record["emotion"] == record["turns"][-1]["emotion"]
    lines = json.loads((tmp_path / "m" / "lines.json").read_text())
    assert all(r["phones"] and r["words"] for r in lines.values())
    assert conversations.prepare_demo_conversation(tmp_path, tmp_path / "m", **sizes) == report
