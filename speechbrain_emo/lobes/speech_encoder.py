"""Frozen self-supervised speech encoders: all hidden states of HuBERT, wav2vec 2.0 or WavLM, on valid frames.

Axes: N audios, T encoder frames, L encoder layers, D feature size.

An encoder family is a small class that knows how waveforms enter the model and how many frames come out
(``WaveformInput`` here); a family with another input, such as log-mel windows, is one more class in
``FAMILIES``.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel
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
CHECKED_CONFIG_KEYS = ("model_type", "hidden_size", "num_hidden_layers")


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

    def __init__(self, config, normalize):
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


FAMILIES = {"hubert": WaveformInput, "wav2vec2": WaveformInput, "wavlm": WaveformInput}


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
        model's ``preprocessor_config.json`` (True, transformers' own default, where there is no such file).

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
        self, source, revision=None, dtype="float32", layers="all", architecture=None, normalize=None
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"SpeechEncoder: dtype is {dtype!r}; allowed are {sorted(DTYPES)}")
        self.source = None if source is None else str(source)
        self.revision = revision
        self.dtype_name = dtype
        self._identity = None
        self._folder = None
        if source is None:
            config, settings = self._config_of(architecture), {}
            model = AutoModel.from_config(config, dtype=DTYPES[dtype])
        else:
            model, settings = self._load(revision, DTYPES[dtype])
            config = model.config
            self._check_architecture(config, architecture)
        self._setup(model, config, layers, settings, normalize)

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
            model, report = AutoModel.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **options
            )
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
            if expected is not None and expected != getattr(config, key):
                raise ValueError(
                    f"SpeechEncoder: {self.source!r} has {key} {getattr(config, key)!r} but architecture says"
                    f" {expected!r}; make architecture that of the model in use, or leave it out"
                )

    def _setup(self, model, config, layers, settings, normalize):
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
        self.normalize = bool(settings.get("do_normalize", True) if normalize is None else normalize)
        self.family = FAMILIES[config.model_type](config, self.normalize)
        self.frame_rate = self.sample_rate / self.family.hop
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
        return self.family.num_frames(num_samples)

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
        frames = [self.num_frames(n) for n in lengths]
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
                return EncoderOutput(features=features, num_frames=num_frames)
            longest = max(lengths)
            features = self._hidden_states(waveforms[:, :longest], num_samples)
        mask = torch.arange(features.shape[1], device=features.device)[None, :] < num_frames[:, None]
        features = features.masked_fill(~mask[:, :, None, None], 0.0)
        return EncoderOutput(features=features, num_frames=num_frames)

    def _hidden_states(self, waveforms, num_samples):
        inputs = self.family.model_inputs(waveforms, num_samples.to(waveforms.device), self.dtype)
        states = self.model(**inputs, output_hidden_states=True, return_dict=True).hidden_states
        return torch.stack([states[layer] for layer in self.layers], dim=2)
