"""The parts of the bottleneck against closed forms and independent computation."""

import math

import pytest
import torch

from speechbrain_emo.lobes.information_bottleneck import (
    ActiveUnits,
    FrameStacker,
    GaussianBottleneck,
    LayerMix,
    SlotAdapter,
    active_units,
    frame_mask,
    keyed_noise,
    kl_to_standard_normal,
)


def test_layer_mix_is_the_softmax_weighted_sum():
    mix = LayerMix(4)
    with torch.no_grad():
        mix.logits.copy_(torch.tensor([0.3, -1.0, 2.0, 0.0]))
    features = torch.randn(2, 5, 4, 3)
    exponentials = [math.exp(v) for v in (0.3, -1.0, 2.0, 0.0)]
    expected = sum(e / sum(exponentials) * features[:, :, i] for i, e in enumerate(exponentials))
    torch.testing.assert_close(mix(features), expected, atol=1e-6, rtol=0)


def test_layer_mix_of_one_layer_is_the_identity():
    features = torch.randn(2, 5, 1, 3)
    assert torch.equal(LayerMix(1)(features), features[:, :, 0])


def test_layer_mix_normalises_each_layer():
    features = torch.randn(1, 2, 2, 64) * torch.tensor([1.0, 1000.0])[:, None]
    mixed = LayerMix(2, normalize_layers=True)(features)
    expected = (
        sum(
            (layer - layer.mean(-1, keepdim=True)) / layer.std(-1, correction=0, keepdim=True)
            for layer in features.unbind(2)
        )
        / 2
    )
    torch.testing.assert_close(mixed, expected, atol=1e-3, rtol=1e-3)


def test_layer_mix_names_the_wrong_number_of_layers():
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\).*\(N, T, 5, D\)"):
        LayerMix(5)(torch.zeros(1, 2, 3, 4))


def test_kl_equals_torch_distributions_and_ignores_padding():
    mu, log_var = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    num_frames = torch.tensor([7, 2, 4])
    mask = frame_mask(num_frames, 7)
    normal = torch.distributions.Normal(mu, (0.5 * log_var).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    divergence = torch.distributions.kl_divergence(normal, prior)
    expected = sum(divergence[n, : num_frames[n]].sum() for n in range(3))
    term = kl_to_standard_normal(mu, log_var, mask)
    torch.testing.assert_close(term.sum, expected, rtol=1e-5, atol=0)
    assert term.count.item() == 13
    torch.testing.assert_close(term.mean, expected / 13, rtol=1e-5, atol=0)

    mu[~mask] = float("nan")
    log_var[~mask] = float("inf")
    mu.requires_grad_(), log_var.requires_grad_()
    dirty = kl_to_standard_normal(mu, log_var, mask)
    assert torch.equal(dirty.sum, term.sum)
    dirty.sum.backward()
    assert torch.isfinite(mu.grad).all() and torch.isfinite(log_var.grad).all()
    assert not mu.grad[~mask].any()
    torch.testing.assert_close(mu.grad[mask], mu.detach()[mask])


def test_kl_sums_of_shards_give_the_mean_of_the_whole():
    mu, log_var = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    mask = frame_mask(torch.tensor([6, 1, 3, 2]), 6)
    whole = kl_to_standard_normal(mu, log_var, mask)
    parts = [kl_to_standard_normal(mu[i : i + 2], log_var[i : i + 2], mask[i : i + 2]) for i in (0, 2)]
    together = sum(p.sum for p in parts) / sum(p.count for p in parts)
    torch.testing.assert_close(together, whole.mean)
    assert abs((parts[0].mean + parts[1].mean) / 2 - whole.mean) > 1e-3  # means of ranks are not the mean


def test_kl_of_the_prior_is_zero_and_empty_mean_is_zero():
    zeros = torch.zeros(1, 3, 4)
    assert kl_to_standard_normal(zeros, zeros, torch.ones(1, 3, dtype=torch.bool)).sum == 0
    assert kl_to_standard_normal(zeros, zeros, torch.zeros(1, 3, dtype=torch.bool)).mean == 0


def test_noise_depends_on_the_seed_and_length_only():
    alone = keyed_noise([11], [13], 13, 6)[0]
    batch = keyed_noise([5, 11, 7], [40, 13, 1], 40, 6)
    assert torch.equal(batch[1, :13], alone)
    assert not batch[1, 13:].any()
    assert not torch.equal(keyed_noise([12], [13], 13, 6)[0], alone)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    keyed_noise([11], [13], 13, 6)
    assert torch.equal(before, torch.random.get_rng_state())


def test_noise_is_standard_normal():
    noise = keyed_noise(range(50), [40] * 50, 40, 50)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_bottleneck_samples_in_training_and_gives_the_mean_in_eval():
    bottleneck = GaussianBottleneck(6, 12, 4)
    features, noise = torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    sampled = bottleneck(features, noise)
    torch.testing.assert_close(sampled.z, sampled.mu + (0.5 * sampled.log_var).exp() * noise)
    assert not torch.equal(sampled.z, sampled.mu)
    bottleneck.eval()
    assert torch.equal(bottleneck(features, noise).z, sampled.mu)
    hidden = (features @ bottleneck.hidden.weight.T + bottleneck.hidden.bias).clamp(min=0)
    expected = hidden @ bottleneck.mean.weight.T + bottleneck.mean.bias
    torch.testing.assert_close(sampled.mu, expected, atol=1e-5, rtol=1e-5)


def test_bottleneck_needs_noise_in_training_only_where_it_is_variational():
    with pytest.raises(ValueError, match="training mode but no noise"):
        GaussianBottleneck(6)(torch.randn(1, 2, 6))
    plain = GaussianBottleneck(6, 12, 4, variational=False)
    latents = plain(torch.randn(1, 2, 6))
    assert latents.log_var is None and torch.equal(latents.z, latents.mu)
    assert not any("log_variance" in name for name, _ in plain.named_parameters())


def test_log_variance_is_limited_but_can_come_back():
    bottleneck = GaussianBottleneck(3, 4, 2, log_var_range=(-3.0, 2.0))
    with torch.no_grad():
        bottleneck.log_variance.bias.copy_(torch.tensor([-50.0, 50.0]))
    latents = bottleneck.eval()(torch.zeros(1, 1, 3))
    torch.testing.assert_close(latents.log_var[0, 0], torch.tensor([-3.0, 2.0]))
    kl_to_standard_normal(latents.mu, latents.log_var, torch.ones(1, 1, dtype=torch.bool)).sum.backward()
    low, high = bottleneck.log_variance.bias.grad
    assert low < 0 < high  # a descent step raises the low one and lowers the high one
    torch.testing.assert_close(low, torch.tensor(0.5 * (math.exp(-3.0) - 1)))


def test_bottleneck_rejects_a_range_without_its_initial_value():
    with pytest.raises(ValueError, match="initial_log_var -20"):
        GaussianBottleneck(3, initial_log_var=-20)


@pytest.mark.parametrize("fill", ["zero", "edge"])
@pytest.mark.parametrize("stack", [1, 3, 5])
def test_stacks_equal_a_loop_over_frames(fill, stack):
    num_frames = torch.tensor([1, 4, 5, 7, 10])
    frames = torch.randn(5, 10, 2)
    dirty = frames.masked_fill(~frame_mask(num_frames, 10)[..., None], float("nan"))
    stacks, lengths = FrameStacker(stack, fill)(dirty, num_frames)
    assert stacks.shape == (5, math.ceil(10 / stack), 2 * stack)
    for n, count in enumerate(num_frames.tolist()):
        assert lengths[n] == math.ceil(count / stack) == FrameStacker(stack).num_positions(count)
        for position in range(stacks.shape[1]):
            for offset in range(stack):
                t = position * stack + offset
                if position >= lengths[n]:
                    expected = torch.zeros(2)
                elif t < count:
                    expected = frames[n, t]
                else:
                    expected = frames[n, count - 1] if fill == "edge" else torch.zeros(2)
                assert torch.equal(stacks[n, position, 2 * offset : 2 * offset + 2], expected)


def test_stacks_do_not_depend_on_padding():
    frames = torch.randn(1, 7, 3)
    alone, lengths = FrameStacker(5)(frames, torch.tensor([7]))
    padded = torch.cat((frames, torch.full((1, 9, 3), 8.0)), dim=1)
    beside, _ = FrameStacker(5)(padded, torch.tensor([7]))
    assert lengths.item() == 2
    assert torch.equal(alone, beside[:, :2]) and not beside[:, 2:].any()


def test_stacker_rejects_unknown_fill():
    with pytest.raises(ValueError, match="'reflect'"):
        FrameStacker(5, "reflect")


def test_adapter_is_relu_and_starts_at_the_given_scale():
    torch.manual_seed(3)
    adapter = SlotAdapter(500, 1024, 512, output_scale=0.02)
    stacks = torch.randn(2, 50, 500)
    output = adapter(stacks)
    assert 0.018 < output.square().mean().sqrt() < 0.022
    hidden = (stacks @ adapter.hidden.weight.T).clamp(min=0)
    torch.testing.assert_close(output, hidden @ adapter.output.weight.T, atol=1e-5, rtol=1e-3)


def test_active_units_equal_the_variance_of_the_valid_means():
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 0.2, 0.05, 0.0])  # variances 1, 0.04, 0.0025, 0 around a large mean
    mu = torch.randn(6, 50, 4, generator=generator) * scale + 1000.0
    mask = frame_mask(torch.tensor([50, 20, 1, 50, 33, 7]), 50)
    mu[~mask] = 1e9
    assert active_units(mu, mask).tolist() == [True, True, False, False]
    running = ActiveUnits()
    for n in range(6):
        running.update(mu[n : n + 1], mask[n : n + 1])
    torch.testing.assert_close(running.variance, mu[mask].double().var(dim=0, correction=0))


def test_active_units_without_data_says_so():
    with pytest.raises(ValueError, match="no valid frame"):
        ActiveUnits().active  # noqa: B018
