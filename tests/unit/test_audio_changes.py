"""What is changed in a recording is what was asked for, measured in the sound."""

import numpy as np
import pytest
import torch

from speechbrain_emo.dataio.audio_changes import FAULTS, SHIFTS, change_audio
from speechbrain_emo.dataio.descriptors import measure
from tests.tiny import voiced_tone

RATE = 16000


@pytest.fixture(scope="module")
def voice():
    return torch.from_numpy(voiced_tone(1.5, 150.0))


def level(waveform):
    return 10 * float(torch.log10(waveform.square().mean()))


@pytest.mark.parametrize("change, ratio", [("pitch_up", 2 ** (4 / 12)), ("pitch_down", 2 ** (-4 / 12))])
def test_pitch_moves_by_four_semitones_and_nothing_else(voice, change, ratio):
    shifted = change_audio(voice, RATE, change)
    assert len(shifted) == len(voice)
    before, after = measure(voice, RATE), measure(shifted, RATE)
    assert after.f0_median / before.f0_median == pytest.approx(ratio, rel=0.02)
    assert after.level == pytest.approx(before.level, abs=2.0)


@pytest.mark.parametrize("change, rate", [("speed_up", 1.25), ("speed_down", 0.8)])
def test_speed_moves_the_duration_and_not_the_pitch(voice, change, rate):
    shifted = change_audio(voice, RATE, change)
    assert len(shifted) == pytest.approx(len(voice) / rate, abs=2)
    assert measure(shifted, RATE).f0_median == pytest.approx(measure(voice, RATE).f0_median, rel=0.02)


@pytest.mark.parametrize("change, decibels", [("volume_up", 6), ("volume_down", -6), ("gain_down", -12)])
def test_gain(voice, change, decibels):
    assert level(change_audio(voice, RATE, change)) - level(voice) == pytest.approx(decibels, abs=0.01)


def test_gain_up_clips_and_volume_up_does_not():
    loud = torch.from_numpy(voiced_tone(0.5, level=0.9))
    assert change_audio(loud, RATE, "gain_up").abs().max() == 1
    assert change_audio(loud, RATE, "volume_up").abs().max() > 1


@pytest.mark.parametrize("snr", [20, 10, 0])
def test_noise_has_its_ratio(voice, snr):
    noisy = change_audio(voice, RATE, f"noise_{snr}", seed=3)
    assert level(voice) - level(noisy - voice) == pytest.approx(snr, abs=0.01)


def test_telephone_leaves_nothing_above_its_band(voice):
    noisy = voice + 0.1 * torch.from_numpy(
        np.random.default_rng(0).standard_normal(len(voice)).astype("float32")
    )
    spectrum = torch.fft.rfft(change_audio(noisy, RATE, "telephone")).abs().square()
    frequencies = torch.fft.rfftfreq(len(voice), 1 / RATE)
    inside = spectrum[(frequencies > 500) & (frequencies < 3000)].mean()
    assert spectrum[frequencies > 4500].mean() < 1e-4 * inside
    assert spectrum[frequencies < 80].mean() < 0.05 * inside


def test_reverberation_fills_a_gap_and_keeps_the_length(voice):
    gap = voice.clone()
    gap[8000:16000] = 0
    wet = change_audio(gap, RATE, "reverb", seed=1)
    assert len(wet) == len(gap)
    early, late = wet[8400:10000].square().mean(), wet[14000:15500].square().mean()
    assert early > 1e-7 and late < early / 30  # 60 dB in half a second


def test_noise_depends_on_the_seed_only_and_clean_is_clean(voice):
    for change in ("noise_10", "reverb"):
        assert torch.equal(change_audio(voice, RATE, change, 5), change_audio(voice, RATE, change, 5))
        assert not torch.equal(change_audio(voice, RATE, change, 5), change_audio(voice, RATE, change, 6))
    assert torch.equal(change_audio(voice, RATE, "clean"), voice)


def test_every_change_gives_finite_audio_and_leaves_its_input(voice):
    before = voice.clone()
    for change in (*SHIFTS, *FAULTS):
        out = change_audio(voice, RATE, change)
        assert out.dim() == 1 and out.dtype == torch.float32 and torch.isfinite(out).all()
    assert torch.equal(voice, before)


def test_bad_input(voice):
    with pytest.raises(ValueError, match="allowed: pitch_up"):
        change_audio(voice, RATE, "whisper")
    with pytest.raises(ValueError, match="samples"):
        change_audio(voice[None], RATE, "reverb")
