"""Evaluation of emotion in conversation: what is heard in one recording, and what is predicted for the next line.

``evaluation.kind: next_line`` in the YAML chooses it. Every row is measured with the weights of a named phase (its best
validation checkpoint). Key of a number: ``<split>.<task>.<condition>@<phase>.<metric>``. Conditions say what stands for
the emotions of the history: ``speech`` (embeddings), ``gold`` (labels as words), ``nothing`` (its words alone),
``speech_only`` (embeddings without the words of the history). Beside them stand the majority label, the last line's
label, and a GRU over the emotion embeddings without any language model.
"""

import copy
import functools
import json
import logging
import time
from collections import Counter

import torch
from speechbrain.utils.distributed import if_main_process

from speechbrain_emo import results
from speechbrain_emo.brains.dialogue_evaluation import DialogueEvaluation
from speechbrain_emo.brains.distributed import world
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
        ``phase`` and ``task``, prediction with ``conditions``), and optionally ``num_beams``, ``max_new_tokens``,
        ``batch_size``, ``limit`` (test records), ``replies`` (numbers of replies in a row at which consistency is
        measured), ``gru`` (``phase``, ``task``, ``hidden_size``, ``epochs``, ``lr``).

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
            metrics.update(self.simple_baselines(row["task"]))
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
        written = self.tools.answers(split, build, task.name, beams)
        candidates = [self.tools.packer.answer_ids(task.answer_fields(v)) for v in task.values]
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
        for i in order:
            line = {"id": records[i]["id"], "task": task.name, "condition": condition, "phase": phase}
            self.lines.append({**line, "written": written[i], "scored": best[i], "truth": truth[i]})
        return metrics, best, truth

    def _emotions(self, task):
        return list(dict.fromkeys(split_label(v)[1] for v in task.values))

    def recognition(self, row):
        """What is heard in one recording (stages 1-1 and 1-2)."""
        task = self.experiment.tasks[row["task"]]
        metrics, _, _ = self.measured(
            task, "speech", row["phase"], lambda record: task.build(record) if task.applies(record) else None
        )
        return metrics

    def prediction(self, row):
        """The next line under every condition, and where it fails."""
        task, metrics = self.experiment.tasks[row["task"]], {}
        for condition in row["conditions"]:
            own, best, truth = self.measured(
                task, condition, row["phase"], functools.partial(self.build, task, condition=condition)
            )
            metrics.update(own)
            metrics.update(self.by_kind(task, condition, row["phase"], best, truth))
        if row.get("consistency"):
            metrics.update(self.consistency(task, row["phase"]))
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
        return {f"{key}.wa_{name}": sum(rows) / len(rows) for name, rows in sorted(groups.items())}

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
        rows = [records[i] for i in range(len(records)) if task.applies(records[i])]
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
        started = time.time()
        with torch.no_grad():
            best = model(*parts["test"][:2]).argmax(1).tolist()
        scores = label_scores(
            [task.values[i] for i in parts["test"][2]],
            [task.values[i] for i in best],
            self._emotions(task),
            self.intensities if task.intensity else (),
        )
        key = f"test.{task.name}.gru@{row['phase']}"
        metrics = {f"{key}.{k}": v for k, v in scores.items()}
        metrics[f"{key}.seconds"] = (time.time() - started) / len(best)
        metrics[f"{key}.train_seconds"] = trained
        metrics[f"{key}.parameters"] = sum(p.numel() for p in model.parameters())
        return metrics

    def _histories(self, task, split):
        """(utterance features, same speaker, label numbers) of the records whose history is spoken."""
        records, rows = self.experiment.data[split].records, ([], [], [])
        for i in range(len(records)):
            record = records[i]
            if self.build(task, record, "speech") is None:
                continue
            turns = task.history(record)
            features = [self.tools.slots(split, i, t["audio"])["emotion"].float().mean(0) for t in turns]
            same = [float(t.get("speaker") == record["response"].get("speaker")) for t in turns]
            rows[0].append(torch.stack(features))
            rows[1].append(torch.tensor(same))
            rows[2].append(task.values.index(task.label(record)))
        return rows


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
        return {"row": title, **own, "written": metrics.get(f"{key}.accuracy")}

    parts, rows = [], []
    for entry in settings.get("recognition") or ():
        rows.append(
            row(f"heard: {entry['task']}@{entry['phase']}", f"test.{entry['task']}.speech@{entry['phase']}")
        )
    for entry in settings.get("prediction") or ():
        for condition in entry["conditions"]:
            name = f"{entry['task']}.{condition}@{entry['phase']}"
            rows.append(row(name, f"test.{name}"))
        for condition in ("majority", "copy_last", "copy_own"):
            rows.append(row(f"{entry['task']}.{condition}", f"test.{entry['task']}.{condition}"))
    if settings.get("gru"):
        name = f"{settings['gru']['task']}.gru@{settings['gru']['phase']}"
        rows.append(row(name, f"test.{name}"))
    parts.append(results.format_table(rows))
    rows = []
    for entry in settings.get("prediction") or ():
        for condition in entry["conditions"]:
            key = f"test.{entry['task']}.{condition}@{entry['phase']}.wa_"
            found = {k.removeprefix(key): v for k, v in metrics.items() if k.startswith(key)}
            found = {k: v for k, v in sorted(found.items(), key=lambda x: _number(x[0]))}
            rows.append({"emotion by": f"{entry['task']}.{condition}@{entry['phase']}", **found})
        key = f"test.{entry['task']}.replies@{entry['phase']}."
        found = {k.removeprefix(key): v for k, v in metrics.items() if k.startswith(key)}
        if found:
            parts.append(results.format_table([{"replies in a row": entry["task"], **found}]))
    if rows:
        parts.append(results.format_table(rows))
    return "\n\n".join(parts)


def _number(name):
    head, _, tail = name.rpartition("_")
    return (head, int(tail)) if tail.isdigit() else (name, 0)
