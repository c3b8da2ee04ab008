"""The frozen encoder against transformers itself, its padding invariance and its failures."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

from speechbrain_emo.lobes.speech_encoder import SpeechEncoder

LAYER_STYLE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "layerdrop": 0.9,
    "hidden_dropout": 0.5,
    "mask_time_prob": 0.9,
}
GROUP_STYLE = {**LAYER_STYLE, "feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}
# https://huggingface.co/facebook/hubert-large-ll60k/blob/main/config.json
HUBERT_LARGE = {
    "model_type": "hubert",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "feat_proj_layer_norm": True,
}


def save_model(folder, model_type="hubert", architecture=LAYER_STYLE, do_normalize=True, seed=0):
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **architecture))
    with torch.no_grad():  # transformers starts these at values that hide mistakes
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hubert"))


@pytest.fixture(scope="module")
def speech():
    """Four sounds of different length and level, padded with values that must never be read."""
    generator = torch.Generator().manual_seed(4)
    num_samples = torch.tensor([16000, 401, 5123, 12799])
    waveforms = torch.full((4, 16000), 30.0)
    for row, length in enumerate(num_samples.tolist()):
        time = torch.arange(length) / 16000
        tone = torch.sin(2 * torch.pi * (150 + 40 * row) * time)
        waveforms[row, :length] = (
            0.2 * (row + 1) * tone + 0.05 * torch.randn(length, generator=generator) + 0.1
        )
    return waveforms, num_samples


def largest_difference(encoder, waveforms, num_samples):
    together = encoder(waveforms, num_samples)
    largest = 0.0
    for row, length in enumerate(num_samples.tolist()):
        alone = encoder(waveforms[row : row + 1, :length], num_samples[row : row + 1])
        count = together.num_frames[row]
        assert alone.num_frames.item() == count == alone.features.shape[1] == encoder.num_frames(length)
        largest = max(largest, (alone.features[0] - together.features[row, :count]).abs().max().item())
        assert not together.features[row, count:].any()
    return largest


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("model_type", ["hubert", "wav2vec2", "wavlm"])
def test_layer_norm_style_does_not_depend_on_padding(tmp_path, speech, model_type, do_normalize):
    encoder = SpeechEncoder(save_model(tmp_path, model_type, do_normalize=do_normalize))
    assert encoder.normalize is do_normalize and not encoder.family.one_by_one
    assert largest_difference(encoder, *speech) <= 1e-5


@pytest.mark.parametrize("model_type", ["hubert", "wav2vec2", "wavlm"])
def test_group_norm_style_runs_each_audio_by_itself(tmp_path, speech, model_type):
    encoder = SpeechEncoder(save_model(tmp_path, model_type, GROUP_STYLE))
    assert encoder.family.one_by_one
    assert largest_difference(encoder, *speech) == 0.0
    # the reason: transformers' own batch of the same model is off by far more than rounding
    waveforms, num_samples = speech
    mask = torch.arange(16000)[None] < num_samples[:, None]
    padded = encoder.model(torch.where(mask, waveforms, 0.0), attention_mask=mask.long()).last_hidden_state
    alone = encoder.model(waveforms[2:3, :5123]).last_hidden_state
    assert (padded[2, : alone.shape[1]] - alone[0]).abs().max() > 1e-3


@pytest.mark.parametrize("model_type", ["hubert", "wavlm"])
def test_features_equal_transformers_feature_extractor_and_model(tmp_path, speech, model_type):
    folder = save_model(tmp_path, model_type)
    waveforms, num_samples = speech
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    raw = [w[:n].numpy() for w, n in zip(waveforms, num_samples.tolist(), strict=True)]
    inputs = extractor(raw, sampling_rate=16000, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    output = SpeechEncoder(folder)(waveforms, num_samples)
    assert output.features.shape[2] == len(states) == 4
    for row, count in enumerate(output.num_frames.tolist()):
        for layer in range(4):
            torch.testing.assert_close(
                output.features[row, :count, layer], states[layer][row, :count], atol=1e-4, rtol=1e-4
            )


def test_normalisation_equals_the_feature_extractor(tiny, speech):
    waveforms, num_samples = speech
    encoder = SpeechEncoder(tiny)
    raw = [w[:n].numpy() for w, n in zip(waveforms, num_samples.tolist(), strict=True)]
    expected = Wav2Vec2FeatureExtractor.from_pretrained(tiny)(raw, sampling_rate=16000, padding=True)
    values = encoder.family.model_inputs(waveforms, num_samples, torch.float32)["input_values"]
    np.testing.assert_allclose(values.numpy(), np.stack(expected["input_values"]), atol=2e-6)


def test_frames_follow_the_convolutions(tiny):
    encoder = SpeechEncoder(tiny)
    assert encoder.family.receptive_field == 400 and encoder.family.hop == 320
    assert (encoder.frame_rate, encoder.sample_rate) == (50.0, 16000)
    for length in (400, 401, 719, 720, 721, 1039, 1040, 16000, 16001, 33333):
        assert encoder.num_frames(length) == (length - 400) // 320 + 1
        reference = encoder.model._get_feat_extract_output_lengths(torch.tensor([length])).item()
        assert encoder.num_frames(length) == reference
    odd = SpeechEncoder(
        None,
        architecture={
            "model_type": "hubert",
            **LAYER_STYLE,
            "conv_kernel": [7, 3, 2],
            "conv_stride": [3, 2, 2],
            "conv_dim": [16] * 3,
        },
    )
    for length in range(1, 60):
        output = odd(torch.randn(1, length), torch.tensor([length]))
        assert output.features.shape[1] == odd.num_frames(length) == output.num_frames.item()


def test_audio_shorter_than_a_frame_counts_as_zero_padded(tmp_path):
    encoder = SpeechEncoder(save_model(tmp_path, do_normalize=False))
    short = torch.randn(1, 100)
    output = encoder(short, torch.tensor([100]))
    assert output.num_frames.tolist() == [1] and torch.isfinite(output.features).all()
    padded = encoder(nn.functional.pad(short, (0, 300)), torch.tensor([400]))
    torch.testing.assert_close(output.features, padded.features)
    beside = encoder(
        torch.cat((nn.functional.pad(short, (0, 7900), value=9.0), torch.randn(1, 8000))),
        torch.tensor([100, 8000]),
    )
    torch.testing.assert_close(beside.features[0, :1], output.features[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("style", [LAYER_STYLE, GROUP_STYLE])
def test_silence_and_a_single_sample_are_finite(tmp_path, style):
    encoder = SpeechEncoder(save_model(tmp_path, architecture=style))
    for waveform in (torch.zeros(1, 4000), torch.ones(1, 1)):
        assert torch.isfinite(encoder(waveform, torch.tensor([waveform.shape[1]])).features).all()


def test_chosen_layers(tiny, speech):
    everything = SpeechEncoder(tiny)(*speech).features
    encoder = SpeechEncoder(tiny, layers=[-1, 0])
    assert encoder.num_layers == 2 and encoder.layers == (3, 0)
    assert torch.equal(encoder(*speech).features, everything[:, :, [3, 0]])
    with pytest.raises(ValueError, match=r"hold \[4\]"):
        SpeechEncoder(tiny, layers=[4])


def test_always_in_eval_mode_without_gradients(tiny, speech):
    encoder = SpeechEncoder(tiny)
    parent = nn.Sequential(encoder)
    expected = encoder(*speech).features
    parent.train()
    assert parent.training and not any(module.training for module in encoder.modules())
    # layer drop 0.9, dropout 0.5 and SpecAugment 0.9 of this config would change nearly every value
    for _ in range(2):
        assert torch.equal(encoder(*speech).features, expected)
    assert not any(p.requires_grad for p in parent.parameters()) and not expected.requires_grad
    (expected * nn.Parameter(torch.ones(32))).sum().backward()  # usable in a graph, unlike inference tensors


def test_autocast_does_not_reach_the_encoder(tiny, speech):
    encoder = SpeechEncoder(tiny)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder(*speech).features
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, encoder(*speech).features, atol=1e-6, rtol=0)


def test_bfloat16_weights_give_bfloat16_features(tiny, speech):
    encoder = SpeechEncoder(tiny, dtype="bfloat16")
    output = encoder(*speech)
    assert output.features.dtype == torch.bfloat16 == encoder.dtype
    torch.testing.assert_close(
        output.features.float(), SpeechEncoder(tiny)(*speech).features, atol=0.2, rtol=0.1
    )


def test_fingerprint_follows_weights_and_settings(tiny, tmp_path):
    first = SpeechEncoder(tiny).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    assert SpeechEncoder(str(moved)).fingerprint == first
    others = [
        SpeechEncoder(save_model(tmp_path / "seed", seed=1)).fingerprint,
        SpeechEncoder(tiny, dtype="bfloat16").fingerprint,
        SpeechEncoder(tiny, layers=[1]).fingerprint,
        SpeechEncoder(tiny, normalize=False).fingerprint,
    ]
    assert len({first, *others}) == 5
    torch.manual_seed(0)
    random = SpeechEncoder(None, architecture={"model_type": "hubert", **LAYER_STYLE})
    torch.manual_seed(1)
    assert (
        random.fingerprint
        != SpeechEncoder(None, architecture={"model_type": "hubert", **LAYER_STYLE}).fingerprint
    )


def closed_form_hubert_large():
    """Parameters of HuBERT-large counted from its published sizes alone."""
    width, inner, layers, channels = 1024, 4096, 24, 512
    kernels = [10, 3, 3, 3, 3, 2, 2]
    inputs = [1] + [channels] * 6
    convolutions = sum(
        channels * c * k + channels + 2 * channels for c, k in zip(inputs, kernels, strict=True)
    )
    projection = 2 * channels + channels * width + width
    # weight norm over the kernel axis: 128 gains beside the direction of 16 groups
    position = 128 + width * (width // 16) * 128 + width
    attention = 4 * (width * width + width)
    feed_forward = width * inner + inner + inner * width + width
    layer = attention + feed_forward + 2 * 2 * width
    mask_embedding, final_norm = width, 2 * width
    return convolutions + projection + position + layers * layer + mask_embedding + final_norm


def test_hubert_large_on_the_meta_device_has_its_published_size():
    encoder = SpeechEncoder.build_meta(HUBERT_LARGE, dtype="bfloat16")
    assert all(p.device.type == "meta" for p in encoder.parameters())
    assert encoder.num_parameters == closed_form_hubert_large() == 315_438_720
    assert (encoder.num_layers, encoder.hidden_size, encoder.frame_rate) == (25, 1024, 50.0)
    assert encoder.num_frames(16000) == 49


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist; give a folder"):
        SpeechEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="./nowhere"):
        SpeechEncoder("./nowhere")


def test_an_unreachable_hub_is_named(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(
        OSError, match="facebook/hubert-large-ll60k.*local folder as source.*couldn't connect"
    ):
        SpeechEncoder("facebook/hubert-large-ll60k", revision="main")


def test_a_broken_folder_is_named(tiny, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="cannot load .*broken"):
        SpeechEncoder(str(broken))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(OSError, match="cannot load .*empty.*config.json"):
        SpeechEncoder(str(empty))


def test_incomplete_weights_are_refused_rather_than_random(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "incomplete"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if "layers.1.attention" not in k}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="lack 8 parameters"):
        SpeechEncoder(str(folder))


def test_unfit_arguments_are_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="'float8'"):
        SpeechEncoder(tiny, dtype="float8")
    with pytest.raises(ValueError, match="hidden_size 32 but architecture says 1024"):
        SpeechEncoder(tiny, architecture=HUBERT_LARGE)
    with pytest.raises(ValueError, match="with its model_type"):
        SpeechEncoder(None)
    with pytest.raises(ValueError, match="model_type is 'bert'"):
        SpeechEncoder(None, architecture={"model_type": "bert"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(ValueError, match="is a 'bert' model"):
        SpeechEncoder(str(tmp_path))


def test_empty_audio_is_refused(tiny):
    with pytest.raises(ValueError, match="between 1 and"):
        SpeechEncoder(tiny)(torch.zeros(1, 10), torch.tensor([0]))


def test_real_recordings_do_not_depend_on_padding(tiny, shared_data):
    import soundfile

    paths = sorted((shared_data / "emodb").rglob("*.wav"))[:4]
    if len(paths) < 4:
        pytest.skip(f"no recordings under {shared_data / 'emodb'}")
    audios = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    waveforms = nn.utils.rnn.pad_sequence(audios, batch_first=True)
    assert largest_difference(SpeechEncoder(tiny), waveforms, torch.tensor([len(a) for a in audios])) <= 1e-5
