"""What a FastSpeech learns from: phonemes with durations in frames, and pitch and energy of each phoneme.

Axes: S phonemes, T mel frames.
"""

import numpy as np

SILENCE = "sil"
UNKNOWN = "unk"
F0_METHODS = ("pyin", "yin")


def phone_durations(phones, num_frames, frame_rate):
    """Phonemes and their mel frames, silence where there is none; the frames add up.

    Arguments
    ---------
    phones : sequence of mapping
        ``phone``, ``start`` and ``end`` in seconds, in order.
    num_frames : int
        T.
    frame_rate : float
        Mel frames a second.

    Returns
    -------
    tuple
        List of phonemes, and int64 array of frames, of the same length S; a phoneme too short for a frame is left out.

    Raises
    ------
    ValueError
        If there is no phoneme, or one begins before the one before it.

    Example
    -------
    >>> phones = [{"phone": "a", "start": 0.1, "end": 0.3}, {"phone": "b", "start": 0.3, "end": 0.5}]
    >>> names, frames = phone_durations(phones, 7, 10.0)
    >>> names, frames.tolist()
    (['sil', 'a', 'b', 'sil'], [1, 2, 2, 2])
    """
    if not phones:
        raise ValueError("an utterance without phonemes cannot be learned from: align it first")
    names, borders = [], []
    last = 0.0
    for row in phones:
        start, end = float(row["start"]), float(row["end"])
        if start < last - 1e-3 or end < start:
            raise ValueError(f"phoneme {row['phone']!r} from {start} to {end} s begins before {last} s")
        if start > last + 0.5 / frame_rate:
            names.append(SILENCE)
            borders.append(start)
        names.append(row["phone"] or SILENCE)
        borders.append(end)
        last = end
    if num_frames / frame_rate > last + 0.5 / frame_rate:
        names.append(SILENCE)
        borders.append(num_frames / frame_rate)
    edges = np.clip(np.round(np.array(borders) * frame_rate), 0, num_frames).astype(np.int64)
    edges[-1] = num_frames
    frames = np.diff(np.concatenate([[0], edges]))
    kept = frames > 0
    return [n for n, k in zip(names, kept, strict=True) if k], frames[kept]


def pitch_track(samples, sample_rate, hop_length, num_frames, method="pyin", f_min=60.0, f_max=500.0):
    """Logarithm of F0 of every mel frame, unvoiced ones filled in between their neighbours (librosa).

    Arguments
    ---------
    samples : numpy.ndarray
        float32 (samples,).
    sample_rate : int
        Hz.
    hop_length : int
        Samples.
    num_frames : int
        T.
    method : str
        ``pyin``, or ``yin``, which is ten times faster and knows no unvoiced frames: those below a fiftieth of the
        loudest frame's energy are taken for unvoiced.
    f_min, f_max : float
        Hz.

    Returns
    -------
    numpy.ndarray
        float32 (T,); all 0 where nothing is voiced.

    Raises
    ------
    ValueError
        If the method is unknown.

    Example
    -------
    >>> time = np.arange(16000) / 16000
    >>> track = pitch_track(np.sin(2 * np.pi * 200 * time).astype("float32"), 16000, 256, 63, "yin")
    >>> track.shape, round(float(np.exp(track[30])))
    ((63,), 200)
    """
    from speechbrain_emo.dataio.compiled_librosa import librosa

    frame_length = 1024 if sample_rate <= 16000 else 2048
    settings = {
        "fmin": f_min,
        "fmax": f_max,
        "sr": sample_rate,
        "frame_length": frame_length,
        "hop_length": hop_length,
    }
    samples = np.pad(np.asarray(samples, dtype=np.float32), (0, max(frame_length - len(samples), 0)))
    if method == "pyin":
        f0, voiced, _ = librosa.pyin(samples, **settings)
    elif method == "yin":
        f0 = librosa.yin(samples, **settings)
        level = librosa.feature.rms(y=samples, frame_length=frame_length, hop_length=hop_length)[0]
        level = level[: len(f0)]
        f0, voiced = f0[: len(level)], level > 0.02 * max(level.max(), 1e-9)
    else:
        raise ValueError(f"pitch method is {method!r}; allowed: {', '.join(F0_METHODS)}")
    f0 = np.resize(f0[:num_frames], num_frames) if len(f0) < num_frames else f0[:num_frames]
    voiced = (np.pad(voiced, (0, max(num_frames - len(voiced), 0)))[:num_frames]) & np.isfinite(f0)
    if not voiced.any():
        return np.zeros(num_frames, dtype=np.float32)
    places = np.flatnonzero(voiced)
    return np.interp(np.arange(num_frames), places, np.log(f0[places])).astype(np.float32)


def average_by_phone(values, frames):
    """Mean of a track over each phoneme's frames: float32 (S,).

    Arguments
    ---------
    values : numpy.ndarray
        (T,).
    frames : numpy.ndarray
        int64 (S,), each at least 1, adding up to T.

    Returns
    -------
    numpy.ndarray

    Example
    -------
    >>> average_by_phone(np.array([1.0, 3.0, 5.0]), np.array([2, 1])).tolist()
    [2.0, 5.0]
    """
    starts = np.concatenate([[0], np.cumsum(frames)[:-1]])
    return (np.add.reduceat(np.asarray(values, dtype=np.float64), starts) / frames).astype(np.float32)


def spread_pitch(log_f0, frames):
    """F0 of every frame from that of phonemes: straight lines between the middles of phonemes, on the log scale.

    Arguments
    ---------
    log_f0 : numpy.ndarray
        Natural logarithm of Hz, (S,).
    frames : numpy.ndarray
        int64 (S,), each at least 1.

    Returns
    -------
    numpy.ndarray
        Hz, float32 (T,).

    Example
    -------
    >>> spread_pitch(np.log([100.0, 200.0]), np.array([2, 2])).round().tolist()
    [100.0, 119.0, 168.0, 200.0]
    """
    ends = np.cumsum(frames)
    middles = ends - np.asarray(frames) / 2
    return np.exp(np.interp(np.arange(ends[-1]) + 0.5, middles, np.asarray(log_f0))).astype(np.float32)
