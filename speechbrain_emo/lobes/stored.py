"""Small modules as folders: what they were made with as JSON, their weights as safetensors. Data only, no code.

The class is named by a short word from a closed list, so that a folder cannot choose what Python runs.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_stored(module, folder, kind, arguments):
    """Write a module as a folder that :func:`load_stored` reads.

    Arguments
    ---------
    module : torch.nn.Module
        With the weights.
    folder : str or pathlib.Path
        Made where it does not exist; files there are replaced.
    kind : str
        Short name of the class, for :func:`load_stored`.
    arguments : mapping
        Plain data that the class is made with.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    # The weights first: a folder with a config is complete.
    (folder / CONFIG).unlink(missing_ok=True)
    save_file(state, str(folder / WEIGHTS), metadata={"format": "pt"})
    text = json.dumps({"kind": kind, "arguments": dict(arguments)}, indent=1)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_stored(folder, classes):
    """Make a module from a folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        As :func:`save_stored` writes it.
    classes : mapping of str to type
        Short name -> class: all that may be made.

    Returns
    -------
    torch.nn.Module
        In eval mode.

    Raises
    ------
    ValueError
        If the folder is no such folder, or its weights do not fit.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} lacks {CONFIG} or {WEIGHTS}: give the folder that a training wrote "
            "(hparams/demo_speech_tokenizer.yaml), or train one"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, arguments = config["kind"], config["arguments"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not the config of a stored module ({error})") from error
    if kind not in classes:
        raise ValueError(f"{folder / CONFIG}: kind is {kind!r}; allowed here: {', '.join(sorted(classes))}")
    module = classes[kind](**arguments)
    try:
        module.load_state_dict(load_file(str(folder / WEIGHTS)), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS}: the weights do not fit the {kind}: {error}") from error
    return module.eval()


def fingerprint(module):
    """Hash (16 hexadecimal digits) of a module's weights and their names.

    Example
    -------
    >>> torch.manual_seed(0) is not None and len(fingerprint(torch.nn.Linear(1, 1)))
    16
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
