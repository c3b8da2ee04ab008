"""McNemar, the paired bootstrap and soft labels against closed forms and independent computations."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import entropy

from speechbrain_emo.metrics.classification import classification_scores, speaker_interval
from speechbrain_emo.metrics.significance import mcnemar, paired_bootstrap
from speechbrain_emo.metrics.soft_labels import soft_label_scores

LABELS = ["a", "b", "c"]


def draw(seed, count=120, speakers=6, better=0.0):
    rng = np.random.default_rng(seed)
    references = [LABELS[i] for i in rng.integers(0, 3, count)]
    noisy = [r if rng.random() < 0.6 else LABELS[rng.integers(0, 3)] for r in references]
    other = [r if rng.random() < 0.6 + better else LABELS[rng.integers(0, 3)] for r in references]
    return references, noisy, other, [f"s{i}" for i in rng.integers(0, speakers, count)]


def test_mcnemar_is_the_binomial_tail():
    references = ["a"] * 20
    first = ["a"] * 14 + ["b"] * 6
    second = ["a"] * 8 + ["b"] * 6 + ["a"] * 2 + ["b"] * 4
    found = mcnemar(references, first, second)
    assert (found.only_first, found.only_second) == (6, 2)
    tail = sum(math.comb(8, k) for k in (0, 1, 2)) / 2**8
    assert found.p == pytest.approx(2 * tail)
    assert mcnemar(references, first, first).p == 1.0
    with pytest.raises(ValueError, match="20 references, 20 and 1 predictions"):
        mcnemar(references, first, ["a"])


def test_the_bootstrap_is_that_of_all_resamples():
    """With three speakers all 27 resamples can be made: the distribution is known."""
    references, first, second, speakers = draw(1, 60, 3)

    def difference(drawn):
        chosen = [i for s in drawn for i in range(60) if speakers[i] == s]
        scores = [
            classification_scores([references[i] for i in chosen], [p[i] for i in chosen], LABELS).ua
            for p in (first, second)
        ]
        return scores[1] - scores[0]

    names = sorted(set(speakers))
    every = np.array([difference(d) for d in itertools.product(names, repeat=3)])
    found = paired_bootstrap(references, first, second, speakers, LABELS, num_resamples=20000)
    assert found.difference == pytest.approx(difference(names))
    low, high = np.percentile(every, [2.5, 97.5], method="inverted_cdf")
    assert found.low == pytest.approx(low, abs=0.01) and found.high == pytest.approx(high, abs=0.01)
    share = min((every <= 0).mean(), (every >= 0).mean())
    assert found.p == pytest.approx(min(1, 2 * share), abs=0.02)


def test_the_bootstrap_finds_what_is_there_and_not_what_is_not():
    references, first, second, speakers = draw(2, 400, 20, better=0.3)
    found = paired_bootstrap(references, first, second, speakers, LABELS, num_resamples=2000)
    assert found.difference > 0.1 and found.low > 0 and found.p < 0.01 and found.num_speakers == 20
    same = paired_bootstrap(references, first, first, speakers, LABELS, num_resamples=500)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    # The order of the utterances does not matter, nor does an unusable answer crash it.
    order = np.random.default_rng(0).permutation(400)
    again = paired_bootstrap(
        *([x[i] for i in order] for x in (references, first, second, speakers)), LABELS, num_resamples=2000
    )
    assert again == found
    assert (
        paired_bootstrap(references, first, [None] * 400, speakers, LABELS, num_resamples=100).difference < 0
    )
    assert paired_bootstrap(references, first, second, ["one"] * 400, LABELS) is None


def test_false_alarms_are_as_rare_as_they_should_be():
    alarms = 0
    for seed in range(60):
        references, first, second, speakers = draw(100 + seed, 200, 20)
        alarms += paired_bootstrap(references, first, second, speakers, LABELS, num_resamples=400).p < 0.05
    assert alarms <= 9


def test_intervals_of_f1_hold_its_estimate():
    references, first, _, speakers = draw(3)
    scores, interval = (
        classification_scores(references, first, LABELS),
        speaker_interval(references, first, speakers, LABELS),
    )
    for name in ("ua", "wa", "macro_f1", "weighted_f1"):
        assert getattr(interval, name).estimate == pytest.approx(getattr(scores, name)), name
        assert getattr(interval, name).low < getattr(scores, name) < getattr(interval, name).high


def test_soft_scores_against_their_definitions():
    rng = np.random.default_rng(0)
    predicted, votes = rng.dirichlet(np.ones(4), 50), rng.multinomial(9, [0.4, 0.3, 0.2, 0.1], 50)
    crowd = votes / votes.sum(1, keepdims=True)
    scores = soft_label_scores(predicted, votes)
    assert scores.soft_kl == pytest.approx(np.mean([entropy(c, p) for c, p in zip(crowd, predicted)]))
    assert scores.soft_cross_entropy == pytest.approx(
        np.mean([-(c * np.log(p)).sum() for c, p in zip(crowd, predicted)])
    )
    middle = 0.5 * (crowd + predicted)
    js = [
        0.5 * entropy(c, m, base=2) + 0.5 * entropy(p, m, base=2) for c, p, m in zip(crowd, predicted, middle)
    ]
    assert scores.soft_js == pytest.approx(np.mean(js))
    assert scores.soft_human == pytest.approx((crowd**2).sum(1).mean()) and scores.soft_count == 50
    perfect = soft_label_scores(crowd, crowd)
    assert (
        perfect.soft_kl == pytest.approx(0, abs=1e-9)
        and perfect.soft_tv == pytest.approx(0, abs=1e-9)
        and perfect.soft_accuracy == 1
    )
    assert soft_label_scores(predicted, 7 * votes) == scores, "counts and shares are the same"
    # What the model calls impossible and the crowd heard costs much, but is a number.
    assert 20 < soft_label_scores([[1.0, 0.0]], [[0, 1]]).soft_kl < 30
    for wrong in (
        ([[0.5, 0.4]], [[1, 0]]),
        ([[0.5, 0.5]], [[0, 0]]),
        ([[0.5, 0.5]], [[1, 0, 0]]),
        ([[0.5, 0.5]], [[-1, 2]]),
    ):
        with pytest.raises(ValueError):
            soft_label_scores(*wrong)
