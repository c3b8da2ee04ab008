"""Agreement of raters on an ordered scale.

Quadratic weighted kappa: J. Cohen 1968, "Weighted kappa" (computed by scikit-learn). Krippendorff's alpha with the
interval metric: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
"""

import numpy as np
from sklearn.metrics import cohen_kappa_score

__all__ = ["krippendorff_alpha", "quadratic_weighted_kappa"]


def quadratic_weighted_kappa(first, second, low, high):
    """Agreement of two raters beyond chance; a disagreement counts with the square of its distance.

    Arguments
    ---------
    first, second : sequence of float
        Ratings of the same things, in [low, high]; rounded to whole numbers.
    low, high : int
        The scale.

    Returns
    -------
    float or None
        1 for equal ratings, 0 for chance. None where it is not defined: no rating, or both raters give one and the
        same value throughout.

    Raises
    ------
    ValueError
        If the numbers of ratings differ or one is off the scale.

    Example
    -------
    >>> quadratic_weighted_kappa([1, 2, 3, 4], [1, 2, 3, 4], 1, 5)
    1.0
    """
    a, b = (np.rint(np.asarray(x, dtype=float)).astype(int) for x in (first, second))
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} ratings of the first rater and {len(b)} of the second: give pairs")
    if len(a) and (min(a.min(), b.min()) < low or max(a.max(), b.max()) > high):
        raise ValueError(f"a rating is outside the scale {low} to {high}")
    if len(a) == 0 or len(set(a.tolist()) | set(b.tolist())) < 2:
        return None
    return float(cohen_kappa_score(a, b, labels=list(range(low, high + 1)), weights="quadratic"))


def krippendorff_alpha(ratings):
    """Agreement of any number of raters on an interval scale, with gaps.

    alpha = 1 - D_o / D_e: observed disagreement within the rated things over the one expected if the ratings were
    dealt out at random; a disagreement is the squared difference.

    Arguments
    ---------
    ratings : array-like
        float, shape (raters, things); NaN where a rater did not rate. Things with fewer than two ratings do not count.

    Returns
    -------
    float or None
        1 for equal ratings, 0 for chance, below for systematic disagreement. None where it is not defined: fewer than
        two pairable ratings or no variation at all.

    Example
    -------
    >>> krippendorff_alpha([[1, 2, 3, 3], [1, 2, 3, 3]])
    1.0
    """
    values = np.asarray(ratings, dtype=float)
    counts = (~np.isnan(values)).sum(0)
    values = values[:, counts >= 2]
    counts = counts[counts >= 2]
    pairable = values[~np.isnan(values)]
    total = len(pairable)
    if total < 2:
        return None
    # The sum of squared differences over ordered pairs is 2 (n * sum of squares - square of the sum).
    expected = 2 * (total * (pairable**2).sum() - pairable.sum() ** 2) / (total - 1)
    sums, squares = np.nansum(values, 0), np.nansum(values**2, 0)
    observed = (2 * (counts * squares - sums**2) / (counts - 1)).sum()
    if expected <= 0:
        return None
    return float(1 - observed / expected)
