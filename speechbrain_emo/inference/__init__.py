"""Trained models as objects: what explains, talks and annotates, and what they return."""

from .chat import Attributes, ChatError, ChatTurn, EmotionalChat, Reply
from .conversational_tts import ConversationalTTS, ConversationError, Prediction, SpokenReply
from .explanation import Explanation, Failure
from .interfaces import EmotionExplainer
from .word_annotation import AnnotatedWord, WordAnnotation
from .word_emotion import WordEmotionAnnotator

__all__ = [
    "AnnotatedWord",
    "Attributes",
    "ChatError",
    "ChatTurn",
    "ConversationError",
    "ConversationalTTS",
    "EmotionExplainer",
    "EmotionalChat",
    "Explanation",
    "Failure",
    "Prediction",
    "Reply",
    "SpokenReply",
    "WordAnnotation",
    "WordEmotionAnnotator",
]
