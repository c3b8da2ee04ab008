"""EQ-former: published sizes, its equations, and what must not change its output."""

import pytest
import torch
import torch.nn.functional as F
from transformers import WhisperConfig

from speechbrain_emo.lobes.eq_former import TLTR, EQFormer, ResidualAttentionBlock
from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
from speechbrain_emo.lobes.speech_llm import build_meta

SMALL = {
    "num_queries": 5,
    "qformer_size": 24,
    "qformer_heads": 4,
    "qformer_feed_forward": 48,
    "layer_heads": 4,
}


@pytest.fixture
def front_end():
    torch.manual_seed(0)
    return EQFormer(3, 16, 12, **SMALL, output_scale=0.5).eval()


def test_the_published_sizes():
    """Whisper-large-v3 (D = 1280, 32 block outputs), BERT-base width (H = 768), Vicuna-7B (d = 4096).

    A residual block: query, value, output D^2 + D each, key D^2, perceptron 8 D^2 + 5 D, two norms 4 D.
    A Q-Former layer: self-attention 4 (H^2 + H) + 2 H, cross-attention 2 (H^2 + H) + 2 (D H + H) + 2 H, feed-forward
    2 * 4 H^2 + 5 H + 2 H; one norm of the queries; 25 queries of H.
    """
    d, h, llm = 1280, 768, 4096
    with torch.device("meta"):
        front_end = EQFormer(32, d, llm)
    groups = {
        name: sum(p.numel() for m in modules for p in m.parameters())
        for name, modules in front_end.trainable_groups().items()
    }
    block = 12 * d * d + 12 * d
    assert groups["front_end.tltr"] == 2 * block == 39_352_320
    attention = 4 * (h * h + h) + 2 * h
    cross = 2 * (h * h + h) + 2 * (d * h + h) + 2 * h
    layer = attention + cross + 8 * h * h + 5 * h + 2 * h
    q_former = 2 * d + 25 * h + 2 * h + 2 * layer + h * llm + llm
    assert groups["front_end.q_former"] == q_former == 23_649_536
    assert sum(p.numel() for p in front_end.parameters()) == 63_001_856
    assert front_end.num_positions("emotion", 25) == 25


def test_the_published_partial_lora():
    """Rank 8 on q and v of Vicuna's 32 layers, twice: r (in + out) each."""
    lora = {"emotion": {"kinds": ["emotion"]}, "text": {"kinds": ["text", "answer"]}}
    llm = build_meta("lmsys/vicuna-7b-v1.5", lora=lora)
    for name in lora:
        count = sum(p.numel() for m in llm.trainable_groups()[f"llm.lora.{name}"] for p in m.parameters())
        assert count == 32 * 2 * 8 * (4096 + 4096) == 4_194_304
    assert sum(p.numel() for p in llm.parameters()) == 6_738_415_616 + 2 * 4_194_304


def test_the_published_shapes():
    """20 s are 1000 Whisper frames, 25 means of 40; the cache holds (25, 32, 1280) values an audio."""
    architecture = {"model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "num_mel_bins": 128}
    architecture |= {"encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    with torch.device("meta"):
        encoder = SpeechEncoder(
            None, architecture=architecture, layers=list(range(1, 33)), pool=40, fixed_seconds=20.0
        )
    assert encoder.num_frames(16000) == encoder.num_frames(60 * 16000) == 25
    assert (encoder.num_layers, encoder.hidden_size, encoder.frame_rate) == (32, 1280, 1.25)
    with torch.device("meta"):
        front_end = EQFormer(32, 1280, 4096)
        output = front_end.tltr(torch.empty(2, 25, 32, 1280), torch.ones(2, 25, dtype=torch.bool))
    assert output.shape == (2, 25, 1280)


def test_a_block_is_whisper_s():
    """The same weights in transformers' Whisper layer give the same output."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    torch.manual_seed(1)
    config = WhisperConfig(d_model=16, encoder_attention_heads=4, encoder_ffn_dim=64)
    theirs, ours = WhisperEncoderLayer(config).eval(), ResidualAttentionBlock(16, 4)
    pairs = {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "output",
        "self_attn_layer_norm": "attention_norm",
        "final_layer_norm": "perceptron_norm",
        "fc1": "perceptron.0",
        "fc2": "perceptron.2",
    }
    for one, two in pairs.items():
        ours.get_submodule(two).load_state_dict(theirs.get_submodule(one).state_dict())
    x = torch.randn(2, 7, 16)
    wanted = theirs(x, None)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    torch.testing.assert_close(ours(x), wanted, atol=1e-6, rtol=1e-5)


def test_tltr_one_row_at_a_time():
    """Time within each layer, layers at each time, mean: written as loops."""
    torch.manual_seed(2)
    tltr = TLTR(8, 1, 2)
    x, lengths = torch.randn(2, 4, 3, 8), [4, 2]
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    out = tltr(x, mask)
    for n, length in enumerate(lengths):
        over_time = torch.stack([tltr.time(x[n : n + 1, :length, i])[0] for i in range(3)], 1)
        for t in range(length):
            wanted = tltr.layer(over_time[t][None])[0].mean(0)
            torch.testing.assert_close(out[n, t], wanted, atol=1e-5, rtol=1e-5)


def test_padding_batch_and_order_do_not_matter(front_end):
    torch.manual_seed(3)
    lengths = [6, 1, 4]
    features = torch.randn(3, 6, 3, 16)
    full = front_end(features, torch.tensor(lengths)).slots["emotion"]
    other = features.clone()
    for n, length in enumerate(lengths):
        other[n, length:] = 1e4
        alone = front_end(features[n : n + 1, :length], torch.tensor([length])).slots["emotion"]
        torch.testing.assert_close(alone[0], full[n], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(front_end(other, torch.tensor(lengths)).slots["emotion"], full)
    back = front_end(features.flip(0), torch.tensor(lengths[::-1])).slots["emotion"].flip(0)
    torch.testing.assert_close(back, full, atol=1e-5, rtol=1e-5)


def test_groups_are_all_parameters_once(front_end):
    ids = [id(p) for m in sum(front_end.trainable_groups().values(), []) for p in m.parameters()]
    assert sorted(ids) == sorted(id(p) for p in front_end.parameters())


def test_ablations():
    features, lengths = torch.randn(2, 5, 3, 16), torch.tensor([5, 2])
    plain = EQFormer(3, 16, 12, **SMALL, tltr=False).eval()
    assert plain.trainable_groups()["front_end.tltr"] == []
    x, _ = plain.frames(features, lengths)
    torch.testing.assert_close(x[0], F.layer_norm(features[0].mean(1), (16,)))
    frames = EQFormer(3, 16, 12, **SMALL, q_former=False).eval()
    out = frames(features, lengths)
    assert out.slots["emotion"].shape == (2, 5, 12) and out.slot_lengths["emotion"].tolist() == [5, 2]
    assert not out.slots["emotion"][1, 2:].any()
    assert frames.num_positions("emotion", 7) == 7


def test_the_slot_starts_as_large_as_the_embeddings():
    torch.manual_seed(0)
    front_end = EQFormer(3, 16, 2000, **SMALL, output_scale=0.5).eval()
    slots = front_end(torch.randn(4, 5, 3, 16), torch.tensor([5, 5, 5, 5])).slots["emotion"].detach()
    assert float(slots.square().mean().sqrt()) == pytest.approx(0.5, rel=0.1)


def test_what_does_not_fit_is_refused(front_end):
    with pytest.raises(ValueError, match="expected: the layers"):
        front_end(torch.zeros(1, 2, 4, 16), torch.tensor([2]))
    with pytest.raises(ValueError, match="between 1 and T"):
        front_end(torch.zeros(1, 2, 3, 16), torch.tensor([3]))
    with pytest.raises(ValueError, match="heads"):
        EQFormer(3, 16, 12, layer_heads=3)
    with pytest.raises(KeyError, match="no slot kind"):
        front_end.num_positions("content", 3)


# ------------------------------------------------------------------------------- pooling and the fixed length
TINY = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 80,
    "max_source_positions": 100,
}


def test_pooled_features_are_means_over_valid_frames():
    torch.manual_seed(0)
    plain = SpeechEncoder(None, architecture=TINY)
    pooled = SpeechEncoder(None, architecture=TINY, pool=40)
    pooled.model.load_state_dict(plain.model.state_dict())
    lengths = torch.tensor([32000, 16000 + 320 * 3, 320])
    waves = torch.randn(3, 32000)
    full, few = plain(waves, lengths), pooled(waves, lengths)
    assert few.num_frames.tolist() == [3, 2, 1] == [pooled.num_frames(int(n)) for n in lengths]
    for n, count in enumerate(full.num_frames.tolist()):
        for p, start in enumerate(range(0, count, 40)):
            wanted = full.features[n, start : min(start + 40, count)].mean(0)
            torch.testing.assert_close(few.features[n, p], wanted, atol=1e-6, rtol=1e-5)
    assert not few.features[2, 1:].any()
    assert plain.fingerprint.split("|")[1:] != pooled.fingerprint.split("|")[1:]


def test_a_fixed_length_cuts_and_pads():
    torch.manual_seed(0)
    fixed = SpeechEncoder(None, architecture=TINY, pool=10, fixed_seconds=1.0)
    waves = torch.randn(2, 24000)
    out = fixed(waves, torch.tensor([24000, 8000]))
    assert out.num_frames.tolist() == [5, 5] and out.features.shape[1] == 5
    padded = torch.cat([waves[1:, :8000], torch.zeros(1, 8000)], 1)
    torch.testing.assert_close(out.features[1:], fixed(padded, torch.tensor([16000])).features)
    torch.testing.assert_close(out.features[:1], fixed(waves[:1, :16000], torch.tensor([16000])).features)
    with pytest.raises(ValueError, match="pool is 0"):
        SpeechEncoder(None, architecture=TINY, pool=0)


def test_standardised_features_have_no_scale_of_their_own():
    """Statistics of the training set take any scale and shift of a feature out, and travel with the weights."""
    torch.manual_seed(0)
    front_end = EQFormer(3, 16, 12, **SMALL, standardize=True).eval()
    utterances = [torch.randn(n, 3, 16) for n in (4, 7, 5)]
    scale, shift = torch.rand(3, 16) * 100 + 0.01, torch.randn(3, 16) * 10
    x, num_frames = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True), torch.tensor([4, 7, 5])
    front_end.fit_statistics(utterances)
    before = front_end(x, num_frames).slots["emotion"]
    again = EQFormer(3, 16, 12, **SMALL, standardize=True).eval()
    again.load_state_dict(front_end.state_dict())
    assert torch.equal(again(x, num_frames).slots["emotion"], before)
    front_end.fit_statistics([u * scale + shift for u in utterances])
    after = front_end(x * scale + shift, num_frames).slots["emotion"]
    assert torch.allclose(before, after, atol=1e-4)
    plain = EQFormer(3, 16, 12, **SMALL)
    plain.fit_statistics(iter(()))
    assert not any("statistics" in name for name in plain.state_dict())
