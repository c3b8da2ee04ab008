"""Predictions, results, pooling of folds and seeds, and the tables that show them.

``predictions.jsonl`` holds one JSON object an utterance; every metric is computed from it alone, so a
number can be checked, and pooled over folds, without the model. Keys of a prediction:

| key | type | meaning |
|---|---|---|
| ``id`` | str | utterance; unique in the file |
| ``speaker`` | str | |
| ``emotion`` | str or null | reference label |
| ``fold`` | str, optional | fold whose model predicted this utterance |
| ``scores`` | object | condition -> label -> length-normalised log-likelihood |
| ``probabilities`` | object, optional | condition -> label -> probability (as calibrated at prediction) |
| ``transcript``, ``hypothesis`` | str or null | reference and generated transcript |
| ``descriptors`` | object | reference: field -> value; ``emphasis``: list of words; ``description``: str |
| ``predicted_descriptors`` | object | the same fields, as generated |
| ``measured_descriptors`` | object, optional | field -> value measured in the audio |
| ``shifted_descriptors`` | object, optional | ``pitch_up`` ... -> descriptors predicted for shifted audio |
| ``baseline_descriptors`` | object, optional | condition -> field -> value |
| ``generated`` | str or null | freely generated label |
| ``unparsable`` | bool | the generated answer holds no allowed label |
| ``answered`` | object, optional | condition -> whether the probability reaches the threshold of abstention |
| ``duration`` | float, optional | seconds |
| ``corpus`` | str, optional | where it comes from |
| ``soft_labels`` | object, optional | label -> share of the listeners who heard it |

Conditions of ``scores``: ``speech`` (label asked for directly: label|speech), ``own_chain`` (after the
model's own transcript and descriptors: label|own_chain), ``gold_descriptors`` (label|gold_descriptors).
Baselines stand beside them as further conditions (``probe``, ``oracle``, ``text_only``, ``egemaps_svm``).
"""

import json
import logging
import math
import numbers
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

from speechbrain_emo.metrics.abstention import risk_coverage
from speechbrain_emo.metrics.asr import word_errors
from speechbrain_emo.metrics.calibration import calibration_scores, label_probabilities
from speechbrain_emo.metrics.classification import classification_scores, fold_spread, speaker_interval
from speechbrain_emo.metrics.descriptors import (
    description_scores,
    emphasis_scores,
    faithfulness,
    field_scores,
    shift_response,
)
from speechbrain_emo.metrics.soft_labels import soft_label_scores

__all__ = [
    "RANDOM_SPLIT_WARNING",
    "comparison_rows",
    "compute_results",
    "format_cell",
    "format_table",
    "git_commit",
    "pool_folds",
    "pool_seeds",
    "predicted_label",
    "read_predictions",
    "read_results",
    "result_rows",
    "results_by_corpus",
    "run_context",
    "score_labels",
    "write_predictions",
    "write_results",
]

logger = logging.getLogger(__name__)

RANDOM_SPLIT_WARNING = (
    "random split: speakers of the test part occur in training, so these numbers say little about new "
    "speakers and compare with no speaker-independent result"
)
PACKAGES = (
    "speechbrain_emo speechbrain torch torchaudio transformers peft numpy scipy scikit-learn librosa "
    "soundfile safetensors sentencepiece tokenizers whisper-normalizer sacrebleu rouge-score "
    "pycocoevalcap opensmile espeakng-loader"
).split()
# Values of the ordered fields, lowest first; a shift of the audio moves along these.
FIELD_ORDERS = {
    "pitch": ("low", "normal", "high"),
    "volume": ("low", "normal", "high"),
    "speed": ("slow", "normal", "fast"),
}
# Label scores of the model itself; other conditions are baselines.
SYSTEM_CONDITIONS = ("own_chain", "speech", "gold_descriptors")
# Rows of the result table, in order.
CONDITION_NAMES = {
    "own_chain": "label|own_chain",
    "speech": "label|speech",
    "gold_descriptors": "label|gold_descriptors",
    "generated": "free generation",
    "probe": "linear probe (pooled frozen features)",
    "oracle": "oracle (true generation parameters)",
    "text_only": "text only (bag of words, no audio)",
    "egemaps_svm": "eGeMAPSv02 + linear SVM",
    "compare_svm": "ComParE_2016 + linear SVM",
}


# ---------------------------------------------------------------------------------------------------
# predictions.jsonl


def write_predictions(path, predictions):
    """Write ``predictions.jsonl``: one JSON object a line, in the order given.

    The file appears complete or not at all.

    Arguments
    ---------
    path : str or Path
        The file, or the folder in which ``predictions.jsonl`` is written.
    predictions : iterable of dict
        See the head of this file.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If an id is missing or occurs twice, or a score is NaN.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> path = write_predictions(folder, [{"id": "u1", "speaker": "s1", "emotion": "happy"}])
    >>> read_predictions(path)
    [{'id': 'u1', 'speaker': 's1', 'emotion': 'happy'}]
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        path = path / "predictions.jsonl"
    predictions = list(predictions)
    _check_ids(predictions, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        for prediction in predictions:
            try:
                line = json.dumps(_plain(prediction), ensure_ascii=False, allow_nan=False)
            except ValueError as error:
                raise ValueError(f"prediction of {prediction['id']}: {error}") from error
            stream.write(line + "\n")
    os.replace(temporary, path)
    return path


def read_predictions(path):
    """Read ``predictions.jsonl``.

    Arguments
    ---------
    path : str or Path
        The file, or the folder that holds it.

    Returns
    -------
    list of dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is no JSON object or ids repeat.

    Example
    -------
    >>> read_predictions("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: nowhere/predictions.jsonl: no such file; run the evaluation that writes it
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        path = path / "predictions.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the evaluation that writes it")
    predictions = []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                predictions.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
    _check_ids(predictions, path)
    return predictions


def _check_ids(predictions, where):
    seen = set()
    for number, prediction in enumerate(predictions, 1):
        name = prediction.get("id") if isinstance(prediction, dict) else None
        if not name:
            raise ValueError(f"{where}: prediction {number} has no id: give every utterance one")
        if name in seen:
            raise ValueError(f"{where}: utterance {name!r} occurs twice: count each once")
        seen.add(name)


def _plain(value):
    """JSON types from numpy scalars, arrays, paths and tuples; NaN stays and is refused later."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in (sorted(value) if isinstance(value, set) else value)]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return str(value)


# ---------------------------------------------------------------------------------------------------
# metrics


def predicted_label(scores, labels):
    """Label with the highest score; among equal ones the first of ``labels``.

    Arguments
    ---------
    scores : dict
        Label -> log-likelihood.
    labels : sequence of str
        Allowed labels; all must have a score.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If a label has no finite score.

    Example
    -------
    >>> predicted_label({"sad": -0.2, "happy": -0.1}, ["happy", "sad"])
    'happy'
    """
    bad = [label for label in labels if not math.isfinite(scores.get(label, math.nan))]
    if bad:
        raise ValueError(f"label(s) {bad} have no finite score in {scores}: score all of {list(labels)}")
    return max(labels, key=lambda label: scores[label])


def score_labels(references, predicted, speakers, labels, folds=None, num_resamples=10000, seed=0):
    """All recognition metrics of one condition, named as in ``results.json``.

    Arguments
    ---------
    references : sequence of str
        Reference labels (N).
    predicted : sequence of str or None
        Predicted labels (N), ``None`` where there is none.
    speakers : sequence of str
        Speaker of each utterance (N).
    labels : sequence of str
        The K labels.
    folds : sequence of str, optional
        Fold of each utterance (N); adds mean and deviation over folds.
    num_resamples : int
        Of the bootstrap over speakers.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``ua``, ``wa``, ``macro_f1``, ``weighted_f1``, ``recall_<label>``, ``confusion`` (K lists of K + 1
        counts), ``count``, ``ua_low``, ``ua_high`` (and so of ``wa``, ``macro_f1``, ``weighted_f1``),
        ``num_speakers`` and, with
        folds, ``ua_fold_mean``, ``ua_fold_std``, ``wa_fold_mean``, ``wa_fold_std``, ``num_folds``.

    Raises
    ------
    ValueError
        See ``classification_scores``.

    Example
    -------
    >>> metrics = score_labels(["a", "b"], ["a", "a"], ["s", "t"], ["a", "b"])
    >>> metrics["ua"], metrics["confusion"]
    (0.5, [[1, 0, 0], [1, 0, 0]])
    """
    scores = classification_scores(references, predicted, labels)
    metrics = {
        "ua": scores.ua,
        "wa": scores.wa,
        "macro_f1": scores.macro_f1,
        "weighted_f1": scores.weighted_f1,
        **{f"recall_{label}": recall for label, recall in scores.recall.items()},
        "confusion": scores.confusion.tolist(),
        "labels": list(labels),
        "count": scores.count,
    }
    interval = speaker_interval(references, predicted, speakers, labels, num_resamples, seed=seed)
    for name in ("ua", "wa", "macro_f1", "weighted_f1"):
        chosen = getattr(interval, name) if interval else None
        metrics[f"{name}_low"] = chosen.low if chosen else None
        metrics[f"{name}_high"] = chosen.high if chosen else None
    metrics["num_speakers"] = len({str(s) for s in speakers})
    if folds is not None:
        spread = fold_spread(references, predicted, folds, labels)
        metrics.update(
            ua_fold_mean=spread.ua_mean,
            ua_fold_std=spread.ua_std,
            wa_fold_mean=spread.wa_mean,
            wa_fold_std=spread.wa_std,
            num_folds=spread.num_folds,
        )
    return metrics


def _temperature(temperature, condition):
    """Temperature of a condition, None where it has none: a baseline's scores have their own scale."""
    if isinstance(temperature, dict):
        return temperature.get(condition)
    return temperature if condition in SYSTEM_CONDITIONS else None


def _probabilities(prediction, condition, labels, temperature):
    """Probabilities (K,) of one prediction: from the scores, or as stored when no temperature is given."""
    stored = (prediction.get("probabilities") or {}).get(condition)
    if temperature is None and stored is not None:
        return np.array([stored[label] for label in labels], dtype=np.float64)
    scores = [prediction["scores"][condition][label] for label in labels]
    return label_probabilities(scores, 1.0 if temperature is None else temperature)


def _recognition(predictions, labels, temperature, metrics, prefix, options):
    """Metrics of every condition that has scores, and of free generation."""
    labelled = [p for p in predictions if p.get("emotion") is not None]
    conditions = []
    for prediction in labelled:
        conditions += [c for c in prediction.get("scores") or {} if c not in conditions]
    for condition in conditions:
        chosen = [p for p in labelled if condition in (p.get("scores") or {})]
        if len(chosen) < len(labelled) and condition == "gold_descriptors":
            logger.warning(
                "%s.ser.gold_descriptors: %d of %d utterances only, the others have no gold descriptors",
                prefix,
                len(chosen),
                len(labelled),
            )
        elif len(chosen) < len(labelled):
            lacking = [p["id"] for p in labelled if condition not in (p.get("scores") or {})]
            raise ValueError(
                f"{len(lacking)} of {len(labelled)} utterances have no scores for the condition "
                f"{condition!r}, first {lacking[0]!r}: score every utterance in every condition "
                "(gold_descriptors may lack some)"
            )
        predicted = [predicted_label(p["scores"][condition], labels) for p in chosen]
        values = score_labels(
            [p["emotion"] for p in chosen],
            predicted,
            [_speaker(p) for p in chosen],
            labels,
            folds=_folds(chosen),
            **options,
        )
        chosen_temperature = _temperature(temperature, condition)
        probabilities = np.stack([_probabilities(p, condition, labels, chosen_temperature) for p in chosen])
        calibration = calibration_scores(
            probabilities, np.array([list(labels).index(p["emotion"]) for p in chosen])
        )
        values.update(ece=calibration.ece, brier=calibration.brier, nll=calibration.nll)
        correct = np.array([label == p["emotion"] for label, p in zip(predicted, chosen)])
        curve = risk_coverage(probabilities.max(1), correct)
        values.update(aurc=curve.area, aurc_best=curve.best_area)
        answered = [(p.get("answered") or {}).get(condition) for p in chosen]
        if None not in answered:
            answered = np.array(answered, dtype=bool)
            values["coverage"] = float(answered.mean())
            values["selective_risk"] = float((~correct[answered]).mean()) if answered.any() else None
        if chosen_temperature is not None:
            values["temperature"] = float(chosen_temperature)
        voted = [p for p in chosen if p.get("soft_labels")]
        if voted:
            values.update(
                soft_label_scores(
                    np.stack([_probabilities(p, condition, labels, chosen_temperature) for p in voted]),
                    np.array([[p["soft_labels"].get(label, 0.0) for label in labels] for p in voted]),
                ).to_dict()
            )
        metrics.update({f"{prefix}.ser.{condition}.{name}": value for name, value in values.items()})
    generated = [p for p in labelled if "generated" in p]
    if generated:
        allowed = set(labels)
        usable = [p["generated"] in allowed and not p.get("unparsable") for p in generated]
        answers = [p["generated"] if u else None for p, u in zip(generated, usable)]
        values = score_labels(
            [p["emotion"] for p in generated],
            answers,
            [_speaker(p) for p in generated],
            labels,
            folds=_folds(generated),
            **options,
        )
        values["unparsable"] = sum(a is None for a in answers) / len(answers)
        metrics.update({f"{prefix}.ser.generated.{name}": value for name, value in values.items()})


def _speaker(prediction):
    """Speakers of two corpora may have one name."""
    corpus = prediction.get("corpus")
    return f"{corpus}/{prediction['speaker']}" if corpus else prediction["speaker"]


def _folds(predictions):
    folds = [p.get("fold") for p in predictions]
    return folds if len({f for f in folds if f is not None}) > 1 else None


def _transcription(predictions, language, closed_set, metrics, prefix):
    chosen = [p for p in predictions if p.get("transcript") and "hypothesis" in p]
    if not chosen:
        return
    errors = word_errors([p["transcript"] for p in chosen], [p["hypothesis"] for p in chosen], language)
    key = f"{prefix}.asr.generated"
    metrics[f"{key}.wer"] = errors.wer
    for name in ("substitutions", "deletions", "insertions"):
        metrics[f"{key}.{name}"] = getattr(errors, name)
    metrics[f"{key}.num_words"] = errors.num_words
    metrics[f"{key}.exact"] = errors.num_exact / errors.num_utterances
    metrics[f"{key}.count"] = errors.num_utterances
    metrics[f"{key}.closed_set"] = bool(closed_set)


def _field_metrics(reference, predicted, fields, metrics, key):
    for name in fields:
        scores = field_scores([r.get(name) for r in reference], [p.get(name) for p in predicted])
        if scores is not None:
            metrics[f"{key}.{name}"] = scores.accuracy
            metrics[f"{key}.{name}_balanced"] = scores.balanced_accuracy
            metrics[f"{key}.{name}_missing"] = scores.num_missing / scores.count
            metrics[f"{key}.{name}_count"] = scores.count


def _descriptors(predictions, fields, language, java, metrics, prefix):
    closed = [f for f in fields if f not in ("emphasis", "description")]
    for condition in sorted({c for p in predictions for c in p.get("baseline_descriptors") or {}}):
        chosen = [p for p in predictions if condition in (p.get("baseline_descriptors") or {})]
        _field_metrics(
            [p.get("descriptors") or {} for p in chosen],
            [p["baseline_descriptors"][condition] or {} for p in chosen],
            # A baseline that does not predict a field has no row for it, not a row of misses.
            [f for f in closed if any(f in (p["baseline_descriptors"][condition] or {}) for p in chosen)],
            metrics,
            f"{prefix}.sed.{condition}",
        )
    chosen = [p for p in predictions if "predicted_descriptors" in p]
    if not chosen:
        return
    reference = [p.get("descriptors") or {} for p in chosen]
    predicted = [p["predicted_descriptors"] or {} for p in chosen]
    measured = [p.get("measured_descriptors") or {} for p in chosen]
    key = f"{prefix}.sed.generated"
    _field_metrics(reference, predicted, closed, metrics, key)
    emphasis = emphasis_scores(
        [r.get("emphasis") for r in reference], [p.get("emphasis") for p in predicted], language
    )
    if emphasis is not None and "emphasis" in fields:
        metrics[f"{key}.emphasis"] = emphasis.exact
        metrics[f"{key}.emphasis_f1"] = emphasis.f1
        metrics[f"{key}.emphasis_count"] = emphasis.count
    if "description" in fields:
        sentences = description_scores(
            [r.get("description") for r in reference],
            [p.get("description") for p in predicted],
            language,
            java=java,
        )
        for name, score in sentences.items():
            metrics[f"{key}.{name}"] = score.value
            if score.value is None:
                metrics[f"{key}.{name}_not_computed"] = score.reason
    for name, scores in faithfulness(predicted, measured, closed).items():
        if scores is not None:
            metrics[f"{prefix}.sed.faithfulness.{name}"] = scores.accuracy
            metrics[f"{prefix}.sed.faithfulness.{name}_balanced"] = scores.balanced_accuracy
            metrics[f"{prefix}.sed.faithfulness.{name}_count"] = scores.count
    shifts = sorted({s for p in chosen for s in p.get("shifted_descriptors") or {}})
    for shift in shifts:
        name, _, way = shift.rpartition("_")
        if name not in FIELD_ORDERS or way not in ("up", "down"):
            raise ValueError(
                f"shift {shift!r}: allowed are <field>_up and <field>_down with the field one of "
                f"{list(FIELD_ORDERS)}"
            )
        pairs = [p for p in chosen if shift in (p.get("shifted_descriptors") or {})]
        response = shift_response(
            [(p["predicted_descriptors"] or {}).get(name) for p in pairs],
            [(p["shifted_descriptors"][shift] or {}).get(name) for p in pairs],
            1 if way == "up" else -1,
            FIELD_ORDERS[name],
        )
        for part in ("share_right", "right", "wrong", "unmoved", "saturated"):
            metrics[f"{prefix}.sed.shift_{shift}.{part}"] = getattr(response, part)


def compute_results(
    predictions,
    labels,
    fields=(),
    language="en",
    closed_set=False,
    temperature=None,
    random_split=False,
    split="test",
    num_resamples=10000,
    seed=0,
    java=True,
):
    """Every metric of a set of predictions, from the predictions alone.

    Arguments
    ---------
    predictions : list of dict
        See the head of this file.
    labels : sequence of str
        The K emotion labels.
    fields : sequence of str
        Descriptor fields; ``emphasis`` and ``description`` are scored in their own ways.
    language : str
        ISO 639-1 code of transcripts and sentences.
    closed_set : bool
        Whether all test sentences also occur in training: WER is then closed-set, and says so.
    temperature : float or dict, optional
        Temperature fitted on validation data, one for the system's conditions or condition -> value. A
        condition without one (a baseline) has its stored ``probabilities``, or softmax(scores).
    random_split : bool
        Whether speakers are shared between training and test: a warning goes to the log and the result.
    split : str
        First part of every key.
    num_resamples : int
        Of the bootstrap over speakers.
    seed : int
        Of the bootstrap.
    java : bool
        Whether METEOR and SPICE may start Java.

    Returns
    -------
    dict
        ``<split>.<task>.<condition>.<metric>`` -> number, list, bool or None; a metric that could not be
        computed is ``None`` beside ``<metric>_not_computed``, the reason.

    Raises
    ------
    ValueError
        If there is no prediction, or one lacks a condition that others have.

    Example
    -------
    >>> predictions = [
    ...     {"id": "u1", "speaker": "s1", "emotion": "sad",
    ...      "scores": {"speech": {"sad": -0.1, "happy": -3.0}},
    ...      "transcript": "the cat sat", "hypothesis": "a cat sat",
    ...      "descriptors": {"pitch": "low"},
    ...      "predicted_descriptors": {"pitch": "low"}, "generated": "sad", "unparsable": False},
    ...     {"id": "u2", "speaker": "s2", "emotion": "happy",
    ...      "scores": {"speech": {"sad": -0.2, "happy": -1.0}},
    ...      "transcript": "stop it", "hypothesis": "stop it",
    ...      "descriptors": {"pitch": "high"},
    ...      "predicted_descriptors": {"pitch": None}, "generated": None, "unparsable": True}]
    >>> results = compute_results(predictions, ["happy", "sad"], ["pitch"])
    >>> results["test.ser.speech.ua"], results["test.ser.generated.unparsable"]
    (0.5, 0.5)
    >>> results["test.asr.generated.wer"], results["test.sed.generated.pitch"]
    (0.2, 0.5)
    """
    predictions = list(predictions)
    if not predictions:
        raise ValueError("no prediction to compute results from: is the test part empty?")
    _check_ids(predictions, "predictions")
    metrics = {}
    options = {"num_resamples": num_resamples, "seed": seed}
    _recognition(predictions, list(labels), temperature, metrics, split, options)
    _transcription(predictions, language, closed_set, metrics, split)
    _descriptors(predictions, list(fields), language, java, metrics, split)
    if random_split:
        logger.warning(RANDOM_SPLIT_WARNING)
        metrics[f"{split}.warning"] = RANDOM_SPLIT_WARNING
    return metrics


def results_by_corpus(predictions, labels, split="test", **options):
    """Metrics of each corpus of a joint experiment, under keys that begin with ``<split>_<corpus>``.

    Arguments
    ---------
    predictions : list of dict
        With ``corpus``; empty result where there is one corpus or none.
    labels : sequence of str
        The K emotion labels.
    split : str
        Which split.
    **options
        As of :func:`compute_results`.

    Returns
    -------
    dict

    Example
    -------
    >>> scores = {"speech": {"a": 0.0, "b": -1.0}}
    >>> predictions = [{"id": c, "speaker": c, "corpus": c, "emotion": e, "scores": scores} for c, e in ("Xa", "Yb")]
    >>> {k: v for k, v in results_by_corpus(predictions, ["a", "b"]).items() if k.endswith("ua")}
    {'test_X.ser.speech.ua': 1.0, 'test_Y.ser.speech.ua': 0.0}
    """
    corpora = sorted({p["corpus"] for p in predictions if p.get("corpus")})
    metrics = {}
    for corpus in corpora if len(corpora) > 1 else ():
        chosen = [p for p in predictions if p.get("corpus") == corpus]
        metrics.update(compute_results(chosen, labels, split=f"{split}_{corpus}", **options))
    return metrics


# ---------------------------------------------------------------------------------------------------
# results.json


def git_commit(folder=None):
    """Commit of the source tree, with ``-dirty`` where tracked files differ from it.

    Arguments
    ---------
    folder : str or Path, optional
        A folder of the tree; default: this package's own.

    Returns
    -------
    str or None
        ``None`` outside a git checkout, without git, or before the first commit.

    Example
    -------
    >>> git_commit("/") is None
    True
    """
    folder = Path(__file__).resolve().parent if folder is None else Path(folder)
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        # No git program: an installed package has no commit to name.
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def run_context(seed=None, hparams=None, split_hash=None, wall_time=None, audio_seconds=None, **more):
    """What is written beside the metrics so that a number can be traced to its run.

    Arguments
    ---------
    seed : int, optional
        Seed of the run.
    hparams : dict, optional
        Resolved hyper-parameters; values that JSON does not know are written as text.
    split_hash : str, optional
        Hash of the manifests.
    wall_time : float, optional
        Seconds of the whole run.
    audio_seconds : float, optional
        Seconds of audio processed in that time.
    **more
        Further entries, for example ``command`` or ``evaluation`` (the arguments of
        ``compute_results``, which pooling needs).

    Returns
    -------
    dict

    Example
    -------
    >>> context = run_context(seed=1986, wall_time=2.0, audio_seconds=50.0)
    >>> context["seed"], context["audio_seconds_per_second"]
    (1986, 25.0)
    """
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    device = {"peak_gpu_memory_bytes": None, "gpu": None}
    if torch.cuda.is_available():
        device = {
            "peak_gpu_memory_bytes": int(torch.cuda.max_memory_allocated()),
            "gpu": torch.cuda.get_device_name(),
        }
    return {
        "seed": seed,
        "git_commit": git_commit(),
        "split_hash": split_hash,
        "wall_time_seconds": wall_time,
        "audio_seconds": audio_seconds,
        "audio_seconds_per_second": audio_seconds / wall_time if audio_seconds and wall_time else None,
        "peak_memory_bytes": _peak_memory(),
        **device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {
            "processor": platform.machine(),
            "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "packages": packages,
        "hparams": hparams,
        **more,
    }


def _peak_memory():
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _null_nan(value):
    if isinstance(value, dict):
        return {k: _null_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_null_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(folder, metrics, context):
    """Write ``results.json``: ``{"metrics": ..., **context}``.

    The file appears complete or not at all. A number that is not finite is written as null.

    Arguments
    ---------
    folder : str or Path
        Where the checkpoint and ``predictions.jsonl`` are.
    metrics : dict
        From ``compute_results``.
    context : dict
        From ``run_context``. Its entry ``evaluation``, the keyword arguments that were given to
        ``compute_results`` (``labels``, ``fields``, ``language``, ``closed_set``, ``temperature``,
        ``random_split``, ``split``), is what ``pool_folds`` reads.

    Returns
    -------
    Path
        The file.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> path = write_results(folder, {"test.ser.speech.ua": 0.5}, {"seed": 1})
    >>> read_results(folder)
    {'seed': 1, 'metrics': {'test.ser.speech.ua': 0.5}}
    """
    if "metrics" in context:
        raise ValueError("context has an entry 'metrics': give the metrics as their own argument")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content = _null_nan(_plain({**context, "metrics": metrics}))
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    os.replace(temporary, path)
    return path


def read_results(folder):
    """Read ``results.json`` of a folder.

    Arguments
    ---------
    folder : str or Path
        A run's folder, or the file itself.

    Returns
    -------
    dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no metrics.

    Example
    -------
    >>> read_results("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: nowhere/results.json: no such file; run the evaluation that writes it
    """
    path = Path(folder)
    if path.suffix != ".json":
        path = path / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the evaluation that writes it")
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict) or "metrics" not in content:
        raise ValueError(f"{path}: no entry 'metrics'; was it written by write_results?")
    return content


# ---------------------------------------------------------------------------------------------------
# pooling


def pool_folds(folders, **options):
    """Headline over the pooled out-of-fold predictions of all folds, with spread over folds.

    Each fold's probabilities use that fold's own temperature. A folder's name is the fold's name
    where its predictions do not say.

    Arguments
    ---------
    folders : sequence of str or Path
        One folder a fold, with ``predictions.jsonl`` and ``results.json`` (entry ``evaluation``).
    **options
        ``num_resamples``, ``seed``, ``java``: see ``compute_results``.

    Returns
    -------
    dict
        Metrics as of ``compute_results`` over all utterances, with ``ua_fold_mean`` and so on, WER
        pooled. The same predictions are needed for a confusion matrix; they hold it too.

    Raises
    ------
    ValueError
        If there is no folder, folds were evaluated with different labels or settings, or an utterance is
        predicted by two folds.

    Example
    -------
    >>> import tempfile
    >>> folders = []
    >>> for fold, score in (("1", -0.1), ("2", -5.0)):
    ...     folder = Path(tempfile.mkdtemp())
    ...     predictions = [{"id": fold, "speaker": fold, "fold": fold, "emotion": "sad",
    ...                     "scores": {"speech": {"sad": score, "happy": -1.0}}}]
    ...     _ = write_predictions(folder, predictions)
    ...     _ = write_results(folder, {}, {"evaluation": {"labels": ["happy", "sad"], "temperature": 2.0}})
    ...     folders.append(folder)
    >>> pooled = pool_folds(folders)
    >>> pooled["test.ser.speech.ua"], pooled["test.ser.speech.num_folds"]
    (0.5, 2)
    """
    folders = [Path(f) for f in folders]
    if not folders:
        raise ValueError("no fold to pool: give the folders of the folds")
    pooled, settings, home = [], None, {}
    for folder in folders:
        evaluation = read_results(folder).get("evaluation")
        if not evaluation or "labels" not in evaluation:
            raise ValueError(
                f"{folder}/results.json has no entry 'evaluation' with 'labels': write it with "
                "write_results(context=run_context(evaluation=...))"
            )
        evaluation = dict(evaluation)
        temperature = evaluation.pop("temperature", None)
        for name in ("num_resamples", "seed", "java"):
            evaluation.pop(name, None)
        if settings is None:
            settings = evaluation
        elif evaluation != settings:
            differing = sorted(k for k in {*evaluation, *settings} if evaluation.get(k) != settings.get(k))
            raise ValueError(
                f"{folder} was evaluated with other {differing} than {folders[0]}: not the same experiment"
            )
        for prediction in read_predictions(folder):
            name = prediction["id"]
            if name in home:
                raise ValueError(
                    f"utterance {name!r} is predicted in {home[name]} and in {folder}: test parts must "
                    "not overlap"
                )
            home[name] = folder
            prediction.setdefault("fold", folder.name)
            probabilities = {}
            for condition in prediction.get("scores") or {}:
                chosen = _temperature(temperature, condition)
                values = _probabilities(prediction, condition, settings["labels"], chosen)
                probabilities[condition] = dict(zip(settings["labels"], values.tolist()))
            prediction["probabilities"] = probabilities
            pooled.append(prediction)
    return compute_results(pooled, **settings, **options)


def pool_seeds(folders):
    """Mean and deviation over seeds of every number.

    Arguments
    ---------
    folders : sequence of str or Path
        One folder a seed, each with ``results.json``.

    Returns
    -------
    dict
        Key -> ``{"mean", "std", "values", "seeds"}`` for the numeric metrics that all runs have; ``std``
        is the sample deviation, ``None`` for one seed.

    Raises
    ------
    ValueError
        If there is no folder, or two runs have the same seed.

    Example
    -------
    >>> import tempfile
    >>> folders = []
    >>> for seed, ua in ((1, 0.5), (2, 0.7)):
    ...     folder = tempfile.mkdtemp()
    ...     _ = write_results(folder, {"test.ser.speech.ua": ua}, {"seed": seed})
    ...     folders.append(folder)
    >>> pooled = pool_seeds(folders)["test.ser.speech.ua"]
    >>> round(pooled["mean"], 3), round(pooled["std"], 3), pooled["seeds"]
    (0.6, 0.141, [1, 2])
    """
    folders = [Path(f) for f in folders]
    if not folders:
        raise ValueError("no seed to pool: give the folders of the runs")
    results = [read_results(folder) for folder in folders]
    seeds = [result.get("seed") for result in results]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {seeds}: every run must have its own seed")
    hashes = {result.get("split_hash") for result in results}
    if len(hashes) > 1:
        raise ValueError(f"split hashes differ ({sorted(map(str, hashes))}): pool runs on one split only")
    pooled = {}
    for key in results[0]["metrics"]:
        values = [result["metrics"].get(key) for result in results]
        if all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values):
            pooled[key] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
                "seeds": seeds,
            }
    return pooled


def next_line_headline(result):
    """Which number stands for a run about next lines (``evaluation.kind: next_line``).

    Arguments
    ---------
    result : dict
        Content of ``results.json``.

    Returns
    -------
    dict or None
        ``task``, ``phase`` and ``condition`` of its first row of ``prediction``; None for other runs.

    Example
    -------
    >>> row = {"phase": "stage2_2", "task": "next", "conditions": ["speech", "gold"]}
    >>> next_line_headline({"evaluation": {"evaluation": {"kind": "next_line", "prediction": [row]}}})
    {'task': 'next', 'phase': 'stage2_2', 'condition': 'speech'}
    """
    settings = (result.get("evaluation") or {}).get("evaluation") or {}
    if settings.get("kind") != "next_line" or not settings.get("prediction"):
        return None
    row = settings["prediction"][0]
    return {"task": row["task"], "phase": row["phase"], "condition": row["conditions"][0]}


def cost_columns(results):
    """What runs cost, as cells of a table: means over runs; only what they tell.

    Arguments
    ---------
    results : sequence of dict
        Contents of ``results.json`` of one system.

    Returns
    -------
    dict

    Example
    -------
    >>> cost_columns([{"train_seconds": 60.4, "trainable_parameters": {"a": 2000}, "metrics": {}}])
    {'trainable (thousands)': 2, 'training (s)': 60}
    """
    columns = {}
    trainable = results[0].get("trainable_parameters") or {}
    if trainable:
        columns["trainable (thousands)"] = round(sum(trainable.values()) / 1000)

    def mean(values):
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known else None

    for column, name, unit in (
        ("training (s)", "train_seconds", 1),
        ("peak memory (MB)", "peak_memory_bytes", 1e6),
    ):
        value = mean([r.get(name) for r in results])
        if value is not None:
            columns[column] = round(value / unit)
    headlines = [next_line_headline(r) for r in results]
    if all(headlines):
        latencies = [
            r["metrics"].get(f"test.{h['task']}.{h['condition']}@{h['phase']}.latency")
            for r, h in zip(results, headlines)
        ]
        if mean(latencies) is not None:
            columns["one line (s)"] = mean(latencies)
    return columns


def comparison_rows(folders):
    """One row a run, or a row a group of seeds, for RESULTS.md: the headline metrics, parameters and time.

    Arguments
    ---------
    folders : sequence of str or Path
        Folders with ``results.json``. Folders joined by commas are seeds of one system: mean and deviation.

    Returns
    -------
    list of dict
        Column name -> cell, for ``format_table``.

    Raises
    ------
    FileNotFoundError
        If a folder has no ``results.json``.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = write_results(folder, {"test.ser.own_chain.ua": 0.5}, {"seed": 1, "train_seconds": 60.0})
    >>> comparison_rows([folder])[0]["UA"]
    0.5
    """
    columns = {
        "UA": ("test.ser.own_chain.ua", "test.ser.speech.ua"),
        "UA label|speech": ("test.ser.speech.ua",),
        "UA gold descr.": ("test.ser.gold_descriptors.ua",),
        "WER": ("test.asr.generated.wer",),
        **{n: (f"test.sed.generated.{n}",) for n in ("pitch", "volume", "speed", "emphasis")},
    }
    rows = []
    for group in folders:
        parts = [Path(f) for f in str(group).split(",")]
        runs = [read_results(f) for f in parts]
        if len(runs) > 1:
            metrics = pool_seeds(parts)
        else:
            metrics = runs[0]["metrics"]
        name = (
            f"{parts[0].parent.name}/{parts[0].name}"
            if len(parts) == 1
            else f"{parts[0].parent.name}, {len(parts)} seeds"
        )
        row = {"run": name}
        headline = next_line_headline(runs[0])
        own = columns
        if headline is not None:
            key = f"test.{headline['task']}.{headline['condition']}@{headline['phase']}.scored"
            row["next line"] = f"{headline['task']}.{headline['condition']}"
            own = {
                "emotion WA": (f"{key}_emotion_wa",),
                "emotion UA": (f"{key}_emotion_ua",),
                "macro-F1": (f"{key}_emotion_f1",),
                "with intensity": (f"{key}_accuracy",),
            }
        for column, keys in own.items():
            found = [metrics[k] for k in keys if metrics.get(k) is not None]
            if found:
                value = found[0]
                row[column] = (
                    {"mean": value["mean"], "std": value["std"]} if isinstance(value, dict) else value
                )
        row.update(cost_columns(runs))
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------
# tables


_RECOGNITION_COLUMNS = {"UA": "ua", "WA": "wa", "macro-F1": "macro_f1", "weighted F1": "weighted_f1"}
# Columns of the result table that are about labels and words; the others are about descriptors.
_NOT_DESCRIPTORS = {"system", *_RECOGNITION_COLUMNS, "95 % of UA", "unparsable", "ECE"}
_NOT_DESCRIPTORS |= {"WER", "WER (closed set)", "S/D/I"}


def result_rows(metrics, split="test"):
    """Rows of the result table: one a condition, the system's own first, then baselines and oracle.

    Arguments
    ---------
    metrics : dict
        From ``compute_results``, ``pool_folds`` or ``pool_seeds``, with the keys of baselines added
        (``test.ser.probe.ua``, ``test.sed.probe.pitch``, ``test.ser.oracle.ua``,
        ``test.ser.text_only.ua``).
    split : str
        Which split.

    Returns
    -------
    list of dict
        Column name -> cell, for ``format_table``. The headline row (``label|own_chain``, else
        ``label|speech``) carries WER and descriptors of the system.

    Example
    -------
    >>> metrics = {"test.ser.own_chain.ua": 0.77, "test.asr.generated.wer": 0.02, "test.ser.probe.ua": 0.78}
    >>> for row in result_rows(metrics):
    ...     print(row)
    {'system': 'label|own_chain', 'UA': 0.77, 'WER': 0.02}
    {'system': 'linear probe (pooled frozen features)', 'UA': 0.78}
    """
    found = {}
    for key, value in metrics.items():
        parts = key.split(".", 3)
        if len(parts) == 4 and parts[0] == split:
            found.setdefault(parts[1], {}).setdefault(parts[2], {})[parts[3]] = value
    recognition = dict(found.get("ser", {}))
    apart = ("faithfulness", "shift_")
    descriptors = {c: v for c, v in found.get("sed", {}).items() if not c.startswith(apart)}
    transcripts = dict(found.get("asr", {}))
    headline = next((c for c in (*SYSTEM_CONDITIONS, "generated") if c in recognition), None)
    order = list(CONDITION_NAMES)
    conditions = {*recognition, *descriptors, *transcripts}
    if headline is not None and headline != "generated":
        # The generated transcript and descriptors belong to the chain that leads to the label.
        if "generated" not in recognition:
            conditions.discard("generated")
    conditions = sorted(conditions, key=lambda c: (order.index(c) if c in order else len(order), c))
    rows = []
    for condition in conditions:
        source = "generated" if condition == headline else condition
        shown = condition != "generated" or headline in (None, "generated")
        ser = recognition.get(condition, {})
        sed = descriptors.get(source, {}) if shown else {}
        asr = transcripts.get(source, {}) if shown else {}
        row = {"system": CONDITION_NAMES.get(condition, condition)}
        for column, name in _RECOGNITION_COLUMNS.items():
            if ser.get(name) is not None:
                row[column] = ser[name]
                if column == "UA" and ser.get("ua_low") is not None:
                    row["95 % of UA"] = (ser["ua_low"], ser["ua_high"])
        if ser.get("unparsable") is not None:
            row["unparsable"] = ser["unparsable"]
        if ser.get("ece") is not None:
            row["ECE"] = ser["ece"]
        if asr.get("wer") is not None:
            row["WER (closed set)" if asr.get("closed_set") is True else "WER"] = asr["wer"]
            if all(asr.get(k) is not None for k in ("substitutions", "deletions", "insertions")):
                row["S/D/I"] = tuple(asr[k] for k in ("substitutions", "deletions", "insertions"))
        for name, value in sed.items():
            if value is not None and not name.endswith(
                ("_balanced", "_missing", "_count", "_not_computed", "emphasis_f1")
            ):
                row[name] = value
        if len(row) > 1:
            rows.append(row)
    return rows


def split_rows(rows):
    """The result table as two: labels and words, and descriptors.

    Arguments
    ---------
    rows : list of dict
        Of :func:`result_rows`.

    Returns
    -------
    tuple of list of dict
        Rows that would hold a name alone are left out.

    Example
    -------
    >>> split_rows([{"system": "a", "UA": 0.5, "pitch": 0.9}, {"system": "b", "UA": 0.4}])
    ([{'system': 'a', 'UA': 0.5}, {'system': 'b', 'UA': 0.4}], [{'system': 'a', 'pitch': 0.9}])
    """
    scores = [{k: v for k, v in row.items() if k in _NOT_DESCRIPTORS} for row in rows]
    voice = [{k: v for k, v in row.items() if k == "system" or k not in _NOT_DESCRIPTORS} for row in rows]
    return tuple([row for row in part if len(row) > 1] for part in (scores, voice))


def format_cell(value, decimals=3):
    """A cell of a table as text.

    Arguments
    ---------
    value : object
        Number, text, pair (an interval), ``{"mean", "std"}`` or None (an empty cell).
    decimals : int
        Of numbers with a fraction.

    Returns
    -------
    str

    Example
    -------
    >>> format_cell(0.5), format_cell((0.1, 0.2)), format_cell(None)
    ('0.500', '0.100–0.200', '')
    """
    if value is None:
        return ""
    if isinstance(value, dict) and "mean" in value:
        text = f"{value['mean']:.{decimals}f}"
        return text if value.get("std") is None else f"{text} ± {value['std']:.{decimals}f}"
    if isinstance(value, (tuple, list)):
        if len(value) == 2:
            return "–".join(format_cell(v, decimals) for v in value)
        return "/".join(format_cell(v, 1) if isinstance(v, dict) else str(v) for v in value)
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(value)
    if isinstance(value, numbers.Real):
        return f"{value:.{decimals}f}" if math.isfinite(value) else ""
    return str(value)


_LATEX = str.maketrans(
    {
        **{c: rf"\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    | {"±": r"$\pm$", "–": "--", "Δ": r"$\Delta$", "<": r"$<$", ">": r"$>$", "|": r"$\mid$"}
)


def _latex(text):
    return text.translate(_LATEX)


def format_table(rows, columns=None, style="markdown", decimals=3):
    """Rows as a table for the terminal or for RESULTS.md.

    Arguments
    ---------
    rows : sequence of dict
        Column name -> cell. A pair is an interval, ``{"mean", "std"}`` a spread over seeds, ``None`` and
        an absent column an empty cell.
    columns : sequence of str, optional
        Which columns, in order; default: all, in order of appearance.
    style : str
        ``markdown``, ``plain`` or ``latex`` (a tabular with the rules of the package booktabs).
    decimals : int
        Of numbers with a fraction.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the style is unknown.

    Example
    -------
    >>> print(format_table([{"system": "a|b", "UA": 0.5}, {"system": "probe", "UA": None, "WER": 0.02}]))
    | system |    UA |   WER |
    |--------|------:|------:|
    | a\\|b   | 0.500 |       |
    | probe  |       | 0.020 |
    """
    if style not in ("markdown", "plain", "latex"):
        raise ValueError(f"style is {style!r}: allowed are markdown, plain and latex")
    rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[format_cell(row.get(c), decimals) for c in columns] for row in rows]
    if style == "markdown":
        cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    textual = [any(isinstance(row.get(c), str) for row in rows) for c in columns]
    if style == "latex":
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in [map(str, columns), *cells]]
        kinds = "".join("l" if text else "r" for text in textual)
        return "\n".join(
            [
                rf"\begin{{tabular}}{{{kinds}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
    widths = [max([len(str(c)), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    aligned = [
        [cell.ljust(w) if text else cell.rjust(w) for cell, w, text in zip(row, widths, textual)]
        for row in [[str(c) for c in columns], *cells]
    ]
    if style == "markdown":
        rule = "|".join("-" * (w + 2) if text else "-" * (w + 1) + ":" for w, text in zip(widths, textual))
        lines = ["| " + " | ".join(row) + " |" for row in aligned]
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    lines = ["  ".join(row).rstrip() for row in aligned]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
