"""Emotion diarization error rate (EDER) of a timeline, by SpeechBrain's implementation.

Definition: Y. Wang et al. 2023, "Speech Emotion Diarization: Which Emotion Appears When?",
https://arxiv.org/abs/2306.12991: missed emotion, false alarm and confusion over the duration. SpeechBrain's
function takes one emotion a recording and tells emotions by their first letter; here the recording is cut at the
reference's change times, each piece is one such recording with a letter of its own an emotion, and the pieces are
averaged by duration. That is exact, because the right time of a piece depends on that piece alone.
"""

import math

from speechbrain.utils.EDER import EDER

__all__ = ["emotion_diarization_error"]

# SpeechBrain's own letter for what has no emotion.
_NOTHING = "n"


def emotion_diarization_error(predicted, reference, frame=0.02):
    """Share of the reference's time that the timeline names wrongly.

    Arguments
    ---------
    predicted : sequence of mapping
        ``start``, ``end`` (seconds) and ``emotion``, in order, not overlapping; what lies between is no emotion.
    reference : sequence of mapping
        The same for the truth. Time outside the reference is not scored.
    frame : float
        Step in seconds at which the prediction is read; times are exact to half of it.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If there is no reference, a segment is empty, or segments overlap.

    Example
    -------
    >>> truth = [{"start": 0, "end": 6, "emotion": "sad"}, {"start": 6, "end": 10, "emotion": "surprise"}]
    >>> round(emotion_diarization_error([{"start": 0, "end": 10, "emotion": "sad"}], truth), 3)
    0.4
    >>> round(emotion_diarization_error(truth, truth), 3)
    0.0
    """
    predicted, reference = _ordered(predicted, "predicted"), _ordered(reference, "reference")
    if not reference:
        raise ValueError("the reference has no segment: give the true emotions with their times")
    if not (frame > 0 and math.isfinite(frame)):
        raise ValueError(f"frame is {frame}: give a positive number of seconds")
    names = sorted({s["emotion"] for s in (*predicted, *reference) if s["emotion"] is not None})
    # Private characters: 'happy' and 'hate' differ, and none is the letter of no emotion.
    letters = {name: chr(0xE000 + i) for i, name in enumerate(names)} | {None: _NOTHING}
    total = missed = 0.0
    for number, segment in enumerate(reference):
        duration = segment["end"] - segment["start"]
        count = max(1, round(duration / frame))
        step = duration / count
        frames, at = [], 0
        for i in range(count):
            middle = segment["start"] + (i + 0.5) * step
            while at < len(predicted) and predicted[at]["end"] <= middle:
                at += 1
            inside = at < len(predicted) and predicted[at]["start"] <= middle
            frames.append(letters[predicted[at]["emotion"] if inside else None])
        truth = [{"emo": letters[segment["emotion"]], "start": 0.0, "end": duration}]
        missed += duration * EDER(frames, str(number), duration, truth, step, step)
        total += duration
    return min(max(missed / total, 0.0), 1.0)


def _ordered(segments, name):
    segments = list(segments)
    end = -math.inf
    for segment in segments:
        if not segment["start"] < segment["end"]:
            raise ValueError(f"{name} segment {dict(segment)} is empty: end must be after start")
        if segment["start"] < end - 1e-6:
            raise ValueError(
                f"{name} segment {dict(segment)} begins before the one before ends, at {end:g} s: one "
                "emotion at a time"
            )
        end = segment["end"]
    return segments
