"""Alignment against espeak-ng's own rendering of the text: any of its hundred-odd languages, no trained model.

The idea is old (F. Malfrère, T. Dutoit, "High-quality speech synthesis for phonetic speech segmentation", Eurospeech
1997, and the aeneas program): synthesise the text, whose word times are then known, and warp the recording onto it.
Here the warping path moves 0 to 3 rendered frames for each frame of the recording, and between any two words there is
a pause state that costs nothing to pass by: so the pauses of a speaker need not be in the rendering. Every path has
one cost for each frame of the recording, which makes costs comparable between texts.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.alignment.types import AlignedInterval, Alignment, AlignmentError, align_each
from speechbrain_emo.dataio.audio import from_array
from speechbrain_emo.dataio.compiled_librosa import librosa
from speechbrain_emo.dataio.espeak import RATE_LIMITS, EspeakError, EspeakSynthesizer

_SAMPLE_RATE = 16000
_FRAME = 0.01  # s
_HOP = int(_FRAME * _SAMPLE_RATE)
_CEPSTRA = 13
_NATS_PER_DB = math.log(10) / 10

# What a frame may move in the rendering, and what it costs beside the distance of the frames: to stay, to go on by
# one, to leave one out, to leave two out.
_STEPS = (0.3, 0.0, 0.3, 0.8)
# A word has columns enough not to be left out as a whole.
_MIN_COLUMNS = len(_STEPS) - 1
# Louder than this below the recording's loud frames is speech; quieter than that is cut off before cepstra.
_SILENCE_DB, _RANGE_DB = 35.0, 45.0

# The first search is over frames of 40 ms at least, and over this many at most; the second stays near its path.
_COARSE, _COARSE_FRAMES, _BAND = 4, 3000, 1.5

# Tokens in one rendering.
_CLAUSE = 20

# A frame's excess is its distance on the path less that to the nearest frame of the rendering nearby or of this
# inventory of syllables in the same voice, in standard deviations of the cepstra. Means over utterances lie near 0.23
# for the right text (0.06 where the voice is espeak-ng's own) and near 0.32 for a wrong one of about the same length;
# docs/alignment.md names the data.
_INVENTORY = (
    "papu bebi tita dodo kuka gigo fafe vova "
    "sesi zuza shasho chacha hahe roru lelu mimi nona wawi yeya ai au oi ei"
)
CONFIDENCE_MIDPOINT = 0.275
CONFIDENCE_SCALE = 0.02


@dataclass(frozen=True)
class _Features:
    """Normalised cepstra with slopes, float32 (T, D), and the energy of each frame in nats, (T,)."""

    vectors: np.ndarray
    energy: np.ndarray


@functools.lru_cache(maxsize=1)
def _mel_filters():
    return librosa.filters.mel(sr=_SAMPLE_RATE, n_fft=512, n_mels=40, fmin=80, fmax=7600)


def _features(samples):
    """Cepstra of 25 ms every 10 ms; frame i is centred on i * 10 ms."""
    power = np.abs(librosa.stft(samples, n_fft=512, win_length=400, hop_length=_HOP, center=True)) ** 2
    mel = _mel_filters() @ power + 1e-10
    energy = np.log(mel.sum(0))
    logs = np.log(mel).T
    # A recording's noise and the rendering's digital silence become alike.
    logs = np.maximum(logs, np.percentile(logs.max(1), 95) - _RANGE_DB * _NATS_PER_DB)
    cepstra = scipy.fft.dct(logs, type=2, norm="ortho", axis=1)[:, :_CEPSTRA]
    loud = energy > np.percentile(energy, 95) - _SILENCE_DB * _NATS_PER_DB
    cepstra = (cepstra - cepstra[loud].mean(0)) / (cepstra[loud].std(0) + 1e-3)
    return _Features(np.hstack([cepstra, 2 * _slopes(cepstra)]).astype(np.float32), energy)


def _slopes(cepstra):
    """Slope of the least-squares line through five frames; the ends repeat."""
    padded = np.pad(cepstra, ((2, 2), (0, 0)), mode="edge")
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def _decimate(array, factor):
    """Means of ``factor`` frames; the last may be of fewer."""
    starts = np.arange(0, len(array), factor)
    lengths = np.diff(np.append(starts, len(array)))
    sums = np.add.reduceat(array, starts, axis=0)
    return sums / (lengths[:, None] if array.ndim == 2 else lengths)


def _columns(words, num_frames, factor=1):
    """Frames of the rendering by column and the word of each column, -1 for the pause states around every word."""
    frames, owners = [-1], [-1]
    for index, (start, end) in enumerate(words):
        first = min(int(round(start / _FRAME / factor)), num_frames - 1)
        last = min(max(int(round(end / _FRAME / factor)), first + 1), num_frames)
        own = np.arange(first, last)
        if len(own) < _MIN_COLUMNS:
            own = np.linspace(first, last - 1, _MIN_COLUMNS).round().astype(int)
        frames += [*own, -1]
        owners += [index] * len(own) + [-1]
    return np.array(frames), np.array(owners)


def _pause_costs(energy):
    """Cost of each frame in a pause state: 1 at the threshold of silence, less in silence, more in speech."""
    top, floor = np.percentile(energy, 95), np.percentile(energy, 5)
    # Above the noise by 6 dB, but never so high that weak speech is taken for silence.
    threshold = max(top - _SILENCE_DB * _NATS_PER_DB, min(floor + 6 * _NATS_PER_DB, top - 15 * _NATS_PER_DB))
    return np.maximum(1 + (energy - threshold) / (10 * _NATS_PER_DB), 0.1)


def _penalties(pauses):
    """Cost of arriving in each column by a step of 0 to 3: waiting in a pause and passing one by are free."""
    penalties = np.repeat(np.array(_STEPS, dtype=np.float64)[:, None], len(pauses), axis=1)
    penalties[0, pauses] = 0.0
    before = np.flatnonzero(pauses) + 1
    penalties[2, before[before < len(pauses)]] = _STEPS[1]
    for distance in (1, 2):
        behind = np.flatnonzero(pauses) + distance
        penalties[3, behind[behind < len(pauses)]] = _STEPS[2]
    return penalties


def _search(recording, rendering, pause_costs, pauses, low, high):
    """The cheapest path: a column for each frame, and what each frame costs on it and at the nearest column.

    ``rendering`` holds the vector of each column, (M, D); columns ``low[t]`` to ``high[t]`` (exclusive) are allowed at
    frame t. None if no path reaches the end.
    """
    num_frames, num_columns = len(recording), len(rendering)
    penalties = _penalties(pauses)
    squares = (rendering**2).sum(1)
    size = rendering.shape[1]
    previous, before = None, 0
    costs, choices, nearest = [], [], np.empty(num_frames)
    for frame in range(num_frames):
        first, last = int(low[frame]), int(high[frame])
        distance = (
            squares[first:last] - 2 * rendering[first:last] @ recording[frame] + (recording[frame] ** 2).sum()
        )
        cost = np.sqrt(np.maximum(distance, 0) / size).astype(np.float64)
        nearest[frame] = cost[~pauses[first:last]].min(initial=np.inf)
        cost[pauses[first:last]] = pause_costs[frame]
        if previous is None:
            # The recording starts in the first pause or in the first word.
            total = np.full(last - first, np.inf)
            total[: 2 - first] = cost[: 2 - first]
            choice = np.zeros(last - first, dtype=np.int8)
        else:
            options = np.full((len(_STEPS), last - first), np.inf)
            for step in range(len(_STEPS)):
                begin, end = max(first, before + step), min(last, before + step + len(previous))
                if begin < end:
                    options[step, begin - first : end - first] = (
                        previous[begin - step - before : end - step - before] + penalties[step, begin:end]
                    )
            choice = options.argmin(0).astype(np.int8)
            total = options[choice, np.arange(last - first)] + cost
        costs.append(cost)
        choices.append(choice)
        previous, before = total, first
    ends = [
        column for column in (num_columns - 1, num_columns - 2) if before <= column < before + len(previous)
    ]
    column = min(ends, key=lambda c: previous[c - before], default=None)
    if column is None or not np.isfinite(previous[column - before]):
        return None
    path = np.empty(num_frames, dtype=np.int64)
    paid = np.empty(num_frames)
    for frame in range(num_frames - 1, -1, -1):
        path[frame] = column
        paid[frame] = costs[frame][column - int(low[frame])]
        column -= int(choices[frame][column - int(low[frame])])
    return path, paid, nearest


def warp(recording, rendering, words, inventory=None):
    """Find the words of a rendering in a recording.

    Arguments
    ---------
    recording, rendering : numpy.ndarray
        float32, shapes (N,) and (M,), at 16 kHz.
    words : sequence of (float, float)
        Start and end of each word in the rendering, in seconds.
    inventory : numpy.ndarray, optional
        float32, shape (K,): other speech of the rendering's voice. What sounds more like it than like the word that
        it is warped onto is probably not that word.

    Returns
    -------
    list of (float, float, float)
        Start, end and mean excess distance of each word in the recording, in seconds and in standard deviations of
        the cepstra.

    Raises
    ------
    AlignmentError
        If the recording is too short for the words.

    Example
    -------
    >>> tone = np.sin(np.arange(8000) * 0.3).astype(np.float32)
    >>> noise = np.random.default_rng(0).normal(0, 0.3, 8000).astype(np.float32)
    >>> rendering = np.concatenate([tone, noise])
    >>> recording = np.concatenate([np.zeros(4000, np.float32), tone, tone[:4000], noise])
    >>> found = warp(recording, rendering, [(0.0, 0.5), (0.5, 1.0)])
    >>> times = (found[0][0], found[0][1], found[1][1])
    >>> [bool(abs(a - b) < 0.03) for a, b in zip(times, (0.25, 1.0, 1.5))]
    [True, True, True]
    """
    source, target = _features(recording), _features(rendering)
    factor = max(_COARSE, math.ceil(len(source.vectors) / _COARSE_FRAMES))
    coarse_source, coarse_target = _decimate(source.vectors, factor), _decimate(target.vectors, factor)
    frames, owners = _columns(words, len(coarse_target), factor)
    everything = np.zeros(len(coarse_source), dtype=int), np.full(len(coarse_source), len(frames))
    # Silence of a mean of frames: of its loudest, so that a short word is not lost in a pause.
    pause = _pause_costs(np.log(_decimate(np.exp(source.energy), factor)))
    found = _search(coarse_source, coarse_target[frames], pause, owners < 0, *everything)
    fine_frames, fine_owners = _columns(words, len(target.vectors))
    if found is not None:
        low, high = _band(found[0], frames, owners, fine_frames, fine_owners, factor, len(source.vectors))
        found = _search(
            source.vectors,
            target.vectors[fine_frames],
            _pause_costs(source.energy),
            fine_owners < 0,
            low,
            high,
        )
    if found is None:
        raise AlignmentError(
            f"the recording lasts {len(recording) / _SAMPLE_RATE:.2f} s, its text in espeak-ng's voice "
            f"{len(rendering) / _SAMPLE_RATE:.2f} s: the text does not fit into the recording"
        )
    path, paid, nearest = found
    if inventory is not None:
        nearest = np.minimum(nearest, _nearest(source.vectors, _features(inventory).vectors))
    spoken = fine_owners[path]
    intervals = []
    for index in range(len(words)):
        own = np.flatnonzero(spoken == index)
        # Frame t is centred on t * 10 ms.
        start, end = (own[0] - 0.5) * _FRAME, (own[-1] + 0.5) * _FRAME
        intervals.append(
            (max(start, 0.0), min(end, len(recording) / _SAMPLE_RATE), float((paid - nearest)[own].mean()))
        )
    return intervals


def _nearest(vectors, others):
    """Distance of each vector to the nearest of the others."""
    squares = (others**2).sum(1)
    found = [
        ((part**2).sum(1)[:, None] + squares - 2 * part @ others.T).min(1) / others.shape[1]
        for part in np.array_split(vectors, math.ceil(len(vectors) / 1000))
    ]
    return np.sqrt(np.maximum(np.concatenate(found), 0))


def _band(path, frames, owners, fine_frames, fine_owners, factor, num_frames):
    """Columns allowed to each fine frame: those within ``_BAND`` seconds of the coarse path."""
    # Where each coarse column begins among the fine ones: by word, and by its share of the word.
    place = np.empty(len(owners))
    starts = np.searchsorted(np.cumsum(fine_owners < 0), np.cumsum(owners < 0))
    for column, owner in enumerate(owners):
        if owner < 0:
            place[column] = starts[column]
        else:
            own, fine = np.flatnonzero(owners == owner), np.flatnonzero(fine_owners == owner)
            place[column] = fine[0] + (column - own[0]) / len(own) * len(fine)
    width = max(_BAND / _FRAME, 8 * factor)
    centre = place[path[np.minimum(np.arange(num_frames) // factor, len(path) - 1)]]
    low = np.clip(centre - width, 0, None).astype(int)
    high = np.clip(centre + width, None, len(fine_frames)).astype(int)
    low[0] = 0
    high[-1] = len(fine_frames)
    return np.maximum.accumulate(low), np.maximum.accumulate(high)


class EspeakDTWAligner:
    """Align speech of any language that espeak-ng speaks, by warping it onto espeak-ng's rendering.

    Arguments
    ---------
    language : str
        ``en``, ``de``, ``fr``, ...: a language of espeak-ng; ``en`` is American English.
    voice : str, optional
        espeak-ng's voice, such as ``de+f2``. Default: the language's own.
    rate : int
        Words a minute of the first rendering; a second one is made at the speaker's rate where that is far off.

    Raises
    ------
    AlignmentError
        If the package espeakng-loader is missing.

    Example
    -------
    >>> from speechbrain_emo.dataio.espeak import EspeakSynthesizer
    >>> speech = EspeakSynthesizer()("der lappen liegt auf dem eisschrank", voice="de+f3", rate=130)
    >>> alignment = EspeakDTWAligner("de").align(
    ...     speech.samples, speech.sample_rate, "Der Lappen liegt auf dem Eisschrank."
    ... )
    >>> all(abs(a.start - b.start) < 0.05 for a, b in zip(alignment.words, speech.words))
    True
    """

    name = "espeak-dtw"

    def __init__(self, language="en", voice=None, rate=170):
        try:
            self._synthesizer = EspeakSynthesizer()
        except EspeakError as error:
            raise AlignmentError(
                f"aligner espeak-dtw: {error}; or pip install 'speechbrain_emo[align]'"
            ) from error
        self.language = language
        self.voice = voice or ("en-us" if language.lower() == "en" else language.lower())
        self.rate = int(rate)
        self._syllables = None

    def _render(self, tokens, rate):
        """Samples at 16 kHz and (start, end) of every token."""
        pieces, times, offset = [], [], 0.0
        for first in range(0, len(tokens), _CLAUSE):
            speech = self._synthesizer(
                " ".join(tokens[first : first + _CLAUSE]), voice=self.voice, rate=rate, split_joined=True
            )
            piece = from_array(speech.samples, speech.sample_rate, _SAMPLE_RATE).numpy()
            pieces.append(piece)
            times += [(offset + word.start, offset + word.end) for word in speech.words]
            offset += len(piece) / _SAMPLE_RATE
        return np.concatenate(pieces), times

    def align(self, samples, sample_rate, text, name=None):
        """Align one utterance; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        samples : numpy.ndarray
            float32, shape (N,), full scale 1.
        sample_rate : int
            In Hz.
        text : str
            What is said.
        name : str, optional
            For messages.

        Returns
        -------
        Alignment
            Words without phones.

        Raises
        ------
        AlignmentError
            If the text has no word, the recording no signal, espeak-ng does not know the language, or the text does
            not fit into the recording.
        """
        name = name or "the recording"
        spoken = normalize(text, self.language)
        waveform = from_array(samples, sample_rate, _SAMPLE_RATE, name=name).numpy()
        duration = max(len(samples) / sample_rate, len(waveform) / _SAMPLE_RATE)
        peak = float(np.abs(waveform).max())
        if peak < 1e-4:
            raise AlignmentError(f"{name}: is silent (largest sample {peak:.1e}); there is no word to find")
        try:
            rendering, times = self._render(spoken.tokens, self.rate)
            share = sum(end - start for start, end in times) / self._speech_seconds(waveform)
            rate = int(min(max(self.rate * share, RATE_LIMITS[0]), RATE_LIMITS[1]))
            if abs(math.log(rate / self.rate)) > math.log(1.2):
                rendering, times = self._render(spoken.tokens, rate)
            found = warp(waveform, rendering, times, self._inventory())
        except (EspeakError, AlignmentError) as error:
            raise AlignmentError(f"{name}: {error}") from error
        tokens = []
        for token, (start, end, excess) in zip(spoken.tokens, found):
            confidence = 1 / (1 + math.exp((excess - CONFIDENCE_MIDPOINT) / CONFIDENCE_SCALE))
            tokens.append(AlignedInterval(token, start, end, confidence))
        return Alignment(spoken.join(tokens), None, text, duration, self.name)

    def _inventory(self):
        if self._syllables is None:
            self._syllables = self._render(_INVENTORY.split(), self.rate)[0]
        return self._syllables

    @staticmethod
    def _speech_seconds(waveform):
        energy = _features(waveform).energy
        return max(np.count_nonzero(_pause_costs(energy) > 1), 1) * _FRAME

    def align_corpus(self, items):
        """Align many utterances; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        items : iterable of AlignmentItem
            Utterances.

        Yields
        ------
        (str, Alignment or Exception)
        """
        yield from align_each(self, items)
