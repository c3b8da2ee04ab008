"""What stands beside the numbers of an experiment: baselines, latents, pictures, the table."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from speechbrain_emo import plots, results
from speechbrain_emo.baselines import BaselineRun, pool_mean_std, probe_predictions, text_only_predictions
from speechbrain_emo.dataio.manifest import split_hash
from speechbrain_emo.metrics.probes import latent_map, probe_latents
from speechbrain_emo.prompts.tasks import keyed_random

MAX_UTTERANCES = 600
FRAMES_PER_UTTERANCE = 5


def baselines(experiment):
    """Predictions of what the system is measured against: a linear probe and the words alone.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        After training.

    Returns
    -------
    list of BaselineRun
        For ``merge_predictions``.
    """
    wanted = experiment.hparams["evaluation"].get("baselines", ["probe", "text_only"])
    manifests, labels = experiment.manifests, list(experiment.format.labels)
    known, test = {**manifests["train"], **manifests["valid"]}, manifests["test"]
    runs = []
    if "text_only" in wanted and all(r.get("transcript") for r in test.values()):
        language = experiment.hparams.get("language", "en")
        with threadpool_limits(1):
            runs.append(text_only_predictions(known, test, labels, language))
    if "probe" in wanted:
        runs.append(_probe(experiment, known, test, labels))
    return runs


def _probe(experiment, known, test, labels):
    """The linear probe; kept beside the feature cache, since it is the same for every seed and ablation."""
    spec = experiment.format.spec
    fields = [n for n in experiment.format.descriptor_names if isinstance(spec[n], tuple)]
    key = [experiment.encoder.fingerprint, split_hash(experiment.manifests), labels, fields]
    digest = hashlib.sha256(json.dumps(key).encode("utf-8")).hexdigest()[:16]
    kept = Path(experiment.hparams["cache_folder"]) / f"probe-{digest}.jsonl"
    if kept.is_file():
        return BaselineRun("probe", results.read_predictions(kept))
    features = {}
    for split in experiment.data:
        features.update(pooled_features(experiment, split))
    # One thread: the fits are small, and two threads beside another process cost minutes. Single layers only: all
    # of them together are no better on the demo (0.800 against 0.807) and take most of the time.
    with threadpool_limits(1):
        run = probe_predictions(known, test, features, features, labels, fields, max_concatenated=0)
    results.write_predictions(kept, run.predictions)
    return run


def pooled_features(experiment, split):
    """Mean and standard deviation over time of the frozen encoder's layers.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        With its encoder.
    split : str
        Name of a manifest.

    Returns
    -------
    dict of str to np.ndarray
        Record id -> float32 (L, 2 D).
    """
    records = experiment.data[split].records
    device = experiment.brain.device
    pooled = {}
    for i in tqdm(range(len(records)), desc=f"pool {split}"):
        x = records.audio(i)[0]
        if x.dim() == 1:
            encoder = experiment.encoder.to(device)
            x = encoder(x[None].to(device), torch.tensor([len(x)], device=device)).features[0].cpu()
        pooled[records[i]["id"]] = pool_mean_std(x.float().numpy())
    return pooled


@torch.no_grad()
def collect_latents(experiment, splits=("valid", "test")):
    """Means of every branch: one a recording, and some frames with their phonemes.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        After training.
    splits : sequence of str
        Where from; not the training records.

    Returns
    -------
    tuple
        (utterances, frames): dicts with ``emotion``, ``speaker``, ``phoneme`` lists and ``latents``, branch ->
        float32 (N, Z).
    """
    utterances = {"emotion": [], "speaker": [], "latents": {}}
    frames = {"phoneme": [], "speaker": [], "latents": {}}
    model, front = experiment.brain.unwrapped(), experiment.model.front_end
    frame_rate = experiment.encoder.frame_rate
    for split in splits:
        data = experiment.data[split]
        for i in list(range(len(data.records)))[
            :: max(len(data.records) // (MAX_UTTERANCES // len(splits)), 1)
        ]:
            record = data.records[i]
            audio = data.collate_audio([data.records.audio(i)[0]]).to(experiment.brain.device)
            features, num_frames = model.features(audio)
            latents = {b: z[0].float().cpu() for b, z in front(features, num_frames).latents.items()}
            for branch, z in latents.items():
                utterances["latents"].setdefault(branch, []).append(z.mean(0).numpy())
            utterances["emotion"].append(record["emotion"])
            utterances["speaker"].append(record["speaker"])
            phones = record.get("phones") or []
            chosen = keyed_random("latents", record["id"]).sample(
                phones, min(FRAMES_PER_UTTERANCE, len(phones))
            )
            for phone in chosen:
                at = min(int((phone["start"] + phone["end"]) / 2 * frame_rate), int(num_frames[0]) - 1)
                for branch, z in latents.items():
                    frames["latents"].setdefault(branch, []).append(z[at].numpy())
                frames["phoneme"].append(phone["phone"])
                frames["speaker"].append(record["speaker"])
    for part in (utterances, frames):
        part["latents"] = {b: np.stack(v) for b, v in part["latents"].items()}
    return utterances, frames


def latents(experiment):
    """Held-out probe accuracy and silhouette of every branch for emotion, speaker and phoneme, with the map.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        After training.

    Returns
    -------
    dict
        ``test.latent.<branch>.<kind>_probe`` and ``..._silhouette``.
    """
    if experiment.model.front_end is None:
        return {}
    utterances, frames = collect_latents(experiment)
    parts = [("recordings", utterances, ("emotion", "speaker")), ("frames", frames, ("phoneme",))]
    coordinates, labels, scores, metrics = {}, {}, {}, {}
    for unit, part, kinds in parts:
        if not part["latents"]:
            continue
        found = probe_latents(part["latents"], {k: part[k] for k in kinds}, part["speaker"])
        for branch, z in part["latents"].items():
            name = f"{branch}, {unit}"
            with threadpool_limits(1):
                coordinates[name] = latent_map(z)
            labels[name] = {k: part.get(k) if k in kinds else None for k in ("emotion", "speaker", "phoneme")}
            labels[name] = {k: v for k, v in labels[name].items() if v is not None}
            for kind in kinds:
                score = found[(branch, kind)]
                scores[(name, kind)] = score
                metrics[f"test.latent.{branch}.{kind}_probe"] = score.accuracy
                metrics[f"test.latent.{branch}.{kind}_silhouette"] = score.silhouette
    if not coordinates:
        return metrics
    plots.plot_latent_maps(
        coordinates,
        labels,
        scores,
        experiment.output_folder / "latents.png",
        "Latent means of held-out voices",
    )
    return metrics


def pictures(experiment, metrics):
    """Confusion matrices, layer weights and training curves as PNG files.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        After its evaluation.
    metrics : dict
        Of ``results.json``.
    """
    folder = experiment.output_folder
    confusion_pictures(metrics, list(experiment.format.labels), folder)
    if hasattr(experiment.model.front_end, "mixing_weights"):
        plots.plot_layer_weights(experiment.model.front_end.mixing_weights(), folder / "layer_weights.png")
    training_pictures(experiment)


def training_pictures(experiment):
    """Training curves as ``training.png``.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        After training.
    """
    folder = experiment.output_folder
    log = []
    for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        flat = {"epoch": entry["epoch"], "phase": entry["phase"]}
        for part in ("train", "valid"):
            for name, value in entry[part].items():
                if name in ("loss", "token_accuracy") or name.startswith("kl/"):
                    flat[f"{part} {name}"] = value
        log.append(flat)
    plots.plot_training_curves(log, folder / "training.png")


def confusion_pictures(metrics, labels, folder, of="held-out speakers"):
    """A confusion matrix of each of the system's headline conditions.

    Arguments
    ---------
    metrics : dict
        Of ``results.json``.
    labels : sequence of str
        The labels in order.
    folder : pathlib.Path
        Where ``confusion_<condition>.png`` goes.
    of : str
        Whose recordings, for the title.
    """
    for condition in ("own_chain", "speech"):
        confusion = metrics.get(f"test.ser.{condition}.confusion")
        if confusion is not None:
            title = f"label|{condition}, {of}"
            plots.plot_confusion_matrix(
                np.array(confusion), labels, folder / f"confusion_{condition}.png", title
            )


def table(metrics):
    """The result table for the terminal."""
    return results.format_table(results.result_rows(metrics), style="plain")
