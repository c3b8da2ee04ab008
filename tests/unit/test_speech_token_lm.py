"""The speech-token language model: published names and sizes, layout, cache, batches, E-FiLM, sampling."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_lm import batch, one, tiny

from speechbrain_emo.lobes import token_layout
from speechbrain_emo.lobes.e_film import EFiLM
from speechbrain_emo.lobes.speech_token_lm import (
    PUBLISHED_ARCHITECTURE,
    SpeechTokenLM,
    TokenBatch,
    load_speech_token_lm,
)
from speechbrain_emo.lobes.token_generation import (
    Generated,
    TokenRequest,
    generate,
    generation_steps,
    stream,
    stream_from_pieces,
)
from speechbrain_emo.lobes.token_sampling import SamplingSettings, draw_token

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY.parent / "shared" / "data" / "cosyvoice2_reference"
# -- names and sizes -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs ../shared/data/cosyvoice2_reference")
def test_names_and_shapes_are_the_published_ones():
    lines = [line.split("\t") for line in (REFERENCE / "llm.tsv").read_text().splitlines() if line]
    published = {name: tuple(int(n) for n in shape.split("x")) for name, shape, _ in lines}
    fragment = yaml.safe_load((REPOSITORY / "hparams" / "backbones" / "cosyvoice2.yaml").read_text())
    assert {"model_type": "qwen2", **PUBLISHED_ARCHITECTURE} == fragment["architecture"]
    with torch.device("meta"):
        model = SpeechTokenLM(fragment["architecture"], num_emotions=5)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    film = {name: own.pop(name) for name in list(own) if name.startswith("film.")}
    assert own == published
    assert film == {
        "film.emotion.weight": (5, 896),
        "film.intensity.weight": (3, 896),
        "film.projection.weight": (1792, 896),
        "film.projection.bias": (1792,),
    }
    speech = fragment["speech"]
    assert (model.end_token, model.fill_token) == (speech["end_token"], speech["fill_token"])
    # The vocabulary is tied: counted once, the body is Qwen2.5-0.5B.
    assert sum(p.numel() for p in model.llm.parameters()) == fragment["num_parameters"]
    trained = [
        p for group in ("film", "head") for m in model.trainable_groups()[group] for p in m.parameters()
    ]
    assert sum(p.numel() for p in trained) == 8 * 896 + 1792 * 897 + 6564 * 897


def test_groups_cover_every_weight_once():
    model = tiny()
    named = [id(p) for modules in model.trainable_groups().values() for m in modules for p in m.parameters()]
    assert len(named) == len(set(named)) and set(named) == {id(p) for p in model.parameters()}


def test_weights_load_by_name_and_faults_are_named():
    source, target = tiny(0), tiny(1)
    target.load_weights(source.weights())
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values()))
    # As published: with the text output, without the modulation.
    published = {k: v for k, v in source.state_dict().items() if not k.startswith("film.")}
    with pytest.raises(ValueError, match="film.emotion.weight"):
        tiny(1).load_weights(published)
    tiny(1).load_weights(published, without_film=True)
    with pytest.raises(ValueError, match="1 unknown .*'extra'"):
        tiny(1).load_weights({**source.weights(), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="of another shape"):
        tiny(1).load_weights({**source.weights(), "llm_decoder.bias": torch.zeros(3)})


def test_a_saved_model_reads_back(tmp_path):
    model = tiny(3, intensity="continuous")
    model.save(tmp_path)
    again = load_speech_token_lm(tmp_path)
    assert again.film.kind == "continuous" and not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


# -- the model ----------------------------------------------------------------------------------------------


def test_tokens_of_shared_levels_start_alike_and_names_stay():
    model, before = tiny(), tiny()
    model.start_from_levels([3, 3, 3])
    assert {k: v.shape for k, v in model.weights().items()} == {
        k: v.shape for k, v in before.weights().items()
    }
    for weight, old in (
        (model.speech_embedding.weight, before.speech_embedding.weight),
        (model.llm_decoder.weight, before.llm_decoder.weight),
    ):
        torch.testing.assert_close(weight[:27].std(), old[:27].std())
        torch.testing.assert_close(weight[27:], old[27:])  # the end and its neighbours are no tokens
        rows = weight[:27].reshape(3, 3, 3, -1)
        interaction = rows[1, 1, 1] - rows[0, 1, 1] - rows[1, 0, 1] + rows[0, 0, 1]
        assert float(interaction.detach().abs().max()) < 1e-5
    with pytest.raises(ValueError, match="make 9 tokens, not 27"):
        model.start_from_levels([3, 3])


def test_blank_tokens_hide_speech_in_training_alone():
    rows = batch([(5, 9), (4, 6)])
    other = replace(rows, speech=(rows.speech + 1) % 27)
    model = tiny(token_dropout=0.999999)
    assert not torch.equal(model(rows).states, model(other).states)
    model.speech_embedding.train()
    # What is left is text, and how much speech there was.
    torch.testing.assert_close(model(rows).states, model(other).states)
    assert "token_dropout" not in model.arguments
    with pytest.raises(ValueError, match="lies in"):
        tiny(token_dropout=1.0)


def test_a_row_by_hand_through_transformers_own_model():
    """sos, text, task, speech through Qwen2ForCausalLM itself, with gamma and beta computed here."""
    model, whole = tiny(), batch([(6, 9)])
    state = model.state_dict()
    e = state["film.emotion.weight"][whole.emotions[0]] + state["film.intensity.weight"][whole.intensities[0]]
    projected = e @ state["film.projection.weight"].T + state["film.projection.bias"]
    h = state["llm.model.model.embed_tokens.weight"][whole.text[0]]
    text = (1 + projected[:, :32]) * h + projected[:, 32:]
    markers, speech = state["llm_embedding.weight"], state["speech_embedding.weight"][whole.speech[0]]
    sequence = torch.cat([markers[:1], text, markers[1:], speech])
    with torch.no_grad():
        states = model.llm.model(inputs_embeds=sequence[None], output_hidden_states=True).hidden_states[-1][0]
        expected = states[7:] @ state["llm_decoder.weight"].T + state["llm_decoder.bias"]
        output = model(whole)
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    assert output.targets.tolist() == [*whole.speech[0].tolist(), 27]
    torch.testing.assert_close(output.states[0], states[7:16], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.speech_logits()[0], expected[:9, :27], rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch():
    rows = [(6, 40), (3, 5), (11, 20), (5, 17)]
    model, whole = tiny(), batch(rows, interleave=[True, False, False, True])
    with torch.no_grad():
        together = model(whole)
        start = 0
        for row, (_, length) in enumerate(rows):
            alone = model(one(whole, row))
            size = len(alone.targets)
            assert torch.equal(together.targets[start : start + size], alone.targets)
            torch.testing.assert_close(
                together.logits[start : start + size], alone.logits, rtol=1e-4, atol=1e-4
            )
            torch.testing.assert_close(together.states[row, :length], alone.states[0], rtol=1e-4, atol=1e-4)
            assert not together.states[row, length:].any()
            start += size
        assert start == len(together.targets)


def test_steps_with_the_cache_equal_the_whole_forward():
    """1e-5 of the largest value, at every step, prompt included."""
    model, whole = tiny(), batch([(7, 30)])
    request = TokenRequest(
        tuple(whole.text[0, 2:].tolist()),
        tuple(whole.emotions[0, 2:].tolist()),
        tuple(whole.intensities[0, 2:].tolist()),
        tuple(whole.text[0, :2].tolist()),
        tuple(whole.emotions[0, :2].tolist()),
        tuple(whole.intensities[0, :2].tolist()),
        tuple(whole.speech[0, :10].tolist()),
    )
    seen = []
    original = model.llm_decoder.forward
    model.llm_decoder.forward = lambda x: seen.append(original(x)) or seen[-1]
    (made,) = generate(model, [request], SamplingSettings(min_ratio=4, max_ratio=4))
    model.llm_decoder.forward = original
    assert len(made.tokens) == 20 and made.finish_reason == "max_length"
    tokens = [*request.prompt_speech, *made.tokens]
    replay = TokenBatch(
        **{
            **vars(whole),
            "speech": torch.tensor([tokens]),
            "speech_lengths": torch.tensor([30]),
            "speech_words": torch.zeros(1, 30, dtype=torch.int64),
        }
    )
    with torch.no_grad():
        expected = model(replay).logits[10:30]
    found = torch.cat(seen)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def test_batched_generation_gives_what_each_gets_alone():
    model, rng = tiny(), np.random.default_rng(3)
    requests = []
    for i in range(5):
        size, prompt = int(rng.integers(2, 12)), int(rng.integers(0, 4))
        text = rng.integers(0, 40, size + prompt)
        emotions, levels = rng.integers(0, 5, size + prompt), rng.integers(0, 3, size + prompt)
        parts = [tuple(x[prompt:].tolist()) for x in (text, emotions, levels)]
        parts += [tuple(x[:prompt].tolist()) for x in (text, emotions, levels)]
        requests.append(
            TokenRequest(*parts, prompt_speech=tuple(rng.integers(0, 27, 3 * prompt).tolist()), seed=100 + i)
        )
    settings = SamplingSettings(min_ratio=1, max_ratio=6)
    together = generate(model, requests, settings)
    assert len({len(r.tokens) for r in together}) > 1, "rows must leave the batch at different steps"
    for order in (requests, requests[::-1]):
        again = generate(model, order, settings)
        again = again if order is requests else again[::-1]
        assert [r.tokens for r in again] == [r.tokens for r in together]
    for request, result in zip(requests, together):
        (alone,) = generate(model, [request], settings)
        assert (alone.tokens, alone.finish_reason) == (result.tokens, result.finish_reason)
        streamed = stream(model, request, settings)
        assert list(streamed) == result.tokens
    # Another seed says it in another way.
    (other,) = generate(model, [TokenRequest(**{**vars(requests[0]), "seed": 7})], settings)
    assert other.tokens != together[0].tokens


def test_a_stream_hands_out_tokens_before_the_end():
    model = tiny()
    request = TokenRequest((1, 2, 3), (0, 1, 2), (0, 0, 0))
    calls = []
    original = model.run_body
    model.run_body = lambda *a, **k: calls.append(1) or original(*a, **k)
    stream_ = stream(model, request, SamplingSettings(min_ratio=5, max_ratio=5))
    next(stream_)
    assert len(calls) == 1
    next(stream_)
    assert len(calls) == 2


def test_finish_reasons_and_bounds():
    model = tiny()
    request = TokenRequest((1, 2, 3, 4), (0,) * 4, (0,) * 4)
    with torch.no_grad():
        model.llm_decoder.bias[27] = 1e3  # Wants to end at once.
    (made,) = generate(model, [request], SamplingSettings())
    assert made.finish_reason == "eos" and len(made.tokens) == 8  # 2 for each text token
    with torch.no_grad():
        model.llm_decoder.bias[27] = -1e3
        model.llm_decoder.bias[28:] = 1e3  # Tokens without a meaning are never drawn.
    (made,) = generate(model, [request], SamplingSettings())
    assert made.finish_reason == "max_length" and len(made.tokens) == 80 and max(made.tokens) < 27
    (made,) = generate(model, [request], SamplingSettings(max_tokens=7))
    assert len(made.tokens) == 7


def test_text_in_pieces_follows_the_layout_that_is_trained():
    """The logits along the way are those of the interleaved layout over the same tokens."""
    model, rng = tiny(), np.random.default_rng(5)
    text, emotions, levels = (rng.integers(0, n, 12).tolist() for n in (40, 5, 3))
    pieces = [(text[a:b], emotions[a:b], levels[a:b]) for a, b in ((0, 3), (3, 8), (8, 8), (8, 12))]
    seen = []
    original = model.llm_decoder.forward
    model.llm_decoder.forward = lambda x: seen.append(original(x)) or seen[-1]
    settings = SamplingSettings(min_ratio=4.5, max_ratio=4.5)
    tokens = list(stream_from_pieces(model, iter(pieces), settings, seed=4))
    model.llm_decoder.forward = original
    assert len(tokens) == 54
    whole = TokenBatch(
        text=torch.tensor([text]),
        text_lengths=torch.tensor([12]),
        emotions=torch.tensor([emotions]),
        intensities=torch.tensor([levels]),
        speech=torch.tensor([tokens]),
        speech_lengths=torch.tensor([54]),
        interleave=torch.tensor([True]),
        text_words=torch.full((1, 12), -1),
        speech_words=torch.full((1, 54), -1),
        word_labels=torch.zeros(1, 1, dtype=torch.int64),
    )
    with torch.no_grad():
        output = model(whole)
    expected = output.logits[output.targets < 27]
    torch.testing.assert_close(torch.stack(seen), expected, rtol=1e-4, atol=1e-4)
    # Where the pieces are cut does not matter.
    assert list(stream_from_pieces(model, [(text, emotions, levels)], settings, seed=4)) == tokens
    # The first tokens come before the second half of the text is known.
    arrived = []

    def slowly():
        for piece in pieces:
            arrived.append(piece)
            yield piece

    next(stream_from_pieces(model, slowly(), settings, seed=4))
    assert len(arrived) == 2
    with pytest.raises(ValueError, match="nothing to say"):
        list(stream_from_pieces(model, [], settings))


def test_a_request_without_text_is_refused():
    with pytest.raises(ValueError, match="at least one text token"):
        TokenRequest((), (), ())
    with pytest.raises(ValueError, match="as many of each"):
        TokenRequest((1,), (0, 0), (0,))


# -- layout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_text,num_speech", [(1, 4), (5, 16), (10, 45), (13, 60), (4, 13)])
def test_interleaved_layout_holds_every_token_once_in_order(num_text, num_speech):
    layout = token_layout.interleaved(num_text, num_speech)
    for kind, count in ((token_layout.TEXT, num_text), (token_layout.SPEECH, num_speech)):
        assert layout.indices[layout.kinds == kind].tolist() == list(range(count))
    assert [t for t in layout.targets.tolist() if t >= 0] == list(range(num_speech))
    assert layout.targets.tolist().count(token_layout.FILL) == num_text // 5
    assert layout.targets[-1] == token_layout.END
    # A position may predict a speech token only from speech tokens before it.
    for position, target in enumerate(layout.targets.tolist()):
        seen = layout.indices[: position + 1][layout.kinds[: position + 1] == token_layout.SPEECH]
        if target >= 0:
            assert len(seen) == target


def test_too_little_speech_for_turns_is_refused():
    assert not token_layout.can_interleave(5, 15)
    with pytest.raises(ValueError, match="use whole_text"):
        token_layout.interleaved(5, 15)


# -- E-FiLM --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["film", "addition"])
@pytest.mark.parametrize("intensity", ["discrete", "continuous"])
def test_film_starts_near_identity_and_still_learns(mode, intensity):
    torch.manual_seed(0)
    film = EFiLM(896, 5, 3, intensity, mode, embedding_scale=0.02)
    h = 0.02 * torch.randn(2, 7, 896)
    emotions, levels = torch.randint(0, 5, (2, 7)), torch.randint(0, 3, (2, 7))
    out = film(h, emotions, film.levels(levels))
    gamma, beta = film.parameters_of(emotions, film.levels(levels))
    assert (gamma - 1).abs().max() < 0.25 and beta.abs().max() < 0.25 * 0.02
    assert (out - h).norm() / h.norm() < 0.1
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in film.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_continuous_intensity_moves_along_a_line_and_discrete_refuses_numbers():
    torch.manual_seed(0)
    film = EFiLM(8, 5, 3, "continuous", init_std=0.3)
    emotions = torch.full((1, 3), 2)
    gamma, _ = film.parameters_of(emotions, torch.tensor([[0.0, 0.5, 1.0]]))
    torch.testing.assert_close(gamma[0, 1], (gamma[0, 0] + gamma[0, 2]) / 2)
    torch.testing.assert_close(gamma, film.parameters_of(emotions, torch.tensor([[0, 1, 2]]))[0])
    with pytest.raises(ValueError, match="levels only"):
        EFiLM(8, 5).parameters_of(emotions, torch.tensor([[0.0, 0.5, 1.0]]))
    with pytest.raises(ValueError, match="allowed modes"):
        EFiLM(8, 5, mode="multiply")


def test_a_tag_changes_its_own_text_embeddings_only():
    model, whole = tiny(), batch([(8, 10)])
    with torch.no_grad():
        before = model.embed_text(whole.text, whole.emotions, whole.intensities)
        changed = whole.emotions.clone()
        changed[0, 3:5] = (changed[0, 3:5] + 1) % 5
        after = model.embed_text(whole.text, changed, whole.intensities)
    moved = (before != after).any(-1)[0].tolist()
    assert moved == [False] * 3 + [True] * 2 + [False] * 3


# -- sampling ------------------------------------------------------------------------------------------------


def published_nucleus(probabilities, top_p, top_k):
    """Tokens of the nucleus, by the definition: add tokens while sum and number are below top_p and top_k."""
    kept, total = [], 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        if total < top_p and len(kept) < top_k:
            total += probabilities[token]
            kept.append(int(token))
    return kept


def test_draws_follow_the_nucleus_in_proportion():
    torch.manual_seed(0)
    logits = 2.0 * torch.randn(60)
    probabilities = logits.double().softmax(0).numpy()
    settings = SamplingSettings(top_p=0.7, top_k=12)
    nucleus = published_nucleus(probabilities, 0.7, 12)
    generator = torch.Generator().manual_seed(1)
    draws = [draw_token(logits, [], generator, settings) for _ in range(20000)]
    counts = np.bincount(draws, minlength=60)
    assert set(np.flatnonzero(counts)) == set(nucleus)
    expected = probabilities[nucleus] / probabilities[nucleus].sum()
    assert np.abs(counts[nucleus] / 20000 - expected).max() < 0.015
    few = SamplingSettings(top_p=1.0, top_k=3)
    assert {draw_token(logits, [], generator, few) for _ in range(500)} == set(np.argsort(-probabilities)[:3])


def test_a_repeated_token_is_drawn_anew_from_all():
    """One in the last ten is enough (10 * 0.1); beyond the window it does not count."""
    logits = torch.tensor([5.0, 3.0, 3.0, 3.0, 3.0])
    settings, generator = SamplingSettings(top_p=0.1), torch.Generator().manual_seed(0)
    assert {draw_token(logits, [1] * 20, generator, settings) for _ in range(200)} == {0}
    fresh = [draw_token(logits, [0] + [1] * 9, generator, settings) for _ in range(4000)]
    share = logits.double().softmax(0).numpy()
    assert np.abs(np.bincount(fresh, minlength=5) / 4000 - share).max() < 0.03
    assert {draw_token(logits, [0] + [1] * 10, generator, settings) for _ in range(200)} == {0}
    never = SamplingSettings(top_p=0.1, tau=2.0)
    assert {draw_token(logits, [0] * 10, generator, never) for _ in range(200)} == {0}


def test_forbidden_tokens_and_greedy():
    logits, generator = torch.tensor([1.0, 9.0, 2.0]), torch.Generator().manual_seed(0)
    assert {draw_token(logits, [], generator, SamplingSettings(), [1]) for _ in range(100)} <= {0, 2}
    assert draw_token(logits, [1] * 9, generator, SamplingSettings(temperature=0)) == 1
    with pytest.raises(ValueError, match="top_p lies in"):
        SamplingSettings(top_p=0.0)


def test_every_step_yields_what_is_new():
    model = tiny()
    requests = [TokenRequest((1, 2), (0, 0), (0, 0), seed=i) for i in range(3)]
    seen = {0: [], 1: [], 2: []}
    results = [Generated() for _ in requests]
    for new in generation_steps(model, requests, SamplingSettings(min_ratio=1, max_ratio=5), results):
        for row, token in new:
            seen[row].append(token)
    assert [seen[i] for i in range(3)] == [r.tokens for r in results]
