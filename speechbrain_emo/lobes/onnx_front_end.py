"""The published speech tokenizer and speaker encoder of CosyVoice 2, run by onnxruntime.

``speech_tokenizer_v2.onnx`` takes Whisper's log-mel (16 kHz, 128 bins, 1 x 128 x F, at most 30 s) and its length as
int32, and gives tokens at 25 Hz; ``campplus.onnx`` takes Kaldi filter banks (1 x F x 80) and gives a vector of 192
numbers. Inputs are found by their place and checked by their type, so a file that was exported under other names works
too. ONNX files are graphs without Python code; libraries of custom operators are never loaded.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.speaker_encoder import filter_banks
from speechbrain_emo.lobes.speech_tokenizer import WhisperLogMel

MAX_SECONDS = 30
PUBLISHED_VOCABULARY = 6561


def _session(path, inputs, what):
    """An onnxruntime session whose inputs have the given types."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{path}: the published {what} needs onnxruntime: pip install 'speechbrain_emo[onnx]'"
        ) from error
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; it is part of the published CosyVoice2-0.5B folder")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, without a common base.
        raise ValueError(f"{path}: onnxruntime cannot read it ({error})") from error
    found = [(node.name, node.type, len(node.shape)) for node in session.get_inputs()]
    if [(kind, axes) for _, kind, axes in found] != inputs:
        raise ValueError(f"{path}: its inputs are {found}; a {what} has {inputs}")
    return session, [name for name, _, _ in found]


class OnnxSpeechTokenizer(nn.Module):
    """``speech_tokenizer_v2.onnx`` behind the interface of :class:`SpeechTokenizer`.

    Arguments
    ---------
    source : str or pathlib.Path
        The file.
    vocab_size : int
        Tokens that it has.

    Raises
    ------
    ValueError
        If the file is missing, no ONNX file, or has other inputs.
    """

    sample_rate, token_rate = 16000, 25.0

    def __init__(self, source, vocab_size=PUBLISHED_VOCABULARY):
        super().__init__()
        kinds = [("tensor(float)", 3), ("tensor(int32)", 1)]
        self.session, self.names = _session(source, kinds, "speech tokenizer")
        self.vocab_size, self.source = int(vocab_size), str(source)
        self.log_mel = WhisperLogMel(128)

    @property
    def levels(self):
        """Of the published quantiser; None for a tokenizer of another size, whose levels no file tells."""
        return (3,) * 8 if self.vocab_size == PUBLISHED_VOCABULARY else None

    @property
    def fingerprint(self):
        """Hash of the file."""
        return _digest(self.source)

    @torch.no_grad()
    def encode(self, waveforms, num_samples):
        """Tokens of a batch, one waveform after another; see :meth:`SpeechTokenizer.encode`.

        Raises
        ------
        ValueError
            If a waveform is longer than 30 s, or the file gives tokens that it should not have.
        """
        rows = []
        for waveform, length in zip(waveforms.cpu(), num_samples.tolist()):
            if not 0 < length <= MAX_SECONDS * self.sample_rate:
                raise ValueError(
                    f"{length / self.sample_rate:.2f} s of audio: the published tokenizer takes up to "
                    f"{MAX_SECONDS} s; cut it"
                )
            samples = waveform[:length].float()
            if length < 400:
                samples = F.pad(samples, (0, 400 - length))
            mel = self.log_mel.cpu()(samples)[None].numpy()
            feeds = dict(zip(self.names, (mel, np.array([mel.shape[2]], dtype=np.int32))))
            tokens = np.asarray(self.session.run(None, feeds)[0]).reshape(-1).astype(np.int64)
            if len(tokens) and not (0 <= tokens.min() and tokens.max() < self.vocab_size):
                raise ValueError(
                    f"{self.source} gives tokens from {tokens.min()} to {tokens.max()}; 0 to {self.vocab_size - 1} "
                    "are expected: another tokenizer?"
                )
            rows.append(torch.from_numpy(tokens))
        lengths = torch.tensor([len(row) for row in rows])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(waveforms.device), lengths


class OnnxSpeakerEncoder(nn.Module):
    """``campplus.onnx`` behind the interface of :class:`SpeakerEncoder`.

    Arguments
    ---------
    source : str or pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If the file is missing, no ONNX file, or has other inputs.
    """

    sample_rate, size = 16000, 192

    def __init__(self, source):
        super().__init__()
        self.session, self.names = _session(source, [("tensor(float)", 3)], "speaker encoder")
        self.source = str(source)

    @property
    def fingerprint(self):
        """Hash of the file."""
        return _digest(self.source)

    @torch.no_grad()
    def encode(self, waveforms, num_samples):
        """Vectors of a batch, one waveform after another; see :meth:`SpeakerEncoder.encode`."""
        rows = []
        for waveform, length in zip(waveforms.cpu(), num_samples.tolist()):
            features = filter_banks(waveform[:length])[None].numpy()
            vector = np.asarray(self.session.run(None, {self.names[0]: features})[0], dtype=np.float32)
            if vector.size != self.size:
                raise ValueError(
                    f"{self.source} gives {vector.size} numbers; a speaker encoder gives {self.size}"
                )
            rows.append(torch.from_numpy(vector.reshape(-1)))
        return torch.stack(rows).to(waveforms.device)


def _digest(path):
    import hashlib

    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
