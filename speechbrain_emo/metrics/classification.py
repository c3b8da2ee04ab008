"""Recognition scores of categorical labels, with an interval over speakers.

UA is the unweighted average recall (mean of the recalls of the classes), WA the weighted one, that is
the plain accuracy. Definitions: B. Schuller et al. 2009, "The INTERSPEECH 2009 Emotion Challenge".

Axis letters: N utterances, K classes, R resamples.
"""

from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

__all__ = [
    "ClassificationScores",
    "FoldSpread",
    "Interval",
    "SpeakerInterval",
    "classification_scores",
    "fold_spread",
    "speaker_interval",
]


@dataclass
class ClassificationScores:
    """Scores of one set of utterances.

    Arguments
    ---------
    ua : float
        Mean recall over the classes that occur in the reference, in [0, 1].
    wa : float
        Share of correct utterances, in [0, 1].
    macro_f1 : float
        Mean F1 over the classes that occur in the reference.
    weighted_f1 : float
        F1 averaged with the number of reference utterances of each class.
    recall : dict
        Label -> recall, ``None`` for a class without reference utterances.
    confusion : np.ndarray
        int64 (K, K + 1): rows are the reference, columns the prediction; the last column
        counts the utterances without a usable prediction.
    labels : list
        The K labels, in the order of the rows.
    count : int
        Number of utterances N.
    num_unparsable : int
        Number of utterances whose prediction is ``None``. They count as wrong.
    """

    ua: float
    wa: float
    macro_f1: float
    weighted_f1: float
    recall: dict
    confusion: np.ndarray = field(repr=False)
    labels: list
    count: int
    num_unparsable: int


@dataclass
class Interval:
    """An estimate and its bootstrap interval; ``low`` and ``high`` are fractions like the estimate.

    Arguments
    ---------
    estimate : float
        The value over all utterances.
    low : float
        Lower end of the interval.
    high : float
        Upper end of the interval.
    """

    estimate: float
    low: float
    high: float


@dataclass
class SpeakerInterval:
    """Bootstrap intervals over speakers of UA and WA.

    Arguments
    ---------
    ua : Interval
        Interval of the mean recall.
    wa : Interval
        Interval of the accuracy.
    macro_f1, weighted_f1 : Interval
        Intervals of the mean F1 over the classes that occur, unweighted and by their number.
    num_speakers : int
        How many speakers were resampled.
    num_resamples : int
        How many times.
    level : float
        Coverage, 0.95 by default.
    """

    ua: Interval
    wa: Interval
    macro_f1: Interval
    weighted_f1: Interval
    num_speakers: int
    num_resamples: int
    level: float


@dataclass
class FoldSpread:
    """Mean and standard deviation of UA and WA over folds (sample deviation; 0 for one fold).

    Arguments
    ---------
    ua_mean, ua_std, wa_mean, wa_std : float
        Fractions; each fold's UA is over the classes that occur in that fold.
    num_folds : int
        Number of folds.
    by_fold : dict
        Fold -> ``ClassificationScores``.
    """

    ua_mean: float
    ua_std: float
    wa_mean: float
    wa_std: float
    num_folds: int
    by_fold: dict = field(repr=False)


def _indices(references, predictions, labels):
    """Map labels to 0..K-1 and a missing prediction to K; refuse everything else."""
    labels = list(labels)
    if len(set(labels)) != len(labels) or not labels:
        raise ValueError(f"labels is {labels}: give at least one label, each once")
    references, predictions = list(references), list(predictions)
    if len(references) != len(predictions):
        raise ValueError(
            f"{len(references)} references but {len(predictions)} predictions: give one of each an utterance"
        )
    if not references:
        raise ValueError("no utterance to score: references is empty")
    position = {label: k for k, label in enumerate(labels)}
    unknown = sorted({str(r) for r in references if r not in position})
    if unknown:
        raise ValueError(f"reference label(s) {unknown} not among the labels {labels}: correct the manifest")
    unknown = sorted({str(p) for p in predictions if p is not None and p not in position})
    if unknown:
        raise ValueError(
            f"predicted label(s) {unknown} not among the labels {labels}: give None for an unusable answer"
        )
    true = np.array([position[r] for r in references], dtype=np.int64)
    pred = np.array([len(labels) if p is None else position[p] for p in predictions], dtype=np.int64)
    return true, pred, labels


def _recalls(confusion):
    """Recall of each class, NaN where it does not occur; confusion (..., K, K + 1)."""
    correct = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    total = confusion.sum(-1).astype(float)
    return np.divide(correct, total, out=np.full_like(correct, np.nan), where=total > 0)


def _f1_means(confusion):
    """(macro, weighted) F1 over the classes that occur; confusion (..., K, K + 1)."""
    correct = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    total, answered = confusion.sum(-1).astype(float), confusion.sum(-2)[..., :-1].astype(float)
    f1 = np.divide(2 * correct, total + answered, out=np.zeros_like(correct), where=total + answered > 0)
    present = total > 0
    macro = (f1 * present).sum(-1) / present.sum(-1)
    return macro, (f1 * total).sum(-1) / total.sum(-1)


def classification_scores(references, predictions, labels):
    """Score predicted labels against the reference ones.

    UA and macro-F1 are means over the classes that occur in ``references``: a fold may lack a class.

    Arguments
    ---------
    references : sequence of str
        Reference label of each utterance (N).
    predictions : sequence of str or None
        Predicted label of each utterance (N); ``None`` (no usable answer) counts as wrong.
    labels : sequence of str
        The K labels of the experiment.

    Returns
    -------
    ClassificationScores

    Raises
    ------
    ValueError
        If a label is unknown, or the lengths differ, or there is no utterance.

    Example
    -------
    >>> scores = classification_scores(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    >>> scores.ua, round(scores.wa, 3)
    (0.75, 0.667)
    """
    true, pred, labels = _indices(references, predictions, labels)
    num_labels = len(labels)
    confusion = confusion_matrix(true, pred, labels=range(num_labels + 1))[:num_labels].astype(np.int64)
    recall = _recalls(confusion)
    present = np.flatnonzero(confusion.sum(1))
    f1 = {
        average: float(f1_score(true, pred, labels=present, average=average, zero_division=0))
        for average in ("macro", "weighted")
    }
    return ClassificationScores(
        ua=float(np.nanmean(recall)),
        wa=float((true == pred).mean()),
        macro_f1=f1["macro"],
        weighted_f1=f1["weighted"],
        recall={label: None if np.isnan(r) else float(r) for label, r in zip(labels, recall)},
        confusion=confusion,
        labels=labels,
        count=len(true),
        num_unparsable=int((pred == num_labels).sum()),
    )


def speaker_interval(
    references, predictions, speakers, labels, num_resamples=10000, level=0.95, seed=0
) -> SpeakerInterval | None:
    """Percentile bootstrap interval of UA, WA and F1 over speakers.

    Utterances of one speaker are not independent, hence whole speakers are drawn with replacement
    (cluster bootstrap: A. C. Davison and D. V. Hinkley 1997, "Bootstrap Methods and their Application",
    sec. 3.8). UA of a resample is over the classes that it contains.

    Arguments
    ---------
    references : sequence of str
        Reference labels (N).
    predictions : sequence of str or None
        Predicted labels (N).
    speakers : sequence of str
        Speaker of each utterance (N).
    labels : sequence of str
        The K labels.
    num_resamples : int
        Number of resamples R.
    level : float
        Coverage in (0, 1).
    seed : int
        Seed of the generator of the resamples.

    Returns
    -------
    SpeakerInterval or None
        ``None`` when there are fewer than two speakers: nothing to resample.

    Raises
    ------
    ValueError
        If lengths differ or a label is unknown.

    Example
    -------
    >>> interval = speaker_interval(
    ...     ["a", "b", "a", "b"], ["a", "b", "b", "a"], ["s1", "s1", "s2", "s2"], ["a", "b"], seed=1)
    >>> interval.ua.estimate, interval.ua.low, interval.ua.high
    (0.5, 0.0, 1.0)
    """
    true, pred, labels = _indices(references, predictions, labels)
    speakers = np.asarray([str(s) for s in speakers])
    if len(speakers) != len(true):
        raise ValueError(f"{len(speakers)} speakers but {len(true)} utterances: give one an utterance")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a coverage between 0 and 1")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}: give at least 1")
    names = np.unique(speakers)
    if len(names) < 2:
        return None
    num_labels = len(labels)
    by_speaker = np.zeros((len(names), num_labels, num_labels + 1), dtype=np.int64)
    np.add.at(by_speaker, (np.searchsorted(names, speakers), true, pred), 1)
    # How often each speaker was drawn is multinomial, so a resample is a weighted sum of confusions.
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=num_resamples
    )
    confusions = np.tensordot(draws, by_speaker, axes=1)
    ua = np.nanmean(_recalls(confusions), axis=-1)
    wa = np.diagonal(confusions, axis1=1, axis2=2).sum(-1) / confusions.sum((1, 2))
    f1_macro, f1_weighted = _f1_means(confusions)
    tail = 50 * (1 - level)

    def interval(values, estimate):
        low, high = np.percentile(values, [tail, 100 - tail])
        return Interval(estimate=float(estimate), low=float(low), high=float(high))

    total = by_speaker.sum(0)
    macro, weighted = _f1_means(total)
    return SpeakerInterval(
        ua=interval(ua, np.nanmean(_recalls(total))),
        wa=interval(wa, np.trace(total[:, :num_labels]) / total.sum()),
        macro_f1=interval(f1_macro, macro),
        weighted_f1=interval(f1_weighted, weighted),
        num_speakers=len(names),
        num_resamples=num_resamples,
        level=level,
    )


def fold_spread(references, predictions, folds, labels):
    """Mean and deviation of UA and WA over folds, each over its own present classes.

    Arguments
    ---------
    references : sequence of str
        Reference labels (N).
    predictions : sequence of str or None
        Predicted labels (N).
    folds : sequence of str
        Fold of each utterance (N).
    labels : sequence of str
        The K labels.

    Returns
    -------
    FoldSpread

    Raises
    ------
    ValueError
        If lengths differ or a label is unknown.

    Example
    -------
    >>> spread = fold_spread(["a", "b", "a"], ["a", "b", "b"], ["1", "1", "2"], ["a", "b"])
    >>> spread.ua_mean, round(spread.ua_std, 4)
    (0.5, 0.7071)
    """
    references, predictions, folds = list(references), list(predictions), [str(f) for f in folds]
    if not len(references) == len(predictions) == len(folds):
        raise ValueError(
            f"{len(references)} references, {len(predictions)} predictions and {len(folds)} folds: "
            "give one of each an utterance"
        )
    by_fold = {}
    for name in sorted(set(folds)):
        chosen = [i for i, f in enumerate(folds) if f == name]
        by_fold[name] = classification_scores(
            [references[i] for i in chosen], [predictions[i] for i in chosen], labels
        )
    if not by_fold:
        raise ValueError("no utterance to score: references is empty")
    ua = np.array([s.ua for s in by_fold.values()])
    wa = np.array([s.wa for s in by_fold.values()])
    ddof = 1 if len(by_fold) > 1 else 0
    return FoldSpread(
        ua_mean=float(ua.mean()),
        ua_std=float(ua.std(ddof=ddof)),
        wa_mean=float(wa.mean()),
        wa_std=float(wa.std(ddof=ddof)),
        num_folds=len(by_fold),
        by_fold=by_fold,
    )
