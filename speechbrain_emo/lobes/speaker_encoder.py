"""A small speaker encoder: SpeechBrain's ECAPA-TDNN over Kaldi filter banks, 192 numbers a voice.

Desplanques et al. 2020, https://arxiv.org/abs/2005.07143. The features are those of the published ``campplus.onnx``
(16 kHz, 80 bins, no dither, mean over time removed), so that either stands behind the same front door. The mean over
time is the level and the channel: without it the vector carries no loudness.
"""

from pathlib import Path

import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import nn
from torchaudio.compliance import kaldi

from speechbrain_emo.lobes.stored import fingerprint, load_stored, save_stored

SAMPLE_RATE, NUM_BINS = 16000, 80
#: Kaldi's window; shorter audio has no frame.
MIN_SAMPLES = 400


def filter_banks(waveform):
    """Kaldi filter banks of one waveform.

    Arguments
    ---------
    waveform : torch.Tensor
        float32 (N,) at 16 kHz, full scale 1.

    Returns
    -------
    torch.Tensor
        float32 (F, 80) at 100 Hz, mean over time removed.

    Raises
    ------
    ValueError
        If it is shorter than a window of 25 ms.

    Example
    -------
    >>> filter_banks(torch.randn(16000)).shape
    torch.Size([98, 80])
    """
    if len(waveform) < MIN_SAMPLES:
        raise ValueError(f"{len(waveform)} samples at 16 kHz: a voice needs at least {MIN_SAMPLES}")
    features = kaldi.fbank(
        waveform[None].float(), num_mel_bins=NUM_BINS, dither=0.0, sample_frequency=SAMPLE_RATE
    )
    return features - features.mean(0, keepdim=True)


class SpeakerEncoder(nn.Module):
    """Waveforms to unit-free vectors of 192 numbers.

    Arguments
    ---------
    channels : sequence of int
        Of the five parts of the ECAPA-TDNN.
    attention_channels : int
        Of its pooling and squeeze-excitation.
    size : int
        Of the vector. Published files have 192.

    Example
    -------
    >>> SpeakerEncoder([16, 16, 16, 16, 48], 8).eval().encode(torch.randn(2, 16000), torch.tensor([16000, 9000])).shape
    torch.Size([2, 192])
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, channels=(64, 64, 64, 64, 192), attention_channels=32, size=192):
        super().__init__()
        self.arguments = {
            "channels": [int(c) for c in channels],
            "attention_channels": int(attention_channels),
            "size": int(size),
        }
        self.size = int(size)
        self.model = ECAPA_TDNN(
            NUM_BINS,
            channels=list(channels),
            kernel_sizes=[5, 3, 3, 3, 1],
            dilations=[1, 2, 3, 4, 1],
            attention_channels=attention_channels,
            se_channels=attention_channels,
            lin_neurons=size,
        )

    @property
    def fingerprint(self):
        """Hash of the weights."""
        return fingerprint(self)

    def forward(self, features):
        """Vectors (B, size) of filter banks (B, F, 80) of equal length."""
        return self.model(features)[:, 0]

    @torch.no_grad()
    def encode(self, waveforms, num_samples):
        """Vectors of a batch, each waveform by itself.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32 (B, N) at 16 kHz.
        num_samples : torch.Tensor
            int64 (B,).

        Returns
        -------
        torch.Tensor
            float32 (B, size).
        """
        rows = [self(filter_banks(w[:n])[None]) for w, n in zip(waveforms, num_samples.tolist())]
        return torch.cat(rows)

    def save(self, folder):
        """Write the folder that :func:`load_speaker_encoder` reads."""
        save_stored(self, folder, "speaker_encoder", self.arguments)


def load_speaker_encoder(source):
    """A speaker encoder: the published ONNX file, or a folder trained here.

    Arguments
    ---------
    source : str or pathlib.Path
        ``campplus.onnx``, or the folder of ``hparams/demo_speech_tokenizer.yaml``.

    Returns
    -------
    OnnxSpeakerEncoder or SpeakerEncoder
        With ``encode(waveforms, num_samples)``, ``size`` and ``sample_rate``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if Path(source).suffix == ".onnx":
        from speechbrain_emo.lobes.onnx_front_end import OnnxSpeakerEncoder

        return OnnxSpeakerEncoder(source)
    return load_stored(source, {"speaker_encoder": SpeakerEncoder})
