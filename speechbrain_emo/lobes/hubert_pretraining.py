"""Parts that pretrain a small HuBERT or Whisper encoder on a CPU: a filterbank start, span masks, targets, heads.

Hsu et al. 2021, "HuBERT", https://arxiv.org/abs/2106.07447: predict cluster numbers of acoustic features at
masked frames (sec. II-A and II-B). Differences, all optional: frames that carry phoneme labels are classified
too, and log-mels, level and periodicity are regressed, so that prosody stays readable in a model of a million
parameters trained for minutes. Whisper's encoder (Radford et al. 2022) reads log-mels and needs no filterbank; it is
trained with the same heads instead of a decoder.

Axes: B audios, T encoder frames, M mel bands, G lags, D feature size, K classes.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechbrain_emo.lobes.information_bottleneck import LayerMix
from speechbrain_emo.lobes.speech_encoder import LogMelInput

SAMPLE_RATE = 16000
IGNORE = -100
LOG_FLOOR = 1e-9


def receptive_field(config):
    """Samples that one frame reads, and the hop between frames.

    Arguments
    ---------
    config : transformers.HubertConfig or transformers.WhisperConfig
        With ``conv_kernel`` and ``conv_stride``, or Whisper's.

    Returns
    -------
    tuple of int
        Receptive field and hop, in samples. Frame t is centred half a field behind t hops; Whisper's convolutions pad
        so that it is centred there without delay, which a field of one sample says.

    Example
    -------
    >>> receptive_field(HubertConfig())
    (400, 320)
    """
    if config.model_type == "whisper":
        return 1, 2 * LogMelInput.mel_hop
    size, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        size += (kernel - 1) * hop
        hop *= stride
    return size, hop


def num_frames(config, num_samples):
    """Frames of audios.

    Arguments
    ---------
    config : transformers.HubertConfig
    num_samples : torch.Tensor
        int64, shape (B,).

    Returns
    -------
    torch.Tensor
        int64, shape (B,).
    """
    if config.model_type == "whisper":
        hop = 2 * LogMelInput.mel_hop
        return torch.div(num_samples + hop - 1, hop, rounding_mode="floor")
    length = num_samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = torch.div(length - kernel, stride, rounding_mode="floor") + 1
    return length


def build_tiny_hubert(
    hidden_size=144,
    num_layers=4,
    num_heads=4,
    intermediate_size=432,
    low_bands=24,
    mel_bands=32,
    level_channels=8,
    second_channels=144,
    dropout=0.0,
    seed=0,
):
    """A ``transformers.HubertModel`` of two convolutions (40 ms windows, 50 Hz) whose first is a filterbank.

    Each band has four filters, cos, -cos, sin and -sin of one windowed tone: their GELUs sum to about the
    band's magnitude whatever the phase. The layer norm after the convolution would remove the level; channels
    without filter but with a constant bias keep it, since they stand beside the bands in that norm.

    Arguments
    ---------
    hidden_size : int
        D. Divisible by ``num_heads`` and by 16.
    num_layers : int
        Transformer blocks.
    num_heads : int
        Attention heads.
    intermediate_size : int
        Feed-forward size.
    low_bands : int
        Bands from 70 to 450 Hz, log-spaced with the full window: they resolve F0.
    mel_bands : int
        Mel-spaced bands from 200 to 7600 Hz, window 25 ms.
    level_channels : int
        Channels with a constant bias.
    second_channels : int
        Channels of the second convolution.
    dropout : float
        In the blocks.
    seed : int
        Of the random weights.

    Returns
    -------
    transformers.HubertModel
        In training mode, float32.

    Example
    -------
    >>> model = build_tiny_hubert(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
    >>> model(torch.randn(1, 16000)).last_hidden_state.shape
    torch.Size([1, 48, 32])
    """
    channels = 4 * (low_bands + mel_bands) + level_channels
    config = HubertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
        conv_dim=[channels, second_channels],
        conv_kernel=[640, 3],
        conv_stride=[160, 2],
        num_feat_extract_layers=2,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        feat_proj_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        # Above zero, or transformers makes no mask embedding.
        mask_time_prob=0.05,
        mask_feature_prob=0.0,
        vocab_size=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HubertModel(config)
    init_filterbank(model, low_bands, mel_bands)
    return model


def build_tiny_whisper(
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    intermediate_size=384,
    mel_bands=80,
    window_seconds=10,
    dropout=0.0,
    seed=0,
):
    """The encoder of a ``transformers.WhisperModel``, small; no decoder.

    Arguments
    ---------
    hidden_size : int
        D. Divisible by ``num_heads``.
    num_layers : int
        Transformer blocks.
    num_heads : int
        Attention heads.
    intermediate_size : int
        Feed-forward size.
    mel_bands : int
        M.
    window_seconds : int
        Longest window, in seconds: 30 in the published models.
    dropout : float
        In the blocks.
    seed : int
        Of the random weights.

    Returns
    -------
    transformers.models.whisper.modeling_whisper.WhisperEncoder
        In training mode, float32.

    Example
    -------
    >>> model = build_tiny_whisper(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, window_seconds=1)
    >>> model(torch.randn(1, 80, 100)).last_hidden_state.shape
    torch.Size([1, 50, 16])
    """
    config = WhisperConfig(
        d_model=hidden_size,
        encoder_layers=num_layers,
        encoder_attention_heads=num_heads,
        encoder_ffn_dim=intermediate_size,
        num_mel_bins=mel_bands,
        max_source_positions=50 * int(window_seconds),
        dropout=dropout,
        attention_dropout=dropout,
        # There is no decoder; its numbers are kept small for who builds one.
        decoder_layers=1,
        decoder_attention_heads=num_heads,
        decoder_ffn_dim=intermediate_size,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WhisperEncoder(config).train()


def encoder_states(encoder, waveforms, num_samples, mask):
    """All hidden states of a HuBERT or a Whisper encoder in training, some of the frames masked.

    Arguments
    ---------
    encoder : transformers.HubertModel or WhisperEncoder
    waveforms : torch.Tensor
        float32, shape (B, samples), zero at padding.
    num_samples : torch.Tensor
        int64, shape (B,).
    mask : torch.Tensor
        bool, shape (B, T): HuBERT's mask embedding replaces such frames, Whisper's log-mels are 0 there.

    Returns
    -------
    tuple of torch.Tensor
        (B, T, D) each, the input of the first block first.
    """
    if encoder.config.model_type != "whisper":
        samples = torch.arange(waveforms.shape[1], device=waveforms.device)[None] < num_samples[:, None]
        out = encoder(
            waveforms, attention_mask=samples.long(), mask_time_indices=mask, output_hidden_states=True
        )
        return (*out.hidden_states[:-1], out.last_hidden_state)
    family = LogMelInput(encoder.config, False, pad_windows=False)
    mel, frames, _ = family.windows(waveforms, num_samples.tolist())
    if len(frames) != len(waveforms):
        raise ValueError(
            f"an audio is longer than the encoder's window of {family.window_samples / SAMPLE_RATE:g} s: lower "
            "max_duration or raise window_seconds"
        )
    mel = mel.masked_fill(mask.repeat_interleave(2, 1)[:, None], 0.0)
    states = family.encode(encoder, mel, frames, range(len(encoder.layers) + 1))
    return states.unbind(2)


def _tone_filters(centres, window_lengths, kernel):
    time = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    rows = []
    for centre, length in zip(centres, window_lengths, strict=True):
        window = torch.where(
            time.abs() <= length / 2, 0.5 + 0.5 * torch.cos(2 * math.pi * time / length), 0.0
        )
        phase = 2 * math.pi * centre / SAMPLE_RATE * time
        for wave in (torch.cos(phase), torch.sin(phase)):
            row = window * wave
            # Without this, low cosine filters would pass the offset of a recording.
            row = row - window * row.sum() / window.sum()
            row = row / row.norm()
            rows += [row, -row]
    return torch.stack(rows).float()


def init_filterbank(model, low_bands, mel_bands):
    """Set the first convolution to windowed tones and constant level channels, in place.

    Arguments
    ---------
    model : transformers.HubertModel
        Its first convolution has 4 x (low_bands + mel_bands) channels or more; the rest become level channels.
    low_bands : int
        Log-spaced bands from 70 to 450 Hz.
    mel_bands : int
        Mel-spaced bands from 200 to 7600 Hz.

    Raises
    ------
    ValueError
        If the convolution has fewer channels than the bands need.
    """
    conv = model.feature_extractor.conv_layers[0].conv
    channels, _, kernel = conv.weight.shape
    used = 4 * (low_bands + mel_bands)
    if channels < used:
        raise ValueError(
            f"the first convolution has {channels} channels; {low_bands} + {mel_bands} bands need {used}"
        )
    low = [70.0 * (450.0 / 70.0) ** (i / max(low_bands - 1, 1)) for i in range(low_bands)]
    edges = [2595 * math.log10(1 + hertz / 700) for hertz in (200.0, 7600.0)]
    mel = [
        700 * (10 ** ((edges[0] + (edges[1] - edges[0]) * i / max(mel_bands - 1, 1)) / 2595) - 1)
        for i in range(mel_bands)
    ]
    windows = [kernel] * low_bands + [min(400, kernel)] * mel_bands
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:used, 0] = _tone_filters(low + mel, windows, kernel)
        levels = channels - used
        if levels:
            signs = torch.tensor([1.0 if i % 2 == 0 else -1.0 for i in range(levels)])
            sizes = 0.5 * 16.0 ** (torch.arange(levels) // 2 / max(levels // 2 - 1, 1))
            conv.bias[used:] = signs * sizes


@torch.no_grad()
def calibrate_filterbank(model, waveforms, num_levels):
    """Scale the filters of the first convolution so that each has a deviation of one on real speech, in place.

    Arguments
    ---------
    model : transformers.HubertModel
        After :func:`init_filterbank`.
    waveforms : list of torch.Tensor
        float32, shape (samples,) each.
    num_levels : int
        Trailing channels without filter, left as they are.
    """
    conv = model.feature_extractor.conv_layers[0].conv
    used = conv.weight.shape[0] - num_levels
    total, count = torch.zeros(used), 0
    for waveform in waveforms:
        out = F.conv1d(waveform[None, None], conv.weight[:used], stride=conv.stride[0])[0]
        total += out.square().sum(1)
        count += out.shape[1]
    conv.weight[:used] /= (total / max(count, 1)).sqrt().clamp_min(1e-6)[:, None, None]


def span_mask(valid_frames, probability, span, generator):
    """Choose spans of frames to mask.

    As in wav2vec 2.0 and HuBERT (sec. III-B): each frame starts a span with the given probability; spans
    overlap. At least one span falls into every audio that is long enough.

    Arguments
    ---------
    valid_frames : torch.Tensor
        int64, shape (B,).
    probability : float
        Probability that a frame starts a span.
    span : int
        Frames a span.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    torch.Tensor
        bool, shape (B, T), False at padding.

    Example
    -------
    >>> mask = span_mask(torch.tensor([50, 20]), 0.08, 10, torch.Generator().manual_seed(0))
    >>> mask.shape, bool(mask[1, 20:].any())
    (torch.Size([2, 50]), False)
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability is {probability}; it must lie in [0, 1]")
    if span < 1:
        raise ValueError(f"span is {span}; it must be at least 1 frame")
    lengths = valid_frames.cpu()
    size = (lengths.shape[0], int(lengths.max()))
    starts = torch.rand(size, generator=generator) < probability
    if probability > 0:
        forced = (torch.rand(size[0], generator=generator) * (lengths - span + 1).clamp_min(1)).long()
        starts[torch.arange(size[0]), forced] = True
    mask = F.max_pool1d(F.pad(starts.float()[:, None], (span - 1, 0)), span, stride=1)[:, 0] > 0
    mask &= torch.arange(size[1])[None] < lengths[:, None]
    return mask.to(valid_frames.device)


class FrameTargets(nn.Module):
    """Acoustic features at an encoder's frames: log-mel bands, log-energy, periodicity by lag.

    The periodicity is the normalised autocorrelation at log-spaced lags (Boersma 1993: divided by the
    window's own), which shows F0 without deciding on it, and with it the position of its peak: log2 of F0 over
    150 Hz, zero where no lag reaches ``voicing``.

    Arguments
    ---------
    config : transformers.HubertConfig or transformers.WhisperConfig
        Its convolutions say where the frames lie.
    mel_bands : int
        M.
    lags : int
        G, from 1 / ``f0_max`` to 1 / ``f0_min``.
    f0_min : float
        In Hz.
    f0_max : float
        In Hz.
    voicing : float
        Least periodicity of a voiced frame.

    Example
    -------
    >>> targets = FrameTargets(HubertConfig())
    >>> targets(torch.sin(torch.arange(16000) * 2 * torch.pi * 200 / 16000)[None]).f0.mean().round(decimals=1)
    tensor(0.4000)
    """

    def __init__(self, config, mel_bands=40, lags=48, f0_min=60.0, f0_max=450.0, voicing=0.5):
        super().__init__()
        self.field, self.hop = receptive_field(config)
        self.window_size, self.fft_size = 640, 2048
        self.voicing, self.lags = voicing, lags
        window = torch.hann_window(self.window_size, periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", _mel_filters(mel_bands, self.fft_size), persistent=False)
        own = torch.fft.irfft(torch.fft.rfft(window, self.fft_size).abs().square())
        self.register_buffer("window_correlation", own / own[0], persistent=False)
        frequencies = f0_max * (f0_min / f0_max) ** (torch.arange(lags) / (lags - 1))
        self.register_buffer("lag_positions", SAMPLE_RATE / frequencies, persistent=False)
        self.register_buffer("lag_log_f0", torch.log2(frequencies / 150.0), persistent=False)

    @property
    def size(self):
        """Features a frame: M + 1 + G."""
        return self.filters.shape[1] + 1 + self.lags

    def forward(self, waveforms):
        """Features of a batch.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32, shape (B, samples), at 16 kHz.

        Returns
        -------
        FrameFeatures
        """
        count = (waveforms.shape[1] - self.field) // self.hop + 1
        centre = self.field // 2 - self.window_size // 2
        if centre < 0:
            waveforms = F.pad(waveforms, (-centre, -centre))
            centre = 0
        frames = waveforms[:, centre:].unfold(1, self.window_size, self.hop)[:, :count]
        frames = (frames - frames.mean(2, keepdim=True)) * self.window
        power = torch.fft.rfft(frames, self.fft_size).abs().square()
        log_mel = torch.log(power @ self.filters + LOG_FLOOR)
        energy = torch.log(frames.square().mean(2) + LOG_FLOOR)
        correlation = torch.fft.irfft(power)[..., : self.fft_size // 2]
        correlation = correlation / (correlation[..., :1] + LOG_FLOOR)
        # Linear interpolation between whole lags, then the window's own decay is divided out.
        below = self.lag_positions.floor().long()
        part = self.lag_positions - below
        at_lags = correlation[..., below] * (1 - part) + correlation[..., below + 1] * part
        own = self.window_correlation[below] * (1 - part) + self.window_correlation[below + 1] * part
        periodicity = (at_lags / own.clamp_min(0.05)).clamp(-1, 1)
        # Halves of F0 repeat the peak: a small bonus for short lags chooses the first of equal peaks.
        bonus = torch.linspace(0.08, 0.0, self.lags, device=waveforms.device)
        best = (periodicity + bonus).argmax(-1)
        strength = periodicity.gather(-1, best[..., None])[..., 0]
        audible = energy > energy.amax(1, keepdim=True) - 7.0
        voiced = (strength > self.voicing) & audible
        f0 = torch.where(voiced, self.lag_log_f0[best], 0.0)
        return FrameFeatures(log_mel, energy, periodicity, f0, voiced)


def _mel_filters(bands, fft_size, low=60.0, high=7800.0):
    edges = [2595 * math.log10(1 + hertz / 700) for hertz in (low, high)]
    points = torch.linspace(edges[0], edges[1], bands + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (points / 2595) - 1)
    bins = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / fft_size
    rise = (bins[:, None] - hertz[None, :-2]) / (hertz[1:-1] - hertz[:-2])
    fall = (hertz[None, 2:] - bins[:, None]) / (hertz[2:] - hertz[1:-1])
    filters = torch.minimum(rise, fall).clamp_min(0)
    return (filters / filters.sum(0).clamp_min(1e-6)).float()


@dataclass
class FrameFeatures:
    """Acoustic features of a batch of audios.

    ``log_mel`` (B, T, M), ``energy`` (B, T) natural logarithms of power; ``periodicity`` (B, T, G) in [-1, 1];
    ``f0`` (B, T) log2 of F0 over 150 Hz, 0 where not ``voiced`` (B, T).
    """

    log_mel: torch.Tensor
    energy: torch.Tensor
    periodicity: torch.Tensor
    f0: torch.Tensor
    voiced: torch.Tensor

    def matrix(self):
        """All continuous features side by side, (B, T, M + 1 + G)."""
        return torch.cat((self.log_mel, self.energy[..., None], self.periodicity), -1)


def cepstra(log_mel, order=13):
    """Cosine transform of log-mels: the features whose clusters are HuBERT's first targets (sec. III-B).

    Arguments
    ---------
    log_mel : torch.Tensor
        float, shape (..., M).
    order : int
        Coefficients, the zeroth included.

    Returns
    -------
    torch.Tensor
        float, shape (..., order).

    Example
    -------
    >>> cepstra(torch.ones(2, 40), 3)[0].abs().round(decimals=3)
    tensor([6.3250, 0.0000, 0.0000])
    """
    bands = log_mel.shape[-1]
    angles = math.pi / bands * (torch.arange(bands) + 0.5)[:, None] * torch.arange(order)
    basis = torch.cos(angles) * math.sqrt(2.0 / bands)
    basis[:, 0] /= math.sqrt(2.0)
    return log_mel @ basis.to(log_mel)


class AcousticUnits(nn.Module):
    """Cluster numbers of frames: k-means on standardised cepstra and their slopes.

    Arguments
    ---------
    centres : torch.Tensor
        float, shape (K, 2 x order).
    mean : torch.Tensor
        float, shape (2 x order,).
    deviation : torch.Tensor
        float, shape (2 x order,).

    Example
    -------
    >>> units = AcousticUnits(torch.randn(5, 26), torch.zeros(26), torch.ones(26))
    >>> units(torch.randn(2, 7, 40)).shape
    torch.Size([2, 7])
    """

    def __init__(self, centres, mean, deviation):
        super().__init__()
        self.register_buffer("centres", centres)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    @staticmethod
    def features(log_mel, order=13):
        """Cepstra and their central slopes: (B, T, M) -> (B, T, 2 x order). The level is left out."""
        values = cepstra(log_mel, order)
        values = torch.cat((values[..., :1] - values[..., :1].mean(1, keepdim=True), values[..., 1:]), -1)
        padded = torch.cat((values[:, :1], values, values[:, -1:]), 1)
        return torch.cat((values, (padded[:, 2:] - padded[:, :-2]) / 2), -1)

    @classmethod
    def fit(cls, log_mels, num_units, seed=0):
        """Cluster the frames of audios.

        Arguments
        ---------
        log_mels : list of torch.Tensor
            float, shape (T, M) each.
        num_units : int
            K.
        seed : int

        Returns
        -------
        AcousticUnits
        """
        from sklearn.cluster import MiniBatchKMeans

        frames = torch.cat([cls.features(log_mel[None])[0] for log_mel in log_mels])
        mean, deviation = frames.mean(0), frames.std(0).clamp_min(1e-3)
        standard = ((frames - mean) / deviation).numpy()
        if standard.shape[0] < num_units:
            raise ValueError(
                f"num_units is {num_units}; there are only {standard.shape[0]} frames to cluster"
            )
        model = MiniBatchKMeans(num_units, random_state=seed, n_init=1, max_iter=20, batch_size=4096)
        centres = torch.from_numpy(model.fit(standard).cluster_centers_).float()
        return cls(centres, mean, deviation)

    def forward(self, log_mel):
        """Cluster numbers, (B, T, M) -> int64 (B, T)."""
        standard = (self.features(log_mel) - self.mean) / self.deviation
        return torch.cdist(standard, self.centres[None].expand(standard.shape[0], -1, -1)).argmin(-1)


def phone_frames(phones, labels, count, config, speed=1.0):
    """Phoneme of every frame, and the logarithm of that phoneme's duration.

    Arguments
    ---------
    phones : list of dict
        ``phone``, ``start`` and ``end`` in seconds.
    labels : dict
        Phone -> class. Others get no label.
    count : int
        Frames T.
    config : transformers.HubertConfig
    speed : float
        Factor by which the audio was sped up.

    Returns
    -------
    tuple of torch.Tensor
        int64 (T,), -100 without label; float (T,) natural logarithm of seconds over 0.08 s, NaN without.

    Example
    -------
    >>> rows = [{"phone": "a", "start": 0.0, "end": 0.08}, {"phone": "b", "start": 0.08, "end": 0.2}]
    >>> classes, _ = phone_frames(rows, {"a": 0, "b": 1}, 8, HubertConfig())
    >>> classes.tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    field, hop = receptive_field(config)
    centres = (torch.arange(count) * hop + field / 2) / SAMPLE_RATE * speed
    classes = torch.full((count,), IGNORE, dtype=torch.long)
    durations = torch.full((count,), float("nan"))
    for row in phones:
        inside = (centres >= row["start"]) & (centres < row["end"])
        if row["phone"] in labels:
            classes[inside] = labels[row["phone"]]
        if row["phone"] not in ("_", ""):
            durations[inside] = math.log((row["end"] - row["start"]) / speed / 0.08)
    return classes, durations


@dataclass
class PretrainingOutput:
    """Predictions of :class:`EncoderPretrainer`.

    ``units`` (B, T, K) and ``phones`` (B, T, K) are logits; ``acoustics`` (B, T, F) regressed features;
    ``durations`` (B, T) as :func:`phone_frames` gives them; each None without its head.
    ``emotion`` (B, K) logits, or None; ``mask`` bool (B, T); ``valid`` bool (B, T);
    ``hidden_states`` (B, T, D) each; ``frame_emotions`` (B, T, K) logits or None.
    """

    units: torch.Tensor
    phones: torch.Tensor
    acoustics: torch.Tensor
    durations: torch.Tensor
    emotion: torch.Tensor
    mask: torch.Tensor
    valid: torch.Tensor
    hidden_states: tuple = field(default_factory=tuple)
    frame_emotions: torch.Tensor = None


class EncoderPretrainer(nn.Module):
    """A HuBERT or a Whisper encoder with the heads that only pretraining needs.

    Arguments
    ---------
    encoder : transformers.HubertModel or WhisperEncoder
    num_units : int
        Classes of the masked prediction; 0 for none.
    num_phones : int
        Classes of the frame classification; 0 for none.
    acoustic_size : int
        Regressed features; 0 for none.
    durations : bool
        Whether the phoneme's duration is regressed, from the last hidden state: the speaking rate at a frame.
    num_emotions : int
        Classes of the utterance; 0 for none.
    prosody_layer : int
        Hidden state that the acoustics and the emotion are read from (0 is the first block's input): reading
        them from a middle layer leaves the last to phonemes.
    dropout : float
        Before the emotion's classifier.
    mix_layers : bool
        True: the emotion is read from a learned sum of all hidden states, each normalised, as a front end with
        weighted layers reads them; False: from ``prosody_layer``.
    frame_emotions : bool
        Whether each frame of the last hidden state names the utterance's emotion too, so that what reads frames
        finds it there.

    Example
    -------
    >>> hubert = build_tiny_hubert(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    >>> model = EncoderPretrainer(hubert, num_units=10, num_phones=5, acoustic_size=7, prosody_layer=1)
    >>> model(torch.randn(2, 16000), torch.tensor([16000, 8000])).units.shape
    torch.Size([2, 48, 10])
    """

    def __init__(
        self,
        encoder,
        num_units,
        num_phones,
        acoustic_size,
        durations=False,
        num_emotions=0,
        prosody_layer=2,
        dropout=0.1,
        mix_layers=False,
        frame_emotions=False,
    ):
        super().__init__()
        layers = encoder.config.num_hidden_layers
        if not 0 <= prosody_layer <= layers:
            raise ValueError(f"prosody_layer is {prosody_layer}; it must lie in 0 to {layers}")
        size = encoder.config.hidden_size
        self.encoder = encoder
        self.prosody_layer = prosody_layer
        self.unit_head = nn.Linear(size, num_units) if num_units else None
        self.phone_head = nn.Linear(size, num_phones) if num_phones else None
        self.duration_head = nn.Linear(size, 1) if durations else None
        self.acoustic_norm = nn.LayerNorm(size) if acoustic_size or num_emotions else None
        self.acoustic_head = nn.Linear(size, acoustic_size) if acoustic_size else None
        self.emotion_head = EmotionHead(size, num_emotions, dropout) if num_emotions else None
        self.emotion_mix = (
            LayerMix(layers + 1, normalize_layers=True) if num_emotions and mix_layers else None
        )
        self.frame_head = None
        if num_emotions and frame_emotions:
            self.frame_head = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, num_emotions))

    def forward(self, waveforms, num_samples, mask=None):
        """Predict.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32, shape (B, samples), zero at padding.
        num_samples : torch.Tensor
            int64, shape (B,).
        mask : torch.Tensor, optional
            bool, shape (B, T): frames replaced by the model's mask embedding.

        Returns
        -------
        PretrainingOutput
        """
        frames = num_frames(self.encoder.config, num_samples)
        valid = torch.arange(int(frames.max()), device=waveforms.device)[None] < frames[:, None]
        if mask is None:
            mask = torch.zeros_like(valid)
        states = encoder_states(self.encoder, waveforms, num_samples, mask)
        last = states[-1]
        prosody = None if self.acoustic_norm is None else self.acoustic_norm(states[self.prosody_layer])
        voice = prosody if self.emotion_mix is None else self.emotion_mix(torch.stack(states, 2))
        return PretrainingOutput(
            None if self.unit_head is None else self.unit_head(last),
            None if self.phone_head is None else self.phone_head(last),
            None if self.acoustic_head is None else self.acoustic_head(prosody),
            None if self.duration_head is None else self.duration_head(last)[..., 0],
            None if self.emotion_head is None else self.emotion_head(voice, valid),
            mask,
            valid,
            states,
            None if self.frame_head is None else self.frame_head(last),
        )


class EmotionHead(nn.Module):
    """Classify an utterance from mean and deviation of its frames, weighted by attention.

    Attentive statistics pooling, Okabe et al. 2018, https://arxiv.org/abs/1803.10963, eq. (3)-(6).

    Arguments
    ---------
    size : int
        D.
    num_classes : int
        K.
    dropout : float

    Example
    -------
    >>> EmotionHead(8, 4)(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 4])
    """

    def __init__(self, size, num_classes, dropout=0.1):
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(size, size // 2), nn.Tanh(), nn.Linear(size // 2, 1))
        self.classifier = nn.Sequential(
            nn.LayerNorm(2 * size), nn.Dropout(dropout), nn.Linear(2 * size, num_classes)
        )

    def forward(self, frames, valid):
        """Logits (B, K) of frames (B, T, D) with a mask of valid ones (B, T)."""
        scores = self.attention(frames)[..., 0].masked_fill(~valid, -torch.inf)
        weights = scores.softmax(1)[..., None]
        mean = (weights * frames).sum(1)
        variance = (weights * (frames - mean[:, None]).square()).sum(1)
        return self.classifier(torch.cat((mean, (variance + 1e-5).sqrt()), -1))


def save_encoder(encoder, folder):
    """Write an encoder as a folder that ``transformers`` and the toolkit's speech encoder load.

    The level of the waveform carries the volume, so that the stored preprocessor does not normalise.

    Arguments
    ---------
    encoder : transformers.HubertModel or WhisperEncoder
    folder : str or pathlib.Path
    """
    encoder.save_pretrained(folder)
    if encoder.config.model_type == "whisper":
        seconds = encoder.config.max_source_positions // 50
        extractor = WhisperFeatureExtractor(
            feature_size=encoder.config.num_mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=seconds
        )
    else:
        extractor = Wav2Vec2FeatureExtractor(
            feature_size=1,
            sampling_rate=SAMPLE_RATE,
            padding_value=0.0,
            do_normalize=False,
            return_attention_mask=True,
        )
    extractor.save_pretrained(folder)
