"""Synthetic speech as a result: samples, tokens, words, why it ended, and where it comes from."""

import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

#: Beginning of the tag that every file carries.
PROVENANCE = "synthetic speech"
_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


class SpeakError(ValueError):
    """Text or voice that cannot be spoken; the message says why and what to do.

    Example
    -------
    >>> issubclass(SpeakError, ValueError)
    True
    """


@dataclass(frozen=True)
class Speech:
    """One utterance that was made.

    Arguments
    ---------
    samples : numpy.ndarray
        float32 (N,), full scale 1.
    sample_rate : int
        Hz.
    tokens : tuple of int
        Speech tokens.
    finish_reason : str
        ``eos``: the model ended it; ``max_length``: it had as many tokens as its text allows and may be garbled.
    text : str
        What was spoken, without marks.
    markup : str
        As it was given.
    words : tuple of alignment.AlignedInterval or None
        Words of ``text`` with times in seconds, found by an aligner in the samples; None where there is none.
    seed : int
        Of the draws.
    provenance : dict
        ``model`` (sha256 of its files), ``model_name``, ``toolkit``.
    warnings : tuple of str
        What to know about it.

    Example
    -------
    >>> speech = Speech(np.zeros(2400, dtype=np.float32), 24000, (1, 2), "eos", "oh", "oh")
    >>> speech.duration
    0.1
    """

    samples: np.ndarray
    sample_rate: int
    tokens: tuple
    finish_reason: str
    text: str
    markup: str
    words: tuple | None = None
    seed: int = 0
    provenance: dict = field(default_factory=dict)
    warnings: tuple = ()

    @property
    def duration(self):
        """Seconds."""
        return len(self.samples) / self.sample_rate

    def to_dict(self):
        """All but the samples, as plain values for JSON."""
        words = None
        if self.words is not None:
            words = [{"word": w.label, "start": w.start, "end": w.end} for w in self.words]
        return {
            "text": self.text,
            "markup": self.markup,
            "duration": self.duration,
            "sample_rate": self.sample_rate,
            "finish_reason": self.finish_reason,
            "tokens": list(self.tokens),
            "words": words,
            "seed": self.seed,
            "provenance": dict(self.provenance),
            "warnings": list(self.warnings),
        }

    def tag(self):
        """What the file's metadata says: that the speech is synthetic, and from which model."""
        return f"{PROVENANCE}; {json.dumps({**self.provenance, 'seed': self.seed}, sort_keys=True)}"

    def save(self, path):
        """Write a .wav or .flac file with the tag; it appears whole or not at all.

        Arguments
        ---------
        path : str or pathlib.Path
            Overwritten where it exists; its folder is made.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        SpeakError
            If the name ends in anything else.
        """
        return write_tagged(path, self.samples, self.sample_rate, self.tag(), self.provenance.get("toolkit"))


def write_tagged(path, samples, sample_rate, tag, software=None):
    """Write samples to a .wav or .flac file with a comment; it appears whole or not at all.

    Arguments
    ---------
    path : str or pathlib.Path
        Target.
    samples : numpy.ndarray
        float (N,).
    sample_rate : int
        Hz.
    tag : str
        The comment.
    software : str, optional
        What made it.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    SpeakError
        If the name ends in anything else.
    """
    path = check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with soundfile.SoundFile(
            partial, "w", int(sample_rate), 1, subtype="PCM_16", format=_FORMATS[path.suffix.lower()]
        ) as file:
            file.comment = tag
            file.software = software or "speechbrain_emo"
            file.write(np.clip(np.asarray(samples, dtype=np.float32), -1.0, 1.0))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def check_target(path):
    """The path of a file to write.

    Raises
    ------
    SpeakError
        If its ending is unknown or it is a folder.

    Example
    -------
    >>> check_target("y.wav").name
    'y.wav'
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS or path.is_dir():
        raise SpeakError(f"{path}: give a file name that ends in {' or '.join(_FORMATS)}")
    return path


def read_tag(path):
    """The tag of a file, or None where it has none.

    Arguments
    ---------
    path : str or pathlib.Path
        Audio file.

    Returns
    -------
    str or None
    """
    with soundfile.SoundFile(path) as file:
        comment = file.comment
    return comment if comment.startswith(PROVENANCE) else None
