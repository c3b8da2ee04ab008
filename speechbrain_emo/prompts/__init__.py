"""Prompts: segments, tasks and the packer."""

from .next_line import EmotionTask, NextLineTask
from .packer import PackedBatch, PackedRow, Packer, SlotIndex
from .segments import AnswerField, Example, Slot, Turn
from .tasks import AnswerFormat, ChoiceTask, DialogueTask, InstructionTask, keyed_random, keyed_seed

__all__ = [
    "AnswerField",
    "AnswerFormat",
    "ChoiceTask",
    "DialogueTask",
    "EmotionTask",
    "Example",
    "InstructionTask",
    "NextLineTask",
    "PackedBatch",
    "PackedRow",
    "Packer",
    "Slot",
    "SlotIndex",
    "Turn",
    "keyed_random",
    "keyed_seed",
]
