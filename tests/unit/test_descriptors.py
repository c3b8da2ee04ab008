import json
import logging

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_emo.dataio import descriptors
from speechbrain_emo.dataio.audio import AudioError, load_audio
from speechbrain_emo.dataio.descriptors import (
    UNVOICED,
    Measurement,
    Thresholds,
    count_syllables,
    describe,
    fit_thresholds,
    measure,
    measure_manifest,
    percentile,
)

RATE = 16000


def voice(f0=150.0, syllables=0, duration=2.0, gain=1.0, rate=RATE):
    """A harmonic tone at a constant F0; with syllables, as many bursts at even distances."""
    time = np.arange(int(duration * rate)) / rate
    tone = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 9)) * 0.1
    if syllables:
        tone = tone * np.sin(np.pi * syllables * time / duration) ** 2
    return torch.from_numpy(gain * tone).float()


def row(f0=None, level=-20.0, syllable_rate=None, nuclei_rate=4.0):
    return Measurement(1.0, 1.0, 0.5, f0, 1.0, level, syllable_rate, nuclei_rate)


@pytest.mark.parametrize("f0", [75.0, 110.0, 220.0, 350.0, 480.0])
def test_f0_of_a_known_tone(f0):
    measured = measure(voice(f0, duration=1.0), RATE)
    assert abs(12 * np.log2(measured.f0_median / f0)) < 0.15
    assert measured.f0_range < 0.5
    assert measured.voiced_share > 0.8


def test_f0_does_not_depend_on_gain_or_rate():
    reference = measure(voice(150, duration=1.0), RATE).f0_median
    assert measure(voice(150, duration=1.0, gain=0.1), RATE).f0_median == pytest.approx(reference, rel=0.01)
    assert measure(voice(150, duration=1.0, rate=44100), 44100).f0_median == pytest.approx(
        reference, rel=0.01
    )


def test_level_is_the_rms_of_active_frames():
    sine = 0.25 * torch.sin(2 * torch.pi * 200 * torch.arange(RATE) / RATE)
    expected = 20 * np.log10(0.25 / np.sqrt(2))
    assert measure(sine, RATE).level == pytest.approx(expected, abs=0.1)
    padded = torch.cat([torch.zeros(RATE), sine, torch.zeros(RATE)])
    # The frames across the two edges are half silent.
    assert measure(padded, RATE).level == pytest.approx(expected, abs=0.2)
    assert measure(padded, RATE).active_duration == pytest.approx(1.0, abs=0.06)
    assert measure(2 * sine, RATE).level - measure(sine, RATE).level == pytest.approx(
        20 * np.log10(2), abs=0.01
    )


@pytest.mark.parametrize("syllables", [4, 6, 10])
def test_nuclei_of_known_bursts(syllables):
    measured = measure(voice(150, syllables=syllables), RATE)
    assert measured.nuclei_rate * measured.active_duration == pytest.approx(syllables)


def test_rate_of_a_transcript_counts_active_time_with_short_pauses():
    speech = voice(150, duration=1.0)
    short = torch.cat([speech, torch.zeros(1600), speech])
    long = torch.cat([speech, torch.zeros(8000), speech])
    assert measure(short, RATE, "la la la la").syllable_rate == pytest.approx(4 / 2.1, rel=0.03)
    assert measure(long, RATE, "la la la la").syllable_rate == pytest.approx(4 / 2.0, rel=0.03)
    assert measure(short, RATE).syllable_rate is None


def test_silence_noise_and_the_shortest_audio_have_no_nan():
    silence = measure(torch.zeros(RATE), RATE, "yes")
    assert silence == Measurement(1.0, 0.0, 0.0) and silence.is_silent
    noise = measure(torch.randn(RATE, generator=torch.Generator().manual_seed(0)) * 0.1, RATE)
    assert noise.f0_median is None and noise.level == pytest.approx(-20, abs=0.5)
    assert measure(voice(200, duration=0.025), RATE).duration == 0.025
    thresholds = fit_thresholds([row(f) for f in range(100, 130)], ["male"] * 30)
    assert describe(silence, None, thresholds) == {"pitch": UNVOICED, "volume": UNVOICED, "speed": UNVOICED}
    assert describe(noise, "male", thresholds)["pitch"] == UNVOICED
    assert percentile(silence, "male", thresholds) == {"pitch": None, "volume": None, "speed": None}


@pytest.mark.parametrize("samples", [torch.full((RATE,), float("nan")), torch.zeros(100), torch.zeros(0)])
def test_bad_waveforms(samples):
    with pytest.raises(AudioError):
        measure(samples, RATE)


@pytest.mark.parametrize(
    "text, language, expected",
    [
        ("The little house is made of stone.", "en", 8),
        ("Agree", "en", 2),
        ("the the", "en", 2),
        ("In sieben Stunden wird es soweit sein.", "de", 10),
        ("Heute Abend könnte ich es ihm sagen.", "de", 11),
        ("Tüten", "de", 2),
        ("pst 42 -- !", "en", 2),
        ("", "en", 0),
    ],
)
def test_syllables(text, language, expected):
    assert count_syllables(text, language) == expected


def test_thresholds_are_quantiles_of_the_gender():
    women = [row(f0=200.0 + i) for i in range(31)]
    men = [row(f0=100.0 + i) for i in range(31)]
    thresholds = fit_thresholds(women + men, ["female"] * 31 + ["male"] * 31)
    assert thresholds.of("f0_median", "female")["edges"] == pytest.approx([210.0, 220.0])
    assert thresholds.of("f0_median", "male")["edges"] == pytest.approx([110.0, 120.0])
    assert describe(row(f0=125.0), "male", thresholds)["pitch"] == "high"
    assert describe(row(f0=125.0), "female", thresholds)["pitch"] == "low"
    assert describe(row(f0=125.0), None, thresholds)["pitch"] == "normal"
    words = [describe(m, "male", thresholds)["pitch"] for m in men]
    assert [words.count(w) for w in ("low", "normal", "high")] == [10, 11, 10]
    assert percentile(row(f0=115.0), "male", thresholds)["pitch"] == pytest.approx(50)
    assert percentile(row(f0=50.0), "male", thresholds)["pitch"] == 0
    assert percentile(row(f0=500.0), "male", thresholds)["pitch"] == 100
    assert percentile(row(), "male", thresholds)["volume"] == pytest.approx(50)  # all are equal


def test_a_gender_with_few_utterances_uses_all():
    rows = [row(f0=200.0 + i) for i in range(30)] + [row(f0=100.0)] * 9
    thresholds = fit_thresholds(rows, ["female"] * 30 + ["male"] * 9)
    assert thresholds.of("f0_median", "male") == thresholds.of("f0_median", None)
    assert thresholds.of("f0_median", "female") != thresholds.of("f0_median", None)


def test_speed_compares_like_with_like():
    rows = [row(f0=100.0, syllable_rate=4 + i / 10, nuclei_rate=2 + i / 10) for i in range(30)]
    thresholds = fit_thresholds(rows, ["male"] * 30)
    assert describe(row(nuclei_rate=4.9), "male", thresholds)["speed"] == "fast"
    assert describe(row(syllable_rate=4.9), "male", thresholds)["speed"] == "slow"
    no_text = fit_thresholds([row(nuclei_rate=2 + i / 10) for i in range(30)], ["male"] * 30)
    assert describe(row(syllable_rate=9.0, nuclei_rate=2.0), "male", no_text)["speed"] == "slow"


def test_thresholds_survive_json_and_know_their_version():
    thresholds = fit_thresholds([row(f0=100.0 + i) for i in range(30)], [None] * 30)
    content = json.loads(json.dumps(thresholds.to_dict()))
    assert Thresholds.from_dict(content) == thresholds
    with pytest.raises(
        ValueError, match="version 0, this toolkit measures version 1: run the preparation again"
    ):
        Thresholds.from_dict({**content, "version": 0})
    with pytest.raises(ValueError, match="version 'list'"):
        Thresholds.from_dict([])


def test_bad_arguments_of_thresholds():
    with pytest.raises(ValueError, match="1 measurements but 2 genders"):
        fit_thresholds([row()], ["male", "male"])
    with pytest.raises(ValueError, match="two increasing shares"):
        fit_thresholds([row()], ["male"], quantiles=(0.6, 0.4))
    with pytest.raises(ValueError, match="none of the 1 training utterances holds speech"):
        fit_thresholds([Measurement(1.0, 0.0, 0.0)], [None])


@pytest.fixture
def corpus(tmp_path):
    records = {}
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", voice(120 + 20 * i, duration=0.3).numpy(), RATE)
        records[str(i)] = {"wav": f"{{data_root}}/{i}.wav", "transcript": "la"}
    (tmp_path / "bad.wav").write_text("text")
    records["bad"] = {"wav": "{data_root}/bad.wav"}
    records["none"] = {"wav": "{data_root}/none.wav"}
    return records


def test_manifest_is_measured_once(tmp_path, corpus, monkeypatch):
    settings = {
        "cache_file": tmp_path / "c" / "cache.jsonl",
        "replacements": {"data_root": tmp_path},
        "progress": False,
    }
    found, failures = measure_manifest(corpus, **settings)
    assert list(found) == ["0", "1", "2"]
    assert found["1"] == measure(load_audio(tmp_path / "1.wav"), RATE, "la")
    assert "not an audio file" in failures["bad"] and "no such file" in failures["none"]
    files = []
    original = descriptors._measure_file
    monkeypatch.setattr(descriptors, "_measure_file", lambda *job: files.append(job[0]) or original(*job))
    assert measure_manifest(corpus, **settings) == (found, failures)
    assert files == ["bad"]
    # Another transcript and another content are measured, another name of the file is not.
    corpus["0"]["transcript"] = "la la"
    soundfile.write(tmp_path / "1.wav", voice(300, duration=0.3).numpy(), RATE)
    (tmp_path / "2.wav").rename(tmp_path / "two.wav")
    corpus["2"]["wav"] = "{data_root}/two.wav"
    files.clear()
    again, _ = measure_manifest(corpus, **settings)
    assert sorted(files) == ["0", "1", "bad"]
    assert again["0"].syllable_rate == pytest.approx(2 * found["0"].syllable_rate)
    assert again["2"] == found["2"]


def test_an_interrupted_run_is_continued(tmp_path, corpus, monkeypatch, caplog):
    settings = {
        "cache_file": tmp_path / "cache.jsonl",
        "replacements": {"data_root": tmp_path},
        "progress": False,
    }
    original = descriptors._measure_file

    def interrupt(name, *job):
        if name == "2":
            raise KeyboardInterrupt
        return original(name, *job)

    monkeypatch.setattr(descriptors, "_measure_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_manifest(corpus, **settings)
    cache = tmp_path / "cache.jsonl"
    assert len(cache.read_text().splitlines()) == 2
    cache.write_text(cache.read_text()[:-20])  # as if killed in the middle of a line
    files = []
    monkeypatch.setattr(descriptors, "_measure_file", lambda *job: files.append(job[0]) or original(*job))
    with caplog.at_level(logging.WARNING):
        found, _ = measure_manifest(corpus, **settings)
    assert files == ["1", "2", "bad"] and list(found) == ["0", "1", "2"]
    assert "1 damaged lines" in caplog.text
    files.clear()
    assert measure_manifest(corpus, **settings)[0] == found and files == ["bad"]


def test_processes_measure_the_same(tmp_path, corpus):
    one = measure_manifest(corpus, replacements={"data_root": tmp_path}, progress=False, num_workers=1)
    two = measure_manifest(corpus, replacements={"data_root": tmp_path}, progress=False, num_workers=2)
    assert one == two


def test_real_voices(shared_data):
    """Anger is higher than boredom for the same speaker and sentence; women are higher than men."""
    names = ("03a04Wc", "03a04Lc", "03a01Nc", "08a01Na")
    measured = {n: measure(load_audio(shared_data / "emodb" / "wav" / f"{n}.wav"), RATE) for n in names}
    assert measured["03a04Wc"].f0_median > 1.3 * measured["03a04Lc"].f0_median
    assert measured["08a01Na"].f0_median > 1.3 * measured["03a01Nc"].f0_median
    assert all(1 < m.nuclei_rate < 9 and 0.2 < m.voiced_share <= 1 for m in measured.values())
