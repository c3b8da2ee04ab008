"""Every kind of audio file that users have, good and bad, made here."""

import struct

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_emo.dataio.audio import AudioError, audio_info, from_array, load_audio


def tone(rate=16000, duration=1.0, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * duration)) / rate)


def frequency_of(samples, rate=16000):
    spectrum = np.abs(np.fft.rfft(samples.numpy() * np.hanning(len(samples))))
    return np.argmax(spectrum) * rate / len(samples)


def test_sixteen_bit_mono_is_read_exactly(tmp_path):
    values = np.arange(-4000, 4000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", values, 16000)
    samples = load_audio(tmp_path / "a.wav")
    assert samples.dtype == torch.float32 and samples.shape == (8000,)
    assert torch.equal(samples, torch.from_numpy(values).float() / 32768)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_other_rates_keep_frequency_level_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    samples = load_audio(tmp_path / "a.wav")
    assert abs(len(samples) - 16000) <= 1
    assert abs(frequency_of(samples) - 440) < 2
    inner = samples[2000:14000]
    assert abs(inner.square().mean().sqrt() - 0.5 / np.sqrt(2)) < 2e-3


def test_resampling_removes_what_would_alias(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(96000, frequency=12000), 96000)
    assert load_audio(tmp_path / "a.wav")[1000:-1000].abs().max() < 0.01


@pytest.mark.parametrize(
    "subtype, tolerance", [("PCM_U8", 1e-2), ("PCM_24", 2e-7), ("PCM_32", 1e-7), ("DOUBLE", 1e-7)]
)
def test_sample_types(tmp_path, subtype, tolerance):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype=subtype)
    assert np.abs(load_audio(tmp_path / "a.wav").numpy() - tone()).max() < tolerance


@pytest.mark.parametrize("suffix, format", [("flac", "FLAC"), ("ogg", "OGG")])
def test_other_containers(tmp_path, suffix, format):
    soundfile.write(tmp_path / f"a.{suffix}", tone(), 16000, format=format)
    assert abs(frequency_of(load_audio(tmp_path / f"a.{suffix}")) - 440) < 2


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_are_averaged(tmp_path, channels):
    values = np.stack([tone() * (c + 1) / channels for c in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", values, 16000, subtype="FLOAT")
    expected = tone() * np.mean([(c + 1) / channels for c in range(channels)])
    assert np.abs(load_audio(tmp_path / "a.wav").numpy() - expected).max() < 1e-6


def test_mixing_then_resampling_equals_speechbrains_normalizer(tmp_path):
    from speechbrain.dataio.preprocess import AudioNormalizer

    values = np.random.default_rng(0).normal(0, 0.1, (24000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", values, 24000, subtype="FLOAT")
    expected = AudioNormalizer(16000)(torch.from_numpy(values), 24000)
    assert torch.allclose(load_audio(tmp_path / "a.wav"), expected, atol=1e-6)


def test_segment(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav")
    assert torch.equal(load_audio(tmp_path / "a.wav", start=4000, stop=9000), whole[4000:9000])
    assert torch.equal(load_audio(tmp_path / "a.wav", start=4000), whole[4000:])


@pytest.mark.parametrize("start, stop", [(0, 16001), (-1, 100), (500, 500), (900, 800), (16000, None)])
def test_segment_outside_the_file(tmp_path, start, stop):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    with pytest.raises(AudioError, match=r"a\.wav: segment .* is not inside the file"):
        load_audio(tmp_path / "a.wav", start=start, stop=stop)


def test_silence_is_audio(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    assert load_audio(tmp_path / "a.wav").abs().sum() == 0


def write_good(path):
    soundfile.write(path, tone(), 16000, subtype="PCM_16")
    return path.read_bytes()


def bad_files(folder):
    """File name -> expected words; the files are made."""
    good = write_good(folder / "good.wav")
    (folder / "empty.wav").write_bytes(b"")
    for size in (3, 8, 20, 30, 40):
        (folder / f"header{size}.wav").write_bytes(good[:size])
    (folder / "cut.wav").write_bytes(good[: 44 + 8000])
    (folder / "text.wav").write_text("This is a letter, not a recording.\n" * 20)
    (folder / "random.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "folder.wav").mkdir()
    broken = tone()
    broken[100] = np.nan
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    broken[100] = np.inf
    soundfile.write(folder / "inf.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    soundfile.write(folder / "short.wav", np.zeros(160), 16000)
    soundfile.write(folder / "flac.flac", np.random.default_rng(0).normal(0, 0.1, 32000), 16000)
    flac = (folder / "flac.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    return {
        "missing.wav": "no such file",
        "folder.wav": "is a folder",
        "empty.wav": "the file is empty",
        "header3.wav": "not an audio file|damaged",
        "header8.wav": "truncated header",
        "header20.wav": "truncated header",
        "header30.wav": "truncated header",
        "header40.wav": "truncated header",
        "cut.wav": "the file is truncated: its header promises 16000 samples, it holds 4000 .0.25 of 1.00 s.",
        "text.wav": "not an audio file: it holds text that begins 'This is a letter",
        "random.wav": "not an audio file",
        "nan.wav": "1 of 16000 samples are NaN or infinite",
        "inf.wav": "1 of 16000 samples are NaN or infinite",
        "none.wav": "no samples",
        "short.wav": "10.0 ms is too short",
        "cut.flac": "truncated|damaged",
    }


def test_bad_files_give_one_error_that_names_them(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(AudioError, match=words) as caught:
            load_audio(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name) + ": "), name
        assert isinstance(caught.value, ValueError)


def test_nan_outside_the_segment_does_no_harm(tmp_path):
    values = tone()
    values[100] = np.nan
    soundfile.write(tmp_path / "a.wav", values, 16000, subtype="FLOAT")
    assert load_audio(tmp_path / "a.wav", start=200).shape == (15800,)


def test_an_hour_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 16000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 16000, dtype=np.int16))
    monkeypatch.setattr("speechbrain_emo.dataio.audio.audio_io.load", lambda *a, **k: pytest.fail("was read"))
    with pytest.raises(AudioError, match=r"hour\.wav: 3600\.0 s is longer than max_duration=60 s: cut it"):
        load_audio(tmp_path / "hour.wav", max_duration=60)


def test_max_duration_is_of_the_segment(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(32000), 16000)
    assert load_audio(tmp_path / "a.wav", stop=16000, max_duration=1.0).shape == (16000,)
    with pytest.raises(AudioError, match="2.0 s is longer"):
        load_audio(tmp_path / "a.wav", max_duration=1.0)


def test_header_of_a_pipe_has_no_size(tmp_path):
    good = bytearray(write_good(tmp_path / "good.wav"))
    good[4:8] = good[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "pipe.wav").write_bytes(bytes(good))
    assert torch.equal(load_audio(tmp_path / "pipe.wav"), load_audio(tmp_path / "good.wav"))


def test_chunks_before_the_samples_are_skipped(tmp_path):
    good = write_good(tmp_path / "good.wav")
    note = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0"
    (tmp_path / "noted.wav").write_bytes(good[:36] + note + good[36:])
    assert audio_info(tmp_path / "noted.wav").num_samples == 16000


def test_arrays_take_the_same_path_as_files(tmp_path):
    values = (tone(44100) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", values, 44100)
    assert torch.equal(from_array(values, 44100), load_audio(tmp_path / "a.wav"))
    assert torch.equal(from_array(torch.from_numpy(values), 44100), load_audio(tmp_path / "a.wav"))


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 64, -128], dtype=np.int8),
        np.array([0, 2**14, -(2**15)], dtype=np.int16),
        np.array([0, 2**30, -(2**31)], dtype=np.int32),
        np.array([128, 192, 0], dtype=np.uint8),
        torch.tensor([0.0, 0.5, -1.0], dtype=torch.bfloat16),
        torch.tensor([0.0, 0.5, -1.0], dtype=torch.float16),
        np.array([0.0, 0.5, -1.0]),
        [0.0, 0.5, -1.0],
    ],
)
def test_array_types_have_one_full_scale(values):
    repeated = values * 500 if isinstance(values, list) else None
    if repeated is None:
        repeated = values.repeat(500) if isinstance(values, torch.Tensor) else np.tile(values, 500)
    assert torch.equal(from_array(repeated, 16000)[:3], torch.tensor([0.0, 0.5, -1.0]))


def test_array_axes():
    stereo = np.stack([tone(), np.zeros(16000)])
    assert torch.equal(from_array(stereo, 16000), from_array(stereo.T, 16000))
    assert torch.allclose(from_array(stereo, 16000), torch.from_numpy(tone()).float() / 2)
    square = np.stack([tone()[:600]] * 600)
    assert from_array(square, 16000, channel_axis=0)[1] == pytest.approx(tone()[1])


@pytest.mark.parametrize(
    "values, words",
    [
        (np.zeros(0), "no samples"),
        (np.zeros((2, 3, 4)), "shape"),
        (np.zeros(16000, dtype=np.int64), "type int64 have no defined full scale"),
        (np.zeros(16000, dtype=bool), "type bool"),
        (np.zeros(16000, dtype=complex), "type complex128"),
        (np.array(["a"] * 500), "type"),
        (1000 * tone(), "look like integers"),
        (np.full(16000, np.nan), "16000 of 16000 samples are NaN"),
        (np.zeros(100), "6.2 ms is too short"),
        (np.full(16000, 1e300), "look like integers|infinite"),
    ],
)
def test_bad_arrays(values, words):
    with pytest.raises(AudioError, match=f"microphone: .*({words})"):
        from_array(values, 16000, name="microphone")


@pytest.mark.parametrize("rate", [0, -16000, 16000.5, None])
def test_bad_rates(rate):
    with pytest.raises(AudioError, match="positive integer in Hz"):
        from_array(np.zeros(16000), rate)


def test_the_callers_array_is_not_touched():
    values = tone().astype(np.float32)
    samples = from_array(values, 16000)
    samples.zero_()
    assert np.abs(values).max() > 0.4


def test_real_recordings(shared_data):
    samples = load_audio(shared_data / "emodb" / "wav" / "03a01Fa.wav")
    info = audio_info(shared_data / "emodb" / "wav" / "03a01Fa.wav")
    assert info.sample_rate == 16000 and samples.shape == (info.num_samples,)
    for path in sorted((shared_data / "librispeech").glob("*.ogg")) + sorted(
        (shared_data / "librispeech").glob("*.flac")
    ):
        assert load_audio(path, start=0, stop=8000).numel() > 0
