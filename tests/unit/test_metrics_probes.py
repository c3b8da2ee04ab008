"""Probes find what is in a latent, find nothing in noise, and hold out speakers."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from speechbrain_emo.metrics.probes import latent_map, linear_probe, probe_latents, subsample


def clusters(count=120, classes=4, size=8, distance=4.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return distance * rng.normal(size=(classes, size))[labels] + rng.normal(size=(count, size)), labels


def test_probe_finds_clusters_and_not_noise():
    features, labels = clusters()
    speakers = np.arange(len(labels)) % 6
    found = linear_probe(features, labels, speakers)
    noise = linear_probe(np.random.default_rng(1).normal(size=features.shape), labels, speakers)
    assert found.accuracy > 0.97 and found.silhouette > 0.3 and found.grouped
    assert noise.accuracy < 0.4 and abs(noise.silhouette) < 0.1
    assert noise.chance == np.bincount(labels).max() / len(labels)


def test_held_out_means_speakers():
    """The label is known from the speaker only: a probe that saw the speaker would be right."""
    speakers = np.repeat(np.arange(12), 15)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 4))[speakers]
    features = np.eye(12)[speakers] + 0.01 * np.random.default_rng(1).normal(size=(180, 12))
    assert linear_probe(features, labels).accuracy > 0.95
    assert linear_probe(features, labels, speakers).accuracy < 0.6


def test_silhouette_is_of_standardised_vectors():
    features, labels = clusters(count=60)
    scaled = features * np.array([1e3] + [1.0] * 7)
    assert linear_probe(scaled, labels).silhouette == pytest.approx(linear_probe(features, labels).silhouette)
    z = (features - features.mean(0)) / features.std(0)
    assert linear_probe(features, labels).silhouette == pytest.approx(silhouette_samples(z, labels).mean())


def test_same_seed_same_numbers_and_subsampling():
    features, labels = clusters(count=300)
    one = linear_probe(features, labels, max_vectors=100, seed=5)
    assert one == linear_probe(features, labels, max_vectors=100, seed=5)
    assert one.num_vectors == 100
    rows = subsample(300, 100, seed=5)
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all() and rows.max() < 300


def test_undefined_numbers_come_with_a_reason():
    constant = linear_probe(np.random.default_rng(0).normal(size=(5, 2)), ["a"] * 5)
    assert constant.accuracy is None and "one label only" in constant.reason
    single = linear_probe(np.random.default_rng(0).normal(size=(3, 2)), ["a", "b", "c"])
    assert single.accuracy is None and single.silhouette is None and "once" in single.reason
    # The held-out speaker has all of one label: no probe can be trained on the rest.
    lonely = linear_probe(np.random.default_rng(0).normal(size=(6, 2)), list("aaabbb"), list("sssttt"))
    assert lonely.accuracy is None and "one label only" in lonely.reason


def test_collapsed_latent_is_chance_not_an_error():
    scores = linear_probe(np.ones((40, 3)), ["a", "b"] * 20, ["s"] * 20 + ["t"] * 20)
    assert scores.accuracy == pytest.approx(0.5)
    assert np.isfinite(latent_map(np.ones((20, 3)))).all()
    assert np.isfinite(latent_map(np.arange(20.0)[:, None])).all()


def test_probe_latents_tells_latents_apart():
    content, phonemes = clusters(seed=1)
    descriptor, emotions = clusters(seed=2, classes=3)
    speakers = [f"s{i % 5}" for i in range(120)]
    labels = {
        "emotion": [f"e{i}" for i in emotions],
        "speaker": speakers,
        "phoneme": [None if i % 10 == 0 else f"p{p}" for i, p in enumerate(phonemes)],
    }
    scores = probe_latents({"content": content, "descriptor": descriptor}, labels, speakers)
    assert scores["content", "phoneme"].accuracy > 0.95 > 0.6 > scores["descriptor", "phoneme"].accuracy
    assert scores["descriptor", "emotion"].accuracy > 0.95 > 0.6 > scores["content", "emotion"].accuracy
    assert scores["content", "phoneme"].num_vectors == 108
    assert scores["content", "emotion"].grouped and not scores["content", "speaker"].grouped


def test_map_keeps_clusters_apart_and_is_reproducible():
    features, labels = clusters(count=90, classes=3, distance=6.0)
    points = latent_map(features, seed=2)
    np.testing.assert_array_equal(points, latent_map(features, seed=2))
    assert silhouette_samples(points, labels).mean() > 0.6


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: linear_probe(np.full((4, 2), np.nan), list("aabb")), "NaN"),
        (lambda: linear_probe(np.ones((4, 2)), list("aab")), "3 labels but 4 vectors"),
        (lambda: linear_probe(np.ones((4, 2)), list("aabb"), ["s"]), "1 groups but 4 vectors"),
        (lambda: latent_map(np.ones((2, 2))), "at least 3"),
        (lambda: probe_latents({"z": np.ones((2, 1))}, {"emotion": ["a"]}), "1 labels of emotion"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
