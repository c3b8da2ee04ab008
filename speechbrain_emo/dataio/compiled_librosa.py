"""librosa, whose functions are compiled once a machine and never by two processes at a time.

librosa compiles at import and at first use and keeps the results in files that every process reads. numba does not lock
them: of two processes that start together on a new machine (ranks of a training, workers of a preparation, tests) one
may read what the other is half through writing, and dies in the function with a segmentation fault. Whoever needs
librosa takes it from here: the first process compiles what this project calls, the others wait for it. A mark lies
beside the compiled files, so that it goes when they go.
"""

import getpass
import hashlib
import importlib.util
import logging
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock

logger = logging.getLogger(__name__)


def _place_of_compiled_files():
    """Where numba keeps them: the folder that is set, or beside the library; elsewhere the mark is a temporary file."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    beside = Path(importlib.util.find_spec("librosa").origin).parent
    if os.access(beside, os.W_OK):
        return beside / "__pycache__"
    return Path(tempfile.gettempdir()) / f"speechbrain_emo_{getpass.getuser()}"


def marker_file():
    """File that says that this librosa's functions are compiled.

    Returns
    -------
    pathlib.Path
        Beside the compiled files, named after the place and the time of the library and the versions that they hang on.

    Example
    -------
    >>> marker_file().suffix
    '.compiled'
    """
    origin = Path(importlib.util.find_spec("librosa").origin)
    state = [str(origin), origin.stat().st_mtime_ns, platform.python_version(), platform.machine()]
    state += [version(name) for name in ("librosa", "numba", "numpy")]
    name = hashlib.sha256(repr(state).encode("utf-8")).hexdigest()[:16]
    return _place_of_compiled_files() / f"speechbrain_emo_{name}.compiled"


def _use_everything():
    """Call what this project calls, with its types: numba compiles by type."""
    import librosa

    for dtype in (np.float32, np.float64):
        samples = (0.1 * np.sin(2 * np.pi * 150 * np.arange(8000) / 16000)).astype(dtype)
        settings = {"sr": 16000, "fmin": 60, "fmax": 500, "frame_length": 1024}
        librosa.yin(samples, **settings)
        librosa.pyin(samples, **settings)
        librosa.effects.time_stretch(samples, rate=1.25)
        librosa.feature.melspectrogram(y=samples, sr=16000)
        distance = np.random.default_rng(0).random((5, 6)).astype(dtype)
        librosa.sequence.dtw(C=distance)
        librosa.sequence.dtw(distance, distance[:, :4], metric="euclidean")


def _compile_once():
    marker = marker_file()
    if marker.exists():
        return
    marker.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{marker}.lock"):
        if not marker.exists():
            logger.warning("librosa's functions are compiled for this machine, once: about half a minute")
            _use_everything()
            marker.touch()


_compile_once()

import librosa  # noqa: E402  (after its functions are there)

__all__ = ["librosa", "marker_file"]
