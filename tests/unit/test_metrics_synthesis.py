"""Scores of synthetic speech against known signals and independent computations."""

import json

import numpy as np
import pytest
import soundfile

from speechbrain_emo.inference.speech_scores import Judges, ScoreError, read_outputs, score_folder
from speechbrain_emo.metrics.synthesis import (
    WordProsody,
    copy_pesq,
    cosine_dtw,
    emotion_similarity,
    frame_f0,
    mel_cepstral_distortion,
    shift_correlations,
    word_prosody,
)
from speechbrain_emo.metrics.token_speech import collapse, edit_share, warp_words

RATE = 16000


def voice(f0, seconds=0.5, level=0.1):
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 9))
    return level * wave / np.sqrt(np.mean(wave**2))


@pytest.mark.parametrize("f0", [85.0, 123.4, 210.0, 333.0, 440.0])
def test_f0_of_harmonic_tones(f0):
    found = frame_f0(voice(f0), RATE)
    assert abs(np.nanmedian(found) / f0 - 1) < 0.005
    assert np.isnan(found[3:-3]).mean() < 0.05
    assert (
        abs(
            np.nanmedian(
                frame_f0(np.interp(np.arange(12000) / 24000, np.arange(8000) / RATE, voice(f0)), 24000)
            )
            / f0
            - 1
        )
        < 0.01
    )


def test_noise_and_silence_have_no_f0():
    noise = np.random.default_rng(0).standard_normal(RATE)
    assert np.isnan(frame_f0(noise, RATE)).mean() > 0.9
    assert np.isnan(frame_f0(np.zeros(RATE), RATE)).all()


def test_prosody_of_words_is_what_was_put_in():
    wave = np.concatenate([voice(128, 0.4, 0.1), np.zeros(4800), voice(256, 0.8, 0.02)])
    found = word_prosody(wave, RATE, [(0.0, 0.4), (0.44, 0.66), (0.7, 1.5)])
    np.testing.assert_allclose(found.log_f0[[0, 2]], [7.0, 8.0], atol=0.02)
    assert np.isnan(found.log_f0[1]) and found.energy[1] == -100.0
    np.testing.assert_allclose(found.energy[[0, 2]], [-20.0, 20 * np.log10(0.02)], atol=0.1)
    np.testing.assert_allclose(found.duration, [0.4, 0.22, 0.8])


def test_correlation_is_of_shifts_inside_utterances():
    """A voice that is higher throughout correlates no less; opposite shifts correlate by -1."""
    rng = np.random.default_rng(0)

    def words(sign, offset):
        found = []
        for i in range(5):
            shift = np.random.default_rng(i).normal(0, 0.3, 6)
            found.append(
                WordProsody(7 + offset + sign * shift, -20 + sign * shift, np.exp(sign * shift) * 0.3)
            )
        return found

    same = shift_correlations(words(1, 0.0), words(1, 0.7))
    assert all(same[name] == pytest.approx(1) for name in ("log_f0", "energy", "log_duration"))
    assert shift_correlations(words(1, 0.0), words(-1, 0.0))["log_f0"] == pytest.approx(-1)
    assert same["words"] == 30
    hidden = [WordProsody(np.full(6, np.nan), w.energy, w.duration) for w in words(1, 0)]
    assert shift_correlations(words(1, 0), hidden)["log_f0"] is None
    noise = [WordProsody(rng.normal(7, 1, 6), w.energy, w.duration) for w in words(1, 0)]
    assert abs(shift_correlations(words(1, 0), noise)["log_f0"]) < 0.6
    with pytest.raises(ValueError, match="6 words in the reference, 1 in the output"):
        shift_correlations(words(1, 0)[:1], [WordProsody(np.ones(1), np.ones(1), np.ones(1))])


def all_paths(cost):
    """Cheapest sum over all monotone paths, by recursion."""
    from functools import cache

    @cache
    def best(i, j):
        if i == j == 0:
            return cost[0, 0], 1
        options = [best(*p) for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if min(p) >= 0]
        total, length = min(options, key=lambda o: o[0])
        return total + cost[i, j], length + 1

    return best(cost.shape[0] - 1, cost.shape[1] - 1)


def test_dtw_is_the_cheapest_of_all_paths():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (6, 4)), rng.normal(0, 1, (8, 4))
    cost = 1 - (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    total, length = all_paths(cost)
    mean, raw = cosine_dtw(a, b)
    assert raw == pytest.approx(total) and mean == pytest.approx(total / length, rel=0.2)
    assert cosine_dtw(a, np.repeat(a, 3, 0)) == pytest.approx((0, 0), abs=1e-9)
    assert emotion_similarity(a, np.repeat(3 * a, 2, 0)) == pytest.approx(100)


def test_mcd_grows_with_the_difference_and_ignores_the_level():
    rng = np.random.default_rng(0)
    wave = voice(150, 1.0) + 0.001 * rng.standard_normal(RATE)
    assert mel_cepstral_distortion(wave, wave, RATE) == 0
    little = mel_cepstral_distortion(wave, wave + 0.005 * rng.standard_normal(RATE), RATE)
    much = mel_cepstral_distortion(wave, wave + 0.1 * rng.standard_normal(RATE), RATE)
    assert 0 < little < much


def test_pesq_of_copies_only():
    pytest.importorskip("pesq")
    rng = np.random.default_rng(0)
    wave = np.concatenate([voice(120, 1.0), voice(180, 1.0)]) * (1 + np.sin(np.arange(2 * RATE) / 900)) / 2
    good = copy_pesq(wave, wave, RATE)
    assert good > 4.5 > copy_pesq(wave, wave + 0.05 * rng.standard_normal(len(wave)), RATE)
    with pytest.raises(ValueError, match="aligned in time"):
        copy_pesq(wave, wave[: len(wave) // 2], RATE)


def test_tokens_are_compared_by_the_sounds_that_are_heard():
    sounds = np.eye(4)
    assert collapse(sounds[[1, 1, 2, 2, 1]]) == [1, 2, 1]
    assert edit_share([1, 2, 1], [1, 2, 1]) == 0 and edit_share([1, 2], [3]) == 1.0
    slow = np.repeat(np.arange(4), 5)
    assert warp_words(sounds, [0, 0, 1, 1], sounds[slow]) == [0] * 10 + [1] * 10
    assert warp_words(sounds, [0, 0, 1, 1], sounds[:0]) == []


# -- the command's inside ------------------------------------------------------------------------------------


class TinySpeaker:
    """Mean spectrum: a test double of a speaker encoder."""

    def encode(self, waveforms, lengths):
        import torch

        return torch.fft.rfft(waveforms[:, :8000]).abs()[:, :500]


def test_a_folder_is_scored_by_named_judges(tmp_path):
    for name, f0 in (("a", 120), ("b", 240)):
        soundfile.write(tmp_path / f"{name}.wav", voice(f0, 1.0), RATE)
        soundfile.write(tmp_path / f"{name}_ref.wav", voice(f0, 1.0), RATE)
    rows = [
        {
            "id": name,
            "file": f"{name}.wav",
            "markup": "so <emotion type='hap' intensity='low'>it is</emotion>",
            "reference": f"{{data_root}}/{name}_ref.wav",
            "prompt": f"{{data_root}}/{prompt}.wav",
            "protocol": "neutral",
            "finish_reason": "eos" if name == "a" else "max_length",
        }
        for name, prompt in (("a", "a"), ("b", "a"))
    ] + [{"id": "c", "file": "c.wav", "text": "gone"}]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judges = Judges(
        asr=lambda paths: ["so it is", "so is it"],
        speaker=TinySpeaker(),
        aligner=None,
        names={"asr": "made up"},
    )
    metrics = score_folder(tmp_path, manifest, judges, data_folder=tmp_path, copies=False, progress=False)
    assert metrics["speech.count"] == 2 and metrics["speech.missing_files"] == 1
    assert metrics["speech.eos"] == 0.5 and metrics["speech.protocol"] == "neutral"
    assert metrics["speech.wer"] == pytest.approx(2 / 6) and metrics["speech.mcd"] == pytest.approx(
        0, abs=1e-6
    )
    lines = [json.loads(x) for x in (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["speaker_similarity"] == pytest.approx(1) and lines[1]["speaker_similarity"] < 0.9
    stored = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert stored["judges"] == {"asr": "made up"} and stored["missing"] == ["c"]


def test_manifests_that_cannot_be_used_are_refused(tmp_path):
    manifest = tmp_path / "m.jsonl"
    for text, message in (
        ("{}\n{", "neither"),
        ('{"file": "a.wav"}\n', "needs 'file' and 'markup'"),
        ('{"file": "a.wav", "text": "x", "protocol": "loud"}\n', "allowed: neutral, matched"),
        ('{"file": "a.wav", "text": "x"}\n', "holds none of the 1 files"),
    ):
        manifest.write_text(text)
        with pytest.raises(ScoreError, match=message):
            read_outputs(manifest, tmp_path)
