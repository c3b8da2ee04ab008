"""When each word of a known text is spoken: one result type, several aligners, TextGrid and CTM in and out."""

from speechbrain_emo.alignment.registry import ALIGNERS, make_aligner
from speechbrain_emo.alignment.types import (
    AlignedInterval,
    Aligner,
    Alignment,
    AlignmentError,
    AlignmentItem,
    align_each,
)

__all__ = [
    "ALIGNERS",
    "AlignedInterval",
    "Aligner",
    "Alignment",
    "AlignmentError",
    "AlignmentItem",
    "align_each",
    "make_aligner",
]
