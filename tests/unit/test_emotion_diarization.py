"""EDER of timelines with several emotions: against SpeechBrain's own function and against plain overlap."""

import numpy as np
import pytest
from speechbrain.utils.EDER import EDER

from speechbrain_emo.metrics.emotion_diarization import emotion_diarization_error


def segments(*entries):
    return [{"start": a, "end": b, "emotion": e} for a, b, e in entries]


TRUTH = segments((0, 20, "sad"), (20, 45, "surprise"), (45, 60, "happy"))


def test_a_constant_label_does_not_pass():
    for emotion, right in (("sad", 20), ("surprise", 25), ("happy", 15)):
        found = emotion_diarization_error(segments((0, 60, emotion)), TRUTH)
        assert found == pytest.approx(1 - right / 60, abs=1e-6)
    assert emotion_diarization_error(TRUTH, TRUTH) == pytest.approx(0, abs=1e-6)
    assert emotion_diarization_error([], TRUTH) == pytest.approx(1)


def test_labels_with_the_same_first_letter_are_different():
    """SpeechBrain tells emotions by their first letter: sad and surprise would be one."""
    swapped = segments((0, 20, "surprise"), (20, 45, "sad"), (45, 60, "happy"))
    assert emotion_diarization_error(swapped, TRUTH) == pytest.approx(45 / 60, abs=1e-6)


def test_one_emotion_with_neutral_around_it_is_speechbrains_number():
    truth = segments((0, 0.39, "neutral"), (0.39, 1.1, "angry"), (1.1, 1.22, "neutral"))
    frames = ["n"] * 30 + ["a"] * 31
    theirs = EDER(frames, "u", 1.22, [{"emo": "angry", "start": 0.39, "end": 1.1}], 0.02, 0.02)
    ours = emotion_diarization_error(segments((0, 0.6, "neutral"), (0.6, 1.22, "angry")), truth, frame=0.01)
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_random_timelines_against_overlap():
    rng = np.random.default_rng(0)
    for _ in range(20):
        both = []
        for _ in range(2):
            times = [0, *sorted(rng.uniform(0, 50, 6)), 50]
            both.append(segments(*zip(times, times[1:], rng.choice(["sad", "hap", "hat", None], 7))))
        predicted, truth = both
        right = sum(
            max(0, min(p["end"], t["end"]) - max(p["start"], t["start"]))
            for p in predicted
            for t in truth
            if p["emotion"] == t["emotion"]
        )
        assert emotion_diarization_error(predicted, truth) == pytest.approx(1 - right / 50, abs=0.005)


def test_bad_input():
    with pytest.raises(ValueError, match="no segment"):
        emotion_diarization_error(TRUTH, [])
    with pytest.raises(ValueError, match="is empty"):
        emotion_diarization_error(segments((3, 3, "sad")), TRUTH)
    with pytest.raises(ValueError, match="one emotion at a time"):
        emotion_diarization_error(segments((0, 5, "sad"), (4, 6, "happy")), TRUTH)
    with pytest.raises(ValueError, match="frame"):
        emotion_diarization_error(TRUTH, TRUTH, frame=0)
