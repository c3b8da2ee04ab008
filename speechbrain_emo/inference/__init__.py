"""Trained models as objects: what explains, talks and annotates, and what they return."""

from .chat import Attributes, ChatError, ChatTurn, EmotionalChat, Reply
from .explanation import Explanation, Failure
from .interfaces import EmotionExplainer
from .word_annotation import AnnotatedWord, WordAnnotation
from .word_emotion import WordEmotionAnnotator

__all__ = [
    "AnnotatedWord",
    "Attributes",
    "ChatError",
    "ChatTurn",
    "EmotionExplainer",
    "EmotionalChat",
    "Explanation",
    "Failure",
    "Reply",
    "WordAnnotation",
    "WordEmotionAnnotator",
]
