"""A trained word annotator over EmoDB with its hand-made word times: mean dimensions of words by sentence emotion.

    python -m recipes.EmoDB.word_arousal --model results/demo_word_emotion/1986 --data_folder PATH \\
        --output results/emodb_words

Writes ``words.jsonl`` (resumable), ``table.md``, ``table.json``, ``arousal.png`` and ``timeline.png``. EmoDB has no
labels of words: the table says how the annotator's values go with the emotion that the actor was asked for.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import soundfile

from recipes.EmoDB.emodb_prepare import EMOTIONS, read_corpus
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, write_text_atomically
from speechbrain_emo.inference import WordEmotionAnnotator
from speechbrain_emo.inference.annotate_corpus import MANIFEST, annotate_corpus
from speechbrain_emo.inference.safe_loading import UnsafeModelError
from speechbrain_emo.lobes.word_emotion import DIMENSIONS
from speechbrain_emo.plots import plot_group_means, plot_word_emotions
from speechbrain_emo.results import format_table


def mean_by_emotion(annotations, records, num_resamples=2000, seed=0):
    """Mean of each dimension over the words of each sentence emotion, with an interval over speakers.

    Arguments
    ---------
    annotations : sequence of dict
        Lines of ``annotate_corpus`` with ``id`` and ``words``.
    records : dict
        id -> record with ``emotion`` and ``speaker``.
    num_resamples : int
        Of the bootstrap over speakers.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        Emotion -> {``words``, ``utterances``, ``labels`` (label -> share of the words) and, for each dimension,
        (mean, low, high)}; emotions that do not occur are left out.

    Example
    -------
    >>> word = {"emotion": "hap", "valence": 0.8, "arousal": 0.7, "dominance": 0.5}
    >>> found = mean_by_emotion([{"id": "a", "words": [word]}], {"a": {"emotion": "anger", "speaker": "03"}})
    >>> found["anger"]["arousal"], found["anger"]["labels"]
    ((0.7, 0.7, 0.7), {'hap': 1.0})
    """
    speakers = sorted({records[line["id"]]["speaker"] for line in annotations})
    draws = np.random.default_rng(seed).multinomial(
        len(speakers), np.full(len(speakers), 1 / len(speakers)), size=num_resamples
    )
    found = {}
    for emotion in EMOTIONS:
        lines = [line for line in annotations if records[line["id"]]["emotion"] == emotion]
        rows = [(records[line["id"]]["speaker"], word) for line in lines for word in line["words"]]
        if not rows:
            continue
        labels = [word["emotion"] for _, word in rows]
        entry = {"words": len(rows), "utterances": len(lines)}
        entry["labels"] = {label: labels.count(label) / len(labels) for label in sorted(set(labels))}
        count = np.array([sum(who == s for who, _ in rows) for s in speakers], dtype=float)
        for name in DIMENSIONS:
            total = np.array([sum(word[name] for who, word in rows if who == s) for s in speakers])
            # A draw may miss every speaker of this emotion.
            drawn = draws @ count
            means = (draws @ total)[drawn > 0] / drawn[drawn > 0]
            low, high = np.percentile(means, [2.5, 97.5])
            entry[name] = tuple(round(float(v), 4) for v in (total.sum() / count.sum(), low, high))
        found[emotion] = entry
    return found


def with_level(records, level, folder):
    """Copies of the recordings under one common gain.

    Arguments
    ---------
    records : dict
        id -> record with ``wav``.
    level : float
        Median RMS of the copies, in dB of full scale.
    folder : pathlib.Path
        Where the copies go, as 32-bit float.

    Returns
    -------
    dict
        The records with the copies' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = {key: load_audio(record["wav"]).numpy() for key, record in records.items()}
    levels = [10 * np.log10(np.mean(x.astype(float) ** 2) + 1e-12) for x in samples.values()]
    gain = 10 ** ((level - float(np.median(levels))) / 20)
    for key, x in samples.items():
        soundfile.write(folder / f"{key}.wav", gain * x, 16000, subtype="FLOAT")
    return {key: {**record, "wav": str(folder / f"{key}.wav")} for key, record in records.items()}


def main(arguments=None):
    """Annotate, aggregate, draw; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m recipes.EmoDB.word_arousal", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="folder of a training of the word annotator")
    parser.add_argument("--data_folder", required=True, help="EmoDB: holds wav and silb")
    parser.add_argument("--output", required=True, help="folder of the results")
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument(
        "--level",
        type=float,
        metavar="DB",
        help="one gain for all recordings, so that their median level (RMS, dB of full scale) is this; the embedded "
        "corpus lies near -43",
    )
    parser.add_argument("--limit", type=int, help="only so many recordings, evenly over the corpus")
    options = parser.parse_args(arguments)
    output = Path(options.output)
    try:
        records, _ = read_corpus(options.data_folder)
        known = {
            key: {**record, "wav": record["wav"].replace("{data_root}", options.data_folder)}
            for key, record in records.items()
            if record.get("words")
        }
        if options.limit:
            step = max(1, len(known) // options.limit)
            known = dict(list(known.items())[::step][: options.limit])
        if options.level is not None:
            known = with_level(known, options.level, output / "wav")
        done = annotate_corpus(
            options.model, known, output / "words.jsonl", MANIFEST, num_workers=options.num_workers
        )
    except (ManifestError, UnsafeModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = [json.loads(line) for line in done.output.read_text(encoding="utf-8").splitlines()]
    found = mean_by_emotion(lines, known)
    rows = []
    for emotion, entry in sorted(found.items(), key=lambda item: -item[1]["arousal"][0]):
        row = {"sentence emotion": emotion, "words": entry["words"]}
        for name in ("arousal", "valence", "dominance"):
            row[name] = entry[name][0]
            if name == "arousal":
                row["95 % (speakers)"] = entry[name][1:]
        row["labels of its words"] = ", ".join(f"{k} {100 * v:.0f} %" for k, v in entry["labels"].items())
        rows.append(row)
    table = format_table(rows, decimals=2)
    write_text_atomically(output / "table.md", table + "\n")
    write_text_atomically(output / "table.json", json.dumps(found, indent=1) + "\n")
    plot_group_means(
        {emotion: entry["arousal"] for emotion, entry in found.items()},
        output / "arousal.png",
        "Mean arousal of a word (annotator), by the sentence's emotion",
        "arousal, 95 % over speakers",
    )
    annotator = WordEmotionAnnotator.from_hparams(options.model)
    # The recording whose arousal changes most from word to word.
    line = max(lines, key=lambda x: np.ptp([w["arousal"] for w in x["words"]]))
    samples = load_audio(known[line["id"]]["wav"], annotator.sample_rate).numpy()
    title = f"EmoDB {line['id']}, {known[line['id']]['emotion']} sentence"
    plot_word_emotions(
        samples, annotator.sample_rate, line["words"], annotator.labels, output / "timeline.png", title
    )
    print(table)
    print(f"{done.num_annotated} recordings, {done.num_rejected} rejected; pictures in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
