"""Records as batches for a speech-token language model: text tokens with emotions, speech tokens, words.

Speech tokens are made once by the frozen tokenizer and kept as JSON lines. Labels of words may be corrupted on purpose
(wrong labels, shifted boundaries), to see what a bad annotator costs.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_emo.dataio.manifest import ManifestError, write_text_atomically
from speechbrain_emo.lobes.emotion_supervision import IGNORE
from speechbrain_emo.lobes.speech_token_lm import TokenBatch
from speechbrain_emo.lobes.token_layout import can_interleave
from speechbrain_emo.prompts.markup import locate_words

logger = logging.getLogger(__name__)


def speech_tokens(records, tokenizer, load, file, batch_seconds=120.0, device="cpu", progress=True):
    """Speech tokens of records, from a file where they are known.

    Arguments
    ---------
    records : dict
        id -> record with ``wav`` and ``duration``.
    tokenizer : SpeechTokenizer or OnnxSpeechTokenizer
        Frozen.
    load : callable
        load(record) -> float32 (samples,) at the tokenizer's rate.
    file : str or pathlib.Path
        JSON lines of {id, tokenizer, wav, tokens}; grows, and is read again after an interruption.
    batch_seconds : float
        Padded seconds of audio encoded at a time.
    device : str
        Where the tokenizer runs.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    dict
        id -> list of int.
    """
    file, mark, known = Path(file), tokenizer.fingerprint, {}

    def place(record):
        return [record["wav"], record.get("start"), record.get("stop")]

    others = []  # Of records that only another experiment reads: the file is shared.
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # The line that a kill cut off.
            record = records.get(entry["id"])
            if record is None:
                others.append(entry)
            elif entry["tokenizer"] == mark and entry["audio"] == place(record):
                known[entry["id"]] = entry
    missing = sorted((k for k in records if k not in known), key=lambda k: records[k]["duration"])
    if not missing:
        return {key: known[key]["tokens"] for key in records}
    kept = [*others, *known.values()]
    write_text_atomically(file, "".join(json.dumps(entry) + "\n" for entry in kept))
    tokenizer = tokenizer.to(device)
    with open(file, "a", encoding="utf-8") as stream:
        bar = tqdm(
            total=len(missing), desc="speech tokens", unit="utt", mininterval=1.0, disable=not progress
        )
        start = 0
        while start < len(missing):
            stop = start + 1
            while (
                stop < len(missing)
                and records[missing[stop]]["duration"] * (stop + 1 - start) <= batch_seconds
            ):
                stop += 1
            keys = missing[start:stop]
            audios = [torch.as_tensor(load(records[key]), dtype=torch.float32) for key in keys]
            lengths = torch.tensor([len(audio) for audio in audios])
            padded = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True)
            tokens, counts = tokenizer.encode(padded.to(device), lengths.to(device))
            for key, row, count in zip(keys, tokens.tolist(), counts.tolist()):
                entry = {"id": key, "tokenizer": mark, "audio": place(records[key]), "tokens": row[:count]}
                known[key] = entry
                stream.write(json.dumps(entry) + "\n")
            stream.flush()
            bar.update(len(keys))
            start = stop
        bar.close()
    return {key: known[key]["tokens"] for key in records}


@dataclass(frozen=True)
class LabelNoise:
    """How word labels are corrupted in training.

    Arguments
    ---------
    wrong : float
        Share of words that get another emotion, drawn evenly.
    shift : float
        Seconds by which every border between words moves, forward or back.
    seed : int
        Of the draws, together with the record's id.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    wrong: float = 0.0
    shift: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.wrong <= 1 or self.shift < 0:
            raise ValueError(
                f"label noise: wrong is {self.wrong}, shift is {self.shift}; a share in [0, 1] and seconds from 0"
            )

    def corrupt(self, key, words, labels):
        """Words with ``emotion`` and times, corrupted; the input stays as it is.

        Arguments
        ---------
        key : str
            Id of the record.
        words : list of dict
            With ``start``, ``end`` and ``emotion``.
        labels : sequence of str
            All emotions.

        Returns
        -------
        list of dict
        """
        if not self.wrong and not self.shift:
            return words
        rng = np.random.default_rng([self.seed, *key.encode()])
        words = [dict(row) for row in words]
        for row in words:
            # Both are drawn for each word, so that more noise corrupts more of the same words.
            chance, other = rng.random(), int(rng.integers(max(len(labels) - 1, 1)))
            if row["emotion"] is not None and chance < self.wrong:
                row["emotion"] = [label for label in labels if label != row["emotion"]][other]
        signs = rng.integers(0, 2, len(words) + 1) * 2 - 1
        for number in range(1, len(words)):
            before, after = words[number - 1], words[number]
            border = after["start"] + signs[number] * self.shift
            low, high = before["start"], after["end"]
            # A border stays between the middles of its words' outer ends: no word vanishes.
            border = min(max(border, low + 0.01), high - 0.01)
            before["end"], after["start"] = border, border
        return words


class TokenRows:
    """Records as rows: everything that a batch needs, tokenised once.

    Arguments
    ---------
    records : dict
        id -> record with ``transcript``, ``words`` ({word, start, end} in seconds, ``emotion``, ``intensity`` and
        ``intensity_value`` where known) and ``emotion``.
    tokens : dict
        id -> speech tokens.
    text_tokenizer : transformers.PreTrainedTokenizerBase
        A fast one.
    markup : EmotionMarkup
        Labels and intensities.
    targets : brains.word_emotion_data.WordTargets
        Maps labels of the corpus.
    token_rate : float
        Hz.
    continuous : bool
        Whether intensities are numbers (``intensity_value`` of the words, else of their level).
    default_intensity : str
        Of words without one.
    noise : LabelNoise, optional
        Corrupts labels.
    annotated : bool
        Whether words have the labels that an annotator gave them (``annotated`` of each) instead of their own.

    Raises
    ------
    ManifestError
        If a record has no words, no text, or no annotation where it is asked for.
    """

    def __init__(
        self,
        records,
        tokens,
        text_tokenizer,
        markup,
        targets,
        token_rate=25.0,
        continuous=False,
        default_intensity=None,
        noise=None,
        annotated=False,
    ):
        self.keys, self.rows = list(records), []
        self.markup, self.token_rate, self.continuous = markup, token_rate, continuous
        self.speakers = [record.get("speaker") for record in records.values()]
        default_intensity = default_intensity or markup.intensities[len(markup.intensities) // 2]
        for key, record in records.items():
            if not record.get("words") or not record.get("transcript"):
                raise ManifestError(
                    f"{key}: the record has no transcript or no words with times; align the corpus first"
                )
            words = record["words"]
            if annotated:
                if not all(word.get("annotated") for word in words):
                    raise ManifestError(
                        f"{key}: not all of its words have labels of an annotator (`annotated`)"
                    )
                words = [{**word, **word["annotated"]} for word in words]
            names = targets.names(key, {**record, "words": words})
            words = [{**row, "emotion": name} for row, name in zip(words, names)]
            if noise is not None:
                words = noise.corrupt(key, words, markup.labels)
            self.rows.append(self._row(record, words, tokens[key], text_tokenizer, default_intensity))

    def _row(self, record, words, speech, text_tokenizer, default_intensity):
        markup, untagged = self.markup, self.markup.untagged
        text = record["transcript"]
        places = locate_words(text, [row["word"] for row in words])
        emotions = [untagged[0] if row["emotion"] is None else row["emotion"] for row in words]
        intensities = [self._level(row, default_intensity) for row in words]
        marked = markup.from_words(text, places, emotions, intensities)
        tokenised = markup.tokenize(marked, text_tokenizer)
        text_words = [_word_at(offset, places) for offset in tokenised.offsets]
        levels = tokenised.intensities
        if self.continuous:
            values = [self._value(row, level) for row, level in zip(words, intensities)]
            levels = [
                values[word] if word >= 0 else self._value({}, markup.intensities[level])
                for word, level in zip(text_words, levels)
            ]
        centres = (np.arange(len(speech)) + 0.5) / self.token_rate
        speech_words = np.full(len(speech), -1)
        for number, row in enumerate(words):
            speech_words[(centres >= row["start"]) & (centres < row["end"])] = number
        labels = [IGNORE if row["emotion"] is None else markup.labels.index(row["emotion"]) for row in words]
        return {
            "text": tokenised.token_ids,
            "emotions": tokenised.emotions,
            "intensities": levels,
            "text_words": text_words,
            "speech": list(speech),
            "speech_words": speech_words.tolist(),
            "word_labels": labels,
        }

    def _level(self, row, default):
        if row["emotion"] is None or row["emotion"] == self.markup.untagged[0]:
            # What is not tagged has one intensity only.
            return row.get("intensity") or self.markup.untagged[1]
        return row.get("intensity") or default

    def _value(self, row, level):
        if row.get("intensity_value") is not None:
            return float(row["intensity_value"])
        return self.markup.intensities.index(level) / max(len(self.markup.intensities) - 1, 1)

    def __len__(self):
        return len(self.rows)

    def digest(self, names):
        """Hash of some columns of all rows, in their order.

        Arguments
        ---------
        names : sequence of str
            Columns, such as ``speech`` and ``word_labels``.

        Returns
        -------
        str
        """
        rows = [[row[name] for name in names] for row in self.rows]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def length(self, index):
        """Positions of a row in the model's sequence."""
        return len(self.rows[index]["text"]) + len(self.rows[index]["speech"]) + 2

    def batch(self, indices, interleave=(), before=None):
        """Rows as a batch.

        Arguments
        ---------
        indices : sequence of int
            At least one.
        interleave : collection of int
            Those of them in which text and speech take turns, where they have speech enough.
        before : mapping of int to int, optional
            Row -> row that goes before it, as the recording of a cloned voice does.

        Returns
        -------
        TokenBatch
        """
        before = before or {}
        rows = [
            self.rows[i] if before.get(i) is None else _joined(self.rows[before[i]], self.rows[i])
            for i in indices
        ]

        def padded(name, value, kind=torch.int64):
            made = [torch.tensor(row[name], dtype=kind) for row in rows]
            return torch.nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=value)

        turns = [
            i in interleave and can_interleave(len(row["text"]), len(row["speech"]))
            for i, row in zip(indices, rows)
        ]
        return TokenBatch(
            text=padded("text", 0),
            text_lengths=torch.tensor([len(row["text"]) for row in rows]),
            emotions=padded("emotions", 0),
            intensities=padded("intensities", 0, torch.float32 if self.continuous else torch.int64),
            speech=padded("speech", 0),
            speech_lengths=torch.tensor([len(row["speech"]) for row in rows]),
            interleave=torch.tensor(turns),
            text_words=padded("text_words", -1),
            speech_words=padded("speech_words", -1),
            word_labels=padded("word_labels", IGNORE),
            keys=tuple(self.keys[i] for i in indices),
        )


def _joined(first, second):
    """Two rows as one: the texts behind each other, then both speeches; words are counted on."""
    shift = len(first["word_labels"])
    made = {name: [*first[name], *second[name]] for name in first}
    for name in ("text_words", "speech_words"):
        made[name] = [*first[name], *(word + shift if word >= 0 else -1 for word in second[name])]
    return made


def _word_at(offset, places):
    """Number of the word that holds most of a token's characters; -1 for none."""
    best, most = -1, 0
    for number, (start, stop) in enumerate(places):
        shared = min(offset[1], stop) - max(offset[0], start)
        if shared > most:
            best, most = number, shared
    return best


class TokenSteps(torch.utils.data.IterableDataset):
    """Optimiser steps: lists of micro-batches of a fixed number of rows; in training shuffled by (seed, epoch).

    Arguments
    ---------
    rows : TokenRows
        Where from.
    batch_size : int
        Rows of a step, over all processes.
    micro_batch_size : int
        Rows that are in memory at once.
    seed : int
        Of the order and of which rows interleave.
    training : bool
        Whether the order changes from epoch to epoch and ranks share every step.
    interleave : float
        Probability that text and speech of a row take turns. Published: 0.5.
    join : float
        Probability that another utterance of the same speaker goes before a row, as a voice prompt does. A large
        model goes on in the voice of its prompt anyway; one that has only seen single sentences does not.
    rank, world_size : int
        Of this process.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    def __init__(
        self,
        rows,
        batch_size,
        micro_batch_size=None,
        seed=0,
        training=False,
        interleave=0.0,
        join=0.0,
        rank=0,
        world_size=1,
    ):
        super().__init__()
        if batch_size < world_size or not 0 <= interleave <= 1 or not 0 <= join <= 1:
            raise ValueError(
                f"batch_size is {batch_size} for {world_size} processes, interleave is {interleave}, join is {join}: "
                "each process needs a row, and both shares lie in [0, 1]"
            )
        self.rows, self.batch_size = rows, int(batch_size)
        self.micro = int(micro_batch_size or batch_size)
        self.seed, self.training = int(seed), training
        self.interleave, self.join = float(interleave), float(join)
        self.rank, self.world_size = rank, world_size
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Draw the steps of an epoch."""
        rng = np.random.default_rng([self.seed, int(epoch)])
        self.before = self._partners(rng)
        lengths = np.array([self.rows.length(i) for i in range(len(self.rows))], dtype=float)
        for row, other in self.before.items():
            lengths[row] += self.rows.length(other)
        # Noise on the lengths mixes the members of a step from epoch to epoch at little padding.
        noise = 1 + 0.2 * rng.random(len(lengths)) if self.training else 1.0
        order = np.argsort(lengths * noise, kind="stable")
        steps = [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        if self.training and len(steps) > 1 and len(steps[-1]) < self.world_size:
            steps[-2] += steps.pop()
        if self.training:
            rng.shuffle(steps)
        self.steps = steps
        self.turns = {int(i) for i in np.flatnonzero(rng.random(len(lengths)) < self.interleave)}

    def _partners(self, rng):
        """Row -> another row of the same speaker, for a share of the rows."""
        if not self.join:
            return {}
        groups = {}
        for row, speaker in enumerate(self.rows.speakers):
            groups.setdefault(speaker, []).append(row)
        chosen = {}
        for row, speaker in enumerate(self.rows.speakers):
            # Both are drawn for each row: the share does not change the partners.
            chance, place = rng.random(), rng.random()
            others = [other for other in groups[speaker] if other != row]
            if speaker is not None and others and chance < self.join:
                chosen[row] = others[int(place * len(others))]
        return chosen

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        for step in self.steps:
            own = step[self.rank :: self.world_size] if self.training else step
            yield [
                self.rows.batch(own[i : i + self.micro], self.turns, self.before)
                for i in range(0, len(own), self.micro)
            ]
