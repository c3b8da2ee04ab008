"""Tasks of conversational speech: what a prompt shows, which records they are for, and what is measured."""

import random
from types import SimpleNamespace

import pytest

from speechbrain_emo.brains.next_line_evaluation import (
    NextLineEvaluation,
    _copied,
    _with_predictions,
    by_group,
    fault_rows,
    label_scores,
    next_line_pictures,
    next_line_table,
)
from speechbrain_emo.dataio.dialogue import check_dialogue, make_turn, records_of_lines
from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
from speechbrain_emo.prompts import AnswerFormat, EmotionTask, NextLineTask, Packer, Slot
from speechbrain_emo.prompts.next_line import labels_of, match_label

FORMAT = AnswerFormat(
    {
        "transcript": "text",
        "intensity": ["weak", "medium", "strong"],
        "emotion": ["angry", "happy", "neutral", "sad"],
    }
)
LINE = "{speaker}: {text} ({emotion})\n"


def talk(length, audio=True):
    """Records of a conversation in which every line names its own number."""
    turns = []
    for i in range(length):
        emotion = FORMAT.labels[i % 4]
        recording = {"wav": f"{i}.wav", "duration": 1.0 + i} if audio else None
        intensity = {} if emotion == "neutral" else {"intensity": ("weak", "strong")[i % 2]}
        turns.append(
            make_turn("user", f"line {i} {{text}}", recording, "xy"[i % 2], None, emotion, intensity)
        )
    return {k: {**r, "id": k} for k, r in records_of_lines(turns, "d").items()}


def next_task(**more):
    return NextLineTask(
        "next", ["{history}next {speaker}: {text}"], LINE, FORMAT, **{"intensity": True, **more}
    )


def shown(example):
    return "".join(f"<{p.audio}>" if isinstance(p, Slot) else p for p in example.turns[0].parts)


def test_the_label_space_has_no_intensity_of_neutral():
    labels = labels_of(FORMAT, True)
    assert (
        len(labels) == 3 * 3 + 1 and "neutral" in labels and not any(x.endswith(" neutral") for x in labels)
    )
    assert match_label("Strong sad.", labels) == "strong sad" and match_label("strong", labels) is None


def test_history_speakers_and_sources():
    record = talk(5)["d_3"]
    task = next_task()
    speech = task.build(record)
    assert shown(speech) == (
        "A: line 0 {text} (<0>)\nB: line 1 {text} (<1>)\nA: line 2 {text} (<2>)\nnext B: line 3 {text}"
    )
    assert shown(task.build(record, slot_sources={"emotion": "text"})).startswith(
        "A: line 0 {text} (weak angry)\nB"
    )
    assert "()" in shown(task.build(record, slot_sources={"emotion": "nothing"}))
    assert speech.answer[0].value == "strong sad"
    for record in talk(4).values():
        check_dialogue(record["id"], record)


def test_at_most_ten_utterances_the_last_ones():
    record = talk(14)["d_13"]
    assert len(record["turns"]) == 10
    example = next_task(max_turns=3).build(record)
    assert (
        [s.audio for s in example.slots] == [7, 8, 9]
        and "line 10" in shown(example)
        and "line 9" not in shown(example)
    )


def test_labels_as_words_are_text_to_the_adapters():
    """Stage 2-1 trains the text adapter alone: no position may be of the emotion's kind."""
    packer = Packer(
        train_tiny_tokenizer(["line next weak strong angry happy sad neutral A B"] * 3, 300), ["emotion"]
    )
    record = talk(3)["d_2"]
    row = packer.encode(next_task().build(record, slot_sources={"emotion": "text"}))
    assert set(row.kinds) == {1, 2}
    lengths = [{"emotion": 4}] * 2
    assert packer.encode(next_task().build(record), lengths).kinds.count(3) == 8


def test_the_target_s_emotion_reaches_no_prompt():
    record = talk(6)["d_5"]
    prompts = {
        shown(
            next_task().build({**record, "response": {**record["response"], "emotion": e, "descriptors": d}})
        )
        for e in FORMAT.labels
        for d in ({}, {"intensity": "weak"}, {"intensity": "strong"})
    }
    assert len(prompts) == 1


def test_which_records_a_task_is_for():
    spoken, written = talk(3)["d_2"], talk(3, audio=False)["d_2"]
    task = next_task(need_audio=True)
    assert task.applies(spoken) and not task.applies(written) and next_task().applies(written)
    nameless = {**spoken, "response": {**spoken["response"], "descriptors": {}, "emotion": "sad"}}
    assert not next_task().applies(nameless) and next_task(intensity=False).applies(nameless)
    assert not next_task(corpora=["other"]).applies(spoken)
    hear = EmotionTask("e", ["{emotion}?"], FORMAT, intensity=True)
    assert hear.applies(spoken) and not hear.applies(written)
    example = hear.build(spoken)
    assert example.slots[0].audio == 1 and example.answer[0].value == "strong happy"


def test_reading_tasks_ask_about_the_history():
    record = talk(5)["d_4"]
    last = NextLineTask("l", ["{history}last?"], LINE, FORMAT, intensity=True, ask="last")
    own = NextLineTask("o", ["{history}own of {speaker}?"], LINE, FORMAT, intensity=True, ask="own")
    assert last.label(record) == "strong sad" and own.label(record) == "neutral"
    assert own.build(record).turns[0].parts[-1].endswith("own of A?")


def test_a_turn_without_audio_and_emotion_is_refused():
    record = talk(3)["d_2"]
    record["turns"][0] = {**record["turns"][0], "audio": None, "emotion": None}
    with pytest.raises(ValueError, match="neither audio nor an emotion"):
        next_task().build(record)
    with pytest.raises(ValueError, match="needs"):
        NextLineTask("n", ["{history}"], LINE, FORMAT)
    with pytest.raises(ValueError, match="max_turns"):
        next_task(max_turns=0)


def test_wordings_are_drawn_by_the_key():
    task = NextLineTask("n", ["{history}{speaker}{text}1", "{history}{speaker}{text}2"], LINE, FORMAT)
    record = talk(3)["d_2"]
    drawn = {shown(task.build(record, random.Random(i)))[-1] for i in range(20)}
    assert drawn == {"1", "2"}


def test_scores_by_hand():
    emotions = ["angry", "happy", "neutral", "sad"]
    truth = ["weak sad", "strong sad", "neutral", "weak happy"]
    found = ["weak sad", "weak sad", "weak happy", None]
    scores = label_scores(truth, found, emotions, ["weak", "medium", "strong"])
    assert scores["accuracy"] == 0.25 and scores["emotion_wa"] == 0.5
    # Recalls: sad 1, neutral 0, happy 0. F1: sad 1, neutral 0, happy 0.
    assert scores["emotion_ua"] == pytest.approx(1 / 3) and scores["emotion_f1"] == pytest.approx(1 / 3)
    # Of the three lines with an intensity: weak right, strong wrong, weak missing.
    assert scores["intensity_wa"] == pytest.approx(1 / 3)


def test_copying_and_predictions_in_a_row():
    record = talk(5)["d_4"]
    assert _copied(next_task(), record, own=False) == "strong sad"
    assert _copied(next_task(), record, own=True) == "neutral"
    assert _copied(next_task(intensity=False), record, own=False) == "sad"
    # Line 3 was predicted: its label in the history of line 4 is the predicted one, the others stay.
    changed = _with_predictions(record, 4, {3: "weak happy"})
    assert [t["emotion"] for t in changed["turns"]] == ["angry", "happy", "neutral", "happy"]
    assert changed["turns"][3]["descriptors"] == {"intensity": "weak"}
    assert record["turns"][3]["emotion"] == "sad"


def test_groups_faults_and_pictures(tmp_path):
    metrics, key = {}, "test.next.speech@s"
    for n in (10, 2, 1):
        metrics.update({f"{key}.wa_history_{n}": n / 20, f"{key}.count_history_{n}": n})
    metrics.update({f"{key}.wa_change": 0.25, f"{key}.count_change": 4, f"{key}.wa_intensity_weak": 0.5})
    metrics.update({"test.next.replies@s.wa_2": 0.5, "test.next.replies@s.agreement_2": 0.75})
    for fault in ("clean", "telephone"):
        metrics.update(
            {f"robust_{fault}.next.speech@s.{m}": 0.5 for m in ("emotion_wa", "accuracy", "count")}
        )
    assert list(by_group(metrics, key)) == [
        "change",
        "history_1",
        "history_2",
        "history_10",
        "intensity_weak",
    ]
    assert by_group(metrics, key, "count") == {"change": 4, "history_1": 1, "history_2": 2, "history_10": 10}
    rows = fault_rows(metrics)
    assert [r["audio"] for r in rows] == ["as recorded", "telephone: 8 kHz, 300-3400 Hz, mu-law"]
    assert rows[0] == {
        "audio": "as recorded",
        "next.speech@s: emotion_wa": 0.5,
        "next.speech@s: accuracy": 0.5,
    }
    settings = {"prediction": [{"phase": "s", "task": "next", "conditions": ["speech"]}]}
    next_line_pictures(metrics, settings, tmp_path)
    assert (tmp_path / "next_line_next.png").stat().st_size > 10000
    table = next_line_table(metrics, settings)
    assert "history_10" in table and "agreement_2" in table and "telephone" in table
    (tmp_path / "none").mkdir()
    next_line_pictures({}, settings, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())  # No history long enough: nothing to draw, and no crash.


def test_the_longest_label_can_be_written():
    """With a fixed limit of 8 tokens a tokenizer of letters never finished "strong angry": every angry was wrong."""
    labels = ["neutral", "weak sad", "strong angry"]

    class Letters:
        max_new_tokens = 8
        packer = SimpleNamespace(answer_ids=list)

        def answers(self, split, build, task, beams):
            return {i: label[: self.max_new_tokens] for i, label in enumerate(labels)}

        def scored(self, split, build, candidates, order):
            return {i: [float(i == k) for k in range(len(candidates))] for i in order}

    evaluation = NextLineEvaluation.__new__(NextLineEvaluation)
    evaluation.settings, evaluation.tools = {}, Letters()
    task = SimpleNamespace(name="next", values=labels, answer_fields=lambda label: label)
    written, best = evaluation.predict(task, "test", None)
    assert list(written.values()) == list(best.values()) == labels
    assert evaluation.tools.max_new_tokens == len("strong angry") + 1
