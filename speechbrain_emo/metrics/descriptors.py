"""Scores of speech emotion descriptors: closed fields, emphasised words, the free sentence, faithfulness.

The free sentence is scored by packages of the field (extra ``eval``): sacrebleu (BLEU-4, Post 2018),
rouge-score (ROUGE-L, Lin 2004) and pycocoevalcap (CIDEr, Vedantam et al. 2015; METEOR, Denkowski and
Lavie 2014; SPICE, Anderson et al. 2016). METEOR and SPICE run in Java. What cannot run is reported as
not computed with the reason, never as 0.
"""

import contextlib
import importlib
import math
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from speechbrain_emo.metrics.asr import normalize_text

__all__ = [
    "DirectionScores",
    "EmphasisScores",
    "FieldScores",
    "TextScore",
    "description_scores",
    "emphasis_scores",
    "faithfulness",
    "field_scores",
    "shift_response",
]


@dataclass
class FieldScores:
    """Scores of one closed field.

    Arguments
    ---------
    accuracy : float
        Share of exact matches, in [0, 1].
    balanced_accuracy : float
        Mean over the reference's values of the share of exact matches.
    count : int
        Utterances with a reference value.
    num_missing : int
        Utterances among them without a predicted value; they count as wrong.
    """

    accuracy: float
    balanced_accuracy: float
    count: int
    num_missing: int


@dataclass
class EmphasisScores:
    """Agreement of emphasised words, compared as multisets of normalised words.

    Arguments
    ---------
    exact : float
        Share of utterances whose emphasised words are all and only the reference's.
    precision, recall, f1 : float
        Over the words of all utterances; 1 when neither side has a word.
    count : int
        Utterances with a reference (an empty list of words is a reference).
    """

    exact: float
    precision: float
    recall: float
    f1: float
    count: int


@dataclass
class TextScore:
    """A score of free text, or why there is none.

    Arguments
    ---------
    value : float or None
        Fraction (CIDEr: times 10 by its definition); ``None`` if not computed.
    reason : str or None
        Why it was not computed.
    """

    value: float | None
    reason: str | None = None


@dataclass
class DirectionScores:
    """How predictions of an ordered field move when the audio is shifted.

    Arguments
    ---------
    right, wrong, unmoved : int
        Counts of utterances.
    saturated : int
        Utterances that already had the extreme value in the direction of the shift, or whose
        prediction is missing on either side; not part of the share.
    share_right : float or None
        right / (right + wrong + unmoved); ``None`` if nothing could move.
    """

    right: int
    wrong: int
    unmoved: int
    saturated: int
    share_right: float | None


def _value(value):
    """Values compare without case and surrounding blanks; an empty one is missing."""
    text = "" if value is None else str(value).strip().lower()
    return text or None


def field_scores(references, predictions):
    """Exact match of one descriptor field, plain and balanced over the reference's values.

    Arguments
    ---------
    references : sequence of str or None
        Reference value of each utterance (N); utterances with ``None`` are left out.
    predictions : sequence of str or None
        Predicted value (N); ``None`` counts as wrong.

    Returns
    -------
    FieldScores or None
        ``None`` if no utterance has a reference value.

    Raises
    ------
    ValueError
        If the lengths differ.

    Example
    -------
    >>> field_scores(["high", "high", "low", None], ["High", "high", None, "low"])
    FieldScores(accuracy=0.6666666666666666, balanced_accuracy=0.5, count=3, num_missing=1)
    """
    pairs = [(r, p) for r, p in _pairs(references, predictions, _value) if r is not None]
    if not pairs:
        return None
    hits = {}
    for reference, prediction in pairs:
        hits.setdefault(reference, []).append(reference == prediction)
    return FieldScores(
        accuracy=sum(r == p for r, p in pairs) / len(pairs),
        balanced_accuracy=sum(sum(h) / len(h) for h in hits.values()) / len(hits),
        count=len(pairs),
        num_missing=sum(p is None for _, p in pairs),
    )


def _pairs(references, predictions, convert):
    references, predictions = list(references), list(predictions)
    if len(references) != len(predictions):
        raise ValueError(
            f"{len(references)} references but {len(predictions)} predictions: give one of each an utterance"
        )
    return [(convert(r), convert(p)) for r, p in zip(references, predictions)]


def emphasis_scores(references, predictions, language="en"):
    """Match of the emphasised words.

    Arguments
    ---------
    references : sequence of list of str, or None
        Emphasised words of each utterance (N); ``None``: unknown, left out; ``[]``: none emphasised.
    predictions : sequence of list of str, or None
        Predicted words (N); ``None`` counts as no word and never as an exact match.
    language : str
        Language of the normalisation of words.

    Returns
    -------
    EmphasisScores or None
        ``None`` if no utterance has a reference.

    Raises
    ------
    ValueError
        If the lengths differ.
    TypeError
        If words are given as one string.

    Example
    -------
    >>> emphasis_scores([["never"], []], [["Never,"], ["so"]])
    EmphasisScores(exact=0.5, precision=0.5, recall=1.0, f1=0.6666666666666666, count=2)
    """

    def words(value):
        if value is None:
            return None
        if isinstance(value, str):
            raise TypeError(f"emphasis is the string {value!r}: give a list of words")
        return sorted(w for item in value for w in normalize_text(str(item), language).split())

    exact = shared = num_reference = num_predicted = count = 0
    for reference, prediction in _pairs(references, predictions, words):
        if reference is None:
            continue
        count += 1
        exact += reference == prediction
        rest = list(reference)
        for word in prediction or ():
            if word in rest:
                rest.remove(word)
                shared += 1
        num_reference += len(reference)
        num_predicted += len(prediction or ())
    if not count:
        return None
    nothing = not num_reference and not num_predicted
    precision = shared / num_predicted if num_predicted else float(nothing)
    recall = shared / num_reference if num_reference else float(nothing)
    total = num_reference + num_predicted
    return EmphasisScores(
        exact=exact / count,
        precision=precision,
        recall=recall,
        f1=2 * shared / total if total else 1.0,
        count=count,
    )


def faithfulness(predictions, measured, fields):
    """Whether predicted descriptors agree with those measured in the audio itself.

    Arguments
    ---------
    predictions : sequence of dict
        Predicted descriptors of each utterance (N), field -> value.
    measured : sequence of dict
        Measured descriptors (N), field -> value; a field that is absent or ``None`` is left out.
    fields : sequence of str
        Fields to compare, for example pitch, volume and speed.

    Returns
    -------
    dict
        Field -> ``FieldScores``, or ``None`` where nothing was measured.

    Raises
    ------
    ValueError
        If the lengths differ.

    Example
    -------
    >>> faithfulness([{"pitch": "high"}], [{"pitch": "high", "speed": "fast"}], ["pitch"])["pitch"].accuracy
    1.0
    """
    return {
        name: field_scores(
            [(m or {}).get(name) for m in measured],
            [(p or {}).get(name) for p in predictions],
        )
        for name in fields
    }


def shift_response(before, after, direction, order):
    """Whether predictions of an ordered field move the right way when the audio is shifted.

    Arguments
    ---------
    before, after : sequence of str or None
        Predicted values on the original and on the shifted audio (N each).
    direction : int
        +1 if the shift raises the field (pitch up, faster, louder), -1 if it lowers it.
    order : sequence of str
        The field's values from lowest to highest, for example ``("low", "normal", "high")``. A value
        outside it (``unvoiced``) is treated as missing.

    Returns
    -------
    DirectionScores

    Raises
    ------
    ValueError
        If the direction is not +1 or -1, or the lengths differ.

    Example
    -------
    >>> shift_response(["low", "high", "normal"], ["normal", "high", "low"], +1, ("low", "normal", "high"))
    DirectionScores(right=1, wrong=1, unmoved=0, saturated=1, share_right=0.5)
    """
    if direction not in (1, -1):
        raise ValueError(f"direction is {direction!r}: give +1 (raised) or -1 (lowered)")
    rank = {_value(v): i for i, v in enumerate(order)}
    extreme = len(rank) - 1 if direction == 1 else 0
    right = wrong = unmoved = saturated = 0
    for old, new in _pairs(before, after, lambda v: rank.get(_value(v))):
        if old is None or new is None or (old == extreme and new == extreme):
            saturated += 1
        elif (new - old) * direction > 0:
            right += 1
        elif new == old:
            unmoved += 1
        else:
            wrong += 1
    movable = right + wrong + unmoved
    return DirectionScores(right, wrong, unmoved, saturated, right / movable if movable else None)


def _load(module):
    """A module of the extra ``eval``, or the reason why it cannot be used."""
    try:
        return importlib.import_module(module), None
    except ImportError as error:
        package = module.split(".")[0]
        return None, f"package {package} is not usable ({error}): pip install 'speechbrain_emo[eval]'"


def _java():
    """Reason why Java cannot be used, or None."""
    if shutil.which("java") is None:
        return "java not found on the PATH: install a Java runtime"
    return None


def _run_meteor(references, hypotheses, language, timeout=600.0):
    module, reason = _load("pycocoevalcap.meteor.meteor")
    reason = reason or _java()
    if reason is None and language != "en":
        reason = f"METEOR's paraphrase tables are used for English only, the language is {language!r}"
    if reason:
        return TextScore(None, reason)
    scorer = module.Meteor()
    # A pipe to Java that stops answering would hang for ever; killing the process ends the read.
    watchdog = threading.Timer(timeout, scorer.meteor_p.kill)
    watchdog.start()
    try:
        value, _ = scorer.compute_score(references, hypotheses)
    except (BrokenPipeError, OSError, ValueError) as error:
        if scorer.lock.locked():
            # The package keeps its lock when scoring fails and then waits for it when it is deleted.
            scorer.lock.release()
        with contextlib.suppress(BrokenPipeError):
            # Closing flushes to the dead process; done here, it is not reported again at deletion.
            scorer.meteor_p.stdin.close()
        return TextScore(None, f"METEOR's Java process failed: {type(error).__name__}: {error}")
    finally:
        watchdog.cancel()
    return TextScore(float(value))


def _run_spice(references, hypotheses, language):
    module, reason = _load("pycocoevalcap.spice.spice")
    reason = reason or _java()
    if reason is None and language != "en":
        reason = f"SPICE parses English only, the language is {language!r}"
    if reason is None:
        # Its constructor would download half a gigabyte unasked.
        jar = Path(module.__file__).parent / "lib" / "stanford-corenlp-3.6.0.jar"
        if not jar.is_file():
            reason = (
                "SPICE's Stanford CoreNLP 3.6.0 models are absent: run "
                "`python -m pycocoevalcap.spice.get_stanford_models` (0.4 GB)"
            )
    if reason:
        return TextScore(None, reason)
    try:
        value, _ = module.Spice().compute_score(references, hypotheses)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        return TextScore(None, f"SPICE's Java process failed: {type(error).__name__}: {error}")
    return TextScore(None, "SPICE gave no number") if math.isnan(value) else TextScore(float(value))


def description_scores(references, hypotheses, language="en", java=True):
    """BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE of free sentences, one reference an utterance.

    Sentences are lower-cased and stripped of punctuation first, with one tokenisation for all
    scores, so that they do not depend on whether Java is there. CIDEr's document frequencies come
    from the references given: it is only comparable between systems on the same test set, and it is
    0 by definition where there is one utterance only.

    Arguments
    ---------
    references : sequence of str or None
        Reference sentences (N); utterances with ``None`` are left out.
    hypotheses : sequence of str or None
        Generated sentences (N); ``None`` counts as an empty sentence.
    language : str
        ISO 639-1 code; METEOR and SPICE are for English.
    java : bool
        Whether scores that need Java may start it.

    Returns
    -------
    dict
        ``bleu4``, ``meteor``, ``rouge_l``, ``cider``, ``spice`` -> ``TextScore``; empty if no
        utterance has a reference.

    Raises
    ------
    ValueError
        If the lengths differ.

    Example
    -------
    >>> scores = description_scores(["a calm low voice speaks"], ["A calm, low voice speaks."], java=False)
    >>> round(scores["bleu4"].value, 3), scores["spice"]
    (1.0, TextScore(value=None, reason='Java was switched off (evaluation: {java: true}, or evaluate --java)'))
    """

    def plain(value):
        # The basic normaliser for every language: numbers and spelling variants stay as written.
        return None if value is None else normalize_text(str(value), language="und")

    pairs = [(r, h or "") for r, h in _pairs(references, hypotheses, plain) if r]
    if not pairs:
        return {}
    scores = {}
    sacrebleu, reason = _load("sacrebleu")
    if sacrebleu is None:
        scores["bleu4"] = TextScore(None, reason)
    else:
        bleu = sacrebleu.metrics.BLEU(tokenize="none", force=True)
        score = bleu.corpus_score([h for _, h in pairs], [[r for r, _ in pairs]]).score
        scores["bleu4"] = TextScore(score / 100)
    rouge, reason = _load("rouge_score.rouge_scorer")
    if rouge is None:
        scores["rouge_l"] = TextScore(None, reason)
    else:

        class Blanks:
            """rouge-score's own tokeniser drops every letter outside a-z."""

            @staticmethod
            def tokenize(text):
                return text.split()

        scorer = rouge.RougeScorer(["rougeL"], tokenizer=Blanks())
        total = sum(scorer.score(r, h)["rougeL"].fmeasure for r, h in pairs)
        scores["rouge_l"] = TextScore(total / len(pairs))
    coco_references = {str(i): [r] for i, (r, _) in enumerate(pairs)}
    coco_hypotheses = {str(i): [h] for i, (_, h) in enumerate(pairs)}
    cider, reason = _load("pycocoevalcap.cider.cider")
    if cider is None:
        scores["cider"] = TextScore(None, reason)
    else:
        scores["cider"] = TextScore(float(cider.Cider().compute_score(coco_references, coco_hypotheses)[0]))
    if java:
        scores["meteor"] = _run_meteor(coco_references, coco_hypotheses, language)
        scores["spice"] = _run_spice(coco_references, coco_hypotheses, language)
    else:
        scores["meteor"] = scores["spice"] = TextScore(
            None, "Java was switched off (evaluation: {java: true}, or evaluate --java)"
        )
    return {name: scores[name] for name in ("bleu4", "meteor", "rouge_l", "cider", "spice")}
