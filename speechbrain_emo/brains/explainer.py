"""From speech to transcript, descriptors and emotion: used by evaluation and by the inference interface alike.

The emotion is the label with the highest length-normalised log-likelihood, so it depends neither on parsing nor
on the batch. It is conditioned in three ways: ``speech`` (the label is asked for directly), ``own_chain`` (after
the model's own greedy transcript and descriptors) and ``gold_descriptors``.
"""

from dataclasses import dataclass, field

import torch

from speechbrain_emo.prompts.tasks import EMOTION, TRANSCRIPT


@dataclass
class Prediction:
    """What the model says about one recording.

    Arguments
    ---------
    id : str
        The record's id.
    generated : str or None
        The whole answer as written; None where nothing was generated.
    fields : dict of str to (str or None)
        The answer's fields as read back; None where missing or not an allowed value.
    scores : dict of str to dict of str to float
        Condition -> label -> mean log-likelihood of the label's tokens and the end token, in nats.
    prompt_scores : dict of int to dict of str to float
        Scores under every wording of the label task, by its number.

    Example
    -------
    >>> Prediction("u", None, {}, {"speech": {"sad": -0.1, "happy": -2.0}}).label("speech")
    'sad'
    """

    id: str
    generated: str | None
    fields: dict[str, str | None]
    scores: dict[str, dict[str, float]]
    prompt_scores: dict[int, dict[str, float]] = field(default_factory=dict)

    def label(self, condition):
        """The label with the highest score under a condition."""
        scores = self.scores[condition]
        return max(scores, key=scores.get)


class Explainer:
    """Generates answers and scores labels with a trained model.

    Arguments
    ---------
    model : SpeechLanguageModel
        In eval mode and not wrapped.
    packer : Packer
        The training's packer.
    tasks : dict of str to InstructionTask
        The training's tasks.
    label_task : str
        The task whose answer is the emotion alone.
    chain_task : str, optional
        The task whose answer ends with the emotion after transcript and descriptors; None for a model that
        gives a label only.
    transcript_task : str, optional
        Asked for the transcript where there is no chain task.
    max_new_tokens : int
        Longest answer in tokens.
    num_beams : int
        1: greedy.

    Raises
    ------
    ValueError
        If a task is unknown.

    Example
    -------
    >>> Explainer.__name__
    'Explainer'
    """

    def __init__(
        self,
        model,
        packer,
        tasks,
        label_task,
        chain_task=None,
        transcript_task=None,
        max_new_tokens=128,
        num_beams=1,
    ):
        for name in (label_task, chain_task, transcript_task):
            if name is not None and name not in tasks:
                raise ValueError(f"task {name!r} is unknown; the experiment has {sorted(tasks)}")
        self.model = model
        self.packer = packer
        self.tasks = tasks
        self.label_task = tasks[label_task]
        self.chain_task = tasks[chain_task] if chain_task else None
        self.transcript_task = tasks[transcript_task] if transcript_task else None
        self.format = self.label_task.format
        self.labels = list(self.format.labels)
        self.candidates = [list(packer.tokenize(" " + label)) for label in self.labels]
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams

    @torch.no_grad()
    def score_labels(self, records, audio):
        """Score the labels asked for directly, without generating anything: the fast path of long recordings.

        Arguments
        ---------
        records : sequence of mapping
            With ``id``.
        audio : AudioBatch
            As in :meth:`explain`.

        Returns
        -------
        list of dict of str to float
            Label -> mean log-likelihood, the same as ``scores["speech"]`` of :meth:`explain`.
        """
        lengths, embeddings = self.encode(audio)
        return self._score(records, self.label_task, lengths, embeddings)

    @torch.no_grad()
    def explain(self, records, audio, gold=False, all_prompts=False, permutations=None, chains=None):
        """Predict for a batch of records with one audio each.

        Arguments
        ---------
        records : sequence of mapping
            With ``id``; labels are not read unless ``gold``.
        audio : AudioBatch
            On the model's device, one audio a record.
        gold : bool
            Also score after the record's own transcript and descriptors.
        all_prompts : bool
            Also score under every wording of the label task.
        permutations : dict of str to list of int, optional
            For a slot kind, the number of the audio whose embeddings each recording gets instead of its own (an
            intervention: what depends on the kind is destroyed, what does not stays). Audios beyond the records'
            own, which come first, serve this alone.
        chains : dict of str to list of dict, optional
            Further conditions of a model with a chain task: name -> for each record the fields (as text) that the
            label is scored after.

        Returns
        -------
        list of Prediction
        """
        lengths, embeddings = self.encode(audio)
        for kind, order in (permutations or {}).items():
            embeddings[kind] = embeddings[kind][order]
            lengths = [{**own, kind: lengths[other][kind]} for own, other in zip(lengths, order)]
        predictions = [Prediction(r["id"], None, {}, {}) for r in records]
        task = self.chain_task or self.transcript_task
        if task is not None:
            for prediction, text in zip(predictions, self._generate(records, task, lengths, embeddings)):
                prediction.generated = text
                prediction.fields = self.format.parse(text)
        self._add_scores(predictions, "speech", records, self.label_task, lengths, embeddings)
        if self.chain_task is not None:
            own = [p.fields for p in predictions]
            self._add_scores(predictions, "own_chain", records, self.chain_task, lengths, embeddings, own)
            if gold:
                known = [self.gold_chain(r) for r in records]
                self._add_scores(
                    predictions, "gold_descriptors", records, self.chain_task, lengths, embeddings, known
                )
            for condition, fields in (chains or {}).items():
                self._add_scores(
                    predictions, condition, records, self.chain_task, lengths, embeddings, fields
                )
        if all_prompts:
            for number in range(len(self.label_task.prompts)):
                scores = self._score(records, self.label_task, lengths, embeddings, number=number)
                for prediction, row in zip(predictions, scores):
                    prediction.prompt_scores[number] = row
        return predictions

    def gold_chain(self, record):
        """Fields of a record's own answer as text, None where it lacks one."""
        return {name: self.format.value_of(record, name) for name in self.chain_task.answer}

    def encode(self, audio):
        """Slot lengths of each audio and the slot embeddings of a batch."""
        features, num_frames = self.model.features(audio)
        front = self.model.front_end
        output = front(features, num_frames, noise_seeds=None)
        lengths = [
            {k: front.num_positions(k, n) for k in self.packer.slot_kinds} for n in num_frames.tolist()
        ]
        return lengths, output.slots

    def _embed(self, records, task, lengths, embeddings, prefixes=None, number=None):
        rows = []
        for i, record in enumerate(records):
            example = task.build({"id": record["id"]}, prompt_number=number)
            prefix = self.packer.answer_ids(prefixes[i]) if prefixes else ()
            rows.append(
                self.packer.encode(example, [lengths[i]], with_answer=False, answer_prefix_ids=prefix)
            )
        packed = self.packer.collate(rows, side="left").to(next(iter(embeddings.values())).device)
        return packed, self.model.llm.embed(packed, embeddings)

    def _generate(self, records, task, lengths, embeddings):
        packed, embedded = self._embed(records, task, lengths, embeddings)
        rows = self.model.llm.generate(embedded, packed, self.max_new_tokens, self.num_beams)
        return [self.packer.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]

    def _score(self, records, task, lengths, embeddings, chains=None, number=None):
        fields = []
        for i in range(len(records)):
            chain = {} if chains is None else {n: chains[i].get(n) for n in task.answer}
            fields.append(self.format.label_prefix(chain))
        packed, embedded = self._embed(records, task, lengths, embeddings, fields, number)
        scores = self.model.llm.score(embedded, packed, self.candidates).tolist()
        return [dict(zip(self.labels, row)) for row in scores]

    def _add_scores(self, predictions, condition, records, task, lengths, embeddings, chains=None):
        for prediction, row in zip(predictions, self._score(records, task, lengths, embeddings, chains)):
            prediction.scores[condition] = row


def as_result(prediction, record, answer_format):
    """A line of ``predictions.jsonl``: the prediction beside what the manifest says.

    Arguments
    ---------
    prediction : Prediction
        Of the record.
    record : mapping
        The manifest's record with its id.
    answer_format : AnswerFormat
        Says which fields are descriptors and which of them are lists of words.

    Returns
    -------
    dict
        JSON-serialisable; read by ``speechbrain_emo.results``.
    """
    fields = prediction.fields
    descriptor_names = answer_format.descriptor_names
    line = {
        "id": prediction.id,
        "speaker": record.get("speaker"),
        "gender": record.get("gender"),
        "duration": record.get("duration"),
        "emotion": record.get("emotion"),
        "scores": prediction.scores,
        "prompt_scores": prediction.prompt_scores,
        "transcript": record.get(TRANSCRIPT),
        "descriptors": {n: record.get("descriptors", {}).get(n) for n in descriptor_names},
        "answer": prediction.generated,
    }
    # Only where the manifest knows them: other corpora's lines stay as they are.
    line.update({key: record[key] for key in ("corpus", "soft_labels") if record.get(key) is not None})
    if prediction.generated is not None:
        line["hypothesis"] = fields.get(TRANSCRIPT) or ""
        line["predicted_descriptors"] = {
            n: answer_format.python_value(n, fields.get(n)) for n in descriptor_names
        }
        line["generated"] = fields.get(EMOTION)
        line["unparsable"] = fields.get(EMOTION) is None
    return line
