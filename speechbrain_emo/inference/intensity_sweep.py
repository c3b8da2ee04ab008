"""Does a stronger mark sound stronger? Sentences spoken as each emotion at every intensity, by one seed a sentence.

Of each output: F0 range and level, F0 and duration against the same sentence without marks, how probable the marked
emotion is to a word annotator, and WER. Resumable, as every list of ``speak_corpus``.
"""

import json
import logging
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, write_text_atomically
from speechbrain_emo.inference.speak_corpus import OUTPUTS, load_synthesiser, speak_corpus, speech_context
from speechbrain_emo.inference.speech_scores import RATE, make_judges, read_outputs, score_outputs
from speechbrain_emo.metrics.asr import word_errors
from speechbrain_emo.metrics.synthesis import frame_f0
from speechbrain_emo.plots import plot_intensity_sweep
from speechbrain_emo.prompts.markup import EmotionSpan, MarkedText
from speechbrain_emo.results import format_table, write_results

logger = logging.getLogger(__name__)
#: Quantity of an output -> what the picture calls it.
QUANTITIES = {
    "f0_range": "F0 range (octaves, 5th to 95th percentile)",
    "f0_shift": "F0 against no marks (octaves)",
    "energy_shift": "level against no marks (dB)",
    "duration_ratio": "duration against no marks",
    "probability": "probability of the marked emotion",
    "wer": "WER",
}
#: Text without marks, as an emotion's name in ids.
PLAIN = "plain"


def sweep_records(markup, records):
    """Every sentence without marks, and all of it as each emotion at every intensity.

    Arguments
    ---------
    markup : EmotionMarkup
        Labels and intensities; the label of untagged text is left out.
    records : dict
        Of ``speak_corpus.read_lists``; their texts and voices count, not their marks.

    Returns
    -------
    dict
        ``<id>.<emotion>.<number of the intensity>`` -> record; ``<id>.plain`` is without marks. All of one id are said
        by the same seed.

    Example
    -------
    >>> from speechbrain_emo.prompts.markup import EmotionMarkup
    >>> made = sweep_records(EmotionMarkup(["hap", "neu"], ["low", "high"]), {"a": {"markup": "so it is"}})
    >>> list(made), made["a.hap.1"]["markup"]
    (['a.plain', 'a.hap.0', 'a.hap.1'], "<emotion type='hap' intensity='high'>so it is</emotion>")
    """
    made = {}
    for key, record in records.items():
        text = markup.parse(record["markup"]).text
        kept = {k: v for k, v in record.items() if k not in ("text", "reference", "part", "transition")}
        common = {**kept, "draw": key, "sentence": key}
        made[f"{key}.{PLAIN}"] = {**common, "markup": markup.write(MarkedText(text)), "emotion": None}
        for emotion in markup.labels:
            if emotion == markup.untagged[0]:
                continue
            for level, intensity in enumerate(markup.intensities):
                marked = MarkedText(text, (EmotionSpan(0, len(text), emotion, intensity),))
                made[f"{key}.{emotion}.{level}"] = {
                    **common,
                    "markup": markup.write(marked),
                    "emotion": emotion,
                    "level": level,
                }
    return made


def sound_of(samples, sample_rate):
    """F0, its range, level and duration of a whole utterance.

    Arguments
    ---------
    samples : array
        float (N,), full scale 1.
    sample_rate : int
        Hz.

    Returns
    -------
    dict
        ``f0`` (median of log2 Hz) and ``f0_range`` (octaves between the 5th and 95th percentile of voiced frames; both
        None where fewer than 10 frames are voiced), ``energy`` (dB of full scale), ``duration`` (s).

    Example
    -------
    >>> tone = 0.1 * np.sin(2 * np.pi * 128 * np.arange(16000) / 16000)
    >>> found = sound_of(tone, 16000)
    >>> round(found["f0"], 1), round(found["f0_range"], 1), round(found["energy"], 1), found["duration"]
    (7.0, 0.0, -23.0, 1.0)
    """
    samples = np.asarray(samples, dtype=np.float64)
    f0 = frame_f0(samples, sample_rate)
    voiced = np.log2(f0[~np.isnan(f0)])
    low, middle, high = np.percentile(voiced, (5, 50, 95)) if len(voiced) >= 10 else (None, None, None)
    return {
        "f0": None if middle is None else float(middle),
        "f0_range": None if middle is None else float(high - low),
        "energy": float(10 * np.log10(np.mean(samples**2) + 1e-20)),
        "duration": len(samples) / sample_rate,
    }


def sweep_metrics(lines, num_intensities, language="en"):
    """Means by emotion and intensity, and how they go with the intensity.

    Arguments
    ---------
    lines : sequence of dict
        ``sentence``, ``emotion`` (None: no marks), ``level``, ``text``, ``heard`` (absent: nobody listened; None: no
        word was understood, which counts as all words lost), ``eos``, ``probability`` (or None) and the values of
        :func:`sound_of`.
    num_intensities : int
        Intensities of each emotion.
    language : str
        Of the texts.

    Returns
    -------
    tuple
        (metrics: ``sweep.<emotion>.<level>.<quantity>`` (``sweep.plain.<quantity>`` without marks) and
        ``sweep.<emotion>.trend.<quantity>``, the mean over sentences of Spearman's correlation with the intensity;
        rows of a table).
    """
    plain = {line["sentence"]: line for line in lines if line["emotion"] is None}
    for line in lines:
        base = plain.get(line["sentence"])
        if base is not None:
            line["energy_shift"] = line["energy"] - base["energy"]
            line["duration_ratio"] = line["duration"] / base["duration"]
            known = line["f0"] is not None and base["f0"] is not None
            line["f0_shift"] = line["f0"] - base["f0"] if known else None
        if "heard" in line:
            line["wer"] = word_errors([line["text"]], [line["heard"]], language).wer
    groups = {}
    for line in lines:
        groups.setdefault((line["emotion"], line.get("level")), []).append(line)
    metrics, rows = {"sweep.sentences": len(plain)}, []
    for (emotion, level), own in groups.items():
        name = f"sweep.{PLAIN}" if emotion is None else f"sweep.{emotion}.{level}"
        place = None if emotion is None else level / max(num_intensities - 1, 1)
        row = {"emotion": emotion or PLAIN, "intensity": place, "count": len(own)}
        for quantity in (*QUANTITIES, "eos"):
            values = [line[quantity] for line in own if line.get(quantity) is not None]
            if values:
                row[quantity] = metrics[f"{name}.{quantity}"] = float(np.mean(values))
        # Over all words, not the mean of sentences.
        known = [line for line in own if "heard" in line]
        if known:
            errors = word_errors(
                [line["text"] for line in known], [line["heard"] for line in known], language
            )
            row["wer"] = metrics[f"{name}.wer"] = errors.wer
        rows.append(row)
    for emotion in dict.fromkeys(line["emotion"] for line in lines if line["emotion"] is not None):
        for quantity in QUANTITIES:
            trends = _trends([line for line in lines if line["emotion"] == emotion], quantity)
            if trends:
                metrics[f"sweep.{emotion}.trend.{quantity}"] = float(np.mean(trends))
    return metrics, rows


def _trends(lines, quantity):
    """Spearman's correlation with the intensity for each sentence where it is defined."""
    sentences, found = {}, []
    for line in lines:
        if line.get(quantity) is not None:
            sentences.setdefault(line["sentence"], []).append((line["level"], line[quantity]))
    for points in sentences.values():
        levels, values = zip(*points)
        if len(set(levels)) > 1:
            # What does not move at all has no trend: 0, or the flattest models would be left out.
            found.append(float(spearmanr(levels, values).statistic) if len(set(values)) > 1 else 0.0)
    return found


def run_intensity_sweep(hparams, run_opts):
    """What ``train.py`` runs for ``hparams/demo_film_sweep.yaml``: speak, score, table, picture.

    Arguments
    ---------
    hparams : dict
        As of ``speak_corpus.run_speak_corpus``; ``steps``: how many intensities from 0 to 1 a continuous model is asked
        for (one with levels has its own).
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Returns
    -------
    dict
        Metrics of :func:`sweep_metrics`.

    Raises
    ------
    ManifestError
        If nothing could be spoken.
    """
    started = time.time()
    tts, records, device = load_synthesiser(hparams, run_opts)
    # The lists' marks go before other intensities are known.
    records = {key: {**r, "markup": _unmarked(tts.markup, r["markup"])} for key, r in records.items()}
    if tts.continuous:
        tts = _with_steps(hparams, tts, run_opts)
    judges = make_judges(**hparams["judges"], device=device, language=hparams["language"])
    variants, output, lines = sweep_records(tts.markup, records), Path(hparams["output_folder"]), []
    for seed in hparams["seeds"]:
        folder = output / f"seed_{seed}"
        for key, reason in speak_corpus(tts, variants, folder, seed, hparams["batch_size"]).items():
            logger.warning(f"{key}: not spoken: {reason}")
        if not (folder / OUTPUTS).stat().st_size:
            raise ManifestError(f"none of the {len(variants)} texts could be spoken; the reasons stand above")
        made, _ = read_outputs(folder / OUTPUTS, folder)
        _, scored = score_outputs(made, judges, tts.markup, language=hparams["language"])
        lines += [_line(made[score["id"]], score, seed) for score in scored]
    metrics, rows = sweep_metrics(lines, len(tts.markup.intensities), hparams["language"])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text_atomically(output / "predictions.jsonl", text)
    named = {key: name for key, name in QUANTITIES.items() if any(row.get(key) is not None for row in rows)}
    plot_intensity_sweep(rows, named, output / "sweep.png")
    context = speech_context(
        hparams,
        tts,
        judges=judges.names,
        wall_time=time.time() - started,
        intensities=list(tts.markup.intensities),
        continuous=tts.continuous,
    )
    write_results(output, metrics, context)
    print(format_table(rows, style="plain"))
    return metrics


def _unmarked(markup, text):
    return markup.write(MarkedText(markup.parse(text).text))


def _with_steps(hparams, tts, run_opts):
    """A continuous model again, with equally spaced intensities, named by their percentage."""
    steps = int(hparams["steps"])
    if steps < 2:
        raise ValueError(f"steps is {steps}; allowed: 2 and above")
    names = [str(round(100 * number / (steps - 1))) for number in range(steps)]
    overrides = {"intensities": names, "untagged": [tts.markup.untagged[0], names[0]]}
    return load_synthesiser(hparams, run_opts, overrides=overrides)[0]


def _line(record, score, seed):
    samples = load_audio(record["file"], RATE).numpy()
    emotion, words = record.get("emotion"), score.get("words")
    line = {
        "id": score["id"],
        "sentence": f"{record['sentence']}/{seed}",
        "emotion": emotion,
        "text": score["text"],
        "eos": float(record["finish_reason"] == "eos"),
        **sound_of(samples, RATE),
    }
    if emotion is not None:
        line["level"] = record["level"]
        if words:
            line["probability"] = float(np.mean([word["probabilities"].get(emotion, 0.0) for word in words]))
    if "heard" in score:
        line["heard"] = score["heard"]
    return line
