"""The two adapters against independent computations, and their invariances."""

import pytest
import torch
from torch.nn import functional as F

from speechbrain_emo.lobes.dual_adapters import DualAdapters, pooling_weights

SIZE, LLM = 16, 12


@pytest.fixture(scope="module")
def front_end():
    torch.manual_seed(0)
    made = DualAdapters(2, SIZE, LLM, num_positions=10, num_heads=8, hidden_size=24, output_scale=1.0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.eval()


@pytest.fixture(scope="module")
def audios():
    torch.manual_seed(1)
    lengths = torch.tensor([23, 1, 7, 12, 10])
    features = torch.full((5, 23, 2, SIZE), 1e4)
    for row, length in enumerate(lengths.tolist()):
        features[row, :length] = torch.randn(length, 2, SIZE)
    return features, lengths


@pytest.mark.parametrize("length", [1, 2, 3, 9, 10, 11, 19, 20, 21, 150, 1499])
def test_pooling_is_torch_s_adaptive_average_over_the_valid_frames(length):
    frames = torch.randn(3, 1500)
    expected = F.adaptive_avg_pool1d(frames[:, :length], 10)
    weights = pooling_weights(torch.tensor([length]), 1500, 10)[0]
    assert torch.allclose(frames @ weights.T, expected, atol=1e-6)


def test_adapters_equal_a_computation_by_hand(front_end, audios):
    features, lengths = audios
    output = front_end(features, lengths)
    p, q = front_end.paralinguistic, front_end.linguistic
    for row, length in enumerate(lengths.tolist()):
        x = features[row : row + 1, :length, -1]
        attended = p.layer.self_attn(x, x, x, need_weights=False)[0]
        y = p.layer.norm1(x + attended)
        y = p.layer.norm2(y + p.layer.linear2(F.relu(p.layer.linear1(y))))
        pooled = F.adaptive_avg_pool1d(y.transpose(1, 2), 10).transpose(1, 2)
        assert torch.allclose(output.slots["paralinguistic"][row], p.output(pooled)[0], atol=1e-4)
        padded = F.pad(x, (0, 0, 0, -length % 5)).reshape(-1, 5 * SIZE)
        stacked = q.adapter.output(F.relu(q.adapter.hidden(padded)))
        count = int(output.slot_lengths["linguistic"][row])
        assert count == len(stacked) == front_end.num_positions("linguistic", length)
        assert torch.allclose(output.slots["linguistic"][row, :count], stacked, atol=1e-5)
        assert not output.slots["linguistic"][row, count:].any()


@pytest.mark.parametrize("grad", [False, True], ids=["fused kernel", "plain kernel"])
def test_one_audio_is_the_same_alone_and_in_a_batch(front_end, audios, grad):
    features, lengths = audios
    with torch.set_grad_enabled(grad):
        together = front_end(features, lengths)
        order = [3, 0, 4, 2, 1]
        shuffled = front_end(features[order], lengths[order])
        for row, length in enumerate(lengths.tolist()):
            alone = front_end(features[row : row + 1, :length], lengths[row : row + 1])
            for kind, slots in alone.slots.items():
                count = slots.shape[1]
                assert (together.slots[kind][row, :count] - slots[0]).abs().max() < 1e-5
                other = shuffled.slots[kind][order.index(row), :count]
                assert (other - slots[0]).abs().max() < 1e-5


def test_only_the_asked_kinds_are_computed(front_end, audios):
    output = front_end(*audios, kinds=["linguistic"])
    assert list(output.slots) == ["linguistic"] and output.kl == {}


def test_gradient_reaches_each_adapter_alone(front_end, audios):
    front_end(*audios, kinds=["linguistic"]).slots["linguistic"].sum().backward()
    assert all(p.grad is None for p in front_end.paralinguistic.parameters())
    assert all(p.grad is not None for p in front_end.linguistic.parameters())
    front_end.zero_grad(set_to_none=True)


def test_dropout_acts_in_training_only(audios):
    made = DualAdapters(2, SIZE, LLM, hidden_size=24).train()
    a, b = (made(*audios).slots["paralinguistic"] for _ in range(2))
    assert not torch.equal(a, b)
    made.eval()
    assert torch.equal(made(*audios).slots["paralinguistic"], made(*audios).slots["paralinguistic"])


def test_single_adapter_leaves_the_other_slot_empty(audios):
    made = DualAdapters(2, SIZE, LLM, hidden_size=24, adapters="single")
    output = made(*audios)
    assert output.slots["paralinguistic"].shape == (5, 0, LLM)
    assert made.num_positions("paralinguistic", 50) == 0
    assert list(made.trainable_groups()) == ["front_end.linguistic"]


def test_slots_start_at_the_language_model_s_scale():
    torch.manual_seed(0)
    made = DualAdapters(1, 256, 64, output_scale=0.05).eval()
    output = made(torch.randn(4, 50, 1, 256), torch.full((4,), 50))
    for kind, low in (("linguistic", 0.03), ("paralinguistic", 0.005)):
        assert low < output.slots[kind].square().mean().sqrt() < 0.06


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_heads": 7}, "must divide"),
        ({"adapters": "three"}, "dual, single"),
        ({"layer": 2}, "allowed"),
        ({"num_positions": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualAdapters(2, SIZE, LLM, **arguments)


def test_wrong_input_is_refused(front_end, audios):
    features, lengths = audios
    with pytest.raises(ValueError, match="expected"):
        front_end(features[..., :5], lengths)
    with pytest.raises(ValueError, match="valid frames"):
        front_end(features, torch.zeros_like(lengths))
    with pytest.raises(KeyError, match="no slot kind"):
        front_end.num_positions("content", 5)
