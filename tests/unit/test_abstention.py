"""Abstention: the curve against a plain count, the threshold against its own bound, and both on invalid input."""

import numpy as np
import pytest
from scipy.stats import binom

from speechbrain_emo.metrics.abstention import choose_threshold, risk_coverage, selective_scores


def outcomes(count=200, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.25, 1, count)
    if levels:
        confidence = np.round(confidence * levels) / levels
    return confidence, rng.uniform(size=count) < confidence


@pytest.mark.parametrize("levels", [None, 5])
def test_every_point_is_what_counting_gives(levels):
    confidence, correct = outcomes(levels=levels)
    curve = risk_coverage(confidence, correct)
    assert len(curve.coverage) == len(np.unique(confidence))
    for coverage, risk, threshold in zip(curve.coverage, curve.risk, curve.thresholds):
        answered = confidence >= threshold
        assert coverage == pytest.approx(answered.mean())
        assert risk == pytest.approx((~correct[answered]).mean())
    assert curve.coverage[-1] == 1 and curve.risk[-1] == pytest.approx((~correct).mean())


def test_area_without_ties_is_the_mean_of_the_curve_and_order_does_not_matter():
    confidence, correct = outcomes()
    curve = risk_coverage(confidence, correct)
    assert curve.area == pytest.approx(curve.risk.mean())
    order = np.random.default_rng(1).permutation(len(correct))
    assert risk_coverage(confidence[order], correct[order]).area == pytest.approx(curve.area)
    assert curve.best_area < curve.area < (~correct).mean()


def test_equal_confidence_gives_the_expected_area_of_a_random_order():
    _, correct = outcomes(50)
    area = risk_coverage(np.full(50, 0.5), correct).area
    assert area == pytest.approx((~correct).mean())
    drawn = [risk_coverage(np.random.default_rng(i).uniform(size=50), correct).area for i in range(400)]
    assert np.mean(drawn) == pytest.approx(area, abs=0.02)


def test_a_perfect_ranking_has_the_best_area():
    correct = np.array([True] * 7 + [False] * 3)
    curve = risk_coverage(np.linspace(1, 0, 10), correct)
    assert curve.area == pytest.approx(curve.best_area)
    assert curve.best_area == pytest.approx(np.mean([0] * 7 + [1 / 8, 2 / 9, 3 / 10]))


def test_the_chosen_threshold_holds_its_bound_and_no_lower_one_does():
    confidence, correct = outcomes(400, seed=3)
    found = choose_threshold(confidence, correct, risk=0.2, delta=0.1)
    assert found.reached and found.bound <= 0.2
    answered = confidence >= found.threshold
    errors = int((~correct[answered]).sum())
    # Clopper and Pearson: at the bound, so few errors or fewer have the probability delta.
    assert binom.cdf(errors, answered.sum(), found.bound) == pytest.approx(0.1, abs=1e-6)
    for lower in np.unique(confidence[confidence < found.threshold]):
        kept = confidence >= lower
        assert binom.cdf((~correct[kept]).sum(), kept.sum(), 0.2) > 0.1


def test_the_risk_on_new_data_stays_below_the_wanted_one_nearly_always():
    broken = 0
    for seed in range(60):
        valid, test = outcomes(300, seed=seed), outcomes(3000, seed=1000 + seed)
        found = choose_threshold(*valid, risk=0.2)
        _, risk = selective_scores(*test, found.threshold)
        broken += risk > 0.2
    assert broken <= 12


def test_a_risk_that_cannot_be_reached_is_said():
    found = choose_threshold(np.linspace(0.3, 0.9, 100), np.arange(100) % 2 == 0, risk=0.05)
    assert not found.reached and found.bound > 0.05 and found.coverage >= 0.1


def test_nothing_answered_has_no_risk():
    assert selective_scores([0.4, 0.5], [True, False], 0.9) == (0.0, None)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (([], []), "0 confidences"),
        (([0.5], [True, False]), "one of each"),
        (([float("nan")], [True]), "NaN"),
    ],
)
def test_bad_input(arguments, said):
    with pytest.raises(ValueError, match=said):
        risk_coverage(*arguments)
    with pytest.raises(ValueError, match="risk is 2"):
        choose_threshold([0.5], [True], risk=2)
