"""The independent judge of emotions in synthetic speech."""

import numpy as np

from speechbrain_emo.lobes.mel_vocoder import MelSettings
from speechbrain_emo.metrics.emotion_judge import EmotionJudge, functionals

SETTINGS = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)


def test_level_and_rate_are_what_they_are_called():
    time = np.arange(16000) / 16000
    tone = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 10)) * 0.05
    one, loud, fast = (
        functionals(tone, SETTINGS, 10),
        functionals(2 * tone, SETTINGS, 10),
        functionals(tone, SETTINGS, 20),
    )
    assert abs(np.exp(one[0]) / 150 - 1) < 0.03
    # Twice the amplitude: the logarithm of the energy rises by log 2, pitch and rate stay.
    assert np.allclose(loud[2] - one[2], np.log(2), atol=0.02) and np.allclose(
        loud[[0, 5]], one[[0, 5]], atol=1e-3
    )
    assert np.allclose(fast[5] - one[5], np.log(2)) and np.allclose(np.delete(fast, 5), np.delete(one, 5))


def test_a_speaker_s_own_mean_does_not_count():
    rng = np.random.default_rng(0)
    emotions = ["angry", "sad"] * 30
    speakers = ["x"] * 30 + ["y"] * 30
    rows = np.stack([rng.normal(size=4) + (3 if e == "angry" else 0) for e in emotions])
    judge = EmotionJudge(rows, speakers, emotions)
    assert (judge.labels(rows, speakers) == np.array(emotions)).mean() > 0.9
    # The same lines by a speaker whose voice lies elsewhere, known to the judge as such.
    moved = rows + 50.0 * (np.array(speakers) == "y")[:, None]
    other = EmotionJudge(moved, speakers, emotions)
    assert (other.labels(moved, speakers) == judge.labels(rows, speakers)).all()
