"""What a latent knows: held-out linear probe, silhouette, and a map in two dimensions.

Probe: G. Alain and Y. Bengio 2016, https://arxiv.org/abs/1610.01644. Silhouette: P. Rousseeuw 1987.
Map: L. van der Maaten and G. Hinton 2008 (t-SNE) after a PCA.

Axis letters: N vectors, D their size.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import accuracy_score, balanced_accuracy_score, silhouette_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

__all__ = [
    "ProbeScores",
    "fit_linear_probe",
    "latent_map",
    "linear_probe",
    "probe_latents",
    "subsample",
]

# About a decade apart from strongly shrunk to nearly free, for standardised input.
REGULARISATION = (0.001, 0.01, 0.1, 1.0)


@dataclass
class ProbeScores:
    """What one latent tells about one kind of label.

    Arguments
    ---------
    accuracy : float or None
        Held-out accuracy over all vectors (each predicted by a probe that did not see it).
    balanced_accuracy : float or None
        Mean recall of the same predictions.
    chance : float or None
        Share of the most frequent label.
    silhouette : float or None
        Mean silhouette of the standardised vectors, in [-1, 1].
    num_vectors : int
        Vectors used, after subsampling.
    num_labels : int
        Different labels among them.
    grouped : bool
        Whether held-out vectors come from speakers that the probe did not see.
    reason : str or None
        Why a number is missing.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    chance: float | None
    silhouette: float | None
    num_vectors: int
    num_labels: int
    grouped: bool
    reason: str | None = field(default=None)


def _vectors(features, labels, groups):
    features = np.asarray(features, dtype=np.float64)
    labels = np.asarray([str(label) for label in labels])
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features has shape {features.shape}: give (vectors, dimensions), none of them 0")
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        raise ValueError(f"features has NaN or infinite values in {len(bad)} row(s), first {bad[0]}")
    if len(labels) != len(features):
        raise ValueError(f"{len(labels)} labels but {len(features)} vectors: give one label a vector")
    if groups is not None:
        groups = np.asarray([str(g) for g in groups])
        if len(groups) != len(features):
            raise ValueError(f"{len(groups)} groups but {len(features)} vectors: give one group a vector")
    return features, labels, groups


def _splits(labels, groups, num_folds, seed):
    """Folds by group where there are two or more groups, else stratified by label; None if neither."""
    if groups is not None and len(np.unique(groups)) > 1:
        splitter = GroupKFold(min(num_folds, len(np.unique(groups))))
        return list(splitter.split(labels, labels, groups))
    smallest = np.unique(labels, return_counts=True)[1].min()
    if smallest < 2:
        return None
    splitter = StratifiedKFold(min(num_folds, int(smallest)), shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels))


def fit_linear_probe(features, labels, groups=None, seed=0, class_weight=None):
    """Standardised logistic regression whose C is chosen on inner folds.

    Arguments
    ---------
    features : array
        float (N, D).
    labels : sequence of str
        N labels, at least two different.
    groups : sequence of str, optional
        Speakers; inner folds then hold out speakers.
    seed : int
        Seed of the inner folds.
    class_weight : str, optional
        ``balanced`` weights classes by the inverse of their frequency.

    Returns
    -------
    sklearn.pipeline.Pipeline
        The fitted probe.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or there is one label only.

    Example
    -------
    >>> probe = fit_linear_probe([[0.0], [0.1], [1.0], [1.1]], ["a", "a", "b", "b"])
    >>> probe.predict([[0.05], [1.05]]).tolist()
    ['a', 'b']
    """
    features, labels, groups = _vectors(features, labels, groups)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"the only label is {labels[0]!r}: a probe needs two or more")
    classifier = LogisticRegression(C=0.1, max_iter=300, class_weight=class_weight, random_state=seed)
    model = make_pipeline(StandardScaler(), classifier)
    inner = _splits(labels, groups, 3, seed)
    # One thread: the fits are small, and BLAS threads that wait for one another beside another process cost minutes.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Few iterations are enough for a diagnosis, and large C on separable data never converges.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if inner is None or any(len(np.unique(labels[train])) < 2 for train, _ in inner):
            return model.fit(features, labels)
        search = GridSearchCV(
            model, {"logisticregression__C": list(REGULARISATION)}, cv=inner, scoring="accuracy", n_jobs=1
        )
        return search.fit(features, labels).best_estimator_


def subsample(num_vectors, max_vectors, seed=0):
    """Rows to keep so that at most ``max_vectors`` stay, in ascending order.

    Arguments
    ---------
    num_vectors : int
        How many there are.
    max_vectors : int
        How many to keep at most.
    seed : int
        Seed of the choice.

    Returns
    -------
    np.ndarray
        int64 (min(num_vectors, max_vectors),).

    Example
    -------
    >>> subsample(3, 5).tolist(), len(subsample(100, 5))
    ([0, 1, 2], 5)
    """
    if num_vectors <= max_vectors:
        return np.arange(num_vectors)
    return np.sort(np.random.default_rng(seed).choice(num_vectors, max_vectors, replace=False))


def linear_probe(features, labels, groups=None, num_folds=5, max_vectors=3000, seed=0):
    """Held-out accuracy of a linear probe, and the silhouette.

    Arguments
    ---------
    features : array
        Latent vectors, float (N, D).
    labels : sequence of str
        Label of each vector (N).
    groups : sequence of str, optional
        Speaker of each vector; held-out vectors then come from other speakers. Leave out when the
        label is the speaker.
    num_folds : int
        Outer folds.
    max_vectors : int
        Vectors are subsampled to at most this many, with ``seed``.
    seed : int
        Seed of subsampling and folds.

    Returns
    -------
    ProbeScores
        Numbers that are not defined are ``None`` with a reason.

    Raises
    ------
    ValueError
        If shapes do not fit or values are not finite.

    Example
    -------
    >>> features = np.repeat([[0.0, 1.0], [1.0, 0.0]], 10, axis=0)
    >>> scores = linear_probe(features, ["a"] * 10 + ["b"] * 10)
    >>> scores.accuracy, round(scores.silhouette, 3), scores.chance
    (1.0, 1.0, 0.5)
    """
    features, labels, groups = _vectors(features, labels, groups)
    chosen = subsample(len(features), max_vectors, seed)
    features, labels = features[chosen], labels[chosen]
    groups = None if groups is None else groups[chosen]
    names, counts = np.unique(labels, return_counts=True)
    grouped = groups is not None and len(np.unique(groups)) > 1
    chance = float(counts.max() / len(labels))
    if len(names) < 2:
        reason = f"one label only ({names[0]})"
        return ProbeScores(None, None, chance, None, len(labels), len(names), grouped, reason)
    silhouette = None
    if len(names) < len(labels):
        silhouette = float(silhouette_score(StandardScaler().fit_transform(features), labels))
    folds = _splits(labels, groups, num_folds, seed)
    reason = None
    if folds is None:
        reason = "a label occurs once only: no held-out probe"
    elif any(len(np.unique(labels[train])) < 2 for train, _ in folds):
        reason = "a training fold has one label only: no held-out probe"
    if reason:
        return ProbeScores(None, None, chance, silhouette, len(labels), len(names), grouped, reason)
    predictions = np.empty_like(labels)
    for train, test in folds:
        probe = fit_linear_probe(
            features[train], labels[train], None if groups is None else groups[train], seed=seed
        )
        predictions[test] = probe.predict(features[test])
    return ProbeScores(
        accuracy=float(accuracy_score(labels, predictions)),
        balanced_accuracy=float(balanced_accuracy_score(labels, predictions)),
        chance=chance,
        silhouette=silhouette,
        num_vectors=len(labels),
        num_labels=len(names),
        grouped=grouped,
    )


def probe_latents(latents, labels, speakers=None, max_vectors=3000, seed=0):
    """Probe every latent for every kind of label.

    Arguments
    ---------
    latents : dict
        Name (for example ``content``, ``descriptor``) -> float (N, D).
    labels : dict
        Kind (``emotion``, ``speaker``, ``phoneme``) -> N labels; ``None`` in place of a label
        leaves the vector out for that kind.
    speakers : sequence of str, optional
        Speaker of each vector; held-out vectors come from other speakers, except for the kind
        ``speaker`` itself.
    max_vectors : int
        See ``linear_probe``.
    seed : int
        See ``linear_probe``.

    Returns
    -------
    dict
        (latent, kind) -> ``ProbeScores``.

    Raises
    ------
    ValueError
        If shapes do not fit or values are not finite.

    Example
    -------
    >>> z = np.repeat([[0.0], [1.0]], 6, axis=0)
    >>> scores = probe_latents({"content": z}, {"phoneme": list("aaaaaabbbbbb")}, speakers=["s", "t"] * 6)
    >>> scores["content", "phoneme"].accuracy
    1.0
    """
    scores = {}
    for name, features in latents.items():
        features = np.asarray(features)
        for kind, values in labels.items():
            if len(values) != len(features):
                raise ValueError(f"{len(values)} labels of {kind} but {len(features)} vectors of {name}")
            known = [i for i, v in enumerate(values) if v is not None]
            if not known:
                scores[name, kind] = ProbeScores(None, None, None, None, 0, 0, False, "no label")
                continue
            groups = None if speakers is None or kind == "speaker" else [speakers[i] for i in known]
            scores[name, kind] = linear_probe(
                features[known], [values[i] for i in known], groups, max_vectors=max_vectors, seed=seed
            )
    return scores


def latent_map(features, perplexity=30.0, seed=0):
    """Coordinates of vectors on a plane: standardise, PCA to at most 50 dimensions, t-SNE.

    Arguments
    ---------
    features : array
        float (N, D), N at least 3.
    perplexity : float
        Of t-SNE; lowered to (N - 1) / 3 where N is small.
    seed : int
        Seed.

    Returns
    -------
    np.ndarray
        float64 (N, 2).

    Raises
    ------
    ValueError
        If there are fewer than 3 vectors or values are not finite.

    Example
    -------
    >>> latent_map(np.random.default_rng(0).normal(size=(20, 4))).shape
    (20, 2)
    """
    features, _, _ = _vectors(features, [""] * len(features), None)
    if len(features) < 3:
        raise ValueError(f"{len(features)} vector(s): a map needs at least 3")
    features = StandardScaler().fit_transform(features)
    generator = np.random.default_rng(seed)
    start = 1e-4 * generator.normal(size=(len(features), 2))
    if features.any():
        size = min(50, *features.shape)
        features = PCA(n_components=size, random_state=seed).fit_transform(features)
        # Start from the principal axes (a reproducible, global layout), as scikit-learn's init="pca" does;
        # a latent collapsed to one point or one axis keeps the random start there.
        principal = features[:, :2] / np.std(features[:, 0]) * 1e-4
        start[:, : principal.shape[1]] = principal
    perplexity = min(float(perplexity), (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed, n_jobs=1)
    return tsne.fit_transform(features).astype(np.float64)
