"""Trained models as objects: what explains, talks and annotates, and what they return."""

from .chat import Attributes, ChatError, ChatTurn, EmotionalChat, Reply
from .conversational_tts import ConversationalTTS, ConversationError, Prediction, SpokenReply
from .emotional_tts import EmotionalTTS, Voice
from .explanation import Explanation, Failure
from .interfaces import EmotionExplainer
from .speech import SpeakError, Speech
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
    "EmotionalTTS",
    "Explanation",
    "Failure",
    "Prediction",
    "Reply",
    "SpokenReply",
    "SpeakError",
    "Speech",
    "Voice",
    "WordAnnotation",
    "WordEmotionAnnotator",
]
