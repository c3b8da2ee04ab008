"""What the trainings of single parts share: their settings, what is complete, and the course of the learning rate."""

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path

from speechbrain_emo.dataio.manifest import write_text_atomically

logger = logging.getLogger(__name__)

COMPLETE = "training.json"


def settings_of(hparams, names, manifests):
    """Plain data that a trained part depends on.

    Arguments
    ---------
    hparams : dict
    names : str
        Keys of it, separated by blanks.
    manifests : dict of str to (str or list of str)
        Split -> file or files; their contents count.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If a manifest does not exist.

    Example
    -------
    >>> settings_of({"lr": 0.1, "x": 2}, "lr", {})
    {'lr': 0.1, 'manifests': {}}
    """
    plain = {name: hparams[name] for name in names.split()}
    plain["manifests"] = {
        split: _digest(Path(files))
        if isinstance(files, (str, Path))
        else [_digest(Path(file)) for file in files]
        for split, files in manifests.items()
    }
    return json.loads(json.dumps(plain, default=dict))


def _digest(path):
    if not path.is_file():
        raise ValueError(f"manifest {path} does not exist: prepare the corpus first")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def is_complete(folder, settings, name=COMPLETE):
    """Whether a folder holds a part that was trained with these settings; ``name`` is the file that says so."""
    file = Path(folder) / name
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("settings") == settings


def mark_complete(folder, settings, report, name=COMPLETE):
    """Say so, when everything else is written."""
    text = json.dumps({"settings": settings, **report}, indent=1)
    write_text_atomically(Path(folder) / name, text + "\n")


def discard_other_settings(save_folder, settings):
    """Remove checkpoints that would be taken for an interrupted training of these settings."""
    save_folder = Path(save_folder)
    stamp, text = save_folder / "settings.json", json.dumps(settings, sort_keys=True)
    if save_folder.is_dir() and not (stamp.is_file() and stamp.read_text(encoding="utf-8") == text):
        for checkpoint in save_folder.glob("CKPT+*"):
            logger.warning("checkpoint %s is of other settings and is removed", checkpoint)
            shutil.rmtree(checkpoint)
    save_folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(text, encoding="utf-8")


def warm_cosine(step, num_steps, warmup, last=0.05):
    """Factor of the learning rate: linear warm-up, then a cosine to ``last``.

    Arguments
    ---------
    step, num_steps : int
    warmup : float
        Share of the steps.
    last : float
        Factor at the end.

    Returns
    -------
    float

    Example
    -------
    >>> warm_cosine(0, 100, 0.1), warm_cosine(9, 100, 0.1), round(warm_cosine(100, 100, 0.1), 6)
    (0.1, 1.0, 0.05)
    """
    rising = max(1, int(warmup * num_steps))
    part = min(1.0, max(0, step - rising) / max(1, num_steps - rising))
    return min(1.0, (step + 1) / rising) * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * part)))
