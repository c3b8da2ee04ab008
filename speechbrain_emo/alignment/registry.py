"""Aligners by name. A module is imported when its aligner is asked for: none of them is needed by the others."""

import importlib
import inspect

from speechbrain_emo.alignment.types import AlignmentError

#: Name -> module and class.
ALIGNERS = {
    "pocketsphinx": ("speechbrain_emo.alignment.pocketsphinx_aligner", "PocketsphinxAligner"),
    "espeak-dtw": ("speechbrain_emo.alignment.espeak_dtw", "EspeakDTWAligner"),
    "ctc": ("speechbrain_emo.alignment.ctc", "CTCAligner"),
    "mfa": ("speechbrain_emo.alignment.mfa", "MFAAligner"),
    "textgrid": ("speechbrain_emo.alignment.imported", "TextGridAligner"),
}


def make_aligner(name, **options):
    """An aligner by its name.

    Arguments
    ---------
    name : str
        A key of ``ALIGNERS``.
    **options
        Arguments of the aligner's class.

    Returns
    -------
    Aligner

    Raises
    ------
    AlignmentError
        If the name or an option is unknown, or a package or program that the aligner needs is missing.

    Example
    -------
    >>> make_aligner("gentle")
    Traceback (most recent call last):
    ...
    speechbrain_emo.alignment.types.AlignmentError: aligner 'gentle' is unknown; allowed: pocketsphinx, espeak-dtw, ...
    """
    if name not in ALIGNERS:
        raise AlignmentError(f"aligner {name!r} is unknown; allowed: {', '.join(ALIGNERS)}")
    module, attribute = ALIGNERS[name]
    aligner = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(aligner).parameters
    allowed = list(parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise AlignmentError(f"aligner {name!r} has no option {unknown[0]!r}; allowed: {', '.join(allowed)}")
    needed = [
        key for key in allowed if parameters[key].default is inspect.Parameter.empty and key not in options
    ]
    if needed:
        raise AlignmentError(
            f"aligner {name!r} needs the option {needed[0]!r}; its options: {', '.join(allowed)}"
        )
    return aligner(**options)
