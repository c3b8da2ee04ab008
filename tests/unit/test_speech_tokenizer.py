"""FSQ in closed form, the trainable tokenizer and speaker encoder, and the published files' ONNX interfaces."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from speechbrain_emo.lobes.fsq import FSQ
from speechbrain_emo.lobes.speaker_encoder import SpeakerEncoder, filter_banks, load_speaker_encoder
from speechbrain_emo.lobes.speech_tokenizer import SpeechTokenizer, WhisperLogMel, load_speech_tokenizer

# -- FSQ -----------------------------------------------------------------------------------------------------


def test_published_levels_by_an_independent_computation():
    """Three levels: -1, 0, 1 by where 0.999 tanh(x) passes a half; token in base 3, first dimension the last digit."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1.2, (50, 7, 8))
    squeezed = 0.999 * np.tanh(x)
    digits = np.where(squeezed > 0.5, 2, np.where(squeezed < -0.5, 0, 1))
    expected = [[int("".join(str(d) for d in row[::-1]), 3) for row in frame] for frame in digits]
    fsq = FSQ()
    out = fsq(torch.from_numpy(x))
    assert fsq.vocab_size == 6561 and out.tokens.tolist() == expected
    np.testing.assert_allclose(out.values.numpy(), digits - 1.0, atol=1e-12)
    # All tokens can be reached, and each has values of its own.
    corners = torch.tensor(list(itertools.product([-9.0, 0.0, 9.0], repeat=8)))
    assert sorted(fsq(corners).tokens.tolist()) == list(range(6561))


@pytest.mark.parametrize("levels", [[3] * 8, [8, 5, 5, 5], [2, 4, 7], [3]])
def test_tokens_and_values_are_each_other_s_inverse(levels):
    fsq = FSQ(levels)
    tokens = torch.arange(fsq.vocab_size)
    values = fsq.from_tokens(tokens)
    assert values.abs().max() <= 1 and len(torch.unique(values, dim=0)) == math.prod(levels)
    rounded = (values * (fsq.sizes // 2)).round()
    assert torch.equal(fsq.to_tokens(rounded), tokens)
    out = fsq(3 * torch.randn(2000, len(levels)))
    torch.testing.assert_close(fsq.from_tokens(out.tokens), out.values, atol=1e-6, rtol=0)


def test_the_table_of_levels_is_the_arithmetic_of_tokens():
    table = FSQ([3, 2, 5]).level_table()
    assert table.shape == (30, 10) and bool((table.sum(1) == 3).all())
    for token in range(30):
        ones = torch.nonzero(table[token])[:, 0].tolist()
        assert ones == [token % 3, 3 + token // 3 % 2, 5 + token // 6]


def test_gradient_is_that_of_the_bounded_numbers():
    fsq = FSQ([3, 3])
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    fsq(x).values.sum().backward()
    expected = 0.999 * (1 - np.tanh(np.array([[0.3, -0.7]])) ** 2)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


def test_wrong_levels_and_tokens_are_refused():
    with pytest.raises(ValueError, match="2 levels or more"):
        FSQ([3, 1])
    with pytest.raises(ValueError, match="allowed are 0 to 8"):
        FSQ([3, 3]).from_tokens(torch.tensor([9]))


# -- the trainable tokenizer ---------------------------------------------------------------------------------


def small(seed=0, **options):
    torch.manual_seed(seed)
    settings = {"num_classes": 6, "size": 32, "num_heads": 2, "ffn_size": 48, "levels": [3] * 4, **options}
    tokenizer = SpeechTokenizer(**settings).eval()
    with torch.no_grad():
        # Random states are much alike; tokens of all kinds are wanted.
        seen = []
        tokenizer.fsq.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        noise = torch.rand(1, 40).repeat_interleave(640, 1) ** 4 * torch.randn(1, 25600)
        tokenizer.encode(noise, torch.tensor([25600]))
        tokenizer.fsq._forward_pre_hooks.clear()
        deviation, mean = seen[0].std((0, 1)), seen[0].mean((0, 1))
        tokenizer.down.weight /= deviation[:, None]
        tokenizer.down.bias.copy_((tokenizer.down.bias - mean) / deviation)
    return tokenizer


@pytest.mark.parametrize("num_mels", [80, 128])
def test_log_mels_are_whisper_s(num_mels):
    samples = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    expected = extractor(samples, sampling_rate=16000, padding=False, return_tensors="np").input_features[0]
    found = WhisperLogMel(num_mels)(torch.from_numpy(samples)).numpy()
    assert found.shape == (num_mels, 100)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_tokens_of_a_waveform_do_not_depend_on_the_batch():
    tokenizer, lengths = small(), [16000, 6401, 6400, 1, 39999]
    rng = torch.Generator().manual_seed(0)
    envelope = torch.rand(5, 63, generator=rng).repeat_interleave(640, 1)[:, :39999] ** 4
    waveforms = envelope * torch.randn(5, 39999, generator=rng)
    tokens, counts = tokenizer.encode(waveforms, torch.tensor(lengths))
    assert counts.tolist() == [25, 11, 10, 1, 63] and tokens.dtype == torch.int64
    assert len(torch.unique(tokens)) > 5
    for row, length in enumerate(lengths):
        alone, count = tokenizer.encode(waveforms[row : row + 1, :length], torch.tensor([length]))
        assert torch.equal(alone[0], tokens[row, : count[0]]) and not tokens[row, count[0] :].any()
    output = tokenizer(waveforms, torch.tensor(lengths))
    assert torch.equal(output.tokens, tokens) and output.logits.shape == (5, 63, 6)
    assert output.acoustics is None


def test_a_token_hears_its_own_place():
    """A click moves the state of the token whose 40 ms it lies in the most (blocks off, neighbours not heard)."""
    tokenizer = small(num_encoder_blocks=1)
    with torch.no_grad():
        for layer in tokenizer.encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()
        tokenizer.positions.convolution.weight.zero_()
    quiet = 1e-3 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    loud = quiet.clone()
    loud[0, 640 * 12 + 320] += 0.5
    states = []
    original = tokenizer.down.forward
    tokenizer.down.forward = lambda x: states.append(x) or original(x)
    for waveform in (quiet, loud):
        # A fixed floor: the loudest value of a waveform is Whisper's reference.
        waveform[0, -1] = 0.9
        tokenizer.encode(waveform, torch.tensor([16000]))
    moved = (states[0] - states[1]).norm(dim=-1)[0]
    assert int(moved.argmax()) == 12 and moved[:10].max() < 1e-4 and moved[15:24].max() < 1e-4


def test_saved_tokenizer_reads_back_and_faults_are_named(tmp_path):
    tokenizer = small(acoustic_size=3)
    tokenizer.save(tmp_path / "t")
    again = load_speech_tokenizer(tmp_path / "t")
    assert again.fingerprint == tokenizer.fingerprint != small(1).fingerprint
    waveform = torch.randn(1, 8000)
    assert torch.equal(
        again.encode(waveform, torch.tensor([8000]))[0], tokenizer.encode(waveform, torch.tensor([8000]))[0]
    )
    with pytest.raises(ValueError, match="allowed here: speaker_encoder"):
        load_speaker_encoder(tmp_path / "t")
    with pytest.raises(ValueError, match="lacks config.json"):
        load_speech_tokenizer(tmp_path)
    (tmp_path / "t" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not the config"):
        load_speech_tokenizer(tmp_path / "t")


# -- speakers ------------------------------------------------------------------------------------------------


def test_speaker_vector_depends_on_neither_batch_nor_level(tmp_path):
    torch.manual_seed(0)
    encoder = SpeakerEncoder([16, 16, 16, 16, 48], 8).eval()
    waveforms = 0.1 * torch.randn(2, 16000)
    lengths = torch.tensor([16000, 7000])
    vectors = encoder.encode(waveforms, lengths)
    torch.testing.assert_close(vectors[1:], encoder.encode(waveforms[1:, :7000], torch.tensor([7000])))
    torch.testing.assert_close(encoder.encode(0.1 * waveforms, lengths), vectors, atol=2e-3, rtol=2e-3)
    encoder.save(tmp_path)
    torch.testing.assert_close(load_speaker_encoder(tmp_path).encode(waveforms, lengths), vectors)
    with pytest.raises(ValueError, match="at least 400"):
        filter_banks(torch.zeros(100))


# -- published files -----------------------------------------------------------------------------------------


def onnx_file(path, inputs, nodes, output):
    """An ONNX file with the published inputs and a graph of ours."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    graph = helper.make_graph(
        [helper.make_node(kind, i, o, **attributes) for kind, i, o, attributes in nodes],
        "test",
        values,
        [helper.make_tensor_value_info(*output)],
        [onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def tokenizer_file(path, offset=0.0):
    """Published inputs; a token is the loudest of 128 bins of every fourth frame."""
    onnx = pytest.importorskip("onnx")
    kind = onnx.TensorProto
    inputs = [("feats", kind.FLOAT, [1, 128, "T"]), ("feats_length", kind.INT32, [1])]
    nodes = [
        ("MaxPool", ["feats4"], ["pooled"], {"kernel_shape": [1, 1], "strides": [1, 4]}),
        ("Unsqueeze", ["feats", "one"], ["feats4"], {}),
        ("ArgMax", ["pooled"], ["indices4"], {"axis": 2, "keepdims": 0}),
        ("Cast", ["indices4"], ["floats"], {"to": kind.FLOAT}),
        ("Constant", [], ["offset"], {"value_float": offset}),
        ("Add", ["floats", "offset"], ["moved"], {}),
        ("Cast", ["moved"], ["indices"], {"to": kind.INT32}),
    ]
    nodes[0], nodes[1] = nodes[1], nodes[0]
    return onnx_file(path, inputs, nodes, ("indices", kind.INT32, [1, 1, "S"]))


def test_published_tokenizer_interface(tmp_path):
    pytest.importorskip("onnxruntime")
    tokenizer = load_speech_tokenizer(tokenizer_file(tmp_path / "speech_tokenizer_v2.onnx"))
    waveforms = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    tokens, lengths = tokenizer.encode(waveforms, torch.tensor([16000, 8000]))
    assert lengths.tolist() == [25, 13] and tokenizer.vocab_size == 6561
    expected = WhisperLogMel(128)(waveforms[1, :8000])[:, ::4].argmax(0)
    assert tokens[1, :13].tolist() == expected.tolist() and not tokens[1, 13:].any()
    assert tokenizer.encode(waveforms, torch.tensor([16000, 1]))[1].tolist() == [25, 1]
    with pytest.raises(ValueError, match="up to 30 s"):
        tokenizer.encode(torch.zeros(1, 30 * 16000 + 1), torch.tensor([30 * 16000 + 1]))
    odd = load_speech_tokenizer(tokenizer_file(tmp_path / "odd.onnx", 9000.0))
    with pytest.raises(ValueError, match="another tokenizer"):
        odd.encode(waveforms, torch.tensor([16000, 8000]))


def test_published_speaker_interface(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto
    inputs = [("input", kind.FLOAT, ["B", "T", 80])]
    # Sizes only: the deviation over time, thrice, cut to 192.
    nodes = [
        (
            "ReduceL2",
            [
                "input",
            ],
            ["norm"],
            {"axes": [1], "keepdims": 0},
        ),
        ("Concat", ["norm", "norm", "norm"], ["all"], {"axis": 1}),
        ("Split", ["all"], ["output", "rest"], {"axis": 1}),
    ]
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node(nodes[0][0], ["input"], ["norm"], axes=[1], keepdims=0),
            helper.make_node("Concat", ["norm"] * 3, ["all"], axis=1),
            helper.make_node("Split", ["all", "sizes"], ["output", "rest"], axis=1),
        ],
        "test",
        [helper.make_tensor_value_info(*inputs[0])],
        [helper.make_tensor_value_info("output", kind.FLOAT, ["B", 192])],
        [onnx.numpy_helper.from_array(np.array([192, 48], dtype=np.int64), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "campplus.onnx"))
    encoder = load_speaker_encoder(tmp_path / "campplus.onnx")
    waveforms = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    vectors = encoder.encode(waveforms, torch.tensor([16000, 8000]))
    assert vectors.shape == (2, 192)
    expected = filter_banks(waveforms[1, :8000]).norm(dim=0)
    torch.testing.assert_close(vectors[1, :80], expected, rtol=1e-4, atol=1e-4)


def test_a_file_that_is_something_else_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="no such file"):
        load_speech_tokenizer(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="cannot read it"):
        load_speech_tokenizer(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="its inputs are"):
        load_speaker_encoder(tokenizer_file(tmp_path / "t.onnx"))
