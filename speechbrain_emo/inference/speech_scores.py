"""Scores a folder of synthetic speech against a manifest: one command over outputs of any system.

A manifest is JSON lines (or a JSON object id -> record); a record has ``file`` (in the folder), ``markup`` (or
``text``), and where they are known ``reference`` (a recording of the same sentence with the wanted emotion), ``prompt``
(the voice), ``protocol`` (``neutral`` or ``matched``: the emotion of the prompt) and ``finish_reason``. What judges is
named: a recogniser for words, a speaker encoder, a word annotator for the marks, an encoder for frames.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_emo.alignment import AlignmentError, make_aligner
from speechbrain_emo.dataio.audio import AudioError, load_audio
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.metrics.asr import word_errors
from speechbrain_emo.metrics.synthesis import (
    copy_pesq,
    cosine_dtw,
    emotion_similarity,
    mel_cepstral_distortion,
    shift_correlations,
    word_prosody,
)
from speechbrain_emo.plots import plot_confusion_matrix, plot_speech
from speechbrain_emo.prompts.markup import EmotionMarkup, locate_words
from speechbrain_emo.results import run_context, write_results

PROTOCOLS = ("neutral", "matched")
RATE = 16000


class ScoreError(ValueError):
    """A manifest, a folder or a judge that cannot be used; the message says why."""


@dataclass
class Judges:
    """What judges, each by the name that results carry.

    Arguments
    ---------
    asr : callable, optional
        transcribe(list of paths) -> list of (str or None).
    speaker : SpeakerEncoder or OnnxSpeakerEncoder, optional
        Voices.
    annotator : WordEmotionAnnotator, optional
        Emotion of words. It must never have seen the synthesiser.
    frames : SpeechEncoder or Emotion2Vec, optional
        Frames for Emo-SIM and DTW.
    aligner : str
        Finds words in outputs and references.
    names : dict
        Judge -> what was given.
    """

    asr: object = None
    speaker: object = None
    annotator: object = None
    frames: object = None
    aligner: str = "espeak-dtw"
    names: dict = field(default_factory=dict)


def read_outputs(manifest, folder, data_folder=None):
    """Records of a manifest whose file is there.

    Arguments
    ---------
    manifest : str or pathlib.Path
        JSON lines or a JSON object.
    folder : str or pathlib.Path
        Of the outputs.
    data_folder : str or pathlib.Path, optional
        What ``{data_root}`` stands for in ``reference`` and ``prompt``.

    Returns
    -------
    tuple
        (records: id -> dict with absolute paths, missing: ids without a file).

    Raises
    ------
    ScoreError
        If the manifest cannot be read or no output is there.
    """
    path = Path(manifest)
    if not path.is_file():
        raise ScoreError(f"{path}: no such manifest")
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if text.lstrip().startswith("{") and "\n{" not in text.strip() else None
    except ValueError:
        rows = None
    if isinstance(rows, dict) and "file" not in rows:
        rows = [{"id": key, **record} for key, record in rows.items()]
    else:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ScoreError(f"{path}: neither JSON lines nor a JSON object ({error})") from error
    records, missing = {}, []
    for number, row in enumerate(rows, 1):
        key = str(row.get("id") or Path(str(row.get("file", number))).stem)
        if not row.get("file") or not (row.get("markup") or row.get("text")):
            raise ScoreError(f"{path}, record {number}: needs 'file' and 'markup' (or 'text')")
        if row.get("protocol") is not None and row["protocol"] not in PROTOCOLS:
            raise ScoreError(
                f"{path}, {key}: protocol is {row['protocol']!r}; allowed: {', '.join(PROTOCOLS)}"
            )
        if key in records or key in missing:
            raise ScoreError(f"{path}: the id {key!r} stands there twice")
        file = Path(row["file"]) if Path(row["file"]).is_absolute() else Path(folder) / Path(row["file"]).name
        if not file.is_file():
            missing.append(key)
            continue
        made = {**row, "file": str(file)}
        for name in ("reference", "prompt"):
            if made.get(name) and data_folder is not None:
                made[name] = str(made[name]).replace("{data_root}", str(data_folder))
        records[key] = made
    if not records:
        raise ScoreError(f"{folder} holds none of the {len(rows)} files of {path}")
    return records, missing


def make_judges(
    asr=None, speaker=None, annotator=None, frames=None, aligner="espeak-dtw", device=None, language="en"
):
    """Judges by name.

    Arguments
    ---------
    asr : str, optional
        Folder of a model of this toolkit (``EmotionExplainer``), or ``hf:NAME`` for a recogniser of transformers, such
        as ``hf:openai/whisper-large-v3``.
    speaker : str, optional
        ``campplus.onnx``, or a folder of ``hparams/demo_speech_tokenizer.yaml``.
    annotator : str, optional
        Folder of a word annotator.
    frames : str, optional
        ``iic/emotion2vec_base`` and the like, or the folder of a speech encoder.
    aligner : str
        Name of an aligner.
    device : str, optional
        Where models run.
    language : str
        Of the outputs.

    Returns
    -------
    Judges
    """
    run_opts = {"device": device} if device else None
    names = {"asr": asr, "speaker": speaker, "annotator": annotator, "frames": frames, "aligner": aligner}
    judges = Judges(aligner=aligner, names={k: str(v) for k, v in names.items() if v})
    if asr:
        judges.asr = _recogniser(asr, device, run_opts)
    if speaker:
        from speechbrain_emo.lobes.speaker_encoder import load_speaker_encoder

        judges.speaker = load_speaker_encoder(speaker)
    if annotator:
        from speechbrain_emo.inference.word_emotion import WordEmotionAnnotator

        judges.annotator = WordEmotionAnnotator.from_hparams(annotator, run_opts=run_opts)
    if frames:
        judges.frames = _frame_encoder(frames)
    return judges


def _recogniser(name, device, run_opts):
    if name.startswith("hf:"):
        from transformers import pipeline

        recognise = pipeline("automatic-speech-recognition", name[3:], device=device)

        def transcribe(paths):
            waves = [load_audio(path, RATE).numpy() for path in paths]
            return [recognise({"raw": wave, "sampling_rate": RATE})["text"] for wave in waves]

        return transcribe
    from speechbrain_emo.inference.interfaces import EmotionExplainer

    explainer = EmotionExplainer.from_hparams(name, run_opts=run_opts)

    def transcribe(paths):
        found = explainer.explain_files(paths, progress=False)
        return [one.transcript if one.ok else None for one in found]

    return transcribe


def _frame_encoder(name):
    if Path(name).is_dir() and (Path(name) / "model.safetensors").is_file():
        from speechbrain_emo.lobes.speech_encoder import SpeechEncoder

        return SpeechEncoder(name, layers=[-1])
    from speechbrain_emo.lobes.emotion2vec import Emotion2Vec

    return Emotion2Vec(name)


def _frames(encoder, path):
    wave = load_audio(path, encoder.sample_rate)
    with torch.no_grad():
        output = encoder(wave[None], torch.tensor([len(wave)]))
    return output.features[0, : int(output.num_frames[0]), -1].float().cpu().numpy()


def score_outputs(records, judges, markup=None, copies=False, language="en", progress=True):
    """Scores of outputs, one by one and together.

    Arguments
    ---------
    records : dict
        From :func:`read_outputs`.
    judges : Judges
        Those that are None leave their scores out.
    markup : EmotionMarkup, optional
        Reads the marks. Default: that of the annotator, else the published labels.
    copies : bool
        Whether outputs are copies of their references, aligned in time: PESQ is computed then only.
    language : str
        Of the text.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    tuple
        (metrics ``speech.<metric>``, predictions: list of dict, one an utterance).
    """
    if markup is None:
        markup = EmotionMarkup(*_labels_of(judges.annotator))
    aligner = make_aligner(judges.aligner, language=language) if judges.aligner else None
    lines, targets, realised = [], [], []
    for key, record in tqdm(records.items(), desc="score", unit="utt", mininterval=1.0, disable=not progress):
        marked = markup.parse(record["markup"]) if record.get("markup") else None
        text = marked.text if marked else record["text"]
        line = {"id": key, "text": text, "protocol": record.get("protocol"), "notes": []}
        if record.get("finish_reason"):
            line["finish_reason"] = record["finish_reason"]
        output = load_audio(record["file"], RATE).numpy()
        words = _aligned(aligner, output, text, line, "output")
        _score_marks(line, judges, record, markup, marked, words)
        _score_against_reference(line, judges, record, output, words, aligner, copies, targets, realised)
        if judges.speaker is not None and record.get("prompt"):
            pair = [load_audio(path, RATE) for path in (record["file"], record["prompt"])]
            a, b = (judges.speaker.encode(w[None], torch.tensor([len(w)]))[0] for w in pair)
            line["speaker_similarity"] = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        lines.append(line)
    if judges.asr is not None:
        paths = [record["file"] for record in records.values()]
        for line, heard in zip(lines, judges.asr(paths)):
            line["heard"] = heard
    return _together(lines, targets, realised, language), lines


def _labels_of(annotator):
    if annotator is None:
        return ()
    settings = annotator.settings
    untagged = settings.get("untagged")
    return settings["labels"], settings["intensities"], None if untagged is None else tuple(untagged)


def _aligned(aligner, samples, text, line, what):
    if aligner is None:
        return None
    try:
        return aligner.align(np.asarray(samples, dtype=np.float32), RATE, text).words
    except AlignmentError as error:
        line["notes"].append(f"{what}: words not found ({error})")
        return None


def _score_marks(line, judges, record, markup, marked, words):
    """Emotion that is heard in each word, against its mark."""
    if judges.annotator is None or marked is None or words is None:
        return
    from speechbrain_emo.alignment import Alignment

    places = locate_words(marked.text, [word.label for word in words])
    wanted = [markup.label_at(marked, start) for start, _ in places]
    wave = load_audio(record["file"], RATE)
    alignment = Alignment(tuple(words), None, marked.text, len(wave) / RATE, judges.aligner)
    said = judges.annotator.annotate_file(record["file"], alignment=alignment).words
    spans = [
        next((n for n, s in enumerate(marked.spans) if s.start <= start < s.stop), -1) for start, _ in places
    ]
    line["words"] = [
        {
            "word": word.word,
            "start": word.start,
            "end": word.end,
            "span": span,
            "marked": emotion,
            "intensity": intensity,
            "heard": word.emotion,
            "probabilities": word.probabilities,
        }
        for word, span, (emotion, intensity) in zip(said, spans, wanted)
    ]


def _score_against_reference(line, judges, record, output, words, aligner, copies, targets, realised):
    if not record.get("reference"):
        return
    try:
        reference = load_audio(record["reference"], RATE).numpy()
    except AudioError as error:
        line["notes"].append(f"reference: {error}")
        return
    line["mcd"] = mel_cepstral_distortion(reference, output, RATE)
    if judges.frames is not None:
        first, second = (_frames(judges.frames, path) for path in (record["reference"], record["file"]))
        line["dtw"], line["dtw_sum"] = cosine_dtw(first, second)
        line["emo_sim"] = emotion_similarity(first, second)
    if copies:
        line["pesq"] = copy_pesq(reference, output, RATE)
    theirs = _aligned(aligner, reference, line["text"], line, "reference")
    if words is not None and theirs is not None and len(words) == len(theirs):
        targets.append(word_prosody(reference, RATE, [(w.start, w.end) for w in theirs]))
        realised.append(word_prosody(output, RATE, [(w.start, w.end) for w in words]))


def _together(lines, targets, realised, language):
    metrics = {"speech.count": len(lines)}
    protocols = sorted({str(line["protocol"] or "not stated") for line in lines})
    metrics["speech.protocol"] = ", ".join(protocols)
    ended = [line["finish_reason"] == "eos" for line in lines if line.get("finish_reason")]
    if ended:
        metrics["speech.eos"] = float(np.mean(ended))
    for name in ("speaker_similarity", "mcd", "dtw", "dtw_sum", "emo_sim", "pesq"):
        values = [line[name] for line in lines if name in line]
        if values:
            metrics[f"speech.{name}"] = float(np.mean(values))
            metrics[f"speech.{name}_count"] = len(values)
    if any("heard" in line for line in lines):
        known = [line for line in lines if "heard" in line]
        errors = word_errors([line["text"] for line in known], [line["heard"] for line in known], language)
        metrics["speech.wer"] = errors.wer
        for name in ("substitutions", "deletions", "insertions", "num_words"):
            metrics[f"speech.wer_{name}"] = getattr(errors, name)
    words = [word for line in lines for word in line.get("words", ())]
    if words:
        metrics["speech.word_emotion_accuracy"] = float(np.mean([w["marked"] == w["heard"] for w in words]))
        # Most words are neutral in some lists: the mean over emotions does not reward a voice that has only one.
        _, confusion = word_confusion(lines)
        known = confusion.sum(1) > 0
        metrics["speech.word_emotion_ua"] = float(
            (np.diag(confusion)[known] / confusion.sum(1)[known]).mean()
        )
        correct = []
        for line in lines:
            for span in sorted({w["span"] for w in line.get("words", ()) if w["span"] >= 0}):
                own = [w for w in line["words"] if w["span"] == span]
                # A span sounds like the emotion with the highest mean probability over its words.
                mean = {k: np.mean([w["probabilities"][k] for w in own]) for k in own[0]["probabilities"]}
                correct.append(max(mean, key=mean.get) == own[0]["marked"])
        if correct:
            metrics["speech.span_accuracy"] = float(np.mean(correct))
            metrics["speech.spans"] = len(correct)
    if targets:
        for name, value in shift_correlations(targets, realised).items():
            metrics[f"speech.prosody_{name}"] = value
    metrics["speech.not_aligned"] = sum(bool(line["notes"]) for line in lines)
    return metrics


def word_confusion(lines):
    """How often a word that is marked as one emotion is heard as another.

    Arguments
    ---------
    lines : sequence of dict
        Of :func:`score_outputs`.

    Returns
    -------
    tuple
        (labels: sorted list of str; counts: int64 (K, K), a row a mark).

    Example
    -------
    >>> word = {"marked": "hap", "heard": "sad", "probabilities": {"hap": 0.4, "sad": 0.6}}
    >>> labels, counts = word_confusion([{"words": [word]}])
    >>> labels, counts.tolist()
    (['hap', 'sad'], [[0, 1], [0, 0]])
    """
    words = [word for line in lines for word in line.get("words", ())]
    labels = sorted({name for word in words for name in (word["marked"], *word["probabilities"])})
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for word in words:
        counts[labels.index(word["marked"]), labels.index(word["heard"])] += 1
    return labels, counts


def score_folder(folder, manifest, judges, out=None, data_folder=None, num_pictures=0, **options):
    """Score a folder and write ``results.json``, ``predictions.jsonl`` and, where asked for, pictures.

    Arguments
    ---------
    folder : str or pathlib.Path
        Of the outputs.
    manifest : str or pathlib.Path
        What they are.
    judges : Judges
        Who judges.
    out : str or pathlib.Path, optional
        Where results go. Default: ``<folder>/scores``.
    data_folder : str or pathlib.Path, optional
        What ``{data_root}`` stands for.
    num_pictures : int
        Of how many outputs, taken evenly, the mel with its words and F0 and level against the reference are drawn:
        ``<id>.png``; and, where an annotator judges, which emotions words are heard as: ``confusion_words.png``.
    **options
        Of :func:`score_outputs`.

    Returns
    -------
    dict
        Metrics.

    Raises
    ------
    ScoreError
        If manifest and folder do not fit.
    """
    records, missing = read_outputs(manifest, folder, data_folder)
    metrics, lines = score_outputs(records, judges, **options)
    metrics["speech.missing_files"] = len(missing)
    out = Path(folder) / "scores" if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text_atomically(out / "predictions.jsonl", text)
    chosen = list(records)[:: max(1, len(records) // num_pictures)][:num_pictures] if num_pictures else []
    if chosen:
        if any(line.get("words") for line in lines):
            labels, confusion = word_confusion(lines)
            path = out / "confusion_words.png"
            plot_confusion_matrix(confusion, labels, path, "Marked against heard, words of the speech")
        draw_outputs({key: records[key] for key in chosen}, judges, out, options.get("language", "en"))
    write_results(out, metrics, run_context(judges=judges.names, missing=missing))
    return metrics


def draw_outputs(records, judges, folder, language="en"):
    """Draw outputs: mel, words with their marks, F0 and level, those of the reference beside them.

    Arguments
    ---------
    records : dict
        From :func:`read_outputs`.
    judges : Judges
        Its aligner places the words; its annotator names the labels.
    folder : str or pathlib.Path
        ``<id>.png`` goes there.
    language : str
        Of the texts.

    Returns
    -------
    list of pathlib.Path
    """
    markup = EmotionMarkup(*_labels_of(judges.annotator))
    aligner = make_aligner(judges.aligner, language=language) if judges.aligner else None
    made = []
    for key, record in records.items():
        marked = markup.parse(record["markup"]) if record.get("markup") else None
        text = marked.text if marked else record["text"]
        sounds = {}
        for name in ("output", "reference"):
            path = record["file"] if name == "output" else record.get("reference")
            if path and Path(path).is_file():
                samples = load_audio(path, RATE).numpy()
                found = _aligned(aligner, samples, text, {"notes": []}, name) or ()
                sounds[name] = (samples, [(w.label, w.start, w.end) for w in found])
        words = sounds["output"][1]
        emotions = [None] * len(words)
        if marked and words:
            places = locate_words(text, [word for word, _, _ in words])
            emotions = [markup.label_at(marked, start)[0] for start, _ in places]
        path = Path(folder) / f"{key}.png"
        made.append(plot_speech(sounds, RATE, emotions, markup.labels, path, f"{key}: {text}"))
    return made


def score_rows(metrics):
    """Rows of a table from metrics.

    Example
    -------
    >>> score_rows({"speech.wer": 0.1, "speech.count": 3})
    [{'metric': 'wer', 'value': 0.1}, {'metric': 'count', 'value': 3}]
    """
    return [
        {"metric": re.sub(r"^speech\.", "", name), "value": value}
        for name, value in metrics.items()
        if value is not None
    ]
