"""The next line of a spoken conversation, said with the emotion that fits it.

Nothing but the recordings is needed: emotions are heard by the EQ-former, words by a speech recogniser where there is
one. Both may be given instead. The prompt is the one that training packs (``prompts.NextLineTask``).
"""

import functools
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.inference.interfaces import Pretrained

from speechbrain_emo.alignment import AlignmentError
from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.alignment.pronunciation import arpabet
from speechbrain_emo.brains.conversational_tts import load_tts
from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.dataio.acoustics import SILENCE
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.labels import suggest
from speechbrain_emo.inference.interfaces import load_exported
from speechbrain_emo.inference.safe_loading import HPARAMS_FILE
from speechbrain_emo.lobes.mel_vocoder import make_vocoder
from speechbrain_emo.metrics.calibration import label_probabilities
from speechbrain_emo.prompts.markup import EmotionSpan, MarkedText
from speechbrain_emo.prompts.next_line import split_label
from speechbrain_emo.prompts.packer import Packer

logger = logging.getLogger(__name__)

G2P = ("espeak", "arpabet")


class ConversationError(ValueError):
    """A conversation that cannot be answered; the message says why.

    Example
    -------
    >>> issubclass(ConversationError, ValueError)
    True
    """


def text_to_phones(text, g2p):
    """Phonemes of a line.

    Arguments
    ---------
    text : str
        English.
    g2p : str
        ``espeak`` (espeak-ng's mnemonics) or ``arpabet`` (phones of the CMU dictionary, without stress).

    Returns
    -------
    list of str
        With silence at both ends.

    Raises
    ------
    ConversationError
        If there is nothing to say, or the kind is unknown.

    Example
    -------
    >>> text_to_phones("We go.", "arpabet")
    ['sil', 'W', 'IY', 'G', 'OW', 'sil']
    """
    if g2p not in G2P:
        raise ConversationError(f"g2p is {g2p!r}; allowed: {', '.join(G2P)}")
    try:
        words = [token.lower() for token in normalize(text, "en").tokens]
    except AlignmentError as error:
        raise ConversationError(f"the next line cannot be said: {error}") from error
    phones = [SILENCE]
    if g2p == "espeak":
        for word in words:
            phones += _espeak_phones(word)
    else:
        for word in words:
            phones += arpabet(word).split()
    return [*phones, SILENCE]


@functools.lru_cache(maxsize=50000)
def _espeak_phones(word):
    """Kept, since each call of espeak-ng is a process of its own."""
    from speechbrain_emo.dataio.espeak import EspeakSynthesizer

    return EspeakSynthesizer().mnemonics(word, voice="en-us")


@dataclass(frozen=True)
class HeardTurn:
    """What was taken for one turn of the conversation.

    Arguments
    ---------
    speaker : str
        Who said it.
    text : str
        Its words; empty where there was neither a transcript nor a recogniser.
    emotion : str or None
        Heard, or given.
    intensity : str or None
        Heard, or given; None for neutral.
    probabilities : dict
        Label -> probability of what was heard; empty where the emotion was given.
    given : bool
        Whether the emotion was given.

    Example
    -------
    >>> str(HeardTurn("0", "Hello.", "sad", "weak", {"weak sad": 0.6}, False))
    '0: Hello. [weak sad, 60 %]'
    """

    speaker: str
    text: str
    emotion: str | None
    intensity: str | None
    probabilities: dict
    given: bool

    @property
    def label(self):
        """Intensity and emotion as text."""
        return " ".join(x for x in (self.intensity, self.emotion) if x)

    def __str__(self):
        sure = "given" if self.given else f"{100 * self.probabilities.get(self.label, 0.0):.0f} %"
        return f"{self.speaker}: {self.text or '(words unknown)'} [{self.label}, {sure}]"


@dataclass(frozen=True)
class Prediction:
    """The emotion of the next line.

    Arguments
    ---------
    text, speaker : str
        The line.
    emotion : str
        The most likely one.
    intensity : str or None
        Of the most likely pair; None for neutral.
    probabilities : dict
        Label (intensity and emotion) -> probability: the softmax of the mean log-likelihoods, not calibrated.
    emotion_probabilities : dict
        Emotion -> probability, summed over intensities.
    heard : tuple of HeardTurn
        What was heard in each turn.
    warnings : tuple of str
        What the user should know.
    seconds : dict
        Step -> seconds: ``listen``, ``reason``, and, of a spoken reply, ``synthesise`` and ``vocode``.

    Example
    -------
    >>> p = Prediction("Well.", "0", "sad", "weak", {"weak sad": 0.5}, {"sad": 0.6}, (), (), {})
    >>> str(p)
    '0: Well. [weak sad, 50 %]'
    """

    text: str
    speaker: str
    emotion: str
    intensity: str | None
    probabilities: dict
    emotion_probabilities: dict
    heard: tuple
    warnings: tuple
    seconds: dict

    @property
    def label(self):
        """Intensity and emotion as text."""
        return " ".join(x for x in (self.intensity, self.emotion) if x)

    def __str__(self):
        sure = 100 * self.probabilities.get(self.label, 0.0)
        return "\n".join([*map(str, self.heard), f"{self.speaker}: {self.text} [{self.label}, {sure:.0f} %]"])

    def to_dict(self):
        """Plain values, for JSON."""
        out = {k: v for k, v in vars(self).items() if k not in ("heard", "samples", "prediction")}
        out["heard"] = [vars(turn) for turn in self.heard]
        out["warnings"] = list(self.warnings)
        return out


@dataclass(frozen=True)
class SpokenReply:
    """A line with its sound.

    Arguments
    ---------
    samples : numpy.ndarray
        float32 (samples,).
    sample_rate : int
        Hz.
    prediction : Prediction
        What it should sound like, and why.

    Example
    -------
    >>> SpokenReply(np.zeros(16000, dtype=np.float32), 16000, None).duration
    1.0
    """

    samples: np.ndarray = field(repr=False)
    sample_rate: int
    prediction: Prediction

    @property
    def duration(self):
        """Seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path):
        """Write a 16-bit file; its suffix says the format."""
        soundfile.write(str(path), np.clip(self.samples, -1.0, 1.0), self.sample_rate)


class ConversationalTTS(Pretrained):
    """Listens to a conversation, predicts the emotion of the next line, and says it.

    Made by :meth:`from_hparams` from the folder of a training of stages 1 and 2 (``demo_jelly.yaml``), and of the
    synthesiser (``demo_jelly_tts.yaml``), without which it only predicts.

    Arguments
    ---------
    modules : dict
        ``{"model": SpeechLanguageModel}``.
    hparams : dict
        What ``hyperparams.yaml`` of an exported model holds.
    run_opts : dict, optional
        SpeechBrain's run options.
    freeze_params : bool
        As in ``Pretrained``.

    Example
    -------
    >>> from speechbrain_emo.inference import ConversationalTTS
    >>> ConversationalTTS.from_hparams(source=getfixture("tmp_path"))
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: ... holds no exported model: ...
    """

    HPARAMS_NEEDED = ["answer_format", "tasks", "slot_kinds", "next_line"]
    MODULES_NEEDED = ["model"]

    def __init__(self, modules=None, hparams=None, run_opts=None, freeze_params=True):
        super().__init__(modules, hparams, run_opts, freeze_params)
        settings = self.hparams.next_line
        self.model = self.mods["model"]
        self.model.eval()
        self.packer = Packer(self.model.llm.tokenizer, self.hparams.slot_kinds, settings["max_positions"])
        self.next_task = self.hparams.tasks[settings["next_task"]]
        self.emotion_task = self.hparams.tasks[settings["emotion_task"]]
        self.max_duration = settings["max_duration"]
        self.sample_rate = self.model.encoder.sample_rate
        self.acoustic = self.transcriber = None
        self.voices = {}

    @classmethod
    def from_hparams(
        cls,
        source,
        tts=None,
        transcriber=None,
        hparams_file=HPARAMS_FILE,
        savedir=None,
        overrides=None,
        run_opts=None,
        vocoder=None,
    ):
        """Load a trained model.

        Arguments
        ---------
        source : str or pathlib.Path
            Folder of a training or an export, or a hub name.
        tts : str or pathlib.Path, optional
            Folder of a trained synthesiser; without one :meth:`predict` works and :meth:`reply` does not.
        transcriber : callable, optional
            Path of a recording -> its words, for example ``EmotionExplainer(...).explain_file`` made to return the
            transcript, or :func:`whisper_transcriber`. None: unless transcripts are given, the history has no words.
        hparams_file, savedir, overrides, run_opts :
            As of ``EmotionExplainer.from_hparams``.
        vocoder : str, optional
            ``griffin_lim``, ``source_filter`` or ``hifigan``, where another than the synthesiser's own is wanted.

        Returns
        -------
        ConversationalTTS

        Raises
        ------
        UnsafeModelError
            If the folder holds no usable model.
        FileNotFoundError
            If ``tts`` holds no synthesiser; the message says which command makes one.
        """
        model, hparams = load_exported(source, "next_line", hparams_file, savedir, overrides)
        made = cls({"model": model}, hparams, run_opts)
        made.transcriber = transcriber
        if tts is not None:
            made.use_synthesiser(tts, vocoder)
        return made

    def use_synthesiser(self, folder, vocoder=None):
        """Load a synthesiser (see :meth:`from_hparams`)."""
        model, inventory, settings, content = load_tts(folder)
        missing = {split_label(v)[1] for v in self.next_task.values} - set(inventory.emotions)
        if missing:
            raise ConversationError(
                f"the synthesiser in {folder} does not know the emotions {sorted(missing)}; it has "
                f"{', '.join(inventory.emotions)}: train it with the labels of the reasoning model"
            )
        self.acoustic, self.inventory, self.g2p = model.to(self.device), inventory, content["g2p"]
        self.mel = settings
        self.vocoder = make_vocoder(vocoder or content["vocoder"], settings, content.get("vocoder_source"))

    # -- listening and reasoning ---------------------------------------------------------------------------

    def _turns(self, dialogue, speakers, transcripts, emotions):
        """Turns as a record holds them, before anything was heard."""
        for name, value in (("dialogue", dialogue), ("speakers", speakers)):
            if value is None or isinstance(value, (str, Path)):
                raise ConversationError(
                    f"{name} is {value!r}: give a list with one entry a turn, also where there is one turn only"
                )
        given = [transcripts, emotions]
        if (
            not len(dialogue)
            or len(dialogue) != len(speakers)
            or any(x and len(x) != len(dialogue) for x in given)
        ):
            raise ConversationError(
                f"the conversation has {len(dialogue)} recordings and {len(speakers)} speakers; at least one is "
                "needed, and of speakers, transcripts and emotions as many as recordings"
            )
        first = max(len(dialogue) - self.next_task.max_turns, 0)
        turns = []
        for i in range(first, len(dialogue)):
            emotion = emotions[i] if emotions else None
            label = emotion if emotion is None else str(emotion)
            if label is not None and label not in (
                *self.next_task.values,
                *self.hparams.answer_format.labels,
            ):
                raise ConversationError(
                    f"emotion {label!r} of turn {i} is not known; allowed: {', '.join(self.next_task.values)}, or null "
                    "to have it heard"
                )
            turn = {"speaker": str(speakers[i]), "text": (transcripts[i] if transcripts else None) or ""}
            turn["recording"] = dialogue[i]
            if label is not None:
                degree, name = split_label(label)
                turn.update(emotion=name, descriptors={"intensity": degree} if degree else {})
            elif dialogue[i] is None:
                raise ConversationError(f"turn {i} has neither a recording nor an emotion: give one of them")
            turns.append(turn)
        return turns, first

    @torch.no_grad()
    def _listen(self, turns):
        """Slot embeddings of the turns that are heard, (N, Q, d); ``audio`` of those turns is set."""
        heard = [t for t in turns if t.get("emotion") is None]
        for turn in turns:
            turn["audio"] = None
        if not heard:
            return None
        samples = []
        for number, turn in enumerate(heard):
            turn["audio"] = number
            samples.append(load_audio(turn["recording"], self.sample_rate, max_duration=self.max_duration))
        lengths = torch.tensor([len(x) for x in samples])
        batch = AudioBatch(lengths, torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)).to(
            self.device
        )
        output = self.model.front_end(*self.model.features(batch))
        return output.slots, output.slot_lengths

    @torch.no_grad()
    def _score(self, task, record, slots, lengths, sources):
        """Probability of every label of a task: dict."""
        example = task.build(record, slot_sources=sources)
        audios = (
            []
            if slots is None
            else [
                {k: int(n[i]) for k, n in lengths.items()} for i in range(len(next(iter(lengths.values()))))
            ]
        )
        packed = self.packer.collate(
            [self.packer.encode(example, audios, with_answer=False)], "left", [0]
        ).to(self.device)
        embeddings = self.model.llm.embed(packed, slots or {})
        candidates = [self.packer.answer_ids(task.answer_fields(v)) for v in task.values]
        scores = self.model.llm.score(embeddings, packed, candidates)[0].tolist()
        return dict(zip(task.values, label_probabilities(scores, 1.0).tolist(), strict=True))

    def _heard(self, turn, slots, lengths):
        """What is heard in one turn."""
        if turn["audio"] is None:
            degree = (turn.get("descriptors") or {}).get("intensity")
            return HeardTurn(turn["speaker"], turn["text"], turn["emotion"], degree, {}, True)
        i = turn["audio"]
        own = {k: x[i : i + 1] for k, x in slots.items()}
        own_lengths = {k: n[i : i + 1] for k, n in lengths.items()}
        p = self._score(self.emotion_task, {"id": "turn", "emotion": None}, own, own_lengths, None)
        degree, emotion = split_label(max(p, key=p.get))
        return HeardTurn(turn["speaker"], turn["text"], emotion, degree, p, False)

    def predict(self, dialogue, speakers, text, speaker, transcripts=None, emotions=None):
        """The emotion of the next line.

        Arguments
        ---------
        dialogue : sequence of (str or pathlib.Path or None)
            Recordings of the turns so far, in order; None for a turn that is only known in writing (its emotion must
            be given). Of more than the task's ten the last are taken.
        speakers : sequence
            Who says each turn.
        text : str
            Words of the next line.
        speaker : object
            Who says it.
        transcripts : sequence of (str or None), optional
            Words of the turns; what is missing comes from the recogniser.
        emotions : sequence of (str or None), optional
            Emotions of the turns, with or without intensity (``weak sad``); what is missing is heard.

        Returns
        -------
        Prediction

        Raises
        ------
        ConversationError
            If the numbers do not fit, an emotion is unknown or the line has no words.
        AudioError
            If a recording cannot be read.
        """
        if not str(text or "").strip():
            raise ConversationError("the next line has no words: give text")
        started, warnings, seconds = time.perf_counter(), [], {}
        turns, first = self._turns(dialogue, speakers, transcripts, emotions)
        if first:
            warnings.append(
                f"the first {first} turns are left out: at most {self.next_task.max_turns} are read"
            )
        for turn in turns:
            if not turn["text"] and turn["recording"] is not None and self.transcriber is not None:
                turn["text"] = str(self.transcriber(str(turn["recording"]))).strip()
        unknown = sum(not t["text"] for t in turns)
        if unknown:
            warnings.append(
                f"the words of {unknown} turns are unknown: give transcripts or a transcriber; the emotion is "
                "predicted from the voices alone"
            )
        found = self._listen(turns)
        slots, lengths = found if found is not None else (None, None)
        seconds["listen"] = time.perf_counter() - started
        started = time.perf_counter()
        heard = tuple(self._heard(t, slots, lengths) for t in turns)
        record = {
            "id": "conversation",
            "turns": turns,
            "response": {"text": " ".join(str(text).split()), "speaker": str(speaker)},
        }
        p = self._score(self.next_task, record, slots, lengths, {"emotion": "speech"})
        degree, emotion = split_label(max(p, key=p.get))
        by_emotion = {}
        for label, value in p.items():
            name = split_label(label)[1]
            by_emotion[name] = by_emotion.get(name, 0.0) + value
        seconds["reason"] = time.perf_counter() - started
        return Prediction(
            record["response"]["text"],
            str(speaker),
            emotion,
            degree,
            p,
            by_emotion,
            heard,
            tuple(warnings),
            seconds,
        )

    # -- speaking ------------------------------------------------------------------------------------------

    def voice_of(self, speaker):
        """The synthesiser's voice for a speaker of the conversation.

        ``voices`` (speaker -> voice) goes before; a speaker that is a voice is itself; a number counts the voices.

        Raises
        ------
        ConversationError
            If there is no such voice, or no synthesiser.
        """
        self._need_synthesiser()
        name, known = (
            str(self.voices.get(speaker, self.voices.get(str(speaker), speaker))),
            self.inventory.speakers,
        )
        if name in known:
            return name
        if name.isdigit() and int(name) < len(known):
            return known[int(name)]
        raise ConversationError(
            f"speaker {speaker!r} has no voice: give a number from 0 to {len(known) - 1}, or set voices[{speaker!r}] "
            f"to one of {', '.join(known)}"
        )

    def _need_synthesiser(self):
        if self.acoustic is None:
            raise ConversationError(
                "there is no synthesiser: give tts=FOLDER (python train.py hparams/demo_jelly_tts.yaml makes one)"
            )

    @torch.no_grad()
    def say(self, text, voice, emotion, intensity=None, pace=1.0):
        """One line with a given emotion.

        Arguments
        ---------
        text : str
            English.
        voice : str
            One of the synthesiser's.
        emotion : str
            One of its emotions.
        intensity : str, optional
            One of its intensities; None for neutral (and medium else).
        pace : float
            Factor on durations.

        Returns
        -------
        tuple
            Samples float32 (samples,), sample rate in Hz, and seconds of the steps (dict).

        Raises
        ------
        ConversationError
            If there is no synthesiser, or it does not know a label.
        """
        self._need_synthesiser()
        started, seconds = time.perf_counter(), {}
        try:
            ids = {
                "phones": self.inventory.phone_ids(text_to_phones(text, self.g2p)),
                "speaker": self.inventory.speaker_id(voice),
                "emotion": self.inventory.emotion_id(emotion),
                "intensity": self.inventory.intensity_id(intensity),
            }
        except ValueError as error:
            raise ConversationError(str(error)) from error
        given = {k: torch.tensor([v], device=self.device) for k, v in ids.items()}
        out = self.acoustic(**given, pace=pace)
        seconds["synthesise"] = time.perf_counter() - started
        started = time.perf_counter()
        f0 = self.inventory.pitch_of_frames(out.pitch[0], out.durations[0])
        samples = self.vocoder(out.refined[0].cpu(), f0).numpy().astype(np.float32)
        seconds["vocode"] = time.perf_counter() - started
        return samples, self.vocoder.sample_rate, seconds

    def reply(self, dialogue, speakers, text, speaker, transcripts=None, emotions=None):
        """Say the next line with the emotion that is predicted for it; arguments as of :meth:`predict`.

        Returns
        -------
        SpokenReply

        Raises
        ------
        ConversationError
            As of :meth:`predict`, and if there is no synthesiser, no voice for the speaker, or nothing to say in the
            line.
        AudioError
            If a recording cannot be read.
        """
        # What cannot be said is told before the listening, not after it.
        voice = self.voice_of(speaker)
        text_to_phones(str(text or ""), self.g2p)
        prediction = self.predict(dialogue, speakers, text, speaker, transcripts, emotions)
        samples, rate, seconds = self.say(prediction.text, voice, prediction.emotion, prediction.intensity)
        prediction.seconds.update(seconds)
        return SpokenReply(samples, rate, prediction)


def marked_line(prediction, markup, intensities=()):
    """A predicted line as the word-level synthesiser takes it: the whole of it marked with its emotion.

    Labels are matched by what they mean (``happy``, ``hap``), intensities by their places (``weak``, ``low``).

    Arguments
    ---------
    prediction : Prediction
        The line.
    markup : EmotionMarkup
        Of the synthesiser.
    intensities : sequence of str
        The prediction's intensities, weakest first.

    Returns
    -------
    str
        Not marked where the emotion is that of unmarked text.

    Raises
    ------
    ConversationError
        If the synthesiser has no such emotion.

    Example
    -------
    >>> from speechbrain_emo.prompts.markup import EmotionMarkup
    >>> line = Prediction("I see.", "0", "sad", "strong", {}, {}, (), (), {})
    >>> marked_line(line, EmotionMarkup(), ("weak", "medium", "strong"))
    "<emotion type='sad' intensity='high'>I see.</emotion>"
    """
    emotion = suggest(prediction.emotion, markup.labels)
    if emotion is None:
        raise ConversationError(
            f"the word-level synthesiser has no emotion like {prediction.emotion!r}; it has {', '.join(markup.labels)}"
        )
    if emotion == markup.untagged[0]:
        return markup.write(MarkedText(prediction.text, ()))
    degrees = list(markup.intensities)
    if prediction.intensity in intensities:
        place = list(intensities).index(prediction.intensity) / max(len(intensities) - 1, 1)
    else:
        place = 0.5
    degree = degrees[round(place * (len(degrees) - 1))]
    span = EmotionSpan(0, len(prediction.text), emotion, degree)
    return markup.write(MarkedText(prediction.text, (span,)))


def whisper_transcriber(source="openai/whisper-large-v3", device="cpu"):
    """A recogniser for :class:`ConversationalTTS` from transformers.

    Arguments
    ---------
    source : str
        Name on the hub, or a local folder, of a Whisper with its decoder.
    device : str
        Where it runs.

    Returns
    -------
    callable
        Path -> words.
    """
    from transformers import pipeline

    recogniser = pipeline("automatic-speech-recognition", model=source, device=device)

    def transcribe(path):
        samples = load_audio(path, 16000).numpy()
        return recogniser({"raw": samples, "sampling_rate": 16000})["text"].strip()

    return transcribe


def read_conversation(path):
    """A conversation from a JSON file, for the command line.

    Arguments
    ---------
    path : str or pathlib.Path
        ``{"turns": [{"audio": "a.wav", "speaker": 0, "text": "...", "emotion": "weak sad"}, ...]}``: ``text`` and
        ``emotion`` may be left out, and, where ``emotion`` is there, ``audio``. Relative paths are beside the file.

    Returns
    -------
    dict
        ``dialogue``, ``speakers``, ``transcripts`` and ``emotions`` of :meth:`ConversationalTTS.predict`.

    Raises
    ------
    ConversationError
        If the file is missing or has another layout.

    Example
    -------
    >>> path = getfixture("tmp_path") / "d.json"
    >>> _ = path.write_text('{"turns": [{"speaker": 0, "text": "Hello.", "emotion": "sad"}]}')
    >>> read_conversation(path)["emotions"]
    ['sad']
    """
    path = Path(path)
    try:
        turns = json.loads(path.read_text(encoding="utf-8"))["turns"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConversationError(
            f"{path}: no conversation ({error}); needed is a JSON object with turns: a list of objects with audio, "
            "speaker and, optionally, text and emotion"
        ) from error
    if not isinstance(turns, list) or not all(isinstance(t, Mapping) and "speaker" in t for t in turns):
        raise ConversationError(f"{path}: 'turns' is no list of objects that each have a 'speaker'")

    def place(audio):
        return None if audio is None else str(path.parent / audio)

    return {
        "dialogue": [place(t.get("audio")) for t in turns],
        "speakers": [t["speaker"] for t in turns],
        "transcripts": [t.get("text") for t in turns],
        "emotions": [t.get("emotion") for t in turns],
    }
