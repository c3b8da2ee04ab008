"""JELLY's annotation files: the answer's emotion reaches no prompt, and no test dialogue reaches training."""

import json

import pytest

from recipes.DailyTalk.dailytalk_emotion import (
    EMOTIONS,
    INTENSITIES,
    dialogues_of_tests,
    parse_label,
    prepare_dailytalk_emotion,
    read_annotations,
    repeated_dialogues,
)
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.prompts import AnswerFormat, NextLineTask, Slot

FORMAT = AnswerFormat({"transcript": "text", "intensity": list(INTENSITIES), "emotion": list(EMOTIONS)})


def task(**more):
    return NextLineTask(
        "n", ["{history}Next {speaker}: {text}"], "{speaker}: {text} ({emotion})\n", FORMAT, **more
    )


def text_of(example):
    return "".join("<slot>" if isinstance(p, Slot) else p for t in example.turns for p in t.parts)


def write(folder, name, rows):
    (folder / name).write_text(json.dumps({"annotation": rows}))


def row(dialogue, turn, words, emotions, speakers="0|1|0|1|0|1"):
    n = len(words)
    return {
        "path": f"/x/dailytalk_16khz/data/{dialogue}/{turn}_0_d{dialogue}.wav",
        "transcript": "|".join(words),
        "emotion": "|".join(emotions),
        "speaker": "|".join(speakers.split("|")[:n]),
        "text": emotions[-1],
        "task": "emotion_prediction_in_conversation",
    }


@pytest.fixture
def folder(tmp_path):
    valid = [row(i, 2, ["hello", "oh no", "well"], ["neutral", "weak sad", "happy"]) for i in range(1, 11)]
    write(tmp_path, "stage02_1_valid.json", valid)
    write(
        tmp_path, "stage02_1_test.json", [row(20, 1, ["hi", "there"], ["neutral", "strong angry"]), valid[0]]
    )
    write(tmp_path, "stage02_2_test.json", [row(2, 1, ["hi", "there"], ["neutral", "neutral"])])
    write(
        tmp_path,
        "stage01_1_test.json",
        [{"path": "/x/dailytalk_16khz/data/3/0_1_d3.wav", "text": "sad", "task": "emotion_recognition"}],
    )
    return tmp_path


def test_test_dialogues_of_every_stage_do_not_train(folder, tmp_path):
    assert dialogues_of_tests(folder) == {"1", "2", "3", "20"}
    done = prepare_dailytalk_emotion(folder, tmp_path / "out")
    parts = {p: json.loads(open(path).read()) for p, path in done.manifests.items()}
    trained = {r["dialogue"] for p in ("train", "valid") for r in parts[p].values()}
    assert trained == {str(i) for i in range(4, 11)}
    assert not trained & dialogues_of_tests(folder)
    assert {r["dialogue"] for r in parts["train"].values()} & {
        r["dialogue"] for r in parts["valid"].values()
    } == set()
    assert any("3 of 10 rows" in str(f) for f in done.findings)


def test_the_answer_s_emotion_reaches_no_prompt(folder):
    """Whatever the answer is, the prompt is the same, letter by letter."""
    records, _ = read_annotations(folder / "stage02_1_test.json")
    for record in records.values():
        for source in ("text", "nothing"):
            prompts = set()
            for emotion in EMOTIONS:
                for intensity in INTENSITIES:
                    changed = json.loads(json.dumps(record))
                    changed["response"].update(emotion=emotion, descriptors={"intensity": intensity})
                    example = task(intensity=True).build(
                        {**changed, "id": "x"}, slot_sources={"emotion": source}
                    )
                    prompts.add(text_of(example))
                    answer = example.answer[0].value
                    assert answer == ("neutral" if emotion == "neutral" else f"{intensity} {emotion}")
            assert len(prompts) == 1
    text = text_of(task().build({**records["d20_1"], "id": "x"}, slot_sources={"emotion": "text"}))
    assert text == "A: hi (neutral)\nNext B: there"


def test_the_real_files(shared_data, tmp_path):
    folder = shared_data / "annotations" / "dailytalk_emotion"
    if not folder.is_dir():
        pytest.skip("no dailytalk_emotion")
    done = prepare_dailytalk_emotion(folder, tmp_path)
    parts = {p: json.loads(open(path).read()) for p, path in done.manifests.items()}
    assert len(parts["test"]) == 1459
    # 1032 rows are of dialogues that no test file names; of those, 9 dialogues are test dialogues under another number.
    assert 960 < len(parts["train"]) + len(parts["valid"]) < 1032
    tested = dialogues_of_tests(folder)
    assert not any(r["dialogue"] in tested for p in ("train", "valid") for r in parts[p].values())
    again = {**parts["train"], **parts["valid"]}
    assert not repeated_dialogues(again, parts["test"])
    words = {p: {(r["turns"][0]["text"], r["turns"][-1]["text"]) for r in parts[p].values()} for p in parts}
    assert not words["test"] & (words["train"] | words["valid"])
    ask = task(intensity=True)
    # Every row is kept, in its order; some lines have two rows, of other lengths.
    raw = json.loads((folder / "stage02_1_test.json").read_text())["annotation"]
    for row, (key, record) in zip(raw, parts["test"].items(), strict=True):
        prompt = text_of(ask.build({**record, "id": key}, slot_sources={"emotion": "text"}))
        labels = [line.rsplit("(", 1)[1][:-1] for line in prompt.split("\n")[:-1]]
        assert labels == row["emotion"].split("|")[:-1][-10:], key
        assert prompt.endswith(" ".join(row["transcript"].split("|")[-1].split()))
    # An intensity is sometimes missing: such rows have the emotion alone, of which 100 are neutral.
    assert sum(ask.applies(r) for r in parts["test"].values()) == 904 + 511 - 411


def test_odd_rows_are_reported(folder):
    rows = json.loads((folder / "stage02_1_test.json").read_text())["annotation"]
    rows += [
        {**rows[0], "path": "/x/other.wav"},
        {**rows[0], "speaker": "0"},
        {**rows[0], "text": "happy"},
        row(30, 1, ["a", "b"], ["neutral", "bored"]),
        row(31, 1, ["a", " "], ["neutral", "sad"]),
        rows[0],
    ]
    write(folder, "odd_test.json", rows)
    records, findings = read_annotations(folder / "odd_test.json")
    assert set(records) == {"d20_1", "d1_2", "d20_1#7"} and len(findings) == 6
    (folder / "broken.json").write_text("[]")
    with pytest.raises(ManifestError, match="annotation"):
        read_annotations(folder / "broken.json")
    with pytest.raises(ManifestError, match="no such"):
        read_annotations(folder / "absent.json")
    with pytest.raises(ValueError, match="is none of"):
        parse_label("very sad")
