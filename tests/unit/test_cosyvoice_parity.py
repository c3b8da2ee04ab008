"""The published networks: every name and shape, and their outputs on weights that anyone can make."""

import numpy as np
import pytest
import torch

from speechbrain_emo.lobes.flow import TokenToMel
from speechbrain_emo.lobes.vocoder import HiFT
from tests.cosyvoice_reference import FOLDER, draw, read_table, relative_error, with_reference_weights

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tables(shared_data):
    return {part: read_table(shared_data / FOLDER / f"{part}.tsv") for part in ("flow", "hift")}


@pytest.fixture(scope="module")
def reference(shared_data):
    with np.load(shared_data / FOLDER / "reference.npz") as content:
        return {name: torch.from_numpy(content[name]) for name in content.files}


@pytest.fixture(scope="module")
def flow(tables):
    return with_reference_weights(TokenToMel(), tables["flow"])


@pytest.fixture(scope="module")
def vocoder(tables):
    return with_reference_weights(HiFT(), tables["hift"])


def tokens(seed, count):
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 6561, (1, count)))


@pytest.mark.parametrize("part,build", [("flow", TokenToMel), ("hift", HiFT)])
def test_every_name_and_shape_is_the_published_one(tables, part, build):
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    assert own == tables[part]


@torch.inference_mode()
@pytest.mark.parametrize("streaming", [False, True])
def test_flow_encoder(flow, reference, streaming):
    x = flow.input_embedding(torch.cat([tokens(8, 10), tokens(7, 30)], dim=1))
    frames, num_frames = flow.encoder(x, torch.tensor([40]), streaming=streaming)
    assert relative_error(frames, reference[f"encoder_streaming_{int(streaming)}"]) < TOLERANCE
    assert num_frames.tolist() == [80]


@torch.inference_mode()
def test_flow_encoder_with_look_ahead(flow, reference):
    x = flow.input_embedding(torch.cat([tokens(8, 10), tokens(7, 30)], dim=1))
    frames, num_frames = flow.encoder(x, torch.tensor([40]), look_ahead_given=True, streaming=True)
    assert relative_error(frames, reference["encoder_lookahead_context"]) < TOLERANCE
    assert num_frames.tolist() == [74]


@torch.inference_mode()
@pytest.mark.parametrize("streaming", [False, True])
def test_velocity_network(flow, reference, streaming):
    shape = (2, 80, 80)
    mask = torch.ones(2, 1, 80)
    times = torch.full((2,), 0.3)
    inputs = (draw("x", shape), mask, draw("mu", shape), times, draw("spks", (2, 80)), draw("cond", shape))
    velocity = flow.decoder.estimator(*inputs, streaming=streaming)
    assert relative_error(velocity, reference[f"estimator_streaming_{int(streaming)}"]) < TOLERANCE


@pytest.mark.parametrize("streaming", [False, True])
def test_whole_flow(flow, reference, streaming):
    noise = draw("noise", (1, 80, 15000))[:, :, :80]
    prompt, speaker = draw("prompt_feat", (1, 20, 80)), draw("embedding", (1, 192))
    out = flow.generate(tokens(7, 30), tokens(8, 10), prompt, speaker, streaming=streaming, noise=noise)
    assert relative_error(out.mel, reference[f"flow_mel_streaming_{int(streaming)}"]) < TOLERANCE


def test_stream_with_caches_is_the_published_chunked_flow(flow, reference, monkeypatch):
    monkeypatch.setattr(flow.decoder, "_noise", draw("noise", (1, 80, 15000)))
    prompt, speaker = draw("prompt_feat", (1, 20, 80))[0], draw("embedding", (1, 192))[0]
    stream = flow.stream(tokens(8, 10)[0], prompt, speaker)
    parts = [stream.push(part) for part in tokens(7, 30)[0].split([4, 17, 9])] + [stream.finish()]
    assert [part.shape[2] for part in parts] == [0, 30, 0, 30]
    assert relative_error(torch.cat(parts, dim=2), reference["flow_mel_streaming_1"]) < TOLERANCE


@torch.inference_mode()
def test_f0_predictor_and_vocoder(vocoder, reference):
    mel = draw("mel", (1, 80, 24))
    assert relative_error(vocoder.f0_predictor(mel), reference["f0_predictor"]) < TOLERANCE
    wave = vocoder.decode(mel, 0.1 * draw("source", (1, 1, 11520)))
    assert relative_error(wave, reference["vocoder_decode"]) < TOLERANCE
    fused = vocoder.fuse_weight_norm().decode(mel, 0.1 * draw("source", (1, 1, 11520)))
    assert relative_error(fused, reference["vocoder_decode"]) < TOLERANCE
