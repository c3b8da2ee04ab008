"""Temperatures, abstention and measured quantiles of a run that is there, without training it again."""

import json
from dataclasses import dataclass
from pathlib import Path

from speechbrain_emo.brains.calibration import (
    confidences,
    fit_abstention,
    fit_temperatures,
    measure_training_set,
)
from speechbrain_emo.dataio.manifest import read_manifest, write_text_atomically
from speechbrain_emo.inference.export import update_explain_settings
from speechbrain_emo.inference.interfaces import MODEL_SUBFOLDER
from speechbrain_emo.metrics.abstention import risk_coverage, selective_scores
from speechbrain_emo.plots import plot_risk_coverage
from speechbrain_emo.results import read_predictions, read_results


@dataclass
class Recalibration:
    """What was fitted, and what it does on the test part.

    Arguments
    ---------
    temperatures : dict of str to float
        Condition -> temperature.
    abstain_below : float
        Probability below which the model says that it is not sure.
    reached : bool
        Whether the wanted risk was reached on validation data.
    coverage, risk : float or None
        On the test part: share that is answered and share of errors among it.
    num_measured : int or None
        Training recordings behind the quantiles; None where they were not measured.
    """

    temperatures: dict
    abstain_below: float
    reached: bool
    coverage: float | None = None
    risk: float | None = None
    num_measured: int | None = None


def recalibrate(folder, risk=0.1, measure=600, manifest=None, data_root=None, progress=True):
    """Fit what a finished run lacks and write it into its exported model.

    Arguments
    ---------
    folder : str or pathlib.Path
        Of a training: ``valid_predictions.jsonl``, ``results.json`` and ``model/``.
    risk : float
        Wanted share of errors among what is answered.
    measure : int
        Training recordings whose pitch, volume and speed are measured; 0: none, what the model has stays.
    manifest : str or pathlib.Path, optional
        Training manifest. Default: the one that ``results.json`` names.
    data_root : str or pathlib.Path, optional
        What ``{data_root}`` stands for. Default: the run's ``data_folder``.
    progress : bool
        Show a bar.

    Returns
    -------
    Recalibration

    Raises
    ------
    FileNotFoundError
        If the folder lacks predictions or results.
    ValueError
        If the model or the manifest cannot be used.

    Example
    -------
    >>> recalibrate("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: nowhere/results.json: no such file; run the evaluation that writes it
    """
    folder = Path(folder)
    run = read_results(folder)
    labels = run["evaluation"]["labels"]
    valid = read_predictions(folder / "valid_predictions.jsonl")
    temperatures = fit_temperatures(valid, labels)
    condition = "own_chain" if "own_chain" in temperatures else "speech"
    chosen = fit_abstention(valid, labels, condition, temperatures[condition], risk)
    changes = {
        "temperature": temperatures[condition],
        "speech_temperature": temperatures["speech"],
        "abstain_below": chosen.threshold,
    }
    done = Recalibration(temperatures, chosen.threshold, chosen.reached)
    if measure:
        settings = run.get("hparams") or {}
        path = manifest or (settings.get("manifests") or {}).get("train")
        if path is None:
            raise ValueError(f"{folder}/results.json names no training manifest: give it")
        records = read_manifest(path, {"data_root": str(data_root or settings.get("data_folder"))})
        thresholds = measure_training_set(
            records, measure, settings.get("language", "en"), folder / "measured_train.jsonl", progress
        )
        changes["thresholds"] = thresholds.to_dict()
        done.num_measured = thresholds.groups["all"]["level"]["count"]
        write_text_atomically(folder / "thresholds.json", json.dumps(thresholds.to_dict()) + "\n")
    update_explain_settings(folder / MODEL_SUBFOLDER, changes)
    curves, points = {}, {}
    test = read_predictions(folder)
    for name in (condition, "speech"):
        sure, correct = confidences(test, labels, name, temperatures[name])
        curves[f"label|{name}"] = risk_coverage(sure, correct)
        if name == condition:
            done.coverage, done.risk = selective_scores(sure, correct, chosen.threshold)
            points[f"label|{name}"] = (done.coverage, done.risk)
    plot_risk_coverage(curves, folder / "risk_coverage.png", points)
    return done
