"""Words with their frames and targets, batch by batch.

Axes: N audios, T encoder frames, L layers, D feature size, W words of a batch.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_emo.alignment import AlignmentItem, make_aligner
from speechbrain_emo.dataio.manifest import ManifestError, write_text_atomically
from speechbrain_emo.lobes.word_emotion import DIMENSIONS, WordSpans, word_frames

logger = logging.getLogger(__name__)

IGNORE = -100
SUPERVISIONS = ("weak", "word")
# Name of a dimension here -> names in records of corpora.
_RATING_NAMES = {
    "valence": ("valence",),
    "arousal": ("arousal", "activation"),
    "dominance": ("dominance",),
}


@dataclass
class WordBatch:
    """Audios with the words in them.

    ``features`` float (N, T, L, D) or None where the encoder runs live; ``num_frames`` int64 (N,); ``waveforms``
    float32 (N, samples) and ``num_samples`` int64 (N,) or None; ``words`` of W words; ``labels`` int64 (W,), -100
    where unknown; ``dimensions`` float (W, 3) in [0, 1], NaN where unknown; ``keys`` of the N records.
    """

    features: torch.Tensor
    num_frames: torch.Tensor
    waveforms: torch.Tensor
    num_samples: torch.Tensor
    words: WordSpans
    labels: torch.Tensor
    dimensions: torch.Tensor
    keys: list

    def to(self, device, **options):
        """The batch on a device."""
        del options

        def moved(tensor):
            return None if tensor is None else tensor.to(device)

        return WordBatch(
            moved(self.features),
            moved(self.num_frames),
            moved(self.waveforms),
            moved(self.num_samples),
            self.words.to(device),
            moved(self.labels),
            moved(self.dimensions),
            self.keys,
        )


class WordTargets:
    """Labels and dimensions of the words of a record.

    Arguments
    ---------
    labels : sequence of str
        Emotions of the experiment, in the order of the classes.
    label_map : dict, optional
        Label of the corpus -> label here; what it does not name keeps its name.
    supervision : str
        ``weak``: every word has the label of its sentence, which must be the only one in it. ``word``: words have
        labels of their own where the manifest has them, else that of the sentence.
    dimensions : dict, optional
        Label -> (valence, arousal, dominance) in [0, 1], for records without ratings of their own.
    rating_scale : sequence of float
        Lowest and highest value of the ratings ``valence``, ``arousal`` (or ``activation``) and ``dominance`` of a
        record.

    Raises
    ------
    ValueError
        If an argument is not one of those, or a mapping names an unknown label.

    Example
    -------
    >>> targets = WordTargets(["hap", "sad"], {"happy": "hap"}, "word", {"hap": [0.9, 0.7, 0.6]})
    >>> record = {"emotion": None, "words": [{"word": "oh", "emotion": "happy"}, {"word": "no", "emotion": "sad"}]}
    >>> targets.names("x", record)
    ['hap', 'sad']
    """

    def __init__(self, labels, label_map=None, supervision="weak", dimensions=None, rating_scale=(1, 5)):
        self.labels, self.label_map = list(labels), dict(label_map or {})
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision is {supervision!r}; allowed are {', '.join(SUPERVISIONS)}")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"labels are {self.labels}: give at least two, each once")
        unknown = sorted(set(self.label_map.values()) - set(self.labels))
        if unknown:
            raise ValueError(f"label_map leads to {unknown}; the labels are {self.labels}")
        self.supervision = supervision
        self.dimensions = {label: [float(v) for v in values] for label, values in (dimensions or {}).items()}
        wrong = {
            label: values
            for label, values in self.dimensions.items()
            if label not in self.labels or len(values) != 3 or not all(0 <= v <= 1 for v in values)
        }
        if wrong:
            raise ValueError(
                f"dimensions hold {wrong}: give (valence, arousal, dominance) in [0, 1] for labels of {self.labels}"
            )
        self.low, self.high = (float(value) for value in rating_scale)
        if not self.low < self.high:
            raise ValueError(f"rating_scale is {list(rating_scale)}: give the lowest and the highest value")

    def name(self, key, label):
        """Label of the experiment for a label of the corpus; None stays None.

        Raises
        ------
        ManifestError
            If it is neither a label nor in the map.
        """
        if label is None:
            return None
        mapped = self.label_map.get(label, label)
        if mapped not in self.labels:
            raise ManifestError(
                f"{key}: emotion {label!r} is none of {self.labels}; name it in label_map, or leave such records out "
                "(keep_labels)"
            )
        return mapped

    def names(self, key, record):
        """True label of every word, None where unknown.

        Arguments
        ---------
        key : str
            Id of the record, for messages.
        record : dict
            With ``emotion`` and ``words``.

        Returns
        -------
        list of (str or None)

        Raises
        ------
        ManifestError
            On a label that is unknown.
        """
        return [self.name(key, row.get("emotion", record.get("emotion"))) for row in record["words"]]

    def of(self, key, record):
        """Targets of every word under the supervision.

        Arguments
        ---------
        key : str
            Id of the record, for messages.
        record : dict
            With ``emotion`` and ``words``.

        Returns
        -------
        tuple
            Labels, list of int (-100: none), and dimensions, list of 3 floats (NaN: none).

        Raises
        ------
        ManifestError
            If supervision is weak and the record has no sentence label, or words of another one.
        """
        names = self.names(key, record)
        if self.supervision == "weak":
            sentence = self.name(key, record.get("emotion"))
            if sentence is None or set(names) != {sentence}:
                raise ManifestError(
                    f"{key}: its words have the emotions {sorted(map(str, set(names)))}, its sentence {sentence}: weak "
                    "supervision trains on utterances of one emotion only; leave this record out, or use supervision: "
                    "word"
                )
        rated = [self._rating(record, name) for name in DIMENSIONS]
        numbers, values = [], []
        for name in names:
            numbers.append(IGNORE if name is None else self.labels.index(name))
            own = self.dimensions.get(name, [float("nan")] * 3)
            values.append([r if r is not None else v for r, v in zip(rated, own)])
        return numbers, values

    def _rating(self, record, name):
        for key in _RATING_NAMES[name]:
            if record.get(key) is not None:
                value = (float(record[key]) - self.low) / (self.high - self.low)
                # Means of ratings; a rater's slip must not leave the range of the sigmoid.
                return min(max(value, 0.0), 1.0)
        return None


class WordData:
    """Records as batches: features from the cache or waveforms, words as frames, targets.

    Arguments
    ---------
    records : dict
        id -> record with ``wav``, ``duration``, ``words`` ({word, start, end} in seconds).
    encoder : SpeechEncoder or Emotion2Vec
        Gives rates and numbers of frames.
    targets : WordTargets
        What words are trained on.
    cache : FeatureCache, optional
        Where features are; None: waveforms, for an encoder that runs live.
    load : callable
        load(record) -> float32 (samples,).

    Raises
    ------
    ManifestError
        If a record has no words, or one that cannot be used.
    """

    def __init__(self, records, encoder, targets, cache, load):
        self.records, self.keys = records, list(records)
        self.encoder, self.cache, self.load = encoder, cache, load
        self.targets = {}
        for key, record in records.items():
            if not record.get("words"):
                raise ManifestError(
                    f"{key}: the record has no words with times; align the corpus first (aligner: in the YAML)"
                )
            self.targets[key] = targets.of(key, record)

    def __len__(self):
        return len(self.keys)

    def batch(self, indices):
        """The records of some indices as one batch.

        Arguments
        ---------
        indices : sequence of int
            At least one.

        Returns
        -------
        WordBatch
        """
        keys = [self.keys[i] for i in indices]
        rows, counts, audios = [], [], []
        for key in keys:
            record = self.records[key]
            if self.cache is not None:
                audios.append(self.cache.get(self.cache.key(record)))
                counts.append(len(audios[-1]))
            else:
                audios.append(torch.as_tensor(self.load(record), dtype=torch.float32))
                counts.append(self.encoder.num_frames(len(audios[-1])))
        for number, (key, count) in enumerate(zip(keys, counts)):
            for row in self.records[key]["words"]:
                rows.append((number, *frames_of(row["start"], row["end"], count, self.encoder)))
        labels = [label for key in keys for label in self.targets[key][0]]
        dimensions = [values for key in keys for values in self.targets[key][1]]
        padded = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True)
        cached = self.cache is not None
        return WordBatch(
            padded if cached else None,
            torch.tensor(counts),
            None if cached else padded,
            None if cached else torch.tensor([len(a) for a in audios]),
            WordSpans(*torch.tensor(rows, dtype=torch.int64).unbind(1)),
            torch.tensor(labels),
            torch.tensor(dimensions, dtype=torch.float32),
            keys,
        )


def frames_of(start, end, num_frames, encoder):
    """Frames of a word in seconds for an encoder; see ``lobes.word_emotion.word_frames``."""
    return word_frames(start, end, num_frames, encoder.frame_rate, encoder.frame_centre)


class WordBatches(torch.utils.data.IterableDataset):
    """Batches of a fixed number of utterances; in training shuffled by (seed, epoch).

    Arguments
    ---------
    data : WordData
        Where from.
    batch_size : int
        Utterances of an optimiser step, over all processes.
    seed : int
        Of the shuffling.
    training : bool
        Whether the order changes from epoch to epoch, and ranks take their share of every batch.
    rank, world_size : int
        Of this process.
    """

    def __init__(self, data, batch_size, seed=0, training=False, rank=0, world_size=1):
        super().__init__()
        if batch_size < world_size:
            raise ValueError(
                f"batch_size is {batch_size} for {world_size} processes: each needs an utterance"
            )
        self.data, self.batch_size, self.seed = data, int(batch_size), int(seed)
        self.training, self.rank, self.world_size = training, rank, world_size
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Draw the order of an epoch."""
        order = np.arange(len(self.data))
        if self.training:
            order = np.random.default_rng([self.seed, int(epoch)]).permutation(order)
        self.batches = [
            order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)
        ]
        # A rest with fewer utterances than processes would leave one without a step.
        if self.training and len(self.batches) > 1 and len(self.batches[-1]) < self.world_size:
            self.batches[-2] += self.batches.pop()

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for indices in self.batches:
            yield self.data.batch(indices[self.rank :: self.world_size] if self.training else indices)


def align_records(records, aligner, cache_file, min_confidence=0.0, progress=True):
    """Give records words with times by forced alignment; what cannot be aligned is left out and listed.

    Alignments are kept in a file of JSON lines, so that an interrupted run goes on where it was.

    Arguments
    ---------
    records : dict
        id -> record with ``wav`` and ``transcript``; those that have ``words`` are kept as they are.
    aligner : dict
        ``name`` and options of ``alignment.make_aligner``.
    cache_file : str or pathlib.Path
        JSON lines of {id, settings, alignment or error}.
    min_confidence : float
        Records below this mean confidence are left out: the text is probably not what is said. Aligners without
        confidences pass.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    tuple
        (records with ``words`` and ``aligner``, {id: reason} of those left out).

    Raises
    ------
    AlignmentError
        If the aligner is unknown or cannot be used.
    """
    todo = {key: record for key, record in records.items() if not record.get("words")}
    if not todo:
        return records, {}
    cache_file, known = Path(cache_file), {}
    settings = json.dumps(aligner, sort_keys=True)
    if cache_file.is_file():
        for line in cache_file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # The line that a kill cut off.
            record = todo.get(entry["id"])
            if record and entry["settings"] == settings and entry["text"] == record.get("transcript"):
                known[entry["id"]] = entry
    rejected = {key: "no transcript" for key, record in todo.items() if not record.get("transcript")}
    items = [
        AlignmentItem(key, r["transcript"], r["wav"], start=r.get("start"), stop=r.get("stop"))
        for key, r in todo.items()
        if key not in known and key not in rejected
    ]
    write_text_atomically(
        cache_file, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in known.values())
    )
    if items:
        options = {k: v for k, v in aligner.items() if k != "name"}
        made = make_aligner(aligner["name"], **options)
        texts = {item.name: item.text for item in items}
        with open(cache_file, "a", encoding="utf-8") as stream:
            found = tqdm(
                made.align_corpus(items), total=len(items), desc="align", unit="utt", disable=not progress
            )
            for key, result in found:
                entry = {"id": key, "settings": settings, "text": texts[key]}
                if isinstance(result, Exception):
                    entry["error"] = str(result)
                else:
                    entry.update(words=result.to_dict()["words"], confidence=result.mean_confidence)
                known[key] = entry
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
                stream.flush()
    kept = {}
    for key, record in records.items():
        if key in rejected:
            continue
        if key not in todo:
            kept[key] = record
            continue
        entry = known[key]
        if "error" in entry:
            rejected[key] = entry["error"]
        elif not entry["words"]:
            rejected[key] = "the alignment has no words"
        elif entry["confidence"] is not None and entry["confidence"] < min_confidence:
            rejected[key] = f"mean confidence {entry['confidence']:.2f} is below {min_confidence:g}"
        else:
            kept[key] = {**record, "words": entry["words"], "aligner": aligner["name"]}
    for key, reason in rejected.items():
        logger.warning(f"{key}: left out: {reason}")
    if not kept:
        raise ManifestError(
            f"none of {len(records)} records could be aligned; the first: {next(iter(rejected.items()))}"
        )
    return kept, rejected
