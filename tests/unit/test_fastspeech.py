"""The synthesiser's parts: durations that add up, pitch and energy of phonemes, invariances of the acoustic model."""

import math

import numpy as np
import pytest
import torch

from speechbrain_emo.brains.conversational_tts import Inventory, mel_cepstral_distortion
from speechbrain_emo.dataio.acoustics import average_by_phone, phone_durations, pitch_track, spread_pitch
from speechbrain_emo.lobes.fastspeech import EmotionalFastSpeech2, acoustic_loss
from speechbrain_emo.lobes.mel_vocoder import GriffinLim, MelSettings, make_vocoder

SETTINGS = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return EmotionalFastSpeech2(
        12,
        3,
        4,
        4,
        num_mels=20,
        hidden_size=16,
        encoder_layers=2,
        decoder_layers=2,
        filter_size=16,
        postnet_size=8,
    ).eval()


def batch():
    phones = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    durations = torch.tensor([[2, 1, 3, 2, 4], [3, 2, 0, 0, 0]])
    pitch = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    given = {n: torch.tensor([0, 1]) for n in ("speaker", "emotion", "intensity")}
    return {"phones": phones, "durations": durations, "pitch": pitch, "energy": -pitch, **given}


def one(full, row, length):
    return {k: (v[row : row + 1, :length] if v.dim() == 2 else v[row : row + 1]) for k, v in full.items()}


def test_published_size():
    """FastSpeech 2 at the paper's sizes with 7 emotions and 3 intensities: about 35 million, 256 a label."""
    with torch.device("meta"):
        few, more = (EmotionalFastSpeech2(40, 2, n, 4) for n in (1, 7))
    count = [sum(p.numel() for p in m.parameters()) for m in (few, more)]
    assert count[1] - count[0] == 6 * 256
    # A block: attention 4 (D^2 + D), convolutions 9 D F + F and F D + D, two norms 4 D; F = 1024, D = 256.
    block = 4 * (256**2 + 256) + 9 * 256 * 1024 + 1024 + 1024 * 256 + 256 + 4 * 256
    transformers = sum(p.numel() for part in (more.encoder, more.decoder) for p in part.parameters())
    # Ten blocks, and a norm at the end of the encoder and of the decoder.
    assert transformers == 10 * block + 2 * 2 * 256


def test_padding_and_batch_do_not_matter(model):
    full = batch()
    with torch.no_grad():
        together = model(**full)
        for row, length in ((0, 5), (1, 2)):
            alone = model(**one(full, row, length))
            frames = int(full["durations"][row].sum())
            assert int(together.num_frames[row]) == frames == int(alone.num_frames[0])
            for name in ("mel", "refined", "log_durations", "pitch", "energy"):
                size = frames if name in ("mel", "refined") else length
                torch.testing.assert_close(
                    getattr(together, name)[row, :size], getattr(alone, name)[0, :size], atol=1e-5, rtol=1e-4
                )
            assert not together.mel[row, frames:].any() and not together.refined[row, frames:].any()


def test_every_condition_reaches_the_output(model):
    full = batch()
    with torch.no_grad():
        before = model(**full).mel[0]
        for name in ("speaker", "emotion", "intensity"):
            changed = {**full, name: torch.tensor([2, 1])}
            after = model(**changed).mel
            assert (after[0] != before).any()
        assert torch.equal(model(**full).mel[0], before)


def test_predicted_durations_are_whole_and_at_least_one(model):
    full = {k: v for k, v in batch().items() if k not in ("durations", "pitch", "energy")}
    with torch.no_grad():
        out = model(**full)
        slow = model(**full, pace=4.0)
    assert int(out.num_frames[0]) >= 5 and int(out.num_frames[1]) >= 2
    assert (slow.num_frames >= out.num_frames).all()


def test_the_loss_is_a_mean_over_valid_positions(model):
    full = batch()
    output = model(**full)
    mel = torch.zeros_like(output.mel)
    losses = acoustic_loss(output, mel, full["phones"], full["durations"], full["pitch"], full["energy"])
    frames = full["durations"].sum(1).tolist()
    total = sum(output.mel[i, :n].abs().sum() for i, n in enumerate(frames))
    torch.testing.assert_close(losses["mel"], total / (sum(frames) * 20))
    valid = full["phones"] != 0
    wanted = (output.log_durations - torch.log1p(full["durations"].float()))[valid].square().mean()
    torch.testing.assert_close(losses["duration"], wanted)
    losses["loss"].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "Embed" not in n or "pos" not in n)


def test_durations_add_up_with_silence_between():
    phones = [
        {"phone": p, "start": s, "end": e}
        for p, s, e in (("a", 0.0, 0.12), ("b", 0.12, 0.3), ("c", 0.5, 0.61))
    ]
    names, frames = phone_durations(phones, 62, 62.5)
    assert names == ["a", "b", "sil", "c", "sil"] and frames.sum() == 62
    # Borders are rounded, not lengths: no error adds up.
    assert np.cumsum(frames).tolist() == [8, 19, 31, 38, 62]
    short = [{"phone": "x", "start": 0.0, "end": 0.001}, {"phone": "y", "start": 0.001, "end": 0.5}]
    assert phone_durations(short, 31, 62.5)[0] == ["y"]
    with pytest.raises(ValueError, match="align it first"):
        phone_durations([], 3, 62.5)
    with pytest.raises(ValueError, match="begins before"):
        phone_durations([phones[1], phones[0]], 62, 62.5)


@pytest.mark.parametrize("method", ["pyin", "yin"])
def test_pitch_of_a_tone_that_falls_silent(method):
    time = np.arange(16000) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 150 * time) * (time < 0.6)).astype(np.float32)
    track = pitch_track(tone, 16000, 256, 63, method)
    assert track.shape == (63,) and math.exp(track[20]) == pytest.approx(150, rel=0.02)
    # Unvoiced frames take what stands beside them.
    assert math.exp(track[-1]) == pytest.approx(150, rel=0.05)
    assert not pitch_track(np.zeros(8000, dtype=np.float32), 16000, 256, 32, "pyin").any()
    with pytest.raises(ValueError, match="pitch method"):
        pitch_track(tone, 16000, 256, 63, "guess")


def test_averages_by_phone():
    values = np.arange(6.0)
    assert average_by_phone(values, np.array([1, 2, 3])).tolist() == [0.0, 1.5, 4.0]


def test_griffin_lim_keeps_the_spectrum():
    """Analysis of what it makes is what it was given, within what the phase allows; the level too."""
    time = torch.arange(16000) / 16000
    tone = 0.3 * sum(torch.sin(2 * torch.pi * f * time) / k for k, f in enumerate((220, 440, 880), 1))
    mel, _ = SETTINGS.analyse(tone)
    samples = GriffinLim(SETTINGS, iterations=30)(mel)
    again, _ = SETTINGS.analyse(samples)
    loud = mel[5:-5] > mel.max() - 3
    assert float((again[: len(mel)][5 : len(mel) - 5][: len(loud)] - mel[5:-5])[loud].abs().mean()) < 0.3
    # One frame is one hop of sound, not an error.
    assert [len(GriffinLim(SETTINGS, 2)(mel[:n])) for n in (1, 3, 7)] == [256, 768, 1792]
    with pytest.raises(ValueError, match="too few"):
        SETTINGS.analyse(tone[:300])
    with pytest.raises(ValueError, match="vocoder is"):
        make_vocoder("wavenet", SETTINGS)
    with pytest.raises(ValueError, match="f_max"):
        MelSettings(16000, f_max=9000.0)


def test_source_filter_has_the_pitch_asked_for_whatever_the_mel():
    """A spectrum without harmonics, as a small model makes it: the source has the pitch that is given."""
    slope = torch.linspace(0, -6, 80)[None].repeat(100, 1)
    vocoder = make_vocoder("source_filter", SETTINGS)
    for hertz in (80.0, 150.0, 300.0):
        samples = vocoder(slope, torch.full((100,), hertz)).numpy()
        track = pitch_track(samples, 16000, 256, 100, "yin")
        assert math.exp(float(np.median(track[5:-5]))) == pytest.approx(hertz, rel=0.02)
    # It moves where it is told to.
    half = torch.cat([torch.full((50,), 120.0), torch.full((50,), 180.0)])
    track = np.exp(pitch_track(vocoder(slope, half).numpy(), 16000, 256, 100, "yin"))
    # Where it is told to, to half a frame.
    assert int(np.argmax(track > 147)) in (49, 50, 51)
    assert np.median(track[5:45]) == pytest.approx(120, rel=0.03) and np.median(
        track[55:95]
    ) == pytest.approx(180, rel=0.03)


def test_source_filter_keeps_level_and_shape_of_the_mel():
    # Narrow bands lie on a harmonic or between two: sums over eight of them are compared, the first eight are below F0.
    slope = torch.linspace(0, -6, 80)[None].repeat(100, 1)
    slope[50:] -= 2.0
    for hertz in (90.0, 150.0, 300.0):
        again, _ = SETTINGS.analyse(make_vocoder("source_filter", SETTINGS)(slope, torch.full((100,), hertz)))
        for rows in (slice(5, 45), slice(55, 95)):
            found, wanted = (x[rows].exp().mean(0).view(10, 8).sum(1).log() for x in (again, slope))
            assert float((found - wanted)[1:].abs().max()) < 0.5
    silent = make_vocoder("source_filter", SETTINGS)(
        torch.full((20, 80), math.log(1e-5)), torch.full((20,), 100.0)
    )
    assert float(silent.abs().max()) < 1e-3


def test_source_filter_says_what_it_lacks():
    vocoder, mel = make_vocoder("source_filter", SETTINGS), torch.zeros(10, 80)
    with pytest.raises(ValueError, match="F0 for each of 10 frames, there are none"):
        vocoder(mel, None)
    with pytest.raises(ValueError, match="there are 9"):
        vocoder(mel, torch.full((9,), 100.0))
    for wrong in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="above 0 Hz"):
            vocoder(mel, torch.full((10,), wrong))
    assert [len(vocoder(mel[:n], torch.full((n,), 100.0))) for n in (1, 3, 7)] == [256, 768, 1792]
    same = [vocoder(mel, torch.full((10,), 100.0)) for _ in range(2)]
    assert torch.equal(*same)


def test_pitch_of_frames_undoes_the_mean_of_phonemes():
    frames = np.array([3, 4, 5])
    log_f0 = np.log([100.0, 140.0, 120.0]).astype(np.float32)
    spread = spread_pitch(log_f0, frames)
    assert spread[1] == pytest.approx(100, rel=1e-5) and spread[9] == pytest.approx(120, rel=1e-5)
    assert np.all(np.diff(spread[1:5]) > 0)
    inventory = Inventory(["unk"], ["0"], ["sad"], ["weak"], {"pitch": [5.0, 0.5], "energy": [0.0, 1.0]})
    found = inventory.pitch_of_frames(torch.tensor([0.0, 1.0]), torch.tensor([2, 2]))
    assert found[0] == pytest.approx(math.exp(5.0), rel=1e-5) and found[-1] == pytest.approx(
        math.exp(5.5), rel=1e-5
    )


def test_distortion_of_a_known_shift():
    """A constant added to one cepstrum: 10 / ln 10 * sqrt(2) * its size."""
    from scipy.fft import idct

    rng = np.random.default_rng(0)
    cepstra = np.zeros((6, 20))
    cepstra[:, 1:5] = rng.normal(size=(6, 4)) * 20
    other = cepstra.copy()
    other[:, 3] += 0.1
    found = mel_cepstral_distortion(idct(cepstra, norm="ortho", axis=1), idct(other, norm="ortho", axis=1))
    assert found == pytest.approx(10 / math.log(10) * math.sqrt(2) * 0.1, rel=1e-6)


def test_inventory_refuses_what_it_does_not_know():
    inventory = Inventory(["unk", "a"], ["0"], ["sad"], ["weak"], {"pitch": [5.0, 0.5], "energy": [0.0, 1.0]})
    assert inventory.intensity_id(None) == inventory.intensity_id("none") == 1
    assert Inventory(**inventory.to_dict()).to_dict() == inventory.to_dict()
    with pytest.raises(ValueError, match="emotion is 'happy'"):
        inventory.emotion_id("happy")
