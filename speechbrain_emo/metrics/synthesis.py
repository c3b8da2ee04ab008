"""Scores of synthetic speech against recordings, marks and voices.

Prosody of words (log2 F0, level, duration), dynamic time warping over frames of a speech encoder, similarity of
time-averaged frames (Emo-SIM) and of voices, mel cepstral distortion, PESQ for copy-synthesis. What each is worth, and
which must not be reported alone, stands in docs/synthesis.md. Axis letters: N samples, T frames, D features, W words.
"""

from dataclasses import dataclass

import numpy as np

from speechbrain_emo.dataio.compiled_librosa import librosa

F0_MIN, F0_MAX = 60.0, 500.0
#: Frames of the prosody: 10 ms.
RATE, HOP, WINDOW = 16000, 160, 1024
#: Below this, a word has no level worth naming, in dB of full scale.
FLOOR_DB = -100.0
#: Periodicity from which a frame counts as voiced.
VOICED = 0.5


@dataclass(frozen=True)
class WordProsody:
    """How words sound.

    Arguments
    ---------
    log_f0 : numpy.ndarray
        float64 (W,): median of log2(F0 / 1 Hz) over the word's voiced frames; NaN where there is none.
    energy : numpy.ndarray
        float64 (W,): level in dB of full scale.
    duration : numpy.ndarray
        float64 (W,): seconds.
    """

    log_f0: np.ndarray
    energy: np.ndarray
    duration: np.ndarray


def frame_f0(samples, sample_rate):
    """F0 every 10 ms by the autocorrelation of the window's spectrum.

    Boersma 1993, "Accurate short-term analysis of the fundamental frequency": the autocorrelation is divided by the
    window's own. The lag with the highest value counts, short lags a little more, so that half of F0 is not taken.

    Arguments
    ---------
    samples : array
        float (N,), full scale 1.
    sample_rate : int
        Hz.

    Returns
    -------
    numpy.ndarray
        float64 (T,): Hz, NaN where the frame is not voiced.

    Example
    -------
    >>> tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    >>> round(float(np.nanmedian(frame_f0(tone, 16000))))
    200
    """
    samples = _at_rate(samples, sample_rate)
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    frames = frames - frames.mean(1, keepdims=True)
    energy = np.square(frames).mean(1)
    window = np.hanning(WINDOW)
    spectra = np.abs(np.fft.rfft(frames * window, 2 * WINDOW)) ** 2
    correlation = np.fft.irfft(spectra)[:, :WINDOW]
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * WINDOW)) ** 2)[:WINDOW]
    lags = np.arange(int(RATE / F0_MAX), int(RATE / F0_MIN) + 1)
    periodicity = correlation[:, lags] / (correlation[:, :1] + 1e-20) / (own[lags] / own[0])
    best = (periodicity + np.linspace(0.08, 0.0, len(lags))).argmax(1)
    rows = np.arange(len(best))
    # A parabola through the highest value and its neighbours: lags are whole samples, F0 is not.
    middle = best.clip(1, len(lags) - 2)
    left, centre, right = (periodicity[rows, middle + step] for step in (-1, 0, 1))
    bend = left - 2 * centre + right
    shift = np.where(np.abs(bend) > 1e-12, 0.5 * (left - right) / np.where(bend == 0, 1, bend), 0.0)
    f0 = RATE / (lags[middle] + shift.clip(-1, 1))
    audible = energy > energy.max() * 1e-4 if len(energy) else energy > 0
    return np.where((periodicity[rows, best] > VOICED) & audible, f0, np.nan)


def word_prosody(samples, sample_rate, words):
    """Prosody of the words of an utterance.

    Arguments
    ---------
    samples : array
        float (N,).
    sample_rate : int
        Hz.
    words : sequence of (float, float)
        Start and end in seconds.

    Returns
    -------
    WordProsody

    Example
    -------
    >>> tone = 0.1 * np.sin(2 * np.pi * 128 * np.arange(16000) / 16000)
    >>> found = word_prosody(tone, 16000, [(0.1, 0.5)])
    >>> round(float(found.log_f0[0]), 2), round(float(found.energy[0]), 1), float(found.duration[0])
    (7.0, -23.0, 0.4)
    """
    samples = _at_rate(samples, sample_rate)
    f0 = frame_f0(samples, RATE)
    pitches, levels, durations = [], [], []
    for start, end in words:
        part = f0[int(round(start * 100)) : max(int(round(end * 100)), int(round(start * 100)) + 1)]
        voiced = part[~np.isnan(part)]
        pitches.append(float(np.median(np.log2(voiced))) if len(voiced) else np.nan)
        own = samples[int(start * RATE) : max(int(end * RATE), int(start * RATE) + 1)]
        power = float(np.square(own).mean()) if len(own) else 0.0
        levels.append(max(10 * np.log10(power + 1e-20), FLOOR_DB))
        durations.append(end - start)
    return WordProsody(np.array(pitches), np.array(levels), np.array(durations))


def shift_correlations(targets, realised):
    """Correlation of how far words are moved: target against realised, the mean of each utterance removed.

    Arguments
    ---------
    targets, realised : sequence of WordProsody
        Of the same utterances and words: how the reference sounds, and the output.

    Returns
    -------
    dict
        ``log_f0``, ``energy`` and ``log_duration``: Pearson's correlation over all words, or None where it is not
        defined; ``words``: how many there are.

    Raises
    ------
    ValueError
        If numbers of utterances or words differ.

    Example
    -------
    >>> a = WordProsody(np.array([7.0, 8.0, 7.5]), np.array([-20.0, -30, -25]), np.array([0.2, 0.4, 0.3]))
    >>> round(shift_correlations([a], [a])["energy"], 6)
    1.0
    """
    if len(targets) != len(realised):
        raise ValueError(f"{len(targets)} references and {len(realised)} outputs: give one each an utterance")
    pairs = {"log_f0": [], "energy": [], "log_duration": []}
    for number, (target, output) in enumerate(zip(targets, realised)):
        if len(target.duration) != len(output.duration):
            raise ValueError(
                f"utterance {number}: {len(target.duration)} words in the reference, {len(output.duration)} in the "
                "output"
            )
        columns = {
            "log_f0": (target.log_f0, output.log_f0),
            "energy": (target.energy, output.energy),
            "log_duration": (np.log(target.duration), np.log(output.duration)),
        }
        for name, (a, b) in columns.items():
            known = ~(np.isnan(a) | np.isnan(b))
            if known.sum() > 1:
                pairs[name].append(np.stack([a[known] - a[known].mean(), b[known] - b[known].mean()]))
    found = {"words": int(sum(len(target.duration) for target in targets))}
    for name, parts in pairs.items():
        both = np.concatenate(parts, 1) if parts else np.zeros((2, 0))
        defined = both.shape[1] > 1 and both.std(1).min() > 0
        found[name] = float(np.corrcoef(both)[0, 1]) if defined else None
    return found


def word_changes(first, second):
    """How far the words of two renderings of one sentence lie apart.

    Arguments
    ---------
    first, second : WordProsody
        Of the same words.

    Returns
    -------
    dict
        ``log_f0`` (octaves), ``energy`` (dB) and ``log_duration`` (natural logarithm): absolute differences, float64
        (W,), NaN where one of both is not known.

    Raises
    ------
    ValueError
        If the numbers of words differ.

    Example
    -------
    >>> a = WordProsody(np.array([7.0]), np.array([-20.0]), np.array([0.2]))
    >>> b = WordProsody(np.array([8.0]), np.array([-26.0]), np.array([0.2]))
    >>> {name: float(value[0]) for name, value in word_changes(a, b).items()}
    {'log_f0': 1.0, 'energy': 6.0, 'log_duration': 0.0}
    """
    if len(first.duration) != len(second.duration):
        raise ValueError(f"{len(first.duration)} and {len(second.duration)} words: give the same words")
    return {
        "log_f0": np.abs(first.log_f0 - second.log_f0),
        "energy": np.abs(first.energy - second.energy),
        "log_duration": np.abs(np.log(first.duration) - np.log(second.duration)),
    }


def cosine_dtw(first, second):
    """Dynamic time warping with the cosine distance.

    Arguments
    ---------
    first, second : array
        (T, D) and (U, D), no row zero.

    Returns
    -------
    tuple of float
        Cost of the best path over its length, and the raw sum (which papers report; it grows with the utterance).

    Example
    -------
    >>> frames = np.eye(3)
    >>> cosine_dtw(frames, frames[[0, 0, 1, 2]])
    (0.0, 0.0)
    """
    a, b = _unit(first), _unit(second)
    cost, path = librosa.sequence.dtw(C=np.clip(1 - a @ b.T, 0, 2))
    return float(cost[-1, -1] / len(path)), float(cost[-1, -1])


def emotion_similarity(first, second):
    """Emo-SIM: 100 times the cosine of the time-averaged frames.

    Example
    -------
    >>> emotion_similarity(np.ones((3, 2)), np.ones((5, 2)))
    100.0
    """
    a, b = _unit(np.mean(first, 0)[None]), _unit(np.mean(second, 0)[None])
    return float(np.round(100 * (a @ b.T).item(), 9))


def mel_cepstral_distortion(first, second, sample_rate, order=13):
    """Mel cepstral distortion in dB along the best warping; c0 is left out.

    Kubichek 1993: 10 / ln 10 * sqrt(2 * sum of squared differences of the natural-log mel cepstra 1 to ``order``).

    Arguments
    ---------
    first, second : array
        float (N,), at one rate.
    sample_rate : int
        Hz.
    order : int
        Cepstra.

    Returns
    -------
    float

    Example
    -------
    >>> noise = np.random.default_rng(0).standard_normal(8000)
    >>> mel_cepstral_distortion(noise, noise, 16000), mel_cepstral_distortion(noise, 0.1 * noise, 16000) < 1e-6
    (0.0, True)
    """
    from scipy.fft import dct

    cepstra = []
    for samples in (first, second):
        mel = librosa.feature.melspectrogram(
            y=np.asarray(samples, dtype=np.float64),
            sr=sample_rate,
            n_fft=1024,
            hop_length=256,
            n_mels=80,
            power=1.0,
        )
        cepstra.append(dct(np.log(np.maximum(mel, 1e-10)), axis=0, norm="ortho")[1 : order + 1].T)
    a, b = cepstra
    distance = np.sqrt(
        np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T, 0.0)
    )
    distance[distance < 1e-6] = 0.0
    cost, path = librosa.sequence.dtw(C=distance)
    return float(10 / np.log(10) * np.sqrt(2) * cost[-1, -1] / len(path))


def copy_pesq(reference, output, sample_rate):
    """Wide-band PESQ at 16 kHz; only for output that is aligned in time (a vocoder's copy of a recording).

    Arguments
    ---------
    reference, output : array
        float (N,), of one length up to 20 ms.
    sample_rate : int
        Hz.

    Returns
    -------
    float
        1.0 to 4.64.

    Raises
    ------
    ValueError
        If the lengths differ: then they are no copies.
    ImportError
        If the package pesq is missing.
    """
    if abs(len(reference) - len(output)) > 0.02 * sample_rate:
        raise ValueError(
            f"{len(reference)} samples and {len(output)} samples: PESQ compares copies that are aligned in time only"
        )
    try:
        from pesq import pesq
    except ImportError as error:
        raise ImportError("PESQ needs the package pesq: pip install 'speechbrain_emo[eval]'") from error
    count = min(len(reference), len(output))
    pair = [_at_rate(np.asarray(x)[:count], sample_rate) for x in (reference, output)]
    return float(pesq(RATE, *pair, "wb"))


def _at_rate(samples, sample_rate):
    samples = np.asarray(samples, dtype=np.float32).reshape(-1)
    return samples if sample_rate == RATE else librosa.resample(samples, orig_sr=sample_rate, target_sr=RATE)


def _unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
