"""Does the model do what it says? Measurements, shifted audio, faults of the recording, and the answer's own words.

- ``faithfulness``: predicted pitch, volume and speed against those measured in the audio.
- ``shifts``: the audio is shifted; does the predicted descriptor follow? (``dataio/audio_changes.py``)
- ``robustness``: UA, WER and descriptors under noise, reverberation, a telephone and gain.
- ``prefix``: the label after the gold descriptors, after the model's own, after another recording's, and after
  descriptors with low and high exchanged: does the label listen to the descriptors?

Each kind of audio is predicted once over the same recordings; predictions are kept in a folder as JSON lines, so an
interrupted run goes on with the next kind.
"""

import hashlib
import json
import re
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_emo import results
from speechbrain_emo.brains.explainer import as_result
from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.dataio.audio_changes import FAULTS, SHIFTS, change_audio
from speechbrain_emo.dataio.descriptors import VALUES, describe, measure
from speechbrain_emo.metrics.descriptors import faithfulness, shift_response
from speechbrain_emo.prompts.tasks import TRANSCRIPT, keyed_random, keyed_seed

#: What can be verified.
PARTS = ("faithfulness", "shifts", "robustness", "prefix")


class Verification:
    """Predicts changed recordings with a trained model and scores what comes out.

    Arguments
    ---------
    explainer : Explainer
        With a model that has its encoder.
    records : sequence of mapping
        Records with ``id``; ``emotion`` and descriptors where the corpus has them.
    load : callable
        Record -> float32 (samples,) at ``sample_rate``.
    sample_rate : int
        Hz.
    folder : str or pathlib.Path
        Where predictions are kept.
    device : str or torch.device
        Of the model.
    context : context manager, optional
        Around every forward pass: the evaluation's precision.
    thresholds : Thresholds, optional
        Of the training set's measurements; without them faithfulness is not computed.
    batch_size : int
        Recordings at a time.
    evaluation : mapping, optional
        ``language``, ``closed_set`` and ``temperature`` as of ``compute_results``.
    progress : bool, optional
        Show bars. Default: on a terminal.

    Raises
    ------
    ValueError
        If there is no record.

    Example
    -------
    >>> Verification.__name__
    'Verification'
    """

    def __init__(
        self,
        explainer,
        records,
        load,
        sample_rate,
        folder,
        device="cpu",
        context=None,
        thresholds=None,
        batch_size=16,
        evaluation=None,
        progress=None,
    ):
        self.records = list(records)
        if not self.records:
            raise ValueError("there is no record to verify on: is the manifest empty?")
        self.explainer = explainer
        self.format = explainer.format
        self.load = load
        self.sample_rate = sample_rate
        self.folder = Path(folder)
        self.device = device
        self.context = context if context is not None else torch.no_grad()
        self.thresholds = thresholds
        self.batch_size = batch_size
        self.evaluation = dict(evaluation or {})
        self.hidden = None if progress is None else not progress

    # -- predictions ---------------------------------------------------------------------------------------

    def predict(self, change="clean"):
        """Predictions of every record after a change of its audio, from the folder where they are there already.

        Arguments
        ---------
        change : str
            Of ``dataio.audio_changes``.

        Returns
        -------
        list of dict
            Lines as of ``predictions.jsonl``, in the order of the records.
        """
        file = self.folder / f"{change}-{self._key()}.jsonl"
        if file.is_file():
            return results.read_predictions(file)
        lines = {}
        # Similar lengths together; no result depends on it.
        order = sorted(range(len(self.records)), key=lambda i: (self.records[i].get("duration") or 0, i))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        for numbers in tqdm(batches, desc=change, unit="batch", disable=self.hidden):
            chosen = [self.records[i] for i in numbers]
            waveforms = [self._changed(record, change) for record in chosen]
            chains = self._chains(chosen) if change == "clean" else None
            with torch.no_grad(), self.context:
                predictions = self.explainer.explain(
                    chosen, self._batch(waveforms), gold=chains is not None, chains=chains
                )
            for i, prediction, waveform in zip(numbers, predictions, waveforms):
                lines[i] = as_result(prediction, self.records[i], self.format)
                if (change == "clean" or change in SHIFTS) and self.thresholds is not None:
                    lines[i]["measured_descriptors"] = self._measured(self.records[i], waveform)
        lines = [lines[i] for i in range(len(self.records))]
        results.write_predictions(file, lines)
        return lines

    def _key(self):
        """Which records, model weights and settings predictions are of."""
        model = self.explainer.model
        sums = [float(v.detach().double().sum()) for v in model.front_end.state_dict().values()]
        sums += [float(p.detach().double().sum()) for p in model.llm.parameters()]
        told = None if self.thresholds is None else self.thresholds.to_dict()
        key = [[r["id"] for r in self.records], sums, model.encoder.fingerprint, told]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8")).hexdigest()[:12]

    def _batch(self, waveforms):
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        return AudioBatch(torch.tensor([len(w) for w in waveforms]), waveforms=padded).to(self.device)

    def _changed(self, record, change):
        waveform = self.load(record)
        return change_audio(waveform, self.sample_rate, change, keyed_seed("change", change, record["id"]))

    def _measured(self, record, waveform):
        """Descriptors of the audio itself."""
        measurement = measure(
            waveform, self.sample_rate, record.get(TRANSCRIPT), self.evaluation.get("language", "en")
        )
        found = describe(measurement, record.get("gender"), self.thresholds)
        spec = self.format.spec
        # A format without a value for what is absent cannot be right about it.
        return {name: found[name] for name in VALUES if name in found and found[name] in spec.get(name, ())}

    def _chains(self, chosen):
        """Gold answers whose descriptors are another recording's, or have low and high exchanged."""
        if self.explainer.chain_task is None:
            return None
        shuffled, swapped = [], []
        for record in chosen:
            own = self.explainer.gold_chain(record)
            other = self.explainer.gold_chain(self._other(record))
            names = [n for n in self.explainer.chain_task.answer if n in self.format.descriptor_names]
            shuffled.append({**own, **{n: other[n] for n in names if other[n] is not None}})
            swapped.append({n: exchanged(v) if n in names else v for n, v in own.items()})
        return {"shuffled_descriptors": shuffled, "swapped_descriptors": swapped}

    def _other(self, record):
        """Another recording with another emotion, drawn by the id; any other where all have the same."""
        others = [r for r in self.records if r.get("emotion") != record.get("emotion")]
        others = others or [r for r in self.records if r["id"] != record["id"]] or [record]
        return keyed_random("shuffled descriptors", record["id"]).choice(others)

    # -- scores --------------------------------------------------------------------------------------------

    def run(self, parts=PARTS):
        """Predict and score the parts.

        Arguments
        ---------
        parts : sequence of str
            Of :data:`PARTS`.

        Returns
        -------
        tuple
            Metrics (dict; see the keys in ``docs/trust.md``) and the clean predictions with everything that was
            found about each recording (list of dict).

        Raises
        ------
        ValueError
            If a part is unknown or needs what the model or the records do not have.
        """
        unknown = [p for p in parts if p not in PARTS]
        if unknown:
            raise ValueError(f"unknown parts {unknown} of the verification; allowed: {', '.join(PARTS)}")
        descriptive = self.explainer.chain_task is not None
        for part in ("faithfulness", "shifts", "prefix"):
            if part in parts and not descriptive:
                raise ValueError(
                    f"{part}: this model gives a label without descriptors (no chain task); leave the part out"
                )
        if "faithfulness" in parts and self.thresholds is None:
            raise ValueError(
                "faithfulness: the model holds no measurements of its training set; add them with "
                "`python -m speechbrain_emo calibrate FOLDER`, or leave the part out"
            )
        clean, metrics = self.predict(), {}
        if "shifts" in parts:
            for shift in SHIFTS:
                for line, moved in zip(clean, self.predict(shift)):
                    line.setdefault("shifted_descriptors", {})[shift] = moved["predicted_descriptors"]
                    line.setdefault("shifted_emotion", {})[shift] = _best(moved)
                    line.setdefault("shifted_measured", {})[shift] = moved.get("measured_descriptors") or {}
        if {"faithfulness", "shifts"} & set(parts):
            found = self._score(clean, "test")
            metrics.update(
                {k: v for k, v in found.items() if k.startswith(("test.sed.faithfulness", "test.sed.shift_"))}
            )
            # What right answers would reach: words of a corpus need not be quantiles of a measurement.
            known = faithfulness(
                [line.get("descriptors") for line in clean],
                [line.get("measured_descriptors") for line in clean],
                list(results.FIELD_ORDERS),
            )
            for name, scores in known.items():
                if scores is not None and "faithfulness" in parts:
                    metrics[f"test.sed.faithfulness.{name}_of_corpus"] = scores.accuracy
            for shift in SHIFTS if "shifts" in parts else ():
                same = [line["shifted_emotion"][shift] == _best(line) for line in clean]
                metrics[f"test.sed.shift_{shift}.emotion_changed"] = 1 - sum(same) / len(same)
                if self.thresholds is not None:
                    metrics[f"test.sed.shift_{shift}.measured_share_right"] = _measured_response(clean, shift)
        if "robustness" in parts:
            for fault in FAULTS:
                lines = clean if fault == "clean" else self.predict(fault)
                metrics.update(_numbers(self._score(lines, f"robust_{fault}")))
        if "prefix" in parts:
            metrics.update(self._prefix(clean))
        return metrics, clean

    def _score(self, lines, split):
        fields = self.format.descriptor_names if self.explainer.chain_task is not None else ()
        # Sentences are not scored here: what changes is told by the closed fields.
        return results.compute_results(
            lines,
            labels=list(self.format.labels),
            fields=[f for f in fields if f != "description"],
            split=split,
            java=False,
            num_resamples=1000,
            **self.evaluation,
        )

    def _prefix(self, clean):
        """UA after each kind of descriptors, and how often the label differs from that after the gold ones."""
        usable = [line for line in clean if all((line["descriptors"] or {}).get(n) for n in self._asked())]
        if not usable:
            raise ValueError(
                "prefix: no record has the descriptors of the answer format; leave the part out for this corpus"
            )
        found = self._score(usable, "prefix")
        metrics = {k: v for k, v in _numbers(found).items() if k.startswith("prefix.ser.")}
        for condition in ("own_chain", "shuffled_descriptors", "swapped_descriptors"):
            changed = [_best(line, condition) != _best(line, "gold_descriptors") for line in usable]
            metrics[f"prefix.ser.{condition}.changed"] = sum(changed) / len(changed)
        return metrics

    def _asked(self):
        """Ordered descriptors of the answer: what is exchanged."""
        return [n for n in self.explainer.chain_task.answer if n in results.FIELD_ORDERS]


def _measured_response(lines, shift):
    """The control: in how many recordings the measured descriptor follows the shift."""
    name, _, way = shift.rpartition("_")
    return shift_response(
        [line["measured_descriptors"].get(name) for line in lines],
        [line["shifted_measured"][shift].get(name) for line in lines],
        1 if way == "up" else -1,
        results.FIELD_ORDERS[name],
    ).share_right


def exchanged(text):
    """Descriptor text with the lowest and the highest values exchanged, also inside a sentence.

    Example
    -------
    >>> exchanged("high"), exchanged("a low voice speaks at a fast pace"), exchanged(None)
    ('low', 'a high voice speaks at a slow pace', None)
    """
    if text is None:
        return None
    other = {}
    for order in results.FIELD_ORDERS.values():
        other[order[0]], other[order[-1]] = order[-1], order[0]
    return re.sub(rf"\b({'|'.join(other)})\b", lambda found: other[found[0]], text)


def _best(line, condition=None):
    """The label with the highest score of a line; of the headline condition unless one is named."""
    scores = line["scores"]
    chosen = scores[condition or next(c for c in results.SYSTEM_CONDITIONS if c in scores)]
    return max(chosen, key=chosen.get)


def _numbers(metrics):
    """Metrics that are plain numbers: no confusion matrices, no reasons."""
    return {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def verification_tables(metrics):
    """Tables for the terminal, RESULTS.md and the report.

    Arguments
    ---------
    metrics : mapping
        Of :meth:`Verification.run`, also among others as in ``results.json``.

    Returns
    -------
    dict
        Title -> rows for ``results.format_table``; only what is there.

    Example
    -------
    >>> list(verification_tables({"robust_clean.ser.own_chain.ua": 0.8}))
    ['Robustness']
    """
    tables = {}
    rows = []
    for name in results.FIELD_ORDERS:
        row = {"descriptor": name}
        key = f"test.sed.faithfulness.{name}"
        if metrics.get(key) is not None:
            row.update({"agrees with measurement": metrics[key], "balanced": metrics[f"{key}_balanced"]})
            row["corpus' words agree"] = metrics.get(f"{key}_of_corpus")
        for way, shift in (("up", f"{name}_up"), ("down", f"{name}_down")):
            key = f"test.sed.shift_{shift}"
            if f"{key}.right" in metrics:
                row[f"follows {way}"] = metrics[f"{key}.share_right"]
                row[f"signal follows {way}"] = metrics.get(f"{key}.measured_share_right")
                row[f"{way}: right/wrong/unmoved/saturated"] = "/".join(
                    str(metrics[f"{key}.{part}"]) for part in ("right", "wrong", "unmoved", "saturated")
                )
                row[f"emotion changed {way}"] = metrics.get(f"{key}.emotion_changed")
        if len(row) > 1:
            rows.append(row)
    if rows:
        tables["Faithfulness: measurement, and shifted audio"] = rows
    rows = []
    for fault, what in FAULTS.items():
        prefix = f"robust_{fault}."
        ua = [metrics.get(f"{prefix}ser.{c}.ua") for c in ("own_chain", "speech")]
        if ua == [None, None]:
            continue
        row = {"audio": what, "UA own_chain": ua[0], "UA speech": ua[1]}
        row["WER"] = metrics.get(f"{prefix}asr.generated.wer")
        row.update({n: metrics.get(f"{prefix}sed.generated.{n}") for n in results.FIELD_ORDERS})
        row["unparsable"] = metrics.get(f"{prefix}ser.generated.unparsable")
        rows.append({k: v for k, v in row.items() if v is not None})
    if rows:
        tables["Robustness"] = rows
    rows = []
    for condition, what in (
        ("gold_descriptors", "gold"),
        ("own_chain", "predicted (own transcript too)"),
        ("shuffled_descriptors", "of a recording of another emotion"),
        ("swapped_descriptors", "low and high, slow and fast exchanged"),
        ("speech", "none: the label asked for directly"),
    ):
        key = f"prefix.ser.{condition}"
        if metrics.get(f"{key}.ua") is not None:
            row = {"descriptors before the label": what, "UA": metrics[f"{key}.ua"]}
            if metrics.get(f"{key}.changed") is not None:
                row["label differs from gold"] = metrics[f"{key}.changed"]
            rows.append(row)
    if rows:
        tables["Does the label listen to the descriptors?"] = rows
    return tables
