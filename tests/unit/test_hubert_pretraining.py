"""Pretraining of a tiny HuBERT: filterbank start, masks, targets, heads, resumption and export."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel

from speechbrain_emo.brains.encoder_pretraining import (
    PretrainingBatches,
    Utterance,
    change_speed,
    load_utterances,
    pretrain_encoder,
)
from speechbrain_emo.lobes.hubert_pretraining import (
    IGNORE,
    AcousticUnits,
    EmotionHead,
    EncoderPretrainer,
    FrameTargets,
    HubertConfig,
    build_tiny_hubert,
    calibrate_filterbank,
    cepstra,
    num_frames,
    phone_frames,
    receptive_field,
    span_mask,
)

SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "second_channels": 32}


@pytest.fixture(scope="module")
def hubert():
    return build_tiny_hubert(**SMALL).eval()


def tone(frequency, seconds=1.0, level=0.1):
    return level * torch.sin(2 * math.pi * frequency * torch.arange(int(seconds * 16000)) / 16000)


def test_receptive_field_is_what_a_frame_reads(hubert):
    size, hop = receptive_field(hubert.config)
    assert hop == 320
    waveform = torch.randn(1, 16000, requires_grad=True)
    features = hubert.feature_extractor(waveform)
    features[0, :, 3].sum().backward()
    read = waveform.grad[0].nonzero()[:, 0]
    assert 3 * hop <= int(read.min()) < 3 * hop + 8 and int(read.max()) >= 3 * hop + size - 8
    assert int(num_frames(hubert.config, torch.tensor([16000]))[0]) == features.shape[2]


def test_filterbank_has_its_bands_where_it_says_and_ignores_phase(hubert):
    conv = hubert.feature_extractor.conv_layers[0].conv
    low = [70.0 * (450.0 / 70.0) ** (i / 23) for i in range(24)]
    for band in (2, 12, 22):
        four = conv.weight[4 * band : 4 * band + 4]
        assert torch.equal(four[0], -four[1]) and torch.equal(four[2], -four[3])
        energies = []
        for other in range(24):
            out = torch.nn.functional.conv1d(tone(low[other])[None, None], four.detach(), stride=160)[0]
            energies.append(float(out.square().sum(0).mean()))
        assert int(np.argmax(energies)) == band
    out = torch.nn.functional.conv1d(tone(low[12])[None, None], conv.weight[48:52], stride=160)[0]
    magnitude = out.detach().square().sum(0)
    assert float(magnitude.std() / magnitude.mean()) < 0.05, "the sum of the four phases should be steady"


def test_level_survives_the_layer_norm():
    torch.manual_seed(0)
    hubert = build_tiny_hubert(**SMALL).eval()
    speech = torch.randn(16000) * 0.02
    calibrate_filterbank(hubert, [speech], 8)
    first = hubert.feature_extractor.conv_layers[0]
    values = []
    for gain_db in (-12, -6, 0, 6, 12):
        out = first((speech * 10 ** (gain_db / 20))[None, None])
        values.append(float(out[0, -2].mean().detach()))
    steps = np.diff(values)
    assert (steps < -0.01).all() or (steps > 0.01).all(), values
    with torch.no_grad():
        plain = build_tiny_hubert(**SMALL, level_channels=0).eval().feature_extractor.conv_layers[0]
        plain.conv.weight *= 1e3
        flat = [plain((speech * gain)[None, None]).mean((0, 2)) for gain in (0.5, 2.0)]
    assert torch.allclose(flat[0], flat[1], atol=0.02), "without level channels the norm removes the level"


def test_padding_does_not_reach_the_features(hubert):
    model = EncoderPretrainer(hubert, 5, 4, 3, durations=True, num_emotions=4, prosody_layer=1).eval()
    short, long = torch.randn(8000), torch.randn(16000)
    batch = torch.zeros(2, 16000)
    batch[0, :8000], batch[1] = short, long
    with torch.no_grad():
        alone = model(short[None], torch.tensor([8000]))
        both = model(batch, torch.tensor([8000, 16000]))
    frames = alone.units.shape[1]
    for name in ("units", "phones", "acoustics", "durations"):
        assert torch.allclose(getattr(both, name)[0, :frames], getattr(alone, name)[0], atol=2e-5), name
    assert torch.allclose(both.emotion[0], alone.emotion[0], atol=2e-5)


def test_masked_frames_are_replaced(hubert):
    model = EncoderPretrainer(hubert, 5, 0, 0).eval()
    waveform = torch.randn(1, 16000)
    mask = torch.ones(1, 48, dtype=torch.bool)
    with torch.no_grad():
        frames = int(num_frames(hubert.config, torch.tensor([16000]))[0])
        mask = torch.ones(1, frames, dtype=torch.bool)
        one = model(waveform, torch.tensor([16000]), mask).units
        other = model(torch.randn(1, 16000), torch.tensor([16000]), mask).units
        half = mask.clone()
        half[0, : frames // 2] = False
        partly = model(waveform, torch.tensor([16000]), half).units
    assert torch.allclose(one, other), "with every frame masked the audio must not matter"
    assert not torch.allclose(one, partly)


def test_span_masks_have_the_expected_share_and_length():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.full((200,), 400)
    mask = span_mask(lengths, 0.03, 8, generator)
    # A frame stays open when none of the 8 frames up to it starts a span.
    assert float(mask.float().mean()) == pytest.approx(1 - 0.97**8, abs=0.02)
    runs = [len(run) for row in mask.int().tolist() for run in "".join(map(str, row)).split("0")[:-1] if run]
    assert min(runs) == 8, "only the end of an audio may cut a span"
    again = span_mask(lengths, 0.03, 8, torch.Generator().manual_seed(1))
    assert torch.equal(mask, again)
    short = span_mask(torch.tensor([3, 50]), 0.0, 8, generator)
    assert not short.any()
    with pytest.raises(ValueError, match="probability is 2"):
        span_mask(lengths, 2, 8, generator)


@pytest.mark.parametrize("frequency", [90.0, 150.0, 220.0, 350.0])
def test_f0_of_a_pulse_train(hubert, frequency):
    waveform = sum(tone(frequency * k, level=0.05 / k) for k in range(1, int(3000 / frequency)))
    features = FrameTargets(hubert.config)(waveform[None])
    assert bool(features.voiced.all())
    f0 = 150 * 2 ** features.f0.median()
    assert float(f0) == pytest.approx(frequency, rel=0.03)
    noise = FrameTargets(hubert.config)(torch.randn(1, 16000) * 0.1)
    assert float(noise.voiced.float().mean()) < 0.2


def test_level_targets_are_decibels(hubert):
    targets = FrameTargets(hubert.config)
    one, two = targets(tone(200)[None]), targets(2 * tone(200)[None])
    assert torch.allclose(two.energy - one.energy, torch.tensor(2 * math.log(2)), atol=1e-3)
    loud = one.log_mel > -8
    assert torch.allclose((two.log_mel - one.log_mel)[loud], torch.tensor(2 * math.log(2)), atol=0.02)
    assert torch.allclose(two.periodicity, one.periodicity, atol=1e-3)


def test_targets_lie_at_the_encoders_frames(hubert):
    waveform = torch.zeros(1, 32000)
    waveform[:, 16000:] = torch.randn(16000) * 0.1
    features = FrameTargets(hubert.config)(waveform)
    assert features.energy.shape[1] == int(num_frames(hubert.config, torch.tensor([32000]))[0])
    size, hop = receptive_field(hubert.config)
    edge = int((features.energy[0] > -12).nonzero()[0])
    assert abs(edge * hop + size / 2 - 16000) <= 320 + hop


def test_cepstra_are_an_orthonormal_cosine_transform():
    from scipy.fft import dct

    values = torch.randn(3, 40)
    assert np.allclose(cepstra(values, 40).numpy(), dct(values.numpy(), norm="ortho"), atol=1e-4)


def test_units_are_the_nearest_centres_and_ignore_the_level():
    torch.manual_seed(0)
    log_mels = [torch.randn(200, 40) for _ in range(3)]
    units = AcousticUnits.fit(log_mels, 6, seed=0)
    assert torch.equal(units(log_mels[0][None]), units(log_mels[0][None] + 3.0))
    standard = (AcousticUnits.features(log_mels[0][None])[0] - units.mean) / units.deviation
    by_hand = ((standard[:, None] - units.centres) ** 2).sum(-1).argmin(-1)
    assert torch.equal(units(log_mels[0][None])[0], by_hand)
    with pytest.raises(ValueError, match="num_units is 5000"):
        AcousticUnits.fit(log_mels, 5000)


def test_phone_frames_follow_the_speed(hubert):
    phones = [{"phone": "a", "start": 0.0, "end": 0.4}, {"phone": "_", "start": 0.4, "end": 1.0}]
    classes, durations = phone_frames(phones, {"a": 0}, 30, hubert.config)
    size, hop = receptive_field(hubert.config)
    expected = sum((t * hop + size / 2) / 16000 < 0.4 for t in range(30))
    assert int((classes == 0).sum()) == expected and set(classes.tolist()) == {0, IGNORE}
    assert durations[0] == pytest.approx(math.log(0.4 / 0.08)) and bool(durations[-1].isnan())
    fast, fast_durations = phone_frames(phones, {"a": 0}, 30, hubert.config, speed=2.0)
    assert int((fast == 0).sum()) < 0.6 * expected
    assert fast_durations[0] == pytest.approx(math.log(0.2 / 0.08))


def test_change_speed_moves_pitch_and_length():
    faster = change_speed(tone(200), 1.25)
    assert len(faster) == 12800
    spectrum = torch.fft.rfft(faster[2000:10000]).abs()
    assert float(spectrum.argmax()) * 2 == pytest.approx(250, abs=3)
    assert float(faster[2000:10000].square().mean().sqrt()) == pytest.approx(0.1 / math.sqrt(2), rel=0.02)


def test_emotion_head_reads_mean_and_deviation_of_valid_frames():
    head = EmotionHead(6, 3, dropout=0.0).eval()
    frames = torch.randn(2, 9, 6)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 5:] = False
    other = frames.clone()
    other[0, 5:] = 100.0
    assert torch.allclose(head(frames, valid), head(other, valid), atol=1e-6)
    order = torch.randperm(9)
    assert torch.allclose(head(frames[1:, order], valid[1:]), head(frames[1:], valid[1:]), atol=1e-5)


def utterances(count=12):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        samples = torch.from_numpy(rng.standard_normal(6000 + 700 * i).astype(np.float32)) * 0.05
        end = len(samples) / 16000
        phones = [{"phone": "a", "start": 0.0, "end": end / 2}, {"phone": "b", "start": end / 2, "end": end}]
        made.append(Utterance(str(i), samples, phones, i % 4))
    return made


def test_batches_hold_every_utterance_once_and_repeat_by_epoch(hubert):
    def make():
        return PretrainingBatches(
            utterances(), hubert.config, {"a": 0, "b": 1}, 3.0, seed=5, mask_probability=0.05,
            augment={"speed": 0.1, "gain_db": 3.0, "noise_db": -20.0},
        )  # fmt: skip

    batches = make()
    batches.set_epoch(3)
    first = list(batches)
    assert sorted(i for batch in batches.batches for i in batch) == list(range(12))
    other = make()
    other.set_epoch(3)
    for one, two in zip(first, other, strict=True):
        assert torch.equal(one.waveforms, two.waveforms) and torch.equal(one.mask, two.mask)
        assert one.phones.shape == one.mask.shape == one.durations.shape
        assert one.waveforms.numel() <= 3.0 * 16000 * 1.12
    other.set_epoch(4)
    assert not all(
        one.waveforms.shape == two.waveforms.shape and torch.equal(one.waveforms, two.waveforms)
        for one, two in zip(first, other, strict=False)
    )
    with pytest.raises(ValueError, match="pitch"):
        PretrainingBatches(utterances(), hubert.config, {}, 3.0, seed=5, augment={"pitch": 1})


def write_corpus(folder, count=16):
    rng = np.random.default_rng(0)
    names = ("high", "low")
    manifests = {}
    for split in ("train", "valid"):
        records = {}
        for i in range(count):
            label = names[i % 2]
            seconds = 0.6 + 0.02 * i
            wave = tone(320 if label == "high" else 110, seconds).numpy()
            wave = wave + 0.005 * rng.standard_normal(len(wave))
            path = folder / f"{split}_{i}.wav"
            soundfile.write(path, wave, 16000)
            phones = [{"phone": label, "start": 0.1 * k, "end": 0.1 * (k + 1)} for k in range(5)] * (
                i % 3 != 0
            )
            records[f"{split}_{i}"] = {
                "wav": f"{{data_root}}/{path.name}",
                "duration": seconds,
                "emotion": label,
                "phones": phones,
            }
        manifests[split] = str(folder / f"{split}.json")
        (folder / f"{split}.json").write_text(json.dumps(records))
    return manifests


def settings(folder, name, manifests, **changes):
    return {
        "seed": 3,
        "manifests": manifests,
        "data_folder": str(folder),
        "output_folder": str(folder / name),
        "save_folder": str(folder / name / "save"),
        "encoder_folder": str(folder / name / "encoder"),
        "initial_encoder": None,
        "architecture": SMALL,
        "prosody_layer": 1,
        "num_units": 4,
        "emotions": ["high", "low"],
        "weights": {"units": 0.3, "phones": 1.0, "acoustics": 1.0, "durations": 0.1, "emotion": 1.0},
        "mask_probability": 0.05,
        "mask_span": 5,
        "augment": {"gain_db": 2.0, "noise_db": -10.0},
        "number_of_epochs": 6,
        "batch_seconds": 4.0,
        "max_duration": 8.0,
        "lr": 3e-3,
        "warmup": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "train_precision": "fp32",
        **changes,
    }


RUN = {"device": "cpu", "noprogressbar": True}


def test_training_learns_resumes_and_exports_what_the_encoder_loads(tmp_path, monkeypatch):
    from speechbrain_emo.brains import encoder_pretraining
    from speechbrain_emo.lobes.speech_encoder import SpeechEncoder

    manifests = write_corpus(tmp_path)
    whole = settings(tmp_path, "whole", manifests)
    folder = pretrain_encoder(whole, RUN)
    report = json.loads((tmp_path / "whole" / "encoder" / "pretraining.json").read_text())
    assert report["valid"]["emotion_accuracy"] >= 0.9 and report["valid"]["phone_accuracy"] >= 0.9
    preprocessor = json.loads((tmp_path / "whole" / "encoder" / "preprocessor_config.json").read_text())
    assert preprocessor["do_normalize"] is False and preprocessor["sampling_rate"] == 16000
    encoder = SpeechEncoder(folder)
    out = encoder(torch.stack([tone(200), tone(200)]), torch.tensor([16000, 16000]))
    assert encoder.frame_rate == 50.0 and out.features.shape[2:] == (3, 32)

    # Interrupted after the first epoch and started again: the same weights.
    parts = settings(tmp_path, "parts", manifests)
    end = encoder_pretraining.EncoderPretrainingBrain.on_stage_end

    def interrupted(self, stage, stage_loss, epoch):
        end(self, stage, stage_loss, epoch)
        if stage.name == "VALID" and epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoder_pretraining.EncoderPretrainingBrain, "on_stage_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain_encoder(parts, RUN)
    assert not (tmp_path / "parts" / "encoder").exists()
    pretrain_encoder(parts, RUN)
    one, two = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(parts["encoder_folder"])
    for (name, value), other in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(value, other), name

    # Complete: kept. Other settings: made again.
    monkeypatch.setattr(
        encoder_pretraining, "_build", lambda *_: pytest.fail("a complete encoder is trained again")
    )
    assert pretrain_encoder(whole, RUN) == folder


def test_weights_and_manifests_are_checked(tmp_path):
    manifests = write_corpus(tmp_path, count=2)
    with pytest.raises(ValueError, match="pitch"):
        pretrain_encoder(settings(tmp_path, "a", manifests, weights={"pitch": 1.0}), RUN)
    with pytest.raises(ValueError, match="prepare the corpus first"):
        pretrain_encoder(settings(tmp_path, "a", {"train": "none.json", "valid": "none.json"}), RUN)


def test_real_german_speech_can_be_read(shared_data, tmp_path):
    files = sorted((shared_data / "emodb").rglob("*.wav"))[:4]
    if not files:
        pytest.skip("emodb has no wav here")
    records = {f.stem: {"wav": "{data_root}/" + f.name, "emotion": f.stem[5]} for f in files}
    (tmp_path / "m.json").write_text(json.dumps(records))
    read = load_utterances(tmp_path / "m.json", files[0].parent, sorted({f.stem[5] for f in files}))
    features = FrameTargets(HubertConfig())(read[0].samples[None])
    f0 = 150 * 2 ** features.f0[features.voiced].median()
    assert 80 < float(f0) < 350 and read[0].emotion >= 0


def test_emotion_is_read_from_all_layers_and_named_by_each_frame():
    hubert = build_tiny_hubert(**SMALL)
    model = EncoderPretrainer(hubert, 0, 0, 0, num_emotions=2, mix_layers=True, frame_emotions=True).eval()
    waves, samples = torch.stack([tone(200), tone(300)]), torch.tensor([16000, 12000])
    out = model(waves, samples)
    assert out.frame_emotions.shape == (*out.valid.shape, 2)
    # By hand: each hidden state normalised, equal weights at the start.
    normalised = [
        (s - s.mean(-1, True)) / (s.var(-1, False, keepdim=True) + 1e-5).sqrt() for s in out.hidden_states
    ]
    expected = model.emotion_head(sum(normalised) / len(normalised), out.valid)
    assert torch.allclose(out.emotion, expected, atol=1e-5)
    out.emotion.sum().backward()
    assert model.emotion_mix.logits.grad.abs().sum() > 0


def test_fine_tuning_keeps_the_convolutions_and_saves_the_average_of_the_weights(tmp_path, monkeypatch):
    from speechbrain_emo.brains import encoder_pretraining

    manifests = write_corpus(tmp_path)
    first = pretrain_encoder(settings(tmp_path, "first", manifests, number_of_epochs=1), RUN)
    seen = []
    step = encoder_pretraining.EncoderPretrainingBrain.on_fit_batch_end

    def recorded(self, *arguments):
        step(self, *arguments)
        seen.append({n: p.detach().clone() for n, p in self.modules.model.encoder.named_parameters()})

    monkeypatch.setattr(encoder_pretraining.EncoderPretrainingBrain, "on_fit_batch_end", recorded)
    tuned = settings(
        tmp_path,
        "tuned",
        manifests,
        initial_encoder=first,
        weights={"emotion": 1.0},
        fine_tuning={
            "freeze_convolutions": True,
            "mix_layers": True,
            "frame_emotions": 0.5,
            "weight_average": 0.5,
        },
        number_of_epochs=2,
    )
    before = AutoModel.from_pretrained(first)
    after = dict(AutoModel.from_pretrained(pretrain_encoder(tuned, RUN)).named_parameters())
    for name, value in before.named_parameters():
        frozen = name.startswith("feature_extractor")
        assert torch.equal(value, after[name]) == frozen, name
        # The average that the documentation says, recomputed.
        mean = value.detach().clone()
        for number, weights in enumerate(seen, 1):
            decay = min(0.5, (1 + number) / (10 + number))
            mean = decay * mean + (1 - decay) * weights[name]
        assert torch.allclose(mean, after[name], atol=1e-5), name
    with pytest.raises(ValueError, match="freeze"):
        pretrain_encoder({**tuned, "fine_tuning": {"freeze": True}}, RUN)


def test_checkpoints_of_other_settings_are_not_continued(tmp_path):
    """A finished training with more epochs asked for starts anew, as if the first had never been."""
    manifests = write_corpus(tmp_path)
    changes = {"weights": {"emotion": 1.0}}
    pretrain_encoder(settings(tmp_path, "again", manifests, number_of_epochs=1, **changes), RUN)
    again = pretrain_encoder(settings(tmp_path, "again", manifests, number_of_epochs=2, **changes), RUN)
    fresh = pretrain_encoder(settings(tmp_path, "fresh", manifests, number_of_epochs=2, **changes), RUN)
    one, two = AutoModel.from_pretrained(again), AutoModel.from_pretrained(fresh)
    for (name, value), other in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
