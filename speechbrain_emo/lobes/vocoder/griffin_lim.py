"""Waveform of a log-mel spectrogram without training: phases by Griffin and Lim 1984."""

import torch
from torch.nn import functional as F

from speechbrain_emo.lobes.mel import FLOOR, MelSpectrogram


def mel_to_magnitude(mel_values, filters, num_iterations=50):
    """Non-negative magnitudes whose mel spectrogram is a given one.

    Least squares by the multiplicative updates of Lee and Seung 2001; a pseudo-inverse would give negative values,
    and cutting them off adds energy.

    Arguments
    ---------
    mel_values : torch.Tensor
        Not the logarithm, float (B, F, T).
    filters : torch.Tensor
        float (F, bins).
    num_iterations : int

    Returns
    -------
    torch.Tensor
        float (B, bins, T).

    Example
    -------
    >>> filters = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    >>> magnitude = mel_to_magnitude(torch.tensor([[[3.0], [5.0]]]), filters)
    >>> bool(torch.allclose(filters @ magnitude, torch.tensor([[[3.0], [5.0]]]), atol=1e-3))
    True
    """
    wanted = filters.T @ mel_values
    # A flat spectrum under each filter to begin with.
    magnitude = (filters / filters.sum(1, keepdim=True).square().clamp(min=1e-12)).T @ mel_values
    for _ in range(num_iterations):
        magnitude = magnitude * wanted / (filters.T @ (filters @ magnitude)).clamp(min=1e-12)
    return magnitude


def griffin_lim(log_mel, mel=None, num_iterations=32, momentum=0.99, generator=None):
    """Waveform whose short-time spectra have the magnitudes of a mel spectrogram.

    Griffin and Lim 1984 with the momentum of Perraudin et al. 2013; the fallback where no vocoder was trained.

    Arguments
    ---------
    log_mel : torch.Tensor
        Natural logarithm, float (B, F, T).
    mel : speechbrain_emo.lobes.mel.MelSpectrogram, optional
        That made it. None: the one of CosyVoice2.
    num_iterations : int
        At least 1.
    momentum : float
        In [0, 1).
    generator : torch.Generator, optional
        Of the first phases.

    Returns
    -------
    torch.Tensor
        float (B, T * hop), within [-1, 1].

    Raises
    ------
    ValueError
        If a number is out of range.

    Example
    -------
    >>> wave = torch.sin(torch.arange(9600) * 0.1)[None]
    >>> griffin_lim(MelSpectrogram()(wave), num_iterations=4).shape
    torch.Size([1, 9600])
    """
    if num_iterations < 1 or not 0 <= momentum < 1:
        raise ValueError(
            f"num_iterations is {num_iterations} and momentum {momentum}; allowed: 1 and above, [0, 1)"
        )
    mel = MelSpectrogram().to(log_mel) if mel is None else mel
    # What is at the floor is silence, not the floor's magnitude.
    values = log_mel.exp()
    magnitude = mel_to_magnitude(values * (values > 1.001 * FLOOR), mel.filters)
    length = log_mel.shape[2] * mel.hop
    margin = (mel.n_fft - mel.hop) // 2
    turns = torch.rand(magnitude.shape, generator=generator, device=magnitude.device)
    phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
    before = torch.zeros_like(phase)
    for _ in range(num_iterations):
        rebuilt = _transform(_inverse(magnitude * phase, mel, length, margin), mel, margin)
        moved = rebuilt + momentum * (rebuilt - before)
        phase = moved / moved.abs().clamp(min=1e-16)
        before = rebuilt
    return _inverse(magnitude * phase, mel, length, margin).clamp(-1.0, 1.0)


def _transform(wave, mel, margin):
    padded = F.pad(wave[:, None], (margin, margin), mode="reflect")[:, 0]
    return torch.stft(padded, mel.n_fft, mel.hop, window=mel.window, center=False, return_complex=True)


def _inverse(spectrum, mel, length, margin):
    """Overlap and add, divided by the overlapping windows' energy."""
    frames = torch.fft.irfft(spectrum, n=mel.n_fft, dim=1) * mel.window[:, None]
    total = length + 2 * margin
    shape = {"output_size": (1, total), "kernel_size": (1, mel.n_fft), "stride": (1, mel.hop)}
    wave = F.fold(frames, **shape)[:, 0, 0]
    energy = F.fold(mel.window.square()[None, :, None].expand(1, -1, frames.shape[2]), **shape)[0, 0, 0]
    return (wave / energy.clamp(min=1e-8))[:, margin : margin + length]
