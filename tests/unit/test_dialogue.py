import copy

import pytest

from speechbrain_emo.dataio.dialogue import (
    DialogueError,
    augment_by_cuts,
    check_dialogue,
    cut_dialogue,
    dialogue_record,
    make_turn,
    possible_ends,
    reverse_roles,
)


def dialogue(speakers="ABABA", audio=True, name="d"):
    def recording(i):
        return {"wav": f"{name}{i}.wav", "duration": 1.0 + i} if audio else None

    turns = [make_turn("user", f"turn {i}", recording(i), s, emotion=f"e{i}") for i, s in enumerate(speakers)]
    response = make_turn("assistant", "reply", {"wav": "r.wav", "duration": 9.0}, "B")
    return dialogue_record(turns, response, name, subset="x")


def test_a_record_is_its_last_turn():
    record = dialogue()
    assert (record["transcript"], record["emotion"], record["speaker"]) == ("turn 4", "e4", "A")
    assert [t["role"] for t in record["turns"]] == ["user", "assistant", "user", "assistant", "user"]
    # What the assistant says is text for the model: only the user's recordings are audios.
    assert [a["wav"] for a in record["audios"]] == ["d0.wav", "d2.wav", "d4.wav"] and record[
        "duration"
    ] == 9.0
    assert [t["audio"] for t in record["turns"]] == [0, None, 1, None, 2]
    assert record["turns"][1]["recording"]["wav"] == "d1.wav" and record["response"]["text"] == "reply"
    check_dialogue("d", record)


def test_a_cut_keeps_only_its_own_audio_and_is_answered_by_the_next_turn():
    whole = dialogue()
    before = copy.deepcopy(whole)
    cut = cut_dialogue(whole, 3, 1)
    assert whole == before
    assert [t["text"] for t in cut["turns"]] == ["turn 1", "turn 2", "turn 3"]
    # The one who answers now is A: the roles are the other way round than in the whole dialogue.
    assert [t["role"] for t in cut["turns"]] == ["user", "assistant", "user"]
    assert [a["wav"] for a in cut["audios"]] == ["d1.wav", "d3.wav"]
    assert [t["audio"] for t in cut["turns"]] == [0, None, 1]
    assert cut["response"]["text"] == "turn 4" and cut["response"]["recording"]["wav"] == "d4.wav"
    assert cut["subset"] == "x" and cut["cut"] == [1, 3] and cut["transcript"] == "turn 3"
    check_dialogue("cut", cut)
    # Cutting a cut is cutting once.
    assert cut_dialogue(cut_dialogue(whole, 3), 1)["turns"] == cut_dialogue(whole, 1)["turns"]
    with pytest.raises(DialogueError, match="d: cut from turn 0 to 5; the dialogue has turns 0 to 4"):
        cut_dialogue(whole, 5)


def test_cuts_depend_on_the_record_alone():
    records = {f"d{i}": dialogue("ABABABAB", name=f"d{i}") for i in range(12)}
    out = augment_by_cuts(records, 2, seed=3)
    assert len(out) == 36 and all(k in out for k in records)
    turned = dict(reversed(list(records.items())))
    assert augment_by_cuts(turned, 2, seed=3) == out
    alone = augment_by_cuts({"d5": records["d5"]}, 2, seed=3)
    assert alone == {k: v for k, v in out.items() if k.split("@")[0] == "d5"}
    lengths = {len(v["turns"]) for k, v in out.items() if "@" in k}
    assert len(lengths) >= 5, "cuts do not vary the length of the context"
    assert set(augment_by_cuts(records, 2, seed=4)) != set(out)
    records["d0"]["target"] = "an answer"
    assert all("target" not in v for k, v in augment_by_cuts(records, 2).items() if "@" in k)
    with pytest.raises(ValueError, match="sides is 'middle'; allowed: end, start, both"):
        augment_by_cuts(records, sides="middle")


def test_cuts_where_only_the_last_turn_is_spoken():
    record = dialogue(audio=False)
    record["turns"][-1]["audio"] = 0
    record["audios"] = [{"wav": "c.wav", "duration": 2.0}]
    assert possible_ends(record) == [4]
    assert list(augment_by_cuts({"d": record}, 2)) == ["d"]
    out = augment_by_cuts({"d": record}, 2, sides="start", keep_whole=False)
    assert len(out) == 2
    assert all(v["turns"][-1]["text"] == "turn 4" and v["audios"] for v in out.values())
    assert all(len(v["turns"]) < 5 and v["response"]["text"] == "reply" for v in out.values())


def test_reversed_roles():
    record = dialogue()
    swapped = reverse_roles(record)
    assert [t["role"] for t in swapped["turns"]] == ["assistant", "user"] * 3
    assert swapped["turns"][-1]["text"] == "reply" and swapped["response"] is None
    assert [a["wav"] for a in swapped["audios"]] == ["d1.wav", "d3.wav", "r.wav"] and swapped[
        "speaker"
    ] == "B"
    check_dialogue("swapped", swapped)
    record["response"]["recording"] = None
    with pytest.raises(DialogueError, match="d: the response has no recording"):
        reverse_roles(record)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r["turns"][2].update(role="bot"), "d: turn 2 has role 'bot'; allowed: user, assistant"),
        (lambda r: r["turns"][1].update(audio=9), "d: turn 1 has audio 9, but the record has 3 audios"),
        (lambda r: r["turns"][1].update(text=" "), "d: turn 1 has neither words nor audio"),
        (lambda r: r["turns"].pop(), "d: the last turn is the assistant's"),
        (lambda r: r.update(turns=[]), "d: 'turns' is empty"),
    ],
)
def test_faults_are_named(change, message):
    record = dialogue()
    change(record)
    with pytest.raises(DialogueError, match=message):
        check_dialogue("d", record)
