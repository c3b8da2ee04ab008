"""Word-level emotional synthesis as an object: :class:`EmotionalTTS`.

Text with marks -> speech tokens (language model with E-FiLM) -> mel (flow matching) -> waveform (vocoder), in the voice
of a recording. The folder is one that a training exported, or the published CosyVoice2-0.5B after
``speechbrain_emo convert``.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from speechbrain.inference.interfaces import Pretrained
from transformers import AutoTokenizer

from speechbrain_emo.alignment import AlignmentError, make_aligner
from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.dataio.audio import AudioError, from_array, load_audio
from speechbrain_emo.inference.export import SPEAK_DEFAULTS, SPEAK_KEYS, complete_speak_settings
from speechbrain_emo.inference.interfaces import _fetch_model, find_model_folder
from speechbrain_emo.inference.safe_loading import (
    HPARAMS_FILE,
    UnsafeModelError,
    check_structure,
    check_yaml,
    load_checked_yaml,
    verify_folder,
)
from speechbrain_emo.inference.speech import SpeakError, Speech
from speechbrain_emo.lobes.flow import load_flow
from speechbrain_emo.lobes.mel import MelSpectrogram
from speechbrain_emo.lobes.speaker_encoder import load_speaker_encoder
from speechbrain_emo.lobes.speech_token_lm import load_speech_token_lm
from speechbrain_emo.lobes.speech_tokenizer import load_speech_tokenizer
from speechbrain_emo.lobes.token_generation import Generated, TokenRequest, generate, generation_steps
from speechbrain_emo.lobes.token_sampling import SamplingSettings
from speechbrain_emo.lobes.vocoder import VocoderStream, griffin_lim, load_vocoder
from speechbrain_emo.prompts.markup import EmotionMarkup, MarkupError
from speechbrain_emo.prompts.spoken_text import split_sentences, spoken_text

#: What `speechbrain_emo convert` writes beside the parts.
CONVERSION_REPORT = "conversion.json"
PUBLISHED_LABELS = ("ang", "hap", "neu", "sad", "sur")
MIN_VOICE_SECONDS = 0.5
#: A voice prompt whose loudest 25 ms lie below this (dB of full scale) is silence.
SILENCE_DB = -60.0
DEFAULT_ALIGNER = "espeak-dtw"
#: Folders (or files) of each part, the first that is there.
_PLACES = {
    "lm": ("lm", "llm"),
    "text": ("text", "CosyVoice-BlankEN"),
    "speech_tokenizer": ("speech_tokenizer", "speech_tokenizer_v2.onnx"),
    "speaker_encoder": ("speaker_encoder", "campplus.onnx"),
    "flow": ("flow",),
    "vocoder": ("vocoder",),
}
_LOADERS = {
    "lm": load_speech_token_lm,
    "speech_tokenizer": load_speech_tokenizer,
    "speaker_encoder": load_speaker_encoder,
    "flow": load_flow,
    "vocoder": load_vocoder,
}


@dataclass(frozen=True)
class Voice:
    """What is known about the voice that speaks.

    Arguments
    ---------
    tokens : torch.Tensor
        int64 (P,): speech tokens of the recording.
    mel : torch.Tensor
        float32 (frames, F).
    vector : torch.Tensor
        float32 (D,): of the speaker encoder.
    text : tuple of int
        Text tokens of what is said in it; empty where it is not known: the language model then hears nothing of the
        recording, and its voice comes from the acoustic model alone.
    warnings : tuple of str
        What to know about it.
    """

    tokens: torch.Tensor
    mel: torch.Tensor
    vector: torch.Tensor
    text: tuple = ()
    warnings: tuple = ()


@dataclass(frozen=True)
class _Plan:
    """One text, ready to be spoken: pieces as requests, and what to say about it."""

    markup: str
    text: str
    requests: tuple
    warnings: tuple


class EmotionalTTS(Pretrained):
    """Speaks a text whose words are marked with emotions, in the voice of a recording.

    Made by :meth:`from_hparams` from the folder of a training (``hparams/demo_film.yaml``), of an exported model, or of
    the converted CosyVoice2-0.5B.

    Arguments
    ---------
    modules : dict
        ``lm``, and those of ``speech_tokenizer``, ``speaker_encoder``, ``flow``, ``vocoder`` that the model has.
    hparams : dict
        ``speak``: the settings of ``inference.export.SPEAK_DEFAULTS``; ``text_tokenizer``; ``model_hash`` and
        ``model_name``.
    run_opts : dict, optional
        SpeechBrain's run options, for example ``{"device": "cuda:0"}``.
    freeze_params : bool
        As in ``Pretrained``.

    Example
    -------
    >>> from speechbrain_emo.inference import EmotionalTTS
    >>> EmotionalTTS.from_hparams(source=getfixture("tmp_path"))
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: ... holds no exported model: ...
    """

    HPARAMS_NEEDED = ["speak", "text_tokenizer"]
    MODULES_NEEDED = ["lm"]

    def __init__(self, modules=None, hparams=None, run_opts=None, freeze_params=True):
        super().__init__(modules, hparams, run_opts, freeze_params)
        self.settings = self.hparams.speak
        untagged = self.settings["untagged"]
        self.markup = EmotionMarkup(
            self.settings["labels"],
            self.settings["intensities"],
            None if untagged is None else tuple(untagged),
        )
        self.sampling = SamplingSettings(**self.settings["sampling"])
        self.text_tokenizer = self.hparams.text_tokenizer
        self.model_hash, self.model_name = self.hparams.model_hash, self.hparams.model_name
        for module in self.mods.values():
            module.eval()
        vocoder = self._part("vocoder")
        self.sample_rate = 24000 if vocoder is None else int(vocoder.sample_rate)
        flow = self._part("flow")
        self.mel = MelSpectrogram(num_mels=80 if flow is None else flow.num_mels).to(self.device)
        if flow is not None and flow.emotion is not None:
            known = flow.emotion.base.num_embeddings
            if known != len(self.markup.labels):
                raise UnsafeModelError(
                    f"the flow of {self.model_name} knows {known} emotions, the marks are {self.markup.labels}: "
                    "they do not belong together"
                )
        film = self.mods["lm"].film
        self.continuous = film is not None and film.kind == "continuous"
        if film is not None and not self.continuous and film.num_intensities != len(self.markup.intensities):
            raise UnsafeModelError(
                f"the language model of {self.model_name} knows {film.num_intensities} intensities, the marks are "
                f"{self.markup.intensities}: they do not belong together (a continuous model takes any number)"
            )
        self._aligners = {}

    def _part(self, name, needed=False):
        module = self.mods[name] if name in self.mods else None
        if module is None and needed:
            raise SpeakError(
                f"the model {self.model_name} has no {name.replace('_', ' ')}: train it (hparams/demo_film.yaml and "
                "what it requires), or convert the published file, and export the model again"
            )
        return module

    # -- loading -------------------------------------------------------------------------------------------

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=HPARAMS_FILE,
        savedir=None,
        overrides=None,
        run_opts=None,
        fetch_config=None,
        parts=None,
        **kwargs,
    ):
        """Load a model after checking it: nothing that it brings is run.

        Arguments
        ---------
        source : str or pathlib.Path
            An exported model's folder, the folder of a training (which has it under ``model/``), the folder that
            ``speechbrain_emo convert`` wrote, or a name on the Hugging Face hub.
        hparams_file : str
            Only ``hyperparams.yaml``; there for SpeechBrain's signature.
        savedir : str or pathlib.Path, optional
            Where a model from the hub is copied to.
        overrides : mapping, optional
            Settings over those of the model, keys of ``SPEAK_DEFAULTS``. Where the model is continuous,
            ``intensities`` may name any number of equally spaced strengths.
        run_opts : dict, optional
            SpeechBrain's run options.
        fetch_config : speechbrain.utils.fetching.FetchConfig, optional
            Revision, token and the like, for the hub.
        parts : mapping of str to str, optional
            Name of a part -> folder (or ONNX file) that takes the place of the model's own: a flow of an ablation,
            another vocoder. The model's hash changes with it.
        **kwargs
            Further arguments of the class.

        Returns
        -------
        EmotionalTTS

        Raises
        ------
        UnsafeModelError
            If there is no synthesiser, a file differs from the manifest, a part is unknown or not there, or something
            could run code.
        """
        if hparams_file != HPARAMS_FILE:
            raise UnsafeModelError(
                f"hparams_file is {hparams_file!r}; an exported model has {HPARAMS_FILE!r} only"
            )
        path = Path(source).expanduser()
        if (path / CONVERSION_REPORT).is_file():
            folder, digest = path, hashlib.sha256((path / CONVERSION_REPORT).read_bytes()).hexdigest()
            settings = {**SPEAK_DEFAULTS, "labels": list(PUBLISHED_LABELS)}
        else:
            folder, settings, digest = _verified(source, savedir, fetch_config)
        settings = complete_speak_settings({**settings, **(overrides or {})})
        parts = {name: Path(path) for name, path in (parts or {}).items()}
        if parts:
            digest = hashlib.sha256(
                json.dumps([digest, _digests(parts)], sort_keys=True).encode()
            ).hexdigest()
        modules, text_tokenizer = _load_parts(folder, parts)
        values = {
            "speak": settings,
            "text_tokenizer": text_tokenizer,
            "model_hash": digest,
            "model_name": folder.resolve().parent.name + "/" + folder.name,
        }
        return cls(modules=modules, hparams=values, run_opts=run_opts, **kwargs)

    def provenance(self):
        """What made the speech, for results and the metadata of files."""
        from speechbrain_emo import __version__

        return {
            "model": self.model_hash,
            "model_name": self.model_name,
            "toolkit": f"speechbrain_emo {__version__}",
        }

    # -- voices --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def voice(self, speaker, text=None):
        """The voice of a recording; made once, it speaks any number of texts.

        Use only the voice of a person who has agreed to it.

        Arguments
        ---------
        speaker : str, pathlib.Path, tuple or Voice
            Audio file of any rate and number of channels, or (samples, sample rate).
        text : str, optional
            What is said in it. With it the language model goes on in the manner of the recording.

        Returns
        -------
        Voice

        Raises
        ------
        SpeakError
            If the recording is shorter than half a second, longer than the model takes, or silent.
        AudioError
            If the file cannot be used.
        """
        if isinstance(speaker, Voice):
            return speaker
        tokenizer = self._part("speech_tokenizer", True)
        encoder, flow = self._part("speaker_encoder", True), self._part("flow", True)
        longest = self.settings["max_duration"]
        if isinstance(speaker, tuple):
            samples, rate = speaker
            name = "speaker"
            waveforms = [
                from_array(samples, rate, wanted, longest, name) for wanted in (16000, self.sample_rate)
            ]
        else:
            name = str(speaker)
            waveforms = [
                load_audio(speaker, wanted, max_duration=longest) for wanted in (16000, self.sample_rate)
            ]
        low, high = waveforms
        seconds = len(low) / 16000
        if seconds < MIN_VOICE_SECONDS:
            raise SpeakError(
                f"{name}: {seconds:.2f} s are too short to know a voice by; give at least {MIN_VOICE_SECONDS} s, "
                "better 3 to 10 s"
            )
        level = _loudest(low)
        if level < SILENCE_DB:
            raise SpeakError(
                f"{name}: its loudest part lies at {level:.0f} dB of full scale: this is silence, give a recording of "
                "speech"
            )
        warnings = []
        if seconds < 2.0:
            warnings.append(f"the voice is known from {seconds:.1f} s only; 3 to 10 s are better")
        length = torch.tensor([len(low)])
        tokens = tokenizer.encode(low[None].to(self.device), length.to(self.device))[0][0]
        mel = self.mel(high[None].to(self.device))[0].T
        # As many frames as tokens: the flow reads both side by side.
        count = min(len(tokens), len(mel) // flow.encoder.upsampling)
        vector = encoder.encode(low[None].to(self.device), length.to(self.device))[0]
        said = ()
        if text is not None and text.strip():
            said = self._tokens_of_prompt(text)
        return Voice(
            tokens[:count].to(self.device),
            mel[: count * flow.encoder.upsampling],
            vector.to(self.device),
            said,
            tuple(warnings),
        )

    def check(self, markup):
        """Whether a text can be spoken, before any work.

        Arguments
        ---------
        markup : str
            Text with marks.

        Raises
        ------
        SpeakError
            If there is nothing to say, or too much of it.
        MarkupError
            On malformed marks, with the place.
        """
        if not isinstance(markup, str) or not markup.strip():
            raise SpeakError("the text is empty: give at least one word")
        self._spoken(self.markup.parse(markup), markup)

    def _tokens_of_prompt(self, text):
        plan = self._spoken(self.markup.parse(_escaped(text)), text)
        return tuple(self.markup.tokenize(plan.marked, self.text_tokenizer).token_ids)

    # -- texts ---------------------------------------------------------------------------------------------

    def _spoken(self, marked, given):
        if len(marked.text) > self.settings["max_characters"]:
            raise SpeakError(
                f"the text has {len(marked.text)} characters; this model takes up to {self.settings['max_characters']} "
                "at a time: split it"
            )
        try:
            words = normalize(marked.text, self.settings["language"]).words
        except AlignmentError as error:
            raise SpeakError(
                f"{_shortened(given)}: there is nothing in it that can be said ({error})"
            ) from error
        found = spoken_text(
            marked, [(w.start, w.stop, w.tokens) for w in words], self.settings["plain_words"]
        )
        if not found.marked.text:
            raise SpeakError(f"{_shortened(given)}: there is nothing in it that can be said")
        return found

    def _plan(self, markup, voice, seed):
        """Requests for the pieces of a marked text."""
        marked = self.markup.parse(markup)
        spoken = self._spoken(marked, markup)
        warnings = list(voice.warnings)
        if spoken.dropped:
            warnings.append(f"left out, since it has no sound: {' '.join(dict.fromkeys(spoken.dropped))}")
        if spoken.replaced and not self.settings["plain_words"]:
            shown = ", ".join(f"{a} as {b!r}" for a, b in dict.fromkeys(spoken.replaced))
            warnings.append(f"read out: {shown}")
        if marked.spans and self.mods["lm"].film is None:
            warnings.append(
                "this model knows no emotions: the marks change nothing (train hparams/esd_film.yaml)"
            )
        requests = []
        neutral = self.markup.labels.index(self.markup.untagged[0])
        weakest = self.markup.intensities.index(self.markup.untagged[1])
        for number, piece in enumerate(split_sentences(spoken.marked, self.settings["max_piece_characters"])):
            found = self.markup.tokenize(piece, self.text_tokenizer)
            if not found.token_ids:
                continue
            size = len(voice.text)
            requests.append(
                TokenRequest(
                    tuple(found.token_ids),
                    tuple(found.emotions),
                    self._strengths(found.intensities),
                    voice.text,
                    (neutral,) * size,
                    self._strengths([weakest] * size),
                    tuple(voice.tokens.tolist()) if size else (),
                    seed=_seed(seed, number),
                )
            )
        if not requests:
            raise SpeakError(f"{_shortened(markup)}: there is nothing in it that can be said")
        return _Plan(markup, spoken.marked.text, tuple(requests), tuple(warnings))

    def _strengths(self, levels):
        """Intensities as the language model takes them: levels, or numbers in [0, 1] where it is continuous."""
        if not self.continuous:
            return tuple(levels)
        return tuple(level / max(len(self.markup.intensities) - 1, 1) for level in levels)

    # -- speaking ------------------------------------------------------------------------------------------

    def speak(self, markup, speaker, speaker_text=None, seed=0, aligner=DEFAULT_ALIGNER):
        """Speak one text.

        Arguments
        ---------
        markup : str
            Text with ``<emotion type='hap' intensity='high'>...</emotion>`` marks.
        speaker : str, pathlib.Path, tuple or Voice
            See :meth:`voice`.
        speaker_text : str, optional
            What is said in the recording.
        seed : int
            Of the draws: the same seed says it in the same way.
        aligner : str or None
            Finds the words' times (``alignment.make_aligner``); None: no times.

        Returns
        -------
        Speech

        Raises
        ------
        SpeakError
            If there is nothing to say, too much of it, or the voice cannot be used.
        MarkupError
            On malformed marks, with the place.
        AudioError
            If the speaker's file cannot be used.
        """
        return self.speak_batch([markup], speaker, speaker_text, [seed], aligner)[0]

    @torch.no_grad()
    def speak_batch(self, markups, speaker, speaker_text=None, seeds=None, aligner=DEFAULT_ALIGNER):
        """Speak several texts in one voice; what each gets depends on its own seed, not on the others.

        Arguments
        ---------
        markups : sequence of str
            Texts with marks.
        speaker, speaker_text, aligner :
            Of :meth:`speak`.
        seeds : sequence of int, optional
            One each a text. Default: 0 for all.

        Returns
        -------
        list of Speech
        """
        markups = list(markups)
        seeds = [0] * len(markups) if seeds is None else [int(seed) for seed in seeds]
        if len(seeds) != len(markups):
            raise SpeakError(f"{len(markups)} texts and {len(seeds)} seeds: give one seed a text")
        # Texts first: what is wrong with them is known before any work.
        for markup in markups:
            self.check(markup)
        voice = self.voice(speaker, speaker_text)
        plans = [self._plan(markup, voice, seed) for markup, seed in zip(markups, seeds)]
        requests = [request for plan in plans for request in plan.requests]
        made = generate(self.mods["lm"], requests, self.sampling)
        waves = self._waveforms(made, requests, voice)
        found, at = [], 0
        for plan, seed in zip(plans, seeds):
            own = slice(at, at + len(plan.requests))
            at += len(plan.requests)
            found.append(self._speech(plan, made[own], waves[own], seed, aligner))
        return found

    def _waveforms(self, made, requests, voice):
        """Samples of each piece, from one pass of the flow."""
        flow = self._part("flow", True)
        tokens = [torch.tensor(one.tokens, dtype=torch.int64, device=self.device) for one in made]
        counts = torch.tensor([len(row) for row in tokens], device=self.device)
        size = len(made)
        emotions = intensities = None
        if flow.emotion is not None:
            pairs = [
                self._emotions_of_speech(request, 0, len(one.tokens), len(one.tokens))
                for one, request in zip(made, requests)
            ]
            emotions, intensities = (
                torch.nn.utils.rnn.pad_sequence([p[i] for p in pairs], batch_first=True) for i in range(2)
            )
        batch = flow.generate(
            torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            voice.tokens.expand(size, -1),
            voice.mel.expand(size, -1, -1),
            voice.vector.expand(size, -1),
            num_tokens=counts,
            emotions=emotions,
            intensities=intensities,
        )
        waves = []
        for row, (count, request) in enumerate(zip(batch.num_frames.tolist(), requests)):
            # A row at a time, with noise of its own: the others in the batch change nothing.
            waves.append(self._wave(batch.mel[row : row + 1, :, :count], request.seed))
        return waves

    def _wave(self, mel, seed):
        generator = torch.Generator(device=mel.device).manual_seed(seed)
        vocoder = self._part("vocoder")
        if vocoder is None:
            wave = griffin_lim(mel, self.mel, generator=generator)
        else:
            wave, _ = vocoder.synthesise(mel, generator=generator)
        return wave[0].float().cpu().numpy()

    def _emotions_of_speech(self, request, start, stop, expected):
        """Emotion and intensity in [0, 1] of speech tokens, the text taken to run evenly through ``expected`` of them.

        Where a word lies in the tokens is not known before there is sound; a border may be off by a word.
        """
        places = (np.arange(start, stop) + 0.5) / max(expected, 1) * len(request.text)
        index = places.astype(int).clip(max=len(request.text) - 1)
        strongest = 1.0 if self.continuous else max(len(self.markup.intensities) - 1, 1)
        emotions = torch.tensor([request.emotions[i] for i in index], dtype=torch.int64, device=self.device)
        strengths = [request.intensities[i] / strongest for i in index]
        return emotions, torch.tensor(strengths, dtype=torch.float32, device=self.device)

    def _speech(self, plan, made, waves, seed, aligner):
        warnings = list(plan.warnings)
        pause = np.zeros(int(self.settings["pause"] * self.sample_rate), dtype=np.float32)
        parts = []
        for wave in waves:
            parts += [pause, wave] if parts else [wave]
        samples = np.concatenate(parts)
        reason = "eos"
        if any(one.finish_reason != "eos" for one in made):
            reason = "max_length"
            warnings.append(
                "the model did not end by itself: the speech may be garbled or too long; try another seed"
            )
        if self._part("vocoder") is None:
            warnings.append("the model has no vocoder: phases are guessed (Griffin-Lim), which sounds hollow")
        words = None
        if aligner is not None:
            words, failure = self._words(samples, plan.text, aligner)
            if failure:
                warnings.append(failure)
        return Speech(
            samples,
            self.sample_rate,
            tuple(token for one in made for token in one.tokens),
            reason,
            plan.text,
            plan.markup,
            words,
            seed,
            self.provenance(),
            tuple(warnings),
        )

    def _words(self, samples, text, name):
        """(words with times, None), or (None, why there are none)."""
        try:
            if name not in self._aligners:
                self._aligners[name] = make_aligner(name, language=self.settings["language"])
            low = from_array(samples, self.sample_rate, 16000, None, "speech")
            return tuple(self._aligners[name].align(low.numpy(), 16000, text).words), None
        except (AlignmentError, AudioError, ImportError) as error:
            return None, f"the words' times are not known: {error}"

    # -- streaming -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def stream(self, markup, speaker, speaker_text=None, seed=0):
        """Speak one text while it is being made.

        Arguments
        ---------
        markup, speaker, speaker_text, seed :
            Of :meth:`speak`.

        Yields
        ------
        numpy.ndarray
            float32 (n,) at ``sample_rate``, one behind the other.

        Returns
        -------
        Speech
            As the value of ``StopIteration``; without words' times.
        """
        self.check(markup)
        voice = self.voice(speaker, speaker_text)
        plan = self._plan(markup, voice, seed)
        flow, vocoder = self._part("flow", True), self._part("vocoder", True)
        begun = flow.stream(voice.tokens, voice.mel, voice.vector)
        # How fast the voice speaks says where in the text a token is; without its text the flow is told no emotion.
        rate = len(voice.tokens) / len(voice.text) if voice.text else None
        pause = np.zeros(int(self.settings["pause"] * self.sample_rate), dtype=np.float32)
        made, waves = [], []
        for number, request in enumerate(plan.requests):
            if number:
                yield pause
            result, mels = Generated(), begun.clone()
            generator = torch.Generator(device=voice.mel.device).manual_seed(request.seed)
            sound, parts, pushed = VocoderStream(vocoder, generator=generator), [], 0
            for _ in generation_steps(self.mods["lm"], [request], self.sampling, [result]):
                if len(result.tokens) == pushed:
                    continue
                new = torch.tensor(result.tokens[pushed:], dtype=torch.int64, device=self.device)
                felt = ()
                if flow.emotion is not None and rate is not None:
                    expected = rate * len(request.text)
                    felt = self._emotions_of_speech(request, pushed, len(result.tokens), expected)
                pushed = len(result.tokens)
                mel = mels.push(new, *felt)
                if mel.shape[2]:
                    parts.append(sound.push(mel)[0].float().cpu().numpy())
                    if len(parts[-1]):
                        yield parts[-1]
            parts.append(sound.finish(mels.finish())[0].float().cpu().numpy())
            yield parts[-1]
            made.append(result)
            waves.append(np.concatenate(parts))
        return self._speech(plan, made, waves, seed, None)

    def forward(self, markup, speaker, speaker_text=None, seed=0):
        """Same as :meth:`speak`."""
        return self.speak(markup, speaker, speaker_text, seed)


def _escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _shortened(text):
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _seed(seed, number):
    """Seed of a piece: that of the text for the first one."""
    return int(seed) if number == 0 else (int(seed) * 1000003 + 7919 * number) % (2**62)


def _loudest(samples):
    """Level of the loudest 25 ms, dB of full scale."""
    frames = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    return 10 * float(torch.log10(frames.square().mean(1).max() + 1e-20))


def _verified(source, savedir, fetch_config):
    """(folder, settings, hash) of an exported model whose files are as its manifest says."""
    from speechbrain.utils.fetching import FetchConfig

    folder = find_model_folder(source)
    if folder is None:
        folder = _fetch_model(str(source), savedir, fetch_config or FetchConfig())
    manifest = verify_folder(folder)
    name = str(folder / HPARAMS_FILE)
    text = (folder / HPARAMS_FILE).read_text(encoding="utf-8")
    check_yaml(text, name)
    check_structure(text, SPEAK_KEYS, name)
    settings = load_checked_yaml(text, folder.resolve(), name)["speak"]
    parts = {k: v["sha256"] for k, v in manifest["files"].items() if not k.endswith(".md")}
    return folder, settings, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digests(parts):
    """Hash of every file of the parts that are put in a model's place."""
    unknown = sorted(set(parts) - (set(_PLACES) - {"lm", "text"}))
    if unknown:
        allowed = ", ".join(name for name in _PLACES if name not in ("lm", "text"))
        raise UnsafeModelError(f"parts {unknown} cannot take another's place; allowed: {allowed}")
    found = {}
    for name, path in parts.items():
        files = sorted(path.glob("*")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise UnsafeModelError(f"{path}: no {name.replace('_', ' ')} is there")
        found[name] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return found


def _load_parts(folder, parts):
    """(modules, text tokenizer) of a model's folder; parts that are not there are left out, the first two must be."""
    found = {}
    for name, places in _PLACES.items():
        own = (folder / place for place in places if (folder / place).exists())
        path = parts.get(name) or next(own, None)
        if path is None and name in ("lm", "text"):
            raise UnsafeModelError(f"{folder} has no {name} ({' or '.join(places)}): it is no synthesiser")
        if path is not None:
            found[name] = path
    text = found.pop("text")
    for path in sorted(text.glob("*.json")):
        _refuse_code(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
        modules = {name: _LOADERS[name](path) for name, path in found.items()}
    except (ValueError, OSError) as error:
        raise UnsafeModelError(f"{folder}: {error}") from error
    vocabulary = modules["lm"].num_speech_tokens
    for name in ("speech_tokenizer", "flow"):
        if name in modules and modules[name].vocab_size != vocabulary:
            raise UnsafeModelError(
                f"{folder}: the {name} has {modules[name].vocab_size} speech tokens, the language model {vocabulary}: "
                "they do not belong together"
            )
    if {"speaker_encoder", "flow"} <= set(modules):
        sizes = modules["speaker_encoder"].size, modules["flow"].speaker_size
        if sizes[0] != sizes[1]:
            raise UnsafeModelError(
                f"{folder}: the speaker encoder gives {sizes[0]} numbers, the flow wants {sizes[1]}"
            )
    return modules, tokenizer


def _refuse_code(path):
    if "auto_map" in json.loads(path.read_text(encoding="utf-8")):
        raise UnsafeModelError(f"{path}: 'auto_map' names Python code that belongs to the model; refused")


__all__ = ["DEFAULT_ALIGNER", "EmotionalTTS", "MarkupError", "SpeakError", "Voice"]
