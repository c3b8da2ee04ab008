"""A small speech tokenizer of 25 Hz: a quantiser inside an encoder that learns to recognise speech.

CosyVoice 2 (Du et al. 2024, https://arxiv.org/abs/2412.10117, section 2.2) puts finite scalar quantisation behind the
first blocks of a speech recogniser; tokens are what the later blocks need to write the words. Here the recogniser is
small, and it may regress log-mels, level and periodicity beside the words (``acoustic_size``): tokens that only have to
carry words lose the emotion, which then has to come from the acoustic model alone. Published files are read by
``onnx_front_end.py`` instead. Axis letters: B batch, N samples, F mel frames (100 Hz), T tokens (25 Hz), D, Q.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from speechbrain_emo.lobes.fsq import FSQ
from speechbrain_emo.lobes.stored import fingerprint, load_stored, save_stored

SAMPLE_RATE = 16000
TOKEN_HOP = 640
MEL_HOP, FFT_SIZE = 160, 400


class WhisperLogMel(nn.Module):
    """Whisper's log-mels of one waveform of any length (Radford et al. 2022, https://arxiv.org/abs/2212.04356, 2.2).

    Arguments
    ---------
    num_mels : int
        M: 80, or 128 for the published tokenizer.

    Example
    -------
    >>> WhisperLogMel(80)(torch.zeros(1600)).shape
    torch.Size([80, 10])
    """

    def __init__(self, num_mels=128):
        super().__init__()
        with torch.device("cpu"):
            filters = torch.from_numpy(WhisperFeatureExtractor(feature_size=num_mels).mel_filters).float()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(FFT_SIZE), persistent=False)

    def forward(self, waveform):
        """Log-mels.

        Arguments
        ---------
        waveform : torch.Tensor
            float32 (N,) at 16 kHz, at least 201 samples.

        Returns
        -------
        torch.Tensor
            float32 (M, N // 160); 80 dB below its loudest value is the floor.
        """
        spectrum = torch.stft(waveform, FFT_SIZE, MEL_HOP, window=self.window, return_complex=True)
        mel = self.filters.T @ spectrum[..., :-1].abs().square()
        log_mel = mel.clamp(min=1e-10).log10()
        return (torch.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0


class _Positions(nn.Module):
    """Where a frame stands, told by its neighbours: a depth-wise convolution, as in wav2vec 2.0."""

    def __init__(self, size, kernel):
        super().__init__()
        self.convolution = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=size)

    def forward(self, x):
        return x + F.gelu(self.convolution(x.transpose(1, 2))).transpose(1, 2)


def _blocks(size, heads, ffn, count, dropout):
    layer = nn.TransformerEncoderLayer(
        size, heads, ffn, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, count, norm=nn.LayerNorm(size), enable_nested_tensor=False)


class TokenizerOutput:
    """What :class:`SpeechTokenizer` gives in training.

    Arguments
    ---------
    tokens : torch.Tensor
        int64 (B, T), 0 on padding.
    lengths : torch.Tensor
        int64 (B,).
    logits : torch.Tensor
        (B, T, K): phonemes of frames, or characters and a blank (0).
    acoustics : torch.Tensor or None
        (B, T, A).
    """

    def __init__(self, tokens, lengths, logits, acoustics):
        self.tokens, self.lengths, self.logits, self.acoustics = tokens, lengths, logits, acoustics


class SpeechTokenizer(nn.Module):
    """Waveforms to tokens, and in training to the labels that teach them.

    Arguments
    ---------
    num_classes : int
        K of the recogniser: phonemes, or characters and a blank.
    size : int
        D of the blocks.
    num_heads : int
        Of their attention.
    ffn_size : int
        Of their feed-forward.
    num_encoder_blocks, num_decoder_blocks : int
        Before and behind the quantiser.
    levels : sequence of int
        Of the quantiser. Published: eight times 3.
    num_mels : int
        Bands of the log-mels.
    acoustic_size : int
        A: what is regressed beside the words; 0 for none.
    position_kernel : int
        Frames that a position is told from, odd.
    dropout : float
        Of the blocks.

    Raises
    ------
    ValueError
        If a size does not fit.

    Example
    -------
    >>> tokenizer = SpeechTokenizer(num_classes=5, size=16, num_heads=2, ffn_size=32, levels=[3, 3]).eval()
    >>> tokens, lengths = tokenizer.encode(torch.randn(2, 16000), torch.tensor([16000, 8001]))
    >>> tokens.shape, lengths.tolist(), tokenizer.vocab_size
    (torch.Size([2, 25]), [25, 13], 9)
    """

    sample_rate, token_rate = SAMPLE_RATE, SAMPLE_RATE / TOKEN_HOP

    def __init__(
        self,
        num_classes,
        size=128,
        num_heads=4,
        ffn_size=384,
        num_encoder_blocks=2,
        num_decoder_blocks=1,
        levels=(3,) * 8,
        num_mels=80,
        acoustic_size=0,
        position_kernel=15,
        dropout=0.0,
    ):
        super().__init__()
        if size % num_heads or position_kernel % 2 == 0 or min(num_classes, num_encoder_blocks) < 1:
            raise ValueError(
                f"size {size} must be a multiple of num_heads {num_heads}, position_kernel {position_kernel} odd, "
                f"num_classes {num_classes} and num_encoder_blocks {num_encoder_blocks} at least 1"
            )
        self.arguments = {
            "num_classes": int(num_classes),
            "size": int(size),
            "num_heads": int(num_heads),
            "ffn_size": int(ffn_size),
            "num_encoder_blocks": int(num_encoder_blocks),
            "num_decoder_blocks": int(num_decoder_blocks),
            "levels": [int(level) for level in levels],
            "num_mels": int(num_mels),
            "acoustic_size": int(acoustic_size),
            "position_kernel": int(position_kernel),
            "dropout": float(dropout),
        }
        self.log_mel = WhisperLogMel(num_mels)
        # Kernel 4, stride 2, twice: token t is centred on samples [640 t, 640 (t + 1)).
        self.convolution1 = nn.Conv1d(num_mels, size, 4, 2, 1)
        self.convolution2 = nn.Conv1d(size, size, 4, 2, 1)
        self.positions = _Positions(size, position_kernel)
        self.encoder = _blocks(size, num_heads, ffn_size, num_encoder_blocks, dropout)
        self.fsq = FSQ(levels)
        self.down = nn.Linear(size, len(self.fsq.levels))
        self.up = nn.Linear(len(self.fsq.levels), size)
        self.positions_behind = _Positions(size, position_kernel)
        self.decoder = (
            _blocks(size, num_heads, ffn_size, num_decoder_blocks, dropout) if num_decoder_blocks else None
        )
        self.classifier = nn.Linear(size, num_classes)
        self.regression = nn.Linear(size, acoustic_size) if acoustic_size else None

    @property
    def vocab_size(self):
        """Number of tokens."""
        return self.fsq.vocab_size

    @property
    def levels(self):
        """Of the quantiser, as :class:`FSQ` takes them."""
        return self.fsq.levels

    @property
    def fingerprint(self):
        """Hash of the weights."""
        return fingerprint(self)

    @staticmethod
    def num_tokens(num_samples):
        """Tokens of a number of samples (at least 1): one for every 640 that have begun."""
        return -(-num_samples // TOKEN_HOP)

    def features(self, waveforms, num_samples):
        """Log-mels (B, M, 4 T) and tokens (B,) of each waveform by itself; zeros behind it."""
        mels, counts = [], []
        for waveform, length in zip(waveforms, num_samples.tolist()):
            if length < 1:
                raise ValueError(f"a waveform has {length} samples: give at least one")
            count = self.num_tokens(length)
            # To whole tokens; the transform mirrors what it has, and nothing of its neighbours in the batch.
            mels.append(self.log_mel(F.pad(waveform[:length].float(), (0, count * TOKEN_HOP - length))).T)
            counts.append(count)
        padded = nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2)
        return padded, torch.tensor(counts, device=waveforms.device)

    def quantise(self, mels, lengths):
        """Quantised states of log-mels: FSQOutput over (B, T), and the mask of valid tokens bool (B, T)."""
        valid = torch.arange(mels.shape[2] // 4, device=mels.device)[None] < lengths[:, None]
        x = F.gelu(self.convolution1(mels))
        # The second convolution must see zeros behind a waveform, as it does alone.
        x = x * valid.repeat_interleave(2, 1)[:, None]
        x = F.gelu(self.convolution2(x)).transpose(1, 2) * valid[..., None]
        x = self.positions(x)
        x = self.encoder(x, src_key_padding_mask=~valid)
        return self.fsq(self.down(x)), valid

    def forward(self, waveforms, num_samples):
        """Tokens, and what the recogniser reads in them.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32 (B, N) at 16 kHz, any value on padding.
        num_samples : torch.Tensor
            int64 (B,).

        Returns
        -------
        TokenizerOutput
        """
        mels, lengths = self.features(waveforms, num_samples)
        quantised, valid = self.quantise(mels, lengths)
        logits, acoustics = self._behind(quantised.values, valid)
        return TokenizerOutput(quantised.tokens * valid, lengths, logits, acoustics)

    def _behind(self, values, valid):
        """What the blocks behind the quantiser make of its values (B, T, Q)."""
        x = self.positions_behind(self.up(values) * valid[..., None])
        if self.decoder is not None:
            x = self.decoder(x, src_key_padding_mask=~valid)
        return self.classifier(x), None if self.regression is None else self.regression(x)

    @torch.no_grad()
    def read(self, tokens, lengths):
        """What the recogniser hears in tokens, wherever they come from.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (B, T), any token on padding.
        lengths : torch.Tensor
            int64 (B,).

        Returns
        -------
        TokenizerOutput
            ``logits`` and ``acoustics`` as :meth:`forward` gives them for audio with these tokens.
        """
        valid = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
        logits, acoustics = self._behind(self.fsq.from_tokens(tokens), valid)
        return TokenizerOutput(tokens * valid, lengths, logits, acoustics)

    @torch.no_grad()
    def encode(self, waveforms, num_samples):
        """Tokens of a batch; those of a waveform do not depend on the others.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32 (B, N) at 16 kHz.
        num_samples : torch.Tensor
            int64 (B,).

        Returns
        -------
        tuple of torch.Tensor
            Tokens int64 (B, T), 0 on padding; their numbers int64 (B,).
        """
        mels, lengths = self.features(waveforms, num_samples)
        quantised, valid = self.quantise(mels, lengths)
        return quantised.tokens * valid, lengths

    def save(self, folder):
        """Write the folder that :func:`load_speech_tokenizer` reads."""
        save_stored(self, folder, "speech_tokenizer", self.arguments)


def load_speech_tokenizer(source):
    """A speech tokenizer: the published ONNX file, or a folder trained here.

    Arguments
    ---------
    source : str or pathlib.Path
        ``speech_tokenizer_v2.onnx``, or the folder of ``hparams/demo_speech_tokenizer.yaml``.

    Returns
    -------
    OnnxSpeechTokenizer or SpeechTokenizer
        With ``encode(waveforms, num_samples)``, ``vocab_size``, ``sample_rate``, ``token_rate`` and ``fingerprint``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if Path(source).suffix == ".onnx":
        from speechbrain_emo.lobes.onnx_front_end import OnnxSpeechTokenizer

        return OnnxSpeechTokenizer(source)
    return load_stored(source, {"speech_tokenizer": SpeechTokenizer})
