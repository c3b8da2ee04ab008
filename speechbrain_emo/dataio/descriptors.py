"""Descriptors of a voice that are measured where a corpus has no labels for them: pitch, volume, speed.

``measure`` gives numbers with units, ``fit_thresholds`` per-gender quantiles of the training set, ``describe``
words. Thresholds are plain data: they are stored with the model, so that an utterance gets the same words in
training and afterwards.

Definitions
-----------
pitch
    Median F0 of voiced, speech-active frames, in Hz, by pYIN (Mauch and Dixon 2014, "pYIN: A fundamental frequency
    estimator using probabilistic threshold distributions") as implemented in librosa: 65 to 500 Hz, window 64 ms,
    hop 20 ms, 0.1 semitone. One core of a small machine tracks 15 to 23 seconds of audio a second (a 10 ms hop
    halves that and moves the median by less than a semitone; a coarser pitch grid is faster but loses voicing).
volume
    RMS level of speech-active frames, in dB relative to full scale. It holds the recording's gain: compare it
    within a corpus only.
speed
    Syllables a second of speech-active time, pauses of up to 150 ms included. With a transcript syllables are
    groups of vowel letters; without one they are nuclei counted in the signal (voiced peaks of the intensity
    between 300 and 3000 Hz with dips of 2 dB beside them; after de Jong and Wempe 2009, "Praat script to detect
    syllable nuclei and measure speech rate automatically"). The two are biased differently and have thresholds of
    their own.
"""

import hashlib
import json
import logging
import math
import os
import re
import unicodedata
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.ndimage import binary_closing
from scipy.signal import butter, find_peaks, sosfiltfilt
from tqdm import tqdm

from speechbrain_emo.dataio.audio import AudioError, from_array, load_audio
from speechbrain_emo.dataio.compiled_librosa import librosa

logger = logging.getLogger(__name__)

#: Value of a descriptor that the audio does not have: silence has no pitch, volume or speed, a whisper no pitch.
UNVOICED = "unvoiced"

#: Field -> its values from low to high, then the one for audio that lacks it.
VALUES = {
    "pitch": ("low", "normal", "high", UNVOICED),
    "volume": ("low", "normal", "high", UNVOICED),
    "speed": ("slow", "normal", "fast", UNVOICED),
}

# Changes whenever a number of `measure` can change, so that old caches are not read.
_VERSION = 1
_RATE = 16000
_F0_MIN, _F0_MAX = 65.0, 500.0
_F0_WINDOW, _F0_HOP = 1024, 320
_LEVEL_WINDOW, _LEVEL_HOP = 400, 160
_ACTIVE_RANGE = 30.0
_ACTIVE_FLOOR = -60.0
_LONGEST_INNER_PAUSE = 0.15
_MIN_VOICED_FRAMES = 3
# 300-3000 Hz keeps the first formants and leaves out hum and fricatives.
_VOWEL_BAND = butter(4, [300, 3000], "bandpass", fs=_RATE, output="sos")
_NUCLEUS_WINDOW = np.hanning(642)[1:-1] / np.hanning(642).sum()
_QUANTITIES = ("f0_median", "level", "syllable_rate", "nuclei_rate")
_PERCENTILES = tuple(range(101))


@dataclass(frozen=True)
class Measurement:
    """Numbers of one utterance; None where the audio does not have the quantity.

    Arguments
    ---------
    duration : float
        Length, in seconds.
    active_duration : float
        Speech-active time with pauses of up to 150 ms, in seconds.
    voiced_share : float
        Share of active time that is voiced, in [0, 1].
    f0_median : float or None
        In Hz.
    f0_range : float or None
        Distance of the 10th and 90th percentile of F0, in semitones.
    level : float or None
        RMS over active frames, in dB re full scale.
    syllable_rate : float or None
        Syllables of the transcript a second of active time; None without a transcript.
    nuclei_rate : float or None
        Syllable nuclei found in the signal a second of active time.

    Example
    -------
    >>> Measurement(1.0, 0.0, 0.0).is_silent
    True
    """

    duration: float
    active_duration: float
    voiced_share: float
    f0_median: float | None = None
    f0_range: float | None = None
    level: float | None = None
    syllable_rate: float | None = None
    nuclei_rate: float | None = None

    @property
    def is_silent(self):
        """Whether no frame is speech-active."""
        return self.level is None


@dataclass(frozen=True)
class Thresholds:
    """Quantiles of a training set, per gender and for everybody (``all``).

    Arguments
    ---------
    quantiles : tuple of float
        The two shares that separate low from normal and normal from high.
    groups : dict
        ``female``, ``male``, ``all`` -> quantity -> {``count``: int, ``edges``: two values, ``percentiles``: 101
        values}. A group that has too few measurements of a quantity lacks it and ``all`` is used.

    Example
    -------
    >>> rows = [Measurement(1.0, 1.0, 0.5, f0_median=100.0 + i, level=-20.0, nuclei_rate=4.0) for i in range(30)]
    >>> thresholds = fit_thresholds(rows, ["male"] * 30)
    >>> Thresholds.from_dict(thresholds.to_dict()) == thresholds
    True
    """

    quantiles: tuple
    groups: dict

    def to_dict(self):
        """Plain data for JSON."""
        return {"version": _VERSION, "quantiles": list(self.quantiles), "groups": self.groups}

    @classmethod
    def from_dict(cls, content):
        """Inverse of :meth:`to_dict`.

        Arguments
        ---------
        content : dict
            What :meth:`to_dict` gave, also after JSON.

        Returns
        -------
        Thresholds

        Raises
        ------
        ValueError
            If the content was made with another definition of the measurements.
        """
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            found = content.get("version") if isinstance(content, dict) else type(content).__name__
            raise ValueError(
                f"descriptor thresholds of version {found!r}, this toolkit measures version {_VERSION}: "
                "run the preparation again"
            )
        return cls(tuple(content["quantiles"]), content["groups"])

    def of(self, quantity, gender):
        """Entry of a quantity for a gender, or for everybody where the gender has none; None if neither has."""
        group = self.group_of(quantity, gender)
        return None if group is None else self.groups[group][quantity]

    def group_of(self, quantity, gender):
        """Whom a quantity is compared with: ``female``, ``male``, ``all``, or None where nobody was measured."""
        for group in (gender, "all"):
            if self.groups.get(group, {}).get(quantity) is not None:
                return group
        return None


def measure(waveform, sample_rate, transcript=None, language="en"):
    """Measure pitch, level and speaking rate of one utterance.

    Arguments
    ---------
    waveform : torch.Tensor or numpy.ndarray
        Float, shape (samples,), full scale 1.
    sample_rate : int
        In Hz; other rates than 16 kHz are resampled.
    transcript : str, optional
        What is said, for the syllable count.
    language : str
        ISO 639-1 code of the transcript: see :func:`count_syllables`.

    Returns
    -------
    Measurement

    Raises
    ------
    AudioError
        If the samples are not audio (see :func:`speechbrain_emo.dataio.audio.from_array`).

    Example
    -------
    >>> import torch
    >>> time = torch.arange(16000) / 16000
    >>> tone = sum(torch.sin(2 * torch.pi * 150 * k * time) / k for k in range(1, 6)) / 10
    >>> round(measure(tone, 16000).f0_median)
    150
    >>> measure(torch.zeros(16000), 16000).f0_median is None
    True
    """
    samples = from_array(waveform, int(sample_rate), _RATE, name="waveform").numpy()
    duration = len(samples) / _RATE
    levels = _frame_levels(samples, _LEVEL_WINDOW)
    active = levels > _active_threshold(levels)
    if not active.any():
        return Measurement(duration=duration, active_duration=0.0, voiced_share=0.0)
    level = 10 * math.log10(float(np.mean(10 ** (levels[active] / 10))))
    spans = _close(active, int(_LONGEST_INNER_PAUSE * _RATE / _LEVEL_HOP))
    active_duration = min(float(spans.sum()) * _LEVEL_HOP / _RATE, duration)

    f0, voiced = _track(samples, active)
    step = _F0_HOP // _LEVEL_HOP
    f0_median = f0_range = None
    if voiced.sum() >= _MIN_VOICED_FRAMES:
        f0_median = float(np.median(f0[voiced]))
        low, high = np.percentile(f0[voiced], [10, 90])
        f0_range = float(12 * np.log2(high / low))
    else:
        voiced = np.zeros_like(voiced)

    syllables = count_syllables(transcript, language) if transcript else 0
    return Measurement(
        duration=duration,
        active_duration=active_duration,
        voiced_share=min(float(voiced.sum()) * step / float(active.sum()), 1.0),
        f0_median=f0_median,
        f0_range=f0_range,
        level=level,
        syllable_rate=syllables / active_duration if syllables else None,
        nuclei_rate=_count_nuclei(samples, active, np.repeat(voiced, step)) / active_duration,
    )


def curves(waveform, sample_rate):
    """F0 and level over time, by the definitions of :func:`measure`, for a picture.

    Arguments
    ---------
    waveform : torch.Tensor or numpy.ndarray
        Float, shape (samples,), full scale 1.
    sample_rate : int
        In Hz.

    Returns
    -------
    dict
        ``f0_times``, ``f0``: float (T,), seconds and Hz, NaN where a frame is not voiced or not speech-active.
        ``level_times``, ``level``: float (T',), seconds and dB re full scale, every 10 ms.

    Raises
    ------
    AudioError
        If the samples are not audio.

    Example
    -------
    >>> tone = 0.1 * np.sin(2 * np.pi * 150 * np.arange(16000) / 16000)
    >>> found = curves(tone, 16000)
    >>> round(float(np.nanmedian(found["f0"]))), round(float(np.median(found["level"])))
    (150, -23)
    """
    samples = from_array(waveform, int(sample_rate), _RATE, name="waveform").numpy()
    levels = _frame_levels(samples, _LEVEL_WINDOW)
    f0, voiced = _track(samples, levels > _active_threshold(levels))
    return {
        "f0_times": np.arange(len(f0)) * _F0_HOP / _RATE,
        "f0": np.where(voiced, f0, np.nan),
        "level_times": np.arange(len(levels)) * _LEVEL_HOP / _RATE,
        "level": levels,
    }


def _active_threshold(levels):
    """Level in dB above which a frame is speech-active."""
    return max(float(np.percentile(levels, 95)) - _ACTIVE_RANGE, _ACTIVE_FLOOR)


def _track(samples, active):
    """F0 in Hz every 20 ms (NaN: none found) and whether the frame is voiced and speech-active."""
    with warnings.catch_warnings():
        # librosa warns about utterances shorter than one window, which it pads.
        warnings.filterwarnings("ignore", message="n_fft=.*is too large")
        f0, voiced, _ = librosa.pyin(
            samples, fmin=_F0_MIN, fmax=_F0_MAX, sr=_RATE, frame_length=_F0_WINDOW, hop_length=_F0_HOP
        )
    step = _F0_HOP // _LEVEL_HOP
    return f0, voiced & np.isfinite(f0) & active[np.minimum(np.arange(len(f0)) * step, len(active) - 1)]


def count_syllables(text, language="en"):
    """Count syllables as groups of vowel letters, at least one a word.

    An approximation that needs no dictionary; its bias is the same in training and afterwards.

    Arguments
    ---------
    text : str
        Transcript. Letters with accents count as their base letter. Words without a vowel (numbers too)
        count 1.
    language : str
        ``en`` also drops a silent final e (not after l: *little*). Other codes count vowel groups only.

    Returns
    -------
    int

    Example
    -------
    >>> count_syllables("I like the little house"), count_syllables("Der Lappen liegt auf dem Eisschrank.", "de")
    (6, 8)
    """
    total = 0
    for word in re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()):
        plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
        groups = len(re.findall(r"[aeiouyæœø]+", plain))
        if language == "en" and groups > 1 and re.search(r"[^aeiouyl]e$|[aeiouy]le$", plain):
            groups -= 1
        total += max(groups, 1)
    return total


def fit_thresholds(measurements, genders, quantiles=(1 / 3, 2 / 3), min_count=10):
    """Per-gender quantiles of the training set.

    Arguments
    ---------
    measurements : sequence of Measurement
        Of the TRAINING utterances only.
    genders : sequence of str or None
        ``female``, ``male`` or None, one a measurement.
    quantiles : tuple of float
        Shares that separate low from normal and normal from high; the default makes thirds.
    min_count : int
        A gender with fewer values of a quantity has no thresholds of its own for it: ``all`` is used.

    Returns
    -------
    Thresholds

    Raises
    ------
    ValueError
        If the lengths differ, the quantiles are not increasing shares, or no utterance holds speech.

    Example
    -------
    >>> rows = [Measurement(1.0, 1.0, 0.5, f0_median=float(f), level=-20.0, nuclei_rate=4.0) for f in range(100, 130)]
    >>> [round(edge) for edge in fit_thresholds(rows, ["male"] * 30).of("f0_median", "male")["edges"]]
    [110, 119]
    """
    measurements, genders = list(measurements), list(genders)
    if len(measurements) != len(genders):
        raise ValueError(
            f"{len(measurements)} measurements but {len(genders)} genders: give one a measurement"
        )
    low, high = quantiles
    if not 0 < low < high < 1:
        raise ValueError(f"quantiles {tuple(quantiles)} are not two increasing shares between 0 and 1")
    if not any(m.level is not None for m in measurements):
        raise ValueError(
            f"none of the {len(measurements)} training utterances holds speech: no thresholds can be fitted"
        )
    groups = {}
    for group in ("female", "male", "all"):
        rows = [m for m, g in zip(measurements, genders) if group in (g, "all")]
        groups[group] = {}
        for quantity in _QUANTITIES:
            values = [getattr(m, quantity) for m in rows]
            values = np.array([v for v in values if v is not None], dtype=float)
            if len(values) and (group == "all" or len(values) >= min_count):
                groups[group][quantity] = {
                    "count": len(values),
                    "edges": [float(v) for v in np.quantile(values, [low, high])],
                    "percentiles": [float(v) for v in np.percentile(values, _PERCENTILES)],
                }
    return Thresholds((float(low), float(high)), groups)


def describe(measurement, gender, thresholds):
    """Words for a measurement.

    Arguments
    ---------
    measurement : Measurement
        Of :func:`measure`.
    gender : str or None
        ``female``, ``male``; None (unknown) compares with everybody.
    thresholds : Thresholds
        Of the training set.

    Returns
    -------
    dict
        ``pitch``, ``volume`` (low, normal, high, unvoiced), ``speed`` (slow, normal, fast, unvoiced) and, where it
        is known, ``gender``. The speed uses the transcript's syllables where the measurement has them.

    Example
    -------
    >>> rows = [Measurement(1.0, 1.0, 0.5, f0_median=float(f), level=-20.0, nuclei_rate=4.0) for f in range(100, 130)]
    >>> describe(rows[-1], "male", fit_thresholds(rows, ["male"] * 30))
    {'gender': 'male', 'pitch': 'high', 'volume': 'normal', 'speed': 'normal'}
    """
    described = {"gender": gender} if gender is not None else {}
    for name, quantity in _quantity_of_field(measurement, thresholds).items():
        value = getattr(measurement, quantity)
        entry = thresholds.of(quantity, gender)
        if value is None or entry is None:
            described[name] = UNVOICED
            continue
        low, high = entry["edges"]
        described[name] = VALUES[name][0 if value < low else 2 if value > high else 1]
    return described


def percentile(measurement, gender, thresholds):
    """Where an utterance lies among the training utterances of its gender.

    Arguments
    ---------
    measurement : Measurement
    gender : str or None
    thresholds : Thresholds

    Returns
    -------
    dict
        ``pitch``, ``volume``, ``speed`` -> percentile in [0, 100], or None where the audio has no such quantity.

    Example
    -------
    >>> rows = [Measurement(1.0, 1.0, 0.5, f0_median=float(f), level=-20.0, nuclei_rate=4.0) for f in range(100, 201)]
    >>> percentile(rows[25], "male", fit_thresholds(rows, ["male"] * 101))["pitch"]
    25.0
    """
    places = {}
    for name, quantity in _quantity_of_field(measurement, thresholds).items():
        value, entry = getattr(measurement, quantity), thresholds.of(quantity, gender)
        if value is None or entry is None:
            places[name] = None
            continue
        values = entry["percentiles"]
        # The mean of the first and the last place that the value could have, so that ties fall in the middle.
        rising = np.interp(value, values, _PERCENTILES)
        falling = 100 - np.interp(-value, [-v for v in reversed(values)], _PERCENTILES)
        places[name] = float(rising + falling) / 2
    return places


def compared_with(measurement, gender, thresholds):
    """Whose training utterances :func:`percentile` and :func:`describe` compare with.

    Arguments
    ---------
    measurement : Measurement
    gender : str or None
    thresholds : Thresholds

    Returns
    -------
    dict
        ``pitch``, ``volume``, ``speed`` -> ``female``, ``male``, ``all`` or None.

    Example
    -------
    >>> rows = [Measurement(1.0, 1.0, 0.5, f0_median=100.0 + i, level=-20.0, nuclei_rate=4.0) for i in range(30)]
    >>> compared_with(rows[0], "female", fit_thresholds(rows, ["male"] * 30))["pitch"]
    'all'
    """
    quantities = _quantity_of_field(measurement, thresholds)
    return {name: thresholds.group_of(quantity, gender) for name, quantity in quantities.items()}


def measure_manifest(
    records,
    cache_file=None,
    num_workers=None,
    language="en",
    replacements=None,
    progress=True,
    desc="descriptors",
):
    """Measure every record of a manifest, in parallel, continuing where an interrupted run stopped.

    Arguments
    ---------
    records : dict
        id -> record (``wav``, optional ``start``, ``stop``, ``transcript``).
    cache_file : str or pathlib.Path, optional
        JSON lines, one a measurement, written as they come. The key is a hash of the file's content, segment,
        transcript and settings: moving or renaming a corpus does not invalidate it, changing it does.
    num_workers : int, optional
        Processes; default: all cores, at most 8, and 1 for fewer than 20 records.
    language : str
        Of the transcripts.
    replacements : dict, optional
        Of placeholders in ``wav``, as in :func:`speechbrain_emo.dataio.manifest.read_manifest`.
    progress : bool
        Show a progress bar.
    desc : str
        Its title.

    Returns
    -------
    measurements : dict
        id -> Measurement, of the records that could be measured, in the manifest's order.
    failures : dict
        id -> message, of those that could not.

    Example
    -------
    >>> import soundfile
    >>> wav = getfixture("tmp_path") / "silence.wav"
    >>> soundfile.write(wav, np.zeros(16000), 16000)
    >>> measure_manifest({"a": {"wav": str(wav)}, "b": {"wav": "none.wav"}}, progress=False)
    ({'a': Measurement(duration=1.0, ...)}, {'b': 'none.wav: no such file'})
    """
    known = _read_cache(cache_file) if cache_file is not None else {}
    paths, keys, found, failures = {}, {}, {}, {}
    for name, record in records.items():
        path = record["wav"]
        for placeholder, value in (replacements or {}).items():
            path = path.replace("{" + placeholder + "}", str(value))
        try:
            keys[name] = _content_key(path, record, language)
        except OSError as error:
            failures[name] = (
                f"{path}: no such file" if isinstance(error, FileNotFoundError) else f"{path}: {error}"
            )
            continue
        paths[name] = path
        if keys[name] in known:
            found[name] = known[keys[name]]
    missing = [name for name in keys if name not in found]
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, 8) if len(missing) >= 20 else 1
    jobs = (
        (
            name,
            paths[name],
            records[name].get("start"),
            records[name].get("stop"),
            records[name].get("transcript"),
        )
        for name in missing
    )
    if num_workers > 1:
        # joblib's own processes: fork would copy torch's threads, spawn would run the caller's script again.
        results = Parallel(n_jobs=num_workers, return_as="generator_unordered")(
            delayed(_measure_file)(*job, language) for job in jobs
        )
    else:
        results = (_measure_file(*job, language) for job in jobs)
    cache = _open_cache(cache_file) if cache_file is not None and missing else None
    try:
        for name, measurement, message in tqdm(
            results, desc, total=len(missing), disable=not progress or not missing
        ):
            if measurement is None:
                failures[name] = message
                continue
            found[name] = measurement
            if cache is not None:
                cache.write(json.dumps({"key": keys[name], **asdict(measurement)}) + "\n")
                cache.flush()
    finally:
        if cache is not None:
            cache.close()
    return {name: found[name] for name in records if name in found}, failures


def _measure_file(name, path, start, stop, transcript, language):
    """(id, Measurement or None, message or None); runs in a worker process."""
    try:
        waveform = load_audio(path, _RATE, start=start, stop=stop)
        return name, measure(waveform, _RATE, transcript, language), None
    except AudioError as error:
        return name, None, str(error)


def _content_key(path, record, language):
    digest = hashlib.sha256(Path(path).read_bytes())
    settings = [_VERSION, record.get("start"), record.get("stop"), record.get("transcript"), language]
    digest.update(json.dumps(settings).encode("utf-8"))
    return digest.hexdigest()


def _read_cache(path):
    known, path = {}, Path(path)
    if not path.is_file():
        return known
    damaged = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # a line that a kill has cut
            damaged += 1
            continue
        key = entry.pop("key")
        known[key] = Measurement(**entry)
    if damaged:
        logger.warning("%s: %d damaged lines of an interrupted run are measured again", path, damaged)
    return known


def _open_cache(path):
    """Open for appending; a line that a kill has cut is closed, so that the next one stands alone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    file = open(path, "a", encoding="utf-8")
    if cut:
        file.write("\n")
    return file


def _quantity_of_field(measurement, thresholds):
    """Which number stands behind which word; the transcript's rate only where its thresholds exist too."""
    by_transcript = measurement.syllable_rate is not None and thresholds.of("syllable_rate", None) is not None
    return {
        "pitch": "f0_median",
        "volume": "level",
        "speed": "syllable_rate" if by_transcript else "nuclei_rate",
    }


def _frame_levels(samples, window):
    """Level of frames centred every 10 ms, in dB re full scale, at least -200."""
    padded = np.pad(samples.astype(np.float64), window // 2)
    sums = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, len(samples), _LEVEL_HOP)
    power = (sums[starts + window] - sums[starts]) / window
    return 10 * np.log10(np.maximum(power, 1e-20))


def _close(active, width):
    """Fill gaps of up to ``width`` frames between active frames."""
    padded = np.pad(active, width + 1)
    return binary_closing(padded, np.ones(width + 1))[width + 1 : -(width + 1)]


def _count_nuclei(samples, active, voiced):
    """Intensity peaks with a dip of at least 2 dB on both sides, in voiced active frames.

    Window and band were chosen on every fifth EmoDB recording by rank correlation with the transcript's rate (0.60;
    0.58 for intensity of the full band with a 64 ms window).
    """
    power = np.convolve(sosfiltfilt(_VOWEL_BAND, samples.astype(np.float64)) ** 2, _NUCLEUS_WINDOW, "same")
    levels = 10 * np.log10(np.maximum(power[::_LEVEL_HOP], 1e-20))
    near = np.convolve(voiced, np.ones(3), "same") > 0
    near = np.pad(near, (0, max(0, len(levels) - len(near))))[: len(levels)]
    # Padding with the floor lets an utterance that begins or ends in a vowel have its peak there.
    peaks, _ = find_peaks(np.concatenate([[-200.0], levels, [-200.0]]), prominence=2.0)
    peaks = peaks - 1
    return int((active[peaks] & near[peaks]).sum())
