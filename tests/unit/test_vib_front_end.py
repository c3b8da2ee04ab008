"""The front end: shapes, invariances, what trains, ablations."""

import pytest
import torch

from speechbrain_emo.lobes.information_bottleneck import derive_seed, frame_mask, keyed_noise
from speechbrain_emo.lobes.vib_front_end import VIBFrontEnd

SIZES = dict(num_layers=3, input_size=8, llm_size=6, hidden_size=16, latent_size=4, stack=5, adapter_size=12)


def make(**changes):
    torch.manual_seed(0)
    return VIBFrontEnd(**{**SIZES, **changes})


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    num_frames = torch.tensor([23, 1, 10, 12])
    features = torch.randn(4, 23, 3, 8, generator=generator)
    return features, num_frames


def test_output_equals_its_parts_computed_by_hand(batch):
    features, num_frames = batch
    front_end = make()
    output = front_end(features, num_frames, noise_seeds=[7, 8, 9, 10])
    for name in ("content", "descriptor"):
        branch = front_end.branches[name]
        for n, count in enumerate(num_frames.tolist()):
            mixed = (features[n, :count] * branch.layer_mix.weights[:, None]).sum(1)
            hidden = torch.relu(branch.bottleneck.hidden(mixed))
            mu, log_var = branch.bottleneck.mean(hidden), branch.bottleneck.log_variance(hidden)
            seed = derive_seed(7 + n, name)
            noise = keyed_noise([seed], [count], count, 4)[0]
            z = mu + torch.exp(log_var / 2) * noise
            positions = -(-count // 5)
            z = torch.cat((z, torch.zeros(positions * 5 - count, 4))).reshape(positions, 20)
            torch.testing.assert_close(
                output.slots[name][n, :positions], branch.adapter(z), atol=1e-6, rtol=1e-5
            )
            torch.testing.assert_close(output.latents[name][n, :count], mu, atol=1e-5, rtol=1e-5)
            assert output.slot_lengths[name][n] == positions == front_end.num_positions(name, count)
        assert output.kl[name].count == num_frames.sum()


def test_slots_and_latents_are_exactly_zero_at_padding(batch):
    features, num_frames = batch
    front_end = make()
    for module in front_end.modules():  # biases of trained adapters would show at padding
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.bias)
    output = front_end(features, num_frames, noise_seeds=[1, 2, 3, 4])
    for name in front_end.slot_kinds:
        outside = ~frame_mask(output.slot_lengths[name], output.slots[name].shape[1])
        assert outside.any() and not output.slots[name][outside].any()
        assert not output.latents[name][~frame_mask(num_frames, 23)].any()
        assert output.slots[name][~outside].abs().min() > 0


@pytest.mark.parametrize("training", [True, False])
def test_an_audio_does_not_depend_on_its_neighbours_or_padding(batch, training):
    features, num_frames = batch
    features[~frame_mask(num_frames, 23)] = 1e4
    front_end = make().train(training)
    together = front_end(features, num_frames, noise_seeds=[7, 8, 9, 10])
    order = torch.tensor([2, 0, 3, 1])
    permuted = front_end(features[order], num_frames[order], noise_seeds=[9, 7, 10, 8])
    for name in front_end.slot_kinds:
        torch.testing.assert_close(permuted.slots[name], together.slots[name][order], atol=1e-6, rtol=1e-5)
        total = 0.0
        for n, count in enumerate(num_frames.tolist()):
            alone = front_end(features[n : n + 1, :count], num_frames[n : n + 1], noise_seeds=[7 + n])
            positions = alone.slots[name].shape[1]
            torch.testing.assert_close(
                together.slots[name][n, :positions], alone.slots[name][0], atol=1e-6, rtol=1e-5
            )
            total = total + alone.kl[name].sum
        torch.testing.assert_close(together.kl[name].sum, total, rtol=1e-5, atol=1e-5)


def test_branches_draw_different_noise_from_one_seed():
    front_end = make()
    front_end.branches["descriptor"].load_state_dict(front_end.branches["content"].state_dict())
    features, num_frames = torch.randn(1, 10, 3, 8), torch.tensor([10])
    sampled = front_end(features, num_frames, noise_seeds=[3])
    assert not torch.allclose(sampled.slots["content"], sampled.slots["descriptor"])
    mean = front_end.eval()(features, num_frames)
    assert torch.equal(mean.slots["content"], mean.slots["descriptor"])


def test_seeds_are_needed_while_a_branch_trains_and_eval_of_one_branch_is_enough(batch):
    features, num_frames = batch
    front_end = make()
    with pytest.raises(ValueError, match="noise_seeds is None"):
        front_end(features, num_frames)
    with pytest.raises(ValueError, match="2 seeds for 4 audios"):
        front_end(features, num_frames, noise_seeds=[1, 2])
    front_end.branches["content"].eval()
    one = front_end(features, num_frames, noise_seeds=[1, 2, 3, 4])
    two = front_end(features, num_frames, noise_seeds=[5, 6, 7, 8])
    assert torch.equal(one.slots["content"], two.slots["content"])
    assert not torch.equal(one.slots["descriptor"], two.slots["descriptor"])
    assert torch.equal(one.kl["descriptor"].sum, two.kl["descriptor"].sum)
    front_end.eval()(features, num_frames)


def test_training_one_branch_leaves_the_other_bit_identical(batch):
    features, num_frames = batch
    front_end = make()
    groups = front_end.trainable_groups()
    assert list(groups) == ["front_end.content", "front_end.descriptor"]
    front_end.requires_grad_(False)
    for module in groups["front_end.descriptor"]:
        module.requires_grad_(True)
    before = {name: value.clone() for name, value in front_end.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in front_end.parameters() if p.requires_grad], lr=0.1)
    output = front_end(features, num_frames, noise_seeds=[1, 2, 3, 4])
    loss = sum(s.square().sum() for s in output.slots.values()) + sum(k.mean for k in output.kl.values())
    loss.backward()
    optimizer.step()
    for name, value in front_end.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("branches.content."), name


@pytest.mark.parametrize("layer_weights", ["per_branch", "shared"])
def test_groups_hold_every_parameter_once(layer_weights):
    front_end = make(layer_weights=layer_weights)
    grouped = [
        p for modules in front_end.trainable_groups().values() for m in modules for p in m.parameters()
    ]
    assert sorted(map(id, grouped)) == sorted(map(id, front_end.parameters()))
    names = {name.split(".")[0] for name, _ in front_end.named_parameters()}
    assert names == ({"branches", "layer_mix"} if layer_weights == "shared" else {"branches"})


def test_shared_mix_feeds_both_branches(batch):
    features, num_frames = batch
    front_end = make(layer_weights="shared").eval()
    with torch.no_grad():
        front_end.layer_mix.logits.copy_(torch.tensor([50.0, 0.0, 0.0]))
    changed = features.clone()
    changed[:, :, 1:] += 1.0
    one, two = front_end(features, num_frames), front_end(changed, num_frames)
    for name in front_end.slot_kinds:
        torch.testing.assert_close(one.slots[name], two.slots[name])
    assert list(front_end.mixing_weights()) == ["shared"]


def test_every_parameter_gets_a_gradient(batch):
    features, num_frames = batch
    for changes in ({}, {"layer_weights": "shared"}, {"bottleneck": False}, {"latent_size": None}):
        front_end = make(**changes)
        output = front_end(features, num_frames, noise_seeds=[1, 2, 3, 4])
        sum(s.square().sum() for s in output.slots.values()).backward()
        for name, parameter in front_end.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (changes, name)


def test_without_bottleneck_z_is_the_mean_and_no_seeds_are_needed(batch):
    features, num_frames = batch
    front_end = make(bottleneck=False)
    output = front_end(features, num_frames)
    assert output.kl == {}
    assert torch.equal(output.slots["content"], front_end.eval()(features, num_frames).slots["content"])
    assert output.latents["content"].shape == (4, 23, 4)


def test_without_latent_the_adapter_sees_the_mixed_features(batch):
    features, num_frames = batch
    front_end = make(latent_size=None, branches=["speech"])
    output = front_end(features, num_frames)
    assert front_end.slot_kinds == ("speech",) and output.kl == {}
    mixed = features[2, :10].mean(dim=1).reshape(2, 40)
    expected = front_end.branches["speech"].adapter(mixed)
    torch.testing.assert_close(output.slots["speech"][2, :2], expected, atol=1e-6, rtol=1e-5)
    assert not any("bottleneck" in name for name, _ in front_end.named_parameters())


def test_mixed_features_of_one_layer(batch):
    features, num_frames = batch
    front_end = make(num_layers=1).eval()
    output = front_end(features[:, :, :1], num_frames)
    assert output.slots["content"].shape == (4, 5, 6)


def test_half_precision_features_and_autocast(batch):
    features, num_frames = batch
    front_end = make().eval()
    full = front_end(features, num_frames)
    half = front_end(features.bfloat16(), num_frames)
    torch.testing.assert_close(half.slots["content"], full.slots["content"], atol=2e-3, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = front_end(features, num_frames)
    assert cast.kl["content"].sum.dtype == torch.float32
    torch.testing.assert_close(cast.kl["content"].sum, full.kl["content"].sum, rtol=0.02, atol=0)


def test_slots_start_at_the_scale_of_token_embeddings():
    front_end = VIBFrontEnd(4, 64, 96, latent_size=64, output_scale=0.013, normalize_layers=True)
    output = front_end(torch.randn(4, 50, 4, 64), torch.tensor([50] * 4), noise_seeds=range(4))
    for slots in output.slots.values():
        assert 0.4 * 0.013 < slots.square().mean().sqrt() < 1.6 * 0.013


def test_state_round_trip(batch):
    features, num_frames = batch
    one, two = make().eval(), VIBFrontEnd(**SIZES).eval()
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(features, num_frames).slots["content"], two(features, num_frames).slots["content"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_weights": "both"}, "'both'"),
        ({"branches": ["a", "a"]}, "different names"),
        ({"branches": []}, "different names"),
        ({"branches": "content"}, "is the string"),
        ({"stack": 0}, "stack is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"output_scale": 0}, "output_scale is 0"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_input_is_named(batch):
    features, num_frames = batch
    front_end = make().eval()
    with pytest.raises(ValueError, match="input_size must be the encoder's hidden_size"):
        front_end(features[..., :5], num_frames)
    with pytest.raises(ValueError, match="between 1 and T"):
        front_end(features, torch.tensor([23, 0, 1, 1]))
    with pytest.raises(ValueError, match="between 1 and T"):
        front_end(features, torch.tensor([24, 1, 1, 1]))
    with pytest.raises(KeyError, match="emotion"):
        front_end.num_positions("emotion", 5)


def test_utterance_position_equals_its_parts_alone_and_in_a_batch(batch):
    features, num_frames = batch
    front_end = make(standardize=True, utterance_position=True).eval()
    front_end.fit_statistics([features[n, :count] for n, count in enumerate(num_frames.tolist())])
    output = front_end(features, num_frames)
    own = [features[n, :count] for n, count in enumerate(num_frames.tolist())]
    every = torch.stack([torch.cat((x.mean(0), (x.var(0, unbiased=False) + 1e-5).sqrt()), -1) for x in own])
    standard = (every - every.mean(0)) / every.std(0, unbiased=False)
    for name in front_end.slot_kinds:
        branch = front_end.branches[name]
        for n, count in enumerate(num_frames.tolist()):
            mixed = (standard[n] * branch.layer_mix.weights[:, None]).sum(0)
            mu = branch.utterance.bottleneck.mean(torch.relu(branch.utterance.bottleneck.hidden(mixed)))
            torch.testing.assert_close(
                output.slots[name][n, 0], branch.utterance.adapter(mu), atol=1e-5, rtol=1e-4
            )
            assert output.slot_lengths[name][n] == front_end.num_positions(name, count) == -(-count // 5) + 1
            alone = front_end(features[n : n + 1, :count], num_frames[n : n + 1])
            length = output.slot_lengths[name][n]
            torch.testing.assert_close(
                alone.slots[name][0], output.slots[name][n, :length], atol=1e-5, rtol=1e-4
            )


def test_utterance_position_counts_in_the_divergence_and_draws_its_own_noise(batch):
    features, num_frames = batch
    front_end = make(standardize=True, utterance_position=True)
    plain = make(standardize=True)
    plain.load_state_dict({k: v for k, v in front_end.state_dict().items() if ".utterance." not in k})
    one, other = (front_end(features, num_frames, noise_seeds=seeds) for seeds in ([1, 2, 3, 4], [1, 2, 3, 5]))
    without = plain(features, num_frames, noise_seeds=[1, 2, 3, 4])
    for name in front_end.slot_kinds:
        assert one.kl[name].sum > without.kl[name].sum and one.kl[name].count == without.kl[name].count
        torch.testing.assert_close(one.slots[name][:, 1:], without.slots[name])
        changed = (one.slots[name][:, 0] != other.slots[name][:, 0]).any(-1)
        assert changed.tolist() == [False, False, False, True]


def test_standardised_front_end_does_not_see_scale_and_offset_of_its_features(batch):
    features, num_frames = batch
    own = [features[n, :count] for n, count in enumerate(num_frames.tolist())]
    scale, offset = torch.rand(3, 8) * 100 + 0.1, torch.randn(3, 8) * 50
    outputs = []
    for change in (lambda x: x, lambda x: x * scale + offset):
        front_end = make(standardize=True, utterance_position=True).eval()
        front_end.fit_statistics([change(x) for x in own])
        outputs.append(front_end(change(features), num_frames).slots)
    for name in outputs[0]:
        torch.testing.assert_close(outputs[0][name][:, 1:], outputs[1][name][:, 1:], atol=1e-4, rtol=1e-3)


def test_utterance_position_without_standardised_features_is_refused():
    with pytest.raises(ValueError, match="standardize=True"):
        make(utterance_position=True)


def test_branch_without_frames_has_the_utterance_position_alone(batch):
    features, num_frames = batch
    front_end = make(standardize=True, utterance_position=True, frame_positions=["content"])
    output = front_end(features, num_frames, noise_seeds=[1, 2, 3, 4])
    assert output.slot_lengths["descriptor"].tolist() == [1] * 4 == [front_end.num_positions("descriptor", 23)] * 4
    assert output.slots["descriptor"].shape == (4, 1, 6)
    assert output.kl["descriptor"].count == num_frames.sum() and output.kl["descriptor"].sum > 0
    # Every parameter takes part: a parameter that never gets a gradient stops distributed training.
    sum(x.sum() for x in output.slots.values()).backward()
    assert all(p.grad is not None for p in front_end.parameters())
    with pytest.raises(ValueError, match="frame_positions"):
        make(frame_positions=["content"])
