"""The vocoder: source signal, batches, streaming, Griffin-Lim, and the mel spectrogram against librosa's filters."""

import doctest
import math

import pytest
import torch

from speechbrain_emo.dataio.compiled_librosa import librosa
from speechbrain_emo.lobes.mel import MelSpectrogram
from speechbrain_emo.lobes.vocoder import HarmonicSource, HiFT, VocoderStream, griffin_lim


@pytest.fixture
def vocoder():
    torch.manual_seed(0)
    return HiFT(num_mels=8, channels=16, f0_channels=8).eval()


def tone(frequency, seconds=0.5, sample_rate=24000):
    return (
        0.3
        * torch.sin(2 * math.pi * frequency * torch.arange(int(seconds * sample_rate)) / sample_rate)[None]
    )


def test_mel_filters_are_librosas():
    for f_max in (8000.0, None):
        expected = librosa.filters.mel(sr=24000, n_fft=1920, n_mels=80, fmin=0, fmax=f_max or 12000)
        assert torch.allclose(MelSpectrogram(f_max=f_max).filters, torch.from_numpy(expected), atol=1e-7)


def test_mel_of_a_tone_is_the_filters_at_its_bin():
    mel = MelSpectrogram()
    # 1000 Hz is bin 80; a Hann window leaves half of the amplitude times half of the window's sum.
    values = mel(tone(1000.0))[0, :, 5].exp()
    spectrum = torch.zeros(961)
    spectrum[80], spectrum[79], spectrum[81] = 0.3 * 480, 0.3 * 240, 0.3 * 240
    assert torch.allclose(values, (mel.filters @ spectrum).clamp(min=1e-5), rtol=2e-2, atol=2e-3)
    assert mel(tone(1000.0)).shape == (1, 80, 25)
    assert mel(torch.zeros(1, 960)).max() < math.log(2e-5)


def test_mel_of_a_row_does_not_depend_on_the_batch():
    mel, wave = MelSpectrogram(), torch.randn(1, 4000)
    padded = torch.cat([torch.cat([wave, torch.ones(1, 960)], dim=1), torch.randn(1, 4960)])
    rows, lengths = mel.of_rows(padded, torch.tensor([4000, 4960]))
    assert torch.equal(rows[0, :8], mel(wave)[0].T) and lengths.tolist() == [8, 10]
    with pytest.raises(ValueError, match="720"):
        mel(torch.zeros(1, 720))


def test_the_source_is_the_sum_of_harmonics():
    """A constant F0: sine k has the frequency k F0, from the second frame on."""
    source = HarmonicSource(24000, 480, num_harmonics=2)
    sines = source.sines(torch.full((1, 20), 200.0))[0, 480 : 19 * 480]
    for k in range(3):
        spectrum = torch.fft.rfft(sines[:, k]).abs()
        peak = spectrum.argmax() * 24000 / len(sines)
        assert peak == pytest.approx(200 * (k + 1), abs=3) and sines[:, k].abs().max() == pytest.approx(
            0.1, abs=1e-3
        )


def test_the_source_is_noise_where_there_is_no_voice():
    source = HarmonicSource(24000, 480, num_harmonics=0)
    with torch.no_grad():
        source.l_linear.weight.fill_(1.0)
        source.l_linear.bias.zero_()
        f0 = torch.cat([torch.zeros(1, 40), torch.full((1, 40), 300.0)], dim=1)
        signal = source(f0, torch.Generator().manual_seed(1))[0, 0]
    assert signal[: 39 * 480].std() == pytest.approx(0.1 / 3, rel=0.05)
    residual = signal[41 * 480 : 79 * 480] - torch.tanh(source.sines(f0)[0, 41 * 480 : 79 * 480, 0])
    assert residual.std() == pytest.approx(0.003, rel=0.1)


def test_each_row_of_a_batch_is_what_it_is_alone(vocoder):
    mel = torch.randn(2, 8, 12)
    vocoder.m_source.forward = lambda f0, generator=None: f0.repeat_interleave(480, 1)[:, None] * 1e-3
    waves, sources = vocoder.synthesise(mel, torch.tensor([12, 7]))
    alone, _ = vocoder.synthesise(mel[1:, :, :7])
    assert torch.allclose(waves[1, : 7 * 480], alone[0], atol=1e-6) and not waves[1, 7 * 480 :].any()
    assert waves.shape == (2, 5760) and sources.shape == (2, 1, 5760)


def test_equal_seeds_give_equal_audio_and_others_do_not(vocoder):
    mel = torch.randn(1, 8, 6)
    first, again, other = (
        vocoder.synthesise(mel, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_stream_gives_every_sample_and_agrees_inside_its_chunks(vocoder):
    vocoder.m_source.noise = 0.0
    with torch.no_grad():
        vocoder.f0_predictor.classifier.weight.zero_()
        vocoder.f0_predictor.classifier.bias.fill_(150.0)
    mel = torch.randn(1, 8, 60)
    whole, _ = vocoder.synthesise(mel)
    stream = VocoderStream(vocoder, overlap=8)
    parts = [stream.push(mel[:, :, :3]), stream.push(mel[:, :, 3:40]), stream.finish(mel[:, :, 40:])]
    assert [part.shape[1] for part in parts] == [0, 32 * 480, 28 * 480]
    joined = torch.cat(parts, dim=1)
    # Before the first overlap the stream has seen the same frames but for the vocoder's sight to the right.
    assert torch.allclose(joined[:, : 20 * 480], whole[:, : 20 * 480], atol=1e-5)
    with pytest.raises(ValueError, match="has ended"):
        stream.push(mel)


def test_an_overlap_is_faded_with_a_hamming_window(vocoder):
    stream = VocoderStream(vocoder, overlap=2)
    waves = iter([torch.ones(1, 10 * 480), torch.full((1, 6 * 480), 3.0)])
    vocoder.synthesise = lambda mel, source_before=None, generator=None: (
        next(waves),
        torch.zeros(1, 1, mel.shape[2] * 480),
    )
    assert torch.equal(stream.push(torch.zeros(1, 8, 10)), torch.ones(1, 8 * 480))
    faded = stream.finish(torch.zeros(1, 8, 4))[0]
    position = torch.arange(960, dtype=torch.float64)
    rising = 0.54 - 0.46 * torch.cos(2 * math.pi * position / 1919)
    falling = 0.54 - 0.46 * torch.cos(2 * math.pi * (position + 960) / 1919)
    assert torch.allclose(faded[:960].double(), 3 * rising + falling, atol=1e-6) and torch.all(
        faded[960:] == 3
    )


def test_griffin_lim_rebuilds_the_mel_of_a_voice_like_signal():
    mel = MelSpectrogram()
    wave = sum(tone(180.0 * k) / k for k in range(1, 9))
    target = mel(wave)
    rebuilt = griffin_lim(target, mel, generator=torch.Generator().manual_seed(0))
    assert rebuilt.shape == wave.shape
    loud = target > target.max() - 6
    # Most bins are met; a few between the harmonics cannot be, since 80 bins do not tell where these lie.
    assert (mel(rebuilt) - target)[loud].abs().median() < 0.15
    silence = griffin_lim(mel(torch.zeros(1, 9600)), mel, num_iterations=2)
    assert silence.abs().max() < 1e-4


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="differ in length"):
        HiFT(upsample_rates=(8, 5))
    with pytest.raises(ValueError, match="divisible by 8"):
        HiFT(channels=12)
    with pytest.raises(ValueError, match="training mode"):
        VocoderStream(HiFT(num_mels=8, channels=16, f0_channels=8))


def test_the_document_runs(repository):
    done = doctest.testfile(str(repository / "docs" / "acoustic_model.md"), module_relative=False)
    assert done.attempted > 8 and done.failed == 0
