"""Whisper as a frozen encoder, against transformers' own feature extractor and model."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from speechbrain_emo.dataio.feature_cache import FeatureCache
from speechbrain_emo.lobes.speech_encoder import SpeechEncoder

TINY = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "vocab_size": 40,
    "num_mel_bins": 80,
    "dropout": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SHORT = {**TINY, "max_source_positions": 50}


def save(folder, config=TINY, kind=WhisperModel, extractor=True):
    torch.manual_seed(3)
    model = kind(WhisperConfig(**config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    model.save_pretrained(folder)
    if extractor:
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return str(folder), model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model whose windows are 1 s."""
    return save(tmp_path_factory.mktemp("short"), SHORT)[0]


@pytest.fixture(scope="module")
def speech():
    generator = torch.Generator().manual_seed(4)
    num_samples = torch.tensor([16000, 411, 40000, 1, 9600])
    waveforms = torch.full((5, 40000), 3.0)
    for row, length in enumerate(num_samples.tolist()):
        time = torch.arange(length) / 16000
        noise = torch.randn(length, generator=generator)
        waveforms[row, :length] = (
            0.1 * (row + 1) * torch.sin(2 * torch.pi * (150 + 40 * row) * time) + 0.01 * noise
        )
    return waveforms, num_samples


def test_hidden_states_are_those_of_transformers(tiny, speech):
    folder, model = tiny
    waveforms, num_samples = speech
    encoder = SpeechEncoder(folder)
    output = encoder(waveforms, num_samples)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    for row, length in enumerate(num_samples.tolist()):
        inputs = extractor(
            waveforms[row, :length].numpy(),
            sampling_rate=16000,
            return_tensors="pt",
            return_attention_mask=True,
        )
        frames = -(-int(inputs["attention_mask"].sum()) // 2)
        with torch.no_grad():
            states = model.encoder(inputs["input_features"], output_hidden_states=True).hidden_states
        assert int(output.num_frames[row]) == frames == encoder.num_frames(length)
        expected = torch.stack(states, 2)[0, :frames]
        assert (output.features[row, :frames] - expected).abs().max() < 1e-4
        assert not output.features[row, frames:].any()


def test_unpadded_audio_without_a_mask_is_transformers_own_layers(short, speech):
    """An audio that fills its window: padded and unpadded agree with each other and with the model."""
    waveforms, _ = speech
    one = waveforms[:1, :16000]
    features = [
        SpeechEncoder(short, layers=[-1], pad_windows=pad)(one, torch.tensor([16000])).features
        for pad in (True, False)
    ]
    assert torch.allclose(features[0], features[1], atol=1e-5)


def test_unpadded_log_mels_are_the_extractor_s(short, speech):
    waveforms, _ = speech
    encoder = SpeechEncoder(short, pad_windows=False)
    mel, frames, _ = encoder.family.windows(waveforms, [6400])
    extractor = WhisperFeatureExtractor(feature_size=80)
    expected = extractor(
        waveforms[0, :6400].numpy(), sampling_rate=16000, return_tensors="np", padding=False
    )["input_features"][0]
    assert frames == [20] and np.abs(mel[0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_audio_is_the_same_alone_and_in_a_batch(short, speech, pad, attention):
    waveforms, num_samples = speech
    encoder = SpeechEncoder(short, pad_windows=pad)
    encoder.model.config._attn_implementation = attention
    together = encoder(waveforms, num_samples)
    for row, length in enumerate(num_samples.tolist()):
        alone = encoder(waveforms[row : row + 1, :length], num_samples[row : row + 1])
        count = alone.features.shape[1]
        assert count == int(together.num_frames[row])
        assert (alone.features[0] - together.features[row, :count]).abs().max() < 1e-5


@pytest.mark.parametrize("pad", [True, False])
def test_longer_audio_goes_in_windows(short, speech, pad):
    waveforms, _ = speech
    encoder = SpeechEncoder(short, pad_windows=pad)
    whole = encoder(waveforms[2:3], torch.tensor([40000]))
    assert whole.num_frames.tolist() == [125] and encoder.num_frames(40000) == 125
    parts = [
        encoder(waveforms[2:3, start : start + 16000], torch.tensor([min(16000, 40000 - start)])).features[0]
        for start in (0, 16000, 32000)
    ]
    assert torch.allclose(whole.features[0], torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize("kind", [WhisperModel, WhisperForConditionalGeneration])
def test_both_published_layouts_load(tmp_path, tiny, speech, kind):
    folder, model = save(tmp_path / kind.__name__, kind=kind)
    encoder = SpeechEncoder(folder)
    own = model.encoder if kind is WhisperModel else model.model.encoder
    assert encoder.num_parameters == sum(p.numel() for p in own.parameters())
    for name, value in own.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], value), name


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = save(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {k: v for k, v in load_file(path).items() if "layers.1.fc1" not in k}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(OSError, match="lack"):
        SpeechEncoder(folder)


def test_it_stays_in_eval_mode_and_frozen(short, speech):
    encoder = SpeechEncoder(short, layers=[-1]).train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    one, two = (encoder(*speech).features for _ in range(2))
    assert torch.equal(one, two) and one.shape[2] == 1


def test_fingerprint_tells_padding_and_layers_apart(short):
    prints = {
        SpeechEncoder(short, layers=layers, pad_windows=pad).fingerprint
        for layers in ("all", [-1])
        for pad in (True, False)
    }
    assert len(prints) == 4


def test_the_cache_holds_the_last_hidden_state_and_valid_frames_only(short, speech, tmp_path):
    waveforms, num_samples = speech
    encoder = SpeechEncoder(short, layers=[-1], dtype="float16")
    cache = FeatureCache(tmp_path / "cache", encoder.fingerprint)
    sounds = {}
    records = {}
    for row, length in enumerate(num_samples.tolist()):
        path = tmp_path / f"{row}.raw"
        path.write_bytes(bytes([row]))
        sounds[str(path)] = waveforms[row, :length]
        records[str(row)] = {"wav": str(path), "duration": length / 16000}
    cache.fill(records, encoder, lambda audio: sounds[audio["wav"]], progress=False)
    for row, length in enumerate(num_samples.tolist()):
        held = cache.get(cache.key(records[str(row)]))
        assert held.shape == (encoder.num_frames(length), 1, 16) and held.dtype == torch.float16


def test_published_size_on_the_meta_device():
    import yaml

    fragment = yaml.safe_load(open("hparams/backbones/whisper_large_v3.yaml", encoding="utf-8"))
    encoder = SpeechEncoder.build_meta(fragment["architecture"], layers=[-1], dtype="float16")
    assert encoder.num_parameters == fragment["num_parameters"] == 636_968_960
    assert (encoder.hidden_size, encoder.frame_rate, encoder.num_frames(480000)) == (1280, 50.0, 1500)


def test_wrong_settings_are_refused(short):
    with pytest.raises(ValueError, match="at their own level"):
        SpeechEncoder(short, normalize=True)
    with pytest.raises(ValueError, match="it is for Whisper"):
        SpeechEncoder(
            None,
            architecture={
                "model_type": "hubert",
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_conv_pos_embedding_groups": 2,
            },
            pad_windows=False,
        )
    with pytest.raises(ValueError, match="max_source_positions"):
        SpeechEncoder(short, architecture={"model_type": "whisper", "max_source_positions": 1500})
