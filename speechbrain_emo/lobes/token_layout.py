"""How text and speech tokens stand in the sequence of a speech-token language model.

CosyVoice 2 (Du et al. 2024, https://arxiv.org/abs/2412.10117, section 2.3): [sos, text, task, speech] predicts the
speech tokens and then the end token. For text that arrives while speech is made, 5 text tokens and 15 speech tokens
take turns; after each turn of speech the model says "fill", which asks for text and is never read itself; what is left
of the text is followed by the task marker and the rest of the speech. Axis letters: S text tokens, T speech tokens.
"""

from dataclasses import dataclass

import numpy as np

SOS, TEXT, TASK, SPEECH, PADDING = range(5)
#: Target of a position that predicts no speech token.
IGNORE = -100
#: Targets that are no index of a speech token of the row.
END, FILL = -1, -2
#: Text and speech tokens that take turns, as published.
MIX = (5, 15)


@dataclass(frozen=True)
class Layout:
    """Positions of one sequence.

    Arguments
    ---------
    kinds : numpy.ndarray
        int64 (P,): SOS, TEXT, TASK or SPEECH.
    indices : numpy.ndarray
        int64 (P,): which text or speech token, 0 for markers.
    targets : numpy.ndarray
        int64 (P,): which speech token (0 to T - 1) the position predicts, END, FILL or IGNORE.
    """

    kinds: np.ndarray
    indices: np.ndarray
    targets: np.ndarray


def _layout(parts, targets):
    kinds = np.concatenate([np.full(len(numbers), kind) for kind, numbers in parts])
    indices = np.concatenate([np.asarray(numbers, dtype=np.int64) for _, numbers in parts])
    return Layout(kinds.astype(np.int64), indices, np.asarray(targets, dtype=np.int64))


def whole_text(num_text, num_speech):
    """Layout of [sos, text, task, speech].

    Arguments
    ---------
    num_text, num_speech : int
        S and T, 0 and above.

    Returns
    -------
    Layout

    Example
    -------
    >>> whole_text(2, 2).kinds.tolist(), whole_text(2, 2).targets.tolist()
    ([0, 1, 1, 2, 3, 3], [-100, -100, -100, 0, 1, -1])
    """
    parts = [(SOS, [0]), (TEXT, range(num_text)), (TASK, [0]), (SPEECH, range(num_speech))]
    return _layout(parts, [IGNORE] * (1 + num_text) + [*range(num_speech), END])


def can_interleave(num_text, num_speech, mix=MIX):
    """Whether there is speech enough for every turn: T / S above the published ratio of the turns."""
    return num_text > 0 and num_speech / num_text > mix[1] / mix[0]


def interleaved(num_text, num_speech, mix=MIX):
    """Layout in which turns of text and speech alternate.

    Arguments
    ---------
    num_text, num_speech : int
        S and T.
    mix : tuple of int
        Text and speech tokens of a turn.

    Returns
    -------
    Layout

    Raises
    ------
    ValueError
        Where :func:`can_interleave` says no.

    Example
    -------
    >>> layout = interleaved(3, 8, mix=(2, 3))
    >>> layout.kinds.tolist()
    [0, 1, 1, 3, 3, 3, 1, 2, 3, 3, 3, 3, 3]
    >>> layout.targets.tolist()
    [-100, -100, 0, 1, 2, -2, -100, 3, 4, 5, 6, 7, -1]
    """
    if not can_interleave(num_text, num_speech, mix):
        raise ValueError(
            f"{num_speech} speech tokens for {num_text} text tokens: turns of {mix} need more than "
            f"{mix[1] / mix[0]:g} speech tokens a text token; use whole_text"
        )
    parts, targets = [(SOS, [0])], [IGNORE]
    turns = num_text // mix[0]
    for turn in range(turns):
        speech = range(turn * mix[1], (turn + 1) * mix[1])
        parts += [(TEXT, range(turn * mix[0], (turn + 1) * mix[0])), (SPEECH, speech)]
        targets += [IGNORE] * (mix[0] - 1) + [*speech, FILL]
    rest, speech = range(turns * mix[0], num_text), range(turns * mix[1], num_speech)
    parts += [(TEXT, rest), (TASK, [0]), (SPEECH, speech)]
    targets += [IGNORE] * len(rest) + [*speech, END]
    return _layout(parts, targets)
