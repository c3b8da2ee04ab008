"""The embedded dialogues: what an answer hangs on, held-out sentences and voices, the text for the language model."""

import json
import random

import pytest

from recipes.Demo import demo_prepare as demo
from recipes.DemoDialogue import demodialogue_prepare as dialogues

SIZES = {"num_train": 96, "num_valid": 12, "num_test": 24, "num_pairs": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogues")
    report = dialogues.prepare_demo_dialogue(folder, folder / "manifests", num_processes=1, **SIZES)
    read = {p.stem: json.loads(p.read_text()) for p in (folder / "manifests").glob("*.json")}
    return folder, report, read


def test_voices_and_sentences_of_test_are_new(corpus):
    _, report, manifests = corpus
    grams = {
        s: set().union(*(demo._ngrams(r["transcript"]) for r in manifests[s].values())) for s in demo.SPLITS
    }
    assert not (grams["test"] | grams["valid"]) & grams["train"] and report["shared_4_grams"] == 0
    speakers = {s: {r["speaker"] for r in manifests[s].values()} for s in demo.SPLITS}
    assert not speakers["test"] & (speakers["train"] | speakers["valid"])
    assert 0 < report["ua"] <= 1


def test_every_word_and_pattern_of_the_test_sentences_is_trained():
    """Held-out four words in a row once took nearly all sentences with a place out of training."""
    drawn = dialogues._sentences({"train": 1600, "valid": 100, "test": 240}, 1234)
    words = {split: {w for sentence, _ in found for w in sentence.split()} for split, found in drawn.items()}
    assert words["test"] | words["valid"] <= words["train"]
    shares = {split: sum(" is " in s for s, _ in found) / len(found) for split, found in drawn.items()}
    assert all(0.25 < share < 0.45 for share in shares.values()), shares
    text = dialogues.text_records(300, 0, [s for split in ("valid", "test") for s, _ in drawn[split]])
    assert sum(" is " in r["transcript"] for r in text.values()) > 25


def test_the_oracle_leaves_room():
    """On the full test set, whose parameters need no synthesis."""
    plan, _, _ = dialogues._plan({"train": 100, "valid": 12, "test": 240}, 0, 1234)
    records = list(plan["test"].values())
    recalls = dialogues.oracle_recalls(demo._parameters(records), [r["emotion"] for r in records])
    assert 0.8 < sum(recalls.values()) / 4 <= 0.90


def test_an_answer_hangs_on_words_style_and_context(corpus):
    _, _, manifests = corpus
    test = manifests["test"]
    for key, record in manifests["test_style"].items():
        base = test[key]
        assert record["transcript"] == base["transcript"] and record["speaker"] == base["speaker"]
        assert record["emotion"] != base["emotion"]
        assert record["turns"][:-1] == base["turns"][:-1]
        assert record["audios"][-1] != base["audios"][-1] and record["response"] != base["response"]
    assert manifests["test_context"]
    for key, record in manifests["test_context"].items():
        base = test[key]
        assert record["audios"][-1] == base["audios"][-1] and record["turns"][-1] == base["turns"][-1]
        assert record["response"] != base["response"]


def test_a_dialogue_is_complete(corpus):
    folder, _, manifests = corpus
    seen = set()
    for name in ("train", "train_uncut", "valid", "test"):
        for record in manifests[name].values():
            users = [t for t in record["turns"] if t["role"] == "user"]
            seen.add((name == "train_uncut", len(users)))
            assert (
                [t["audio"] for t in users] == list(range(len(users))) == list(range(len(record["audios"])))
            )
            assert [t["role"] for t in record["turns"]] == (["user", "assistant"] * len(users))[:-1]
            assert users[-1]["text"] == record["transcript"] and users[-1]["emotion"] == record["emotion"]
            for audio in record["audios"]:
                assert (folder / audio["wav"].replace("{data_root}/", "")).is_file()
            assert len({t["speaker"] for t in users}) == 1
    assert {n for uncut, n in seen if not uncut} >= {1, 2, 3}
    # Four utterances of each voice leave three for the context of the fourth.
    assert {n for uncut, n in seen if uncut} == {4}


def test_a_complete_corpus_is_kept(corpus, capsys):
    folder, report, _ = corpus
    assert dialogues.prepare_demo_dialogue(folder, folder / "manifests", **SIZES) == report
    assert "kept" in capsys.readouterr().out


def test_the_answer_s_rule():
    assert dialogues.answer("happy", "lamp") == "how nice to hear of the lamp"
    answers = {dialogues.answer(e, "lamp", p) for e in dialogues.EMOTIONS for p in (None, "box", "map")}
    assert len(answers) == 12


def test_text_keeps_test_sentences_out():
    forbidden = ["the farmer carried the green lamp", "we moved my heavy table"]
    grams = set().union(*(demo._ngrams(s) for s in forbidden))
    records = dialogues.text_records(300, 1, forbidden)
    for record in records.values():
        for turn in record["turns"]:
            if turn["role"] == "user":
                assert not demo._ngrams(turn["text"]) & grams
                text = (turn.get("slot_texts") or {}).get("linguistic")
                if text:
                    words = [w for w in text.split() if w != dialogues.FILLER]
                    once = [w for i, w in enumerate(words) if not i or words[i - 1] != w]
                    assert once == turn["text"].split()
    styles = {(r["emotion"], r["descriptors"]["pitch"]) for r in records.values()}
    assert len(styles) == 12


def test_stretched_keeps_the_order():
    words = "the lamp is near the river"
    for seed in range(20):
        made = [w for w in dialogues.stretched(words, random.Random(seed)).split() if w != dialogues.FILLER]
        assert [w for i, w in enumerate(made) if not i or made[i - 1] != w] == words.split()


@pytest.mark.parametrize(
    "change,message",
    [({"num_test": 8}, "num_test is 8"), ({"num_train": 50}, "24 voices"), ({"num_pairs": 999}, "num_pairs")],
)
def test_wrong_sizes_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        dialogues.prepare_demo_dialogue(tmp_path, tmp_path, **{**SIZES, **change})
