"""What a vocoder is trained with: adversarial losses, spectra and F0.

The least-squares terms are SpeechBrain's (Mao et al. 2017); beside them feature matching as HiFi-GAN sums it
(SpeechBrain takes the mean over layers, which the published weight does not fit) and CosyVoice2's truncated relative
term. Weights are those of its recipe.
"""

import torch
from speechbrain.lobes.models.HifiGAN import MSEDLoss, MSEGLoss
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.mel import MelSpectrogram


def relative_loss(scores, others, margin=0.04):
    """Truncated pairwise relative loss (Li et al. 2021, https://arxiv.org/abs/2102.07751).

    The squared difference of two discriminator outputs from its median, over positions where the first are smaller
    than they should be, up to the margin.

    Arguments
    ---------
    scores, others : list of torch.Tensor
        Scores of each discriminator: those that should be larger, and what they are compared with.
    margin : float
        Largest loss of a discriminator.

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> relative_loss([torch.tensor([[0.0, 1.0, 2.0]])], [torch.zeros(1, 3)], margin=9.0)
    tensor(1.)
    """
    total = torch.zeros((), device=scores[0].device)
    for score, other in zip(scores, others, strict=True):
        difference = score - other
        centre = difference.median()
        chosen = (difference - centre)[difference < centre]
        if chosen.numel():
            total = total + margin - F.relu(margin - chosen.square().mean())
    return total


def matching_loss(fake, real):
    """Twice the summed L1 distance of all layers' features (Kong et al. 2020, eq. 3, and its code).

    Arguments
    ---------
    fake, real : list of list of torch.Tensor
        Features of each layer of each discriminator; no gradient flows into the real ones.

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> matching_loss([[torch.zeros(2), torch.ones(3)]], [[torch.ones(2), torch.ones(3)]])
    tensor(2.)
    """
    pairs = [(f, r.detach()) for fs, rs in zip(fake, real, strict=True) for f, r in zip(fs, rs, strict=True)]
    return 2 * sum(F.l1_loss(f, r) for f, r in pairs)


class SpectralConvergence(nn.Module):
    """Distance of magnitude spectra at several resolutions (Yamamoto et al. 2020, eq. 6-8).

    Arguments
    ---------
    resolutions : sequence of sequence of int
        Transform, hop and window in samples.

    Example
    -------
    >>> wave = torch.randn(1, 3000)
    >>> SpectralConvergence()(wave, wave)
    tensor(0.)
    """

    def __init__(self, resolutions=((2048, 480, 1920), (1024, 240, 960), (512, 120, 480))):
        super().__init__()
        self.resolutions = [tuple(r) for r in resolutions]
        for number, (_, _, window) in enumerate(self.resolutions):
            self.register_buffer(f"window{number}", torch.hann_window(window), persistent=False)

    def forward(self, generated, real):
        """float (B, L) each, to a scalar."""
        total = torch.zeros((), device=real.device)
        for number, (n_fft, hop, length) in enumerate(self.resolutions):
            window = getattr(self, f"window{number}")
            made, true = (
                (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-7).sqrt()
                for spectrum in (
                    torch.stft(x, n_fft, hop, length, window=window, return_complex=True)
                    for x in (generated, real)
                )
            )
            ratio = torch.linalg.vector_norm(true - made) / torch.linalg.vector_norm(true)
            total = total + ratio + F.l1_loss(made.log(), true.log())
        return total / len(self.resolutions)


class VocoderLoss(nn.Module):
    """Losses of generator and discriminators.

    Arguments
    ---------
    mel : float
        Weight of the L1 distance of log-mels up to half the sample rate.
    spectra : float
        Weight of :class:`SpectralConvergence`; 0 in the published recipe, where there is time for the
        discriminators to teach it.
    features : float
        Weight of feature matching.
    relative : float
        Weight of :func:`relative_loss`.
    f0 : float
        Weight of the L1 distance of F0 in Hz.
    sample_rate, n_fft, hop, num_mels : int
        Of the mel spectrogram.

    Example
    -------
    >>> loss = VocoderLoss(spectra=1.0)
    >>> wave = torch.randn(1, 4800)
    >>> terms = loss.reconstruction(wave, wave, torch.zeros(1, 10), torch.zeros(1, 10))
    >>> sorted(terms)
    ['f0', 'mel', 'spectra']
    """

    def __init__(
        self,
        mel=45.0,
        spectra=0.0,
        features=2.0,
        relative=1.0,
        f0=1.0,
        sample_rate=24000,
        n_fft=1920,
        hop=480,
        num_mels=80,
    ):
        super().__init__()
        self.weights = {
            "mel": mel,
            "spectra": spectra,
            "features": features,
            "relative": relative,
            "f0": f0,
            "adversarial": 1.0,
        }
        self.to_mel = MelSpectrogram(sample_rate, n_fft, hop, num_mels, f_max=None)
        self.convergence = SpectralConvergence()
        self.fool, self.tell = MSEGLoss(), MSEDLoss()

    def reconstruction(self, generated, real, f0, true_f0):
        """Terms that need no discriminator.

        Arguments
        ---------
        generated, real : torch.Tensor
            float (B, L).
        f0, true_f0 : torch.Tensor
            Hz, 0 where there is no voice, float (B, T).

        Returns
        -------
        dict of str to torch.Tensor
            Scalars, not weighted.
        """
        terms = {
            "mel": F.l1_loss(self.to_mel(generated), self.to_mel(real)),
            "f0": F.l1_loss(f0, true_f0),
        }
        if self.weights["spectra"]:
            terms["spectra"] = self.convergence(generated, real)
        return terms

    def generator(self, fake, real):
        """Adversarial terms of the generator: what it takes to be taken for real.

        Arguments
        ---------
        fake, real : Judgement

        Returns
        -------
        dict of str to torch.Tensor
        """
        return {
            "adversarial": sum(self.fool(score) for score in fake.scores),
            "features": matching_loss(fake.features, real.features),
            "relative": relative_loss(fake.scores, [score.detach() for score in real.scores]),
        }

    def discriminator(self, fake, real):
        """Loss of the discriminators on detached waveforms, a weighted sum."""
        told = sum(self.tell(f, r)[0] for f, r in zip(fake.scores, real.scores, strict=True))
        return told + self.weights["relative"] * relative_loss(real.scores, fake.scores)

    def total(self, terms):
        """Weighted sum of terms."""
        return sum(self.weights[name] * value for name, value in terms.items())
