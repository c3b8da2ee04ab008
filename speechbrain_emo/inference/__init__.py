"""Trained models as objects: :class:`EmotionExplainer` and what it returns."""

from .explanation import Explanation, Failure
from .interfaces import EmotionExplainer

__all__ = ["EmotionExplainer", "Explanation", "Failure"]
