"""A trained model on a corpus that it was not made for: scores over the labels that both have.

The path from speech to a label is that of training and inference (``brains.explainer``); scores are computed from the
saved predictions, as everywhere (``results``).
"""

import copy
import functools
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_emo import results
from speechbrain_emo.brains import reports
from speechbrain_emo.brains.distributed import gather, world
from speechbrain_emo.brains.explainer import as_result
from speechbrain_emo.brains.speech_data import read_ahead
from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.dataio.audio import AudioError, load_audio
from speechbrain_emo.dataio.labels import apply_label_map, automatic_map
from speechbrain_emo.dataio.manifest import ManifestError, write_manifest


@dataclass(frozen=True)
class MappedCorpus:
    """Records under a model's labels.

    Arguments
    ---------
    records : dict
        id -> record; every one has a label of the model.
    labels : list of str
        The model's labels that the map leads to, in the model's order: what is scored and told apart.
    label_map : dict of str to (str or None)
        Their label -> the model's label, for every label of the corpus.
    notes : list of str
        What was left out, and why.

    Example
    -------
    >>> MappedCorpus({}, ["sad"], {"sadness": "sad"}, []).labels
    ['sad']
    """

    records: dict
    labels: list
    label_map: dict
    notes: list


def map_corpus(records, model_labels, label_map=None):
    """Bring a corpus under the labels of a model.

    Arguments
    ---------
    records : dict
        id -> record with ``emotion``.
    model_labels : sequence of str
        Labels of the model.
    label_map : dict of str to (str or None), optional
        Their label -> the model's label. Default, and for labels that it does not name: spellings of one word.

    Returns
    -------
    MappedCorpus

    Raises
    ------
    ManifestError
        If no record or fewer than two labels are left.

    Example
    -------
    >>> records = {"a": {"emotion": "anger"}, "b": {"emotion": "sadness"}, "c": {"emotion": "boredom"}}
    >>> mapped = map_corpus(records, ["angry", "happy", "sad"])
    >>> mapped.labels, sorted(mapped.records), mapped.label_map["boredom"]
    (['angry', 'sad'], ['a', 'b'], None)
    """
    present = sorted({r["emotion"] for r in records.values() if r.get("emotion") is not None})
    chosen = {**automatic_map(present, model_labels), **(label_map or {})}
    # A record without a label cannot be scored.
    labelled = {k: r for k, r in records.items() if r.get("emotion") is not None}
    kept, findings = apply_label_map(labelled, {k: v or None for k, v in chosen.items()}, model_labels)
    notes = [f.message for f in findings]
    if len(labelled) < len(records):
        notes.append(f"{len(records) - len(labelled)} records have no label")
    labels = [label for label in model_labels if label in {r["emotion"] for r in kept.values()}]
    if len(labels) < 2:
        raise ManifestError(
            f"the corpus has {', '.join(present) or 'no label'}, the model tells {', '.join(model_labels)} apart: only "
            f"{len(labels)} of them meet; give a label map (their label: the model's label)"
        )
    return MappedCorpus(kept, labels, {k: chosen.get(k) or None for k in present}, notes)


def _heard(record, sample_rate, max_duration):
    """(waveform, None) of a record, or (None, why it cannot be used)."""
    start, stop = record.get("start"), record.get("stop")
    try:
        return load_audio(record["wav"], sample_rate, start, stop, max_duration=max_duration), None
    except AudioError as error:
        return None, str(error)


def _gain(records, hear, level, num_workers, progress):
    """Factor that brings the median level of the recordings to ``level`` dB; the same on every process."""
    rank, count = world()
    own = list(records.values())[rank::count]
    powers = []
    audios = read_ahead(hear, own, num_workers)
    for waveform, _ in tqdm(audios, total=len(own), desc="levels", unit="file", disable=not progress):
        powers.append(float(waveform.square().mean()) if waveform is not None else 0.0)
    levels = [10 * math.log10(power) for power in gather(powers) if power > 0]
    return 10 ** ((level - statistics.median(levels)) / 20) if levels else 1.0


def predict_corpus(model, records, batch_size=16, direct=False, level=None, progress=True, num_workers=0):
    """Predictions of a model for many records, whatever their order, the batch and the number of processes.

    Processes of one group (``torchrun``) share the records; every one gets all predictions.

    Arguments
    ---------
    model : EmotionExplainer
        Loaded model.
    records : dict
        id -> record with ``wav`` (a complete path), ``duration`` and, optionally, ``start`` and ``stop``.
    batch_size : int
        Recordings at a time.
    direct : bool
        Ask for the label alone (``label|speech``): no text is generated, which is many times faster.
    level : float, optional
        Median level of the corpus in dB of full scale: one gain for all recordings. Default: as recorded.
    progress : bool
        Show a progress bar.
    num_workers : int
        Processes that read audio while the model is busy.

    Returns
    -------
    lines : list of dict
        As of ``predictions.jsonl``, in the order of the records.
    failures : dict of str to str
        Record -> why it could not be used.

    Raises
    ------
    ValueError
        If no recording can be used.
    """
    explainer = copy.copy(model.explainer)
    if direct:
        explainer.chain_task = explainer.transcript_task = None
    hear = functools.partial(_heard, sample_rate=model.sample_rate, max_duration=model.max_duration)
    rank, count = world()
    progress = progress and rank == 0
    gain = 1.0 if level is None else _gain(records, hear, level, num_workers, progress)
    # Similar lengths together, dealt out in turn: the processes have the same amount of work.
    order = sorted(records, key=lambda k: (records[k].get("duration") or 0.0, k))[rank::count]
    waveforms, found = {}, []

    def flush():
        keys = list(waveforms)
        padded = torch.nn.utils.rnn.pad_sequence([waveforms[k] for k in keys], batch_first=True)
        audio = AudioBatch(torch.tensor([len(waveforms[k]) for k in keys]), waveforms=padded).to(model.device)
        rows = [{**records[k], "id": k} for k in keys]
        with torch.no_grad(), model.inference_ctx:
            predictions = explainer.explain(rows, audio)
        for key, prediction, row in zip(keys, predictions, rows):
            found.append((key, as_result(prediction, row, explainer.format), None))
        bar.update(len(keys))
        waveforms.clear()

    with tqdm(total=len(order), desc="evaluate", unit="file", disable=not progress) as bar:
        audios = read_ahead(hear, [records[key] for key in order], num_workers)
        for key, (waveform, reason) in zip(order, audios):
            try:
                if waveform is None:
                    raise AudioError(reason)
                waveforms[key] = model.check_length(waveform, str(records[key]["wav"])) * gain
            except AudioError as error:
                found.append((key, None, str(error)))
                bar.update(1)
            if len(waveforms) == batch_size:
                flush()
        if waveforms:
            flush()
    found = {key: (line, reason) for key, line, reason in gather(found)}
    lines = [found[key][0] for key in records if found[key][0] is not None]
    failures = {key: found[key][1] for key in records if found[key][1] is not None}
    if not lines:
        raise ValueError(
            f"none of {len(records)} recordings can be used (paths start from data_root); the first: "
            f"{next(iter(failures.values()))}"
        )
    return lines, failures


def score_corpus(lines, mapped, temperature=None, language="en", fields=(), num_resamples=10000, java=False):
    """Every metric of such predictions, over the labels that both sides have.

    The model chooses among these labels alone; ``ua_all_labels`` and ``wa_all_labels`` let it choose among all of its
    own,
    where a label that the corpus lacks is wrong.

    Arguments
    ---------
    lines : list of dict
        Of :func:`predict_corpus`.
    mapped : MappedCorpus
        With the labels.
    temperature : float or dict of str to float, optional
        Of the model, or of each condition.
    language : str
        Of the transcripts.
    fields : sequence of str
        Descriptors to score.
    num_resamples : int
        Of the bootstrap over speakers.
    java : bool
        Whether METEOR and SPICE of the descriptions may start Java.

    Returns
    -------
    dict
        As of :func:`speechbrain_emo.results.compute_results`.
    """
    shared = set(mapped.labels)
    restricted = []
    for line in lines:
        scores = {c: {k: v for k, v in s.items() if k in shared} for c, s in line["scores"].items()}
        restricted.append({**line, "scores": scores})
    metrics = results.compute_results(
        restricted,
        mapped.labels,
        fields,
        language,
        temperature=temperature,
        num_resamples=num_resamples,
        java=java,
    )
    for condition in lines[0]["scores"]:
        answers = [max(line["scores"][condition], key=line["scores"][condition].get) for line in lines]
        scores = results.score_labels(
            [line["emotion"] for line in lines],
            [a if a in shared else None for a in answers],
            [line["speaker"] for line in lines],
            mapped.labels,
            num_resamples=2,
        )
        key = f"test.ser.{condition}"
        metrics.update({f"{key}.ua_all_labels": scores["ua"], f"{key}.wa_all_labels": scores["wa"]})
        metrics[f"{key}.answers"] = dict(Counter(answers).most_common())
    return metrics


def evaluate_corpus(
    model,
    records,
    out,
    label_map=None,
    batch_size=16,
    direct=False,
    level=None,
    language=None,
    context=None,
    progress=True,
    num_workers=0,
    java=False,
):
    """Predict, score and write what ``report`` reads.

    ``predictions.jsonl``, ``results.json``, ``manifest.json`` (the records under the model's labels) and confusion
    matrices.

    Arguments
    ---------
    model : EmotionExplainer
        Loaded model.
    records : dict
        id -> record with complete paths.
    out : str or pathlib.Path
        Folder of the results.
    label_map : dict, optional
        As in :func:`map_corpus`.
    batch_size, direct, level, progress, num_workers :
        As in :func:`predict_corpus`.
    language : str, optional
        Of the transcripts; default: the model's.
    java : bool
        As in :func:`score_corpus`.
    context : dict, optional
        What else ``results.json`` says.

    Returns
    -------
    metrics : dict or None
        None on all processes of a group but the main one, which alone scores and writes.
    mapped : MappedCorpus
    failures : dict of str to str

    Raises
    ------
    ManifestError, ValueError
        If nothing can be evaluated.
    """
    mapped = map_corpus(records, model.labels, label_map)
    lines, failures = predict_corpus(model, mapped.records, batch_size, direct, level, progress, num_workers)
    if world()[0] > 0:
        return None, mapped, failures
    chain = "own_chain" in lines[0]["scores"]
    fields = list(model.explainer.format.descriptor_names) if chain else []
    options = {
        "temperature": {
            "own_chain": model.temperature,
            "speech": model.speech_temperature if chain else model.temperature,
        },
        "language": language or model.language,
        "fields": [f for f in fields if any(line["descriptors"].get(f) for line in lines)],
    }
    metrics = score_corpus(lines, mapped, java=java, **options)
    metrics["test.num_failures"] = len(failures)
    results.write_predictions(out, lines)
    manifest = Path(out) / "manifest.json"
    write_manifest(manifest, mapped.records)
    reports.confusion_pictures(metrics, mapped.labels, Path(out), "the evaluated corpus")
    run = results.run_context(
        evaluation={"labels": mapped.labels, **options},
        label_map=mapped.label_map,
        left_out=mapped.notes,
        failures=failures,
        direct=direct,
        level=level,
        manifest=str(manifest),
        **(context or {}),
    )
    results.write_results(out, metrics, run)
    return metrics, mapped, failures
