"""Descriptor scores by hand and against independent implementations."""

import math
from collections import Counter

import pytest

from speechbrain_emo.metrics import descriptors
from speechbrain_emo.metrics.descriptors import (
    description_scores,
    emphasis_scores,
    faithfulness,
    field_scores,
    shift_response,
)


def test_balanced_accuracy_does_not_reward_the_frequent_value():
    references = ["normal"] * 8 + ["high", "low"]
    scores = field_scores(references, ["normal"] * 10)
    assert scores.accuracy == 0.8
    assert scores.balanced_accuracy == pytest.approx(1 / 3)


def test_missing_values():
    scores = field_scores(["low", None, "high", ""], ["LOW ", "low", None, "high"])
    assert (scores.count, scores.num_missing, scores.accuracy) == (2, 1, 0.5)
    assert field_scores([None], ["low"]) is None


def test_emphasis_counts_each_word_once():
    scores = emphasis_scores([["no", "no"], ["stop"]], [["no"], ["stop", "now"]])
    # 2 shared words, 3 in the reference, 3 predicted.
    assert (scores.precision, scores.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert scores.f1 == pytest.approx(2 / 3) and scores.exact == 0.0


def test_emphasis_without_words():
    assert emphasis_scores([[], []], [[], []]).f1 == 1.0
    # An unparsable answer is no correct "nothing emphasised".
    assert emphasis_scores([[]], [None]).exact == 0.0
    assert emphasis_scores([["a1"]], [[]]).f1 == 0.0
    assert emphasis_scores([None], [["a1"]]) is None
    with pytest.raises(TypeError, match="list of words"):
        emphasis_scores(["never"], [["never"]])


def test_faithfulness_is_agreement_with_the_measurement():
    measured = [{"pitch": "high", "speed": "fast"}, {"pitch": "low", "speed": None}]
    predicted = [{"pitch": "high", "speed": "slow"}, {"pitch": "high"}]
    found = faithfulness(predicted, measured, ["pitch", "speed", "volume"])
    assert found["pitch"].accuracy == 0.5
    assert (found["speed"].accuracy, found["speed"].count) == (0.0, 1)
    assert found["volume"] is None


def test_shift_response_mirrors_with_the_direction():
    order = ("slow", "normal", "fast")
    before = ["slow", "normal", "fast", "normal", None, "unvoiced"]
    after = ["normal", "normal", "fast", "slow", "fast", "fast"]
    up = shift_response(before, after, 1, order)
    assert (up.right, up.wrong, up.unmoved, up.saturated) == (1, 1, 1, 3)
    assert up.share_right == pytest.approx(1 / 3)
    down = shift_response(before, after, -1, order)
    # "fast" that stays could have moved down, so it is unmoved there and saturated above.
    assert (down.right, down.wrong, down.unmoved, down.saturated) == (1, 1, 2, 2)
    # An extreme value that moves the wrong way is wrong, not saturated.
    assert shift_response(["fast"], ["slow"], 1, order).wrong == 1
    with pytest.raises(ValueError, match="direction is 0"):
        shift_response(before, after, 0, order)


REFERENCES = [
    "A calm woman speaks slowly with a low voice.",
    "An angry man shouts fast and loud!",
    "A happy girl talks with a high voice.",
]
HYPOTHESES = [
    "A calm woman speaks with a low voice",
    "an angry man speaks fast and very loud",
    "A sad boy talks.",
]


def plain(text):
    return "".join(c for c in text.lower() if c.isalnum() or c == " ").split()


def bleu4(references, hypotheses):
    """Papineni et al. 2002, corpus level, with sacrebleu's exponential smoothing of empty orders."""
    logs, halvings = 0.0, 1.0
    for n in range(1, 5):
        hits = total = 0
        for reference, hypothesis in zip(references, hypotheses):
            grams = [
                Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (reference, hypothesis)
            ]
            hits += sum((grams[0] & grams[1]).values())
            total += sum(grams[1].values())
        if hits == 0:
            halvings *= 2
        logs += math.log((hits or 1 / halvings) / total) / 4
    lengths = sum(map(len, references)), sum(map(len, hypotheses))
    return min(1.0, math.exp(1 - lengths[0] / lengths[1])) * math.exp(logs)


def longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_bleu_and_rouge_equal_their_definitions():
    pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score")
    references, hypotheses = [plain(r) for r in REFERENCES], [plain(h) for h in HYPOTHESES]
    scores = description_scores(REFERENCES, HYPOTHESES, java=False)
    assert scores["bleu4"].value == pytest.approx(bleu4(references, hypotheses), abs=1e-6)
    rouge = [2 * longest_common(r, h) / (len(r) + len(h)) for r, h in zip(references, hypotheses)]
    assert scores["rouge_l"].value == pytest.approx(sum(rouge) / len(rouge), abs=1e-9)


def test_cider_of_copies_is_ten():
    pytest.importorskip("pycocoevalcap")
    scores = description_scores(REFERENCES, REFERENCES, java=False)
    assert scores["cider"].value == pytest.approx(10, abs=1e-6)
    assert scores["bleu4"].value == pytest.approx(1) and scores["rouge_l"].value == pytest.approx(1)


def test_letters_outside_english_count():
    pytest.importorskip("rouge_score")
    scores = description_scores(["eine müde Stimme", "laut"], ["eine muede Stimme", "laut"], "de", java=False)
    assert scores["rouge_l"].value == pytest.approx((2 / 3 + 1) / 2)


def test_meteor_runs_where_java_is():
    pytest.importorskip("pycocoevalcap")
    if descriptors.shutil.which("java") is None:
        pytest.skip("java not found on the PATH")
    scores = description_scores(REFERENCES, HYPOTHESES)
    assert 0.1 < scores["meteor"].value < 0.9
    assert scores["spice"].value is not None or "CoreNLP" in scores["spice"].reason


@pytest.mark.parametrize("missing", ["java", "package"])
def test_what_cannot_run_is_not_computed_and_never_zero(monkeypatch, missing):
    if missing == "java":
        pytest.importorskip("pycocoevalcap")
        monkeypatch.setattr(descriptors.shutil, "which", lambda name: None)
        lost = {"meteor", "spice"}
    else:

        def refuse(name):
            raise ImportError(f"No module named {name!r}")

        monkeypatch.setattr(descriptors.importlib, "import_module", refuse)
        lost = {"bleu4", "rouge_l", "cider", "meteor", "spice"}
    scores = description_scores(REFERENCES, HYPOTHESES)
    assert set(scores) == {"bleu4", "meteor", "rouge_l", "cider", "spice"}
    for name, score in scores.items():
        if name in lost:
            assert score.value is None
            assert missing in score.reason
        else:
            assert score.value is not None


def test_a_java_process_that_dies_is_reported(monkeypatch):
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")
    if descriptors.shutil.which("java") is None:
        pytest.skip("java not found on the PATH")
    monkeypatch.setattr(meteor, "METEOR_JAR", "no-such.jar")
    score = description_scores(REFERENCES, HYPOTHESES)["meteor"]
    assert score.value is None and "failed" in score.reason


def test_empty_and_missing_sentences():
    scores = description_scores([None, "a voice here now", "two words"], ["x", None, "two words"], java=False)
    assert 0 < scores["rouge_l"].value == pytest.approx(0.5)
    assert description_scores([None], ["x"]) == {}
    with pytest.raises(ValueError, match="1 references but 0 predictions"):
        description_scores(["a"], [])
