"""The four ways of supervision: what each reads, which weights it can move, and counts that losses are divided by."""

import pytest
import tiny_lm as base
import torch
from torch.nn import functional as F

from speechbrain_emo.brains.speech_token_brain import count_decisions
from speechbrain_emo.lobes.emotion_supervision import (
    TokenEmotionClassifier,
    TokenObjective,
    load_token_classifier,
    pool_words,
)

ROWS = [(6, 30), (4, 11), (8, 17)]


def objective(supervision, **options):
    torch.manual_seed(0)
    classifier = TokenEmotionClassifier(27, 5, 16).eval() if supervision == "predicted" else None
    return TokenObjective(base.tiny(), supervision, classifier=classifier, **options).eval()


def test_words_are_pooled_over_their_own_tokens():
    states, words = torch.randn(2, 5, 3), torch.tensor([[0, 0, 2, -1, 2], [1, -1, -1, -1, -1]])
    means, there = pool_words(states, words, 3)
    torch.testing.assert_close(means[0, 0], states[0, :2].mean(0))
    torch.testing.assert_close(means[0, 2], states[0, [2, 4]].mean(0))
    assert there.tolist() == [[True, False, True], [False, True, False]] and not means[0, 1].any()


@pytest.mark.parametrize("supervision", ["text", "speech", "predicted"])
def test_losses_by_hand(supervision):
    model, batch = objective(supervision), base.batch(ROWS)
    with torch.no_grad():
        found, output = model(batch), model.lm(batch)
        total, count = 0.0, 0
        for row in range(3):
            for word in range(2):
                words = batch.text_words if supervision == "text" else batch.speech_words
                own = words[row] == word
                if not own.any():
                    continue
                if supervision == "predicted":
                    soft = output.speech_logits()[row : row + 1].softmax(-1)
                    length, own_words = batch.speech_lengths[row : row + 1], batch.speech_words[row : row + 1]
                    logits = model.classifier(soft, length, own_words, 2)[0, word]
                else:
                    states = output.text if supervision == "text" else output.states
                    logits = model.emotion_head(states[row][own].mean(0))
                total += float(F.cross_entropy(logits, batch.word_labels[row, word]))
                count += 1
    assert float(found.emotion_sum) == pytest.approx(total, rel=1e-4)
    assert found.num_emotions == count == count_decisions(model, batch)
    assert float(found.token_sum) == pytest.approx(
        float(F.cross_entropy(output.logits, output.targets, reduction="sum"))
    )
    assert found.num_tokens == 30 + 11 + 17 + 3


@pytest.mark.parametrize("supervision", ["text", "speech"])
def test_a_decision_a_token(supervision):
    model, batch = objective(supervision, granularity="step"), base.batch(ROWS)
    found = model(batch)
    words = batch.text_words if supervision == "text" else batch.speech_words
    assert found.num_emotions == int((words >= 0).sum()) == count_decisions(model, batch)


def gradients(model, batch):
    model.set_trainable(["film", "head", "body", "emotion_head"])
    model(batch).emotion_sum.backward()
    groups = model.groups()
    return {
        name: max(
            (float(p.grad.abs().max()) for m in groups[name] for p in m.parameters() if p.grad is not None),
            default=0.0,
        )
        for name in ("film", "head", "body")
    }


def test_what_each_supervision_can_move():
    """The text side never reaches the language model; the predicted tokens reach the head."""
    batch = base.batch(ROWS)
    text = gradients(objective("text"), batch)
    assert text["film"] > 0 and text["body"] == 0 and text["head"] == 0
    speech = gradients(objective("speech"), batch)
    assert speech["film"] > 0 and speech["body"] > 0 and speech["head"] == 0
    for prediction in ("soft", "straight_through"):
        predicted = gradients(objective("predicted", prediction=prediction), batch)
        assert min(predicted.values()) > 0


def test_none_is_nothing_and_the_classifier_stays_frozen():
    batch = base.batch(ROWS)
    found = objective("none")(batch)
    assert float(found.emotion_sum) == 0 and found.num_emotions == 0
    model = objective("predicted")
    model.set_trainable(["film", "head"])
    model.train()
    assert not model.classifier.training and not any(p.requires_grad for p in model.classifier.parameters())
    assert model.lm.film.training and not model.lm.body.training
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss = model(batch)
    (loss.token_sum + loss.emotion_sum).backward()
    optimiser.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(("lm.film.", "lm.llm_decoder.")) for k in moved)


def test_straight_through_reads_the_most_probable_token():
    model = objective("predicted", prediction="straight_through")
    logits = torch.randn(2, 4, 27)
    read = model.predicted_tokens(logits)
    torch.testing.assert_close(read, F.one_hot(logits.argmax(-1), 27).float(), atol=1e-6, rtol=0)


def test_wrong_settings_are_refused():
    lm = base.tiny()
    for options, message in (
        ({"supervision": "sound"}, "allowed: text, speech"),
        ({"supervision": "predicted"}, "needs a classifier"),
        ({"supervision": "predicted", "classifier": TokenEmotionClassifier(9, 5)}, "knows 9 tokens"),
        ({"label_smoothing": 1.0}, "lies in"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenObjective(lm, **options)
    with pytest.raises(ValueError, match="unknown groups"):
        objective("speech").set_trainable(["everything"])


@pytest.mark.parametrize("levels", [None, [3, 3, 3]])
def test_classifier_does_not_depend_on_padding_and_reads_back(tmp_path, levels):
    torch.manual_seed(0)
    classifier = TokenEmotionClassifier(27, 5, 16, levels=levels).eval()
    tokens, words = torch.randint(0, 27, (2, 12)), torch.randint(-1, 3, (2, 12))
    words[1, 7:] = -1
    both = classifier(tokens, torch.tensor([12, 7]), words, 3)
    alone = classifier(tokens[1:, :7], torch.tensor([7]), words[1:, :7], 3)
    torch.testing.assert_close(both[1:], alone)
    classifier.save(tmp_path)
    torch.testing.assert_close(load_token_classifier(tmp_path)(tokens, torch.tensor([12, 7]), words, 3), both)


def test_a_classifier_of_levels_names_tokens_that_it_never_saw():
    # The emotion is the level of the second dimension; a third of the tokens is held out of training.
    levels, tokens = [3, 3, 3], torch.arange(27)
    labels, seen = tokens // 3 % 3, (tokens % 3 + tokens // 9) % 3 > 0
    scores = {}
    for name, known in (("levels", levels), ("rows", None)):
        torch.manual_seed(0)
        classifier = TokenEmotionClassifier(27, 3, 16, kernel=1, dropout=0.0, levels=known)
        optimizer = torch.optim.Adam(classifier.parameters(), 1e-2)

        def logits(which, classifier=classifier):
            one = torch.ones(len(which), dtype=torch.int64)
            return classifier(which[:, None], one, torch.zeros(len(which), 1, dtype=torch.int64), 1)[:, 0]

        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(logits(tokens[seen]), labels[seen]).backward()
            optimizer.step()
        scores[name] = (logits(tokens[~seen]).argmax(-1) == labels[~seen]).float().mean().item()
    assert scores["levels"] == 1.0 and scores["rows"] < 0.8
    with pytest.raises(ValueError, match="make 9 tokens, not 27"):
        TokenEmotionClassifier(27, 3, levels=[3, 3])
