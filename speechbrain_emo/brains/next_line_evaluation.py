"""Evaluation of emotion in conversation: what is heard in one recording, and what is predicted for the next line.

``evaluation.kind: next_line`` in the YAML chooses it. Every row is measured with the weights of a named phase (its best
validation checkpoint). Key of a number: ``<split>.<task>.<condition>@<phase>.<metric>``. Conditions say what stands for
the emotions of the history: ``speech`` (embeddings), ``gold`` (labels as words), ``nothing`` (its words alone),
``speech_only`` (embeddings without the words of the history). Beside them stand the majority label, the last line's
label, and a GRU over the emotion embeddings without any language model.
"""

import contextlib
import copy
import functools
import json
import logging
import statistics
import time
from collections import Counter

import torch
from speechbrain.utils.distributed import if_main_process

from speechbrain_emo import plots, results
from speechbrain_emo.brains.dialogue_evaluation import DialogueEvaluation
from speechbrain_emo.brains.distributed import world
from speechbrain_emo.dataio.audio_changes import FAULTS
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.lobes.history_gru import HistoryGRU
from speechbrain_emo.metrics.classification import classification_scores
from speechbrain_emo.prompts.next_line import NEUTRAL, match_label, split_label
from speechbrain_emo.prompts.tasks import keyed_random

logger = logging.getLogger(__name__)

#: Condition -> source of the slot, and whether the words of the history stay.
CONDITIONS = {
    "speech": ("speech", True),
    "gold": ("text", True),
    "nothing": ("nothing", True),
    "speech_only": ("speech", False),
}


def label_scores(references, predictions, emotions, intensities=()):
    """Scores of labels, apart for emotion and intensity.

    Arguments
    ---------
    references : sequence of str
        True labels.
    predictions : sequence of (str or None)
        Predicted labels; None is wrong.
    emotions : sequence of str
        All emotions.
    intensities : sequence of str
        All intensities. Their scores are over lines whose true emotion is not neutral.

    Returns
    -------
    dict
        ``accuracy`` of the whole label; ``emotion_wa``, ``emotion_ua``, ``emotion_f1`` (macro), and, where there are
        intensities, ``intensity_wa`` and ``intensity_f1``.

    Example
    -------
    >>> label_scores(["neutral", "weak sad"], ["neutral", "strong sad"], ["neutral", "sad"], ["weak", "strong"])
    {'accuracy': 0.5, 'emotion_wa': 1.0, 'emotion_ua': 1.0, 'emotion_f1': 1.0, 'intensity_wa': 0.0, 'intensity_f1': 0.0}
    """
    true = [split_label(r) for r in references]
    found = [split_label(p) if p is not None else (None, None) for p in predictions]
    emotion = classification_scores([t[1] for t in true], [f[1] for f in found], list(emotions))
    scores = {
        "accuracy": sum(r == p for r, p in zip(references, predictions, strict=True)) / len(references),
        "emotion_wa": float(emotion.wa),
        "emotion_ua": float(emotion.ua),
        "emotion_f1": float(emotion.macro_f1),
    }
    with_intensity = [(t[0], f[0]) for t, f in zip(true, found) if t[0] is not None]
    if intensities and with_intensity:
        degree = classification_scores(*map(list, zip(*with_intensity)), list(intensities))
        scores.update(intensity_wa=float(degree.wa), intensity_f1=float(degree.macro_f1))
    return scores


class NextLineEvaluation:
    """Measures a trained experiment.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        With ``evaluation.kind: next_line``. Keys of ``evaluation``: ``recognition`` and ``prediction`` (lists of
        ``phase`` and ``task``, prediction with ``conditions``, and ``split`` where it is another than ``test``), and
        optionally ``num_beams``, ``batch_size``, ``limit`` (test records), ``replies`` (numbers of
        replies in a row at which consistency is measured), ``gru`` (``phase``, ``task``, ``hidden_size``,
        ``epochs``, ``lr``), ``robustness`` (``changes`` of the audio, of ``audio_changes.FAULTS``, and ``limit``, about
        so many records), ``latency_records`` (records whose seconds are taken one by one; 10).

    Example
    -------
    >>> sorted(CONDITIONS)
    ['gold', 'nothing', 'speech', 'speech_only']
    """

    def __init__(self, experiment):
        self.experiment = experiment
        self.settings = experiment.hparams["evaluation"]
        self.tools = DialogueEvaluation(experiment)
        self.format = experiment.format
        self.intensities = list(self.format.spec.get("intensity", ()))
        self.lines = []

    def run(self):
        """Measure everything; the weights of the last phase are loaded at the end.

        Returns
        -------
        dict
            Metrics.
        """
        metrics, brain = {}, self.experiment.brain
        rows = [("recognition", r) for r in self.settings.get("recognition") or ()]
        rows += [("prediction", r) for r in self.settings.get("prediction") or ()]
        rows += [("gru", self.settings["gru"])] if self.settings.get("gru") else []
        for phase in dict.fromkeys(row["phase"] for _, row in rows):
            key = next(k for k in reversed(self.experiment.schedule.keys) if k.split(".", 1)[1] == phase)
            brain.load_best(key)
            self.tools.model.eval()
            self.tools.forget_slots()
            for kind, row in rows:
                if row["phase"] == phase:
                    metrics.update(getattr(self, kind)(row))
        for row in self.settings.get("prediction") or ():
            metrics.update(self.simple_baselines(row["task"], row.get("split", "test")))
        brain.load_best(self.experiment.schedule.keys[-1])
        self.tools.forget_slots()
        if if_main_process():
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            write_text_atomically(self.experiment.output_folder / "answers.jsonl", text)
        return metrics

    # -- one task ------------------------------------------------------------------------------------------

    def predict(self, task, split, build):
        """Answers of a task.

        Arguments
        ---------
        task : EmotionTask or NextLineTask
            What is asked.
        split : str
            Name of a manifest.
        build : callable
            record -> Example, or None to leave it out.

        Returns
        -------
        tuple of dict
            Record number -> written label (or None), record number -> most likely of the valid labels.
        """
        beams = self.settings.get("num_beams", 1)
        candidates = [self.tools.packer.answer_ids(task.answer_fields(v)) for v in task.values]
        # The longest label and the end behind it: a fixed number cut "strong angry" of a tokenizer of letters.
        self.tools.max_new_tokens = max(len(ids) for ids in candidates) + 1
        written = self.tools.answers(split, build, task.name, beams)
        scored = self.tools.scored(split, build, candidates, sorted(written))
        best = {i: task.values[max(range(len(row)), key=row.__getitem__)] for i, row in scored.items()}
        return {i: match_label(text, task.values) for i, text in written.items()}, best

    def measured(self, task, condition, phase, build, split="test"):
        """Scores of a task under a condition, with the seconds that an answer took."""
        started = time.time()
        written, best = self.predict(task, split, build)
        seconds = (time.time() - started) / max(len(written), 1)
        records, order = self.experiment.data[split].records, sorted(written)
        if not order:
            raise ValueError(
                f"evaluation: no record of {split} has what the task {task.name!r} needs under the condition "
                f"{condition!r}: take the row out of the YAML, or add records"
            )
        truth = {i: task.label(records[i]) for i in order}
        key = f"{split}.{task.name}.{condition}@{phase}"
        intensities = self.intensities if task.intensity else ()
        metrics = {}
        for name, found in (("", written), ("scored_", best)):
            scores = label_scores(
                [truth[i] for i in order],
                [found[i] for i in order],
                self._emotions(task),
                intensities,
            )
            metrics.update({f"{key}.{name}{k}": v for k, v in scores.items()})
        metrics[f"{key}.unmatched"] = sum(written[i] is None for i in order) / len(order)
        metrics[f"{key}.seconds"] = seconds
        metrics[f"{key}.count"] = len(order)
        metrics[f"{key}.latency"] = self.latency(
            split, order, lambda i: self._score_one(split, i, build, task)
        )
        metrics.update(self._sizes(key, heard=CONDITIONS[condition][0] == "speech"))
        self._note(split, task, condition, phase, order, best, truth, written)
        return metrics, best, truth

    def _note(self, split, task, condition, phase, order, best, truth, written=None):
        """Keep answers for ``answers.jsonl``: labels of records by number, or in order."""
        records = self.experiment.data[split].records
        for i in order:
            line = {"id": records[i]["id"], "split": split, "task": task.name, "condition": condition}
            line.update(phase=phase, scored=best[i], truth=truth[i])
            self.lines.append({**line, **({} if written is None else {"written": written[i]})})

    def _score_one(self, split, i, build, task):
        candidates = [self.tools.packer.answer_ids(task.answer_fields(v)) for v in task.values]
        self.tools.score_examples(split, [i], [build(self.experiment.data[split].records[i])], candidates)

    def latency(self, split, order, answer):
        """Median seconds that one record takes by itself, from its recordings on.

        Arguments
        ---------
        split : str
            Name of a manifest.
        order : sequence of int
            Numbers of records; some of them, evenly spread, are taken.
        answer : callable
            Number -> whatever is timed.

        Returns
        -------
        float
        """
        most = int(self.settings.get("latency_records", 10))
        # Text alone has no audio to read anew.
        live = None if self.experiment.encoder is None else "clean"
        seconds = []
        with self._audio(live):
            for i in order[:: max(len(order) // most, 1)][:most]:
                self.tools.forget_slots()
                started = time.perf_counter()
                answer(i)
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    @contextlib.contextmanager
    def _audio(self, change):
        """Another source of audio for a while; slots computed before are kept for after it."""
        kept, self.tools._slots, self.tools.change = self.tools._slots, {}, change
        try:
            yield
        finally:
            self.tools._slots, self.tools.change = kept, None

    def _sizes(self, key, heard, others=0, llm=True):
        """Parameters that a row needs, and their bytes; ``others``: parameters beside the model's."""
        run = self.experiment
        modules = [run.llm] if llm else []
        modules += [m for m in (run.encoder, run.model.front_end) if m is not None] if heard else []
        weights = [p for m in modules for p in m.parameters()]
        return {
            f"{key}.parameters": sum(p.numel() for p in weights) + others,
            f"{key}.weights_bytes": sum(p.numel() * p.element_size() for p in weights) + 4 * others,
        }

    def _emotions(self, task):
        return list(dict.fromkeys(split_label(v)[1] for v in task.values))

    def recognition(self, row):
        """What is heard in one recording (stages 1-1 and 1-2)."""
        task = self.experiment.tasks[row["task"]]

        def build(record):
            return task.build(record) if task.applies(record) else None

        metrics, _, _ = self.measured(task, "speech", row["phase"], build)
        metrics.update(self.robustness(task, row["phase"], build))
        return metrics

    def prediction(self, row):
        """The next line under every condition, and where it fails."""
        task, metrics, split = self.experiment.tasks[row["task"]], {}, row.get("split", "test")
        for condition in row["conditions"]:
            build = functools.partial(self.build, task, condition=condition)
            own, best, truth = self.measured(task, condition, row["phase"], build, split)
            metrics.update(own)
            metrics.update(self.by_kind(task, condition, row["phase"], best, truth, split))
            if condition == "speech" and split == "test":
                metrics.update(self.robustness(task, row["phase"], build))
        if row.get("consistency"):
            metrics.update(self.consistency(task, row["phase"], split))
        return metrics

    def robustness(self, task, phase, build, split="test"):
        """Most likely labels after faults of the audio, over some records.

        Arguments
        ---------
        task : EmotionTask or NextLineTask
            What is asked.
        phase : str
            Whose weights are loaded.
        build : callable
            record -> Example, or None to leave it out.
        split : str
            Name of a manifest.

        Returns
        -------
        dict
            ``robust_<fault>.<task>.speech@<phase>.<metric>``; nothing where the YAML asks for no ``robustness``.

        Raises
        ------
        ValueError
            If a fault is unknown.
        """
        settings = self.settings.get("robustness")
        if not settings:
            return {}
        unknown = [c for c in settings["changes"] if c not in FAULTS]
        if unknown:
            raise ValueError(
                f"evaluation.robustness: unknown changes {unknown}; allowed: {', '.join(FAULTS)}"
            )
        records = self.experiment.data[split].records
        order = [i for i in self.tools.numbers(split) if build(records[i]) is not None]
        order = order[:: max(len(order) // int(settings.get("limit") or len(order)), 1)]
        candidates = [self.tools.packer.answer_ids(task.answer_fields(v)) for v in task.values]
        truth, metrics = [task.label(records[i]) for i in order], {}
        for change in dict.fromkeys(("clean", *settings["changes"])):
            with self._audio(change):
                scored = self.tools.scored(split, build, candidates, order)
            found = [task.values[max(range(len(scored[i])), key=scored[i].__getitem__)] for i in order]
            scores = label_scores(
                truth, found, self._emotions(task), self.intensities if task.intensity else ()
            )
            key = f"robust_{change}.{task.name}.speech@{phase}"
            metrics.update({f"{key}.{k}": v for k, v in scores.items()})
            metrics[f"{key}.count"] = len(order)
        return metrics

    def build(self, task, record, condition):
        """The example of a record under a condition; None where the task does not apply."""
        if not task.applies(record):
            return None
        source, words = CONDITIONS[condition]
        if source == "speech" and not all(t.get("audio") is not None for t in task.history(record)):
            return None
        if not words:
            record = {**record, "turns": [{**t, "text": ""} for t in record["turns"]]}
        return task.build(record, slot_sources={"emotion": source})

    def by_kind(self, task, condition, phase, best, truth, split="test"):
        """Accuracy of the emotion by length of the history, by intensity, and where the emotion changes or stays."""
        records, groups = self.experiment.data[split].records, {}
        for i, found in best.items():
            right = split_label(found)[1] == split_label(truth[i])[1]
            history = task.history(records[i])
            names = [f"history_{len(history)}"]
            last = history[-1].get("emotion")
            if last is not None:
                names.append("change" if last != split_label(truth[i])[1] else "stay")
            degree = split_label(truth[i])[0]
            names.append(f"intensity_{degree or ('none' if task.intensity else 'unknown')}")
            for name in names:
                groups.setdefault(name, []).append(right)
        key = f"{split}.{task.name}.{condition}@{phase}"
        metrics = {f"{key}.wa_{name}": sum(rows) / len(rows) for name, rows in sorted(groups.items())}
        metrics.update({f"{key}.count_{name}": len(rows) for name, rows in sorted(groups.items())})
        return metrics

    def consistency(self, task, phase, split="test"):
        """The n-th reply in a row when the model hears its own predictions as the emotions of the lines before.

        Every conversation is begun with its first history; each next line gets the predicted label, as words, in
        place of the true one. ``agreement``: the same emotion as with the true history.
        """
        records = self.experiment.data[split].records
        talks = {}
        for i in range(len(records)):
            if task.applies(records[i]) and records[i]["id"].rpartition("_")[2].isdigit():
                name, _, number = records[i]["id"].rpartition("_")
                talks.setdefault(name, []).append((int(number), i))
        rank, world_size = world()
        mine = sorted(talks)[rank::world_size]
        predicted, found = {name: {} for name in mine}, {}
        candidates = [self.tools.packer.answer_ids(task.answer_fields(v)) for v in task.values]
        longest = max((len(v) for v in talks.values()), default=0)
        for reply in range(1, longest + 1):
            some = [(n, *sorted(talks[n])[reply - 1]) for n in mine if len(talks[n]) >= reply]
            if not some:
                continue
            rows = []
            for replaced in (True, False):
                examples = []
                for name, number, i in some:
                    record = records[i]
                    if replaced:
                        record = _with_predictions(record, number, predicted[name])
                    examples.append(task.build(record, slot_sources={"emotion": "text"}))
                rows.append(self.tools.score_examples(split, [i for *_, i in some], examples, candidates))
            for (name, number, i), own, gold in zip(some, *rows, strict=True):
                label, other = (task.values[max(range(len(r)), key=r.__getitem__)] for r in (own, gold))
                predicted[name][number] = label
                right = split_label(label)[1] == split_label(task.label(records[i]))[1]
                found[i] = (reply, right, split_label(label)[1] == split_label(other)[1])
        found = self.tools._gathered(found)
        metrics, key = {}, f"{split}.{task.name}.replies@{phase}"
        for n in self.settings.get("replies", (2, 5, 10)):
            rows = [v for v in found.values() if v[0] == n]
            if rows:
                metrics[f"{key}.wa_{n}"] = sum(r[1] for r in rows) / len(rows)
                metrics[f"{key}.agreement_{n}"] = sum(r[2] for r in rows) / len(rows)
                metrics[f"{key}.count_{n}"] = len(rows)
        return metrics

    # -- without a language model --------------------------------------------------------------------------

    def simple_baselines(self, name, split="test"):
        """The majority label of training, and the label of the last line (of anyone, and of the same speaker)."""
        task = self.experiment.tasks[name]
        train = self.experiment.data["train"].records
        labels = Counter(
            split_label(task.label(train[i]))[1] for i in range(len(train)) if task.applies(train[i])
        )
        whole = Counter(task.label(train[i]) for i in range(len(train)) if task.applies(train[i]))
        records = self.experiment.data[split].records
        numbers = [i for i in range(len(records)) if task.applies(records[i])]
        rows = [records[i] for i in numbers]
        truth = [task.label(r) for r in rows]
        guesses = {"majority": [whole.most_common(1)[0][0]] * len(rows)}
        if not task.intensity:
            guesses["majority"] = [labels.most_common(1)[0][0]] * len(rows)
        for condition, own in (("copy_last", False), ("copy_own", True)):
            guesses[condition] = [_copied(task, r, own) for r in rows]
        metrics = {}
        for condition, predictions in guesses.items():
            scores = label_scores(
                truth, predictions, self._emotions(task), self.intensities if task.intensity else ()
            )
            metrics.update({f"{split}.{task.name}.{condition}.{k}": v for k, v in scores.items()})
            by_number = (dict(zip(numbers, labels, strict=True)) for labels in (predictions, truth))
            self._note(split, task, condition, None, numbers, *by_number)
        return metrics

    def gru(self, row):
        """A GRU over the mean emotion embedding of every utterance, trained on the training part."""
        task = self.experiment.tasks[row["task"]]
        started = time.time()
        parts = {split: self._histories(task, split) for split in ("train", "valid", "test")}
        seed = self.experiment.hparams["seed"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = HistoryGRU(
                parts["train"][0][0].shape[1], int(row.get("hidden_size", 64)), len(task.values)
            )
            optimizer = torch.optim.AdamW(model.parameters(), lr=float(row.get("lr", 1e-3)))
            kept = None
            for epoch in range(int(row.get("epochs", 20))):
                model.train()
                order = list(range(len(parts["train"][2])))
                keyed_random(seed, "gru", epoch).shuffle(order)
                for start in range(0, len(order), 32):
                    some = order[start : start + 32]
                    loss = _gru_loss(model, parts["train"], some)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                model.eval()
                with torch.no_grad():
                    valid = float(_gru_loss(model, parts["valid"], range(len(parts["valid"][2]))))
                if kept is None or valid < kept[0]:
                    kept = (valid, copy.deepcopy(model.state_dict()))
        model.load_state_dict(kept[1])
        trained = time.time() - started
        with torch.no_grad():
            best = model(*parts["test"][:2]).argmax(1).tolist()
        truth, found = ([task.values[i] for i in numbers] for numbers in (parts["test"][2], best))
        scores = label_scores(
            truth,
            found,
            self._emotions(task),
            self.intensities if task.intensity else (),
        )
        key = f"test.{task.name}.gru@{row['phase']}"
        metrics = {f"{key}.{k}": v for k, v in scores.items()}
        metrics[f"{key}.train_seconds"] = trained
        own = sum(p.numel() for p in model.parameters())
        metrics[f"{key}.own_parameters"] = own
        metrics.update(self._sizes(key, heard=True, others=own, llm=False))
        order = parts["test"][3]

        @torch.no_grad()
        def answer(i):
            features, same = self._history(task, "test", i)
            model([features], [same])

        metrics[f"{key}.latency"] = self.latency("test", order, answer)
        by_number = (dict(zip(order, labels, strict=True)) for labels in (found, truth))
        self._note("test", task, "gru", row["phase"], order, *by_number)
        return metrics

    def _histories(self, task, split):
        """(utterance features, same speaker, label numbers, record numbers) of the records with a spoken history."""
        records, rows = self.experiment.data[split].records, ([], [], [], [])
        for i in range(len(records)):
            if self.build(task, records[i], "speech") is None:
                continue
            features, same = self._history(task, split, i)
            values = (features, same, task.values.index(task.label(records[i])), i)
            for column, value in zip(rows, values, strict=True):
                column.append(value)
        return rows

    def _history(self, task, split, i):
        """Mean emotion embedding of every turn of a record, (turns, d), and whether the next speaker said it."""
        record = self.experiment.data[split].records[i]
        turns = task.history(record)
        features = [self.tools.slots(split, i, t["audio"])["emotion"].float().mean(0) for t in turns]
        same = [float(t.get("speaker") == record["response"].get("speaker")) for t in turns]
        return torch.stack(features), torch.tensor(same)


def _gru_loss(model, part, some):
    scores = model([part[0][i] for i in some], [part[1][i] for i in some])
    return torch.nn.functional.cross_entropy(scores, torch.tensor([part[2][i] for i in some]))


def _copied(task, record, own):
    turns = task.history(record)
    if own:
        turns = [t for t in turns if t.get("speaker") == record["response"].get("speaker")]
    if not turns:
        return NEUTRAL
    last = turns[-1]
    degree = (last.get("descriptors") or {}).get("intensity")
    return f"{degree} {last['emotion']}" if task.intensity and degree else last.get("emotion") or NEUTRAL


def _with_predictions(record, number, predicted):
    """A record whose history has predicted labels where there are some; turn t is line number - len + t."""
    turns, first = [], number - len(record["turns"])
    for t, turn in enumerate(record["turns"]):
        label = predicted.get(first + t)
        if label is not None:
            degree, emotion = split_label(label)
            turn = {**turn, "emotion": emotion, "descriptors": {"intensity": degree} if degree else {}}
        turns.append(turn)
    return {**record, "turns": turns}


def next_line_table(metrics, settings):
    """The result tables for the terminal and for RESULTS.md.

    Arguments
    ---------
    metrics : dict
        Of :meth:`NextLineEvaluation.run`.
    settings : mapping
        The YAML's ``evaluation``.

    Returns
    -------
    str
    """

    def row(title, key):
        columns = ("accuracy", "emotion_wa", "emotion_ua", "emotion_f1", "intensity_wa", "intensity_f1")
        own = {c: metrics.get(f"{key}.scored_{c}", metrics.get(f"{key}.{c}")) for c in columns}
        out = {"row": title, **own, "written": metrics.get(f"{key}.accuracy")}
        if metrics.get(f"{key}.parameters") is not None:
            out["parameters (thousands)"] = round(metrics[f"{key}.parameters"] / 1000)
            out["weights (MB)"] = round(metrics[f"{key}.weights_bytes"] / 1e6, 1)
        if metrics.get(f"{key}.latency") is not None:
            out["one line (s)"] = metrics[f"{key}.latency"]
        return out

    parts, rows = [], []
    for entry in settings.get("recognition") or ():
        rows.append(
            row(f"heard: {entry['task']}@{entry['phase']}", f"test.{entry['task']}.speech@{entry['phase']}")
        )
    for entry in settings.get("prediction") or ():
        split = entry.get("split", "test")
        place = "" if split == "test" else f"{split}: "
        for condition in entry["conditions"]:
            name = f"{entry['task']}.{condition}@{entry['phase']}"
            rows.append(row(f"{place}{name}", f"{split}.{name}"))
        for condition in ("majority", "copy_last", "copy_own"):
            name = f"{entry['task']}.{condition}"
            rows.append(row(f"{place}{name}", f"{split}.{name}"))
    if settings.get("gru"):
        name = f"{settings['gru']['task']}.gru@{settings['gru']['phase']}"
        rows.append(row(name, f"test.{name}"))
    parts.append(results.format_table(rows))
    rows = []
    for entry in settings.get("prediction") or ():
        split = entry.get("split", "test")
        for condition in entry["conditions"]:
            name = f"{entry['task']}.{condition}@{entry['phase']}"
            found = by_group(metrics, f"{split}.{name}")
            rows.append({"emotion by": name if split == "test" else f"{split}: {name}", **found})
        key = f"{split}.{entry['task']}.replies@{entry['phase']}."
        found = {k.removeprefix(key): v for k, v in metrics.items() if k.startswith(key)}
        if found:
            parts.append(results.format_table([{"replies in a row": entry["task"], **found}]))
    if rows:
        parts.append(results.format_table(rows))
    rows = fault_rows(metrics)
    if rows:
        parts.append(results.format_table(rows))
    return "\n\n".join(parts)


def by_group(metrics, key, what="wa"):
    """Accuracy of the emotion (or ``count``) by group of a row, lengths of the history in order.

    Example
    -------
    >>> by_group({"k.wa_history_10": 0.1, "k.wa_history_2": 0.2, "k.wa_stay": 0.3}, "k")
    {'history_2': 0.2, 'history_10': 0.1, 'stay': 0.3}
    """
    start = f"{key}.{what}_"
    found = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
    return dict(sorted(found.items(), key=lambda x: _number(x[0])))


def next_line_pictures(metrics, settings, folder):
    """Where it fails, as ``next_line_<task>.png`` for every row of ``prediction``.

    Arguments
    ---------
    metrics : dict
        Of :meth:`NextLineEvaluation.run`.
    settings : mapping
        The YAML's ``evaluation``.
    folder : pathlib.Path
        Where to.
    """
    for entry in settings.get("prediction") or ():
        split, name = entry.get("split", "test"), f"{entry['task']}.%s@{entry['phase']}"
        keys = {c: f"{split}.{name % c}" for c in entry["conditions"]}
        groups = {c: by_group(metrics, key) for c, key in keys.items()}
        if not any(groups.values()):
            continue  # Every history too short to have a group: there is nothing to draw.
        replies = {}
        for title, what in (("right", "wa"), ("as with the true history", "agreement")):
            found = by_group(metrics, f"{split}.{name % 'replies'}", what)
            if found:
                replies[title] = {int(n): v for n, v in found.items()}
        counts = by_group(metrics, next(iter(keys.values())), "count")
        own = entry["task"] if split == "test" else f"{entry['task']}_{split}"
        plots.plot_next_line(groups, replies, folder / f"next_line_{own}.png", counts)


def fault_rows(metrics):
    """Rows of the table of faults: emotion and whole label of every robustness row.

    Example
    -------
    >>> found = {"robust_noise_10.next.speech@s.emotion_wa": 0.5, "robust_noise_10.next.speech@s.accuracy": 0.4}
    >>> fault_rows(found)
    [{'audio': 'white noise, SNR 10 dB', 'next.speech@s: emotion_wa': 0.5, 'next.speech@s: accuracy': 0.4}]
    """
    rows = []
    for fault, title in FAULTS.items():
        start, row = f"robust_{fault}.", {}
        for key, value in metrics.items():
            name, _, metric = key.removeprefix(start).rpartition(".")
            if key.startswith(start) and "@" in name and metric in ("emotion_wa", "emotion_ua", "accuracy"):
                row[f"{name}: {metric}"] = value
        if row:
            rows.append({"audio": title, **row})
    return rows


def _number(name):
    head, _, tail = name.rpartition("_")
    return (head, int(tail)) if tail.isdigit() else (name, 0)
