"""Kinds of numbers on the command line: each says what it allows when it is given something else."""

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
