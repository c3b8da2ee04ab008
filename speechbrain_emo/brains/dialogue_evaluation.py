"""Evaluation of a dual-information model: what each kind of embedding holds, and how dialogues are answered.

Every row is measured with the weights of a named phase (its best validation checkpoint), and with both embeddings, the
paralinguistic ones alone, the linguistic ones alone, or neither (the language model's prior). ``evaluation.kind: dual``
in the YAML chooses it. Key of a number: ``<split>.<task>.<condition>@<phase>.<metric>``.
"""

import json
import logging
import pathlib

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

from speechbrain_emo import results
from speechbrain_emo.brains.distributed import gather, world
from speechbrain_emo.brains.speech_data import renumber_audios
from speechbrain_emo.dataio.audio_changes import change_audio
from speechbrain_emo.dataio.feature_cache import audio_segments
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.metrics.asr import word_errors
from speechbrain_emo.metrics.dialogue import (
    agreement,
    changed_share,
    label_probe,
    presence_probe,
    template_overlap,
)
from speechbrain_emo.prompts.tasks import TRANSCRIPT, TRANSCRIPT_SLOTS, keyed_seed

logger = logging.getLogger(__name__)

#: Condition -> sources of the linguistic and of the paralinguistic slot.
CONDITIONS = {
    "both": ("speech", "speech"),
    "p_only": ("nothing", "speech"),
    "l_only": ("speech", "nothing"),
    "neither": ("nothing", "nothing"),
    "text": ("text", "text"),
}


class DialogueEvaluation:
    """Measures a trained experiment.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        With ``evaluation.kind: dual``. Keys of ``evaluation``: ``phases`` (whose best checkpoints are measured),
        ``asr_task``, ``choice_tasks``, ``dialogue_task``, and optionally ``style_split`` and ``context_split`` (the
        test dialogues with the same words in another style, and with other words before the same utterance; matched by
        id), ``short_list`` (length of lists that training never showed), ``max_new_tokens``, ``batch_size``,
        ``limit`` (test records, for a quick look), ``probe_records`` (records of a split that the linear probes see,
        about; 600).

    Example
    -------
    >>> sorted(CONDITIONS)
    ['both', 'l_only', 'neither', 'p_only', 'text']
    """

    def __init__(self, experiment):
        self.experiment = experiment
        self.settings = experiment.hparams["evaluation"]
        self.brain = experiment.brain
        self.packer = experiment.packer
        self.tasks = experiment.tasks
        self.device = experiment.brain.device
        self.max_new_tokens = self.settings.get("max_new_tokens", 64)
        self.batch_size = self.settings.get("batch_size", 16)
        self.model = experiment.brain.unwrapped()
        self.lines = []
        #: One of ``audio_changes.FAULTS``: audio is read anew, changed and encoded. None: as the records give it.
        self.change = None
        self._slots = {}
        self._styled = {}
        self._text_is_measured = False

    # -- pieces --------------------------------------------------------------------------------------------

    def numbers(self, split):
        """Records of a split that are measured, similar lengths together."""
        records = self.experiment.data[split].records
        seconds = [sum(a["duration"] for a in audio_segments(records[i])) for i in range(len(records))]
        order = sorted(range(len(records)), key=lambda i: (seconds[i], i))
        limit = self.settings.get("limit")
        return order[:: max(len(order) // limit, 1)] if limit else order

    def slots(self, split, index, audio):
        """Slot embeddings of one audio: kind -> (S, d), computed once a phase."""
        data = self.experiment.data[split]
        segment = audio_segments(data.records[index])[audio]
        key = (segment["wav"], segment.get("start"), segment.get("stop"))
        if key not in self._slots:
            with torch.no_grad(), self.brain.evaluation_ctx:
                if self.change is None:
                    (loaded,) = data.records.audio(index, [audio])
                    batch = data.collate_audio([loaded]).to(self.device)
                    features = self.model.features(batch)
                else:
                    features = self._changed(segment)
                output = self.model.front_end(*features)
            # On the CPU: all slots of a large test set would not leave room for the language model.
            self._slots[key] = {
                kind: x[0, : int(output.slot_lengths[kind][0])].cpu() for kind, x in output.slots.items()
            }
        return self._slots[key]

    def _changed(self, segment):
        """Features and frames of an audio after :attr:`change`; the cache holds audio as it is only."""
        encoder = self.experiment.encoder.to(self.device)
        waveform = self.experiment._load(segment)
        place = [pathlib.Path(segment["wav"]).name, segment.get("start"), segment.get("stop")]
        seed = keyed_seed("change", self.change, *place)
        waveform = change_audio(waveform, encoder.sample_rate, self.change, seed)
        output = encoder(waveform[None].to(self.device), torch.tensor([len(waveform)], device=self.device))
        return output.features, output.num_frames

    def sources(self, task, condition):
        """Kind -> source of a task's slots under a condition."""
        linguistic, paralinguistic = CONDITIONS[condition]
        return {k: linguistic if k in TRANSCRIPT_SLOTS else paralinguistic for k in task.slot_kinds}

    def pack(self, split, indices, examples, with_answer=False):
        """Packed batch and embeddings of some records' examples."""
        rows, offsets, filled = [], [], {kind: [] for kind in self.packer.slot_kinds}
        for index, example in zip(indices, examples):
            example, used = renumber_audios(example)
            own = [self.slots(split, index, audio) for audio in used]
            offsets.append(len(filled[self.packer.slot_kinds[0]]))
            for kind, rows_of_kind in filled.items():
                rows_of_kind += [x[kind] for x in own]
            lengths = [{kind: len(x[kind]) for kind in self.packer.slot_kinds} for x in own]
            rows.append(self.packer.encode(example, lengths, with_answer=with_answer))
        packed = self.packer.collate(rows, "right" if with_answer else "left", offsets).to(self.device)
        pad = torch.nn.utils.rnn.pad_sequence
        slots = {k: pad(v, batch_first=True).to(self.device) for k, v in filled.items() if v}
        return packed, self.model.llm.embed(packed, slots)

    def forget_slots(self):
        """Compute slots anew: other weights are loaded."""
        self._slots = {}

    def answers(self, split, build, description="", num_beams=1):
        """Generated answers: record number -> text; ranks share the records.

        Arguments
        ---------
        split : str
            Name of a manifest.
        build : callable
            record -> Example, or None to leave it out.
        description : str
            Of the progress bar.
        num_beams : int
            Of the search; 1 for greedy.

        Returns
        -------
        dict of int to str
        """
        rank, world_size = world()
        records = self.experiment.data[split].records
        made = [(i, build(records[i])) for i in self.numbers(split)]
        made = [(i, e) for i, e in made if e is not None][rank::world_size]
        found = {}
        for start in tqdm(
            range(0, len(made), self.batch_size), desc=description, disable=rank > 0, leave=False
        ):
            part = made[start : start + self.batch_size]
            with torch.no_grad(), self.brain.evaluation_ctx:
                packed, embedded = self.pack(split, [i for i, _ in part], [e for _, e in part])
                written = self.model.llm.generate(embedded, packed, self.max_new_tokens, num_beams)
            for (i, _), ids in zip(part, written):
                found[i] = self.packer.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return self._gathered(found)

    @staticmethod
    def _gathered(found):
        return dict(gather(list(found.items())))

    def note(self, split, task, condition, answers, **more):
        """Keep answers for ``answers.jsonl``."""
        records = self.experiment.data[split].records
        for i in sorted(answers):
            line = {"id": records[i]["id"], "split": split, "task": task, "condition": condition}
            self.lines.append({**line, "answer": answers[i], **{k: v[i] for k, v in more.items()}})

    # -- single turns --------------------------------------------------------------------------------------

    def transcripts(self, condition, phase, split="test", number=None, suffix=""):
        """WER and exact transcripts of the recognition task."""
        task = self.tasks[self.settings["asr_task"]]
        records = self.experiment.data[split].records

        def build(record):
            if not task.applies(record):
                return None
            return task.build(record, slot_sources=self.sources(task, condition), prompt_number=number)

        answers = self.answers(split, build, f"{task.name} {condition}")
        name = f"{condition}{suffix}@{phase}" if condition != "text" else f"text{suffix}"
        hypotheses = {i: task.format.parse(text)[TRANSCRIPT] or "" for i, text in answers.items()}
        self.note(split, task.name, name, answers)
        order = sorted(answers)
        errors = word_errors(
            [records[i][TRANSCRIPT] for i in order],
            [hypotheses[i] for i in order],
            self.experiment.hparams.get("language", "en"),
        )
        key = f"{split}.{task.name}.{name}"
        return {f"{key}.wer": errors.wer, f"{key}.exact": errors.num_exact / errors.num_utterances}

    def choices(self, name, condition, phase, split="test", number=None, length=None, suffix="", score=True):
        """Accuracy of a choice task from the generated sentence, and from the likelihood beside it."""
        task, records = self.tasks[name], self.experiment.data[split].records
        lists = {}

        def build(record):
            if not task.applies(record):
                return None
            lists[record["id"]] = task.draw_choices(record, num_choices=length)
            return task.build(
                record,
                slot_sources=self.sources(task, condition),
                prompt_number=number,
                choices=lists[record["id"]],
            )

        answers = self.answers(split, build, f"{name} {condition}")
        order = sorted(answers)
        truth = {i: task.format.value_of(records[i], task.field) for i in order}
        matched = {i: task.match(answers[i], lists[records[i]["id"]]) for i in order}
        full = f"{condition}{suffix}@{phase}" if condition != "text" else f"text{suffix}"
        key = f"{split}.{name}.{full}"
        metrics = {
            f"{key}.accuracy": float(np.mean([matched[i] == truth[i] for i in order])),
            f"{key}.unmatched": float(np.mean([matched[i] is None for i in order])),
        }
        if score:
            best = self._likelihood(split, build, task, lists, order)
            metrics[f"{key}.likelihood_accuracy"] = float(np.mean([best[i] == truth[i] for i in order]))
            self.note(split, name, full, answers, matched=matched, truth=truth, likelihood=best)
        else:
            self.note(split, name, full, answers, matched=matched, truth=truth)
        return metrics

    def _likelihood(self, split, build, task, lists, order):
        """The value whose sentence has the highest mean log-likelihood, among those of the list."""
        records, best = self.experiment.data[split].records, {}
        candidates = [self.packer.answer_ids(task.answer_fields(value)) for value in task.values]
        for i, row in self.scored(split, build, candidates, order).items():
            listed = {v: s for v, s in zip(task.values, row) if v in lists[records[i]["id"]]}
            best[i] = max(listed, key=listed.get)
        return best

    def scored(self, split, build, candidates, order):
        """Mean log-likelihood of every candidate answer: record number -> list; ranks share the records."""
        rank, world_size = world()
        records, found = self.experiment.data[split].records, {}
        order = order[rank::world_size]
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            rows = self.score_examples(split, part, [build(records[i]) for i in part], candidates)
            found.update(zip(part, rows))
        return self._gathered(found)

    def score_examples(self, split, indices, examples, candidates):
        """Mean log-likelihood of every candidate after the examples of some records: list of lists, on this rank."""
        rows = []
        for start in range(0, len(indices), self.batch_size):
            some = slice(start, start + self.batch_size)
            with torch.no_grad(), self.brain.evaluation_ctx:
                packed, embedded = self.pack(split, indices[some], examples[some])
                rows += self.model.llm.score(embedded, packed, candidates).tolist()
        return rows

    # -- leakage -------------------------------------------------------------------------------------------

    def leakage(self, phase, splits=("valid", "test")):
        """Held-out linear probes: words from each kind of embedding, emotion, gender and speaker too."""
        vectors, labels = {}, {"emotion": [], "speaker": [], "text": []}
        most = self.settings.get("probe_records", 600)
        for split in splits:
            data = self.experiment.data[split]
            order = self.numbers(split)
            for i in order[:: max(len(order) // most, 1)]:
                record = data.records[i]
                slots = self.slots(split, i, max(len(record.get("audios") or ()) - 1, 0))
                for kind, x in slots.items():
                    if len(x):
                        x = x.float().cpu().numpy()
                        vectors.setdefault(kind, []).append(np.concatenate([x.mean(0), x.std(0)]))
                labels["emotion"].append(record.get("emotion"))
                labels["speaker"].append(record.get("speaker"))
                labels["text"].append(record.get(TRANSCRIPT) or "")
        metrics = {}
        for kind, rows in vectors.items():
            x, speakers = np.stack(rows), labels["speaker"]
            key = f"test.probe.{kind}@{phase}"
            words = presence_probe(x, labels["text"], speakers)
            metrics[f"{key}.words"] = words.balanced_accuracy
            known = [i for i, e in enumerate(labels["emotion"]) if e is not None]
            metrics[f"{key}.emotion"] = label_probe(
                x[known], [labels["emotion"][i] for i in known], [speakers[i] for i in known]
            )
            metrics[f"{key}.speaker"] = label_probe(x, speakers)
        return {k: v for k, v in metrics.items() if v is not None}

    # -- dialogues -----------------------------------------------------------------------------------------

    def styled(self, split):
        """The frozen language model's own answers to the styled transcripts; they do not hang on the phase."""
        if split not in self._styled:
            task = self.tasks[self.settings["dialogue_task"]]
            sources = self.sources(task, "text")
            self._styled[split] = self.answers(
                split,
                lambda record: task.build(record, slot_sources=sources) if record.get("turns") else None,
                f"{task.name} styled",
            )
        return self._styled[split]

    def divergence(self, split, styled):
        """Mean KL divergence (nats a token) from the distribution after the styled transcript to that after speech.

        Both are taken along the styled answer, its end token included.
        """
        task, records = self.tasks[self.settings["dialogue_task"]], self.experiment.data[split].records
        rank, world_size = world()
        order, found = sorted(styled)[rank::world_size], {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            logs = []
            for condition in ("text", "both"):
                examples = [
                    task.build(
                        {**records[i], "target": styled[i]}, slot_sources=self.sources(task, condition)
                    )
                    for i in part
                ]
                with torch.no_grad(), self.brain.evaluation_ctx:
                    packed, embedded = self.pack(split, part, examples, with_answer=True)
                    logs.append(self.model.llm.answer_log_probs(embedded, packed))
            for i, text, speech in zip(part, *logs):
                found[i] = ((text.exp() * (text - speech)).sum(-1).sum().item(), len(text))
        sums = list(self._gathered(found).values())
        return sum(k for k, _ in sums) / max(sum(n for _, n in sums), 1)

    def dialogues(self, phase, split="test"):
        """Agreement with the styled answers, what style and context change, and copies of training sentences."""
        task = self.tasks[self.settings["dialogue_task"]]
        wanted = {"test": split}
        wanted.update(style=self.settings.get("style_split"), context=self.settings.get("context_split"))
        spoken = {}
        for name, source in wanted.items():
            if source is not None:
                spoken[name] = self.answers(
                    source,
                    lambda record: task.build(record) if record.get("turns") else None,
                    f"{task.name} {name}",
                )
                self.note(source, task.name, f"both@{phase}", spoken[name], styled=self.styled(source))
        records, answers = self.experiment.data[split].records, spoken["test"]
        styled = self.styled(split)
        order = sorted(answers)
        key = f"{split}.{task.name}.both@{phase}"
        metrics = {
            f"{key}.agreement": agreement([answers[i] for i in order], [styled[i] for i in order]),
            f"{key}.kl": self.divergence(split, styled),
            f"{key}.template_overlap": template_overlap(list(answers.values()), self.templates()),
            f"{split}.{task.name}.text.template_overlap": template_overlap(
                list(styled.values()), self.templates()
            ),
        }
        own = {i: (records[i].get("response") or {}).get("text") for i in order}
        known = [i for i in order if own[i] is not None]
        if known:
            for name, given in ((f"both@{phase}", answers), ("text", styled)):
                metrics[f"{split}.{task.name}.{name}.exact"] = agreement(
                    [given[i] for i in known], [own[i] for i in known]
                )
        by_context = {}
        for i in order:
            turns = sum(t["role"] == "user" for t in records[i]["turns"]) - 1
            by_context.setdefault(turns, []).append(i)
        for turns, some in sorted(by_context.items()):
            metrics[f"{key}.agreement_context_{turns}"] = agreement(
                [answers[i] for i in some], [styled[i] for i in some]
            )
        for name in ("style", "context"):
            if name in spoken:
                metrics.update(self._changes(name, wanted[name], split, spoken[name], answers, phase))
        return metrics

    def _changes(self, name, source, split, others, answers, phase):
        """How often the answer changes with the style (or the context), spoken and for the styled transcript."""
        numbers = {self.experiment.data[split].records[i]["id"]: i for i in answers}
        pairs = [
            (numbers[self.experiment.data[source].records[j]["id"]], j)
            for j in sorted(others)
            if self.experiment.data[source].records[j]["id"] in numbers
        ]
        task = self.settings["dialogue_task"]
        metrics = {}
        for condition, first, second in (
            (f"both@{phase}", answers, others),
            ("text", self.styled(split), self.styled(source)),
        ):
            metrics[f"{split}.{task}.{condition}.changes_with_{name}"] = changed_share(
                [first[i] for i, _ in pairs], [second[j] for _, j in pairs]
            )
        return metrics

    def templates(self):
        """Sentences of the training tasks that are no dialogue answers."""
        found = []
        for name in self.settings["choice_tasks"]:
            task = self.tasks[name]
            found += [task.format.text(task.answer_fields(value)) for value in task.values]
        return found

    # -- all -----------------------------------------------------------------------------------------------

    def single_turns(self, phase):
        """Accuracies and WER under every condition, and under wordings and lists that training never showed."""
        metrics = {}
        for condition in CONDITIONS:
            if condition == "text" and self._text_is_measured:
                continue
            metrics.update(self.transcripts(condition, phase))
            for name in self.settings["choice_tasks"]:
                metrics.update(self.choices(name, condition, phase))
        for condition in ("both", "text"):
            if condition == "text" and self._text_is_measured:
                continue
            for name in self.settings["choice_tasks"]:
                task, short = self.tasks[name], self.settings.get("short_list")
                if task.held_out:
                    number = len(task.prompts)
                    metrics.update(
                        self.choices(
                            name, condition, phase, number=number, suffix="_held_out_prompt", score=False
                        )
                    )
                if short and short < len(task.values):
                    metrics.update(
                        self.choices(
                            name, condition, phase, length=short, suffix="_held_out_list", score=False
                        )
                    )
            task = self.tasks[self.settings["asr_task"]]
            if task.held_out:
                metrics.update(
                    self.transcripts(condition, phase, number=len(task.prompts), suffix="_held_out_prompt")
                )
        # The language model reads text the same way in every phase.
        self._text_is_measured = True
        return metrics

    def run(self):
        """Measure every named phase; the weights of the last phase are loaded at the end.

        Returns
        -------
        dict
            Metrics.
        """
        metrics = {}
        for phase in self.settings["phases"]:
            key = next(k for k in reversed(self.experiment.schedule.keys) if k.split(".", 1)[1] == phase)
            self.brain.load_best(key)
            self.model.eval()
            self.forget_slots()
            metrics.update(self.single_turns(phase))
            metrics.update(self.leakage(phase))
            metrics.update(self.dialogues(phase))
            if if_main_process():
                self.write()
        self.brain.load_best(self.experiment.schedule.keys[-1])
        self._slots = {}
        return metrics

    def write(self):
        """``answers.jsonl``: every answer; ``responses.jsonl``: the last phase's to the test dialogues, for judges."""
        folder = self.experiment.output_folder
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_text_atomically(folder / "answers.jsonl", text)
        task, phase = self.settings["dialogue_task"], self.settings["phases"][-1]
        final = [
            line
            for line in self.lines
            if line["task"] == task and line["split"] == "test" and line["condition"] == f"both@{phase}"
        ]
        records = {r["id"]: r for r in self.experiment.data["test"].records.records}
        responses = [
            {
                "id": line["id"],
                "response": line["answer"],
                "turns": records[line["id"]]["turns"],
                "styled_response": line["styled"],
            }
            for line in final
        ]
        write_text_atomically(
            folder / "responses.jsonl", "".join(json.dumps(line) + "\n" for line in responses)
        )


def dual_table(metrics, settings):
    """The result tables for the terminal and for RESULTS.md.

    Arguments
    ---------
    metrics : dict
        Of :meth:`DialogueEvaluation.run`.
    settings : mapping
        The YAML's ``evaluation``.

    Returns
    -------
    str
    """

    def get(*key):
        return metrics.get("test." + ".".join(key))

    asr, dialogue = settings["asr_task"], settings["dialogue_task"]
    names = list(settings["choice_tasks"])
    parts, rows = [], []
    conditions = [
        (f"{c}@{phase}", f"{phase}, {c}")
        for phase in settings["phases"]
        for c in ("both", "p_only", "l_only", "neither")
    ]
    for condition, title in [*conditions, ("text", "language model reading text")]:
        row = {"embeddings": title}
        row.update({n: get(n, condition, "accuracy") for n in names})
        row.update({f"{n} (lik.)": get(n, condition, "likelihood_accuracy") for n in names})
        row["WER"] = get(asr, condition, "wer")
        rows.append(row)
    parts.append(results.format_table(rows))
    rows = []
    for condition, title in [
        *((f"both{s}@{p}", f"{p},{s.replace('_', ' ')}") for p in settings["phases"] for s in _HELD_OUT),
        *((f"text{s}", f"text,{s.replace('_', ' ')}") for s in _HELD_OUT),
    ]:
        row = {"held out": title}
        row.update({n: get(n, condition, "accuracy") for n in names})
        row["WER"] = get(asr, condition, "wer")
        rows.append(row)
    parts.append(results.format_table(rows))
    rows = []
    for phase in settings["phases"]:
        row = {"linear probes": phase}
        for kind in ("paralinguistic", "linguistic"):
            for label in ("words", "emotion", "speaker"):
                row[f"{label} from {kind[0].upper()}"] = get("probe", f"{kind}@{phase}", label)
        rows.append(row)
    parts.append(results.format_table(rows))
    rows = []
    contexts = sorted(
        {k.rsplit(".", 1)[1] for k in metrics if ".agreement_context_" in k},
        key=lambda name: int(name.rsplit("_", 1)[1]),
    )
    columns = ("agreement", "kl", "exact", "changes_with_style", "changes_with_context", "template_overlap")
    for condition, title in [
        *((f"both@{p}", f"{p}, spoken") for p in settings["phases"]),
        ("text", "styled transcript"),
    ]:
        row = {"dialogues": title}
        row.update({c.replace("_", " "): get(dialogue, condition, c) for c in (*columns, *contexts)})
        rows.append(row)
    parts.append(results.format_table(rows))
    return "\n\n".join(parts)


_HELD_OUT = ("_held_out_prompt", "_held_out_list")
