"""What a trained model needs to be trusted, and to know when not to be: temperatures, abstention, measured quantiles.

All of it is fitted on validation predictions and training recordings, never on the test part. The experiment does it
after training; ``python -m speechbrain_emo calibrate FOLDER`` does it again for a run that is there.
"""

import logging

import numpy as np

from speechbrain_emo.dataio.descriptors import fit_thresholds, measure_manifest
from speechbrain_emo.metrics.abstention import choose_threshold
from speechbrain_emo.metrics.calibration import fit_temperature, label_probabilities

logger = logging.getLogger(__name__)


def fit_temperatures(lines, labels):
    """Temperature of each condition, fitted on validation predictions.

    Arguments
    ---------
    lines : list of dict
        Predictions with ``scores`` and ``emotion``.
    labels : sequence of str
        The labels in order.

    Returns
    -------
    dict of str to float

    Example
    -------
    >>> line = {"emotion": "sad", "scores": {"speech": {"sad": 0.0, "happy": -2.0}}}
    >>> wrong = {"emotion": "happy", "scores": line["scores"]}
    >>> round(fit_temperatures([line] * 3 + [wrong], ["sad", "happy"])["speech"], 2)  # right 3 times of 4
    1.82
    """
    lines = [line for line in lines if line["emotion"] is not None]
    fitted = {}
    for condition in lines[0]["scores"] if lines else ():
        scores = np.array([[line["scores"][condition][x] for x in labels] for line in lines])
        targets = np.array([labels.index(line["emotion"]) for line in lines])
        fitted[condition] = float(fit_temperature(scores, targets))
    if "own_chain" in fitted:
        # Gold descriptors are an analysis: they get the temperature of the chain they replace.
        fitted["gold_descriptors"] = fitted["own_chain"]
    return fitted


def confidences(lines, labels, condition, temperature):
    """Probability of the best label, and whether it is right, of every line with a reference.

    Arguments
    ---------
    lines : list of dict
        Predictions with ``scores`` and ``emotion``.
    labels : sequence of str
        The labels in order.
    condition : str
        Of ``scores``.
    temperature : float
        Of the condition.

    Returns
    -------
    tuple of np.ndarray
        float (N,) and bool (N,).

    Example
    -------
    >>> line = {"emotion": "sad", "scores": {"speech": {"sad": 0.0, "happy": 0.0}}}
    >>> confidences([line], ["sad", "happy"], "speech", 1.0)[0].tolist()
    [0.5]
    """
    lines = [line for line in lines if line["emotion"] is not None]
    scores = np.array([[line["scores"][condition][x] for x in labels] for line in lines])
    scores = scores.reshape(-1, len(labels))
    correct = scores.argmax(1) == np.array([labels.index(line["emotion"]) for line in lines], dtype=int)
    return label_probabilities(scores, temperature).max(1, initial=0.0), correct


def fit_abstention(lines, labels, condition, temperature, risk):
    """The probability below which the model says that it is not sure.

    Arguments
    ---------
    lines : list of dict
        VALIDATION predictions.
    labels : sequence of str
        The labels in order.
    condition : str
        The headline condition.
    temperature : float
        Of the condition.
    risk : float
        Wanted share of errors among what is answered.

    Returns
    -------
    AbstentionThreshold
        A warning is logged where the risk cannot be reached.

    Raises
    ------
    ValueError
        If no line has a reference, or the risk is no share.

    Example
    -------
    >>> line = {"emotion": "sad", "scores": {"speech": {"sad": 0.0, "happy": -3.0}}}
    >>> found = fit_abstention([line] * 40, ["sad", "happy"], "speech", 1.0, 0.1)
    >>> round(found.threshold, 3), found.coverage
    (0.953, 1.0)
    """
    sure, correct = confidences(lines, labels, condition, temperature)
    found = choose_threshold(sure, correct, risk)
    if not found.reached:
        logger.warning(
            f"No threshold holds the error of {condition} below {risk:.0%} on validation data (with 90 % confidence); "
            f"the best one, {found.threshold:.3f}, answers {found.coverage:.0%} with {found.risk:.0%} errors"
        )
    return found


def measure_training_set(records, most=600, language="en", cache_file=None, progress=True):
    """Quantiles of pitch, volume and speed of training recordings, which are saved with the model.

    Arguments
    ---------
    records : dict
        Training manifest, paths resolved.
    most : int
        Recordings that are measured, evenly spread over the manifest: one core takes a second for about 20 s of audio.
    language : str
        Of the transcripts.
    cache_file : str or pathlib.Path, optional
        As of ``measure_manifest``: an interrupted run goes on.
    progress : bool
        Show a bar.

    Returns
    -------
    Thresholds

    Raises
    ------
    ValueError
        If ``most`` is no positive number, or nothing could be measured.

    Example
    -------
    >>> measure_training_set({}, 10)
    Traceback (most recent call last):
    ValueError: none of the 0 training recordings could be measured
    """
    if most < 1:
        raise ValueError(f"most is {most}: give the number of training recordings to measure, 1 or more")
    names = list(records)[:: max(len(records) // most, 1)]
    found, failures = measure_manifest(
        {name: records[name] for name in names},
        cache_file=cache_file,
        language=language,
        progress=progress,
        desc="measure training recordings",
    )
    for name, message in failures.items():
        logger.warning(f"{name} is not measured: {message}")
    if not found:
        first = f"; the first: {next(iter(failures.values()))}" if failures else ""
        raise ValueError(f"none of the {len(names)} training recordings could be measured{first}")
    return fit_thresholds(list(found.values()), [records[name].get("gender") for name in found])
