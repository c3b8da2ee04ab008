"""emotion2vec as a frozen encoder: frames of the base model, utterance labels of the "plus" models.

Z. Ma et al. 2023, "emotion2vec: Self-Supervised Pre-Training for Speech Emotion Representation" (arXiv 2312.15185).
The model class and the loader are funasr's (optional extra ``emotion2vec``); nothing of them is copied here.

Axes: N audios, T frames, L layers (always 1: emotion2vec's features are its last layer), D feature size, K labels.
"""

import contextlib
import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.speech_encoder import EncoderOutput

__all__ = ["CONFIG_FILE", "UNKNOWN", "WEIGHTS_FILE", "Emotion2Vec", "plain_label"]

SAMPLE_RATE = 16000
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "emotion2vec"
UNKNOWN = "unknown"
# funasr evaluates this text of the config as Python: nothing but lists of numbers is let through.
_LAYERS = re.compile(r"[\d\s\[\](),+*]+")
_INSTALL = "emotion2vec is loaded by funasr: pip install 'speechbrain_emo[emotion2vec]'"


def plain_label(token):
    """A class of the published label lists in one language.

    Arguments
    ---------
    token : str
        As in ``tokens.txt`` of the model: ``生气/angry``, ``<unk>`` or ``unuse_0``.

    Returns
    -------
    str or None
        The English name, ``unknown`` for ``<unk>``, None for a class that is not in use.

    Example
    -------
    >>> [plain_label(token) for token in ("x/angry", "<unk>", "unuse_0", "sad")]
    ['angry', 'unknown', None, 'sad']
    """
    if token.startswith("unuse"):
        return None
    return UNKNOWN if token == "<unk>" else token.rsplit("/", 1)[-1]


class Emotion2Vec(nn.Module):
    """Frozen emotion2vec: frames at 50 Hz, and labels of utterances where the checkpoint has a classifier.

    It has the interface of :class:`speechbrain_emo.lobes.speech_encoder.SpeechEncoder`, so that caches and experiments
    take either. Each audio runs alone: the positional convolution would mix padding into the frames of a batch.

    Arguments
    ---------
    source : str
        Name on a hub (``iic/emotion2vec_base``: frames of 768; ``iic/emotion2vec_plus_large``: labels of utterances), a
        local folder in ModelScope's layout (``config.yaml``, ``model.pt``), or one that :meth:`save_pretrained` wrote.
    hub : str
        "ms" (ModelScope) or "hf" (Hugging Face); of no meaning for a folder.
    revision : str, optional
        Revision on the hub.

    Raises
    ------
    ImportError
        If funasr is not installed.
    OSError
        If the model cannot be loaded: no such folder, no hub reachable, weights that do not fit.
    ValueError
        If the folder holds another kind of model.

    Example
    -------
    >>> Emotion2Vec("no/such/folder")
    Traceback (most recent call last):
    OSError: Emotion2Vec: the local folder 'no/such/folder' does not exist; ...
    """

    def __init__(self, source="iic/emotion2vec_base", hub="ms", revision=None):
        super().__init__()
        if hub not in ("ms", "hf"):
            raise ValueError(
                f"Emotion2Vec: hub is {hub!r}; allowed are 'ms' (ModelScope) and 'hf' (Hugging Face)"
            )
        self.source, self.hub, self.revision = str(source), hub, revision
        folder = Path(self.source).expanduser()
        if not folder.is_dir() and (self.source.startswith((".", "/", "~")) or self.source.count("/") > 1):
            raise OSError(
                f"Emotion2Vec: the local folder {self.source!r} does not exist; give a folder with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}, or with config.yaml and model.pt, or a name such as iic/emotion2vec_base"
            )
        if (folder / CONFIG_FILE).is_file():
            model, config = self._from_folder(folder)
        else:
            model, config = self._through_funasr(folder)
        self._setup(model, config)

    @classmethod
    def from_config(cls, model_conf, labels=()):
        """A model with random weights.

        Arguments
        ---------
        model_conf : dict
            As ``model_conf`` of a published ``config.yaml``.
        labels : sequence of str
            Classes of the utterance classifier, in funasr's form; none: no classifier.

        Returns
        -------
        Emotion2Vec
        """
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        encoder.source, encoder.hub, encoder.revision = None, "ms", None
        config = {"model_type": MODEL_TYPE, "model_conf": dict(model_conf), "labels": list(labels)}
        encoder._setup(_build(config, "model_conf"), config)
        return encoder

    def _from_folder(self, folder):
        """What :meth:`save_pretrained` wrote: no pickle is read, no network asked."""
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"Emotion2Vec: {folder / CONFIG_FILE} is no JSON ({error})") from error
        if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
            raise ValueError(
                f"Emotion2Vec: {folder / CONFIG_FILE} describes no emotion2vec (model_type must be {MODEL_TYPE!r}); a "
                "HuBERT, wav2vec 2.0 or WavLM folder is loaded by SpeechEncoder"
            )
        model = _build(config, str(folder / CONFIG_FILE))
        try:
            model.load_state_dict(load_file(str(folder / WEIGHTS_FILE)), strict=True)
        except (OSError, RuntimeError) as error:
            raise OSError(f"Emotion2Vec: the weights of {folder} do not fit its config: {error}") from error
        return model, config

    def _through_funasr(self, folder):
        """funasr's own loader, its side effects undone: it sets seeds, threads and logging of the process."""
        funasr = _funasr()
        local = folder.is_dir()
        options = {"model_revision": self.revision} if self.revision else {}
        failure = f"Emotion2Vec: cannot load {self.source!r} through funasr (hub {self.hub!r}). " + (
            "The folder needs config.yaml, model.pt and, for labels, tokens.txt."
            if local
            else "Check the name and the network (no hub may be reachable from here), or download the model "
            "elsewhere and give its folder as source."
        )
        try:
            with _undisturbed():
                loaded = funasr.AutoModel(
                    model=str(folder) if local else self.source,
                    hub=self.hub,
                    device="cpu",
                    ncpu=torch.get_num_threads(),
                    disable_update=True,
                    disable_pbar=True,
                    log_level="ERROR",
                    trust_remote_code=False,
                    **options,
                )
        except Exception as error:  # funasr raises whatever its parts raise, and asserts.
            # Its messages list every optional module of funasr that is not installed.
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            raise OSError(f"{failure} {type(error).__name__}: {reason}") from error
        arguments = loaded.kwargs
        weights = arguments.get("init_param")
        if not weights or not Path(weights).is_file():
            raise OSError(f"{failure} It names no file of weights, and funasr leaves them random then.")
        _check_weights(loaded.model, weights, failure)
        labels = list(arguments.get("token_list") or ()) if loaded.model.proj is not None else []
        config = {"model_type": MODEL_TYPE, "model_conf": _plain(arguments["model_conf"]), "labels": labels}
        return loaded.model, config

    def _setup(self, model, config):
        layers = _conv_layers(config["model_conf"], "model_conf")
        self.kernels, self.strides = [k for _, k, _ in layers], [s for _, _, s in layers]
        self.hop, field = 1, 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides)):
            field = (field - 1) * stride + kernel
            self.hop *= stride
        self.receptive_field = field
        self.config = config
        self.model = model.float().requires_grad_(False)
        self.sample_rate = SAMPLE_RATE
        self.frame_rate = SAMPLE_RATE / self.hop
        self.num_layers = 1
        self.hidden_size = int(config["model_conf"]["embed_dim"])
        self.normalize = bool(config["model_conf"].get("normalize", False))
        self.labels = tuple(label for label in map(plain_label, config["labels"]) if label is not None)
        self._used = [i for i, token in enumerate(config["labels"]) if plain_label(token) is not None]
        self._fingerprint = None
        self.eval()

    @property
    def dtype(self):
        """Type of the weights and the features, torch.dtype."""
        return torch.float32

    @property
    def frame_centre(self):
        """Middle of frame 0 in seconds, float."""
        return self.receptive_field / 2 / self.sample_rate

    @property
    def fingerprint(self):
        """sha256 over config and weights, str."""
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(values.numpy().tobytes())
            self._fingerprint = f"emotion2vec|{digest.hexdigest()}"
        return self._fingerprint

    def save_pretrained(self, folder):
        """Write config and weights as data only (JSON and safetensors), to be read without funasr's loader.

        Arguments
        ---------
        folder : str or pathlib.Path
            Made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config, indent=1, ensure_ascii=False)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        state = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        save_file(state, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})

    def train(self, mode=True):
        """Stay in eval mode whatever ``mode`` says: Brain calls ``train()`` at every epoch."""
        return super().train(False)

    def num_frames(self, num_samples):
        """Frames of an audio of so many samples (at least 1); shorter ones count as padded to the receptive field."""
        length = max(int(num_samples), self.receptive_field)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return length

    @torch.no_grad()
    def forward(self, waveforms, num_samples):
        """Encode a batch.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32 at 16 kHz, shape (N, samples). Padding may hold any value.
        num_samples : torch.Tensor
            Valid samples of each audio, int64, shape (N,).

        Returns
        -------
        EncoderOutput
            ``features`` (N, T, 1, D), 0 at padding; ``num_frames`` (N,).
        """
        lengths = num_samples.tolist()
        if (
            waveforms.dim() != 2
            or len(lengths) != len(waveforms)
            or not all(1 <= length <= waveforms.shape[1] for length in lengths)
        ):
            raise ValueError(
                f"Emotion2Vec: waveforms of shape {tuple(waveforms.shape)} with num_samples {lengths}; needed are "
                "(N, samples) and N numbers from 1 to samples"
            )
        frames = [self.num_frames(length) for length in lengths]
        features = waveforms.new_zeros((len(lengths), max(frames), 1, self.hidden_size), dtype=torch.float32)
        with torch.autocast(device_type=waveforms.device.type, enabled=False):
            for row, length in enumerate(lengths):
                features[row, : frames[row], 0] = self._frames(waveforms[row, :length])
        return EncoderOutput(features, torch.tensor(frames, dtype=torch.int64, device=waveforms.device))

    def _frames(self, waveform):
        waveform = waveform.float()
        if self.normalize:
            waveform = F.layer_norm(waveform, waveform.shape)
        missing = self.receptive_field - len(waveform)
        if missing > 0:
            waveform = F.pad(waveform, (0, missing))
        return self.model.extract_features(waveform[None], padding_mask=None)["x"][0]

    @torch.no_grad()
    def classify(self, waveforms, num_samples):
        """Label probabilities of utterances, as funasr computes them: mean over the frames, classifier, softmax.

        Arguments
        ---------
        waveforms, num_samples : torch.Tensor
            As in :meth:`forward`.

        Returns
        -------
        torch.Tensor
            float32 (N, K) in the order of ``labels``; classes not in use take no part.

        Raises
        ------
        ValueError
            If the checkpoint has no classifier (the base model).
        """
        if self.model.proj is None or not self.labels:
            raise ValueError(
                f"Emotion2Vec: {self.source!r} has no classifier; labels come from a plus model such as "
                "iic/emotion2vec_plus_large"
            )
        output = self(waveforms, num_samples)
        mask = (
            torch.arange(output.features.shape[1], device=waveforms.device)[None] < output.num_frames[:, None]
        )
        # The features are 0 at padding already.
        mean = output.features[:, :, 0].sum(1) / mask.sum(1, keepdim=True)
        return self.model.proj(mean)[:, self._used].softmax(-1)


def _funasr():
    try:
        import funasr
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return funasr


@contextlib.contextmanager
def _undisturbed():
    """Random states and the number of threads as they were."""
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads(threads)


def _conv_layers(model_conf, where):
    """[(channels, kernel, stride)] of the convolutions."""
    try:
        text = str(model_conf["modalities"]["audio"]["feature_encoder_spec"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"Emotion2Vec: {where} has no modalities.audio.feature_encoder_spec") from error
    if not _LAYERS.fullmatch(text) or "**" in text:
        raise ValueError(
            f"Emotion2Vec: feature_encoder_spec of {where} is {text[:80]!r}; allowed are lists of (channels, kernel, "
            "stride), sums of them and whole multiples"
        )
    layers = []
    for items, times in re.findall(r"\[([^\[\]]*)\]\s*(?:\*\s*(\d+))?", text):
        rows = re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", items)
        layers += [tuple(map(int, row)) for row in rows] * int(times or 1)
    if not layers:
        raise ValueError(
            f"Emotion2Vec: feature_encoder_spec of {where} is {text[:80]!r}, which names no layer"
        )
    return layers


def _build(config, where):
    """funasr's class with random weights, the caller's random state left alone."""
    _funasr()
    from funasr.models.emotion2vec.model import Emotion2vec as Model

    _conv_layers(config["model_conf"], where)
    with torch.random.fork_rng(devices=[]):
        return Model(model_conf=config["model_conf"], vocab_size=len(config["labels"]) or -1)


def _check_weights(model, path, failure):
    """funasr skips what does not fit and leaves it random: compare with the file."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds
        raise OSError(f"{failure} {path} cannot be read as weights: {error}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        stored = stored.get(key, stored) if isinstance(stored, dict) else stored
    by_suffix = {}
    for name, tensor in stored.items():
        if torch.is_tensor(tensor):
            by_suffix[name.removeprefix("d2v_model.").removeprefix("module.")] = tensor
    wrong = [
        name
        for name, value in model.state_dict().items()
        if "decoder" not in name
        and (name not in by_suffix or not torch.equal(value.cpu(), by_suffix[name].to(value)))
    ]
    if wrong:
        raise OSError(
            f"{failure} {len(wrong)} of its weights were not taken from {path}, such as {wrong[:3]}."
        )


def _plain(value):
    """A config of omegaconf as JSON values."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    return json.loads(json.dumps(value))
