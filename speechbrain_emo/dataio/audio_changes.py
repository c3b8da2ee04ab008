"""Known changes of a recording: shifts that a description should follow, faults it should survive.

Shifts: pitch +-4 semitones, speed x1.25 and x0.8 (both librosa's phase vocoder: McFee et al. 2015, "librosa: Audio
and music signal analysis in Python"; the level is restored), gain +-6 dB. Faults: white noise at a signal-to-noise
ratio, reverberation with an exponentially decaying room of 0.5 s (SpeechBrain's ``reverberate``), a telephone (8 kHz,
300 to 3400 Hz, 8-bit mu-law of ITU-T G.711 by SpeechBrain's ``CodecAugment``), gain with clipping at full scale. What
is random is drawn from a seed of the caller's: the same recording gets the same noise in every run.
"""

import torch
import torchaudio.functional as F
from speechbrain.augment.codec import CodecAugment
from speechbrain.processing.signal_processing import reverberate

from speechbrain_emo.dataio.compiled_librosa import librosa

#: Shift -> what it does; ``<field>_<way>``, where the field is the descriptor that should move.
SHIFTS = {
    "pitch_up": "pitch +4 semitones",
    "pitch_down": "pitch -4 semitones",
    "speed_up": "speed x1.25",
    "speed_down": "speed x0.8",
    "volume_up": "gain +6 dB",
    "volume_down": "gain -6 dB",
}
#: Fault -> what it is, as a row of a table names it.
FAULTS = {
    "clean": "as recorded",
    "noise_20": "white noise, SNR 20 dB",
    "noise_10": "white noise, SNR 10 dB",
    "noise_0": "white noise, SNR 0 dB",
    "reverb": "reverberation, RT60 0.5 s",
    "telephone": "telephone: 8 kHz, 300-3400 Hz, mu-law",
    "gain_down": "gain -12 dB",
    "gain_up": "gain +12 dB, clipped at full scale",
}
_SEMITONES = {"pitch_up": 4.0, "pitch_down": -4.0}
_RATES = {"speed_up": 1.25, "speed_down": 0.8}
_DECIBELS = {"volume_up": 6.0, "volume_down": -6.0, "gain_down": -12.0, "gain_up": 12.0}
_RT60 = 0.5


def change_audio(waveform, sample_rate, change, seed=0):
    """A recording after one of :data:`SHIFTS` or :data:`FAULTS`.

    Arguments
    ---------
    waveform : torch.Tensor
        float32, shape (samples,), full scale 1.
    sample_rate : int
        Hz; at least 8000.
    change : str
        Name of the change; ``clean`` gives the recording as it is.
    seed : int
        Of noise and room.

    Returns
    -------
    torch.Tensor
        float32, shape (samples',): another length only where the speed changes.

    Raises
    ------
    ValueError
        If the change is unknown, or the waveform is not (samples,).

    Example
    -------
    >>> tone = 0.1 * torch.sin(2 * torch.pi * 200 * torch.arange(16000) / 16000)
    >>> change_audio(tone, 16000, "speed_up").shape
    torch.Size([12800])
    >>> louder = change_audio(tone, 16000, "volume_up")
    >>> round(float(louder.abs().max() / tone.abs().max()), 2)
    2.0
    """
    if waveform.dim() != 1:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}: give (samples,)")
    if change == "clean":
        return waveform
    if change in _SEMITONES:
        shifted = librosa.effects.pitch_shift(waveform.numpy(), sr=sample_rate, n_steps=_SEMITONES[change])
        return _as_loud(torch.from_numpy(shifted).float(), waveform)
    if change in _RATES:
        stretched = librosa.effects.time_stretch(waveform.numpy(), rate=_RATES[change])
        return _as_loud(torch.from_numpy(stretched).float(), waveform)
    if change in _DECIBELS:
        louder = waveform * 10 ** (_DECIBELS[change] / 20)
        # The shifts stay linear, so that nothing but the level changes.
        return louder.clamp(-1, 1) if change.startswith("gain") else louder
    generator = torch.Generator().manual_seed(int(seed))
    if change.startswith("noise_"):
        noise = torch.randn(len(waveform), generator=generator)
        return F.add_noise(waveform[None], noise[None], torch.tensor([float(change[6:])]))[0]
    if change == "reverb":
        return _reverberated(waveform, sample_rate, generator)
    if change == "telephone":
        # The default filter of 6 zero crossings lets images through above 4 kHz.
        narrow = F.resample(waveform, sample_rate, 8000, lowpass_filter_width=64)
        narrow = F.lowpass_biquad(F.highpass_biquad(narrow, 8000, 300.0), 8000, 3400.0).clamp(-1, 1)
        narrow = CodecAugment(8000).apply_codec(narrow, "WAV", "ULAW")
        wide = F.resample(narrow, 8000, sample_rate, lowpass_filter_width=64)
        return _as_long(wide, len(waveform))
    raise ValueError(f"change is {change!r}; allowed: {', '.join([*SHIFTS, *FAULTS])}")


def _reverberated(waveform, sample_rate, generator):
    """Convolved with a direct path and a tail of noise that has fallen by 60 dB after 0.5 s."""
    count = int(_RT60 * sample_rate)
    times = torch.arange(count) / sample_rate
    tail = torch.randn(count, generator=generator) * 10 ** (-3 * times / _RT60)
    tail[: int(0.002 * sample_rate)] = 0.0
    # As much energy in the tail as in the direct path: a listener some metres away in a living room.
    tail = tail / tail.square().sum().sqrt()
    tail[0] = 1.0
    # SpeechBrain moves the largest tap, the direct path, to the first place and keeps the mean amplitude.
    return _as_long(reverberate(waveform[None].clone(), tail[None], rescale_amp="avg")[0], len(waveform))


def _as_loud(changed, original):
    """At the level of the original: a phase vocoder takes several dB away, and volume must not move with pitch."""
    level = changed.square().mean().sqrt()
    return changed if level == 0 else changed * (original.square().mean().sqrt() / level)


def _as_long(waveform, length):
    """Cut or padded with zeros to a length."""
    return torch.nn.functional.pad(waveform, (0, max(0, length - len(waveform))))[:length]
