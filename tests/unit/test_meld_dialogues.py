"""MELD's scenes as text for next-line prediction: a made table, and the real ones."""

import pytest

from recipes.MELD.meld_dialogues import LABELS, meld_dialogues
from recipes.MELD.meld_prepare import EMOTIONS
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.prompts import AnswerFormat, NextLineTask

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"


@pytest.fixture
def tables(tmp_path):
    rows = [
        ("Oh my God!", "Rachel", "surprise", 0, 0),
        ("I know\x92s.", "Ross", "joy", 0, 1),
        ("", "Ross", "joy", 0, 2),
        ("No.", "Rachel", "anger", 0, 3),
        ("Alone.", "Joey", "sadness", 7, 0),
    ]
    text = HEADER + "".join(f'1,"{t}",{s},{e},x,{d},{u}\n' for t, s, e, d, u in rows)
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}_sent_emo.csv").write_bytes(text.encode("latin-1"))
    return tmp_path


def test_a_record_for_every_line_with_a_history(tables):
    records, findings = meld_dialogues(tables)
    assert list(records) == ["meld_test_0_1", "meld_test_0_2"]
    last = records["meld_test_0_2"]
    assert [t["text"] for t in last["turns"]] == ["Oh my God!", "I know's."]
    assert [t["emotion"] for t in last["turns"]] == ["surprise", "happy"]
    assert last["response"]["emotion"] == "angry" and last["dialogue"] == "meld_test_0"
    assert any("line without words" in str(f) for f in findings)
    with pytest.raises(ManifestError, match="allowed: train, dev, test"):
        meld_dialogues(tables, "valid")


def test_every_label_has_a_name_of_the_tasks():
    assert set(LABELS) == set(EMOTIONS)
    assert set(LABELS.values()) == {"neutral", "angry", "disgust", "fear", "happy", "sad", "surprise"}


def test_the_answer_reaches_no_prompt_of_the_real_tables(shared_data):
    records, _ = meld_dialogues(shared_data / "annotations" / "meld")
    assert len(records) == 2610 - 280 and max(len(r["turns"]) for r in records.values()) == 10
    fmt = AnswerFormat({"emotion": list(dict.fromkeys(LABELS.values()))})
    task = NextLineTask(
        "n", ["{history}{speaker}: {text}"], "{speaker}: {text} [{emotion}]\n", fmt, corpora=["MELD"]
    )
    for key, record in list(records.items())[::50]:
        record = {**record, "id": key}
        assert task.applies(record)
        other = {**record, "response": {**record["response"], "emotion": "fear"}}
        prompts = [task.build(r, slot_sources={"emotion": "text"}).turns for r in (record, other)]
        assert prompts[0] == prompts[1]
