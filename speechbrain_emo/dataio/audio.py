"""From an audio file or an array to the mono float32 waveform that every other part takes.

There is one path: preparation, training and inference all read audio through :func:`load_audio` or
:func:`from_array`, so that a file gives the same samples everywhere and bad input gives the same message.
"""

import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.preprocess import AudioNormalizer

#: The receptive field of the first frame of HuBERT and wav2vec 2.0: 400 samples at 16 kHz.
MIN_DURATION = 0.025

# Programs that write WAV to a pipe cannot know the size: ffmpeg writes 0xFFFFFFFF, sox 0x7FFFF000 and above.
_UNKNOWN_SIZE = 0x7FFFF000

_FULL_SCALE = {np.dtype(np.int8): 2.0**7, np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file and says what is wrong with it.

    Example
    -------
    >>> from speechbrain_emo.dataio.audio import AudioError, load_audio
    >>> try:
    ...     load_audio("no_such_file.wav")
    ... except AudioError as error:
    ...     print(error)
    no_such_file.wav: no such file
    """


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says, checked against the file's size.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    num_samples : int
        Samples per channel, at ``sample_rate``.
    channels : int
        Number of channels.

    Example
    -------
    >>> AudioInfo(sample_rate=16000, num_samples=8000, channels=1).duration
    0.5
    """

    sample_rate: int
    num_samples: int
    channels: int

    @property
    def duration(self):
        """Length in seconds."""
        return self.num_samples / self.sample_rate


def audio_info(path):
    """Read and check the header of an audio file; the samples are not decoded.

    Arguments
    ---------
    path : str or pathlib.Path
        WAV, FLAC, OGG, or anything else that libsndfile reads.

    Returns
    -------
    AudioInfo

    Raises
    ------
    AudioError
        If the file is missing, empty, not audio, or holds fewer samples than its WAV header promises.

    Example
    -------
    >>> import soundfile, numpy
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, numpy.zeros(800), 16000)
    >>> audio_info(path).duration
    0.05
    """
    name = str(path)
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{name}: no such file")
    if path.is_dir():
        raise AudioError(f"{name}: is a folder, not an audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    _check_riff(path, name)
    try:
        header = audio_io.info(str(path))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{name}: {_looks_like(path)} ({_reason(error)})") from error
    if header.sample_rate <= 0 or header.channels <= 0:
        raise AudioError(
            f"{name}: the header gives sample rate {header.sample_rate} and {header.channels} channels: it is damaged"
        )
    return AudioInfo(int(header.sample_rate), int(header.frames), int(header.channels))


def load_audio(path, sample_rate=16000, start=None, stop=None, max_duration=None):
    """Read a file, or a segment of it, as mono samples at the given rate.

    Channels are averaged before resampling (both are linear: the result is that of SpeechBrain's
    ``AudioNormalizer`` at the cost of one channel). Nothing is normalised or trimmed.

    Arguments
    ---------
    path : str or pathlib.Path
        Audio file.
    sample_rate : int
        Rate of the returned samples, in Hz.
    start, stop : int, optional
        Segment, in samples at the file's own rate; ``stop`` is exclusive.
    max_duration : float, optional
        Longest segment that is accepted, in seconds; checked before samples are read.

    Returns
    -------
    torch.Tensor
        float32, shape (samples,), full scale = 1.

    Raises
    ------
    AudioError
        If the file is missing, empty, truncated, not audio, has NaN or infinite samples, or the segment is
        outside the file, shorter than 25 ms or longer than ``max_duration``.

    Example
    -------
    >>> import soundfile, numpy
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, numpy.zeros((48000, 2)), 48000)
    >>> load_audio(path).shape
    torch.Size([16000])
    >>> load_audio(path, start=0, stop=24000).shape
    torch.Size([8000])
    """
    name = str(path)
    info = audio_info(path)
    if info.num_samples == 0:
        raise AudioError(f"{name}: the file has a valid header but no samples")
    first = 0 if start is None else int(start)
    last = info.num_samples if stop is None else int(stop)
    if not 0 <= first < last <= info.num_samples:
        raise AudioError(
            f"{name}: segment start={start}, stop={stop} is not inside the file: 0 <= start < stop <= "
            f"{info.num_samples} (samples at the file's own {info.sample_rate} Hz)"
        )
    _check_duration(name, (last - first) / info.sample_rate, max_duration)
    try:
        samples, _ = audio_io.load(
            str(path), channels_first=False, dtype=torch.float32, frame_offset=first, num_frames=last - first
        )
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(
            f"{name}: the samples cannot be decoded: the file is damaged ({_reason(error)})"
        ) from error
    if samples.shape[0] != last - first:
        raise AudioError(
            f"{name}: the file is truncated: {samples.shape[0]} of the {last - first} samples asked for can be "
            "read; copy or download it again"
        )
    return _finish(samples, info.sample_rate, sample_rate, name)


def from_array(
    samples, sample_rate, target_sample_rate=16000, max_duration=None, name="array", channel_axis=None
):
    """Bring samples in memory through the same checks, mixing and resampling as a file.

    Arguments
    ---------
    samples : numpy.ndarray or torch.Tensor or sequence of float
        Shape (samples,), or two-dimensional with one axis for the channels. Floats have full scale 1; int8,
        int16 and int32 are divided by their full scale; uint8 is the offset binary of 8-bit WAV.
    sample_rate : int
        Rate of ``samples``, in Hz.
    target_sample_rate : int
        Rate of the returned samples, in Hz.
    max_duration : float, optional
        Longest input that is accepted, in seconds.
    name : str
        What error messages call the array.
    channel_axis : int, optional
        Axis of the channels, 0 or 1. Default: the shorter of the two axes.

    Returns
    -------
    torch.Tensor
        float32, shape (samples,).

    Raises
    ------
    AudioError
        If the array is not audio that can be used (see :func:`load_audio`), or its type has no defined full
        scale.

    Example
    -------
    >>> import numpy
    >>> from_array(numpy.full(16000, 16384, dtype=numpy.int16), 16000)[:2]
    tensor([0.5000, 0.5000])
    """
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        if samples.is_floating_point() and samples.dtype != torch.float64:
            samples = samples.float()  # numpy has no bfloat16
        samples = samples.numpy()
    try:
        samples = np.asarray(samples)
    except ValueError as error:
        raise AudioError(f"{name}: not an array of samples ({error})") from error
    if not isinstance(sample_rate, (int, np.integer)) or sample_rate <= 0:
        raise AudioError(f"{name}: sample_rate must be a positive integer in Hz, not {sample_rate!r}")
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"{name}: shape {samples.shape} is not (samples,) or two-dimensional with a channel axis"
        )
    if samples.size == 0:
        raise AudioError(f"{name}: no samples (shape {samples.shape})")
    if samples.ndim == 2:
        axis = int(np.argmin(samples.shape)) if channel_axis is None else channel_axis
        samples = np.moveaxis(samples, axis, 1)
    else:
        samples = samples[:, None]
    _check_duration(name, samples.shape[0] / sample_rate, max_duration)
    samples = _to_float(samples, name)
    return _finish(torch.from_numpy(samples), int(sample_rate), target_sample_rate, name)


def _to_float(samples, name):
    """Float32 with full scale 1, in fresh memory."""
    kind = samples.dtype
    if kind in _FULL_SCALE:
        return (samples / _FULL_SCALE[kind]).astype(np.float32)
    if kind == np.uint8:
        return ((samples.astype(np.float32) - 128.0) / 128.0).astype(np.float32)
    if not np.issubdtype(kind, np.floating):
        raise AudioError(
            f"{name}: samples of type {kind} have no defined full scale: convert to float (full scale 1), "
            "int8, int16, int32 or uint8"
        )
    with np.errstate(over="ignore"):
        floats = np.array(samples, dtype=np.float32)
    # A float array of int16 values is the commonest slip; a real recording does not exceed full scale by 40 dB.
    peak = np.abs(floats[np.isfinite(floats)]).max(initial=0.0)
    if peak > 100.0:
        raise AudioError(
            f"{name}: float samples reach {peak:.0f}, full scale is 1: they look like integers; "
            "pass them as int16, or divide them by 32768"
        )
    return floats


def _finish(samples, rate, target, name):
    """(samples, channels) float32 at ``rate`` -> (samples,) at ``target``, checked."""
    if not isinstance(target, (int, np.integer)) or target <= 0:
        raise AudioError(f"{name}: the rate to resample to must be a positive integer in Hz, not {target!r}")
    bad = int((~torch.isfinite(samples)).sum())
    if bad:
        raise AudioError(f"{name}: {bad} of {samples.numel()} samples are NaN or infinite")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(dim=1)
    if rate != target:
        mono = _normalizer(int(target))(mono.contiguous(), int(rate))
    return mono.contiguous()


@functools.lru_cache(maxsize=8)
def _normalizer(sample_rate):
    return AudioNormalizer(sample_rate)


def _check_duration(name, duration, max_duration):
    if duration < MIN_DURATION:
        raise AudioError(
            f"{name}: {duration * 1000:.1f} ms is too short: at least {MIN_DURATION * 1000:.0f} ms are needed "
            "for one frame of the encoder"
        )
    if max_duration is not None and duration > max_duration:
        raise AudioError(
            f"{name}: {duration:.1f} s is longer than max_duration={max_duration:g} s: cut it into utterances "
            "(start and stop, in samples, read a segment), or raise max_duration if memory allows"
        )


def _check_riff(path, name):
    """Compare what a RIFF/WAVE header promises with what the file holds (libsndfile shortens silently)."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF":
            return
        if len(head) < 12:
            raise AudioError(f"{name}: truncated header: {size} bytes, a WAV header has at least 44")
        if head[8:12] != b"WAVE":
            return
        block, rate = 0, 0
        while True:
            chunk = file.read(8)
            if len(chunk) < 8:
                raise AudioError(
                    f"{name}: truncated header: the file ends after {size} bytes, before its 'data' chunk; "
                    "copy or download it again"
                )
            kind, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if kind == b"data":
                held = size - file.tell()
                if length < _UNKNOWN_SIZE and held < length:
                    unit = max(block, 1)
                    seconds = f" ({held / unit / rate:.2f} of {length / unit / rate:.2f} s)" if rate else ""
                    raise AudioError(
                        f"{name}: the file is truncated: its header promises {length // unit} samples, it holds "
                        f"{held // unit}{seconds}; copy or download it again"
                    )
                return
            if kind == b"fmt ":
                content = file.read(min(length, 16))
                if len(content) < 16:
                    raise AudioError(
                        f"{name}: truncated header: the 'fmt ' chunk is cut; copy or download it again"
                    )
                rate, block = struct.unpack("<I", content[4:8])[0], struct.unpack("<H", content[12:14])[0]
                length -= len(content)
            file.seek(length + (length & 1), os.SEEK_CUR)


def _looks_like(path):
    """Say what a file is that libsndfile refuses."""
    with open(path, "rb") as file:
        head = file.read(512)
    text = b"\0" not in head and sum(32 <= b < 127 or b in b"\r\n\t" for b in head) >= 0.9 * len(head)
    if text:
        return f"not an audio file: it holds text that begins {head[:40].decode('latin-1')!r}"
    return "not an audio file, or its header is damaged"


def _reason(error):
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
