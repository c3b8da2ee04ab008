"""Word error rate after standard normalisation, with the three kinds of errors apart.

English: the normaliser of A. Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak
Supervision", https://arxiv.org/abs/2212.04356, appendix C. Every other language: its basic normaliser
(lower case, no punctuation, letters with diacritics kept).
"""

import functools
from dataclasses import dataclass

from speechbrain.utils.edit_distance import wer_details_by_utterance

__all__ = ["WordErrors", "normalize_text", "shares_sentences", "word_errors"]


@dataclass
class WordErrors:
    """Errors of a set of utterances.

    Arguments
    ---------
    wer : float
        (substitutions + deletions + insertions) / reference words, a fraction (may exceed 1).
    substitutions, deletions, insertions : int
        Counts over all utterances.
    num_words : int
        Reference words after normalisation.
    num_utterances : int
        Utterances with a reference.
    num_exact : int
        Utterances without any error.
    """

    wer: float
    substitutions: int
    deletions: int
    insertions: int
    num_words: int
    num_utterances: int
    num_exact: int


@functools.cache
def _normalizer(language):
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()


def normalize_text(text, language="en"):
    """Text as it is compared: see the head of this file.

    Arguments
    ---------
    text : str
        A transcript.
    language : str
        ISO 639-1 code. ``en`` has its own normaliser, all others share the basic one.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If the text is not a string.

    Example
    -------
    >>> normalize_text("Mr. Brown's colour, isn't it?")
    'mister brown is color is not it'
    >>> normalize_text("Das schwarze Stück Papier!", language="de")
    'das schwarze stück papier'
    >>> normalize_text("I don't know...")
    'i do not know'
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r} of type {type(text).__name__}: give a string")
    words = _normalizer(str(language).lower()[:2])(text).split()
    # The English normaliser leaves the last dot of an ellipsis as a word of its own.
    return " ".join(word for word in words if word != ".")


def shares_sentences(test_sentences, train_sentences, language="en"):
    """Whether every test sentence also occurs in training: then WER is closed-set.

    Arguments
    ---------
    test_sentences, train_sentences : iterable of str
        Transcripts of both parts.
    language : str
        Language of the normalisation.

    Returns
    -------
    bool

    Example
    -------
    >>> shares_sentences(["Hello there."], ["hello there", "good bye"])
    True
    """
    test = {normalize_text(s, language) for s in test_sentences}
    return bool(test) and test <= {normalize_text(s, language) for s in train_sentences}


def word_errors(references, hypotheses, language="en"):
    """Word errors over all utterances (pooled: the sum of errors over the sum of reference words).

    Arguments
    ---------
    references : sequence of str
        Reference transcripts (N).
    hypotheses : sequence of str or None
        Recognised text (N); ``None`` counts as empty, so every reference word is deleted.
    language : str
        ISO 639-1 code, see ``normalize_text``.

    Returns
    -------
    WordErrors

    Raises
    ------
    ValueError
        If the lengths differ or no reference word is left.

    Example
    -------
    >>> errors = word_errors(["the cat sat"], ["a cat sat down"])
    >>> round(errors.wer, 3), errors.substitutions, errors.deletions, errors.insertions
    (0.667, 1, 0, 1)
    """
    references, hypotheses = list(references), list(hypotheses)
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: give one hypothesis an utterance"
        )
    # SpeechBrain keys utterances by id; the row number serves.
    reference_words = {str(i): normalize_text(t, language).split() for i, t in enumerate(references)}
    hypothesis_words = {
        str(i): [] if t is None else normalize_text(t, language).split() for i, t in enumerate(hypotheses)
    }
    details = wer_details_by_utterance(reference_words, hypothesis_words)
    num_words = sum(d["num_ref_tokens"] for d in details)
    if not num_words:
        raise ValueError(f"no reference word in {len(references)} transcript(s): WER is not defined")
    counts = {kind: sum(d[kind] for d in details) for kind in ("substitutions", "deletions", "insertions")}
    return WordErrors(
        wer=sum(counts.values()) / num_words,
        num_words=num_words,
        num_utterances=len(details),
        num_exact=sum(d["num_edits"] == 0 for d in details),
        **counts,
    )
