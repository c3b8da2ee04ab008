"""emotion2vec through funasr: a small model of funasr's own class, from its config."""

import builtins
import copy
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from speechbrain_emo.dataio.feature_cache import FeatureCache
from speechbrain_emo.lobes import emotion2vec
from speechbrain_emo.lobes.emotion2vec import Emotion2Vec

TOKENS = ["生气/angry", "厌恶/disgusted", "unuse_0", "开心/happy", "<unk>"]
CONFIG = {
    "loss_beta": 0.0,
    "loss_scale": None,
    "depth": 2,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "num_heads": 2,
    "norm_eps": 1e-5,
    "norm_affine": True,
    "encoder_dropout": 0.1,
    "post_mlp_drop": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.05,
    "embed_dim": 16,
    "mlp_ratio": 2.0,
    "layer_norm_first": False,
    "average_top_k_layers": 2,
    "end_of_block_targets": False,
    "clone_batch": 1,
    "normalize": True,
    "modalities": {
        "audio": {
            "type": "AUDIO",
            "prenet_depth": 1,
            "prenet_layerdrop": 0.05,
            "prenet_dropout": 0.1,
            "start_drop_path_rate": 0.0,
            "end_drop_path_rate": 0.0,
            "num_extra_tokens": 2,
            "init_extra_token_zero": True,
            "mask_noise_std": 0.01,
            "use_alibi_encoder": True,
            "alibi_scale": 1.0,
            "learned_alibi": False,
            "alibi_max_pos": None,
            "learned_alibi_scale": True,
            "learned_alibi_scale_per_head": True,
            "learned_alibi_scale_per_layer": False,
            "num_alibi_heads": 2,
            "model_depth": 2,
            "local_grad_mult": 1.0,
            "decoder": None,
            "extractor_mode": "layer_norm",
            "feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] + [(8,2,2)]",
            "conv_pos_width": 15,
            "conv_pos_groups": 4,
            "conv_pos_depth": 3,
            "conv_pos_pre_ln": False,
        }
    },
}


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("funasr", reason="pip install 'speechbrain_emo[emotion2vec]'")
    torch.manual_seed(1)
    return Emotion2Vec.from_config(CONFIG, TOKENS)


def modelscope_folder(encoder, folder, state=None):
    """As the published models lie on disk."""
    from omegaconf import OmegaConf

    folder.mkdir()
    config = {
        "model": "Emotion2vec",
        "model_conf": CONFIG,
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
        "scope_map": ["d2v_model.", "none"],
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    state = state or {
        f"d2v_model.{k}" if "proj." != k[:5] else k: v for k, v in encoder.model.state_dict().items()
    }
    torch.save({"model": state}, folder / "model.pt")
    return folder


def test_frames_and_sizes_are_those_of_the_published_convolutions(encoder):
    assert (encoder.hop, encoder.receptive_field, encoder.frame_rate) == (320, 400, 50.0)
    assert encoder.frame_centre == 0.0125
    assert [encoder.num_frames(n) for n in (1, 400, 719, 720, 16000)] == [1, 1, 1, 2, 49]
    out = encoder(torch.randn(1, 16000), torch.tensor([16000]))
    assert out.features.shape == (1, 49, 1, 16)


def test_features_are_what_funasr_s_own_inference_gives(encoder):
    wave = torch.randn(9000)
    source = F.layer_norm(wave, wave.shape)[None]
    with torch.no_grad():
        wanted = encoder.model.extract_features(source, padding_mask=None)["x"][0]
    got = encoder(wave[None], torch.tensor([9000])).features[0, :, 0]
    assert torch.equal(got, wanted)


def test_an_audio_s_features_do_not_depend_on_its_batch(encoder):
    lengths = [16000, 5000, 200]
    batch = torch.full((3, 20000), float("nan"))
    waves = [torch.randn(n) for n in lengths]
    for row, wave in enumerate(waves):
        batch[row, : len(wave)] = wave
    together = encoder(batch, torch.tensor(lengths))
    for row, wave in enumerate(waves):
        alone = encoder(wave[None], torch.tensor([len(wave)]))
        count = int(together.num_frames[row])
        assert torch.equal(together.features[row, :count], alone.features[0])
        assert not together.features[row, count:].any()


def test_labels_hold_unknown_and_leave_out_what_is_not_in_use(encoder):
    assert encoder.labels == ("angry", "disgusted", "happy", "unknown")
    wave = torch.randn(1, 8000)
    probabilities = encoder.classify(wave, torch.tensor([8000]))
    frames = encoder(wave, torch.tensor([8000])).features[0, :, 0]
    logits = encoder.model.proj(frames.mean(0))
    logits[2] = -torch.inf
    assert torch.allclose(probabilities[0], logits.softmax(-1)[[0, 1, 3, 4]], atol=1e-6)


def test_a_base_model_has_no_labels(encoder):
    base = Emotion2Vec.from_config(CONFIG)
    with pytest.raises(ValueError, match="emotion2vec_plus_large"):
        base.classify(torch.randn(1, 8000), torch.tensor([8000]))


def test_it_stays_frozen_and_in_eval_mode(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_a_folder_of_ours_and_one_of_modelscope_load_the_same(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "ours")
    modelscope_folder(encoder, tmp_path / "theirs")
    wave = torch.randn(1, 7000)
    wanted = encoder(wave, torch.tensor([7000])).features
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    threads = torch.get_num_threads()
    for name in ("ours", "theirs"):
        loaded = Emotion2Vec(str(tmp_path / name))
        assert torch.equal(loaded(wave, torch.tensor([7000])).features, wanted)
        assert loaded.labels == encoder.labels
        assert loaded.fingerprint == encoder.fingerprint
    # funasr's loader sets seeds and threads of the whole process.
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state()) and threads == torch.get_num_threads()


def test_weights_that_funasr_would_leave_random_are_refused(encoder, tmp_path):
    state = {k: v for k, v in encoder.model.state_dict().items() if "blocks.1" not in k}
    folder = modelscope_folder(encoder, tmp_path / "incomplete", state)
    with pytest.raises(OSError, match="were not taken from"):
        Emotion2Vec(str(folder))
    (folder / "model.pt").unlink()
    with pytest.raises(OSError, match="config.yaml, model.pt"):
        Emotion2Vec(str(folder))


def test_other_weights_have_another_fingerprint(encoder):
    torch.manual_seed(2)
    other = Emotion2Vec.from_config(CONFIG, TOKENS)
    with torch.no_grad():
        other.model.norm = None
        next(other.model.blocks.parameters()).add_(1)
    assert other.fingerprint != encoder.fingerprint


def test_the_feature_cache_takes_it(encoder, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    cache = FeatureCache(tmp_path / "cache", encoder.fingerprint)
    record = {"wav": str(tmp_path / "a.wav"), "duration": 0.5}

    def load(audio):
        return torch.as_tensor(soundfile.read(audio["wav"], dtype="float32")[0])

    assert cache.fill([record], encoder, load, progress=False) == 1
    assert cache.get(cache.key(record)).shape == (24, 1, 16)


def test_a_config_that_would_run_code_is_refused(encoder):
    bad = copy.deepcopy(CONFIG)
    bad["modalities"]["audio"]["feature_encoder_spec"] = "__import__('os').getcwd()"
    with pytest.raises(ValueError, match="allowed are lists"):
        Emotion2Vec.from_config(bad)


def test_a_folder_of_another_model_and_a_missing_one_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    with pytest.raises(ValueError, match="loaded by SpeechEncoder"):
        Emotion2Vec(str(tmp_path))
    with pytest.raises(OSError, match="does not exist"):
        Emotion2Vec(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="'ms'"):
        Emotion2Vec(hub="elsewhere")


def test_a_missing_funasr_is_named_with_its_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "funasr":
            raise ImportError("No module named 'funasr'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"speechbrain_emo\[emotion2vec\]"):
        Emotion2Vec("iic/emotion2vec_base")


def test_a_hub_that_cannot_be_reached_gives_a_plain_message(monkeypatch):
    funasr = pytest.importorskip("funasr")

    def unreachable(**options):
        # What funasr 1.4 does: it prints the failure of the download and then asserts.
        raise AssertionError("model file does not exist")

    monkeypatch.setattr(funasr, "AutoModel", unreachable)
    with pytest.raises(OSError, match="no hub may be reachable from here"):
        emotion2vec.Emotion2Vec("iic/emotion2vec_base")
