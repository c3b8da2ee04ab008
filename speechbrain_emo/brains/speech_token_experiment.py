"""What a YAML of word-level emotional synthesis describes: data, tokens, training, scores on tokens, export.

Scores here need no acoustic model: tokens that the model makes for unseen sentences are read by the recogniser behind
the tokenizer's quantiser (are the words there?) and by a classifier that never saw this model (are the emotions where
they were marked?). Where words lie in the new tokens follows from a time warping against the recording of the same
sentence. Scores of the audio are ``metrics/synthesis.py``'s.
"""

import hashlib
import json
import logging
import pathlib
import time

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from tqdm import tqdm
from transformers import AutoTokenizer

from speechbrain_emo import plots, results
from speechbrain_emo.brains.checkpointing import AtomicCheckpointer
from speechbrain_emo.brains.speech_llm_experiment import NOT_SETTINGS, plain_hparams
from speechbrain_emo.brains.speech_token_brain import SpeechTokenBrain, TokenEmotionBrain
from speechbrain_emo.brains.speech_token_data import LabelNoise, TokenRows, TokenSteps, speech_tokens
from speechbrain_emo.brains.word_emotion_data import WordTargets, align_records
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, split_hash, write_text_atomically
from speechbrain_emo.lobes.emotion_supervision import (
    TokenEmotionClassifier,
    TokenObjective,
    load_token_classifier,
)
from speechbrain_emo.lobes.speech_token_lm import load_speech_token_lm
from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
from speechbrain_emo.lobes.token_generation import TokenRequest, generate
from speechbrain_emo.lobes.token_sampling import SamplingSettings
from speechbrain_emo.metrics.token_speech import collapse, edit_share, warp_words
from speechbrain_emo.phases import PhaseSchedule
from speechbrain_emo.prompts.markup import EmotionMarkup

logger = logging.getLogger(__name__)
SPLITS = ("train", "valid", "test")


class SpeechTokenExperiment:
    """Builds, trains, scores and exports what a YAML describes.

    Arguments
    ---------
    hparams : dict
        Loaded YAML; its keys are described in ``hparams/demo_film.yaml``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Example
    -------
    >>> SpeechTokenExperiment.__name__
    'SpeechTokenExperiment'
    """

    def __init__(self, hparams, run_opts):
        self.hparams, self.run_opts = hparams, dict(run_opts or {})
        self.output_folder = pathlib.Path(hparams["output_folder"])
        self.started, self.rejected = time.time(), {}
        if if_main_process():
            self.output_folder.mkdir(parents=True, exist_ok=True)
        untagged = hparams.get("untagged")
        self.markup = EmotionMarkup(
            hparams["labels"], hparams["intensities"], None if untagged is None else tuple(untagged)
        )
        self.targets = WordTargets(hparams["labels"], hparams.get("label_map"), "word")
        self.records = {split: self._records(split) for split in SPLITS}
        self.tokenizer = hparams["tokenizer"]()
        self.device = self.run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        self.text_tokenizer = self._text_tokenizer()
        self.tokens = {split: self._tokens(split) for split in SPLITS}
        self.rows = {split: self._rows(self.records[split], self.tokens[split]) for split in SPLITS}
        # What classifiers learn from: the words' own labels.
        clean, self.label_agreement = self.rows["train"], None
        noise = LabelNoise(**(hparams.get("label_noise") or {}), seed=int(hparams["seed"]))
        annotated = _annotated(hparams.get("word_labels", "own"))
        if noise.wrong or noise.shift or annotated:
            self.rows["train"] = self._rows(self.records["train"], self.tokens["train"], noise, annotated)
            self.label_agreement = _agreement(clean, self.rows["train"])
        self.lm = self._language_model()
        self.judge = self._classifier("judge", 1, self._judge_rows(clean))
        objective = hparams["objective"]
        supervision = objective.get("supervision", "speech")
        classifier = self._classifier("supervisor", 0, clean) if supervision == "predicted" else None
        torch.manual_seed(hparams["seed"])
        self.objective = TokenObjective(self.lm, classifier=classifier, **objective)
        self.schedule = PhaseSchedule(hparams["phases"])
        self.brain = self._brain()

    # -- data ----------------------------------------------------------------------------------------------

    def _records(self, split):
        return self._read(self.hparams["manifests"][split], split)

    def _read(self, files, split):
        """Records of manifests, with words; ``split`` names what they are for."""
        roots = self.hparams.get("data_roots") or {"data_root": self.hparams.get("data_folder")}
        records = {}
        for path in [files] if isinstance(files, str) else files:
            part = read_manifest(path, roots)
            twice = sorted(set(part) & set(records))
            if twice:
                raise ManifestError(
                    f"{path}: {len(twice)} ids stand in another manifest too, such as {twice[0]}"
                )
            records.update(part)
        if self.hparams.get("keep_labels"):
            kept = {*self.markup.labels, *(self.hparams.get("label_map") or {}), None}
            records = {key: record for key, record in records.items() if record.get("emotion") in kept}
        if not records:
            raise ManifestError(f"the manifests of {split} ({files}) hold no record")
        if self.hparams.get("aligner"):
            cache = self.output_folder / f"alignments_{split}.jsonl"
            arguments = (records, dict(self.hparams["aligner"]), cache)
            if if_main_process():
                align_records(*arguments)
            sb.utils.distributed.ddp_barrier()
            records, rejected = align_records(*arguments)
            self.rejected.update(rejected)
        return records

    def load(self, record):
        """Samples of a record at the tokenizer's rate."""
        return load_audio(
            record["wav"],
            self.tokenizer.sample_rate,
            record.get("start"),
            record.get("stop"),
            max_duration=self.hparams.get("max_duration"),
        )

    def _judge_rows(self, clean):
        """What the judge learns from: the same recordings for every ablation, where the YAML names them."""
        files = self.hparams.get("judge_manifests")
        if not files or list(files) == list(self.hparams["manifests"]["train"]):
            return clean
        records = self._read(files, "train")
        return self._rows(records, self._tokens("train", records))

    def _tokens(self, split, records=None):
        records = self.records[split] if records is None else records
        file = pathlib.Path(self.hparams["token_folder"]) / f"{split}_{self.tokenizer.fingerprint}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        arguments = (records, self.tokenizer, self.load, file)
        if if_main_process():
            speech_tokens(*arguments, device=self.device)
        sb.utils.distributed.ddp_barrier()
        return speech_tokens(*arguments, device=self.device)

    def _text_tokenizer(self):
        settings = self.hparams["text"]
        if settings.get("source"):
            return AutoTokenizer.from_pretrained(settings["source"], trust_remote_code=False)
        folder = self.output_folder / "text"
        if not (folder / "tokenizer.json").is_file():
            texts = [record["transcript"] for record in self.records["train"].values()]

            def save():
                train_tiny_tokenizer(texts, settings["vocab_size"]).save_pretrained(folder)

            run_on_main(save)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def _rows(self, records, tokens, noise=None, annotated=False):
        return TokenRows(
            records,
            tokens,
            self.text_tokenizer,
            self.markup,
            self.targets,
            self.tokenizer.token_rate,
            continuous=self.hparams["lm"].keywords.get("intensity") == "continuous",
            noise=noise,
            annotated=annotated,
        )

    # -- models --------------------------------------------------------------------------------------------

    def _language_model(self):
        torch.manual_seed(self.hparams["seed"])
        factory = self.hparams["lm"]
        architecture = dict(factory.keywords["architecture"])
        if architecture.get("vocab_size") is None:
            architecture["vocab_size"] = len(self.text_tokenizer)
        lm = factory(
            architecture=architecture,
            num_emotions=len(self.markup.labels),
            num_intensities=len(self.markup.intensities),
            num_speech_tokens=self.tokenizer.vocab_size,
        )
        if self.hparams.get("initial_lm"):
            lm.load_weights(load_speech_token_lm(self.hparams["initial_lm"]).weights(), without_film=True)
        elif self.hparams.get("start_from_levels"):
            lm.start_from_levels(self.tokenizer.levels)
        return lm

    def _classifier(self, name, number, rows):
        """A classifier of words from true tokens; what judges has a seed and drop-out of its own."""
        settings = dict(self.hparams["classifier"])
        epochs, lr, batch_size = (settings.pop(key) for key in ("epochs", "lr", "batch_size"))
        seed = int(self.hparams["seed"]) + 1000 * (number + 1)
        torch.manual_seed(seed)
        classifier = TokenEmotionClassifier(
            self.tokenizer.vocab_size, len(self.markup.labels), levels=self.tokenizer.levels, **settings
        )
        stamp = {"settings": plain_hparams(dict(self.hparams["classifier"])), "seed": seed}
        stamp["rows"] = rows.digest(("speech", "speech_words", "word_labels"))
        stamp["labels"] = list(self.markup.labels)
        # Kept beside the tokens by what it learns from: ablations find it there, and none takes another's place.
        mark = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:8]
        folder = pathlib.Path(self.hparams["token_folder"]) / f"{name}_{self.tokenizer.fingerprint}_{mark}"
        report = folder / "report.json"
        if not (report.is_file() and json.loads(report.read_text(encoding="utf-8"))["stamp"] == stamp):
            brain = TokenEmotionBrain(
                {"classifier": classifier},
                TokenSteps(rows, batch_size, seed=seed, training=True),
                hparams={"epochs": epochs, "lr": lr, "seed": seed},
                run_opts=self.run_opts,
            )
            brain.train_all()

            def save():
                classifier.save(folder)
                write_text_atomically(report, json.dumps({"stamp": stamp}) + "\n")

            run_on_main(save)
        return load_token_classifier(folder)

    def _brain(self):
        hparams = self.hparams
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        sizes = {phase.batch_size for phase in self.schedule.phases}
        if len(sizes) > 1:
            raise ValueError(f"phases have the batch sizes {sorted(sizes)}; here all have the same")
        size = sizes.pop()
        options = {"micro_batch_size": hparams.get("micro_batch_size"), "seed": hparams["seed"]}
        return SpeechTokenBrain(
            {"model": self.objective},
            self.schedule,
            TokenSteps(
                self.rows["train"],
                size,
                training=True,
                interleave=hparams["interleave"],
                join=hparams["join"],
                rank=rank[0],
                world_size=rank[1],
                **options,
            ),
            TokenSteps(self.rows["valid"], size, join=hparams["join"], **options),
            self.output_folder / "train_log.jsonl",
            hparams["opt_class"],
            {
                "seed": hparams["seed"],
                "emotion_weight": hparams["emotion_weight"],
                "lr_scales": hparams.get("lr_scales"),
            },
            {
                **self.run_opts,
                "max_grad_norm": hparams["max_grad_norm"],
                "precision": hparams.get("precision", "fp32"),
                "eval_precision": "fp32",
            },
            AtomicCheckpointer(hparams["save_folder"]),
        )

    def train(self):
        """Train what is not done yet and load the best weights."""
        self.brain.train_all()
        self.brain.load_best()
        self.objective.eval()

    # -- scores on tokens ----------------------------------------------------------------------------------

    def prompts(self):
        """A neutral recording of every test speaker: the voice prompt of the protocol ``neutral``.

        None of anyone where ``prompted`` is false in the YAML: the language model speaks without hearing a voice.

        Returns
        -------
        dict
            speaker -> row of the test part.
        """
        if not self.hparams.get("prompted", True):
            return {}
        neutral, found = self.markup.labels.index(self.markup.untagged[0]), {}
        for row, (values, speaker) in enumerate(zip(self.rows["test"].rows, self.rows["test"].speakers)):
            if speaker not in found and set(values["word_labels"]) == {neutral}:
                found[speaker] = row
        return found

    def requests(self, rows, neutral=False, seed=0):
        """Requests for rows of the test part, each with a neutral prompt of its speaker where there is one."""
        test, prompts, made = self.rows["test"], self.prompts(), []
        emotion, intensity = (
            names.index(value)
            for names, value in zip((self.markup.labels, self.markup.intensities), self.markup.untagged)
        )
        if test.continuous:
            intensity = 0.0
        for number in rows:
            row, prompt = test.rows[number], prompts.get(test.speakers[number])
            size = len(row["text"])
            own = {}
            if prompt is not None and prompt != number:
                voice = test.rows[prompt]
                own = {
                    "prompt_text": tuple(voice["text"]),
                    "prompt_emotions": tuple(voice["emotions"]),
                    "prompt_intensities": tuple(voice["intensities"]),
                    "prompt_speech": tuple(voice["speech"]),
                }
            made.append(
                TokenRequest(
                    tuple(row["text"]),
                    (emotion,) * size if neutral else tuple(row["emotions"]),
                    (intensity,) * size if neutral else tuple(row["intensities"]),
                    seed=1000003 * seed + number,
                    **own,
                )
            )
        return made

    def speak(self, rows, neutral=False, seed=0, batch_size=32):
        """Tokens for rows of the test part: list of Generated."""
        settings, made = SamplingSettings(**self.hparams["sampling"]), []
        self.lm.to(self.device).eval()
        requests = self.requests(rows, neutral, seed)
        for start in tqdm(range(0, len(requests), batch_size), desc="speak", unit="batch", mininterval=1.0):
            made += generate(self.lm, requests[start : start + batch_size], settings)
        return made

    def hear(self, tokens):
        """Class probabilities (T, K) that the tokenizer's recogniser hears in each list of tokens; None without one."""
        if not hasattr(self.tokenizer, "read"):
            return None
        self.tokenizer.to(self.device)
        heard = []
        for row in tokens:
            values = torch.tensor([row], device=self.device)
            output = self.tokenizer.read(values, torch.tensor([len(row)], device=self.device))
            heard.append(output.logits[0].float().softmax(-1).cpu().numpy())
        return heard

    @torch.no_grad()
    def judged(self, tokens, words, num_words):
        """Emotion that the judge hears in each word; -1 for words without a token."""
        judge = self.judge.to(self.device)
        logits = judge(
            torch.tensor([tokens], device=self.device),
            torch.tensor([len(tokens)], device=self.device),
            torch.tensor([words], device=self.device),
            num_words,
        )[0]
        said = logits.argmax(-1).tolist()
        return [said[word] if word in words else -1 for word in range(num_words)]

    def evaluate(self):
        """Scores over the tokens of unseen sentences, and their ceiling and floor; writes the results.

        Returns
        -------
        dict
            ``test.tokens.<condition>.<metric>``; conditions ``marked``, ``neutral`` (no marks: the floor) and
            ``recordings`` (true tokens: the ceiling).
        """
        test = self.rows["test"]
        prompts = set(self.prompts().values())
        rows = [i for i in range(len(test)) if i not in prompts and test.rows[i]["speech"]]
        rows = rows[:: max(1, len(rows) // int(self.hparams["num_evaluated"]))]
        true = [test.rows[i]["speech"] for i in rows]
        heard_true = self.hear(true)
        metrics = {"test.tokens.count": len(rows), "test.tokens.prompt": "neutral" if prompts else "none"}
        for condition in ("recordings", "marked", "neutral"):
            if condition == "recordings":
                tokens = true
            else:
                made = self.speak(rows, neutral=condition == "neutral")
                tokens = [one.tokens for one in made]
                share = np.mean([one.finish_reason == "eos" for one in made])
                metrics[f"test.tokens.{condition}.eos"] = float(share)
                ratio = [len(one.tokens) / len(row) for one, row in zip(made, true)]
                metrics[f"test.tokens.{condition}.duration_ratio"] = float(np.median(ratio))
            heard = heard_true if condition == "recordings" else self.hear(tokens)
            correct, total, changed, silence = 0, 0, [], 0
            confusion = np.zeros((len(self.markup.labels),) * 2, dtype=int)
            for place, number in enumerate(rows):
                row, labels = test.rows[number], test.rows[number]["word_labels"]
                words = row["speech_words"]
                if condition != "recordings":
                    if heard is None:
                        words = [-1] * len(tokens[place])
                    else:
                        words = warp_words(heard_true[place], words, heard[place])
                        difference = edit_share(collapse(heard_true[place]), collapse(heard[place]))
                        changed.append(difference)
                for label, said in zip(labels, self.judged(tokens[place], words, len(labels))):
                    if label >= 0 and said >= 0:
                        confusion[label, said] += 1
                    silence += said < 0
                    total += label >= 0
            correct = int(np.trace(confusion))
            recall = np.diag(confusion) / np.maximum(confusion.sum(1), 1)
            metrics[f"test.tokens.{condition}.word_accuracy"] = correct / max(int(confusion.sum()), 1)
            metrics[f"test.tokens.{condition}.word_ua"] = float(recall[confusion.sum(1) > 0].mean())
            metrics[f"test.tokens.{condition}.words"] = int(total)
            metrics[f"test.tokens.{condition}.words_without_token"] = int(silence)
            metrics[f"test.tokens.{condition}.confusion"] = confusion.tolist()
            if changed:
                metrics[f"test.tokens.{condition}.phone_difference"] = float(np.mean(changed))
        metrics.update(self._film_scores())
        if self.label_agreement is not None:
            metrics["train.label_agreement"] = self.label_agreement
        if if_main_process():
            self._write_results(metrics)
            self._pictures(metrics)
        return metrics

    @torch.no_grad()
    def film_table(self):
        """gamma and beta of every emotion and intensity.

        Returns
        -------
        tuple or None
            Names, gamma (N, D) and beta (N, D) float32; None without a modulation.
        """
        film = self.lm.film
        if film is None:
            return None
        pairs = [(e, i) for e in range(len(self.markup.labels)) for i in range(len(self.markup.intensities))]
        emotions, levels = (torch.tensor(column, device=self.device) for column in zip(*pairs))
        gamma, beta = film.to(self.device).parameters_of(emotions, film.levels(levels))
        names = [f"{self.markup.labels[e]}/{self.markup.intensities[i]}" for e, i in pairs]
        return names, gamma.float().cpu().numpy(), beta.float().cpu().numpy()

    def _film_scores(self):
        """How far the modulation went from identity: gamma near 1 with beta near 0 is flat prosody."""
        table = self.film_table()
        if table is None:
            return {}
        _, gamma, beta = table
        size = float(self.lm.body.embed_tokens.weight.detach().float().square().mean().sqrt())
        return {
            "test.film.gamma_deviation": float(np.sqrt(np.mean((gamma - 1) ** 2))),
            "test.film.beta_over_embedding": float(np.sqrt(np.mean(beta**2)) / size),
        }

    def _write_results(self, metrics):
        hparams = self.hparams
        context = results.run_context(
            seed=hparams["seed"],
            hparams=plain_hparams(hparams),
            split_hash=split_hash(self.records),
            wall_time=time.time() - self.started,
            audio_seconds=sum(r["duration"] for r in self.records["train"].values())
            * self.schedule.num_epochs,
            command=hparams.get("command"),
            train_seconds=self.brain.progress["seconds"],
            num_records={split: len(part) for split, part in self.records.items()},
            rejected=self.rejected,
            trainable_parameters={
                name: sum(p.numel() for module in modules for p in module.parameters())
                for name, modules in self.objective.groups().items()
                if name in self.schedule.phases[-1].groups
            },
        )
        results.write_results(self.output_folder, metrics, context)
        rows = []
        for condition in ("recordings", "marked", "neutral"):
            prefix = f"test.tokens.{condition}."
            row = {"tokens": condition}
            for name in ("eos", "duration_ratio", "phone_difference", "word_accuracy", "word_ua"):
                if prefix + name in metrics:
                    row[name] = metrics[prefix + name]
            rows.append(row)
        print(results.format_table(rows, style="plain"))
        print(f"Results and pictures: {self.output_folder}")

    def _pictures(self, metrics):
        folder = self.output_folder
        plots.plot_confusion_matrix(
            np.array(metrics["test.tokens.marked.confusion"]),
            list(self.markup.labels),
            folder / "confusion_tokens.png",
            "Marked against heard, words of generated tokens",
        )
        table = self.film_table()
        if table is not None:
            plots.plot_film(*table, len(self.markup.intensities), folder / "film.png")
        history = [
            {
                "epoch": line["epoch"],
                "phase": line["phase"],
                **{f"{part} token_loss": line[part]["token_loss"] for part in ("train", "valid")},
                "valid token_accuracy": line["valid"]["token_accuracy"],
            }
            for line in self.brain.progress["history"]
        ]
        plots.plot_training_curves(history, folder / "training.png")

    def export(self):
        """Write the folder that ``EmotionalTTS`` loads; acoustic parts come from the folders that the YAML names."""
        from speechbrain_emo.inference.export import export_tts

        hparams = self.hparams
        metrics = json.loads((self.output_folder / "results.json").read_text(encoding="utf-8"))["metrics"]
        parts = {
            name: hparams[f"{name}_folder"]
            for name in ("speech_tokenizer", "speaker_encoder", "flow", "vocoder")
            if hparams.get(f"{name}_folder")
        }
        missing = [name for name, path in parts.items() if not pathlib.Path(path).exists()]
        for name in missing:
            logger.warning(
                f"{parts.pop(name)} is not there: the exported model has no {name}; "
                + (
                    "Griffin-Lim makes its sound"
                    if name == "vocoder"
                    else "nothing can be spoken with it yet"
                )
            )
        export_tts(
            self.output_folder / "model",
            self.lm,
            self.text_tokenizer,
            parts,
            {
                "labels": list(self.markup.labels),
                "intensities": list(self.markup.intensities),
                "untagged": list(self.markup.untagged),
                "sampling": dict(hparams["sampling"]),
                "language": hparams.get("language", "en"),
                "plain_words": bool(hparams["text"].get("plain_words")),
            },
            {
                "experiment": hparams["experiment"],
                "git_commit": results.git_commit(),
                "seed": hparams["seed"],
                "license": hparams.get("license"),
                "metrics": {k: v for k, v in metrics.items() if not isinstance(v, list)},
                "command": hparams.get("command"),
            },
        )


def _annotated(word_labels):
    if word_labels not in ("own", "annotated"):
        raise ValueError(f"word_labels is {word_labels!r}; allowed: own, annotated")
    return word_labels == "annotated"


def _agreement(own, used):
    """Share of speech tokens that are trained on under the label of the word that they belong to."""
    right = total = 0
    for first, second in zip(own.rows, used.rows):
        for a, b in zip(first["speech_words"], second["speech_words"]):
            if a >= 0:
                total += 1
                right += b >= 0 and first["word_labels"][a] == second["word_labels"][b]
    return right / max(total, 1)


def run_speech_token_lm(hparams, run_opts):
    """Train, score and export; a finished run is not repeated.

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
    experiment = SpeechTokenExperiment(hparams, run_opts)
    experiment.train()
    experiment.evaluate()
    run_on_main(experiment.export)
    run_on_main(write_text_atomically, args=[done, settings])
