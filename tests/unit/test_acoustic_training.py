"""Training of flow and vocoder: data, losses against their formulas, kill and resume, what the folder holds."""

import json

import pytest
import torch

from speechbrain_emo.brains.acoustic_data import (
    FlowBatches,
    VocoderBatches,
    flow_utterances,
    read_records,
    token_emotions,
    vocoder_utterances,
)
from speechbrain_emo.brains.flow_training import FlowBrain, train_flow
from speechbrain_emo.brains.vocoder_training import VocoderBrain, train_vocoder
from speechbrain_emo.brains.word_emotion_data import WordTargets
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.lobes.flow import load_flow
from speechbrain_emo.lobes.mel import MelSpectrogram
from speechbrain_emo.lobes.speaker_encoder import load_speaker_encoder
from speechbrain_emo.lobes.speech_tokenizer import load_speech_tokenizer
from speechbrain_emo.lobes.vocoder import load_vocoder
from speechbrain_emo.lobes.vocoder.discriminators import WaveformDiscriminator
from speechbrain_emo.lobes.vocoder.losses import VocoderLoss, relative_loss
from tests.acoustic_toy import LABELS, flow_settings, make_corpus, make_front_ends, vocoder_settings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = make_corpus(tmp_path_factory.mktemp("corpus"))
    make_front_ends(folder / "front_ends")
    return folder


@pytest.fixture(scope="module")
def utterances(corpus):
    records = read_records([corpus / "train.json"], corpus, 8.0)
    front = corpus / "front_ends"
    return flow_utterances(
        records,
        load_speech_tokenizer(front / "tokenizer"),
        load_speaker_encoder(front / "speaker"),
        MelSpectrogram(),
        corpus / "tokens",
        WordTargets(LABELS, None, "word"),
        LABELS,
        ["low", "high"],
    )


def test_a_token_has_two_mel_frames_and_the_emotion_of_its_word(utterances):
    for utterance in utterances:
        assert len(utterance.mel) == 2 * len(utterance.tokens) == 2 * len(utterance.emotions)
        centres = (torch.arange(len(utterance.tokens)) + 0.5) / 25
        assert torch.equal(utterance.emotions, (centres >= 0.31).long())
        assert torch.equal(utterance.intensities, (centres < 0.31).float())


def test_a_token_between_words_belongs_to_the_nearer_one():
    words = [{"start": 0.1, "end": 0.2, "intensity_value": 0.7}, {"start": 0.4, "end": 0.5}]
    emotions, strengths = token_emotions({"words": words}, ["b", "a"], 14, ["a", "b"], ["x", "y", "z"])
    # The middle between the words is 0.3 s: tokens 0 to 7 have their centre before 0.3.
    assert emotions.tolist() == [1] * 7 + [1 if 7.5 / 25 <= 0.3 else 0] + [0] * 6
    assert strengths.tolist() == pytest.approx([0.7] * 8 + [0.5] * 6)
    assert token_emotions({}, [], 2, ["a"], ["x"])[0].tolist() == [-1, -1]


def test_what_an_utterance_draws_does_not_depend_on_its_batch(utterances):
    def rows(batch_seconds, chosen):
        batches = FlowBatches(chosen, batch_seconds, 5, speaker_from="other")
        batches.set_epoch(2)
        found = {}
        for batch in batches:
            for row, key in enumerate(batch.keys):
                count = int(batch.num_frames[row])
                found[key] = (batch.draws.noise[row, :, :count], batch.draws.times[row], batch.speaker[row])
        return found

    alone, together = rows(0.1, utterances), rows(100.0, utterances)
    assert alone.keys() == together.keys() and len(alone) == len(utterances)
    for key, drawn in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(drawn, together[key], strict=True))
    batches = FlowBatches(utterances, 100.0, 5, speaker_from="other")
    own = {u.key: u.speaker for u in utterances}
    for batch in batches:
        assert not any(torch.equal(batch.speaker[i], own[key]) for i, key in enumerate(batch.keys))


def test_batches_stay_within_their_seconds(utterances):
    batches = FlowBatches(utterances, 1.5, 5)
    assert all(batch.mel.shape[0] * batch.mel.shape[1] <= 75 or len(batch.keys) == 1 for batch in batches)
    with pytest.raises(ValueError, match="speaker_from is 'both'"):
        FlowBatches(utterances, 1.5, 5, speaker_from="both")


def test_f0_of_known_pitch_at_the_frames_of_the_mel(corpus):
    records = read_records([corpus / "train.json"], corpus, 8.0, limit=2)
    for number, utterance in enumerate(vocoder_utterances(records, MelSpectrogram())):
        assert len(utterance.wave) == 480 * len(utterance.f0)
        times = (torch.arange(len(utterance.f0)) + 0.5) / 50
        true = (110 + 20 * number) * (1 + 0.2 * times)
        inner = slice(2, -2)
        assert ((utterance.f0 - true)[inner].abs() / true[inner]).max() < 0.02


def test_crops_are_of_one_length_and_the_same_every_time(corpus):
    records = read_records([corpus / "train.json"], corpus, 8.0)
    audio = vocoder_utterances(records, MelSpectrogram())
    batches = VocoderBatches(audio, 4, 50, 480, seed=1)
    batches.set_epoch(3)
    first, again = list(batches), list(batches)
    assert [b.wave.shape for b in first] == [(4, 24000), (2, 24000)] and first[0].f0.shape == (4, 50)
    assert all(torch.equal(a.wave, b.wave) and a.seed == b.seed for a, b in zip(first, again, strict=True))


def test_records_that_cannot_be_used(corpus):
    with pytest.raises(ManifestError, match="in an earlier manifest too"):
        read_records([corpus / "train.json"] * 2, corpus, 8.0)
    with pytest.raises(ManifestError, match="no utterance of at most 0.1 s"):
        read_records([corpus / "train.json"], corpus, 0.1)


def test_relative_loss_against_its_formula():
    scores, others = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    # Differences -1, 0, 4; median 0; only the first is below it: 1 squared, cut at the margin.
    assert relative_loss([scores], [others], margin=2.0) == 1.0
    assert relative_loss([scores, scores], [others, others], margin=0.04) == pytest.approx(0.08)


def test_adversarial_losses_against_least_squares():
    torch.manual_seed(0)
    judge = WaveformDiscriminator((2,), (4,), ((64, 16, 64),), 4)
    loss = VocoderLoss(relative=0.0)
    fake, real = judge(torch.randn(2, 600)), judge(torch.randn(2, 600))
    told = sum(((r - 1) ** 2).mean() + (f**2).mean() for f, r in zip(fake.scores, real.scores, strict=True))
    assert loss.discriminator(fake, real).item() == pytest.approx(told.item(), rel=1e-5)
    terms = loss.generator(fake, real)
    assert terms["adversarial"].item() == pytest.approx(
        sum(((f - 1) ** 2).mean() for f in fake.scores).item()
    )
    features = 2 * sum(
        (f - r).abs().mean()
        for a, b in zip(fake.features, real.features, strict=True)
        for f, r in zip(a, b, strict=True)
    )
    assert terms["features"].item() == pytest.approx(features.item(), rel=1e-5)
    loss.total(terms).backward()
    same = judge(torch.ones(1, 600)).scores
    assert relative_loss(same, same) == 0


def test_a_real_waveform_has_no_reconstruction_loss():
    wave, f0 = torch.randn(1, 4800), torch.full((1, 10), 120.0)
    terms = VocoderLoss(spectra=1.0).reconstruction(wave, wave, f0, f0 + 3)
    assert (terms["mel"], terms["spectra"], terms["f0"]) == (0, 0, 3)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(f"{folder}/model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    pass


def killed_in_second_epoch(monkeypatch, brain_class):
    """The process ends after the second epoch has begun."""
    begin = brain_class.on_stage_start

    def on_stage_start(self, stage, epoch=None):
        begin(self, stage, epoch)
        if epoch == 2 and stage.name == "TRAIN":
            raise Killed

    monkeypatch.setattr(brain_class, "on_stage_start", on_stage_start)


def test_a_killed_flow_training_ends_with_the_same_weights(corpus, tmp_path, monkeypatch):
    front = corpus / "front_ends"
    whole = train_flow(flow_settings(corpus, tmp_path / "whole", front))
    settings = flow_settings(corpus, tmp_path / "killed", front)
    with monkeypatch.context() as patch:
        killed_in_second_epoch(patch, FlowBrain)
        with pytest.raises(Killed):
            train_flow(settings)
    assert not (tmp_path / "killed" / "flow").exists()
    resumed = train_flow(settings)
    assert equal(weights(whole), weights(resumed))
    report = json.loads((tmp_path / "killed" / "flow" / "training.json").read_text())
    assert report["valid"]["utterances"] == 2 and report["valid"]["mel_l1"] > 0
    flow = load_flow(resumed)
    assert flow.emotion is not None and flow.vocab_size == 27
    # Complete: neither loaded nor trained again, until a setting changes.
    monkeypatch.setattr(FlowBrain, "fit", lambda *_, **__: pytest.fail("it trains again"))
    train_flow(settings)
    with pytest.raises(pytest.fail.Exception):
        train_flow({**settings, "lr": 2e-3})


def test_a_killed_vocoder_training_ends_with_the_same_weights(corpus, tmp_path, monkeypatch):
    whole = train_vocoder(vocoder_settings(corpus, tmp_path / "whole"))
    settings = vocoder_settings(corpus, tmp_path / "killed")
    with monkeypatch.context() as patch:
        killed_in_second_epoch(patch, VocoderBrain)
        with pytest.raises(Killed):
            train_vocoder(settings)
    resumed = train_vocoder(settings)
    assert equal(weights(whole), weights(resumed))
    report = json.loads((tmp_path / "killed" / "vocoder" / "training.json").read_text())
    assert {"mel", "f0", "spectra"} <= set(report["valid"])
    assert set(report["copy_synthesis"]) == {"vocoder", "griffin_lim"}
    assert load_vocoder(resumed).frame_samples == 480


def test_both_sides_of_the_vocoder_learn_and_the_judge_waits(corpus, tmp_path, monkeypatch):
    seen = []
    end = VocoderBrain.on_stage_end

    def on_stage_end(self, stage, stage_loss, epoch=None):
        seen.append((stage.name, epoch, set(self.sums), dict(self.sums)))
        judge = torch.cat([p.detach().flatten() for p in self.modules.discriminator.parameters()])
        seen[-1] += (judge.clone(), all(p.requires_grad for p in self.modules.discriminator.parameters()))
        end(self, stage, stage_loss, epoch)

    monkeypatch.setattr(VocoderBrain, "on_stage_end", on_stage_end)
    train_vocoder(vocoder_settings(corpus, tmp_path, num_evaluated=0, number_of_epochs=3))
    trained = [entry for entry in seen if entry[0] == "TRAIN"]
    assert "discriminator" not in trained[0][2] and {"discriminator", "features"} <= trained[1][2]
    assert not torch.equal(trained[0][4], trained[1][4]) and trained[2][5]
    assert trained[2][3]["mel"] < trained[0][3]["mel"]


def test_a_vocoder_that_does_not_fit_the_mel_is_told(corpus, tmp_path):
    settings = vocoder_settings(corpus, tmp_path)
    settings["vocoder"] = {**settings["vocoder"], "hop": 8, "n_fft": 32}
    with pytest.raises(ValueError, match="480 samples, the vocoder makes 960"):
        train_vocoder(settings)
