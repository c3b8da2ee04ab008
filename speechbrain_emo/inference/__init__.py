"""Trained models as objects: :class:`EmotionExplainer`, :class:`WordEmotionAnnotator` and what they return."""

from .explanation import Explanation, Failure
from .interfaces import EmotionExplainer
from .word_annotation import AnnotatedWord, WordAnnotation
from .word_emotion import WordEmotionAnnotator

__all__ = [
    "AnnotatedWord",
    "EmotionExplainer",
    "Explanation",
    "Failure",
    "WordAnnotation",
    "WordEmotionAnnotator",
]
