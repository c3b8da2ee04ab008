"""Discriminators that judge waveforms by their periods and by their spectra.

HiFi-GAN's multi-period discriminator (Kong et al. 2020, https://arxiv.org/abs/2010.05646, section 2.3) beside one over
magnitude spectra of three resolutions (Jang et al. 2021, https://arxiv.org/abs/2106.07889), as CosyVoice2's vocoder is
trained. SpeechBrain's ``DiscriminatorP`` has the first in one size; here the channels are arguments: a step of the
published size takes longer than a small vocoder has.
Axes: B batch, L samples, T frames.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1


@dataclass
class Judgement:
    """What discriminators say of a batch.

    Arguments
    ---------
    scores : list of torch.Tensor
        One for each discriminator, float (B, positions); near 1 means real.
    features : list of list of torch.Tensor
        Activations of each layer of each.
    """

    scores: list
    features: list


class PeriodDiscriminator(nn.Module):
    """Convolutions over every p-th sample.

    Arguments
    ---------
    period : int
        p in samples.
    channels : sequence of int
        Of the layers; all but the last take every third step.

    Example
    -------
    >>> score, features = PeriodDiscriminator(3, (4, 8))(torch.randn(2, 100))
    >>> score.shape, len(features)
    (torch.Size([2, 36]), 3)
    """

    def __init__(self, period, channels=(32, 128, 512, 1024, 1024)):
        super().__init__()
        self.period = period
        sizes = [1, *channels]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (3 if i < len(channels) - 1 else 1, 1), (2, 0)))
            for i, (before, after) in enumerate(zip(sizes, channels, strict=False))
        )
        self.conv_post = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveforms):
        """Waveforms, float (B, L), to scores (B, positions) and features."""
        x = F.pad(waveforms[:, None], (0, -waveforms.shape[1] % self.period), mode="reflect")
        x = x.unflatten(2, (-1, self.period))
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*features, x]


class SpectrumDiscriminator(nn.Module):
    """Convolutions over a magnitude spectrogram.

    Arguments
    ---------
    n_fft, hop, window : int
        Samples.
    channels : int

    Example
    -------
    >>> score, features = SpectrumDiscriminator(64, 16, 64, channels=4)(torch.randn(2, 400))
    >>> len(features)
    6
    """

    def __init__(self, n_fft, hop, window, channels=32):
        super().__init__()
        self.n_fft, self.hop, self.length = n_fft, hop, window
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        shapes = [((3, 9), 1), ((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1)]
        self.convs = nn.ModuleList(
            weight_norm(
                nn.Conv2d(1 if i == 0 else channels, channels, kernel, (1, stride), (1, kernel[1] // 2))
            )
            for i, (kernel, stride) in enumerate(shapes)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, waveforms):
        """Waveforms, float (B, L), to scores (B, positions) and features."""
        spectrum = torch.stft(
            waveforms, self.n_fft, self.hop, self.length, window=self.window, return_complex=True
        )
        # The slope of a magnitude at zero has no end.
        x = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-12).transpose(1, 2)[:, None]
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*features, x]


class WaveformDiscriminator(nn.Module):
    """Discriminators of several periods and of several spectral resolutions.

    Arguments
    ---------
    periods : sequence of int
    period_channels : sequence of int
        Of :class:`PeriodDiscriminator`.
    spectra : sequence of sequence of int
        Transform, hop and window of each spectral one.
    spectrum_channels : int

    Example
    -------
    >>> judge = WaveformDiscriminator((2, 3), (4, 4), ((64, 16, 64),), 4)
    >>> len(judge(torch.randn(1, 300)).scores)
    3
    """

    def __init__(
        self,
        periods=(2, 3, 5, 7, 11),
        period_channels=(32, 128, 512, 1024, 1024),
        spectra=((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        spectrum_channels=32,
    ):
        super().__init__()
        self.discriminators = nn.ModuleList(
            [PeriodDiscriminator(period, period_channels) for period in periods]
            + [SpectrumDiscriminator(*spectrum, channels=spectrum_channels) for spectrum in spectra]
        )

    def forward(self, waveforms):
        """Judge waveforms.

        Arguments
        ---------
        waveforms : torch.Tensor
            float (B, L).

        Returns
        -------
        Judgement
        """
        pairs = [discriminator(waveforms) for discriminator in self.discriminators]
        return Judgement([score for score, _ in pairs], [features for _, features in pairs])
