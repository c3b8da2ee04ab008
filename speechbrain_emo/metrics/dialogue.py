"""Numbers about dialogue answers and about what an embedding should not know.

Task-specific vectors are the worry of arXiv 2508.08095: embeddings that carry the task instead of the speech make a
model answer with a training task's sentence whatever it is asked. :func:`template_overlap` shows it in the answers;
:func:`presence_probe` tells which words an embedding holds that should hold none.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from speechbrain_emo.metrics.probes import _splits, _vectors

__all__ = [
    "PresenceScores",
    "agreement",
    "changed_share",
    "label_probe",
    "presence_probe",
    "template_overlap",
]


@dataclass
class PresenceScores:
    """Whether an embedding tells which words were said.

    Arguments
    ---------
    balanced_accuracy : float or None
        Mean over words of the held-out balanced accuracy of "this word occurs"; 0.5 is chance.
    words : dict of str to float
        The same for each word.
    num_vectors : int
        Utterances.
    """

    balanced_accuracy: float | None
    words: dict
    num_vectors: int


def _words(text):
    return re.findall(r"\w+", text.lower())


def _held_out(features, labels, groups, seed, class_weight=None):
    """Predictions of probes that did not see the vector; None where there are no folds."""
    folds = _splits(labels, groups, 4, seed)
    if folds is None or any(len(set(labels[train])) < 2 for train, _ in folds):
        return None
    predicted = np.empty_like(labels)
    for train, test in folds:
        # Shrunk, and the same for all: there are about as many dimensions as utterances.
        classifier = LogisticRegression(C=0.01, max_iter=200, class_weight=class_weight)
        model = make_pipeline(StandardScaler(), classifier).fit(features[train], labels[train])
        predicted[test] = model.predict(features[test])
    return predicted


def label_probe(features, labels, groups=None, seed=0):
    """Held-out accuracy of a shrunk linear probe.

    A fit a fold, where :func:`speechbrain_emo.metrics.probes.linear_probe` searches the shrinkage: for comparing
    embeddings of the same size with each other.

    Arguments
    ---------
    features : array
        One vector an utterance, float (N, D).
    labels : sequence of str
        N labels.
    groups : sequence of str, optional
        Speakers; held-out vectors then come from other speakers.
    seed : int
        Of the folds.

    Returns
    -------
    float or None
        None where a label or a group is too rare.

    Example
    -------
    >>> label_probe(np.repeat([[0.0], [1.0]], 8, axis=0), ["a"] * 8 + ["b"] * 8)
    1.0
    """
    features, labels, groups = _vectors(features, labels, groups)
    if len(np.unique(labels)) < 2:
        return None
    predicted = _held_out(features, labels, groups, seed)
    return None if predicted is None else float(accuracy_score(labels, predicted))


def presence_probe(features, texts, groups=None, max_words=12, shares=(0.05, 0.5), seed=0):
    """Held-out probes for the presence of frequent words in an utterance.

    Arguments
    ---------
    features : array
        One vector an utterance, float (N, D).
    texts : sequence of str
        What is said (N).
    groups : sequence of str, optional
        Speakers; held-out vectors then come from other speakers.
    max_words : int
        Most frequent words to probe.
    shares : tuple of float
        Words that occur in fewer or more of the utterances are left out.
    seed : int
        Of the folds.

    Returns
    -------
    PresenceScores

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Example
    -------
    >>> x = np.repeat([[0.0], [1.0]], 20, axis=0)
    >>> presence_probe(x, ["lamp"] * 20 + ["box"] * 20).words
    {'box': 1.0, 'lamp': 1.0}
    """
    features, texts, groups = _vectors(features, texts, groups)
    said = [set(_words(str(text))) for text in texts]
    counts = Counter(word for words in said for word in words)
    low, high = shares
    usable = [w for w, c in counts.items() if max(low * len(said), 4) <= c <= high * len(said)]
    usable.sort(key=lambda w: (-counts[w], w))
    found = {}
    for word in sorted(usable[:max_words]):
        labels = np.array([str(word in words) for words in said])
        predicted = _held_out(features, labels, groups, seed, "balanced")
        if predicted is None:
            continue
        found[word] = float(balanced_accuracy_score(labels, predicted))
    mean = float(np.mean(list(found.values()))) if found else None
    return PresenceScores(mean, found, len(said))


def template_overlap(answers, templates, n=3):
    """Share of the answers' word n-grams that stand in the sentences of training templates.

    Arguments
    ---------
    answers : sequence of str
        What was written.
    templates : sequence of str
        Training answers with their values filled in.
    n : int
        Words of an n-gram.

    Returns
    -------
    float
        Pooled over answers, in [0, 1]; 0 where no answer is n words long.

    Example
    -------
    >>> template_overlap(["the pitch is low", "i am sorry"], ["the pitch is low", "the pitch is high"])
    0.6666666666666666
    """

    def grams(text):
        words = _words(text)
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {gram for template in templates for gram in grams(template)}
    written = [gram for answer in answers for gram in grams(answer)]
    return sum(gram in known for gram in written) / len(written) if written else 0.0


def agreement(answers, references):
    """Share of answers that are word for word the reference.

    Example
    -------
    >>> agreement(["I see.", "no"], ["i see", "yes"])
    0.5
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers but {len(references)} references: give one an answer")
    same = [_words(a) == _words(r) for a, r in zip(answers, references)]
    return sum(same) / len(same) if same else float("nan")


def changed_share(answers, others):
    """Share of answers that differ from the answer to the changed input.

    Example
    -------
    >>> changed_share(["i am sorry", "fine"], ["how nice", "fine"])
    0.5
    """
    return 1.0 - agreement(answers, others)
