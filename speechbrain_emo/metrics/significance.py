"""Whether one system is better than another on the same utterances.

McNemar's test asks about utterances, the paired bootstrap about speakers: utterances of one speaker are not
independent,
so the bootstrap is what a claim about new speakers rests on. Axis letters: N utterances, S speakers, K classes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

from speechbrain_emo.metrics.classification import _indices, _recalls


@dataclass(frozen=True)
class McNemar:
    """Outcome of McNemar's exact test.

    Arguments
    ---------
    only_first, only_second : int
        Utterances that only the first, only the second system has right.
    p : float
        Two-sided.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(references, first, second):
    """McNemar's exact test: a binomial test on the utterances on which two systems differ.

    Source: Q. McNemar 1947, Psychometrika 12(2); exact form as in T. Dietterich 1998, Neural Computation 10(7).

    Arguments
    ---------
    references : sequence of str
        Reference labels (N).
    first, second : sequence of (str or None)
        Predictions of the two systems (N).

    Returns
    -------
    McNemar

    Raises
    ------
    ValueError
        If the lengths differ.

    Example
    -------
    >>> mcnemar("aaaaaa", "aaaaab", "bbbbba")
    McNemar(only_first=5, only_second=1, p=0.21875)
    """
    if not len(references) == len(first) == len(second):
        raise ValueError(
            f"{len(references)} references, {len(first)} and {len(second)} predictions: give one each"
        )
    right = [(a == r, b == r) for r, a, b in zip(references, first, second)]
    only_first = sum(a and not b for a, b in right)
    only_second = sum(b and not a for a, b in right)
    differing = only_first + only_second
    p = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p)


@dataclass(frozen=True)
class PairedBootstrap:
    """Difference of UA between two systems, second minus first.

    Arguments
    ---------
    difference, low, high : float
        Estimate and interval.
    p : float
        Two-sided: twice the smaller share of resamples on either side of 0, at most 1.
    num_speakers : int
        How many speakers were resampled.
    """

    difference: float
    low: float
    high: float
    p: float
    num_speakers: int


def paired_bootstrap(
    references, first, second, speakers, labels, num_resamples=9999, level=0.95, seed=0
) -> PairedBootstrap | None:
    """Percentile bootstrap over speakers of the difference in UA; both systems are resampled together.

    An utterance may occur several times (seeds of one system): it stays with its speaker.

    Arguments
    ---------
    references : sequence of str
        Reference labels (N).
    first, second : sequence of (str or None)
        Predictions of the two systems (N).
    speakers : sequence of str
        Speaker of each utterance (N).
    labels : sequence of str
        The K labels.
    num_resamples : int
        Resamples.
    level : float
        Coverage in (0, 1).
    seed : int
        Of the resamples.

    Returns
    -------
    PairedBootstrap or None
        None with fewer than two speakers.

    Raises
    ------
    ValueError
        If the lengths differ or a label is unknown.

    Example
    -------
    >>> speakers = ["s1", "s1", "s2", "s2"]
    >>> paired_bootstrap("abab", "bbbb", "abab", speakers, "ab", seed=1)
    PairedBootstrap(difference=0.5, low=0.5, high=0.5, p=0.0002, num_speakers=2)
    """
    true, one, labels = _indices(references, first, labels)
    _, other, _ = _indices(references, second, labels)
    speakers = np.asarray([str(s) for s in speakers])
    if len(speakers) != len(true):
        raise ValueError(f"{len(speakers)} speakers but {len(true)} utterances: give one an utterance")
    names = np.unique(speakers)
    if len(names) < 2:
        return None
    number = np.searchsorted(names, speakers)
    confusions = np.zeros((2, len(names), len(labels), len(labels) + 1))
    np.add.at(confusions[0], (number, true, one), 1)
    np.add.at(confusions[1], (number, true, other), 1)

    def difference(drawn, axis=-1):
        # scipy gives (resamples, S) with axis -1, or (S,).
        pair = confusions[:, np.moveaxis(drawn, axis, -1).astype(int)].sum(-3)
        return np.nanmean(_recalls(pair[1]), -1) - np.nanmean(_recalls(pair[0]), -1)

    everyone = np.arange(len(names))
    estimate = float(difference(everyone))
    done = bootstrap(
        (everyone,),
        difference,
        n_resamples=num_resamples,
        batch=max(1, 2_000_000 // confusions[0].size),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    drawn = done.bootstrap_distribution
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (num_resamples + 1))
    low, high = float(done.confidence_interval.low), float(done.confidence_interval.high)
    return PairedBootstrap(estimate, low, high, p, len(names))
