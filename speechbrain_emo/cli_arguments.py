"""What arguments of the commands may be; each says what it allows when it is given something else."""

import argparse


def number(low, high, what):
    """A reader of numbers within bounds.

    Arguments
    ---------
    low, high : float
        Allowed, both included.
    what : str
        What the message calls them.

    Returns
    -------
    callable
        str -> float, for ``type=`` of ``argparse``.

    Example
    -------
    >>> number(0, 1, "a share")("0.5")
    0.5
    """

    def read(text):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


def count(text):
    """A whole number of 0 and above.

    Example
    -------
    >>> count("0")
    0
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 and above")
    return int(text)


def positive(text):
    """A whole number of 1 and above.

    Example
    -------
    >>> positive("8")
    8
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 and above")
    return int(text)


def usable_device(name):
    """SpeechBrain's run options of a device.

    Arguments
    ---------
    name : str or None
        Of ``--device``; None: SpeechBrain's choice, a GPU where there is one.

    Returns
    -------
    tuple
        (run options or None, None), or (None, why it cannot be used).

    Example
    -------
    >>> usable_device("cpu"), usable_device(None)
    (({'device': 'cpu'}, None), (None, None))
    >>> usable_device("abacus")[1]
    '--device abacus: cannot be used here (...); leave it out, or give cpu'
    """
    import torch

    if name is None:
        return None, None
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return None, f"--device {name}: cannot be used here ({reason}); leave it out, or give cpu"
    return {"device": name}, None
