"""When to say nothing: risk against coverage, and a threshold on the probability that is chosen on validation data.

Risk-coverage curve and the area under it: R. El-Yaniv and Y. Wiener 2010, "On the Foundations of Noise-free Selective
Classification", and Y. Geifman et al. 2019, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers". The
threshold with a bound on its risk: Y. Geifman and R. El-Yaniv 2017, "Selective Classification for Deep Neural
Networks", https://arxiv.org/abs/1705.08500; here the bound is Clopper and Pearson's and every possible threshold is
looked at, where the paper searches by bisection.

Axis letters: N utterances, M points of a curve.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

__all__ = ["AbstentionThreshold", "RiskCoverage", "choose_threshold", "risk_coverage", "selective_scores"]


@dataclass
class RiskCoverage:
    """Error among the answered utterances for every share that is answered.

    Arguments
    ---------
    coverage : np.ndarray
        float64 (M,), increasing, the last one is 1: share of utterances that are answered.
    risk : np.ndarray
        float64 (M,): share of errors among them.
    thresholds : np.ndarray
        float64 (M,): the confidence from which on an utterance is answered.
    area : float
        AURC: mean risk over the coverages 1/N, 2/N, ..., 1. Equally confident utterances share their risk.
    best_area : float
        The area of a confidence that ranks every right answer above every wrong one.
    """

    coverage: np.ndarray
    risk: np.ndarray
    thresholds: np.ndarray
    area: float
    best_area: float


@dataclass
class AbstentionThreshold:
    """Confidence below which nothing is said, and what it does on the data that it was chosen on.

    Arguments
    ---------
    threshold : float
        An utterance is answered when its confidence is at least this.
    coverage, risk : float
        Share that is answered, and share of errors among it.
    bound : float
        Upper confidence bound of that risk.
    reached : bool
        Whether the bound lies at or below the wanted risk. If not, the threshold is that of the lowest bound.
    """

    threshold: float
    coverage: float
    risk: float
    bound: float
    reached: bool


def _checked(confidence, correct):
    confidence = np.asarray(confidence, dtype=np.float64).reshape(-1)
    correct = np.asarray(correct).reshape(-1).astype(bool)
    if len(confidence) != len(correct) or not len(correct):
        raise ValueError(
            f"{len(confidence)} confidences and {len(correct)} outcomes: give one of each an utterance"
        )
    if not np.isfinite(confidence).all():
        raise ValueError(f"confidence holds {int((~np.isfinite(confidence)).sum())} NaN or infinite value(s)")
    return confidence, correct


def risk_coverage(confidence, correct):
    """The risk-coverage curve of a confidence.

    Arguments
    ---------
    confidence : array
        float (N,); higher is surer.
    correct : array
        bool (N,).

    Returns
    -------
    RiskCoverage

    Raises
    ------
    ValueError
        If there is no utterance, the lengths differ, or a confidence is not finite.

    Example
    -------
    >>> curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [True, True, False, True])
    >>> curve.coverage.tolist(), [round(r, 3) for r in curve.risk.tolist()], round(curve.area, 3)
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.333, 0.25], 0.146)
    """
    confidence, correct = _checked(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], ~correct[order]
    # A threshold cannot part equal confidences: one point a distinct value.
    last = np.r_[np.flatnonzero(np.diff(ranked)), len(ranked) - 1]
    errors = np.cumsum(wrong)[last]
    answered = last + 1
    sizes = np.diff(np.r_[0, answered])
    # Expected errors among the first k when equal confidences come in random order.
    starts, before = np.r_[0, answered[:-1]], np.r_[0, errors[:-1]]
    per_one = (errors - before) / sizes
    counts = np.arange(1, len(ranked) + 1)
    group = np.repeat(np.arange(len(sizes)), sizes)
    expected = before[group] + per_one[group] * (counts - starts[group])
    total = int(wrong.sum())
    best = np.maximum(counts - (len(ranked) - total), 0)
    return RiskCoverage(
        coverage=answered / len(ranked),
        risk=errors / answered,
        thresholds=ranked[last],
        area=float((expected / counts).mean()),
        best_area=float((best / counts).mean()),
    )


def choose_threshold(confidence, correct, risk=0.1, delta=0.1, min_coverage=0.1):
    """The lowest confidence from which on the error stays below a wanted risk.

    Arguments
    ---------
    confidence : array
        float (N,), of VALIDATION utterances: on the test part the choice would be fitted to it.
    correct : array
        bool (N,).
    risk : float
        Wanted share of errors among the answered utterances, in (0, 1).
    delta : float
        One minus the confidence of the bound on the risk, in (0, 1).
    min_coverage : float
        Thresholds that answer less than this are not looked at: a bound over a handful of utterances says nothing.

    Returns
    -------
    AbstentionThreshold

    Raises
    ------
    ValueError
        If a share is outside its range, or the input does not fit.

    Example
    -------
    >>> sure = [0.9] * 60 + [0.5] * 40
    >>> right = [True] * 60 + [True, False] * 20
    >>> found = choose_threshold(sure, right)
    >>> found.threshold, found.coverage, found.risk, found.reached
    (0.9, 0.6, 0.0, True)
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}: give a share between 0 and 1")
    if not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage is {min_coverage}: give a share from 0 to 1")
    curve = risk_coverage(confidence, correct)
    answered = np.rint(curve.coverage * len(np.asarray(correct).reshape(-1)))
    errors = np.rint(curve.risk * answered)
    bounds = np.where(
        errors < answered, beta.ppf(1 - delta, errors + 1, np.maximum(answered - errors, 1)), 1.0
    )
    allowed = curve.coverage >= min_coverage
    good = np.flatnonzero(allowed & (bounds <= risk))
    usable = np.flatnonzero(allowed)
    chosen = good[-1] if len(good) else usable[np.argmin(bounds[usable])]
    return AbstentionThreshold(
        threshold=float(curve.thresholds[chosen]),
        coverage=float(curve.coverage[chosen]),
        risk=float(curve.risk[chosen]),
        bound=float(bounds[chosen]),
        reached=bool(len(good)),
    )


def selective_scores(confidence, correct, threshold):
    """Coverage and risk under a threshold that was chosen elsewhere.

    Arguments
    ---------
    confidence : array
        float (N,).
    correct : array
        bool (N,).
    threshold : float
        An utterance is answered when its confidence is at least this.

    Returns
    -------
    tuple
        Coverage in [0, 1], and the risk, None where nothing is answered.

    Raises
    ------
    ValueError
        If the input does not fit.

    Example
    -------
    >>> selective_scores([0.9, 0.4], [True, False], 0.5)
    (0.5, 0.0)
    """
    confidence, correct = _checked(confidence, correct)
    answered = confidence >= threshold
    if not answered.any():
        return 0.0, None
    return float(answered.mean()), float((~correct[answered]).mean())
