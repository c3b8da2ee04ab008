"""The annotator's model: frames of words, invariances, equations."""

import math

import pytest
import torch
from torch.nn import functional as F

from speechbrain_emo.lobes.word_emotion import (
    WordEmotionModel,
    WordEmotionOutput,
    WordSpans,
    intensity_levels,
    word_emotion_loss,
    word_frames,
)

SMALL = {"num_labels": 5, "input_size": 16, "num_encoder_layers": 3, "num_heads": 4, "ffn_size": 24}


def small(**changes):
    torch.manual_seed(3)
    model = WordEmotionModel(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def spans(*rows):
    return WordSpans(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).unbind(1))


def test_the_published_size():
    model = WordEmotionModel()
    d, f = 768, 3072
    attention, ffn, norms = 4 * (d * d + d), d * f + f + f * d + d, 4 * d
    assert sum(p.numel() for p in model.parameters()) == attention + ffn + norms + 5 * (d + 1) + 3 * (d + 1)
    assert model.blocks[0].attention.num_heads == 8
    assert model.blocks[0].attention.dropout == model.blocks[0].dropout.p == 0.3


def test_one_word_against_the_equations_written_out():
    model, x = small(num_encoder_layers=1), torch.randn(1, 9, 1, 16)
    out = model(x, torch.tensor([9]), spans((0, 2, 7)))
    block, frames = model.blocks[0], x[0, 2:7, 0]
    q, k, v = (frames @ block.attention.in_proj_weight.T + block.attention.in_proj_bias).split(16, -1)
    heads = []
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(4)).softmax(-1) @ v[:, part])
    attended = torch.cat(heads, -1) @ block.attention.out_proj.weight.T + block.attention.out_proj.bias
    y = F.layer_norm(frames + attended, (16,), block.attention_norm.weight, block.attention_norm.bias)
    up, down = block.ffn[0], block.ffn[3]
    hidden = torch.relu(y @ up.weight.T + up.bias) @ down.weight.T + down.bias
    z = F.layer_norm(y + hidden, (16,), block.ffn_norm.weight, block.ffn_norm.bias).mean(0)
    assert torch.allclose(out.logits[0], z @ model.label_head.weight.T + model.label_head.bias, atol=1e-5)
    dimensions = torch.sigmoid(z @ model.dimension_head.weight.T + model.dimension_head.bias)
    assert torch.allclose(out.dimensions[0], dimensions, atol=1e-6)


def test_a_word_depends_on_its_own_frames_only():
    """Not on batch, padding, order, the other words, or frames outside it."""
    model = small()
    lengths = [12, 30, 7]
    audios = [torch.randn(n, 3, 16) for n in lengths]
    rows = [(0, 0, 5), (0, 5, 12), (1, 3, 4), (1, 10, 29), (2, 0, 7), (0, 2, 9), (2, 6, 7)]
    padded = torch.full((3, 41, 3, 16), float("nan"))
    for row, audio in enumerate(audios):
        padded[row, : len(audio)] = audio
    together = model(padded, torch.tensor(lengths), spans(*rows))
    assert torch.isfinite(together.logits).all()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = model(padded, torch.tensor(lengths), spans(*[rows[i] for i in order]))
    for place, number in enumerate(order):
        audio, start, stop = rows[number]
        alone = model(
            audios[audio][None, start:stop], torch.tensor([stop - start]), spans((0, 0, stop - start))
        )
        for output, index in ((together, number), (shuffled, place)):
            assert torch.allclose(output.logits[index], alone.logits[0], atol=1e-5)
            assert torch.allclose(output.dimensions[index], alone.dimensions[0], atol=1e-6)


def test_empty_and_one_frame_words_are_defined():
    model, x = small(), torch.randn(1, 8, 3, 16)
    wanted = model(x, torch.tensor([8]), spans((0, 4, 5), (0, 7, 8), (0, 0, 1)))
    got = model(x, torch.tensor([8]), spans((0, 4, 4), (0, 50, 60), (0, -5, 0)))
    assert torch.isfinite(wanted.logits).all()
    assert torch.allclose(wanted.logits, got.logits, atol=1e-6)
    none = model(x, torch.tensor([8]), spans())
    assert none.logits.shape == (0, 5) and none.dimensions.shape == (0, 3)


def test_gradients_reach_everything_and_layer_weights_sum_to_one():
    model = small().train()
    out = model(torch.randn(2, 9, 3, 16), torch.tensor([9, 6]), spans((0, 0, 4), (1, 2, 6)))
    loss = word_emotion_loss(out, torch.tensor([1, 3]), torch.rand(2, 3))
    (loss.label_sum + loss.dimension_sum).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert abs(float(model.mixing_weights()["words"].sum()) - 1) < 1e-6
    assert small(num_encoder_layers=1).mixing_weights()["words"].tolist() == [1.0]


def test_any_number_of_classes_and_a_projection():
    model = small(num_labels=9, hidden_size=32, num_blocks=2)
    out = model(torch.randn(1, 9, 3, 16), torch.tensor([9]), spans((0, 0, 4)))
    assert out.logits.shape == (1, 9)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_heads is 5, which does not divide the size 16"):
        WordEmotionModel(input_size=16, num_heads=5)
    with pytest.raises(ValueError, match="all sizes are 1 and above"):
        WordEmotionModel(num_labels=0)
    with pytest.raises(ValueError, match=r"needed is \(N, T, 3, 16\)"):
        small()(torch.randn(1, 9, 1, 16), torch.tensor([9]), spans((0, 0, 4)))


def test_frames_partition_an_utterance_without_gaps():
    """Words that touch share no frame and leave none out, whatever their times."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        count = int(torch.randint(3, 80, (1,), generator=generator))
        borders = torch.rand(6, generator=generator).sort().values * count / 50
        borders = [0.0, *(float(b) for b in borders), count / 50 + 0.1]
        frames = [word_frames(a, b, count, 50.0, 0.0125) for a, b in zip(borders, borders[1:])]
        covered = []
        for (first, last), (a, b) in zip(frames, zip(borders, borders[1:])):
            assert 0 <= first < last <= count
            if last - first > 1 or a <= first / 50 + 0.0125 <= b:
                covered += range(first, last)
        assert sorted(set(covered)) == list(range(count))
        assert len(covered) == count


def test_times_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="ends before it starts"):
        word_frames(1.0, 0.5, 10, 50.0)
    with pytest.raises(ValueError, match="without frames"):
        word_frames(0.0, 0.5, 0, 50.0)


def test_intensity_follows_the_paper_s_thresholds():
    arousal = torch.linspace(0, 1, 401)
    level = intensity_levels(arousal)
    scaled = 4 * arousal + 1
    assert torch.equal(level == 2, scaled > 3.5)
    assert torch.equal(level == 0, scaled <= 2.5)
    assert intensity_levels(arousal, [2.0, 3.0, 4.0]).max() == 3


def test_the_loss_ignores_what_is_unknown():
    logits, dimensions = torch.randn(4, 5, requires_grad=True), torch.rand(4, 3)
    labels = torch.tensor([0, -100, 3, -100])
    targets = torch.rand(4, 3)
    targets[1, 2] = targets[3] = float("nan")
    loss = word_emotion_loss(WordEmotionOutput(logits, dimensions), labels, targets)
    by_hand = -logits.log_softmax(-1)[0, 0] - logits.log_softmax(-1)[2, 3]
    assert torch.allclose(loss.label_sum, by_hand) and int(loss.num_labels) == 2
    known = ~targets.isnan()
    assert torch.allclose(loss.dimension_sum, (dimensions - targets)[known].square().sum())
    assert int(loss.num_dimensions) == 8
    loss.label_sum.backward()
    assert torch.equal(logits.grad[1], torch.zeros(5))
