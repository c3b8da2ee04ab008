"""The flow: guidance and schedule against their formulas, batches, padding, chunks, caches, losses, bad input."""

import math

import pytest
import torch

from speechbrain_emo.brains.flow_training import train_flow
from speechbrain_emo.lobes.flow import FlowDraws, FlowMatching, load_flow, tiny_flow
from speechbrain_emo.lobes.flow.caches import ChunkCache, chunk_mask
from speechbrain_emo.lobes.flow.encoder import relative_sinusoids
from speechbrain_emo.lobes.flow.matching import flow_times, prior_velocity

VOCABULARY, MELS, SPEAKER = 20, 8, 6


@pytest.fixture(params=[{}, {"prior_deviation": 0.8, "temperature": 0.3}], ids=["published", "prior"])
def flow(request):
    torch.manual_seed(0)
    return tiny_flow(VOCABULARY, SPEAKER, MELS, **request.param).eval()


def sentence(count, seed=1, vocabulary=VOCABULARY):
    return torch.randint(0, vocabulary, (1, count), generator=torch.Generator().manual_seed(seed))


def voice(prompt_tokens=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (1, prompt_tokens), generator=generator)
    mel = torch.randn(1, 2 * prompt_tokens, MELS, generator=generator)
    return tokens, mel, torch.randn(1, SPEAKER, generator=generator)


def generate(flow, tokens, prompt, **options):
    return flow.generate(tokens, *prompt, **options).mel


def test_cosine_times_and_linear_times():
    assert torch.allclose(flow_times(4)[1:3], torch.tensor([1 - math.cos(math.pi / 8), 1 - math.sqrt(0.5)]))
    assert flow_times(4, "linear").tolist() == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(ValueError, match="num_steps is 0"):
        flow_times(0)
    with pytest.raises(ValueError, match="'sine'; allowed are"):
        flow_times(4, "sine")


def test_relative_sinusoids_turn_with_the_distance():
    table = relative_sinusoids(torch.tensor([3, -3]), 6)
    rates = [1.0, 10000 ** (-2 / 6), 10000 ** (-4 / 6)]
    for i, rate in enumerate(rates):
        assert table[0, 2 * i] == pytest.approx(math.sin(3 * rate), abs=1e-6)
        assert table[1, 2 * i + 1] == pytest.approx(math.cos(3 * rate), abs=1e-6)
    assert torch.allclose(table[0, ::2], -table[1, ::2])


class Field(torch.nn.Module):
    """A velocity that is known: mu + x/2 + speaker + cond, so that the solver can be computed by hand."""

    num_mels = 2

    def forward(self, x, mask, mu, t, speaker, cond, **_):
        return mu + 0.5 * x + speaker[..., None] * t[:, None, None] + cond


def test_euler_steps_and_guidance_follow_their_formulas():
    flow = FlowMatching(Field(), num_steps=3, guidance=0.7, num_noise_frames=4)
    mu, speaker, cond = torch.rand(1, 2, 4), torch.rand(1, 2), torch.rand(1, 2, 4)
    x = flow.fixed_noise(0, 4, mu)
    assert torch.equal(x, torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0)))
    times = [1 - math.cos(math.pi / 2 * i / 3) for i in range(4)]
    for start, stop in zip(times, times[1:], strict=False):
        conditional = mu + 0.5 * x + speaker[..., None] * start + cond
        x = x + (stop - start) * (1.7 * conditional - 0.7 * 0.5 * x)
    assert torch.allclose(flow.solve(mu, None, speaker, cond), x, atol=1e-5)


def test_without_guidance_one_half_is_computed():
    flow = FlowMatching(Field(), num_noise_frames=4)
    batches = []
    flow.estimator.register_forward_hook(lambda module, args, out: batches.append(len(out)))
    flow.solve(torch.rand(1, 2, 4), None, torch.rand(1, 2), torch.rand(1, 2, 4), guidance=0.0)
    assert set(batches) == {1}


def test_the_loss_is_the_error_of_the_velocity_over_valid_frames():
    flow = FlowMatching(Field(), sigma_min=0.1)
    mel, mu, cond = (torch.rand(2, 2, 5) for _ in range(3))
    speaker, lengths = torch.rand(2, 2), torch.tensor([5, 3])
    draws = FlowDraws.of_seeds([3, 4], lengths, 2)
    draws.keep = torch.tensor([True, False])
    mask = (torch.arange(5) < lengths[:, None])[:, None].float()
    total, count = flow.loss(mel, mask, mu, speaker, cond, draws)
    expected = 0.0
    for row, length in enumerate([5, 3]):
        t, z, kept = draws.times[row], draws.noise[row], float(draws.keep[row])
        x = (1 - 0.9 * t) * z + t * mel[row]
        predicted = kept * (mu[row] + speaker[row, :, None] * t + cond[row]) + 0.5 * x
        expected += (predicted - mel[row] + 0.9 * z)[:, :length].square().sum()
    assert total == pytest.approx(float(expected), rel=1e-5) and count == 2 * 8


def test_draws_follow_from_their_seeds_alone():
    alone = FlowDraws.of_seeds([7], torch.tensor([6]), 4)
    batch = FlowDraws.of_seeds([9, 7], torch.tensor([30, 6]), 4)
    assert torch.equal(batch.noise[1, :, :6], alone.noise[0]) and not batch.noise[1, :, 6:].any()
    assert batch.times[1] == alone.times[0] and batch.prompt_frames[1] == alone.prompt_frames[0]
    many = FlowDraws.of_seeds(range(2000), torch.full((2000,), 10), 1)
    assert 0.77 < many.keep.float().mean() < 0.83
    assert many.prompt_frames.max() == 3
    # Half have no prompt, and a quarter of the others draw a length of 0.
    assert 0.59 < (many.prompt_frames == 0).float().mean() < 0.66


def test_a_row_is_the_same_alone_and_in_a_padded_batch(flow):
    first, second = sentence(9), sentence(4, seed=5)
    voices = voice(5), voice(2, seed=8)
    padded = torch.cat([first, torch.nn.functional.pad(second, (0, 5), value=3)])
    prompt = torch.cat([voices[0][0], torch.nn.functional.pad(voices[1][0], (0, 3), value=1)])
    mel = torch.cat([voices[0][1], torch.nn.functional.pad(voices[1][1], (0, 0, 0, 6), value=9.0)])
    for streaming in (False, True):
        out = flow.generate(
            padded,
            prompt,
            mel,
            torch.cat([voices[0][2], voices[1][2]]),
            num_tokens=torch.tensor([9, 4]),
            num_prompt_tokens=torch.tensor([5, 2]),
            num_prompt_frames=torch.tensor([10, 4]),
            streaming=streaming,
        )
        assert out.num_frames.tolist() == [18, 8] and not out.mel[1, :, 8:].any()
        assert torch.allclose(out.mel[:1], generate(flow, first, voices[0], streaming=streaming), atol=1e-5)
        alone = generate(flow, second, voices[1], streaming=streaming)
        assert torch.allclose(out.mel[1:, :, :8], alone, atol=1e-5)


@pytest.mark.parametrize("prompt_tokens", [0, 3, 4, 5, 13])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 22])
def test_a_stream_equals_everything_at_once_however_it_is_cut(flow, prompt_tokens, count):
    tokens, prompt = sentence(count), voice(prompt_tokens)
    whole = generate(flow, tokens, prompt, streaming=True)
    for cut in (1, 5, count):
        stream = flow.stream(*(x[0] for x in prompt))
        parts = [stream.push(part) for part in tokens[0].split(cut)] + [stream.finish()]
        assert torch.allclose(torch.cat(parts, dim=2), whole, atol=1e-4)


def test_frames_come_as_soon_as_their_chunk_and_look_ahead_are_there(flow):
    stream = flow.stream(*(x[0] for x in voice(5)))
    # Chunks of 4 tokens, 3 tokens ahead: the second chunk ends at token 8 and needs token 11, which is the sixth.
    sizes = [stream.push(part).shape[2] for part in sentence(8)[0].split(1)]
    assert sizes == [0, 0, 0, 0, 0, 6, 0, 0]
    assert stream.finish().shape[2] == 10


def test_a_stream_that_is_not_final_equals_the_published_look_ahead(flow):
    tokens, prompt = sentence(10), voice(5)
    stream = flow.stream(*(x[0] for x in prompt))
    got = stream.push(tokens[0])
    whole = generate(flow, tokens, prompt, streaming=True, finalize=False)
    assert whole.shape[2] == 14 and torch.allclose(got, whole[:, :, :14], atol=1e-5)


@pytest.mark.parametrize("left_chunks", [0, 1, 2])
def test_bounded_left_context_is_what_its_mask_says(flow, left_chunks):
    tokens, prompt = sentence(30), voice(5)
    masked = generate(flow, tokens, prompt, streaming=True, left_chunks=left_chunks)
    stream = flow.stream(*(x[0] for x in prompt), left_chunks=left_chunks)
    parts = [stream.push(part) for part in tokens[0].split(3)] + [stream.finish()]
    assert torch.allclose(torch.cat(parts, dim=2), masked, atol=1e-4)
    unbounded = generate(flow, tokens, prompt, streaming=True)
    assert not torch.allclose(masked, unbounded, atol=1e-4)


def test_bounded_left_context_bounds_the_memory(flow):
    sizes = []
    stream = flow.stream(*(x[0] for x in voice(5)), left_chunks=1)
    for part in sentence(80)[0].split(8):
        stream.push(part)
        sizes.append(stream.num_bytes())
    assert sizes[-1] == sizes[4]


def test_the_last_chunk_can_see_everything_as_in_the_published_pipeline(flow):
    tokens, prompt = sentence(11), voice(5)
    stream = flow.stream(*(x[0] for x in prompt), last_chunk="full")
    first = stream.push(tokens[0])
    rest = stream.finish()
    full = generate(flow, tokens, prompt)
    assert torch.allclose(rest, full[:, :, first.shape[2] :], atol=1e-5)


def test_sentences_can_begin_from_copies_of_a_voice(flow):
    prompt = voice(9)
    start = flow.stream(*(x[0] for x in prompt), left_chunks=2)
    for seed in (1, 2):
        stream = start.clone()
        got = torch.cat([stream.push(sentence(12, seed)[0]), stream.finish()], dim=2)
        fresh = flow.stream(*(x[0] for x in prompt), left_chunks=2)
        assert torch.equal(got, torch.cat([fresh.push(sentence(12, seed)[0]), fresh.finish()], dim=2))


def test_chunk_mask_against_its_definition():
    mask = chunk_mask(11, 3, left_chunks=1, keep_first=2)
    for i in range(11):
        for j in range(11):
            near = i // 3 - 1 <= j // 3 <= i // 3
            assert bool(mask[i, j]) == (near or (j < 2 and j // 3 <= i // 3))


def test_trimmed_cache_keeps_first_and_last():
    cache, layer = ChunkCache(keep_first=2, keep_last=3), torch.nn.Identity()
    for start in range(0, 12, 4):
        keys = torch.arange(start, start + 4).float().reshape(1, 1, 4, 1)
        cache.buffer(layer).extend(keys, keys)
        cache.trim()
    assert cache.buffer(layer).positions.tolist() == [0, 1, 9, 10, 11]
    kept = cache.buffer(layer).extend(keys[:, :, :0], keys[:, :, :0])[0]
    assert kept.flatten().tolist() == [0, 1, 9, 10, 11]


def test_training_reaches_every_weight_and_padding_reaches_none():
    torch.manual_seed(0)
    flow = tiny_flow(VOCABULARY, SPEAKER, MELS, num_emotions=3)
    for module in flow.modules():
        for name in ("dropout", "position_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens, lengths = sentence(12).reshape(2, 6), torch.tensor([6, 4])
    mel, frames = torch.randn(2, 12, MELS), torch.tensor([12, 8])
    emotions = torch.tensor([[0, 1, 1, 2, -1, 0]]).expand(2, -1)
    draws = FlowDraws.of_seeds([1, 2], frames, MELS, drop=0.0, no_prompt=0.0)
    arguments = {"emotions": emotions, "intensities": torch.rand(2, 6), "streaming": True}
    speaker = torch.randn(2, SPEAKER)
    total, count = flow.loss(tokens, lengths, mel, frames, speaker, draws, **arguments)
    (total / count).backward()
    without = [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == [] and count == 20 * MELS
    mel[1, 8:], tokens[1, 4:] = 7.0, 0
    again, _ = flow.loss(tokens, lengths, mel, frames, speaker, draws, **arguments)
    assert again.item() == pytest.approx(total.item(), rel=1e-5)


def test_emotion_changes_the_mel_and_unknown_emotion_does_not():
    torch.manual_seed(0)
    flow = tiny_flow(VOCABULARY, SPEAKER, MELS, num_emotions=3).eval()
    torch.nn.init.normal_(flow.emotion.base.weight)
    tokens, prompt = sentence(8), voice(5)
    plain = generate(flow, tokens, prompt)
    assert torch.equal(plain, generate(flow, tokens, prompt, emotions=torch.full_like(tokens, -1)))
    angry = generate(flow, tokens, prompt, emotions=torch.zeros_like(tokens))
    assert not torch.allclose(plain, angry, atol=1e-3)
    stream = flow.stream(*(x[0] for x in prompt))
    parts = [stream.push(tokens[0], torch.zeros_like(tokens[0])), stream.finish()]
    chunked = generate(flow, tokens, prompt, streaming=True, emotions=torch.zeros_like(tokens))
    assert torch.allclose(torch.cat(parts, dim=2), chunked, atol=1e-5)


def test_a_flow_survives_its_folder(flow, tmp_path):
    flow.save(tmp_path)
    again = load_flow(tmp_path)
    assert torch.equal(generate(flow, sentence(5), voice()), generate(again, sentence(5), voice()))


def test_what_cannot_be_said_is_told(flow):
    with pytest.raises(ValueError, match="tokens lie in .*allowed are 0 to 19"):
        generate(flow, torch.tensor([[20]]), voice())
    with pytest.raises(ValueError, match="the start noise has 400"):
        generate(flow, sentence(300), voice())
    with pytest.raises(ValueError, match="num_tokens is .* must be 4 or more"):
        generate(flow, sentence(3), voice(0), finalize=False)
    tokens, mel, speaker = voice()
    with pytest.raises(ValueError, match="give 2 frames for each prompt token"):
        flow.generate(sentence(1), tokens, mel.repeat(1, 3, 1), speaker)
    with pytest.raises(ValueError, match="has none: build it with num_emotions"):
        generate(flow, sentence(2), voice(), emotions=torch.zeros(1, 2, dtype=torch.long))
    stream = flow.stream(tokens[0], mel[0], speaker[0])
    with pytest.raises(ValueError, match="nothing to say"):
        stream.finish()
    with pytest.raises(ValueError, match="last_chunk is 'half'"):
        flow.stream(tokens[0], mel[0], speaker[0], last_chunk="half")
    with pytest.raises(ValueError, match="training mode"):
        flow.train().stream(tokens[0], mel[0], speaker[0])


class Nothing(torch.nn.Module):
    """A network that adds nothing."""

    num_mels = 4

    def forward(self, x, *conditions, **options):
        return torch.zeros_like(x)


def test_prior_velocity_leads_to_its_normal():
    """Where the network adds nothing, the path from z ends at mu + s z: the flow between two normals is linear."""
    matching = FlowMatching(Nothing(), num_steps=400, schedule="linear", guidance=0.0, prior_deviation=0.5)
    generator = torch.Generator().manual_seed(0)
    mu, z = torch.randn(2, 4, 7, generator=generator) * 3, torch.randn(2, 4, 7, generator=generator)
    end = matching.solve(mu, None, torch.zeros(2, 4), torch.zeros(2, 4, 7), noise=z)
    torch.testing.assert_close(end, mu + 0.5 * z, atol=0.02, rtol=0)
    # Guidance is between answers of the network: it leaves the prior alone.
    given = (mu, None, torch.zeros(2, 4), torch.zeros(2, 4, 7))
    torch.testing.assert_close(matching.solve(*given, noise=z, guidance=0.7), end)
    with pytest.raises(ValueError, match="prior_deviation is 0"):
        FlowMatching(Nothing(), prior_deviation=0)


def test_prior_velocity_is_the_regression_of_what_is_drawn():
    """Least squares over many draws finds the same coefficients of mu and x."""
    generator = torch.Generator().manual_seed(1)
    n, s = 200000, 0.7
    mu = torch.randn(n, generator=generator) * 2
    noise, mel = (torch.randn(n, generator=generator), mu + s * torch.randn(n, generator=generator))
    for t in (0.1, 0.5, 0.9):
        x = (1 - t) * noise + t * mel
        fitted = torch.linalg.lstsq(torch.stack([mu, x], 1), (mel - noise)[:, None]).solution[:, 0]
        one = torch.ones(1, 1, 1)
        assert prior_velocity(0 * one, one, t * one, s).item() == pytest.approx(fitted[0].item(), abs=0.02)
        assert prior_velocity(one, 0 * one, t * one, s).item() == pytest.approx(fitted[1].item(), abs=0.02)


def test_loss_of_the_prior_alone():
    """Its error is what mel and noise leave open: s^2 / ((1 - t)^2 + (t s)^2) at each time."""
    matching = FlowMatching(Nothing(), prior_deviation=0.5)
    generator = torch.Generator().manual_seed(3)
    mu = torch.randn(1, 4, 20000, generator=generator)
    mel = mu + 0.5 * torch.randn(mu.shape, generator=generator)
    for t in (0.2, 0.7):
        noise = torch.randn(mu.shape, generator=generator)
        draws = FlowDraws(torch.tensor([t]), noise, torch.tensor([True]), torch.tensor([0]))
        mask = torch.ones(1, 1, 20000)
        error, count = matching.loss(mel, mask, mu, torch.zeros(1, 4), torch.zeros_like(mu), draws)
        expected = 0.25 / ((1 - t) ** 2 + 0.25 * t**2)
        assert float(error / count) == pytest.approx(expected, rel=0.03)


def test_guidance_needs_its_unconditional_half():
    with pytest.raises(ValueError, match="draws.drop is 0"):
        train_flow({"flow": {"matching": {"guidance": 0.5}}, "draws": {"drop": 0.0}})


def test_temperature_scales_the_start_noise():
    given = {"num_steps": 400, "schedule": "linear", "guidance": 0.0, "prior_deviation": 0.5}
    mu, rest = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(2)), (None, torch.zeros(1, 4))
    ends = {
        t: FlowMatching(Nothing(), temperature=t, **given).solve(mu, *rest, torch.zeros(1, 4, 7))
        for t in (0.0, 0.5, 1.0)
    }
    torch.testing.assert_close(ends[0.0], mu, atol=0.02, rtol=0)
    torch.testing.assert_close(2 * (ends[0.5] - mu), ends[1.0] - mu, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="temperature"):
        FlowMatching(Nothing(), temperature=-1)
