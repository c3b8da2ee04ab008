"""Frozen speech encoders: hidden states of HuBERT, wav2vec 2.0, WavLM or Whisper, on valid frames.

Axes: N audios, T encoder frames, L encoder layers, D feature size, W windows, M mel bands.

An encoder family is a small class that knows how its model is built and loaded, how waveforms enter it and how
many frames come out: ``WaveformInput`` for convolutions over samples, ``LogMelInput`` for Whisper's log-mel
windows. A family with another input is one more class in ``FAMILIES``.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import cached_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAMPLE_RATE = 16000
# Keys of a saved config that change without a change of the model.
VOLATILE_CONFIG_KEYS = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "_commit_hash",
)
# A later mismatch of these shows only as a shape error deep in the front end.
CHECKED_CONFIG_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "d_model",
    "encoder_layers",
    "num_mel_bins",
    "max_source_positions",
)


@dataclass
class EncoderOutput:
    """Hidden states of a batch.

    Arguments
    ---------
    features : torch.Tensor
        Hidden states in the encoder's dtype, shape (N, T, L, D), 0 at padding.
    num_frames : torch.Tensor
        Valid frames of each audio, int64, shape (N,).
    """

    features: torch.Tensor
    num_frames: torch.Tensor


class WaveformInput:
    """How waveforms enter models with a convolutional feature extractor (HuBERT, wav2vec 2.0, WavLM).

    The convolutions have no padding, so that frame t reads samples [t * hop, t * hop + receptive_field) only,
    and a frame that fits into the valid samples never sees padding. Audio shorter than the receptive field
    (400 samples for the published sizes) is extended with zeros to it and gives one frame.

    Arguments
    ---------
    config : transformers.PretrainedConfig
        With ``conv_kernel``, ``conv_stride`` and ``feat_extract_norm``.
    normalize : bool
        Whether each audio is brought to zero mean and unit variance over its valid samples.

    Example
    -------
    >>> family = WaveformInput(AutoConfig.for_model("hubert"), normalize=True)
    >>> family.hop, family.receptive_field, family.num_frames(16000), family.num_frames(10)
    (320, 400, 49, 1)
    """

    default_normalize = True

    def __init__(self, config, normalize, pad_windows=True):
        if not pad_windows:
            raise ValueError(
                f"SpeechEncoder: pad_windows is False, but a {config.model_type!r} model reads samples without"
                " windows; it is for Whisper"
            )
        self.kernels = tuple(config.conv_kernel)
        self.strides = tuple(config.conv_stride)
        self.normalize = normalize
        # The group norm of the first convolution averages over time, padding included: batches would change
        # results.
        self.one_by_one = config.feat_extract_norm == "group"
        self.hop = math.prod(self.strides)
        field = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            field = (field - 1) * stride + kernel
        self.receptive_field = field

    @staticmethod
    def build(config, dtype):
        """The model of a config with random weights."""
        return AutoModel.from_config(config, dtype=dtype)

    @staticmethod
    def load(source, dtype, options):
        """Model and loading report of a source."""
        return AutoModel.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)

    @property
    def settings(self):
        """What the features depend on beside weights and normalisation, for the fingerprint."""
        return ()

    def num_frames(self, num_samples):
        """Frames that a number of samples (at least 1) gives; int -> int."""
        length = max(int(num_samples), self.receptive_field)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return length

    def model_inputs(self, waveforms, num_samples, dtype):
        """Keyword arguments of the model for a batch.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32, shape (N, samples).
        num_samples : torch.Tensor
            int64 on the same device, shape (N,).
        dtype : torch.dtype
            Type of the model.

        Returns
        -------
        dict
            ``input_values`` (N, samples) and ``attention_mask`` int64 (N, samples).
        """
        positions = torch.arange(waveforms.shape[1], device=waveforms.device)[None, :]
        valid = positions < num_samples[:, None]
        waveforms = torch.where(valid, waveforms.float(), 0.0)
        if self.normalize:
            # transformers' Wav2Vec2FeatureExtractor: (x - mean) / sqrt(var + 1e-7), population variance.
            count = num_samples[:, None].to(waveforms.dtype)
            mean = waveforms.sum(dim=1, keepdim=True) / count
            centred = torch.where(valid, waveforms - mean, 0.0)
            variance = centred.square().sum(dim=1, keepdim=True) / count
            waveforms = centred / torch.sqrt(variance + 1e-7)
        missing = self.receptive_field - waveforms.shape[1]
        if missing > 0:
            waveforms = nn.functional.pad(waveforms, (0, missing))
            positions = torch.arange(waveforms.shape[1], device=waveforms.device)[None, :]
        mask = positions < num_samples.clamp(min=self.receptive_field)[:, None]
        inputs = {"input_values": waveforms.to(dtype)}
        if not self.one_by_one:
            inputs["attention_mask"] = mask.long()
        return inputs

    def hidden_states(self, model, waveforms, num_samples, layers):
        """Chosen hidden states of a batch.

        Arguments
        ---------
        model : transformers.PreTrainedModel
            Of this family.
        waveforms : torch.Tensor
            float32, shape (N, samples).
        num_samples : torch.Tensor
            int64, shape (N,).
        layers : Sequence of int
            Which hidden states, 0 is the input of the first block.

        Returns
        -------
        torch.Tensor
            Shape (N, T, L, D); padding holds any value.
        """
        inputs = self.model_inputs(waveforms, num_samples.to(waveforms.device), model.dtype)
        states = model(**inputs, output_hidden_states=True, return_dict=True).hidden_states
        return torch.stack([states[layer] for layer in layers], dim=2)


class LogMelInput:
    """How waveforms enter Whisper's encoder (Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2).

    Log-mels as ``transformers.WhisperFeatureExtractor`` computes them (100 Hz), two convolutions to 50 Hz, fixed
    positions. The model was trained on windows of exactly 30 s; so is the default here: each window of an audio is
    padded with zeros to 30 s, and only frames that hold audio go on. Without padding, positions beyond the audio
    are left out and masked, which is faster and not what the model was trained on. Audio longer than a window is
    cut into windows, each encoded by itself. Frame t covers samples [320 t, 320 t + 320) and its neighbourhood.

    Arguments
    ---------
    config : transformers.WhisperConfig
        Its ``max_source_positions`` are the frames of a window (1500: 30 s), ``num_mel_bins`` the mel bands.
    normalize : bool
        Must be False: the level of the waveform is part of Whisper's input.
    pad_windows : bool
        Whether windows are padded to their full length.

    Example
    -------
    >>> family = LogMelInput(AutoConfig.for_model("whisper", num_mel_bins=128), normalize=False)
    >>> family.hop, family.num_frames(16000), family.num_frames(1), family.num_frames(31 * 16000)
    (320, 50, 1, 1550)
    """

    default_normalize = False
    one_by_one = False
    mel_hop, fft_size = 160, 400

    def __init__(self, config, normalize, pad_windows=True):
        if normalize:
            raise ValueError(
                "SpeechEncoder: normalize is True, but Whisper reads waveforms at their own level: leave it out"
            )
        self.pad_windows = bool(pad_windows)
        self.hop = 2 * self.mel_hop
        self.window_frames = int(config.max_source_positions)
        self.window_samples = self.window_frames * self.hop
        filters = WhisperFeatureExtractor(feature_size=config.num_mel_bins).mel_filters
        with torch.device("cpu"):
            self.mel_filters = torch.from_numpy(filters).float()

    @staticmethod
    def build(config, dtype):
        """The encoder of a config with random weights; the decoder is not built."""
        return WhisperEncoder(config).to(dtype)

    @staticmethod
    def load(source, dtype, options):
        """Encoder and loading report of a source: a whole Whisper, with or without its head, or an encoder."""
        return WhisperEncoder.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            key_mapping={r"^(model\.)?encoder\.": ""},
            **options,
        )

    @property
    def settings(self):
        """What the features depend on beside the weights, for the fingerprint."""
        return (f"windows={self.window_frames}{'' if self.pad_windows else ' unpadded'}",)

    def num_frames(self, num_samples):
        """Frames that a number of samples (at least 1) gives; int -> int."""
        return -(-max(int(num_samples), 1) // self.hop)

    def log_mel(self, samples):
        """Log-mels of windows of equal length.

        Arguments
        ---------
        samples : torch.Tensor
            float32, shape (W, samples), a multiple of 320.

        Returns
        -------
        torch.Tensor
            float32, shape (W, M, samples / 160), equal to ``WhisperFeatureExtractor`` on each window.
        """
        window = torch.hann_window(self.fft_size, device=samples.device)
        spectrum = torch.stft(samples, self.fft_size, self.mel_hop, window=window, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        mel = self.mel_filters.to(samples.device).T @ power
        log_mel = mel.clamp(min=1e-10).log10()
        # 80 dB below the loudest value of the window is the floor.
        log_mel = torch.maximum(log_mel, log_mel.amax((1, 2), keepdim=True) - 8.0)
        return (log_mel + 4.0) / 4.0

    def windows(self, waveforms, num_samples):
        """Log-mels of all windows of a batch.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32, shape (N, samples).
        num_samples : Sequence of int
            Valid samples of each audio.

        Returns
        -------
        tuple
            Log-mels float32 (W, M, 2 T), valid frames of each window (list of int), and the audio of each window
            (list of int).
        """
        cut, frames, audios = [], [], []
        for row, length in enumerate(num_samples):
            for start in range(0, length, self.window_samples):
                piece = waveforms[row, start : min(start + self.window_samples, length)].float()
                frames.append(self.num_frames(len(piece)))
                audios.append(row)
                whole = self.window_samples if self.pad_windows else frames[-1] * self.hop
                cut.append(nn.functional.pad(piece, (0, whole - len(piece))))
        if self.pad_windows:
            return self.log_mel(torch.stack(cut)), frames, audios
        # The transform mirrors an audio at its own end, so audios of different lengths go one by one.
        mels = [self.log_mel(piece[None])[0].T for piece in cut]
        return nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2), frames, audios

    def encode(self, model, mel, frames, layers):
        """Hidden states of windows; differentiable.

        Arguments
        ---------
        model : transformers.models.whisper.modeling_whisper.WhisperEncoder
        mel : torch.Tensor
            As :meth:`windows` gives them.
        frames : Sequence of int
            Valid frames of each window; only looked at where windows are not padded.
        layers : Sequence of int
            Which hidden states; the last one is after the final layer norm, as transformers numbers them.

        Returns
        -------
        torch.Tensor
            Shape (W, T, L, D).
        """
        mask = valid = None
        if not self.pad_windows:
            lengths = torch.as_tensor(frames, device=mel.device)
            valid = torch.arange(mel.shape[2] // 2, device=mel.device)[None, :] < lengths[:, None]
        act = nn.functional.gelu
        x = act(model.conv1(mel.to(model.conv1.weight.dtype)))
        if valid is not None:
            # The second convolution must see zeros behind the audio, as it does alone.
            x = x * valid.repeat_interleave(2, 1)[:, None].to(x.dtype)
            mask = torch.zeros(valid.shape, dtype=x.dtype, device=x.device)
            mask = mask.masked_fill(~valid, torch.finfo(x.dtype).min)[:, None, None]
            # A fused kernel wants the mask of every query.
            mask = mask.expand(-1, 1, valid.shape[1], -1)
        x = act(model.conv2(x)).transpose(1, 2)
        x = x + model.embed_positions.weight[: x.shape[1]]
        x = nn.functional.dropout(x, p=model.dropout, training=model.training)
        last = len(model.layers)
        wanted = {layer: None for layer in layers}
        if 0 in wanted:
            wanted[0] = x
        for number, block in enumerate(model.layers, 1):
            x = block(x, mask)
            if number in wanted and number < last:
                wanted[number] = x
        if last in wanted:
            wanted[last] = model.layer_norm(x)
        return torch.stack([wanted[layer] for layer in layers], dim=2)

    def hidden_states(self, model, waveforms, num_samples, layers, max_windows=16):
        """Chosen hidden states of a batch, as :meth:`WaveformInput.hidden_states`."""
        lengths = num_samples.tolist()
        mel, frames, audios = self.windows(waveforms, lengths)
        parts = []
        for start in range(0, len(frames), max_windows):
            some = slice(start, start + max_windows)
            encoded = self.encode(model, mel[some], frames[some], layers)
            parts += [row[:count] for row, count in zip(encoded, frames[some])]
        rows = []
        for audio in range(len(lengths)):
            own = [part for part, row in zip(parts, audios) if row == audio]
            rows.append(own[0] if len(own) == 1 else torch.cat(own))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


FAMILIES = {
    "hubert": WaveformInput,
    "wav2vec2": WaveformInput,
    "wavlm": WaveformInput,
    "whisper": LogMelInput,
}


def _is_local(source):
    """Whether a source is meant as a folder of this machine rather than a name of the hub."""
    text = str(source)
    return Path(text).expanduser().is_dir() or text.startswith((".", "/", "~")) or text.count("/") > 1


def _preprocessor_settings(source, revision):
    """Settings of the feature extractor stored with a model; empty where it has none."""
    for name, section in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
            settings = settings if section is None else settings.get(section, {})
            if settings:
                return settings
    return {}


def _config_digest(config):
    """sha256 over what defines the architecture, as an object that more can be added to."""
    values = {k: v for k, v in config.to_dict().items() if k not in VOLATILE_CONFIG_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())


class SpeechEncoder(nn.Module):
    """Frozen speech encoder that returns the hidden states of chosen layers.

    Of a Whisper only the encoder is kept: see :class:`LogMelInput`.

    VIB-SER (arXiv 2505.23236, section 2) reads all 25 hidden states of HuBERT-large: the input of the first
    transformer layer and the output of each layer, as ``transformers`` numbers them (the last one after the
    final layer norm in models with ``do_stable_layer_norm``). The model is always in eval mode, also after
    ``train()`` on it or on a module that holds it, and runs without gradients and outside autocast:
    SpecAugment, layer drop and dropout never act. Features at valid frames do not depend on the padding:
    models with layer-norm convolutions take a batch with a mask, models with group-norm convolutions (the
    base sizes) run each audio by itself.

    Arguments
    ---------
    source : str or None
        Name on the Hugging Face hub or a local folder (never downloaded). None builds random weights from
        ``architecture``.
    revision : str, optional
        Revision on the hub.
    dtype : str
        "float32", "float16" or "bfloat16": type of the weights and of the features.
    layers : str or Sequence of int
        "all", or indices of the hidden states in [0, num_hidden_layers], kept in the order given; negative
        ones count from the end.
    architecture : dict, optional
        The transformers config, with ``model_type``: what ``build_meta`` uses. With a ``source`` it is
        checked against the loaded config (model_type, hidden_size, num_hidden_layers).
    normalize : bool, optional
        Zero mean and unit variance of each audio over its valid samples. None follows ``do_normalize`` of the
        model's ``preprocessor_config.json`` (transformers' own default where there is no such file: True, and
        False for Whisper).
    pad_windows : bool
        Whisper only. True: windows of exactly 30 s, padded with silence, as it was trained. False: no padding.
    pool : int
        Frames of which one mean is taken, of valid frames only; a last group may be smaller. 1: none. JELLY
        (arXiv 2501.04904) reads means of 40, so that its cache is 40 times smaller.
    fixed_seconds : float, optional
        Every audio is cut, or padded with zeros, to so many seconds, and all its frames are valid (JELLY: 20). None:
        its own length.

    Raises
    ------
    FileNotFoundError
        If a local folder does not exist.
    OSError
        If the model cannot be loaded from the hub or the folder.
    ValueError
        If the model type, dtype, layers or architecture does not fit.

    Example
    -------
    >>> tiny = {"model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    ...         "intermediate_size": 32, "conv_dim": [8] * 7, "feat_extract_norm": "layer",
    ...         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    >>> encoder = SpeechEncoder(None, architecture=tiny)
    >>> output = encoder(torch.randn(2, 16000), torch.tensor([16000, 4000]))
    >>> output.features.shape, output.num_frames.tolist(), encoder.frame_rate
    (torch.Size([2, 49, 3, 16]), [49, 12], 50.0)
    """

    def __init__(
        self,
        source,
        revision=None,
        dtype="float32",
        layers="all",
        architecture=None,
        normalize=None,
        pad_windows=True,
        pool=1,
        fixed_seconds=None,
    ):
        super().__init__()
        if pool < 1 or (fixed_seconds is not None and fixed_seconds <= 0):
            raise ValueError(
                f"SpeechEncoder: pool is {pool} and fixed_seconds {fixed_seconds}; allowed: pool from 1, seconds "
                "above 0 or null"
            )
        self.pool = int(pool)
        self.fixed_seconds = None if fixed_seconds is None else float(fixed_seconds)
        if dtype not in DTYPES:
            raise ValueError(f"SpeechEncoder: dtype is {dtype!r}; allowed are {sorted(DTYPES)}")
        self.source = None if source is None else str(source)
        self.revision = revision
        self.dtype_name = dtype
        self._identity = None
        self._folder = None
        if source is None:
            config, settings = self._config_of(architecture), {}
            model = FAMILIES[config.model_type].build(config, DTYPES[dtype])
        else:
            model, settings = self._load(revision, DTYPES[dtype])
            config = model.config
            self._check_architecture(config, architecture)
        self._setup(model, config, layers, settings, normalize, pad_windows)

    @classmethod
    def build_meta(cls, architecture, layers="all", dtype="float32", normalize=None):
        """Build the encoder on the meta device: true shapes and parameter counts, no memory, no download.

        Arguments
        ---------
        architecture : dict
            The transformers config, with ``model_type``.
        layers : str or Sequence of int
            As in the constructor.
        dtype : str
            As in the constructor.
        normalize : bool, optional
            As in the constructor.

        Returns
        -------
        SpeechEncoder
            It answers ``num_frames``, sizes and parameters; it cannot run.

        Example
        -------
        >>> encoder = SpeechEncoder.build_meta({"model_type": "hubert"})
        >>> encoder.num_layers, encoder.hidden_size, encoder.num_parameters
        (13, 768, 94371712)
        """
        with torch.device("meta"):
            encoder = cls(None, dtype=dtype, layers=layers, architecture=architecture, normalize=normalize)
        # transformers makes the mask embedding with torch.Tensor, which a device context does not reach.
        return encoder.to("meta")

    @staticmethod
    def _config_of(architecture):
        if not architecture or "model_type" not in architecture:
            raise ValueError(
                f"SpeechEncoder: architecture is {architecture!r}; without a source it must be a mapping of"
                " the transformers config with its model_type, such as"
                " {'model_type': 'hubert', 'hidden_size': 1024}"
            )
        values = {k: v for k, v in dict(architecture).items() if k != "model_type"}
        if architecture["model_type"] not in FAMILIES:
            raise ValueError(
                f"SpeechEncoder: model_type is {architecture['model_type']!r}; supported are"
                f" {sorted(FAMILIES)}"
            )
        return AutoConfig.for_model(architecture["model_type"], **values)

    def _load(self, revision, dtype):
        source = self.source
        local = _is_local(source)
        if local:
            source = str(Path(source).expanduser())
            if not Path(source).is_dir():
                raise FileNotFoundError(
                    f"SpeechEncoder: the local folder {self.source!r} does not exist; give a folder with"
                    " config.json and model.safetensors (as save_pretrained writes it) or a name of the"
                    " Hugging Face hub"
                )
            self._folder = Path(source)
        # local_files_only: an incomplete folder must fail here rather than be looked up on the hub.
        options = {"local_files_only": True} if local else {"revision": revision}
        options["trust_remote_code"] = False
        advice = (
            "check that it holds config.json and model.safetensors as save_pretrained writes them"
            if local
            else "check the name, the revision and the network (gated models need `hf auth login`), or"
            " download it elsewhere and give its local folder as source"
        )
        failure = f"SpeechEncoder: cannot load {self.source!r} (revision {revision}): {advice}."
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            raise OSError(f"{failure} {error}") from error
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"SpeechEncoder: {self.source!r} is a {config.model_type!r} model; supported are"
                f" {sorted(FAMILIES)}"
            )
        try:
            model, report = FAMILIES[config.model_type].load(source, dtype, options)
            settings = _preprocessor_settings(source, None if local else revision)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{failure} {error}") from error
        # transformers only warns and leaves such weights random; eval mode never uses the mask embedding.
        missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
        if missing or report["mismatched_keys"]:
            raise OSError(
                f"SpeechEncoder: the weights of {self.source!r} lack {len(missing)} parameters of a"
                f" {config.model_type} model ({missing[:3]} ...) and {len(report['mismatched_keys'])} have"
                " another shape; give a complete checkpoint of this architecture"
            )
        return model, settings

    def _check_architecture(self, config, architecture):
        for key in CHECKED_CONFIG_KEYS:
            expected = (architecture or {}).get(key)
            if expected is not None and expected != getattr(config, key, None):
                raise ValueError(
                    f"SpeechEncoder: {self.source!r} has {key} {getattr(config, key, None)!r} but architecture says"
                    f" {expected!r}; make architecture that of the model in use, or leave it out"
                )

    def _setup(self, model, config, layers, settings, normalize, pad_windows):
        if getattr(config, "add_adapter", False):
            raise ValueError(
                f"SpeechEncoder: {self.source!r} has add_adapter set, which changes the frame rate of its"
                " last output; use a checkpoint without the convolutional adapter"
            )
        if settings.get("sampling_rate", SAMPLE_RATE) <= 0:
            raise ValueError(
                f"SpeechEncoder: {self.source!r} states a sampling_rate of {settings['sampling_rate']}"
            )
        count = config.num_hidden_layers + 1
        if isinstance(layers, str):
            if layers != "all":
                raise ValueError(f"SpeechEncoder: layers is {layers!r}; give 'all' or a list of indices")
            selected = list(range(count))
        else:
            selected = [int(layer) for layer in layers]
        bad = [layer for layer in selected if not -count <= layer < count]
        if bad or not selected:
            raise ValueError(
                f"SpeechEncoder: layers {list(layers)} hold {bad or 'nothing'}; {self.source or 'the model'}"
                f" has hidden states 0 (input of the first layer) to {count - 1}"
            )
        self.layers = tuple(layer % count for layer in selected)
        self.model = model.requires_grad_(False)
        self.sample_rate = int(settings.get("sampling_rate", SAMPLE_RATE))
        family = FAMILIES[config.model_type]
        stored = settings.get("do_normalize", family.default_normalize)
        self.normalize = bool(stored if normalize is None else normalize)
        self.family = family(config, self.normalize, pad_windows)
        self.frame_rate = self.sample_rate / self.family.hop / self.pool
        self.fixed_samples = None
        if self.fixed_seconds is not None:
            self.fixed_samples = max(round(self.fixed_seconds * self.sample_rate), 1)
        self.num_layers = len(self.layers)
        self.hidden_size = config.hidden_size
        self.eval()

    @property
    def dtype(self):
        """Type of the weights and the features, torch.dtype."""
        return DTYPES[self.dtype_name]

    @property
    def num_parameters(self):
        """Number of parameters, int."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def identity(self):
        """Name of the weights: "name@commit" for a hub model, else sha256 over config and weights, str.

        Of a local folder the bytes of its weight files are hashed; it is computed once and kept.
        """
        if self._identity is None:
            self._identity = self._compute_identity()
        return self._identity

    def _compute_identity(self):
        commit = getattr(self.model.config, "_commit_hash", None)
        if self.source is not None and self._folder is None and commit:
            return f"{self.source}@{commit}"
        digest = _config_digest(self.model.config)
        files = []
        if self._folder is not None:
            files = sorted(self._folder.glob("*.safetensors"))
            files = files or sorted(self._folder.glob("pytorch_model*.bin"))
        for path in files:
            with open(path, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        if not files:
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(values.numpy().tobytes())

        return digest.hexdigest()

    @property
    def fingerprint(self):
        """What features depend on, str: weights, config, dtype, layers, sample rate, normalisation."""
        layers = ",".join(map(str, self.layers))
        parts = (f"layers={layers}", f"rate={self.sample_rate}", f"normalize={self.normalize}")
        parts += self.family.settings
        if self.pool > 1:
            parts += (f"pool={self.pool}",)
        if self.fixed_seconds is not None:
            parts += (f"fixed={self.fixed_seconds:g}s",)
        return "|".join((self.identity, self.dtype_name, *parts))

    @property
    def frame_centre(self):
        """Middle of frame 0 in seconds, float."""
        return self.family.receptive_field / 2 / self.sample_rate

    def train(self, mode=True):
        """Stay in eval mode whatever ``mode`` says: Brain calls ``train()`` at every epoch."""
        return super().train(False)

    def num_frames(self, num_samples):
        """Frames that an audio gives.

        Arguments
        ---------
        num_samples : int
            Samples at ``sample_rate``, at least 1.

        Returns
        -------
        int
            At least 1: audio shorter than the receptive field counts as zero-padded to it.
        """
        return -(-self._frames_before_pooling(num_samples) // self.pool)

    def _frames_before_pooling(self, num_samples):
        return self.family.num_frames(self.fixed_samples or num_samples)

    def _pooled(self, features, frames):
        """Means of ``pool`` frames over the valid ones; features (N, T, L, D) are 0 at padding."""
        if self.pool == 1:
            return features
        features = nn.functional.pad(features, (0, 0, 0, 0, 0, -features.shape[1] % self.pool))
        sums = features.unflatten(1, (-1, self.pool)).float().sum(2)
        starts = torch.arange(sums.shape[1], device=sums.device)[None] * self.pool
        counts = (torch.tensor(frames, device=sums.device)[:, None] - starts).clamp(1, self.pool)
        return (sums / counts[..., None, None]).to(features.dtype)

    @torch.no_grad()
    def forward(self, waveforms, num_samples):
        """Encode a batch.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32 at ``sample_rate``, shape (N, samples). Padding may hold any value.
        num_samples : torch.Tensor
            Valid samples of each audio, int64, shape (N,), each at least 1.

        Returns
        -------
        EncoderOutput
            ``features`` (N, T, L, D) with T the largest number of frames, and ``num_frames`` (N,).

        Raises
        ------
        ValueError
            If an audio has no sample or more samples than the batch.
        """
        lengths = num_samples.tolist()
        if (
            waveforms.dim() != 2
            or len(lengths) != len(waveforms)
            or any(not 1 <= n <= waveforms.shape[1] for n in lengths)
        ):
            raise ValueError(
                f"SpeechEncoder: num_samples is {lengths} for waveforms of shape {tuple(waveforms.shape)};"
                " every audio needs between 1 and the padded number of samples (an empty file must be dropped"
                " before)"
            )
        if self.fixed_samples is not None:
            positions = torch.arange(waveforms.shape[1], device=waveforms.device)[None]
            waveforms = torch.where(positions < num_samples.to(waveforms.device)[:, None], waveforms, 0.0)
            waveforms = waveforms[:, : self.fixed_samples]
            waveforms = nn.functional.pad(waveforms, (0, self.fixed_samples - waveforms.shape[1]))
            lengths = [self.fixed_samples] * len(lengths)
            num_samples = torch.full_like(num_samples, self.fixed_samples)
        frames = [self._frames_before_pooling(n) for n in lengths]
        num_frames = torch.tensor(frames, dtype=torch.int64, device=waveforms.device)
        # Autocast would run a float32 encoder in half precision behind the back of the cache's fingerprint.
        with torch.autocast(device_type=waveforms.device.type, enabled=False):
            if self.family.one_by_one:
                features = waveforms.new_zeros(
                    (len(lengths), max(frames), self.num_layers, self.hidden_size), dtype=self.dtype
                )
                for row, length in enumerate(lengths):
                    one = self._hidden_states(waveforms[row : row + 1, :length], num_samples[row : row + 1])
                    features[row, : frames[row]] = one[0]
                return self._output(features, frames, num_frames)
            longest = max(lengths)
            features = self._hidden_states(waveforms[:, :longest], num_samples)
        mask = torch.arange(features.shape[1], device=features.device)[None, :] < num_frames[:, None]
        features = features.masked_fill(~mask[:, :, None, None], 0.0)
        return self._output(features, frames, num_frames)

    def _output(self, features, frames, num_frames):
        pooled = (num_frames + self.pool - 1) // self.pool
        return EncoderOutput(features=self._pooled(features, frames), num_frames=pooled)

    def _hidden_states(self, waveforms, num_samples):
        return self.family.hidden_states(self.model, waveforms, num_samples, self.layers)
