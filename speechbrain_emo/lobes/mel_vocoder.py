"""From a log-mel spectrogram to samples: Griffin-Lim or a pitched source without training, or SpeechBrain's HiFi-GAN.

A vocoder is an object with ``sample_rate`` and ``__call__(mel, f0)``: natural logarithm of mel magnitudes, float32
(T, M), and, for the one that needs it, F0 in Hz, float32 (T,) -> float32 (samples,).
"""

import math
from pathlib import Path

import torch
import torchaudio
from torch import nn

VOCODERS = ("griffin_lim", "source_filter", "hifigan")
FLOOR = 1e-5  # of mel magnitudes
MIN_FRAMES = 8


class MelSettings:
    """How a mel spectrogram is computed: one object for analysis, vocoder and model, so that they agree.

    Arguments
    ---------
    sample_rate : int
        Hz.
    hop_length, win_length, n_fft : int
        In samples.
    num_mels : int
        Bands M.
    f_min, f_max : float
        Hz.

    Example
    -------
    >>> settings = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)
    >>> mel, energy = settings.analyse(torch.randn(16000))
    >>> mel.shape, energy.shape
    (torch.Size([63, 80]), torch.Size([63]))
    """

    def __init__(
        self,
        sample_rate=22050,
        hop_length=256,
        win_length=1024,
        n_fft=1024,
        num_mels=80,
        f_min=0.0,
        f_max=8000.0,
    ):
        if f_max > sample_rate / 2 or hop_length > win_length or win_length > n_fft:
            raise ValueError(
                f"MelSettings: f_max {f_max} must be at most {sample_rate / 2}, hop_length {hop_length} at most "
                f"win_length {win_length}, and that at most n_fft {n_fft}"
            )
        self.sample_rate, self.hop_length, self.win_length = (
            int(sample_rate),
            int(hop_length),
            int(win_length),
        )
        self.n_fft, self.num_mels = int(n_fft), int(num_mels)
        self.f_min, self.f_max = float(f_min), float(f_max)

    def to_dict(self):
        """Settings as plain values."""
        return dict(vars(self))

    def num_frames(self, num_samples):
        """Frames of so many samples."""
        return num_samples // self.hop_length + 1

    def bands(self):
        """Weights of the mel bands: float32 (n_fft / 2 + 1, M), those of :meth:`analyse`."""
        return torchaudio.functional.melscale_fbanks(
            self.n_fft // 2 + 1,
            self.f_min,
            self.f_max,
            self.num_mels,
            self.sample_rate,
            "slaney",
            "slaney",
        )

    def analyse(self, samples):
        """Log-mel and energy.

        Arguments
        ---------
        samples : torch.Tensor
            float32 (samples,).

        Returns
        -------
        tuple of torch.Tensor
            Natural logarithm of mel magnitudes (floor 1e-5), float32 (T, M), and the norm of the magnitudes over bands,
            float32 (T,).

        Raises
        ------
        ValueError
            If there are fewer samples than half a window.
        """
        if len(samples) <= self.n_fft // 2:
            raise ValueError(
                f"{len(samples)} samples are too few for a spectrum: more than {self.n_fft // 2} are needed"
            )
        from speechbrain.lobes.models.FastSpeech2 import mel_spectrogram

        mel, energy = mel_spectrogram(
            sample_rate=self.sample_rate,
            hop_length=self.hop_length,
            win_length=self.win_length,
            n_fft=self.n_fft,
            n_mels=self.num_mels,
            f_min=self.f_min,
            f_max=self.f_max,
            power=1,
            normalized=False,
            min_max_energy_norm=False,
            norm="slaney",
            mel_scale="slaney",
            compression=True,
            audio=samples,
        )
        return mel.T.contiguous(), energy


class GriffinLim(nn.Module):
    """Griffin and Lim's iteration from mel magnitudes: no training, a hollow sound.

    Arguments
    ---------
    settings : MelSettings
        Of the mel spectrogram.
    iterations : int
        Of the phase.

    Example
    -------
    >>> settings = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)
    >>> mel, _ = settings.analyse(torch.sin(torch.arange(8000) * 0.3))
    >>> GriffinLim(settings, iterations=2)(mel).shape
    torch.Size([7936])
    """

    def __init__(self, settings, iterations=48):
        super().__init__()
        self.sample_rate, self.hop_length = settings.sample_rate, settings.hop_length
        bands = settings.bands()
        # The pseudo-inverse spreads a band over its bins; an iterative solver takes seconds for the same sound.
        self.register_buffer("inverse", torch.linalg.pinv(bands), persistent=False)
        self.griffin_lim = torchaudio.transforms.GriffinLim(
            settings.n_fft, iterations, settings.win_length, settings.hop_length, power=1.0, rand_init=False
        )

    @torch.no_grad()
    def forward(self, mel, f0=None):
        """mel float32 (T, M) -> float32 (samples,); the pitch is that of the mel."""
        length = len(mel)
        if length < MIN_FRAMES:
            # The inverse transform needs some frames to overlap: silence behind, which is cut off again.
            mel = torch.nn.functional.pad(mel, (0, 0, 0, MIN_FRAMES - length), value=math.log(FLOOR))
        samples = self.griffin_lim((mel.exp() @ self.inverse).clamp(min=1e-7).T)
        return samples[: length * self.hop_length] if length < MIN_FRAMES else samples


class SourceFilter(nn.Module):
    """Pulses at a given F0 and noise, shaped by the mel: no training, a buzzing sound whose pitch is the one asked for.

    The channel vocoder (Dudley 1939, "Remaking speech", JASA 11): where a small acoustic model gives smooth spectra,
    their harmonics are gone, and Griffin-Lim sounds them with a pitch of its own; here the pitch comes from the model's
    pitch predictor. A frame whose bands above 3 kHz are louder than those below 1 kHz is all noise, others are
    pulses below ``voiced_below`` and noise above.

    Arguments
    ---------
    settings : MelSettings
        Of the mel spectrogram.
    voiced_below : float
        Hz.
    width : float
        Hz to either side over which levels of source and mel are compared, at least; 1.2 times the median F0 where
        that is more, since gaps between harmonics would be filled up.

    Example
    -------
    >>> settings = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)
    >>> SourceFilter(settings)(torch.zeros(20, 80), torch.full((20,), 150.0)).shape
    torch.Size([4864])
    """

    def __init__(self, settings, voiced_below=4000.0, width=200.0):
        super().__init__()
        self.sample_rate, self.hop_length = settings.sample_rate, settings.hop_length
        self.settings, self.width = settings, float(width)
        bands = settings.bands()
        frequencies = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1)
        centres = (bands * frequencies[:, None]).sum(0) / bands.sum(0).clamp(min=1e-8)
        for name, value in {
            "bands": bands,
            "apart": (centres[:, None] - centres[None]).abs(),
            "low": centres < 1000.0,
            "high": centres > 3000.0,
            "pulsed": frequencies < float(voiced_below),
            "window": torch.hann_window(settings.win_length),
            # From bands back to bins: a bin lies between the centres of two bands, the ends go on.
            "spread": _between_bands(centres, frequencies),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def _spectrum(self, source, length):
        s = self.settings
        return torch.stft(source, s.n_fft, s.hop_length, s.win_length, self.window, return_complex=True)[
            :, :length
        ]

    @torch.no_grad()
    def forward(self, mel, f0):
        """Shape pulses and noise.

        Arguments
        ---------
        mel : torch.Tensor
            Natural logarithm of magnitudes, float32 (T, M).
        f0 : torch.Tensor
            Hz, float32 (T,), also where nothing is voiced.

        Returns
        -------
        torch.Tensor
            float32 (samples,): T - 1 hops, T hops of fewer than 8 frames.

        Raises
        ------
        ValueError
            If there is no frame, or not one F0 above 0 for each.
        """
        if f0 is None or len(f0) != len(mel) or not len(mel):
            found = "none" if f0 is None else len(f0)
            raise ValueError(f"source_filter needs F0 for each of {len(mel)} frames, there are {found}")
        if not bool((torch.isfinite(f0) & (f0 > 0)).all()):
            raise ValueError(
                "source_filter needs an F0 above 0 Hz everywhere: fill in where nothing is voiced"
            )
        length, s, f0 = len(mel), self.settings, f0.to(mel)
        near = (1 - self.apart / max(self.width, 1.2 * float(f0.median()))).clamp(min=0)
        near = near / near.sum(0)
        if length < MIN_FRAMES:
            more = MIN_FRAMES - length
            mel = torch.nn.functional.pad(mel, (0, 0, 0, more), value=math.log(FLOOR))
            f0 = torch.nn.functional.pad(f0, (0, more), value=float(f0[-1]))
        frames, hop = len(mel), s.hop_length
        # Frame i stands at sample i * hop.
        at = torch.arange(frames * hop, device=mel.device) / hop
        left = at.long()
        right = (left + 1).clamp(max=frames - 1)
        rate = (f0[left] + (at - left) * (f0[right] - f0[left])).double()
        phase = torch.cumsum(rate / s.sample_rate, 0)
        # A pulse where a period ends, shared by the two samples beside the exact moment; all with the power of noise.
        ends = torch.nonzero(phase.floor() > torch.nn.functional.pad(phase, (1, 0))[:-1].floor())[:, 0]
        share = ((phase[ends] - phase[ends].floor()) * s.sample_rate / rate[ends]).clamp(0, 1)
        height = (s.sample_rate / rate[ends]).sqrt()
        pulses = torch.zeros(frames * hop + 1, dtype=torch.float64, device=mel.device)
        pulses.index_add_(0, ends, height * share)
        pulses.index_add_(0, ends + 1, height * (1 - share))
        # Pulses stand above zero: without their mean there is nothing below F0.
        pulses[:-1] -= (rate / s.sample_rate).sqrt()
        noise = torch.randn(frames * hop, generator=torch.Generator().manual_seed(0)).to(mel)
        magnitudes = mel.exp()
        voiced = magnitudes[:, self.low].sum(1) >= magnitudes[:, self.high].sum(1)
        pulsed = self.pulsed[:, None] & voiced[None]
        source = torch.where(
            pulsed, self._spectrum(pulses[:-1].float(), frames), self._spectrum(noise, frames)
        )
        # Both levels over the same neighbourhood, so that gaps between harmonics stay gaps.
        found = (source.abs().T @ self.bands) @ near
        gain = (magnitudes @ near) / found.clamp(min=1e-4)
        shaped = source * (gain @ self.spread).T
        samples = torch.istft(shaped, s.n_fft, s.hop_length, s.win_length, self.window)
        return samples[: length * hop] if length < MIN_FRAMES else samples


def _between_bands(centres, frequencies):
    """Weights (M, bins) that interpolate between the centres of two bands."""
    right = torch.searchsorted(centres, frequencies).clamp(1, len(centres) - 1)
    left = right - 1
    share = ((frequencies - centres[left]) / (centres[right] - centres[left])).clamp(0, 1)
    weights = torch.zeros(len(centres), len(frequencies))
    bins = torch.arange(len(frequencies))
    weights[left, bins] += 1 - share
    weights[right, bins] += share
    return weights


class HiFiGAN(nn.Module):
    """SpeechBrain's trained HiFi-GAN (Kong et al. 2020, arXiv 2010.05646).

    Arguments
    ---------
    settings : MelSettings
        Of the mel spectrogram; must be those that the vocoder was trained on (22.05 kHz, 80 bands, hop 256 for the
        published ones).
    source : str
        Folder with SpeechBrain's ``hyperparams.yaml`` and ``generator.ckpt``, or a hub name such as
        ``speechbrain/tts-hifigan-ljspeech``. SpeechBrain runs what that file says: take it from a source you trust.

    Raises
    ------
    FileNotFoundError
        If ``source`` can only be a folder, and there is none.
    ValueError
        If the vocoder's bands or its hop are not those of the settings.
    """

    def __init__(self, settings, source="speechbrain/tts-hifigan-ljspeech"):
        super().__init__()
        from speechbrain.inference.vocoders import HIFIGAN

        source = str(source)
        if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/"))):
            raise FileNotFoundError(
                f"{source} is no folder of a HiFi-GAN (hyperparams.yaml, generator.ckpt) and no hub name (OWNER/NAME)"
            )
        self.sample_rate, self.hop_length = settings.sample_rate, settings.hop_length
        self.vocoder = HIFIGAN.from_hparams(source=source)
        self.check(settings)

    def check(self, settings):
        """Refuse a vocoder of other spectrograms."""
        with torch.no_grad():
            try:
                samples = self.vocoder.decode_batch(torch.zeros(1, settings.num_mels, 8))
            except RuntimeError as error:
                raise ValueError(
                    f"the HiFi-GAN does not take {settings.num_mels} mel bands: {error}"
                ) from error
            longer = self.vocoder.decode_batch(torch.zeros(1, settings.num_mels, 9))
        hop = longer.shape[-1] - samples.shape[-1]
        if hop != settings.hop_length:
            raise ValueError(
                f"the HiFi-GAN makes {hop} samples a frame, the acoustic model has a hop of {settings.hop_length}: use "
                "a vocoder that was trained on these spectrograms"
            )

    @torch.no_grad()
    def forward(self, mel, f0=None):
        """mel float32 (T, M) -> float32 (samples,): T hops; the pitch is that of the mel."""
        samples = self.vocoder.decode_batch(mel.T[None])[0, 0].cpu()
        # SpeechBrain repeats the first and the last frame some times and keeps their sound.
        extra = max(len(samples) - len(mel) * self.hop_length, 0) // 2
        return samples[extra : extra + len(mel) * self.hop_length]


def make_vocoder(name, settings, source=None):
    """A vocoder by name.

    Arguments
    ---------
    name : str
        ``griffin_lim``, ``source_filter`` or ``hifigan``.
    settings : MelSettings
        Of the mel spectrogram.
    source : str, optional
        Of the HiFi-GAN.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If the name is unknown.

    Example
    -------
    >>> make_vocoder("griffin_lim", MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)).sample_rate
    16000
    """
    if name == "griffin_lim":
        return GriffinLim(settings)
    if name == "source_filter":
        return SourceFilter(settings)
    if name == "hifigan":
        return HiFiGAN(settings, source or "speechbrain/tts-hifigan-ljspeech")
    raise ValueError(f"vocoder is {name!r}; allowed: {', '.join(VOCODERS)}")
