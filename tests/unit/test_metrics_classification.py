"""UA, WA, F1 and the bootstrap over speakers against independent computations."""

import numpy as np
import pytest

from speechbrain_emo.metrics.classification import classification_scores, fold_spread, speaker_interval

LABELS = ["anger", "happiness", "neutral", "sadness"]


def random_problem(seed=0, count=200, missing=0.0):
    rng = np.random.default_rng(seed)
    true = rng.choice(LABELS, count, p=[0.5, 0.25, 0.15, 0.1]).tolist()
    pred = [t if rng.random() < 0.6 else str(rng.choice(LABELS)) for t in true]
    pred = [None if rng.random() < missing else p for p in pred]
    speakers = [f"s{i}" for i in rng.integers(0, 7, count)]
    return true, pred, speakers


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_scores_equal_counting_by_hand(missing):
    true, pred, _ = random_problem(missing=missing)
    scores = classification_scores(true, pred, LABELS)
    recalls, f1s, weights = [], [], []
    for label in LABELS:
        hits = sum(t == p == label for t, p in zip(true, pred))
        recalls.append(hits / true.count(label))
        # F1 = 2 TP / (2 TP + FP + FN)
        f1s.append(2 * hits / (true.count(label) + pred.count(label)))
        weights.append(true.count(label))
    assert scores.ua == pytest.approx(np.mean(recalls), abs=1e-12)
    assert scores.wa == pytest.approx(sum(t == p for t, p in zip(true, pred)) / len(true), abs=1e-12)
    assert scores.macro_f1 == pytest.approx(np.mean(f1s), abs=1e-12)
    assert scores.weighted_f1 == pytest.approx(np.average(f1s, weights=weights), abs=1e-12)
    assert scores.num_unparsable == pred.count(None)
    for i, label in enumerate(LABELS):
        assert scores.recall[label] == pytest.approx(recalls[i])
        for j, other in enumerate([*LABELS, None]):
            assert scores.confusion[i, j] == sum((t, p) == (label, other) for t, p in zip(true, pred))


def test_absent_class_does_not_lower_the_mean():
    scores = classification_scores(["anger", "neutral"], ["anger", "sadness"], LABELS)
    assert scores.ua == 0.5
    assert scores.macro_f1 == 0.5
    assert scores.recall["sadness"] is None


def test_order_of_utterances_does_not_matter():
    true, pred, speakers = random_problem()
    order = np.random.default_rng(1).permutation(len(true))
    shuffled = [[x[i] for i in order] for x in (true, pred, speakers)]
    one, two = classification_scores(true, pred, LABELS), classification_scores(*shuffled[:2], LABELS)
    assert (one.ua, one.wa, one.macro_f1) == (two.ua, two.wa, two.macro_f1)
    assert speaker_interval(true, pred, speakers, LABELS) == speaker_interval(*shuffled, LABELS)


def test_interval_equals_resampling_utterances_of_drawn_speakers():
    """The quick weighted sum of confusions is the same as copying the drawn speakers' utterances."""
    true, pred, speakers = random_problem(count=120)
    interval = speaker_interval(true, pred, speakers, LABELS, num_resamples=100, seed=3)
    names = sorted(set(speakers))
    draws = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=100)
    ua = []
    for draw in draws:
        drawn = [name for name, times in zip(names, draw) for _ in range(times)]
        rows = [i for name in drawn for i, s in enumerate(speakers) if s == name]
        ua.append(classification_scores([true[i] for i in rows], [pred[i] for i in rows], LABELS).ua)
    assert interval.ua.low == pytest.approx(np.percentile(ua, 2.5), abs=1e-12)
    assert interval.ua.high == pytest.approx(np.percentile(ua, 97.5), abs=1e-12)
    assert interval.num_speakers == 7


def test_interval_follows_speakers_not_utterances():
    """Copies of every utterance add no speaker, so they must not narrow the interval."""
    true, pred, speakers = random_problem()
    once = speaker_interval(true, pred, speakers, LABELS)
    many = speaker_interval(true * 5, pred * 5, speakers * 5, LABELS)
    assert many.ua.low == pytest.approx(once.ua.low) and many.ua.high == pytest.approx(once.ua.high)
    assert once.ua.low < once.ua.estimate < once.ua.high
    assert once.ua.estimate == pytest.approx(classification_scores(true, pred, LABELS).ua)
    # Were every utterance a speaker of its own, copies would narrow it.
    single = speaker_interval(true, pred, range(200), LABELS)
    copies = speaker_interval(true * 5, pred * 5, range(1000), LABELS)
    assert copies.ua.high - copies.ua.low < 0.7 * (single.ua.high - single.ua.low)


def test_interval_needs_two_speakers():
    assert speaker_interval(["anger"], ["anger"], ["s"], LABELS) is None


def test_fold_spread_uses_present_classes_only():
    # The second fold has no sadness: its UA is the mean over the one class it has.
    true = ["anger", "sadness", "anger", "anger"]
    pred = ["anger", "anger", "anger", "anger"]
    spread = fold_spread(true, pred, ["1", "1", "2", "2"], LABELS)
    assert spread.by_fold["1"].ua == 0.5 and spread.by_fold["2"].ua == 1.0
    assert spread.ua_mean == 0.75 and spread.ua_std == pytest.approx(np.std([0.5, 1.0], ddof=1))


@pytest.mark.parametrize(
    "true, pred, labels, word",
    [
        (["anger"], ["anger", "anger"], LABELS, "1 references but 2 predictions"),
        (["boredom"], ["anger"], LABELS, "boredom"),
        (["anger"], ["bordeom"], LABELS, "bordeom"),
        ([], [], LABELS, "no utterance"),
        (["anger"], ["anger"], ["anger", "anger"], "each once"),
    ],
)
def test_bad_input_is_named(true, pred, labels, word):
    with pytest.raises(ValueError, match=word):
        classification_scores(true, pred, labels)
