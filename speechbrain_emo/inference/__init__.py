"""Trained models as objects: :class:`EmotionExplainer`, :class:`EmotionalChat` and what they return."""

from .chat import Attributes, ChatError, ChatTurn, EmotionalChat, Reply
from .explanation import Explanation, Failure
from .interfaces import EmotionExplainer

__all__ = [
    "Attributes",
    "ChatError",
    "ChatTurn",
    "EmotionExplainer",
    "EmotionalChat",
    "Explanation",
    "Failure",
    "Reply",
]
