"""Temperature, calibration error and Brier score against closed forms."""

import numpy as np
import pytest
from scipy.special import softmax

from speechbrain_emo.metrics.calibration import calibration_scores, fit_temperature, label_probabilities


def test_temperature_is_recovered_from_samples_of_the_model():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 4)) * 2
    targets = np.array([rng.choice(4, p=p) for p in softmax(logits, axis=1)])
    # The same logits times 3 need the temperature 3.
    assert fit_temperature(logits, targets) == pytest.approx(1.0, rel=0.05)
    assert fit_temperature(3 * logits, targets) == pytest.approx(
        3 * fit_temperature(logits, targets), rel=1e-3
    )


def test_temperature_of_two_classes_has_a_closed_form():
    # Margin m, right with frequency q: the optimum has sigmoid(m / T) = q.
    scores = np.array([[1.5, 0.0]] * 10)
    targets = np.array([0] * 8 + [1] * 2)
    assert fit_temperature(scores, targets) == pytest.approx(1.5 / np.log(4), rel=1e-4)


def test_temperature_is_bounded_for_separable_scores():
    scores = np.eye(3) * 0.1
    assert fit_temperature(scores, np.arange(3), bounds=(0.05, 20)) == pytest.approx(0.05, rel=1e-2)
    assert fit_temperature(scores, np.array([1, 2, 0]), bounds=(0.05, 20)) == pytest.approx(20, rel=1e-2)


def test_temperature_keeps_the_order_and_the_sum():
    scores = np.random.default_rng(1).normal(size=(50, 7))
    for temperature in (0.1, 1.0, 5.0):
        probabilities = label_probabilities(scores, temperature)
        assert (probabilities.argmax(1) == scores.argmax(1)).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(label_probabilities(scores + 100), label_probabilities(scores), atol=1e-12)


def test_expected_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.65, 0.35], [0.3, 0.7]])
    targets = np.array([0, 1, 0, 0])
    # Bins (0.9, 1]: 2 utterances, accuracy 1/2, confidence 0.93; (0.6, 0.7]: 2, 1/2, 0.675.
    assert calibration_scores(probabilities, targets).ece == pytest.approx(
        0.5 * 0.43 + 0.5 * 0.175, abs=1e-12
    )
    brier = np.mean([2 * 0.05**2, 2 * 0.91**2, 2 * 0.35**2, 2 * 0.7**2])
    assert calibration_scores(probabilities, targets).brier == pytest.approx(brier, abs=1e-12)
    nll = -np.log([0.95, 0.09, 0.65, 0.3]).mean()
    assert calibration_scores(probabilities, targets).nll == pytest.approx(nll, abs=1e-12)


def test_perfect_and_worst_predictions():
    assert calibration_scores(np.eye(3), np.arange(3)).ece == 0
    worst = calibration_scores(np.eye(3), np.array([1, 2, 0]))
    assert (worst.ece, worst.brier) == (1.0, 2.0)
    assert np.isfinite(worst.nll)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: label_probabilities([0.0, 1.0], 0.0), "temperature"),
        (lambda: fit_temperature([[0.0, np.nan]], [0]), "NaN"),
        (lambda: fit_temperature([[0.0, 1.0]], [2]), "allowed 0 to 1"),
        (lambda: fit_temperature([[0.0, 1.0]], [0], bounds=(0, 1)), "bounds"),
        (lambda: calibration_scores([[0.5, 0.6]], [0]), "summing to 1"),
        (lambda: calibration_scores([[0.5, 0.5]], [0, 1]), "one class index per row"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
