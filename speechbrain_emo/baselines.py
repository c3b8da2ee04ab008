"""Baselines that stand beside every result: openSMILE + linear SVM, linear probe, text only.

All choose their hyper-parameters on inner SPEAKER folds of the training part; train and valid manifests
together are that part. Each returns predictions in the form of ``predictions.jsonl`` (see
``speechbrain_emo.results``), so that ``compute_results`` and ``pool_folds`` serve them too.

Axis letters: N training utterances, M test utterances, L layers, D features, K labels.
"""

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import read_manifest
from speechbrain_emo.metrics.asr import normalize_text
from speechbrain_emo.metrics.calibration import fit_temperature, label_probabilities

__all__ = [
    "FEATURE_SETS",
    "BaselineRun",
    "TargetPrediction",
    "merge_predictions",
    "opensmile_features",
    "opensmile_svm",
    "pool_mean_std",
    "pooled_linear_probe",
    "probe_predictions",
    "text_only_predictions",
]

logger = logging.getLogger(__name__)

# openSMILE's feature set -> name of its condition in results.json.
FEATURE_SETS = {"eGeMAPSv02": "egemaps_svm", "ComParE_2016": "compare_svm"}
# Steps of about 3 over the range in which a linear SVM on standardised functionals goes from under- to
# over-fitting: few thousand features want small C.
SVM_C = tuple(float(f"{c:.0e}") for c in 10.0 ** np.arange(-5, 0.5, 0.5))
PROBE_C = (0.001, 0.01, 0.1, 1.0)
# A class that the training part lacks: log of a probability that is never the largest.
FLOOR = float(np.log(1e-12))


@dataclass
class BaselineRun:
    """A baseline over all folds.

    Arguments
    ---------
    condition : str
        Name of its condition in ``results.json``.
    predictions : list of dict
        Pooled out-of-fold predictions, as in ``predictions.jsonl``.
    chosen : dict
        Fold -> hyper-parameters chosen on its inner folds.
    """

    condition: str
    predictions: list = field(repr=False)
    chosen: dict = field(default_factory=dict)


@dataclass
class TargetPrediction:
    """What a probe says about one target.

    Arguments
    ---------
    classes : list of str
        The K values that occur in training.
    log_probabilities : np.ndarray
        float (M, K).
    predicted : list of str
        Most probable value of each test utterance (M).
    chosen : dict
        Layer (``None``: only one given; ``all``: concatenated) and C.
    """

    classes: list
    log_probabilities: np.ndarray = field(repr=False)
    predicted: list = field(repr=False)
    chosen: dict = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------
# openSMILE functionals + linear SVM


def _records(manifest, replacements):
    if isinstance(manifest, (str, os.PathLike)):
        return read_manifest(manifest, replacements)
    return dict(manifest or {})


def _content_key(record):
    """Hash of the audio file's bytes and the segment: moves of the corpus keep the cache."""
    digest = hashlib.sha256(Path(record["wav"]).read_bytes())
    digest.update(f"|{record.get('start')}|{record.get('stop')}".encode())
    return digest.hexdigest()


def opensmile_features(
    records, feature_set="eGeMAPSv02", cache_folder=None, sample_rate=16000, progress=True
):
    """openSMILE functionals of every record, one vector an utterance.

    Sets: ``eGeMAPSv02`` (88; F. Eyben et al. 2016, "The Geneva Minimalistic Acoustic Parameter Set") and
    ``ComParE_2016`` (6373; B. Schuller et al. 2016).

    Arguments
    ---------
    records : dict
        id -> record with ``wav`` (placeholders filled), optional ``start`` and ``stop``.
    feature_set : str
        One of ``FEATURE_SETS``.
    cache_folder : str or Path, optional
        Where to keep the functionals, one file a feature set, keyed by the audio's content.
    sample_rate : int
        Rate in Hz at which the audio is analysed.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    dict
        id -> float32 (D,).

    Raises
    ------
    ImportError
        If opensmile is not installed (extra ``eval``).
    ValueError
        If the feature set is unknown or the functionals of a file are not finite.

    Example
    -------
    >>> opensmile_features({}, "MFCC")
    Traceback (most recent call last):
    ValueError: feature_set is 'MFCC': allowed are ['ComParE_2016', 'eGeMAPSv02']
    """
    if feature_set not in FEATURE_SETS:
        raise ValueError(f"feature_set is {feature_set!r}: allowed are {sorted(FEATURE_SETS)}")
    try:
        import opensmile
    except ImportError as error:
        raise ImportError("this baseline needs opensmile: pip install 'speechbrain_emo[eval]'") from error
    from tqdm import tqdm

    known, path = {}, None
    if cache_folder is not None:
        name = f"opensmile-{opensmile.__version__}-{feature_set}-{sample_rate}.npz"
        path = Path(cache_folder) / name
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                known = dict(zip(stored["keys"].tolist(), stored["features"]))
    keys = {name: _content_key(record) for name, record in records.items()}
    todo = [name for name, key in keys.items() if key not in known]
    if todo:
        smile = opensmile.Smile(
            feature_set=opensmile.FeatureSet[feature_set],
            feature_level=opensmile.FeatureLevel.Functionals,
        )
        bar = tqdm(
            todo, desc=f"openSMILE {feature_set}", unit="utt", disable=not progress, dynamic_ncols=True
        )
        for name in bar:
            record = records[name]
            signal = load_audio(record["wav"], sample_rate, record.get("start"), record.get("stop"))
            signal = np.asarray(signal, dtype=np.float32)
            values = smile.process_signal(signal, sample_rate).to_numpy(dtype=np.float32)[0]
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{record['wav']}: {int((~np.isfinite(values)).sum())} functionals are not finite"
                )
            known[keys[name]] = values
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
            np.savez(temporary, keys=np.array(list(known)), features=np.stack(list(known.values())))
            os.replace(temporary, path)
    return {name: known[key] for name, key in keys.items()}


def _inner_folds(labels, groups, num_folds, seed):
    """Folds that hold out speakers; by utterance, with a warning, where there is one speaker."""
    num_groups = len(set(groups))
    if num_groups > 1:
        return list(GroupKFold(min(num_folds, num_groups)).split(labels, labels, groups))
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if smallest < 2:
        raise ValueError(
            f"one speaker ({groups[0]}) and a class with one utterance: no inner fold to choose C on; "
            "give more training data"
        )
    logger.warning("one training speaker (%s): C is chosen on inner folds that share it", groups[0])
    splitter = StratifiedKFold(min(num_folds, smallest), shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels))


class _LinearSVMs:
    """Linear SVMs (libsvm, one against one) with different C on one standardised training part.

    The kernel is computed once for all C: openSMILE's sets have more features than a fold has utterances.
    """

    def __init__(self, features, labels):
        self.labels = labels
        self.scaler = StandardScaler().fit(features)
        self.rows = self.scaler.transform(features)
        self.kernel = self.rows @ self.rows.T

    def fit(self, c):
        """The SVM at one C."""
        machine = SVC(kernel="precomputed", C=c, class_weight="balanced", decision_function_shape="ovr")
        return machine.fit(self.kernel, self.labels)

    def margins(self, model, features, classes):
        """Decision values (M, K) in the order of ``classes``; a class that training lacks gets the lowest."""
        values = model.decision_function(self.scaler.transform(features) @ self.rows.T)
        if values.ndim == 1:
            values = np.stack([-values, values], axis=1)
        own = list(model.classes_)
        lowest = np.full(len(values), values.min() - 10.0)
        return np.stack([values[:, own.index(c)] if c in own else lowest for c in classes], axis=1)


def _fit_svm(features, labels, speakers, candidates, inner_folds, seed):
    """SVM at the C with the best pooled inner UA (the smallest among equals), and its temperature."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"the only training label is {classes[0]!r}: an SVM needs two or more")
    labels = np.asarray(labels)
    margins = {c: np.empty((len(labels), len(classes))) for c in sorted(candidates)}
    for train, test in _inner_folds(labels, speakers, inner_folds, seed):
        machines = _LinearSVMs(features[train], labels[train])
        for c, values in margins.items():
            values[test] = machines.margins(machines.fit(c), features[test], classes)
    ua = {}
    for c, values in margins.items():
        predicted = np.asarray(classes)[values.argmax(1)]
        ua[c] = float(recall_score(labels, predicted, average="macro", zero_division=0))
    c = max(ua, key=ua.get)
    machines = _LinearSVMs(features, labels)
    model = machines.fit(c)
    temperature = fit_temperature(margins[c], np.array([classes.index(x) for x in labels]))
    return machines, model, classes, {"C": c, "inner_ua": ua[c], "temperature": temperature}


def opensmile_svm(
    folds,
    feature_set="eGeMAPSv02",
    replacements=None,
    cache_folder=None,
    candidates=SVM_C,
    inner_folds=5,
    seed=0,
    sample_rate=16000,
    progress=True,
):
    """openSMILE functionals and a linear SVM over the folds of an experiment.

    Standardisation and C come from the training part of each fold (train and valid manifests together),
    C from inner folds that hold out speakers; classes are balanced.

    Arguments
    ---------
    folds : dict
        Fold -> ``{"train": ..., "valid": ..., "test": ...}``, each a manifest's path or its records
        (id -> record with ``wav``, ``speaker``, ``emotion``); ``valid`` may be absent. Records without an
        emotion are left out.
    feature_set : str
        ``eGeMAPSv02`` or ``ComParE_2016``.
    replacements : dict, optional
        Placeholders of the manifests' paths, for example ``{"data_root": ...}``.
    cache_folder : str or Path, optional
        See ``opensmile_features``.
    candidates : sequence of float
        Values of C to choose from.
    inner_folds : int
        Number of inner speaker folds.
    seed : int
        Seed of inner folds by utterance, where there is one training speaker.
    sample_rate : int
        In Hz.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    BaselineRun
        Predictions hold ``scores`` (decision values) and ``probabilities`` (softmax at the temperature
        fitted on the inner folds) under the condition ``egemaps_svm`` or ``compare_svm``.

    Raises
    ------
    ValueError
        If a fold lacks a part, or its training and test parts share an utterance.

    Example
    -------
    >>> opensmile_svm({"01": {"train": {}}})
    Traceback (most recent call last):
    ValueError: fold '01' has the parts ['train']: give train and test (valid is optional)
    """
    parts = {}
    for fold, manifests in folds.items():
        if "train" not in manifests or "test" not in manifests:
            raise ValueError(
                f"fold {fold!r} has the parts {sorted(manifests)}: give train and test (valid is optional)"
            )
        train = _records(manifests["train"], replacements)
        train.update(_records(manifests.get("valid"), replacements))
        test = _records(manifests["test"], replacements)
        both = sorted(set(train) & set(test))
        if both:
            raise ValueError(
                f"fold {fold!r}: {len(both)} utterance(s) in training and test, first {both[0]!r}"
            )
        parts[fold] = [{k: r for k, r in p.items() if r.get("emotion") is not None} for p in (train, test)]
    everything = {name: record for pair in parts.values() for part in pair for name, record in part.items()}
    features = opensmile_features(everything, feature_set, cache_folder, sample_rate, progress)
    run = BaselineRun(FEATURE_SETS[feature_set], [])
    for fold, (train, test) in parts.items():
        labels = [r["emotion"] for r in train.values()]
        speakers = [str(r["speaker"]) for r in train.values()]
        shared = {str(r["speaker"]) for r in test.values()} & set(speakers)
        if shared:
            logger.warning("fold %s: speaker(s) %s in training and test", fold, sorted(shared))
        matrix = np.stack([features[name] for name in train]).astype(np.float64)
        machines, model, classes, chosen = _fit_svm(matrix, labels, speakers, candidates, inner_folds, seed)
        run.chosen[fold] = chosen
        tested = np.stack([features[name] for name in test]).astype(np.float64)
        margins = machines.margins(model, tested, classes)
        logger.info("%s, fold %s: %s", feature_set, fold, chosen)
        run.predictions += _predictions(
            test, run.condition, classes, margins, label_probabilities(margins, chosen["temperature"]), fold
        )
    return run


def _predictions(records, condition, classes, scores, probabilities, fold=None):
    predictions = []
    for (name, record), score, probability in zip(records.items(), scores, probabilities):
        prediction = {
            "id": name,
            "speaker": str(record["speaker"]),
            "emotion": record.get("emotion"),
            "scores": {condition: dict(zip(classes, np.asarray(score).tolist()))},
            "probabilities": {condition: dict(zip(classes, np.asarray(probability).tolist()))},
        }
        if fold is not None:
            prediction["fold"] = str(fold)
        predictions.append(prediction)
    return predictions


# ---------------------------------------------------------------------------------------------------
# linear probe on pooled features of the frozen encoder


def pool_mean_std(features, num_frames=None):
    """Mean and standard deviation over the valid frames.

    Arguments
    ---------
    features : array
        float (T, D) or (T, L, D) of one utterance.
    num_frames : int, optional
        Valid frames; default: all T.

    Returns
    -------
    np.ndarray
        float32 (2 D,) or (L, 2 D). The deviation is that of the population; 0 for one frame.

    Raises
    ------
    ValueError
        If there is no valid frame.

    Example
    -------
    >>> pool_mean_std(np.array([[1.0], [3.0], [99.0]]), num_frames=2).tolist()
    [2.0, 1.0]
    """
    features = np.asarray(features, dtype=np.float64)
    num_frames = len(features) if num_frames is None else int(num_frames)
    if features.ndim not in (2, 3) or not 0 < num_frames <= len(features):
        raise ValueError(
            f"features has shape {features.shape} and num_frames is {num_frames}: give (T, D) or (T, L, D) "
            "with 1 to T valid frames"
        )
    valid = features[:num_frames]
    return np.concatenate([valid.mean(0), valid.std(0)], axis=-1).astype(np.float32)


def _logistic(c, seed):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200, random_state=seed))


def _inner_accuracy(make, features, labels, folds):
    correct = total = 0
    for train, test in folds:
        if len(set(labels[train])) > 1:
            model = make().fit(features[train], labels[train])
            correct += (model.predict(features[test]) == labels[test]).sum()
            total += len(test)
    return correct / total if total else 0.0


def _fit_probe(features, labels, speakers, inner_folds, max_concatenated, seed):
    """Probe at the best layer and C, both by accuracy on inner speaker folds."""
    labels = np.asarray(labels)
    folds = _inner_folds(labels, speakers, inner_folds, seed)
    layer, view = None, features
    if features.ndim == 3:
        num_layers, size = features.shape[1:]
        candidates = {i: features[:, i] for i in range(num_layers)}
        if num_layers * size <= max_concatenated:
            candidates["all"] = features.reshape(len(features), -1)
        # At one middle C: the best layer hardly depends on it.
        layer = max(
            candidates,
            key=lambda i: _inner_accuracy(lambda: _logistic(0.01, seed), candidates[i], labels, folds),
        )
        view = candidates[layer]
    c = max(PROBE_C, key=lambda c: _inner_accuracy(lambda: _logistic(c, seed), view, labels, folds))
    return _logistic(c, seed).fit(view, labels), {"layer": layer, "C": c}


def pooled_linear_probe(
    train_features, train_targets, test_features, train_speakers, inner_folds=2, max_concatenated=4096, seed=0
):
    """Linear probe on pooled frozen features, for emotion and for every descriptor.

    Standardised multinomial logistic regression; the layer (or all of them, concatenated) and C are chosen
    by accuracy on inner speaker folds.

    Arguments
    ---------
    train_features : array
        float (N, D) or (N, L, D), from ``pool_mean_std``.
    train_targets : dict
        Target (``emotion``, ``pitch`` ...) -> N values; rows with ``None`` are left out of that target.
    test_features : array
        float (M, D) or (M, L, D).
    train_speakers : sequence of str
        Speaker of each training row (N).
    inner_folds : int
        Number of inner speaker folds.
    max_concatenated : int
        Concatenation of all layers is tried up to this many features.
    seed : int
        Seed of the solver.

    Returns
    -------
    dict
        Target -> ``TargetPrediction``; a target with fewer than two values in training predicts that value.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or a target has no value.

    Example
    -------
    >>> x = np.array([[0.0], [0.1], [1.0], [1.1]] * 3)
    >>> found = pooled_linear_probe(x, {"pitch": ["low", "low", "high", "high"] * 3}, x[:4],
    ...                             ["s", "t"] * 6)
    >>> found["pitch"].predicted
    ['low', 'low', 'high', 'high']
    """
    train_features = np.asarray(train_features, dtype=np.float32)
    test_features = np.asarray(test_features, dtype=np.float32)
    if train_features.ndim not in (2, 3) or train_features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"features have shapes {train_features.shape} (train) and {test_features.shape} (test): give "
            "(utterances, D) or (utterances, L, D) with equal L and D"
        )
    for name, values in (("train", train_features), ("test", test_features)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} features hold {int((~np.isfinite(values)).sum())} NaN or infinite value(s)"
            )
    speakers = np.asarray([str(s) for s in train_speakers])
    if len(speakers) != len(train_features):
        raise ValueError(f"{len(speakers)} speakers but {len(train_features)} rows of features")
    found = {}
    for target, values in train_targets.items():
        if len(values) != len(train_features):
            raise ValueError(f"{len(values)} values of {target} but {len(train_features)} rows of features")
        known = np.array([i for i, v in enumerate(values) if v is not None], dtype=int)
        if not len(known):
            raise ValueError(f"target {target!r} has no value in training: leave it out")
        labels = [str(values[i]) for i in known]
        classes = sorted(set(labels))
        if len(classes) == 1:
            found[target] = TargetPrediction(
                classes, np.zeros((len(test_features), 1)), classes * len(test_features), {"constant": True}
            )
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model, chosen = _fit_probe(
                train_features[known], labels, speakers[known], inner_folds, max_concatenated, seed
            )
        view = test_features
        if view.ndim == 3:
            view = view.reshape(len(view), -1) if chosen["layer"] == "all" else view[:, chosen["layer"]]
        values = model.predict_log_proba(view)
        own = [str(c) for c in model.classes_]
        found[target] = TargetPrediction(own, values, [own[k] for k in values.argmax(1)], chosen)
    return found


def _label_scores(prediction, labels):
    """Log-probabilities (M, K) over the experiment's labels, floored and normalised again."""
    values = np.full((len(prediction.predicted), len(labels)), FLOOR)
    for column, label in enumerate(prediction.classes):
        if label not in labels:
            raise ValueError(
                f"training label {label!r} not among the labels {list(labels)}: correct the manifest"
            )
        values[:, list(labels).index(label)] = np.maximum(prediction.log_probabilities[:, column], FLOOR)
    return log_softmax(values, axis=1)


def probe_predictions(
    train_records,
    test_records,
    train_features,
    test_features,
    labels,
    fields=(),
    condition="probe",
    **options,
):
    """Linear probe in the form of ``predictions.jsonl``, for emotion and descriptor fields.

    Arguments
    ---------
    train_records, test_records : dict
        id -> record with ``speaker``, ``emotion``, ``descriptors``; train and valid together are training.
    train_features, test_features : dict
        id -> pooled features, float (D,) or (L, D), from ``pool_mean_std``.
    labels : sequence of str
        The K emotion labels.
    fields : sequence of str
        Descriptor fields with one value an utterance; fields without a value in training are left out.
    condition : str
        Name of the condition in ``results.json``.
    **options
        See ``pooled_linear_probe``.

    Returns
    -------
    BaselineRun
        Predictions with ``scores``, ``probabilities`` and ``baseline_descriptors`` under the condition.

    Raises
    ------
    ValueError
        See ``pooled_linear_probe``.
    KeyError
        If a record has no features.

    Example
    -------
    >>> def record(i, speaker):
    ...     return {"speaker": speaker, "emotion": "ab"[i % 2],
    ...             "descriptors": {"pitch": ["low", "high"][i % 2]}}
    >>> train = {f"u{i}": record(i, f"s{i // 4}") for i in range(12)}
    >>> test = {f"t{i}": record(i, "s9") for i in range(2)}
    >>> features = {name: np.array([float(name[-1]) % 2]) for name in [*train, *test]}
    >>> run = probe_predictions(train, test, features, features, ["a", "b"], ["pitch"])
    >>> run.predictions[1]["baseline_descriptors"]
    {'probe': {'pitch': 'high'}}
    """
    targets = {"emotion": [r.get("emotion") for r in train_records.values()]}
    for name in fields:
        values = [(r.get("descriptors") or {}).get(name) for r in train_records.values()]
        if any(isinstance(v, (list, dict)) for v in values):
            raise ValueError(f"field {name!r} has lists of values: give fields with one value an utterance")
        targets[name] = values
    targets = {name: values for name, values in targets.items() if any(v is not None for v in values)}
    found = pooled_linear_probe(
        np.stack([train_features[name] for name in train_records]),
        targets,
        np.stack([test_features[name] for name in test_records]),
        [r["speaker"] for r in train_records.values()],
        **options,
    )
    scores = _label_scores(found["emotion"], labels)
    predictions = _predictions(test_records, condition, list(labels), scores, np.exp(scores))
    for i, prediction in enumerate(predictions):
        record = test_records[prediction["id"]]
        if record.get("descriptors"):
            prediction["descriptors"] = record["descriptors"]
        prediction["baseline_descriptors"] = {
            condition: {name: found[name].predicted[i] for name in targets if name != "emotion"}
        }
    return BaselineRun(condition, predictions, {name: target.chosen for name, target in found.items()})


# ---------------------------------------------------------------------------------------------------
# text only


def text_only_predictions(
    train_records, test_records, labels, language="en", condition="text_only", inner_folds=3, seed=0
):
    """Emotion from the words of the reference transcript alone: how much the text gives away.

    Logistic regression on a bag of words and word pairs (present or not); C from inner speaker folds.

    Arguments
    ---------
    train_records, test_records : dict
        id -> record with ``transcript``, ``speaker``, ``emotion``.
    labels : sequence of str
        The K emotion labels.
    language : str
        ISO 639-1 code, for the normalisation of words.
    condition : str
        Name of the condition in ``results.json``.
    inner_folds : int
        Number of inner speaker folds.
    seed : int
        Seed of the solver.

    Returns
    -------
    BaselineRun

    Raises
    ------
    ValueError
        If no training record has both a transcript and an emotion, or a label is unknown.

    Example
    -------
    >>> train = {f"u{i}": {"transcript": ["oh great", "go away"][i % 2], "speaker": f"s{i % 3}",
    ...                    "emotion": ["happy", "angry"][i % 2]} for i in range(12)}
    >>> test = {"t": {"transcript": "Go away!", "speaker": "x", "emotion": "angry"}}
    >>> scores = text_only_predictions(train, test, ["happy", "angry"]).predictions[0]["scores"]["text_only"]
    >>> max(scores, key=scores.get)
    'angry'
    """
    known = [r for r in train_records.values() if r.get("transcript") and r.get("emotion") is not None]
    if not known:
        raise ValueError("no training record has a transcript and an emotion: no text-only baseline")
    texts = np.array([normalize_text(r["transcript"], language) for r in known], dtype=object)
    answers = np.array([r["emotion"] for r in known])
    speakers = [str(r["speaker"]) for r in known]
    tested = [normalize_text(r.get("transcript") or "", language) for r in test_records.values()]
    if len(set(answers)) == 1:
        target = TargetPrediction([answers[0]], np.zeros((len(tested), 1)), [answers[0]] * len(tested))
    else:

        def make(c):
            # \S+ keeps one-letter words, which scikit-learn's default drops.
            words = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\S+")
            return make_pipeline(words, LogisticRegression(C=c, max_iter=500, random_state=seed))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            folds = _inner_folds(answers, speakers, inner_folds, seed)
            c = max(
                (0.01, 0.1, 1.0, 10.0), key=lambda c: _inner_accuracy(lambda: make(c), texts, answers, folds)
            )
            model = make(c).fit(texts, answers)
        values = model.predict_log_proba(tested)
        own = [str(x) for x in model.classes_]
        target = TargetPrediction(own, values, [own[k] for k in values.argmax(1)], {"C": c})
    scores = _label_scores(target, labels)
    predictions = _predictions(test_records, condition, list(labels), scores, np.exp(scores))
    return BaselineRun(condition, predictions, {"emotion": target.chosen})


def merge_predictions(predictions, *runs):
    """Put the conditions of baselines into the predictions of the system, by utterance.

    Arguments
    ---------
    predictions : list of dict
        The system's predictions.
    *runs : BaselineRun
        Baselines on the same utterances.

    Returns
    -------
    list of dict
        New predictions; those given are not changed.

    Raises
    ------
    ValueError
        If a baseline lacks an utterance, disagrees on its reference label, or a condition exists already.

    Example
    -------
    >>> run = BaselineRun("probe", [{"id": "u", "emotion": "a", "scores": {"probe": {"a": 0.0}}}])
    >>> merge_predictions([{"id": "u", "emotion": "a", "scores": {"speech": {"a": -1.0}}}], run)[0]["scores"]
    {'speech': {'a': -1.0}, 'probe': {'a': 0.0}}
    """
    merged = [dict(p) for p in predictions]
    for run in runs:
        by_id = {p["id"]: p for p in run.predictions}
        for prediction in merged:
            other = by_id.get(prediction["id"])
            if other is None:
                raise ValueError(f"baseline {run.condition} has no prediction of {prediction['id']!r}")
            if other.get("emotion") != prediction.get("emotion"):
                own, new = prediction.get("emotion"), other.get("emotion")
                raise ValueError(
                    f"{prediction['id']!r} is {own!r} here and {new!r} in the baseline {run.condition}: "
                    "use the same manifests"
                )
            for key in ("scores", "probabilities", "baseline_descriptors"):
                own, new = prediction.get(key) or {}, other.get(key) or {}
                if set(own) & set(new):
                    raise ValueError(f"condition {run.condition!r} is there already in {prediction['id']!r}")
                if own or new:
                    prediction[key] = {**own, **new}
    return merged
