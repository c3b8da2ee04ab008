"""HiFT: a vocoder of a neural source filter and an inverse short-time Fourier transform.

Li et al. 2023, "HiFTNet", https://arxiv.org/abs/2309.09493, in the sizes and with the weights' names of CosyVoice2.
Axes: B batch, F mel bins, T mel frames, L samples, C channels.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from speechbrain_emo.lobes.stored import load_stored, save_stored
from speechbrain_emo.lobes.vocoder.source import F0Predictor, HarmonicSource


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with one alpha a channel (Liu et al. 2020, https://arxiv.org/abs/2006.08195).

    Example
    -------
    >>> Snake(2)(torch.zeros(1, 2, 3)).abs().sum()
    tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        """float (B, C, T) to the same shape."""
        alpha = self.alpha[:, None]
        # As in the published weights' code: an alpha of zero must not divide.
        return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


def _normed(conv, deviation=0.01):
    nn.init.normal_(conv.weight, 0.0, deviation)
    return weight_norm(conv)


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair beside a residual.

    Arguments
    ---------
    channels, kernel_size : int
    dilations : sequence of int
        One for each pair.

    Example
    -------
    >>> ResidualBlock(2, 3, (1, 3))(torch.randn(1, 2, 7)).shape
    torch.Size([1, 2, 7])
    """

    def __init__(self, channels, kernel_size, dilations):
        super().__init__()

        def conv(dilation):
            return _normed(nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding="same"))

        self.convs1 = nn.ModuleList([conv(dilation) for dilation in dilations])
        self.convs2 = nn.ModuleList([conv(1) for _ in dilations])
        self.activations1 = nn.ModuleList([Snake(channels) for _ in dilations])
        self.activations2 = nn.ModuleList([Snake(channels) for _ in dilations])

    def forward(self, x):
        """float (B, C, T) to the same shape."""
        for first, second, snake1, snake2 in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + second(snake2(first(snake1(x))))
        return x


class HiFT(nn.Module):
    """Mel spectrogram to waveform.

    Arguments
    ---------
    sample_rate : int
        Hz.
    num_mels : int
        F.
    channels : int
        C before the first up-sampling; each halves it.
    upsample_rates, upsample_kernels : sequence of int
        Of the transposed convolutions.
    n_fft, hop : int
        Of the inverse transform; a mel frame has ``hop`` times the product of the rates samples.
    kernels : sequence of int
        Of the residual blocks behind each up-sampling, which are averaged.
    dilations : sequence of int
        Of every residual block.
    source_kernels : sequence of int
        Of the residual block that the source passes, one for each up-sampling.
    num_harmonics : int
        Of the source.
    source_amplitude, source_noise, voiced_threshold : float
        Of :class:`HarmonicSource`.
    slope : float
        Of the leaky ReLUs.
    limit : float
        Largest sample.
    f0_channels : int
        Of :class:`F0Predictor`.

    Raises
    ------
    ValueError
        If the lists do not fit each other.

    Example
    -------
    >>> vocoder = HiFT(num_mels=8, channels=16, f0_channels=8)
    >>> vocoder(torch.randn(1, 8, 3))[0].shape
    torch.Size([1, 1440])
    """

    def __init__(
        self,
        sample_rate=24000,
        num_mels=80,
        channels=512,
        upsample_rates=(8, 5, 3),
        upsample_kernels=(16, 11, 7),
        n_fft=16,
        hop=4,
        kernels=(3, 7, 11),
        dilations=(1, 3, 5),
        source_kernels=(7, 7, 11),
        num_harmonics=8,
        source_amplitude=0.1,
        source_noise=0.003,
        voiced_threshold=10.0,
        slope=0.1,
        limit=0.99,
        f0_channels=512,
    ):
        super().__init__()
        if not len(upsample_rates) == len(upsample_kernels) == len(source_kernels):
            raise ValueError(
                f"upsample_rates {upsample_rates}, upsample_kernels {upsample_kernels} and source_kernels "
                f"{source_kernels} differ in length"
            )
        if channels % 2 ** len(upsample_rates):
            raise ValueError(f"channels is {channels}; it must be divisible by {2 ** len(upsample_rates)}")
        self.arguments = {
            "sample_rate": int(sample_rate),
            "num_mels": int(num_mels),
            "channels": int(channels),
            "upsample_rates": list(upsample_rates),
            "upsample_kernels": list(upsample_kernels),
            "n_fft": int(n_fft),
            "hop": int(hop),
            "kernels": list(kernels),
            "dilations": list(dilations),
            "source_kernels": list(source_kernels),
            "num_harmonics": int(num_harmonics),
            "source_amplitude": float(source_amplitude),
            "source_noise": float(source_noise),
            "voiced_threshold": float(voiced_threshold),
            "slope": float(slope),
            "limit": float(limit),
            "f0_channels": int(f0_channels),
        }
        self.sample_rate, self.num_mels, self.n_fft, self.hop = sample_rate, num_mels, n_fft, hop
        self.slope, self.limit, self.num_kernels = slope, limit, len(kernels)
        self.frame_samples = hop * math.prod(upsample_rates)
        self.m_source = HarmonicSource(
            sample_rate, self.frame_samples, num_harmonics, source_amplitude, source_noise, voiced_threshold
        )
        self.conv_pre = weight_norm(nn.Conv1d(num_mels, channels, 7, padding=3))
        sizes = [channels // 2**i for i in range(len(upsample_rates) + 1)]
        self.ups = nn.ModuleList(
            _normed(nn.ConvTranspose1d(before, after, kernel, rate, padding=(kernel - rate) // 2))
            for before, after, kernel, rate in zip(
                sizes, sizes[1:], upsample_kernels, upsample_rates, strict=False
            )
        )
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        for i, kernel in enumerate(source_kernels):
            # Frames of the source's transform by those of the features behind this up-sampling.
            ratio = math.prod(upsample_rates[i + 1 :])
            shape = (1, 1, 0) if ratio == 1 else (2 * ratio, ratio, ratio // 2)
            self.source_downs.append(nn.Conv1d(n_fft + 2, sizes[i + 1], *shape))
            self.source_resblocks.append(ResidualBlock(sizes[i + 1], kernel, dilations))
        self.resblocks = nn.ModuleList(
            ResidualBlock(size, kernel, dilations) for size in sizes[1:] for kernel in kernels
        )
        self.conv_post = _normed(nn.Conv1d(sizes[-1], n_fft + 2, 7, padding=3))
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.f0_predictor = F0Predictor(num_mels, f0_channels)

    def decode(self, mel, source):
        """Waveform of a mel spectrogram and a source signal.

        Arguments
        ---------
        mel : torch.Tensor
            Natural logarithm, float (B, F, T).
        source : torch.Tensor
            float (B, 1, L), L = T * ``frame_samples``.

        Returns
        -------
        torch.Tensor
            float (B, L), within the limit.
        """
        transform = {
            "n_fft": self.n_fft,
            "hop_length": self.hop,
            "win_length": self.n_fft,
            "window": self.window,
        }
        spectrum = torch.stft(source.squeeze(1), return_complex=True, **transform)
        spectrum = torch.cat([spectrum.real, spectrum.imag], dim=1)
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.slope))
            if i == len(self.ups) - 1:
                # The source's transform is centred and has one frame more.
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            blocks = self.resblocks[i * self.num_kernels : (i + 1) * self.num_kernels]
            x = sum(block(x) for block in blocks) / self.num_kernels
        x = self.conv_post(F.leaky_relu(x))
        bins = self.n_fft // 2 + 1
        magnitude = torch.exp(x[:, :bins]).clip(max=1e2)
        phase = torch.sin(x[:, bins:])
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        return torch.istft(spectrum, **transform).clamp(-self.limit, self.limit)

    def forward(self, mel, generator=None):
        """Waveform and the F0 that it was made with.

        Arguments
        ---------
        mel : torch.Tensor
            float (B, F, T).
        generator : torch.Generator, optional
            Of the source's noise.

        Returns
        -------
        tuple of torch.Tensor
            float (B, L) and F0 in Hz, float (B, T).
        """
        f0 = self.f0_predictor(mel)
        return self.decode(mel, self.m_source(f0, generator)), f0

    @torch.inference_mode()
    def synthesise(self, mel, num_frames=None, source_before=None, generator=None):
        """Waveforms of a batch, each as it would be alone.

        Rows of different lengths are computed apart: the convolutions would carry padding into a row's end.

        Arguments
        ---------
        mel : torch.Tensor
            float (B, F, T).
        num_frames : torch.Tensor, optional
            int64 (B,). None: no padding.
        source_before : torch.Tensor, optional
            Source of the first samples, float (B, 1, n): what an earlier chunk used.
        generator : torch.Generator, optional
            Of the source's noise.

        Returns
        -------
        tuple of torch.Tensor
            Waveform, float (B, L), and source, float (B, 1, L); zero at padding.
        """
        if num_frames is not None and bool((num_frames != mel.shape[2]).any()):
            waves = mel.new_zeros(mel.shape[0], mel.shape[2] * self.frame_samples)
            sources = waves[:, None].clone()
            for row, length in enumerate(num_frames.tolist()):
                before = None if source_before is None else source_before[row : row + 1]
                wave, source = self.synthesise(
                    mel[row : row + 1, :, :length], source_before=before, generator=generator
                )
                waves[row, : wave.shape[1]] = wave[0]
                sources[row, :, : wave.shape[1]] = source[0]
            return waves, sources
        source = self.m_source(self.f0_predictor(mel), generator)
        if source_before is not None:
            source[:, :, : source_before.shape[2]] = source_before
        return self.decode(mel, source), source

    def save(self, folder):
        """Write the folder that :func:`load_vocoder` reads."""
        save_stored(self, folder, "vocoder", self.arguments)

    def fuse_weight_norm(self):
        """Compute the weight-normalised weights once and for all; the module can then not be trained or saved
        under the published names.

        Returns
        -------
        HiFT
            Itself.
        """
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self


def load_vocoder(folder):
    """A vocoder from the folder that a training or ``speechbrain_emo convert`` wrote.

    Arguments
    ---------
    folder : str or pathlib.Path
        With ``config.json`` and ``model.safetensors``.

    Returns
    -------
    HiFT
        In eval mode.

    Raises
    ------
    ValueError
        If it is no such folder or the weights do not fit.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> HiFT(num_mels=8, channels=16, f0_channels=8).save(folder)
    >>> load_vocoder(folder).num_mels
    8
    """
    return load_stored(folder, {"vocoder": HiFT})
