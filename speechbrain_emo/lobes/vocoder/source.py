"""F0 from the mel spectrogram and the harmonic source of the vocoder.

After Wang et al. 2019 (neural source-filter models) and HiFTNet (Li et al. 2023, https://arxiv.org/abs/2309.09493);
names and shapes are those of CosyVoice2's hift.pt.
Axes: B batch, F mel bins, T mel frames, L samples, K harmonics.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class F0Predictor(nn.Module):
    """Five convolutions and a linear layer: F0 of each mel frame, in Hz.

    Arguments
    ---------
    num_mels : int
        F.
    channels : int
        Of the convolutions.

    Example
    -------
    >>> F0Predictor(8, 16)(torch.randn(2, 8, 5)).shape
    torch.Size([2, 5])
    """

    def __init__(self, num_mels=80, channels=512):
        super().__init__()
        layers = []
        for size in (num_mels, channels, channels, channels, channels):
            layers += [weight_norm(nn.Conv1d(size, channels, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)
        # F0 is in Hz: weights near zero would take thousands of steps to say 200.
        nn.init.normal_(self.classifier.weight, std=100.0 / channels**0.5)
        nn.init.constant_(self.classifier.bias, 100.0)

    def forward(self, mel):
        """Mel, float (B, F, T), to F0 in Hz, float (B, T), never negative."""
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """Sines at F0 and its multiples, merged to one signal; noise where there is no voice.

    Arguments
    ---------
    sample_rate : int
        Hz.
    hop : int
        Samples of a mel frame.
    num_harmonics : int
        Multiples above F0.
    amplitude : float
        Of the sines; the noise of unvoiced frames has a third of it.
    noise : float
        Deviation of the noise in voiced frames.
    voiced_threshold : float
        F0 in Hz above which a frame is voiced.

    Example
    -------
    >>> HarmonicSource(24000, 480)(torch.full((1, 2), 200.0)).shape
    torch.Size([1, 1, 960])
    """

    def __init__(self, sample_rate, hop, num_harmonics=8, amplitude=0.1, noise=0.003, voiced_threshold=10.0):
        super().__init__()
        self.sample_rate, self.hop, self.num_harmonics = sample_rate, hop, num_harmonics
        self.amplitude, self.noise, self.voiced_threshold = amplitude, noise, voiced_threshold
        self.l_linear = nn.Linear(num_harmonics + 1, 1)

    def sines(self, f0):
        """Sines of all harmonics, before noise and voicing.

        The phase is summed at frame rate and interpolated, as in the published code. Its random initial phases are
        not made: they are added to a sample that the code's interpolation never reads.

        Arguments
        ---------
        f0 : torch.Tensor
            Hz, float (B, T).

        Returns
        -------
        torch.Tensor
            float (B, L, K).
        """
        harmonics = torch.arange(1, self.num_harmonics + 2, device=f0.device, dtype=f0.dtype)
        turns = (f0[..., None] * harmonics / self.sample_rate) % 1
        phase = torch.cumsum(turns, dim=1) * 2 * math.pi
        phase = F.interpolate(phase.transpose(1, 2) * self.hop, scale_factor=float(self.hop), mode="linear")
        return torch.sin(phase).transpose(1, 2) * self.amplitude

    def forward(self, f0, generator=None):
        """Source signal.

        Arguments
        ---------
        f0 : torch.Tensor
            Hz, float (B, T).
        generator : torch.Generator, optional
            Of the noise. None: torch's own; after the same ``torch.manual_seed`` as before the published code it
            is the same noise.

        Returns
        -------
        torch.Tensor
            float (B, 1, L), between -1 and 1.
        """
        options = {"generator": generator, "device": f0.device}
        with torch.no_grad():
            # Draws of the published code in its order and memory layout: initial phases, noise of the sines,
            # noise of a branch that is not used. What is not needed is drawn too, so that seeds mean the same.
            torch.rand(f0.shape[0], self.num_harmonics + 1, **options)
            sines = self.sines(f0)
            voiced = F.interpolate((f0 > self.voiced_threshold).to(f0)[:, None], scale_factor=float(self.hop))
            voiced = voiced.transpose(1, 2)
            deviation = voiced * self.noise + (1 - voiced) * self.amplitude / 3
            sines = sines * voiced + deviation * torch.empty_like(sines).normal_(generator=generator)
            torch.empty_like(voiced).normal_(generator=generator)
        return torch.tanh(self.l_linear(sines)).transpose(1, 2)
