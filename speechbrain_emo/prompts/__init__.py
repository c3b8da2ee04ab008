"""Prompts: segments, tasks and the packer."""

from .packer import PackedBatch, PackedRow, Packer, SlotIndex
from .segments import AnswerField, Example, Slot, Turn
from .next_line import EmotionTask, NextLineTask
from .tasks import AnswerFormat, ChoiceTask, DialogueTask, InstructionTask, keyed_random, keyed_seed

__all__ = [
    "AnswerField",
    "AnswerFormat",
    "ChoiceTask",
    "DialogueTask",
    "Example",
    "InstructionTask",
    "PackedBatch",
    "PackedRow",
    "Packer",
    "Slot",
    "SlotIndex",
    "Turn",
    "keyed_random",
    "keyed_seed",
]
