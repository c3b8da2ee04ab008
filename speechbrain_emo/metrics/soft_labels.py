"""Scores of predicted distributions against what a crowd heard: several labels at once, with shares.

A recording that half of the listeners call sad and half neutral has no wrong answer among the two; these scores compare
distributions instead of labels. Axis letters: N utterances, K labels.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

# Of a predicted probability, so that a crowd's vote for what a model calls impossible costs much, but not infinity.
FLOOR = 1e-12


@dataclass(frozen=True)
class SoftLabelScores:
    """Scores of N distributions, means over the utterances.

    Arguments
    ---------
    soft_kl : float
        Kullback-Leibler divergence of the crowd from the prediction, in nats; 0 is best.
    soft_cross_entropy : float
        In nats; the crowd's own entropy is the best possible.
    soft_js : float
        Jensen-Shannon divergence to base 2, in [0, 1].
    soft_tv : float
        Total variation distance, in [0, 1]: the share of votes that would have to move.
    soft_brier : float
        Sum over the labels of squared differences.
    soft_accuracy : float
        Share of utterances whose predicted label is among those with most votes.
    soft_expected : float
        Mean share of the crowd that agrees with the predicted label; a person drawn from the crowd would reach the
        ``soft_human``.
    soft_human : float
        Mean chance that two votes agree, drawn with replacement.
    soft_count : int
        N.
    """

    soft_kl: float
    soft_cross_entropy: float
    soft_js: float
    soft_tv: float
    soft_brier: float
    soft_accuracy: float
    soft_expected: float
    soft_human: float
    soft_count: int

    def to_dict(self):
        """Names as in ``results.json``."""
        return asdict(self)


def soft_label_scores(probabilities, votes):
    """Compare predicted with voted distributions.

    Arguments
    ---------
    probabilities : np.ndarray
        Float (N, K): predicted, rows sum to 1.
    votes : np.ndarray
        Float (N, K): shares or counts of votes, rows with a positive sum; they are made to sum to 1.

    Returns
    -------
    SoftLabelScores

    Raises
    ------
    ValueError
        If shapes differ, a value is negative, or a row has no vote or does not sum to 1.

    Example
    -------
    >>> scores = soft_label_scores(np.array([[0.5, 0.5]]), np.array([[3, 1]]))
    >>> round(scores.soft_kl, 4), scores.soft_tv, scores.soft_expected, scores.soft_human
    (0.1308, 0.25, 0.75, 0.625)
    """
    predicted, votes = np.asarray(probabilities, dtype=float), np.asarray(votes, dtype=float)
    if predicted.shape != votes.shape or predicted.ndim != 2 or not len(predicted):
        raise ValueError(
            f"probabilities have shape {predicted.shape}, votes {votes.shape}; needed: the same (N, K)"
        )
    if (predicted < 0).any() or (votes < 0).any() or not np.allclose(predicted.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities must be at least 0 and sum to 1, votes at least 0")
    if (votes.sum(1) <= 0).any():
        raise ValueError(f"row {int(np.argmin(votes.sum(1)))} has no vote among the labels: leave it out")
    crowd = votes / votes.sum(1, keepdims=True)
    bounded = np.clip(predicted, FLOOR, None)
    bounded = bounded / bounded.sum(1, keepdims=True)
    kl = rel_entr(crowd, bounded).sum(1)
    entropy = -rel_entr(crowd, np.ones_like(crowd)).sum(1)
    rows, chosen = np.arange(len(crowd)), predicted.argmax(1)
    return SoftLabelScores(
        soft_kl=float(kl.mean()),
        soft_cross_entropy=float((kl + entropy).mean()),
        soft_js=float((jensenshannon(crowd, bounded, base=2, axis=1) ** 2).mean()),
        soft_tv=float(0.5 * np.abs(crowd - predicted).sum(1).mean()),
        soft_brier=float(np.square(crowd - predicted).sum(1).mean()),
        soft_accuracy=float(np.isclose(crowd[rows, chosen], crowd.max(1)).mean()),
        soft_expected=float(crowd[rows, chosen].mean()),
        soft_human=float(np.square(crowd).sum(1).mean()),
        soft_count=len(crowd),
    )
