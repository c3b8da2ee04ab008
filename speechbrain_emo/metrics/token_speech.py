"""Scores of speech tokens that need no audio: where words lie, and whether the same sounds are there.

What is compared is what a recogniser hears in the tokens (class probabilities of every frame). Sounds are the runs of
its most probable class; the words of a recording are carried over by dynamic time warping.
"""

import numpy as np
from speechbrain.utils.edit_distance import op_table

from speechbrain_emo.dataio.compiled_librosa import librosa


def collapse(heard):
    """Most probable class of every frame, repeats as one.

    Arguments
    ---------
    heard : numpy.ndarray
        (T, K).

    Returns
    -------
    list of int

    Example
    -------
    >>> collapse(np.eye(3)[[0, 0, 2, 2, 0]])
    [0, 2, 0]
    """
    best = np.asarray(heard).argmax(-1)
    return [int(c) for i, c in enumerate(best) if i == 0 or c != best[i - 1]]


def edit_share(reference, hypothesis):
    """Edit distance of two sequences over the length of the first.

    Arguments
    ---------
    reference, hypothesis : sequence of int
        The first not empty.

    Returns
    -------
    float

    Example
    -------
    >>> edit_share([1, 2, 3, 4], [1, 3, 4])
    0.25
    """
    table = op_table(list(reference), list(hypothesis))
    row, column, edits = len(reference), len(hypothesis), 0
    # Walk back through the operations that the table chose.
    while row or column:
        operation = table[row][column]
        if operation == "=":
            row, column = row - 1, column - 1
        elif operation == "S":
            row, column, edits = row - 1, column - 1, edits + 1
        elif operation == "I":
            column, edits = column - 1, edits + 1
        else:
            row, edits = row - 1, edits + 1
    return edits / len(reference)


def warp_words(reference, words, heard):
    """Word of every frame of new speech, from the words of a recording of the same sentence.

    Arguments
    ---------
    reference : numpy.ndarray
        Class probabilities of the recording, (T, K).
    words : sequence of int
        Word of each of its frames, -1 for none, T of them.
    heard : numpy.ndarray
        Class probabilities of the new speech, (U, K).

    Returns
    -------
    list of int
        U numbers. A frame that the warping ties to several frames takes their most frequent word.

    Example
    -------
    >>> sounds = np.eye(4)
    >>> warp_words(sounds[[0, 1, 2, 3]], [0, 0, 1, -1], sounds[[0, 0, 0, 1, 2, 2, 3]])
    [0, 0, 0, 0, 1, 1, -1]
    """
    if not len(heard):
        return []
    # Square roots: the distance of Hellinger, which does not let one sharp frame outweigh all others.
    cost, path = librosa.sequence.dtw(np.sqrt(reference).T, np.sqrt(heard).T, metric="euclidean")
    del cost
    found = [[] for _ in range(len(heard))]
    for first, second in path[::-1]:
        found[second].append(words[first])
    return [max(candidates, key=candidates.count) for candidates in found]
