"""Training and evaluation of the word annotator, from its YAML to results, pictures and a model that loads.

``run_word_emotion`` is what the YAML's ``run`` names. Weak supervision gives every word the label of its sentence
and trains on utterances of one emotion only; word supervision uses labels of words.
"""

import json
import logging
import pathlib
import time
from dataclasses import dataclass

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, infer_device, run_on_main
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from speechbrain_emo import plots, results
from speechbrain_emo.baselines import pool_mean_std, pooled_linear_probe
from speechbrain_emo.brains.checkpointing import (
    AtomicCheckpointer,
    JsonState,
    RandomState,
    load_module,
    save_module,
)
from speechbrain_emo.brains.speech_llm_experiment import NOT_SETTINGS, plain_hparams
from speechbrain_emo.brains.stages import warm_cosine
from speechbrain_emo.brains.word_emotion_data import (
    IGNORE,
    WordBatches,
    WordData,
    WordTargets,
    align_records,
    frames_of,
)
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.feature_cache import FeatureCache
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, split_hash, write_text_atomically
from speechbrain_emo.lobes.word_emotion import DIMENSIONS, WordSpans, intensity_levels, word_emotion_loss
from speechbrain_emo.metrics.calibration import fit_temperature, label_probabilities
from speechbrain_emo.metrics.classification import classification_scores
from speechbrain_emo.metrics.word_emotion import word_scores

logger = logging.getLogger(__name__)

PHASE = "words"
CONDITIONS = {
    "annotator": "annotator, word by word",
    "utterance_probe": "sentence label on every word: linear probe, pooled frozen features",
    "utterance_annotator": "sentence label on every word: annotator over the whole utterance",
    "majority": "majority",
    "oracle": "oracle (true synthesis parameters)",
}


@dataclass
class WordPrediction:
    """What the annotator says of one word.

    Arguments
    ---------
    emotion : str
        Most probable label.
    intensity : str
        From the arousal.
    probabilities : dict
        Label -> probability, summing to 1.
    dimensions : dict
        ``valence``, ``arousal``, ``dominance`` -> value in (0, 1).
    """

    emotion: str
    intensity: str
    probabilities: dict
    dimensions: dict

    @property
    def confidence(self):
        """Probability of the label."""
        return self.probabilities[self.emotion]


class WordPredictor:
    """From features and words in seconds to emotions: the one path of evaluation and inference.

    Arguments
    ---------
    encoder : SpeechEncoder or Emotion2Vec
        Frozen.
    model : WordEmotionModel
        Trained.
    labels : sequence of str
        In the order of the classes.
    intensities : sequence of str
        Weakest first.
    thresholds : sequence of float
        Of ``intensity_levels``, one fewer than there are intensities.
    temperature : float
        Divides the logits before the softmax.

    Raises
    ------
    ValueError
        If numbers do not fit.

    Example
    -------
    >>> WordPredictor(None, None, ["hap", "sad"], ["low", "high"], [2.5, 3.5])
    Traceback (most recent call last):
    ValueError: 2 thresholds for the intensities ['low', 'high']: give one fewer than intensities, rising
    """

    def __init__(self, encoder, model, labels, intensities, thresholds, temperature=1.0):
        self.encoder, self.model = encoder, model
        self.labels, self.intensities = list(labels), list(intensities)
        self.thresholds, self.temperature = [float(t) for t in thresholds], float(temperature)
        if len(self.thresholds) != len(self.intensities) - 1 or sorted(self.thresholds) != self.thresholds:
            raise ValueError(
                f"{len(self.thresholds)} thresholds for the intensities {self.intensities}: give one fewer than "
                "intensities, rising"
            )
        if model is not None and model.num_labels != len(self.labels):
            raise ValueError(
                f"the model tells {model.num_labels} classes apart, but labels are {self.labels}"
            )

    @torch.no_grad()
    def predict(self, features, intervals):
        """Emotions of the words of one utterance.

        Arguments
        ---------
        features : torch.Tensor
            (T, L, D) of the encoder.
        intervals : sequence of (float, float)
            Start and end of each word in seconds.

        Returns
        -------
        list of WordPrediction
        """
        if not len(intervals):
            return []
        logits, dimensions = self.raw(features, intervals)
        return self.read(logits, dimensions)

    @torch.no_grad()
    def raw(self, features, intervals):
        """(logits (W, K), dimensions (W, 3)) on the CPU, float32."""
        device = next(self.model.parameters()).device
        spans = [(0, *frames_of(start, end, len(features), self.encoder)) for start, end in intervals]
        words = WordSpans(*torch.tensor(spans, dtype=torch.int64).unbind(1))
        output = self.model(
            features[None].to(device), torch.tensor([len(features)], device=device), words.to(device)
        )
        return output.logits.float().cpu(), output.dimensions.float().cpu()

    def read(self, logits, dimensions):
        """Predictions of logits (W, K) and dimensions (W, 3)."""
        probabilities = label_probabilities(logits.numpy(), self.temperature)
        levels = intensity_levels(dimensions[:, DIMENSIONS.index("arousal")], self.thresholds)
        return [
            WordPrediction(
                self.labels[int(row.argmax())],
                self.intensities[int(level)],
                dict(zip(self.labels, (float(p) for p in row))),
                dict(zip(DIMENSIONS, (float(v) for v in values))),
            )
            for row, values, level in zip(probabilities, dimensions, levels)
        ]

    @torch.no_grad()
    def encode(self, waveform):
        """Features (T, L, D) of one waveform (samples,) at the encoder's rate."""
        device = next(self.model.parameters()).device
        self.encoder.to(device)
        return self.encoder(waveform[None].to(device), torch.tensor([len(waveform)], device=device)).features[
            0
        ]


class WordEmotionBrain(sb.Brain):
    """Cross-entropy of the words' labels and squared error of their dimensions.

    A batch is one optimiser step; losses are sums over its words divided by their number over all processes.

    Arguments
    ---------
    modules : dict
        ``{"model": WordEmotionModel}``.
    train_batches, valid_batches : WordBatches
        What is trained and validated on.
    encoder : SpeechEncoder or Emotion2Vec, optional
        Encodes live where batches hold waveforms.
    train_log : str or pathlib.Path, optional
        JSON-lines file that gets a line an epoch.
    opt_class, hparams, run_opts, checkpointer :
        As in ``sb.Brain``. hparams: ``seed``, ``number_of_epochs``, ``lr``, ``warmup``, ``dimension_weight``,
        ``label_smoothing``.

    Example
    -------
    >>> WordEmotionBrain.__mro__[1].__name__
    'Brain'
    """

    def __init__(
        self,
        modules,
        train_batches,
        valid_batches,
        encoder=None,
        train_log=None,
        opt_class=torch.optim.AdamW,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.model = self.modules["model"]
        self.train_batches, self.valid_batches = train_batches, valid_batches
        self.encoder = None if encoder is None else encoder.to(self.device)
        self.train_log = None if train_log is None else pathlib.Path(train_log)
        self.epoch_counter = sb.utils.epoch_loop.EpochCounter(self.hparams.number_of_epochs)
        self.num_steps = len(train_batches) * self.hparams.number_of_epochs
        self.progress = JsonState(history=[], seconds=0.0)
        if checkpointer is not None:
            checkpointer.add_recoverable("model", self.model, load_module, save_module)
            checkpointer.add_recoverable("epoch_counter", self.epoch_counter)
            checkpointer.add_recoverable("progress", self.progress)
            checkpointer.add_recoverable("random_state", RandomState())

    def train_all(self, progressbar=None):
        """Train every epoch that is not done yet, from the last checkpoint on."""
        if self.checkpointer is not None:
            self.checkpointer.remove_partial()
        loaders = [
            torch.utils.data.DataLoader(batches, batch_size=None)
            for batches in (self.train_batches, self.valid_batches)
        ]
        self.fit(self.epoch_counter, *loaders, progressbar=progressbar)

    def load_best(self):
        """Load the weights with the lowest validation loss.

        Raises
        ------
        ValueError
            If there is no checkpoint.
        """
        if self.checkpointer is None:
            return
        best = self.checkpointer.best(PHASE)
        if not best:
            raise ValueError(f"no checkpoint in {self.checkpointer.checkpoints_dir}: train first")
        self.checkpointer.load_only(best[0], ["model"])

    def init_optimizers(self):
        """One optimiser of one group, since SpeechBrain clips the first group only."""
        self.optimizer = self.opt_class(self.model.parameters(), lr=self.hparams.lr)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    # -- a step --------------------------------------------------------------------------------------------

    def on_fit_batch_start(self, batch, should_step):
        """Warm up linearly, then decay along a cosine to a twentieth."""
        factor = warm_cosine(self.optimizer_step, self.num_steps, self.hparams.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr * factor

    def compute_forward(self, batch, stage):
        """The model's output over a batch."""
        batch = batch.to(self.device)
        features, num_frames = batch.features, batch.num_frames
        if features is None:
            encoded = self.encoder(batch.waveforms, batch.num_samples)
            features, num_frames = encoded.features, encoded.num_frames
        return self.modules["model"](features, num_frames, batch.words)

    def compute_objectives(self, predictions, batch, stage):
        """The loss of a batch over its words on all processes."""
        batch = batch.to(self.device)
        smoothing = self.hparams.label_smoothing if stage == sb.Stage.TRAIN else 0.0
        loss = word_emotion_loss(predictions, batch.labels, batch.dimensions, smoothing)
        counts = torch.stack([loss.num_labels, loss.num_dimensions]).to(torch.float64)
        world = 1
        if (
            stage == sb.Stage.TRAIN
            and torch.distributed.is_available()
            and torch.distributed.is_initialized()
        ):
            torch.distributed.all_reduce(counts)
            # DistributedDataParallel averages over ranks; the loss is a sum over them.
            world = torch.distributed.get_world_size()
        self.sums["labels"] += float(loss.label_sum.detach())
        self.sums["num_labels"] += int(loss.num_labels)
        self.sums["dimensions"] += float(loss.dimension_sum.detach())
        self.sums["num_dimensions"] += int(loss.num_dimensions)
        if stage != sb.Stage.TRAIN:
            known = batch.labels != IGNORE
            self.true += batch.labels[known].tolist()
            self.said += predictions.logits.argmax(-1)[known].tolist()
        labels = loss.label_sum / counts[0].clamp_min(1).float()
        dimensions = loss.dimension_sum / counts[1].clamp_min(1).float()
        return world * (labels + self.hparams.dimension_weight * dimensions)

    # -- epochs --------------------------------------------------------------------------------------------

    def on_stage_start(self, stage, epoch=None):
        """Draw the epoch's order; what is random in it follows from the seed and the epoch."""
        self.sums = {"labels": 0.0, "num_labels": 0, "dimensions": 0.0, "num_dimensions": 0}
        self.true, self.said = [], []
        self.started = time.time()
        if stage == sb.Stage.TRAIN:
            self.train_batches.set_epoch(epoch)
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            torch.manual_seed((self.hparams.seed * 100003 + epoch) * 1009 + rank)

    def _stats(self):
        stats = {"label_loss": self.sums["labels"] / max(self.sums["num_labels"], 1)}
        stats["dimension_loss"] = self.sums["dimensions"] / max(self.sums["num_dimensions"], 1)
        stats["loss"] = stats["label_loss"] + self.hparams.dimension_weight * stats["dimension_loss"]
        if self.true:
            num = self.model.num_labels
            scores = classification_scores(self.true, self.said, list(range(num)))
            stats.update(accuracy=scores.wa, ua=scores.ua, macro_f1=scores.macro_f1)
        return stats

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the epoch and save a checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {**self._stats(), "seconds": time.time() - self.started}
            self.progress["seconds"] += self.train_stats["seconds"]
        elif stage == sb.Stage.VALID:
            line = {"epoch": epoch, "phase": PHASE, "train": self.train_stats, "valid": self._stats()}
            self.progress["history"].append(line)
            if if_main_process():
                shown = {k: round(v, 4) for k, v in line["valid"].items()}
                logger.info(f"epoch {epoch}: train {self.train_stats['loss']:.4f}, valid {shown}")
                if self.train_log is not None:
                    # From the recoverable history, so that a resumed run has every line once.
                    text = "".join(json.dumps(entry) + "\n" for entry in self.progress["history"])
                    write_text_atomically(self.train_log, text)
            if self.checkpointer is not None:
                self.checkpointer.save_checkpoint(
                    meta={"phase": PHASE, "loss": line["valid"]["loss"]}, verbosity=logging.DEBUG
                )
                self.checkpointer.keep_best([PHASE])


class WordEmotionExperiment:
    """Builds, trains, evaluates and exports what a YAML describes.

    Arguments
    ---------
    hparams : dict
        Loaded YAML; its keys are described in ``hparams/demo_word_emotion.yaml``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Example
    -------
    >>> WordEmotionExperiment.__name__
    'WordEmotionExperiment'
    """

    def __init__(self, hparams, run_opts):
        self.hparams, self.run_opts = hparams, run_opts
        self.output_folder = pathlib.Path(hparams["output_folder"])
        self.started = time.time()
        self.labels = list(hparams["labels"])
        arguments = (self.labels, hparams.get("label_map"))
        own = (hparams.get("dimensions"), hparams.get("rating_scale", (1, 5)))
        self.targets = WordTargets(*arguments, hparams["supervision"], *own)
        # The words of the test part keep their own labels, whatever training sees.
        self.truth = WordTargets(*arguments, "word", *own)
        self.rejected = {}
        self.records = {split: self._records(split) for split in ("train", "valid", "test")}
        torch.manual_seed(hparams["seed"])
        self.encoder = hparams["encoder"]()
        self.cache = self._feature_cache()
        torch.manual_seed(hparams["seed"])
        self.model = hparams["annotator"](
            num_labels=len(self.labels),
            input_size=self.encoder.hidden_size,
            num_encoder_layers=self.encoder.num_layers,
        )
        self.fill_cache()
        data = {
            split: WordData(self.records[split], self.encoder, self.targets, self.cache, self.load)
            for split in ("train", "valid")
        }
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        if if_main_process():
            self.output_folder.mkdir(parents=True, exist_ok=True)
        self.brain = WordEmotionBrain(
            {"model": self.model},
            WordBatches(data["train"], hparams["batch_size"], hparams["seed"], True, *rank),
            WordBatches(data["valid"], hparams["batch_size"]),
            self.encoder if self.cache is None else None,
            self.output_folder / "train_log.jsonl",
            hparams["opt_class"],
            {
                name: hparams[name]
                for name in (
                    "seed",
                    "number_of_epochs",
                    "lr",
                    "warmup",
                    "dimension_weight",
                    "label_smoothing",
                )
            },
            {**dict(run_opts or {}), "max_grad_norm": hparams["max_grad_norm"]},
            AtomicCheckpointer(hparams["save_folder"]),
        )

    def _records(self, split):
        files = self.hparams["manifests"][split]
        records = {}
        for path in [files] if isinstance(files, str) else files:
            roots = self.hparams.get("data_roots") or {"data_root": self.hparams.get("data_folder")}
            part = read_manifest(path, roots)
            twice = sorted(set(part) & set(records))
            if twice:
                raise ManifestError(
                    f"{path}: {len(twice)} ids are in another manifest of {split} too, such as {twice[0]}"
                )
            records.update(part)
        if self.hparams.get("keep_labels"):
            kept = {*self.labels, *(self.hparams.get("label_map") or {}), None}
            records = {key: record for key, record in records.items() if record.get("emotion") in kept}
        if not records:
            raise ManifestError(f"the manifests of {split} ({files}) hold no record")
        if self.hparams.get("aligner"):
            arguments = (
                records,
                dict(self.hparams["aligner"]),
                self.output_folder / f"alignments_{split}.jsonl",
            )
            options = {"min_confidence": self.hparams.get("min_alignment_confidence", 0.0)}
            if if_main_process():
                align_records(*arguments, **options)
            sb.utils.distributed.ddp_barrier()
            records, rejected = align_records(*arguments, **options)
            self.rejected.update(rejected)
        return records

    def _feature_cache(self):
        if self.hparams["cache"] in (False, None, "off"):
            return None
        return FeatureCache(
            self.hparams["cache_folder"],
            self.encoder.fingerprint,
            {"sample_rate": self.encoder.sample_rate},
            mode=self.hparams["cache"],
        )

    def load(self, record):
        """Samples of a record at the encoder's rate."""
        return load_audio(
            record["wav"],
            self.encoder.sample_rate,
            record.get("start"),
            record.get("stop"),
            max_duration=self.hparams.get("max_duration"),
        )

    def fill_cache(self):
        """Encode what the cache lacks, on the main process."""
        if self.cache is None:
            return
        device = dict(self.run_opts or {}).get("device") or infer_device()
        everything = [record for part in self.records.values() for record in part.values()]
        run_on_main(
            self.cache.fill, args=[everything, self.encoder.to(device), self.load], kwargs={"device": device}
        )

    def features(self, record):
        """Features (T, L, D) of a record."""
        if self.cache is not None:
            return self.cache.get(self.cache.key(record))
        return self.predictor().encode(torch.as_tensor(self.load(record), dtype=torch.float32))

    def predictor(self, temperature=1.0):
        """What predicts, with this experiment's settings."""
        model = self.brain.modules["model"]
        model = model.module if isinstance(model, DistributedDataParallel) else model
        return WordPredictor(
            self.encoder,
            model.eval(),
            self.labels,
            self.hparams["intensities"],
            self.hparams["intensity_thresholds"],
            temperature,
        )

    def train(self):
        """Train what is not done yet and load the best weights."""
        self.brain.train_all()
        self.brain.load_best()
        self.brain.modules.eval()

    # -- evaluation ----------------------------------------------------------------------------------------

    def predict(self, split):
        """Raw outputs of the annotator over a split.

        Arguments
        ---------
        split : str
            ``valid`` or ``test``.

        Returns
        -------
        dict
            id -> (logits (W, K), dimensions (W, 3), logits of the whole utterance as one word (K,)).
        """
        predictor, found = self.predictor(), {}
        for key, record in tqdm(
            self.records[split].items(), desc=f"annotate {split}", unit="utt", mininterval=1.0
        ):
            features = self.features(record)
            words = [(row["start"], row["end"]) for row in record["words"]]
            logits, dimensions = predictor.raw(features, [*words, (0.0, record["duration"])])
            found[key] = (logits[:-1], dimensions[:-1], logits[-1])
        return found

    def evaluate(self):
        """Score the words of the test part against truth, beside labels of whole utterances; write the results.

        Returns
        -------
        dict
            ``test.word.<condition>.<metric>``; conditions are the keys of ``CONDITIONS``.
        """
        hparams = self.hparams
        valid, test = self.predict("valid"), self.predict("test")
        logits, targets = [], []
        for key, (rows, _, _) in valid.items():
            numbers = self.targets.of(key, self.records["valid"][key])[0]
            logits += [row.numpy() for row, number in zip(rows, numbers) if number != IGNORE]
            targets += [number for number in numbers if number != IGNORE]
        self.temperature = float(fit_temperature(np.array(logits), np.array(targets)))
        predictor = self.predictor(self.temperature)
        truth, lines = {}, []
        for key, (rows, dimensions, _) in test.items():
            record = self.records["test"][key]
            truth[key] = self.truth.names(key, record)
            words = []
            for row, said, name in zip(record["words"], predictor.read(rows, dimensions), truth[key]):
                words.append(
                    {
                        **{k: row[k] for k in ("word", "start", "end")},
                        "emotion": name,
                        "predicted": said.emotion,
                        "intensity": said.intensity,
                        "probabilities": said.probabilities,
                        **said.dimensions,
                    }
                )
            lines.append(
                {"id": key, "speaker": record["speaker"], "emotion": record.get("emotion"), "words": words}
            )
        labelled = [key for key, names in truth.items() if None not in names]
        if not labelled:
            raise ManifestError(
                "no utterance of the test part has labels of all its words: nothing can be scored"
            )
        own = any("emotion" in row for key in labelled for row in self.records["test"][key]["words"])
        metrics = {
            "test.word.reference": "word labels" if own else "sentence labels",
            "test.word.labelled_utterances": len(labelled),
            "test.word.temperature": self.temperature,
        }
        conditions = {"annotator": {line["id"]: [w["predicted"] for w in line["words"]] for line in lines}}
        conditions.update(self._baselines(valid, test, metrics))
        for name, said in conditions.items():
            scores = word_scores(
                [truth[key] for key in labelled],
                [said[key] for key in labelled],
                [self.records["test"][key]["speaker"] for key in labelled],
                self.labels,
            )
            metrics.update({f"test.word.{name}.{metric}": value for metric, value in scores.items()})
        metrics.update(self._dimension_scores(test, labelled))
        if hparams.get("oracle"):
            oracle = json.loads(pathlib.Path(hparams["oracle"]).read_text(encoding="utf-8"))
            metrics.update({f"test.word.oracle.{k}": oracle[k] for k in ("accuracy", "ua")})
        if if_main_process():
            results.write_predictions(self.output_folder, lines)
            self.write_results(metrics)
            self.pictures(metrics)
            print(results.format_table(word_rows(metrics), style="plain"))
            print(f"Reference: {metrics['test.word.reference']}. Results and pictures: {self.output_folder}")
        return metrics

    def _dimension_scores(self, test, labelled):
        """Mean absolute error and Pearson correlation of the dimensions, and accuracy of the intensity, where known."""
        said, true = [], []
        for key in labelled:
            said.append(test[key][1].numpy())
            true.append(np.array(self.truth.of(key, self.records["test"][key])[1]))
        said, true, found = np.concatenate(said), np.concatenate(true), {}
        for column, name in enumerate(DIMENSIONS):
            known = ~np.isnan(true[:, column])
            a, b = said[known, column], true[known, column]
            if len(a) > 1:
                found[f"test.word.annotator.{name}_mae"] = float(np.abs(a - b).mean())
                if a.std() > 0 and b.std() > 0:
                    found[f"test.word.annotator.{name}_correlation"] = float(np.corrcoef(a, b)[0, 1])
        column = DIMENSIONS.index("arousal")
        known = ~np.isnan(true[:, column])
        if known.any():
            thresholds = self.hparams["intensity_thresholds"]
            pair = [intensity_levels(torch.tensor(x[known, column]), thresholds) for x in (said, true)]
            found["test.word.annotator.intensity_accuracy"] = float((pair[0] == pair[1]).double().mean())
        return found

    def _baselines(self, valid, test, metrics):
        """Labels of whole utterances on every word, and the majority; the best on validation utterances is named."""
        train = {k: r for k, r in self.records["train"].items() if r.get("emotion") is not None}
        words = [name for key, r in self.records["train"].items() for name in self.targets.names(key, r)]
        most = max(self.labels, key=lambda label: sum(name == label for name in words))
        num = {key: len(record["words"]) for key, record in self.records["test"].items()}
        found = {"majority": {key: [most] * count for key, count in num.items()}}
        sentence = {
            key: self.labels[int(whole.argmax())]
            for part in (valid, test)
            for key, (_, _, whole) in part.items()
        }
        single = [k for k, r in self.records["valid"].items() if r.get("emotion") is not None]
        if not train or not single:
            return found
        pooled = {
            key: pool_mean_std(self.features(record).float().cpu().numpy())
            for part in (train, {k: self.records["valid"][k] for k in single}, self.records["test"])
            for key, record in tqdm(part.items(), desc="pool", unit="utt", mininterval=1.0)
        }
        keys = [*single, *self.records["test"]]
        probe = pooled_linear_probe(
            np.stack([pooled[key] for key in train]),
            {"emotion": [self.truth.name(key, record["emotion"]) for key, record in train.items()]},
            np.stack([pooled[key] for key in keys]),
            [record["speaker"] for record in train.values()],
        )["emotion"]
        chosen = {"utterance_annotator": sentence, "utterance_probe": dict(zip(keys, probe.predicted))}
        true = [self.truth.name(key, self.records["valid"][key]["emotion"]) for key in single]
        for name, said in chosen.items():
            accuracy = float(np.mean([said[key] == label for key, label in zip(single, true)]))
            metrics[f"valid.utterance.{name}.accuracy"] = accuracy
            found[name] = {key: [said[key]] * count for key, count in num.items()}
        metrics["test.word.best_utterance_condition"] = max(
            chosen, key=lambda name: metrics[f"valid.utterance.{name}.accuracy"]
        )
        return found

    def write_results(self, metrics):
        """``results.json`` beside the checkpoints."""
        hparams = self.hparams
        audio = sum(r["duration"] for r in self.records["train"].values()) * hparams["number_of_epochs"]
        seconds = self.brain.progress["seconds"]
        context = results.run_context(
            seed=hparams["seed"],
            hparams=plain_hparams(hparams),
            split_hash=split_hash(self.records),
            wall_time=time.time() - self.started,
            audio_seconds=audio,
            command=hparams.get("command"),
            supervision=hparams["supervision"],
            train_seconds=seconds,
            num_records={split: len(part) for split, part in self.records.items()},
            rejected=self.rejected,
            trainable_parameters={"annotator": sum(p.numel() for p in self.model.parameters())},
        )
        results.write_results(self.output_folder, metrics, context)

    def pictures(self, metrics):
        """Confusion matrix, layer weights and training curves."""
        folder = self.output_folder
        plots.plot_confusion_matrix(
            np.array(metrics["test.word.annotator.confusion"]),
            self.labels,
            folder / "confusion_words.png",
            "Words, held-out speakers",
        )
        plots.plot_layer_weights(self.model.mixing_weights(), folder / "layer_weights.png")
        history = [
            {
                "epoch": line["epoch"],
                "phase": line["phase"],
                **{f"{part} {name}": line[part][name] for part in ("train", "valid") for name in ("loss",)},
                "valid accuracy": line["valid"].get("accuracy", 0.0),
            }
            for line in self.brain.progress["history"]
        ]
        plots.plot_training_curves(history, folder / "training.png")

    def export(self):
        """Write the folder that inference loads."""
        from speechbrain_emo.inference.export import export_annotator

        hparams = self.hparams
        metrics = json.loads((self.output_folder / "results.json").read_text(encoding="utf-8"))["metrics"]
        export_annotator(
            self.output_folder / "model",
            self.encoder,
            self.predictor().model,
            {"encoder": hparams["encoder"], "annotator": hparams["annotator"]},
            {
                "labels": self.labels,
                "intensities": list(hparams["intensities"]),
                "intensity_thresholds": list(hparams["intensity_thresholds"]),
                "untagged": hparams.get("untagged"),
                "temperature": self.temperature,
                "max_duration": hparams.get("max_duration"),
                "supervision": hparams["supervision"],
                "language": hparams.get("language", "en"),
            },
            {
                "experiment": hparams["experiment"],
                "git_commit": results.git_commit(),
                "date": time.strftime("%Y-%m-%d"),
                "seed": hparams["seed"],
                "license": hparams.get("license"),
                "split_hash": split_hash(self.records),
                "metrics": metrics,
                "command": hparams.get("command"),
            },
        )


def word_rows(metrics):
    """Rows of the result table.

    Arguments
    ---------
    metrics : dict
        From :meth:`WordEmotionExperiment.evaluate`.

    Returns
    -------
    list of dict
        For ``results.format_table``.

    Example
    -------
    >>> word_rows({"test.word.annotator.accuracy": 0.7, "test.word.annotator.macro_f1": 0.6})
    [{'words': 'annotator, word by word', 'accuracy': 0.7, 'macro-F1': 0.6}]
    """
    rows = []
    for condition, title in CONDITIONS.items():
        row = {"words": title}
        best = metrics.get("test.word.best_utterance_condition") == condition
        row["words"] += " (best of these on validation utterances)" if best else ""
        for column, name in (
            ("accuracy", "accuracy"),
            ("95 % (speakers)", None),
            ("UA", "ua"),
            ("macro-F1", "macro_f1"),
            ("at a change", "transition_accuracy"),
            ("macro-F1 there", "transition_macro_f1"),
            ("inside", "inside_accuracy"),
        ):
            low = metrics.get(f"test.word.{condition}.accuracy_low")
            if name is None and low is not None:
                row[column] = (low, metrics[f"test.word.{condition}.accuracy_high"])
            value = None if name is None else metrics.get(f"test.word.{condition}.{name}")
            if value is not None:
                row[column] = value
        if len(row) > 1:
            rows.append(row)
    return rows


def run_word_emotion(hparams, run_opts):
    """Train, evaluate and export; a finished run is not repeated.

    Arguments
    ---------
    hparams : dict
        Loaded YAML.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Raises
    ------
    ValueError
        If the output folder holds a finished run of other settings.
    """
    output_folder = pathlib.Path(hparams["output_folder"])
    done = output_folder / "done.json"
    relevant = {k: v for k, v in hparams.items() if k not in NOT_SETTINGS}
    settings = json.dumps(plain_hparams(relevant), sort_keys=True)
    if done.is_file():
        if done.read_text(encoding="utf-8") == settings:
            logger.info(
                f"{output_folder} is complete with these settings; nothing to do (remove it to repeat)"
            )
            return
        raise ValueError(
            f"{output_folder} holds a finished run with other settings: choose another output_folder (or another "
            "--experiment), or remove the folder"
        )
    experiment = WordEmotionExperiment(hparams, run_opts)
    experiment.train()
    experiment.evaluate()
    run_on_main(experiment.export)
    run_on_main(write_text_atomically, args=[done, settings])
