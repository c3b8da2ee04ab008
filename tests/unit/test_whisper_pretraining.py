"""The encoder pretraining on Whisper: frames, targets, masks and the saved folder."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechbrain_emo.lobes.hubert_pretraining import (
    EncoderPretrainer,
    FrameTargets,
    build_tiny_whisper,
    num_frames,
    phone_frames,
    receptive_field,
    save_encoder,
)
from speechbrain_emo.lobes.speech_encoder import SpeechEncoder


@pytest.fixture(scope="module")
def encoder():
    return build_tiny_whisper(16, 2, 2, 32, window_seconds=2)


def test_frames_are_those_of_the_speech_encoder(encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    frozen = SpeechEncoder(str(tmp_path), pad_windows=False)
    lengths = torch.tensor([1, 319, 320, 321, 16000, 20001])
    assert num_frames(encoder.config, lengths).tolist() == [frozen.num_frames(n) for n in lengths.tolist()]
    assert receptive_field(WhisperConfig()) == (1, 320)


def test_what_is_trained_is_what_is_saved(encoder, tmp_path):
    """The pretrainer's last states are the frozen encoder's features, which transformers itself can load."""
    save_encoder(encoder.eval(), tmp_path)
    frozen = SpeechEncoder(str(tmp_path), layers="all", pad_windows=False)
    samples = 0.05 * torch.randn(2, 8000)
    lengths = torch.tensor([8000, 5000])
    samples[1, 5000:] = 0
    model = EncoderPretrainer(encoder, 0, 3, 0, prosody_layer=1).eval()
    with torch.no_grad():
        states = model(samples, lengths).hidden_states
    features = frozen(samples, lengths)
    for row, count in enumerate(features.num_frames.tolist()):
        for layer, state in enumerate(states):
            assert torch.allclose(state[row, :count], features.features[row, :count, layer], atol=1e-5)
    again = WhisperEncoder.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values()))


def test_targets_lie_at_the_frames():
    """A click in the middle of a frame is loudest there."""
    config = WhisperConfig()
    samples = torch.zeros(1, 16000)
    samples[0, 6400] = 1.0  # frame 20
    energy = FrameTargets(config)(samples).energy[0]
    assert len(energy) == 50 and int(energy.argmax()) in (20, 21)
    # The window's middle has the most weight, and frame 20 is centred on the click.
    assert energy[20] >= energy[19] and energy[20] >= energy[21]
    classes, _ = phone_frames([{"phone": "a", "start": 0.39, "end": 0.41}], {"a": 0}, 50, config)
    assert np.flatnonzero(classes.numpy() == 0).tolist() == [20]


def test_masked_frames_do_not_reach_the_states(encoder):
    model = EncoderPretrainer(encoder, 4, 0, 0, prosody_layer=1).eval()
    mask = torch.zeros(1, 25, dtype=torch.bool)
    mask[0, 10:20] = True
    quiet = 0.05 * torch.randn(1, 8000)
    other = quiet.clone()
    # Far enough inside that no window or convolution of an unmasked frame reads it.
    other[0, 12 * 320 : 18 * 320] *= 0.5
    with torch.no_grad():
        a, b = (model(x, torch.tensor([8000]), mask).units for x in (quiet, other))
    assert torch.allclose(a, b, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(a, model(quiet, torch.tensor([8000])).units, atol=1e-3)


def test_all_heads_train(encoder):
    targets = FrameTargets(encoder.config)
    model = EncoderPretrainer(encoder.train(), 4, 3, targets.size + 1, durations=True, prosody_layer=2)
    out = model(0.05 * torch.randn(2, 8000), torch.tensor([8000, 4000]))
    (out.units.sum() + out.phones.sum() + out.acoustics.sum() + out.durations.sum()).backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not still


def test_audio_beyond_the_window_is_refused(encoder):
    with pytest.raises(ValueError, match="longer than the encoder's window of 2 s"):
        EncoderPretrainer(encoder, 4, 0, 0, prosody_layer=1)(torch.randn(1, 40000), torch.tensor([40000]))
