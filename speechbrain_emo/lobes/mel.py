"""The log-mel spectrogram that CosyVoice2's flow produces and its vocoder reads.

24 kHz, window and transform of 1920 samples, hop 480 (50 Hz), 80 bins up to 8 kHz, not centred, natural logarithm.
The vocoder's own training loss uses the same without the upper limit (``f_max=None``).
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

#: Smallest magnitude before the logarithm.
FLOOR = 1e-5


class MelSpectrogram(nn.Module):
    """Natural logarithm of mel magnitudes, as in HiFi-GAN (Kong et al. 2020) with CosyVoice2's numbers.

    Arguments
    ---------
    sample_rate : int
        Hz.
    n_fft : int
        Samples of the transform and of its window.
    hop : int
        Samples.
    num_mels : int
        Bins, of Slaney's scale and area.
    f_min : float
        Hz.
    f_max : float, optional
        Hz; None: half the sample rate.

    Example
    -------
    >>> MelSpectrogram()(torch.zeros(1, 960)).shape
    torch.Size([1, 80, 2])
    """

    def __init__(self, sample_rate=24000, n_fft=1920, hop=480, num_mels=80, f_min=0.0, f_max=8000.0):
        super().__init__()
        self.sample_rate, self.n_fft, self.hop, self.num_mels = sample_rate, n_fft, hop, num_mels
        highest = sample_rate / 2 if f_max is None else f_max
        filters = melscale_fbanks(n_fft // 2 + 1, f_min, highest, num_mels, sample_rate, "slaney", "slaney")
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveforms):
        """Log-mels of waveforms.

        Arguments
        ---------
        waveforms : torch.Tensor
            float (B, L), full scale 1, L more than half of ``n_fft - hop``.

        Returns
        -------
        torch.Tensor
            float (B, num_mels, L // hop).

        Raises
        ------
        ValueError
            If a waveform is too short to be mirrored at its ends.
        """
        margin = (self.n_fft - self.hop) // 2
        if waveforms.shape[1] <= margin:
            raise ValueError(
                f"{waveforms.shape[1]} samples at {self.sample_rate} Hz; a spectrogram needs more than {margin}"
            )
        padded = F.pad(waveforms[:, None], (margin, margin), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, self.n_fft, self.hop, window=self.window, center=False, return_complex=True
        )
        # Inside the root: its slope at zero has no end.
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return (self.filters @ magnitude).clamp(min=FLOOR).log()

    def of_rows(self, waveforms, num_samples):
        """Log-mels of a padded batch, each row as it would be alone.

        Arguments
        ---------
        waveforms : torch.Tensor
            float (B, L).
        num_samples : torch.Tensor
            int64 (B,).

        Returns
        -------
        tuple of torch.Tensor
            float (B, frames, num_mels), the floor at padding, and frames, int64 (B,).
        """
        rows = [self(row[None, :n])[0].T for row, n in zip(waveforms, num_samples.tolist(), strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=waveforms.device)
        floor = torch.log(torch.tensor(FLOOR)).item()
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=floor), lengths
