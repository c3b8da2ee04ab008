"""Dialogue metrics against counts by hand; presence probes on vectors that do or do not hold a word."""

import numpy as np
import pytest

from speechbrain_emo.metrics.dialogue import agreement, changed_share, presence_probe, template_overlap

WORDS = ("lamp", "box", "river", "dog")


def utterances(count=160, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(w for w in WORDS if rng.random() < 0.4) or "nothing" for _ in range(count)]
    speakers = [f"s{i % 4}" for i in range(count)]
    return rng, texts, speakers


def test_a_vector_of_words_tells_them_and_noise_does_not():
    rng, texts, speakers = utterances()
    held = np.array([[w in t.split() for w in WORDS] for t in texts], dtype=float)
    told = presence_probe(held + 0.05 * rng.normal(size=held.shape), texts, speakers)
    assert set(told.words) >= set(WORDS) and told.balanced_accuracy > 0.95
    noise = presence_probe(rng.normal(size=(len(texts), 8)), texts, speakers)
    assert 0.4 < noise.balanced_accuracy < 0.6


def test_rare_and_constant_words_are_left_out():
    rng, texts, speakers = utterances()
    texts = [f"{t} always" for t in texts]
    texts[0] += " once"
    words = presence_probe(rng.normal(size=(len(texts), 3)), texts, speakers).words
    assert "always" not in words and "once" not in words
    assert presence_probe(rng.normal(size=(len(texts), 3)), texts, max_words=2).words.keys() < set(WORDS)
    assert presence_probe(rng.normal(size=(4, 3)), ["a", "b", "c", "d"]).balanced_accuracy is None


def test_overlap_is_pooled_over_n_grams():
    templates = ["the pitch is low", "the voice is female"]
    assert template_overlap(["The pitch is low."], templates) == 1.0
    assert template_overlap(["i am so sorry"], templates) == 0.0
    # 2 of 4 and 0 of 1.
    assert template_overlap(["well the pitch is low now", "i am fine"], templates) == pytest.approx(2 / 5)
    assert template_overlap(["yes"], templates) == 0.0
    assert template_overlap(["pitch is high"], templates, n=2) == pytest.approx(1 / 2)


def test_agreement_and_change_are_complements_over_words():
    assert agreement(["A b.", "c"], ["a  b", "d"]) == 0.5
    assert changed_share(["a", "b", "c"], ["a", "x", "y"]) == pytest.approx(2 / 3)
    assert np.isnan(agreement([], []))
    with pytest.raises(ValueError, match="one an answer"):
        agreement(["a"], [])
