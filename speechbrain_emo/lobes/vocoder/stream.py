"""The vocoder chunk by chunk: overlaps that are faded into each other."""

import torch


class VocoderStream:
    """Waveform while mel frames arrive, with the overlap of the published pipeline.

    The vocoder sees frames to both sides, so each chunk begins with the last ``overlap`` frames of the one before,
    uses the source signal that these had, and is faded in over them (half of a Hamming window). The last
    ``overlap`` frames of a chunk are held back until the next. It therefore equals the vocoder on everything at
    once up to what the convolutions see beyond a chunk's ends, not exactly.

    Arguments
    ---------
    vocoder : speechbrain_emo.lobes.vocoder.HiFT
        In eval mode.
    overlap : int
        Mel frames.
    generator : torch.Generator, optional
        Of the source's noise.

    Raises
    ------
    ValueError
        If the vocoder is in training mode or the overlap below 1.

    Example
    -------
    >>> from speechbrain_emo.lobes.vocoder.generator import HiFT
    >>> stream = VocoderStream(HiFT(num_mels=8, channels=16, f0_channels=8).eval(), overlap=2)
    >>> mel = torch.randn(1, 8, 10)
    >>> stream.push(mel[:, :, :6]).shape, stream.finish(mel[:, :, 6:]).shape
    (torch.Size([1, 1920]), torch.Size([1, 2880]))
    """

    def __init__(self, vocoder, overlap=8, generator=None):
        if vocoder.training:
            raise ValueError("the vocoder is in training mode: call eval() before streaming")
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}; allowed: 1 and above")
        self.vocoder, self.overlap, self.generator = vocoder, overlap, generator
        self.samples = overlap * vocoder.frame_samples
        self.window = torch.hamming_window(2 * self.samples, periodic=False, dtype=torch.float64)
        self.mel = self.source = self.wave = None
        self.finished = False

    def push(self, mel):
        """Take frames and give the samples that are certain.

        Arguments
        ---------
        mel : torch.Tensor
            float (1, F, T). Frames are gathered until there are more than the overlap.

        Returns
        -------
        torch.Tensor
            float (1, samples); may be none.
        """
        if self.finished:
            raise ValueError("the stream has ended: begin another one")
        mel = mel if self.mel is None else torch.cat([self.mel, mel], dim=2)
        if mel.shape[2] <= self.overlap:
            self.mel = mel
            return mel.new_zeros(1, 0)
        wave = self._synthesise(mel)
        self.mel = mel[:, :, -self.overlap :]
        self.wave = wave[:, -self.samples :]
        return wave[:, : -self.samples]

    def finish(self, mel=None):
        """Give the rest, with the last frames where there are any.

        Arguments
        ---------
        mel : torch.Tensor, optional
            float (1, F, T).

        Returns
        -------
        torch.Tensor
            float (1, samples).
        """
        if self.finished:
            raise ValueError("the stream has ended: begin another one")
        self.finished = True
        parts = [part for part in (self.mel, mel) if part is not None and part.shape[2]]
        if not parts:
            return self.window.new_zeros(1, 0, dtype=torch.float32)
        return self._synthesise(torch.cat(parts, dim=2))

    def _synthesise(self, mel):
        before = self.source if self.wave is not None else None
        wave, source = self.vocoder.synthesise(mel, source_before=before, generator=self.generator)
        if self.wave is not None:
            window = self.window.to(wave.device)
            faded = (
                wave[:, : self.samples].double() * window[: self.samples]
                + self.wave.double() * window[self.samples :]
            )
            wave = torch.cat([faded.to(wave), wave[:, self.samples :]], dim=1)
        self.source = source[:, :, -self.samples :]
        return wave
