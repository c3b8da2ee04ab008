"""Scores of emotions word by word, also at the borders where the emotion changes inside an utterance."""

import numpy as np

from speechbrain_emo.metrics.classification import classification_scores, speaker_interval

__all__ = ["at_transition", "word_scores"]


def at_transition(labels):
    """Which words of an utterance stand next to a change of emotion.

    Arguments
    ---------
    labels : sequence of str
        True label of each word, in order.

    Returns
    -------
    list of bool
        True for the last word before a change and the first one after it.

    Example
    -------
    >>> at_transition(["sad", "sad", "hap", "hap", "hap", "sad"])
    [False, True, True, False, True, True]
    """
    labels = list(labels)
    return [
        (i > 0 and labels[i - 1] != label) or (i + 1 < len(labels) and labels[i + 1] != label)
        for i, label in enumerate(labels)
    ]


def word_scores(references, predictions, speakers, labels, num_resamples=10000, seed=0):
    """Accuracy, mean recall and macro-F1 over all words, over those at a transition and over those inside.

    Arguments
    ---------
    references : sequence of sequence of str
        True labels of the words of each utterance.
    predictions : sequence of sequence of str
        Predicted labels of the same words.
    speakers : sequence of str
        Speaker of each utterance; the interval of all words is a bootstrap over speakers.
    labels : sequence of str
        The K labels.
    num_resamples : int
        Of the bootstrap.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``accuracy``, ``ua``, ``macro_f1``, ``count``, ``recall_<label>``, ``confusion`` (K lists of K + 1 counts) with
        ``accuracy_low`` and ``accuracy_high``; ``transition_accuracy``, ``transition_macro_f1``, ``transition_count``
        and the same with ``inside_``, None where there is no such word.

    Raises
    ------
    ValueError
        If the numbers of words differ or a label is unknown.

    Example
    -------
    >>> scores = word_scores([["a", "a", "b", "b"]], [["a", "a", "a", "b"]], ["s"], ["a", "b"])
    >>> scores["accuracy"], scores["transition_accuracy"], scores["inside_accuracy"]
    (0.75, 0.5, 1.0)
    """
    references, predictions = [list(r) for r in references], [list(p) for p in predictions]
    if len(references) != len(predictions) or len(references) != len(speakers):
        raise ValueError(
            f"{len(references)} references, {len(predictions)} predictions, {len(speakers)} speakers: give one of each "
            "an utterance"
        )
    wrong = [i for i, (r, p) in enumerate(zip(references, predictions)) if len(r) != len(p)]
    if wrong:
        i = wrong[0]
        raise ValueError(
            f"utterance {i} has {len(references[i])} words but {len(predictions[i])} predictions"
        )
    true = [label for row in references for label in row]
    said = [label for row in predictions for label in row]
    who = [speaker for row, speaker in zip(references, speakers) for _ in row]
    border = np.array([flag for row in references for flag in at_transition(row)], dtype=bool)
    scores = classification_scores(true, said, labels)
    interval = speaker_interval(true, said, who, labels, num_resamples, seed=seed)
    found = {
        "accuracy": scores.wa,
        "ua": scores.ua,
        "macro_f1": scores.macro_f1,
        "count": scores.count,
        "accuracy_low": interval.wa.low if interval else None,
        "accuracy_high": interval.wa.high if interval else None,
        "confusion": scores.confusion.tolist(),
        **{f"recall_{label}": recall for label, recall in scores.recall.items()},
    }
    for name, chosen in (("transition", np.flatnonzero(border)), ("inside", np.flatnonzero(~border))):
        part = None
        if len(chosen):
            part = classification_scores([true[i] for i in chosen], [said[i] for i in chosen], labels)
        found[f"{name}_accuracy"] = part.wa if part else None
        found[f"{name}_macro_f1"] = part.macro_f1 if part else None
        found[f"{name}_count"] = len(chosen)
    return found
