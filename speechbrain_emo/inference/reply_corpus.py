"""Speaks the next lines of test conversations and scores what comes out: the synthesis rows of JELLY.

Lines of known voices show the synthesiser alone: as recorded, and spoken again with their true label. Next lines of
conversations whose voices nobody has heard show the whole system: the label comes from the recordings alone, from
recordings and transcripts, or from the true labels of the history; the true label and always neutral stand beside.
Judges are an ``EmotionJudge`` of recordings, another of recordings through the vocoder, which does not take its sound
for an emotion, and a recogniser of another experiment; no part of the systems is in them.
"""

import functools
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from speechbrain_emo import results
from speechbrain_emo.dataio.acoustics import SILENCE
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, write_text_atomically
from speechbrain_emo.inference.conversational_tts import ConversationalTTS, text_to_phones
from speechbrain_emo.inference.speak_corpus import need_models
from speechbrain_emo.inference.speech_scores import make_judges, score_outputs
from speechbrain_emo.metrics.emotion_judge import EmotionJudge, functionals, through_vocoder
from speechbrain_emo.prompts.next_line import NEUTRAL

logger = logging.getLogger(__name__)

OUTPUTS = "outputs.jsonl"
#: Rows over lines of known voices.
KNOWN = ("recorded", "vocoded", "spoken")
#: Rows over next lines of conversations of unknown voices: where the asked label comes from.
REPLIES = ("speech_only", "with_transcripts", "gold_history", "true_label", "neutral")
TITLES = {
    "recorded": "recordings of known voices",
    "vocoded": "the same, through mel and vocoder",
    "spoken": "the same lines spoken, true label",
    "speech_only": "replies, label from recordings alone",
    "with_transcripts": "replies, label from recordings and transcripts",
    "gold_history": "replies, label from the true labels of the history",
    "true_label": "replies, true label",
    "neutral": "replies, always neutral",
}


def label_of_line(line):
    """Emotion and intensity (or None) of a record, a turn or a response.

    Example
    -------
    >>> label_of_line({"emotion": "sad", "descriptors": {"intensity": "weak"}}), label_of_line({"emotion": "neutral"})
    (('sad', 'weak'), ('neutral', None))
    """
    degree = (line.get("descriptors") or {}).get("intensity")
    return line["emotion"], None if line["emotion"] == NEUTRAL else degree


def conversation_of(record, transcripts, emotions):
    """A manifest's dialogue as :meth:`ConversationalTTS.predict` takes it.

    Arguments
    ---------
    record : dict
        With ``turns``, ``audios`` and ``response``.
    transcripts, emotions : bool
        Whether the words of the turns, and their true labels, are given.

    Returns
    -------
    dict

    Raises
    ------
    ManifestError
        If a turn has no recording and its label is not given.

    Example
    -------
    >>> turn = {"speaker": "x", "text": "Hello.", "audio": 0, "emotion": "sad"}
    >>> record = {"turns": [turn], "audios": [{"wav": "a.wav"}], "response": {"text": "Oh.", "speaker": "y"}}
    >>> conversation_of(record, False, True)["emotions"], conversation_of(record, False, False)["transcripts"]
    (['sad'], None)
    """
    turns, recordings = record["turns"], []
    for turn in turns:
        audio = None if turn.get("audio") is None else record["audios"][turn["audio"]]
        if audio is not None and _is_segment(audio):
            raise ManifestError(
                f"{record.get('dialogue')}: a turn is a segment of a file; one file a turn is needed"
            )
        if audio is None and not emotions:
            raise ManifestError(f"{record.get('dialogue')}: a turn has no recording to listen to")
        recordings.append(None if audio is None else audio["wav"])
    labels = [" ".join(x for x in reversed(label_of_line(t)) if x) for t in turns] if emotions else None
    return {
        "dialogue": recordings,
        "speakers": [t["speaker"] for t in turns],
        "transcripts": [t["text"] for t in turns] if transcripts else None,
        "emotions": labels,
        "text": record["response"]["text"],
        "speaker": record["response"]["speaker"],
    }


class ReplyEvaluation:
    """Speaks, listens and counts.

    Arguments
    ---------
    tts : ConversationalTTS
        With a synthesiser.
    records : dict of str to dict
        ``train`` and ``test``: lines of known voices, id -> record; ``conversations``: dialogues; ``lines``: recordings
        of their next lines by the same ids, or nothing.
    folder : str or pathlib.Path
        Outputs go to ``<folder>/<row>/<id>.wav``; what is there from the same models is kept.
    asr : callable, optional
        Paths -> words; of ``speech_scores.Judges``.
    num_lines : int
        Lines and replies; four times as many recordings train the judge.
    language : str
        Of the words.

    Raises
    ------
    ManifestError
        If there is nothing to speak, a line is a segment of a file, or has a voice that the synthesiser lacks.

    Example
    -------
    >>> ReplyEvaluation.__name__
    'ReplyEvaluation'
    """

    def __init__(self, tts, records, folder, asr=None, num_lines=60, language="en"):
        self.tts, self.folder, self.asr, self.language = tts, Path(folder), asr, language
        self.settings = tts.mel
        known = set(tts.inventory.speakers)
        strange = {str(r["speaker"]) for r in records["test"].values()} - known
        if strange:
            raise ManifestError(
                f"lines of the voices {sorted(strange)}: the synthesiser has {', '.join(sorted(known))}"
            )
        self.train = _some(records["train"], 4 * num_lines)
        self.test = _some(records["test"], num_lines)
        talks = {k: r for k, r in records["conversations"].items() if _is_spoken(r)}
        self.talks, self.lines = _some(talks, num_lines), records.get("lines") or {}
        for name, part in (("train", self.train), ("test", self.test), ("conversations", self.talks)):
            if not part:
                raise ManifestError(
                    f"the part {name!r} has no line to speak: nothing is left of its manifest"
                )
        segments = [k for part in (self.train, self.test) for k, r in part.items() if _is_segment(r)]
        if segments:
            raise ManifestError(f"{segments[0]} is a segment of a file; one file a line is needed")

    def run(self, rows=(*KNOWN, *REPLIES)):
        """Speak and score the rows.

        Arguments
        ---------
        rows : sequence of str
            Of :data:`KNOWN` and :data:`REPLIES`.

        Returns
        -------
        dict
            ``replies.<row>.<metric>``: ``emotion_accuracy`` (the judge hears the true emotion), ``follows`` (it hears
            the asked one), both also with ``_vocoded_judge`` behind it, by a judge that learned from recordings
            through the synthesiser's vocoder, whose sound it does not take for an emotion; ``predicted_accuracy``
            (the asked emotion is the true one), ``wer``, ``mcd`` (dB) and ``duration_error`` (seconds) against the
            recording (of replies, another voice's), ``count``.

        Raises
        ------
        ManifestError
            If a row is unknown.
        """
        unknown = [r for r in rows if r not in TITLES]
        if unknown:
            raise ManifestError(f"rows {unknown} are unknown; allowed: {', '.join(TITLES)}")
        emotion_judges = {"": self._judge(), "_vocoded_judge": self._judge(self.tts.vocoder)}
        metrics, lines = {}, []
        for row in rows:
            own, told = self.score(row, self.speak(row), emotion_judges)
            metrics.update({f"replies.{row}.{k}": v for k, v in own.items()})
            lines += [{"row": row, **line} for line in told]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text_atomically(self.folder / "predictions.jsonl", text)
        return metrics

    # -- speaking ------------------------------------------------------------------------------------------

    @functools.cached_property
    def stamp(self):
        """Which weights outputs are of."""
        digest = hashlib.sha256()
        for module in (self.tts.model.llm, self.tts.model.front_end, self.tts.acoustic):
            for name, value in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return f"{digest.hexdigest()[:16]} {type(self.tts.vocoder).__name__}"

    def speak(self, row):
        """Outputs of a row: list of dict with ``file``, ``text``, ``asked``, ``emotion`` and ``voice``."""
        records = self.test if row in KNOWN else self.talks
        if row == "recorded":
            return [self._entry(k, r, r["wav"], r["emotion"], r["speaker"]) for k, r in records.items()]
        folder = self.folder / row
        folder.mkdir(parents=True, exist_ok=True)
        kept = self._kept(folder, records)
        write_text_atomically(folder / OUTPUTS, "".join(json.dumps(e) + "\n" for e in kept.values()))
        with open(folder / OUTPUTS, "a", encoding="utf-8") as stream:
            for key, record in tqdm(records.items(), desc=row, unit="line", mininterval=1.0):
                if key in kept:
                    continue
                samples, asked, voice = self._spoken(row, key, record)
                path = folder / f"{key}.wav"
                soundfile.write(path, np.clip(samples, -1.0, 1.0), self.settings.sample_rate)
                kept[key] = self._entry(key, record, str(path), asked, voice)
                stream.write(json.dumps(kept[key], ensure_ascii=False) + "\n")
                stream.flush()
        return [kept[key] for key in records]

    def _kept(self, folder, records):
        """What an interrupted run of the same models has left: id -> entry."""
        found, file = {}, folder / OUTPUTS
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # The line that a kill cut off.
            key = entry["id"]
            if key not in records or not Path(entry["file"]).is_file():
                continue
            # The same models, and the same line with the same reference.
            asked = (entry["file"], entry["asked"], entry["voice"])
            if entry == self._entry(key, records[key], *asked):
                found[key] = entry
        return found

    def _entry(self, key, record, file, asked, voice):
        line = record.get("response") or record
        reference = record if "response" not in record else self.lines.get(key)
        if reference is not None and reference["wav"] == file:
            reference = None  # A recording is not compared with itself.
        return {
            "id": key,
            "file": file,
            "text": line.get("transcript") or line.get("text"),
            "emotion": line["emotion"],
            "asked": asked,
            "voice": str(voice),
            "reference": None if reference is None else reference["wav"],
            "stamp": self.stamp,
        }

    def _spoken(self, row, key, record):
        """(samples, asked emotion, voice) of one line."""
        if row in KNOWN:
            voice = str(record["speaker"])
            if row == "vocoded":
                wave = load_audio(record["wav"], self.settings.sample_rate)
                return through_vocoder(wave, self.tts.vocoder, self.settings), record["emotion"], voice
            samples, _, _ = self.tts.say(record["transcript"], voice, *label_of_line(record))
            return samples, record["emotion"], voice
        response, voices = record["response"], self.tts.inventory.speakers
        # The same voice in every row, drawn by the id.
        voice = voices[int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % len(voices)]
        if row in ("true_label", "neutral"):
            emotion, degree = label_of_line(response) if row == "true_label" else (NEUTRAL, None)
            return self.tts.say(response["text"], voice, emotion, degree)[0], emotion, voice
        given = conversation_of(record, transcripts=row != "speech_only", emotions=row == "gold_history")
        self.tts.voices = {response["speaker"]: voice}
        reply = self.tts.reply(**given)
        return reply.samples, reply.prediction.emotion, voice

    # -- listening -----------------------------------------------------------------------------------------

    def _hear(self, path, text, through=None):
        # Phonemes are counted in the same way for recordings and for what is spoken.
        phones = sum(p != SILENCE for p in text_to_phones(text, self.tts.g2p))
        samples = load_audio(path, self.settings.sample_rate)
        samples = samples if through is None else through_vocoder(samples, through, self.settings)
        return functionals(samples, self.settings, phones)

    def _judge(self, through=None):
        rows, speakers, emotions = [], [], []
        for record in tqdm(self.train.values(), desc="judge of emotions", unit="line", mininterval=1.0):
            rows.append(self._hear(record["wav"], record["transcript"], through))
            speakers.append(str(record["speaker"]))
            emotions.append(record["emotion"])
        return EmotionJudge(rows, speakers, emotions)

    def score(self, row, entries, emotion_judges):
        """Metrics of a row's outputs, and a dict for every output."""
        rows = [self._hear(e["file"], e["text"]) for e in entries]
        judges = make_judges(aligner=None)
        judges.asr = self.asr
        records = {e["id"]: {k: v for k, v in e.items() if v is not None} for e in entries}
        scores, lines = score_outputs(records, judges, language=self.language)
        metrics = {"count": len(entries)}
        for name in ("wer", "mcd"):
            if scores.get(f"speech.{name}") is not None:
                metrics[name] = scores[f"speech.{name}"]
        heard = {}
        for taught, judge in emotion_judges.items():
            heard[f"judged{taught}"] = judge.labels(rows, [e["voice"] for e in entries]).tolist()
            for name, column in (("emotion_accuracy", "emotion"), ("follows", "asked")):
                metrics[name + taught] = _share(
                    h == e[column] for h, e in zip(heard[f"judged{taught}"], entries, strict=True)
                )
        metrics["predicted_accuracy"] = _share(e["asked"] == e["emotion"] for e in entries)
        errors = [abs(_seconds(e["file"]) - _seconds(e["reference"])) for e in entries if e["reference"]]
        if errors:
            metrics["duration_error"] = float(np.mean(errors))
        told = [
            {
                **e,
                **{name: labels[i] for name, labels in heard.items()},
                **{k: line[k] for k in ("heard", "mcd") if k in line},
            }
            for i, (e, line) in enumerate(zip(entries, lines, strict=True))
        ]
        return metrics, told


def _some(records, most):
    keys = list(records)
    return {k: records[k] for k in keys[:: max(len(keys) // int(most), 1)][: int(most)]}


def _is_spoken(record):
    turns = record.get("turns") or []
    return bool(turns and record.get("response")) and all(t.get("audio") is not None for t in turns)


def _is_segment(audio):
    return audio.get("start") is not None or audio.get("stop") is not None


def _share(values):
    return float(np.mean(list(values)))


def _seconds(path):
    return soundfile.info(str(path)).duration


def reply_rows(metrics):
    """Rows of the table.

    Arguments
    ---------
    metrics : mapping
        Of :meth:`ReplyEvaluation.run`.

    Returns
    -------
    list of dict

    Example
    -------
    >>> reply_rows({"replies.neutral.wer": 0.5, "replies.neutral.count": 3})
    [{'row': 'replies, always neutral', 'WER': 0.5, 'lines': 3}]
    """
    columns = {
        "predicted_accuracy": "asked = true",
        "emotion_accuracy": "heard = true",
        "follows": "heard = asked",
        "emotion_accuracy_vocoded_judge": "heard = true (judge knows the vocoder)",
        "follows_vocoded_judge": "heard = asked (judge knows the vocoder)",
        "wer": "WER",
        "mcd": "MCD (dB)",
        "duration_error": "duration error (s)",
        "count": "lines",
    }
    rows = []
    for name, title in TITLES.items():
        found = {
            c: metrics[f"replies.{name}.{k}"] for k, c in columns.items() if f"replies.{name}.{k}" in metrics
        }
        if found:
            rows.append({"row": title, **found})
    return rows


def run_reply_corpus(hparams, run_opts):
    """What ``train.py`` runs: speak, score, write ``results.json``.

    Arguments
    ---------
    hparams : dict
        Loaded YAML; its keys are described in ``hparams/demo_jelly_replies.yaml``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Returns
    -------
    dict
        The metrics.

    Raises
    ------
    ManifestError
        If a model is missing; the message names the command that makes it.
    """
    need_models({name: hparams[name] for name in ("model", "tts", "asr")}, hparams["commands"])
    device = dict(run_opts or {}).get("device")
    own_opts = {"device": device} if device else None
    tts = ConversationalTTS.from_hparams(
        source=hparams["model"], tts=hparams["tts"], vocoder=hparams["vocoder"], run_opts=own_opts
    )
    root = {"data_root": hparams["data_folder"]}
    records = {name: read_manifest(path, root) for name, path in hparams["manifests"].items()}
    asr = make_judges(asr=hparams["asr"], aligner=None, device=device).asr if hparams["asr"] else None
    folder = Path(hparams["output_folder"])
    evaluation = ReplyEvaluation(tts, records, folder, asr, int(hparams["num_lines"]), hparams["language"])
    metrics = evaluation.run(hparams["rows"])
    context = results.run_context(
        seed=hparams["seed"],
        command=hparams.get("command"),
        models={n: str(hparams[n]) for n in ("model", "tts", "asr")},
        stamp=evaluation.stamp,
    )
    results.write_results(folder, metrics, context)
    print(results.format_table(reply_rows(metrics)))
    print(f"Outputs and results: {folder}")
    return metrics
