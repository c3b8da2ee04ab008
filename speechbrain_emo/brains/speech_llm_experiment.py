"""One experiment of a language-model system, from its YAML to results, pictures and a model that loads.

``run_speech_llm`` is what the YAML's ``run`` names. The same code pretrains a language model on text (no
front end, no evaluation) and trains VIB-SER.
"""

import inspect
import json
import logging
import pathlib
import resource
import time

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from tqdm import tqdm

from speechbrain_emo import plots, results
from speechbrain_emo.baselines import merge_predictions, opensmile_svm
from speechbrain_emo.brains import reports
from speechbrain_emo.brains.calibration import (
    confidences,
    fit_abstention,
    fit_temperatures,
    measure_training_set,
)
from speechbrain_emo.brains.checkpointing import AtomicCheckpointer, load_module
from speechbrain_emo.brains.diagnoses import diagnose_results
from speechbrain_emo.brains.dialogue_evaluation import DialogueEvaluation, dual_table
from speechbrain_emo.brains.dialogue_targets import prepare_targets
from speechbrain_emo.brains.distributed import gather, world
from speechbrain_emo.brains.explainer import Explainer, as_result
from speechbrain_emo.brains.next_line_evaluation import (
    NextLineEvaluation,
    next_line_pictures,
    next_line_table,
)
from speechbrain_emo.brains.speech_data import SpeechData, SpeechRecords, read_ahead
from speechbrain_emo.brains.speech_language_model import SpeechLanguageModel
from speechbrain_emo.brains.speech_llm_brain import SpeechLLMBrain
from speechbrain_emo.brains.verification import Verification, verification_tables
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.descriptors import Thresholds
from speechbrain_emo.dataio.feature_cache import FeatureCache, audio_segments
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, split_hash, write_text_atomically
from speechbrain_emo.metrics.abstention import risk_coverage
from speechbrain_emo.metrics.calibration import label_probabilities
from speechbrain_emo.phases import PhaseSchedule
from speechbrain_emo.prompts.packer import Packer

logger = logging.getLogger(__name__)

# What was typed, what had to be there first, and what is done with several folds do not change a run's result.
NOT_SETTINGS = (
    "command",
    "requires",
    "folds",
    "opensmile",
    "opensmile_cache",
    "corpus_hours",
    "num_train_records",
)
EVALUATIONS = ("emotion", "dual", "next_line")
# Wanted share of errors among what is answered (`evaluation.abstain_risk`; 0: the model never abstains).
ABSTAIN_RISK = 0.1
# Recordings of similar length among which slots are exchanged (`evaluation.interventions`).
EXCHANGE_GROUP = 32
# Training recordings that are measured where the preparation has not (`evaluation.measure`; 0: none).
MEASURED = 600


class MissingCheckpoint(ManifestError):
    """A stage whose input was not made yet; the message names the command that makes it.

    Example
    -------
    >>> issubclass(MissingCheckpoint, ValueError)
    True
    """


class SpeechLLMExperiment:
    """Builds, trains, evaluates and exports what a YAML describes.

    Arguments
    ---------
    hparams : dict
        Loaded YAML; its keys are described in ``hparams/demo_ib.yaml``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Example
    -------
    >>> SpeechLLMExperiment.__name__
    'SpeechLLMExperiment'
    """

    def __init__(self, hparams, run_opts):
        self.hparams = hparams
        self.run_opts = run_opts
        self.output_folder = pathlib.Path(hparams["output_folder"])
        self.started = time.time()
        self.manifests = {
            split: read_manifest(path, {"data_root": hparams.get("data_folder")})
            for split, path in hparams["manifests"].items()
        }
        self.tasks = hparams["tasks"]
        self.format = hparams["answer_format"]
        self.schedule = PhaseSchedule(hparams["phases"], hparams.get("cycles", 1))
        # The seed is set again here: what the preparation drew must not change the initial weights.
        torch.manual_seed(hparams["seed"])
        self.llm = hparams["llm"]()
        self.encoder = self.cache = front_end = None
        if hparams.get("front_end") is not None:
            self.encoder = hparams["encoder"]()
            self.cache = self._feature_cache()
            self.front_end_arguments = {
                "num_layers": self.encoder.num_layers if hparams["cache"] != "weighted" else 1,
                "input_size": self.encoder.hidden_size,
                "llm_size": self.llm.hidden_size,
            }
            # A partial, or the class itself where the YAML gives it no argument.
            build = hparams["front_end"]
            given = getattr(build, "keywords", {})
            if "output_scale" in inspect.signature(build).parameters and "output_scale" not in given:
                # Pseudo-embeddings start as large as the embeddings that the language model knows.
                weight = self.llm.causal_lm.get_input_embeddings().weight
                self.front_end_arguments["output_scale"] = float(
                    weight.detach().float().square().mean().sqrt()
                )
            front_end = build(**self.front_end_arguments)
        live = self.encoder if self.cache is None else None
        self.model = SpeechLanguageModel(self.llm, front_end, live)
        kinds = front_end.slot_kinds if front_end is not None else hparams["slot_kinds"]
        self.packer = Packer(self.llm.tokenizer, kinds, hparams.get("max_positions"))
        self.data = {split: self._data(split) for split in self.manifests}
        self.brain = self._brain()

    def _feature_cache(self):
        mode = self.hparams["cache"]
        if mode in (False, None, "off"):
            return None
        return FeatureCache(
            self.hparams["cache_folder"],
            self.encoder.fingerprint,
            {"sample_rate": self.encoder.sample_rate},
            mode=mode,
        )

    def _load(self, audio):
        return load_audio(
            audio["wav"],
            self.encoder.sample_rate,
            audio.get("start"),
            audio.get("stop"),
            max_duration=self.hparams.get("max_duration"),
        )

    def _data(self, split):
        speech = self.encoder is not None
        records = SpeechRecords(
            self.manifests[split],
            self.encoder.sample_rate if speech else 16000,
            self.cache,
            self.encoder.num_frames if speech else None,
            self.hparams.get("max_duration"),
        )
        return SpeechData(
            records,
            self.tasks,
            self.packer,
            self.model.front_end.num_positions if speech else None,
            self.hparams["seed"],
            {p.name: p for p in self.schedule.phases},
        )

    def _brain(self):
        # Imported here: SpeechBrain's module warns of torchvision, also where nothing is trained.
        from speechbrain.utils.train_logger import TensorboardLogger

        hparams = self.hparams
        if if_main_process():
            self.output_folder.mkdir(parents=True, exist_ok=True)
        return SpeechLLMBrain(
            {"model": self.model},
            self.schedule,
            self.data["train"],
            self.data["valid"],
            hparams["limits"],
            train_log=self.output_folder / "train_log.jsonl",
            logger_board=TensorboardLogger(str(self.output_folder / "tensorboard")),
            thresholds=hparams.get("diagnosis_thresholds"),
            seed=hparams["seed"],
            num_workers=hparams.get("num_workers", 0),
            validate_every=hparams.get("validate_every", 1),
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=self.run_opts,
            checkpointer=AtomicCheckpointer(hparams["save_folder"]),
        )

    # -- training ------------------------------------------------------------------------------------------

    def fill_cache(self):
        """Encode what the cache lacks, on the main process, with a progress bar."""
        if self.cache is None:
            return
        records = [r for data in self.data.values() for r in data.records.records]
        encoder = self.encoder.to(self.brain.device)
        run_on_main(
            self.cache.fill,
            args=[records, encoder, self._load],
            kwargs={"device": self.brain.device},
        )

    def fit_statistics(self, most=500):
        """Measure the training features where the front end standardises them; the same on every rank."""
        front_end, data = self.model.front_end, self.data["train"]
        if getattr(front_end, "statistics", None) is None:
            return
        numbers = range(0, len(data.records), max(len(data.records) // most, 1))

        def utterances():
            for i in tqdm(numbers, desc="feature statistics", unit="utt", disable=not if_main_process()):
                audio = data.collate_audio([data.records.audio(i)[0]]).to(self.brain.device)
                features, num_frames = self.model.features(audio)
                yield features[0, : int(num_frames[0])]

        front_end.fit_statistics(utterances())

    def add_targets(self):
        """Give dialogues the answers to learn: the frozen language model's own, kept in ``targets.jsonl``.

        ``targets`` of the YAML: ``task``, ``splits``, settings of :func:`prepare_targets`, and ``file`` where the
        answers lie elsewhere. A dialogue without a usable answer takes no part in the task; records that have a
        ``target`` already keep it.
        """
        settings = dict(self.hparams.get("targets") or {})
        if not settings:
            return
        path = pathlib.Path(settings.pop("file", None) or self.output_folder / "targets.jsonl")
        task, splits = self.tasks[settings.pop("task")], settings.pop("splits")
        wanted = {
            f"{split}/{record['id']}": record
            for split in splits
            for record in self.data[split].records.records
            if record.get("turns")
            and record.get("target") is None
            and (not task.corpora or record.get("corpus") in task.corpora)
        }
        arguments = [wanted, self.llm.to(self.brain.device), task, path]
        # The main process writes what is missing; the others then read the complete file.
        run_on_main(prepare_targets, args=arguments, kwargs=settings)
        report = prepare_targets(*arguments, **settings)
        logger.info(f"Targets of {task.name}: {report}")
        for record in wanted.values():
            if record.get("target") is None:
                record["response"] = None

    def start_from(self):
        """Take the weights of a phase of another experiment: ``start_from: {save_folder, phase, command}``.

        Raises
        ------
        MissingCheckpoint
            If that phase has no checkpoint; the message names the command that makes it.
        """
        given = self.hparams.get("start_from")
        if not given:
            return
        folder, phase = pathlib.Path(given["save_folder"]), given["phase"]
        checkpointer = AtomicCheckpointer(folder) if folder.is_dir() else None
        best = checkpointer.best(f"1.{phase}") if checkpointer is not None else []
        if not best:
            raise MissingCheckpoint(
                f"{folder} holds no checkpoint of the phase {phase!r}, which this experiment starts from; make it "
                f"with:  {given['command']}"
            )
        # A run that is taken up again goes on from its own checkpoint, which is loaded over this.
        for name, module in (("front_end", self.model.front_end), ("llm", self.llm)):
            path = best[0].paramfiles.get(name)
            if module is not None and path is not None:
                load = load_module if name == "front_end" else type(module).load_checkpoint
                load(module, str(path), True)
        logger.info(f"Starts from {best[0].path.name} of phase {phase} in {folder}")

    def train(self):
        """Train every phase that is not done yet and load the best weights of the last one."""
        self.fill_cache()
        self.fit_statistics()
        self.add_targets()
        self.start_from()
        self.brain.train_all()
        self.brain.load_best(self.schedule.keys[-1])
        self.brain.modules.eval()

    # -- evaluation ----------------------------------------------------------------------------------------

    def explainer(self):
        """The object that predicts, with this experiment's evaluation settings."""
        settings = self.hparams["evaluation"]
        return Explainer(self.brain.unwrapped(), self.packer, self.tasks, **explain_settings(settings))

    def predict(self, split, gold=True, all_prompts=True, shuffled=None, limit=None):
        """Predict a split; ranks share it, every utterance is counted once.

        Arguments
        ---------
        split : str
            Name of a manifest.
        gold : bool
            Also score after the gold descriptors.
        all_prompts : bool
            Also score under every wording.
        shuffled : str, optional
            A slot kind whose embeddings every recording gets from another one (:func:`exchange_partners`).
        limit : int, optional
            Only every so many-th recording, about this many in all.

        Returns
        -------
        list of dict
            Lines of ``predictions.jsonl`` in the manifest's order, on every rank.
        """
        data, explainer = self.data[split], self.explainer()
        rank, world_size = world()
        # Similar lengths together; the order of the output does not depend on it.
        order = sorted(range(len(data.records)), key=lambda i: (data.records[i]["duration"], i))
        order = order[:: max(len(order) // limit, 1) if limit else 1]
        partners = exchange_partners(order) if shuffled is not None else {}
        own, size = order[rank::world_size], self.hparams["evaluation"].get("batch_size", 16)
        batches = [own[start : start + size] for start in range(0, len(own), size)]
        # A partner may be of another batch, or of another process: it is read beside the batch.
        heard = [list(dict.fromkeys([*b, *(partners[i] for i in b if partners)])) for b in batches]
        audios = read_ahead(
            data.records.audio, [i for part in heard for i in part], self.hparams.get("num_workers", 0)
        )
        lines = []
        for numbers, part in zip(tqdm(batches, desc=f"evaluate {split}", disable=rank > 0), heard):
            records = [data.records[i] for i in numbers]
            audio = data.collate_audio([next(audios)[0] for _ in part]).to(self.brain.device)
            exchange = {shuffled: [part.index(partners[i]) for i in numbers]} if partners else None
            with self.brain.evaluation_ctx:
                predictions = explainer.explain(records, audio, gold, all_prompts, exchange)
            lines += [(i, as_result(p, r, self.format)) for i, p, r in zip(numbers, predictions, records)]
        return [line for _, line in sorted(gather(lines), key=lambda x: x[0])]

    def prefix_changes(self, lines, split, count):
        """How many of ``count`` utterances get another answer when they are alone in a batch."""
        data, explainer = self.data[split], self.explainer()
        step = max(len(lines) // max(count, 1), 1)
        numbers = list(range(0, len(lines), step))[:count]
        changed, largest = 0, 0.0
        for i in tqdm(numbers, desc="batch size 1", disable=not if_main_process()):
            audio = data.collate_audio([data.records.audio(i)[0]]).to(self.brain.device)
            with self.brain.evaluation_ctx:
                alone = explainer.explain([data.records[i]], audio)[0]
            changed += alone.generated != lines[i]["answer"]
            for condition, scores in alone.scores.items():
                for label, score in scores.items():
                    largest = max(largest, abs(score - lines[i]["scores"][condition][label]))
        return changed, largest, len(numbers)

    def interventions(self, arguments):
        """What is left when a branch's embeddings are exchanged between recordings.

        Arguments
        ---------
        arguments : dict
            Keyword arguments of ``compute_results``.

        Returns
        -------
        dict
            ``shuffled_<kind>.<task>.<condition>.<metric>`` over ``evaluation.interventions`` recordings, and
            ``unshuffled...`` over the same recordings.
        """
        found = {}
        for kind in (None, *self.packer.slot_kinds):
            lines = self.predict(
                "test", False, False, shuffled=kind, limit=self.hparams["evaluation"]["interventions"]
            )
            name = "unshuffled" if kind is None else f"shuffled_{kind}"
            scores = results.compute_results(lines, split=name, java=False, num_resamples=100, **arguments)
            found.update({k: v for k, v in scores.items() if isinstance(v, float)})
        return found

    def evaluate(self):
        """Measure what ``evaluation.kind`` asks for and write ``results.json``.

        ``emotion`` (default): predict validation and test, calibrate, score, draw. ``dual``: see
        ``dialogue_evaluation.py``. ``next_line``: see ``next_line_evaluation.py``.

        Returns
        -------
        dict
            The metrics.

        Raises
        ------
        ValueError
            If the kind is unknown.
        """
        kind = self.hparams["evaluation"].get("kind", "emotion")
        if kind not in EVALUATIONS:
            raise ValueError(f"evaluation.kind is {kind!r}; allowed: {', '.join(EVALUATIONS)}")
        kinds = {"dual": self.evaluate_dual, "next_line": self.evaluate_next_line}
        return kinds.get(kind, self.evaluate_emotion)()

    def evaluate_next_line(self):
        """What is heard in recordings, and the emotion of the next line, of the phases that the YAML names."""
        metrics = NextLineEvaluation(self).run()
        self.evaluation_arguments = plain_hparams({"evaluation": dict(self.hparams["evaluation"])})
        if if_main_process():
            if self.hparams.get("oracle"):
                oracle = json.loads(pathlib.Path(self.hparams["oracle"]).read_text(encoding="utf-8"))
                metrics["test.next.oracle.emotion_wa"] = oracle["emotion"]
                metrics["test.next.oracle.accuracy"] = oracle["pair"]
            self.write_results(metrics)
            reports.training_pictures(self)
            next_line_pictures(metrics, self.hparams["evaluation"], self.output_folder)
            print(next_line_table(metrics, self.hparams["evaluation"]))
            if self.hparams.get("oracle"):
                print(
                    "Oracle from the true history and the words: emotion "
                    f"{oracle['emotion']:.3f} (expected {oracle['expected']:.3f}), with intensity {oracle['pair']:.3f}"
                )
            print(f"Results: {self.output_folder}")
        return metrics

    def evaluate_dual(self):
        """Attributes, words, leakage and dialogues of the phases that the YAML names."""
        metrics = DialogueEvaluation(self).run()
        self.evaluation_arguments = dict(self.hparams["evaluation"])
        if if_main_process():
            if self.hparams.get("oracle"):
                oracle = json.loads(pathlib.Path(self.hparams["oracle"]).read_text(encoding="utf-8"))
                metrics["test.emotion.oracle.accuracy"] = oracle["ua"]
            self.write_results(metrics)
            reports.training_pictures(self)
            print(dual_table(metrics, self.hparams["evaluation"]))
            if self.hparams.get("oracle"):
                print(
                    f"Oracle from the true parameters, emotion: {metrics['test.emotion.oracle.accuracy']:.3f}"
                )
            print(f"Trainable: {100 * self.trainable_share():.2f} % of all parameters")
            print(f"Results: {self.output_folder}")
        return metrics

    def trainable_share(self):
        """Parameters that train in some phase over all, the frozen encoder included."""
        parts = [m for m in (self.encoder, self.model.front_end, self.llm) if m is not None]
        return sum(self.trainable_parameters().values()) / sum(
            p.numel() for m in parts for p in m.parameters()
        )

    def evaluate_emotion(self):
        """Predict validation and test, calibrate, score, draw, and write ``results.json``."""
        hparams, settings = self.hparams, self.hparams["evaluation"]
        labels = list(self.format.labels)
        valid = self.predict("valid", gold=False, all_prompts=False)
        temperature = fit_temperatures(valid, labels)
        headline = "own_chain" if settings.get("chain_task") else "speech"
        self.abstain_below = 0.0
        risk = settings.get("abstain_risk", ABSTAIN_RISK)
        if risk and headline in temperature:
            self.abstain_below = fit_abstention(
                valid, labels, headline, temperature[headline], risk
            ).threshold
        lines = self.predict("test")
        for line in lines:
            line["probabilities"] = {
                condition: dict(
                    zip(labels, label_probabilities([s[x] for x in labels], temperature[condition]).tolist())
                )
                for condition, s in line["scores"].items()
                if condition in temperature
            }
            if headline in line["probabilities"]:
                sure = max(line["probabilities"][headline].values())
                line["answered"] = {headline: sure >= self.abstain_below}
            if hparams.get("fold") is not None:
                line["fold"] = str(hparams["fold"])
        arguments = {
            "labels": labels,
            "fields": list(self.format.descriptor_names) if settings.get("chain_task") else [],
            "language": hparams.get("language", "en"),
            "closed_set": hparams.get("closed_set_wer", False),
            "temperature": temperature,
            "random_split": hparams.get("random_split", False),
        }
        changes = None
        if settings.get("chain_task") and settings.get("check_batch"):
            changes = self.prefix_changes(lines, "test", settings["check_batch"])
        interventions = self.interventions(arguments) if settings.get("interventions") else {}
        self.temperature = temperature
        self.evaluation_arguments = arguments
        metrics = {}
        if if_main_process():
            lines = merge_predictions(lines, *reports.baselines(self))
            results.write_predictions(self.output_folder, lines)
            results.write_predictions(self.output_folder / "valid_predictions.jsonl", valid)
            metrics = results.compute_results(
                lines, split="test", java=settings.get("java", False), **arguments
            )
            metrics.update(prompt_spread(lines, labels))
            metrics.update(results.results_by_corpus(lines, java=False, **arguments))
            if changes is not None:
                names = ("prefix_changes", "score_change", "prefix_checked")
                metrics.update({f"test.ser.own_chain.{n}": v for n, v in zip(names, changes)})
            if hparams.get("oracle"):
                oracle = json.loads(pathlib.Path(hparams["oracle"]).read_text(encoding="utf-8"))
                metrics["test.ser.oracle.ua"] = oracle["ua"]
            metrics.update(interventions)
            metrics.update(reports.latents(self))
            metrics[f"test.ser.{headline}.abstain_below"] = self.abstain_below
            if settings.get("verify"):
                metrics.update(self.verify(**settings["verify"]))
            metrics["diagnoses"] = diagnose_results(metrics, hparams.get("diagnosis_thresholds"))
            for diagnosis in metrics["diagnoses"]:
                logger.warning(diagnosis)
            self.write_results(metrics)
            reports.pictures(self, metrics)
            self.draw_risk(lines, labels, headline, metrics)
            print(reports.table(metrics))
            for title, rows in verification_tables(metrics).items():
                print(f"\n{title}\n{results.format_table(rows, style='plain')}")
            print(f"Results and pictures: {self.output_folder}")
        return metrics

    def draw_risk(self, lines, labels, headline, metrics):
        """Risk-coverage curves of the test part as ``risk_coverage.png``."""
        curves = {
            f"label|{name}": risk_coverage(*confidences(lines, labels, name, self.temperature[name]))
            for name in dict.fromkeys((headline, "speech"))
            if name in self.temperature
        }
        if curves:
            key = f"test.ser.{headline}"
            chosen = {f"label|{headline}": (metrics[f"{key}.coverage"], metrics[f"{key}.selective_risk"])}
            plots.plot_risk_coverage(curves, self.output_folder / "risk_coverage.png", chosen)

    def thresholds(self):
        """Quantiles of what is measured in the training set: those of the preparation, or measured here; else None.

        ``evaluation.measure`` says how many training recordings are measured where the preparation has not (600; 0:
        none).
        """
        file = self.hparams.get("thresholds")
        if file:
            return Thresholds.from_dict(json.loads(pathlib.Path(file).read_text(encoding="utf-8")))
        most = self.hparams["evaluation"].get("measure", MEASURED)
        if not most:
            return None
        return measure_training_set(
            self.manifests["train"],
            most,
            self.hparams.get("language", "en"),
            self.output_folder / "measured_train.jsonl",
        )

    def verify(self, parts=("faithfulness", "shifts", "robustness", "prefix"), limit=100):
        """Faithfulness, robustness and what the label listens to, over some test recordings.

        Arguments
        ---------
        parts : sequence of str
            Of ``brains.verification.PARTS``.
        limit : int, optional
            About so many recordings, evenly spread; None: all.

        Returns
        -------
        dict
            Metrics.
        """
        records = self.data["test"].records
        chosen = range(0, len(records), max(len(records) // limit, 1) if limit else 1)
        explainer = self.explainer()
        # With a cache the encoder takes no part in training; changed audio is not in the cache.
        encoder, explainer.model.encoder = explainer.model.encoder, self.encoder.to(self.brain.device)
        try:
            verification = Verification(
                explainer,
                [records[i] for i in chosen],
                self._load,
                self.encoder.sample_rate,
                self.output_folder / "verification",
                self.brain.device,
                self.brain.evaluation_ctx,
                self.thresholds(),
                self.hparams["evaluation"].get("batch_size", 16),
                {k: self.evaluation_arguments[k] for k in ("language", "closed_set", "temperature")},
            )
            metrics, lines = verification.run(parts)
        finally:
            explainer.model.encoder = encoder
        results.write_predictions(self.output_folder / "verification" / "predictions.jsonl", lines)
        return metrics

    def write_results(self, metrics):
        """``results.json`` beside the checkpoints."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = self.brain.progress["seconds"]
        audio = sum(a["duration"] for r in self.manifests["train"].values() for a in audio_segments(r))
        audio *= self.schedule.num_epochs
        context = results.run_context(
            seed=self.hparams["seed"],
            hparams=plain_hparams(self.hparams),
            split_hash=split_hash(self.manifests),
            wall_time=time.time() - self.started,
            audio_seconds=audio,
            command=self.hparams.get("command"),
            evaluation=self.evaluation_arguments,
            train_seconds=seconds,
            train_audio_seconds_per_second=audio / seconds if seconds else None,
            peak_memory_bytes=peak,
            trainable_parameters=self.trainable_parameters(),
            trainable_share=self.trainable_share(),
        )
        results.write_results(self.output_folder, metrics, context)

    def trainable_parameters(self):
        """Trainable parameters of each group that some phase trains."""
        names = {n for p in self.schedule.phases for n in p.groups}
        # Output layers may share the weights of the embeddings: each counts once.
        unique = {n: {id(p): p for p in self.model.group_parameters(n)} for n in sorted(names)}
        return {n: sum(p.numel() for p in parameters.values()) for n, parameters in unique.items()}

    def export(self):
        """Write the folder that inference loads: a model that explains recordings, or one that talks."""
        from speechbrain_emo.inference.export import export_model

        hparams = self.hparams
        metrics = json.loads((self.output_folder / "results.json").read_text(encoding="utf-8"))["metrics"]
        settings = {
            "max_duration": hparams.get("max_duration"),
            "max_positions": hparams.get("max_positions"),
            "language": hparams.get("language", "en"),
            "precision": hparams.get("eval_precision", "fp32"),
        }
        evaluation = hparams["evaluation"]
        if evaluation.get("kind") == "next_line":
            purpose = {"next_line": {**settings, **evaluation["export"]}}
        elif evaluation.get("kind") == "dual":
            purpose = {
                "chat": {
                    **settings,
                    "dialogue_task": evaluation["dialogue_task"],
                    "transcript_task": evaluation["asr_task"],
                    "choice_tasks": list(evaluation["choice_tasks"]),
                    "max_new_tokens": evaluation.get("max_new_tokens", 256),
                }
            }
        else:
            condition = "own_chain" if evaluation.get("chain_task") else "speech"
            settings.update(
                explain_settings(evaluation),
                temperature=self.temperature[condition],
                speech_temperature=self.temperature["speech"],
                abstain_below=self.abstain_below,
                thresholds=self.thresholds(),
            )
            purpose = {"explain": settings}
        # With a cache the encoder takes no part in training; inference needs it.
        self.model.encoder = self.encoder
        export_model(
            self.output_folder / "model",
            self.model,
            {n: hparams[n] for n in ("encoder", "llm", "front_end")},
            self.format,
            self.tasks,
            facts={
                "experiment": hparams["experiment"],
                "git_commit": results.git_commit(),
                "date": time.strftime("%Y-%m-%d"),
                "seed": hparams["seed"],
                "license": hparams.get("license"),
                "split_hash": split_hash(self.manifests),
                "metrics": metrics,
                "command": hparams.get("command"),
            },
            **purpose,
        )


def exchange_partners(order, group=EXCHANGE_GROUP):
    """Whose embeddings each recording gets when a slot kind is exchanged; no batch and no process has a part in it.

    Arguments
    ---------
    order : sequence of int
        Recordings by length.
    group : int
        Recordings among which partners are sought: their lengths are alike.

    Returns
    -------
    dict of int to int
        Recording -> another one; a single recording keeps its own.

    Example
    -------
    >>> exchange_partners([5, 3, 8, 1])
    {5: 8, 3: 1, 8: 5, 1: 3}
    >>> exchange_partners([5, 3, 8], group=2)
    {5: 3, 3: 8, 8: 5}
    """
    partners, borders = {}, [*range(0, len(order), group), len(order)]
    if len(borders) > 2 and borders[-1] - borders[-2] == 1:
        del borders[-2]  # The last one by itself would keep its own embeddings.
    for start, stop in zip(borders, borders[1:]):
        some = list(order[start:stop])
        # Neighbours in length may be alike in speed, so partners are half a group apart.
        half = max(len(some) // 2, 1)
        partners.update(zip(some, some[half:] + some[:half]))
    return partners


def is_exported(hparams):
    """Whether a run ends in a folder for inference: what it evaluates, but for next lines without ``export``.

    Example
    -------
    >>> is_exported({"evaluation": {"kind": "next_line", "export": None}}), is_exported({"evaluation": {}})
    (False, False)
    >>> is_exported({"evaluation": {"label_task": "ser"}})
    True
    """
    evaluation = hparams.get("evaluation") or {}
    return bool(evaluation) and not (
        evaluation.get("kind") == "next_line" and evaluation.get("export") is None
    )


def explain_settings(settings):
    """The keys of ``evaluation`` that the Explainer takes."""
    names = ("label_task", "chain_task", "transcript_task", "max_new_tokens", "num_beams")
    return {n: settings[n] for n in names if settings.get(n) is not None}


def prompt_spread(lines, labels):
    """Lowest and highest UA of ``label|speech`` over the wordings of the label task.

    Example
    -------
    >>> line = {"emotion": "sad", "prompt_scores": {0: {"sad": -1.0, "happy": -2.0}}}
    >>> prompt_spread([line], ["happy", "sad"])["test.ser.speech.prompts_ua_low"]
    1.0
    """
    uas = []
    for number in sorted(lines[0]["prompt_scores"]):
        recalls = []
        for label in labels:
            chosen = [x["prompt_scores"][number] for x in lines if x["emotion"] == label]
            if chosen:
                recalls.append(np.mean([max(s, key=s.get) == label for s in chosen]))
        uas.append(float(np.mean(recalls)))
    if not uas:
        return {}
    return {
        "test.ser.speech.prompts_ua_low": min(uas),
        "test.ser.speech.prompts_ua_high": max(uas),
        "test.ser.speech.prompts": len(uas),
    }


def plain_hparams(hparams):
    """Hyper-parameters as JSON values; built objects and factories as their names and arguments."""

    def plain(value):
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        if hasattr(value, "func") and hasattr(value, "keywords"):
            return {value.func.__qualname__: plain(dict(value.keywords))}
        if isinstance(value, type):  # What `!name:` makes of a class without arguments.
            return {value.__qualname__: {}}
        return type(value).__qualname__

    return {k: plain(v) for k, v in hparams.items() if not k.startswith("__")}


def run_speech_llm(hparams, run_opts):
    """Train, evaluate and export; a finished run is not repeated.

    Arguments
    ---------
    hparams : dict
        Loaded YAML.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.
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
    if is_exported(hparams):
        from speechbrain_emo.inference.export import check_factories

        # The run ends in an export: hours before it, not after them, it is told that a class is not listed.
        check_factories({n: hparams[n] for n in ("encoder", "llm", "front_end")})
    experiment = SpeechLLMExperiment(hparams, run_opts)
    experiment.train()
    if hparams.get("llm_folder"):
        run_on_main(experiment.llm.save_pretrained, args=[hparams["llm_folder"]])
    if hparams.get("evaluation"):
        experiment.evaluate()
    if is_exported(hparams):
        run_on_main(experiment.export)
    run_on_main(write_text_atomically, args=[done, settings])


def pool_experiment(hparams, folds):
    """Pool the folds of an experiment: headline over out-of-fold predictions, spread over folds, baselines.

    Arguments
    ---------
    hparams : dict
        Loaded YAML of one of the folds; its ``output_folder`` ends in the fold's name. With ``opensmile: true``
        openSMILE features and a linear SVM are run on the same folds.
    folds : sequence of str
        Names of the folds.

    Returns
    -------
    dict
        The pooled metrics, also in ``pooled/results.json`` beside the folds' folders.
    """
    own = pathlib.Path(hparams["output_folder"])
    folders = [own.parent / fold for fold in folds]
    pooled = own.parent / "pooled"
    metrics = results.pool_folds(folders)
    lines = [line for folder in folders for line in results.read_predictions(folder)]
    if hparams.get("opensmile"):
        parts = {}
        for fold in folds:
            files = {s: str(p).replace(f"/{own.name}/", f"/{fold}/") for s, p in hparams["manifests"].items()}
            parts[fold] = {
                s: read_manifest(p, {"data_root": hparams["data_folder"]}) for s, p in files.items()
            }
        for feature_set in ("eGeMAPSv02", "ComParE_2016"):
            run = opensmile_svm(parts, feature_set, cache_folder=hparams["opensmile_cache"])
            lines = merge_predictions(lines, run)
            labels = list(hparams["answer_format"].labels)
            scores = results.score_labels(
                [p["emotion"] for p in run.predictions],
                [
                    max(p["scores"][run.condition], key=p["scores"][run.condition].get)
                    for p in run.predictions
                ],
                [p["speaker"] for p in run.predictions],
                labels,
            )
            metrics.update({f"test.ser.{run.condition}.{k}": v for k, v in scores.items()})
    results.write_predictions(pooled, lines)
    context = results.run_context(
        seed=hparams["seed"],
        hparams=plain_hparams(hparams),
        folds=list(folds),
        command=hparams.get("command"),
    )
    results.write_results(pooled, metrics, context)
    reports.confusion_pictures(metrics, list(hparams["answer_format"].labels), pooled)
    print(reports.table(metrics))
    print(f"Pooled over {len(folds)} folds: {pooled}")
    return metrics
