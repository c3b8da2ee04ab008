"""Probabilities from label scores and how well they are calibrated.

Temperature scaling and expected calibration error: C. Guo et al. 2017, "On Calibration of Modern Neural
Networks", https://arxiv.org/abs/1706.04599 (eq. 2-3 and sec. 4.2). Brier score: G. W. Brier 1950.

Axis letters: N utterances, K classes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

__all__ = ["CalibrationScores", "calibration_scores", "fit_temperature", "label_probabilities"]


@dataclass
class CalibrationScores:
    """How probabilities agree with correctness.

    Arguments
    ---------
    ece : float
        Expected calibration error in [0, 1]: gap between confidence and accuracy, averaged over
        equal-width confidence bins with the share of utterances in each.
    brier : float
        Mean over utterances of the squared distance between the probability vector and the
        one-hot reference, in [0, 2].
    nll : float
        Mean negative log-likelihood of the reference label, in nats.
    count : int
        Number of utterances N.
    """

    ece: float
    brier: float
    nll: float
    count: int


def _checked(scores, targets):
    scores = np.asarray(scores, dtype=np.float64)
    targets = np.asarray(targets)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores has shape {scores.shape}: give (utterances, classes), at least one of each")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores holds {int((~np.isfinite(scores)).sum())} NaN or infinite value(s)")
    if targets.shape != (len(scores),) or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"targets has shape {targets.shape} and type {targets.dtype}: give one class index per row "
            f"of scores ({len(scores)})"
        )
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(
            f"targets run from {targets.min()} to {targets.max()}: allowed 0 to {scores.shape[1] - 1}"
        )
    return scores, targets


def label_probabilities(scores, temperature=1.0):
    """softmax(scores / temperature) over the last axis.

    Arguments
    ---------
    scores : array
        Label scores (mean log-likelihoods), float (..., K).
    temperature : float
        Positive; above 1 flattens.

    Returns
    -------
    np.ndarray
        float64 (..., K), each row sums to 1.

    Raises
    ------
    ValueError
        If the temperature is not positive.

    Example
    -------
    >>> label_probabilities([0.0, 0.0]).tolist()
    [0.5, 0.5]
    """
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}: give a positive number")
    return softmax(np.asarray(scores, dtype=np.float64) / temperature, axis=-1)


def fit_temperature(scores, targets, bounds=(0.01, 100.0)):
    """Temperature that minimises the negative log-likelihood of validation labels.

    Source: Guo et al. 2017, sec. 4.2. The search is over the logarithm of the temperature, bounded:
    perfectly separated scores would drive it to zero.

    Arguments
    ---------
    scores : array
        Validation scores, float (N, K).
    targets : array
        Index of the reference label, int (N,).
    bounds : tuple of float
        Smallest and largest temperature.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If shapes or values do not fit, or the bounds are not 0 < low < high.

    Example
    -------
    >>> scores = [[2.0, 0.0]] * 3 + [[0.0, 2.0]]
    >>> temperature = fit_temperature(scores, [0, 0, 0, 0])  # right 3 times of 4: odds of 3
    >>> round(temperature, 3)
    1.82
    """
    scores, targets = _checked(scores, targets)
    low, high = bounds
    if not 0 < low < high:
        raise ValueError(f"bounds is {bounds}: give 0 < low < high")
    rows = np.arange(len(scores))

    def nll(log_temperature):
        return -log_softmax(scores / np.exp(log_temperature), axis=1)[rows, targets].mean()

    options = {"xatol": 1e-6}
    found = minimize_scalar(nll, bounds=(np.log(low), np.log(high)), method="bounded", options=options)
    if not found.success:
        raise RuntimeError(f"temperature fit over {bounds} failed: {found.message}")
    return float(np.exp(found.x))


def calibration_scores(probabilities, targets, num_bins=10):
    """Expected calibration error, Brier score and log-likelihood.

    Bins are equal-width and closed on the right, as in Guo et al. 2017, eq. (3).

    Arguments
    ---------
    probabilities : array
        float (N, K), rows sum to 1.
    targets : array
        Index of the reference label, int (N,).
    num_bins : int
        Number of confidence bins.

    Returns
    -------
    CalibrationScores

    Raises
    ------
    ValueError
        If shapes or values do not fit.

    Example
    -------
    >>> scores = calibration_scores([[0.8, 0.2], [0.6, 0.4]], [0, 1])
    >>> round(scores.ece, 3), round(scores.brier, 3)
    (0.4, 0.4)
    """
    probabilities, targets = _checked(probabilities, targets)
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities must be non-negative with rows summing to 1")
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}: give at least 1")
    rows = np.arange(len(targets))
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == targets
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gap = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    one_hot = np.zeros_like(probabilities)
    one_hot[rows, targets] = 1
    tiny = np.finfo(np.float64).tiny
    return CalibrationScores(
        ece=float(np.abs(gap).sum() / len(targets)),
        brier=float(((probabilities - one_hot) ** 2).sum(1).mean()),
        nll=float(-np.log(np.maximum(probabilities[rows, targets], tiny)).mean()),
        count=len(targets),
    )
