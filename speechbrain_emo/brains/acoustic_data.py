"""Records as batches for the flow and the vocoder: mels, speech tokens, voices, emotions of tokens, F0.

Everything random follows from (seed, epoch, id of the utterance): neither the batch nor an interruption changes it.
Axes: B batch, T tokens, F mel bins, L samples.
"""

import hashlib
import json
import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_emo.brains.speech_token_data import speech_tokens
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, write_text_atomically
from speechbrain_emo.lobes.flow import FlowDraws
from speechbrain_emo.lobes.hubert_pretraining import FrameTargets

logger = logging.getLogger(__name__)

SPEAKER_FROM = ("utterance", "other")
#: Frames of 20 ms at 16 kHz: their centres are those of the mel frames of 480 samples at 24 kHz.
F0_FRAMES = SimpleNamespace(model_type="hubert", conv_kernel=[320], conv_stride=[320])
#: Steps of 0.85 % between 60 and 450 Hz.
F0_LAGS = 240


def seed_of(*parts):
    """A seed that follows from its parts.

    Example
    -------
    >>> seed_of(1, 2, "a") == seed_of(1, 2, "a"), seed_of(1, 2, "a") == seed_of(1, 3, "a")
    (True, False)
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def read_records(files, data_folder, max_duration, limit=None):
    """Records of several manifests that are not too long.

    Arguments
    ---------
    files : sequence of str
        Manifests.
    data_folder : str
        What ``{data_root}`` stands for.
    max_duration : float
        Seconds; longer ones are left out.
    limit : int, optional
        The first so many of each manifest.

    Returns
    -------
    dict
        id -> record.

    Raises
    ------
    ManifestError
        If an id is in two of them, or none is left.
    """
    records = {}
    for file in files:
        read = read_manifest(file, {"data_root": str(data_folder)})
        twice = records.keys() & read.keys()
        if twice:
            raise ManifestError(f"{file}: {sorted(twice)[:3]} are in an earlier manifest too")
        records.update(list(read.items())[:limit])
    kept = {key: record for key, record in records.items() if record["duration"] <= max_duration}
    if len(kept) < len(records):
        logger.info(
            "%d of %d utterances are longer than %g s", len(records) - len(kept), len(records), max_duration
        )
    if not kept:
        raise ManifestError(f"{files}: no utterance of at most {max_duration} s")
    return kept


def audio_of(record, sample_rate):
    """Samples of a record, float32 (L,)."""
    return load_audio(record["wav"], sample_rate, record.get("start"), record.get("stop"))


def speaker_vectors(records, encoder, file, progress=True):
    """Speaker vector of every record, from a file where they are known.

    Arguments
    ---------
    records : dict
    encoder : SpeakerEncoder or OnnxSpeakerEncoder
        With ``encode``, ``sample_rate`` and ``fingerprint``.
    file : str or pathlib.Path
        JSON lines of {id, encoder, audio, vector}; read again after an interruption.
    progress : bool

    Returns
    -------
    dict
        id -> float32 tensor.
    """
    file, mark, known = Path(file), encoder.fingerprint, {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # The line that a kill cut off.
            record = records.get(entry["id"])
            if record is not None and entry["encoder"] == mark and entry["audio"] == _place(record):
                known[entry["id"]] = entry
    missing = [key for key in records if key not in known]
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, "".join(json.dumps(entry) + "\n" for entry in known.values()))
        with open(file, "a", encoding="utf-8") as stream:
            for key in tqdm(
                missing, desc="speaker vectors", unit="utt", mininterval=1.0, disable=not progress
            ):
                wave = audio_of(records[key], encoder.sample_rate)
                vector = encoder.encode(wave[None], torch.tensor([len(wave)]))[0]
                entry = {"id": key, "encoder": mark, "audio": _place(records[key])}
                known[key] = {**entry, "vector": [round(v, 6) for v in vector.tolist()]}
                stream.write(json.dumps(known[key]) + "\n")
    return {key: torch.tensor(known[key]["vector"]) for key in records}


def _place(record):
    return [record["wav"], record.get("start"), record.get("stop")]


def token_emotions(record, names, num_tokens, labels, intensities, token_rate=25.0):
    """Emotion and intensity of every token of a recording.

    Arguments
    ---------
    record : dict
        With ``words`` ({word, start, end} in seconds and, where known, ``intensity`` or ``intensity_value``).
    names : sequence of (str or None)
        True label of each word.
    num_tokens : int
    labels : sequence of str
    intensities : sequence of str
        From weak to strong; they stand for equal steps in [0, 1].
    token_rate : float
        Hz.

    Returns
    -------
    tuple of torch.Tensor
        int64 (num_tokens,), -1 where nothing is known, and float32 (num_tokens,). A token between two words belongs
        to the nearer one.

    Example
    -------
    >>> words = [{"word": "a", "start": 0.0, "end": 0.04}, {"word": "b", "start": 0.06, "end": 0.12}]
    >>> token_emotions({"words": words}, ["sad", None], 3, ["hap", "sad"], ["low", "high"])[0].tolist()
    [1, -1, -1]
    """
    words = record.get("words") or []
    if not words:
        return torch.full((num_tokens,), -1), torch.zeros(num_tokens)
    centres = (np.arange(num_tokens) + 0.5) / token_rate
    starts, ends = (np.array([word[name] for word in words]) for name in ("start", "end"))
    outside = np.maximum(starts[None] - centres[:, None], centres[:, None] - ends[None])
    nearest = np.maximum(outside, 0).argmin(1)
    emotions = [-1 if name is None else list(labels).index(name) for name in names]
    steps = max(len(intensities) - 1, 1)

    def strength(word):
        if word.get("intensity_value") is not None:
            return float(word["intensity_value"])
        level = word.get("intensity")
        return 0.5 if level is None else list(intensities).index(level) / steps

    strengths = [strength(word) for word in words]
    return torch.tensor(emotions)[nearest], torch.tensor(strengths, dtype=torch.float32)[nearest]


@dataclass
class FlowUtterance:
    """One recording for the flow.

    ``tokens`` int64 (T,); ``mel`` float32 (2 T, F); ``speaker`` float32 (D,); ``emotions`` int64 (T,) and
    ``intensities`` float32 (T,); ``voice``: name of the speaker.
    """

    key: str
    tokens: torch.Tensor
    mel: torch.Tensor
    speaker: torch.Tensor
    emotions: torch.Tensor
    intensities: torch.Tensor
    voice: str


def flow_utterances(records, tokenizer, encoder, mel, folder, targets, labels, intensities, name="audio"):
    """Everything that the flow learns from, in memory.

    Arguments
    ---------
    records : dict
    tokenizer, encoder : torch.nn.Module
        Frozen speech tokenizer and speaker encoder.
    mel : speechbrain_emo.lobes.mel.MelSpectrogram
    folder : str or pathlib.Path
        Where tokens and speaker vectors are kept.
    targets : WordTargets or None
        Maps labels of the corpus; None: emotions are not used.
    labels, intensities : sequence of str
    name : str
        Of the progress bar.

    Returns
    -------
    list of FlowUtterance
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = speech_tokens(
        records,
        tokenizer,
        lambda record: audio_of(record, tokenizer.sample_rate),
        folder / f"{name}_{tokenizer.fingerprint}.jsonl",
    )
    vectors = speaker_vectors(records, encoder, folder / f"{name}_{encoder.fingerprint}.speakers.jsonl")
    frames_a_token = round(mel.sample_rate / mel.hop / tokenizer.token_rate)
    utterances = []
    for key, record in tqdm(records.items(), desc=f"mels of {name}", unit="utt", mininterval=1.0):
        wave = audio_of(record, mel.sample_rate)
        count = len(tokens[key])
        wanted = count * frames_a_token * mel.hop
        padded = torch.nn.functional.pad(wave, (0, max(0, wanted - len(wave))))[:wanted]
        if targets is None:
            emotions, strengths = torch.full((count,), -1), torch.zeros(count)
        else:
            names = targets.names(key, record) if record.get("words") else []
            emotions, strengths = token_emotions(
                record, names, count, labels, intensities, tokenizer.token_rate
            )
        utterances.append(
            FlowUtterance(
                key,
                torch.tensor(tokens[key]),
                mel(padded[None])[0].T.contiguous(),
                vectors[key],
                emotions,
                strengths,
                record.get("speaker") or key,
            )
        )
    return utterances


@dataclass
class FlowBatch:
    """A padded batch of :class:`FlowUtterance`.

    ``draws`` are those of :class:`FlowDraws`; ``streaming`` says whether chunk masks are used.
    """

    keys: tuple
    tokens: torch.Tensor
    num_tokens: torch.Tensor
    mel: torch.Tensor
    num_frames: torch.Tensor
    speaker: torch.Tensor
    emotions: torch.Tensor
    intensities: torch.Tensor
    draws: FlowDraws
    streaming: bool

    def to(self, device, **_):
        """The batch on a device."""
        moved = (getattr(self, f.name) for f in fields(self))
        return FlowBatch(*(value.to(device) if hasattr(value, "to") else value for value in moved))


class FlowBatches(torch.utils.data.IterableDataset):
    """Batches of similar lengths, bounded by seconds of padded audio.

    Arguments
    ---------
    utterances : list of FlowUtterance
    batch_seconds : float
        Upper bound of a batch, padding included.
    seed : int
    frame_rate : float
        Mel frames a second.
    training : bool
        False: the same order, draws and voices every time.
    speaker_from : str
        ``utterance``: the speaker vector of the recording itself, as published; ``other``: of another recording of
        the same speaker, so that the vector cannot tell what is said or felt in this one.
    streaming : float
        Share of training batches with chunk masks.
    emotion_dropout : float
        Share of training utterances whose emotions are not told.
    draws : dict, optional
        ``drop``, ``no_prompt`` and ``longest_prompt`` of :class:`FlowDraws`.

    Raises
    ------
    ValueError
        If ``speaker_from`` is not allowed.
    """

    def __init__(
        self,
        utterances,
        batch_seconds,
        seed,
        frame_rate=50.0,
        training=True,
        speaker_from="utterance",
        streaming=0.5,
        emotion_dropout=0.1,
        draws=None,
    ):
        super().__init__()
        if speaker_from not in SPEAKER_FROM:
            raise ValueError(f"speaker_from is {speaker_from!r}; allowed are {SPEAKER_FROM}")
        self.utterances, self.seed, self.training = utterances, int(seed), training
        self.batch_frames = int(batch_seconds * frame_rate)
        self.speaker_from, self.streaming, self.emotion_dropout = speaker_from, streaming, emotion_dropout
        self.draws = dict(draws or {})
        self.voices = {}
        for index, utterance in enumerate(utterances):
            self.voices.setdefault(utterance.voice, []).append(index)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Draw the batches of an epoch."""
        self.epoch = int(epoch) if self.training else 0
        rng = np.random.default_rng([self.seed, self.epoch])
        lengths = np.array([len(u.mel) for u in self.utterances], dtype=float)
        order = np.argsort(lengths * (1 + 0.1 * rng.random(len(lengths)) * self.training), kind="stable")
        batches, current, longest = [], [], 0
        for index in order.tolist():
            longest = max(longest, int(lengths[index]))
            if current and longest * (len(current) + 1) > self.batch_frames:
                batches.append(current)
                current, longest = [], int(lengths[index])
            current.append(index)
        batches.append(current)
        if self.training:
            rng.shuffle(batches)
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for indices in self.batches:
            yield self._batch(indices)

    def _batch(self, indices):
        chosen = [self.utterances[i] for i in indices]

        def padded(name, value=0):
            rows = [getattr(u, name) for u in chosen]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

        seeds = [seed_of(self.seed, self.epoch, u.key) for u in chosen]
        num_frames = torch.tensor([len(u.mel) for u in chosen])
        emotions = padded("emotions", -1)
        if self.training:
            for row, seed in enumerate(seeds):
                if np.random.default_rng([seed, 1]).random() < self.emotion_dropout:
                    emotions[row] = -1
        # One choice for the whole batch, which its first utterance decides.
        streaming = self.training and np.random.default_rng([seeds[0], 2]).random() < self.streaming
        return FlowBatch(
            keys=tuple(u.key for u in chosen),
            tokens=padded("tokens"),
            num_tokens=torch.tensor([len(u.tokens) for u in chosen]),
            mel=padded("mel", 0.0),
            num_frames=num_frames,
            speaker=torch.stack([self._speaker(i, seed) for i, seed in zip(indices, seeds, strict=True)]),
            emotions=emotions,
            intensities=padded("intensities", 0.0),
            draws=FlowDraws.of_seeds(seeds, num_frames, chosen[0].mel.shape[1], **self.draws),
            streaming=bool(streaming),
        )

    def _speaker(self, index, seed):
        own = self.utterances[index]
        others = [i for i in self.voices[own.voice] if i != index]
        if self.speaker_from == "utterance" or not others:
            return own.speaker
        return self.utterances[others[int(np.random.default_rng([seed, 3]).integers(len(others)))]].speaker


@dataclass
class VocoderUtterance:
    """One recording for the vocoder.

    ``wave`` int16 (frames * hop,), full scale 32767; ``f0`` float32 (frames,) in Hz, 0 where there is no voice.
    """

    key: str
    wave: torch.Tensor
    f0: torch.Tensor


def vocoder_utterances(records, mel, name="audio"):
    """Waveforms and F0 in memory; F0 by autocorrelation (:class:`FrameTargets`).

    Arguments
    ---------
    records : dict
    mel : speechbrain_emo.lobes.mel.MelSpectrogram
        Of 50 frames a second, the rate of the F0.
    name : str
        Of the progress bar.

    Returns
    -------
    list of VocoderUtterance

    Raises
    ------
    ValueError
        If the mel has another frame rate.
    """
    if mel.sample_rate != 50 * mel.hop:
        raise ValueError(f"the mel has {mel.sample_rate / mel.hop} frames a second; F0 is measured at 50")
    tracker = FrameTargets(F0_FRAMES, lags=F0_LAGS)
    utterances = []
    for key, record in tqdm(records.items(), desc=f"F0 of {name}", unit="utt", mininterval=1.0):
        wave = audio_of(record, mel.sample_rate)
        frames = len(wave) // mel.hop
        features = tracker(audio_of(record, 16000)[None])
        f0 = torch.where(features.voiced, 150.0 * 2**features.f0, 0.0)[0][:frames]
        if len(f0) * mel.hop <= mel.n_fft:
            continue  # Shorter than a window.
        samples = (wave[: len(f0) * mel.hop].clamp(-1, 1) * 32767).round().to(torch.int16)
        utterances.append(VocoderUtterance(key, samples, f0))
    return utterances


@dataclass
class VocoderBatch:
    """Crops of recordings: ``wave`` float32 (B, L), ``f0`` float32 (B, frames), ``seed`` of the source's noise."""

    wave: torch.Tensor
    f0: torch.Tensor
    seed: int

    def to(self, device, **_):
        """The batch on a device."""
        return VocoderBatch(self.wave.to(device), self.f0.to(device), self.seed)


class VocoderBatches(torch.utils.data.IterableDataset):
    """Crops of equal length, one or more of each recording an epoch.

    Arguments
    ---------
    utterances : list of VocoderUtterance
    batch_size : int
    crop_frames : int
        Mel frames; recordings that are shorter are repeated.
    hop : int
        Samples of a mel frame.
    seed : int
    training : bool
        False: the same crops every time.
    crops : int
        Of each recording.
    """

    def __init__(self, utterances, batch_size, crop_frames, hop, seed, training=True, crops=1):
        super().__init__()
        self.utterances, self.batch_size, self.hop = utterances, int(batch_size), hop
        self.crop_frames, self.seed, self.training = int(crop_frames), int(seed), training
        self.crops = int(crops)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Draw the order of an epoch."""
        self.epoch = int(epoch) if self.training else 0
        places = np.arange(len(self.utterances) * self.crops)
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(places)

    def __len__(self):
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.order), self.batch_size):
            crops = [self._crop(int(place)) for place in self.order[start : start + self.batch_size]]
            yield VocoderBatch(
                torch.stack([wave for wave, _ in crops]),
                torch.stack([f0 for _, f0 in crops]),
                seed_of(self.seed, self.epoch, start),
            )

    def _crop(self, place):
        utterance = self.utterances[place % len(self.utterances)]
        rng = np.random.default_rng(seed_of(self.seed, self.epoch, place, utterance.key))
        repeats = -(-self.crop_frames // len(utterance.f0))
        first = int(rng.integers(len(utterance.f0) * repeats - self.crop_frames + 1))
        stop = first + self.crop_frames
        wave = utterance.wave.repeat(repeats)[first * self.hop : stop * self.hop]
        return wave.float() / 32767, utterance.f0.repeat(repeats)[first:stop]
