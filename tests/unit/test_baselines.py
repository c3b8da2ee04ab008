"""Baselines learn what is there, choose on inner speakers, and reproduce a published kind of number."""

import numpy as np
import pytest
import soundfile
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from speechbrain_emo import baselines
from speechbrain_emo.baselines import (
    BaselineRun,
    merge_predictions,
    opensmile_features,
    opensmile_svm,
    pool_mean_std,
    pooled_linear_probe,
    probe_predictions,
    text_only_predictions,
)
from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.results import compute_results

LABELS = ["calm", "lively"]


def tone_corpus(folder, speakers=("s1", "s2", "s3", "s4"), count=4):
    """Tones whose vibrato and level depend on the label."""
    records, time = {}, np.arange(12000) / 16000
    rng = np.random.default_rng(0)
    for s, speaker in enumerate(speakers):
        for i in range(count):
            lively = i % 2
            base = 120 + 15 * s + 5 * rng.random()
            f0 = base * (1 + (0.25 if lively else 0.01) * np.sin(2 * np.pi * 4 * time))
            phase = 2 * np.pi * np.cumsum(f0) / 16000
            wave = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.2 if lively else 0.05)
            wave += 0.001 * rng.normal(size=len(time))
            name = f"{speaker}-{i}"
            soundfile.write(folder / f"{name}.wav", wave, 16000)
            records[name] = {
                "wav": f"{{data_root}}/{name}.wav",
                "duration": 0.75,
                "speaker": speaker,
                "gender": None,
                "transcript": "one two",
                "emotion": LABELS[lively],
                "descriptors": {},
            }
    return records


def folds_of(records, test_speakers):
    return {
        s: {
            "train": {k: r for k, r in records.items() if r["speaker"] != s},
            "test": {k: r for k, r in records.items() if r["speaker"] == s},
        }
        for s in test_speakers
    }


def test_svm_over_manifests_of_folds(tmp_path):
    opensmile = pytest.importorskip("opensmile")
    records = tone_corpus(tmp_path)
    folds = {}
    for fold in ("s1", "s2"):
        valid = "s3"
        parts = {
            "train": {k: r for k, r in records.items() if r["speaker"] not in (fold, valid)},
            "valid": {k: r for k, r in records.items() if r["speaker"] == valid},
            "test": {k: r for k, r in records.items() if r["speaker"] == fold},
        }
        folds[fold] = {name: tmp_path / fold / f"{name}.json" for name in parts}
        for name, part in parts.items():
            write_manifest(folds[fold][name], part)
    run = opensmile_svm(
        folds, replacements={"data_root": str(tmp_path)}, cache_folder=tmp_path / "cache", progress=False
    )
    assert sorted(p["id"] for p in run.predictions) == sorted(k for k in records if k[:2] in ("s1", "s2"))
    metrics = compute_results(run.predictions, LABELS)
    assert metrics["test.ser.egemaps_svm.ua"] == 1.0
    assert metrics["test.ser.egemaps_svm.num_folds"] == 2
    assert set(run.chosen) == {"s1", "s2"} and run.chosen["s1"]["C"] in baselines.SVM_C
    # A second run reads the cache: openSMILE is not asked again, and the result is the same.
    stored = list((tmp_path / "cache").iterdir())
    assert len(stored) == 1 and opensmile.__version__ in stored[0].name

    def refuse(*arguments, **keywords):
        raise AssertionError("the cache was not used")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opensmile, "Smile", refuse)
        again = opensmile_svm(
            folds, replacements={"data_root": str(tmp_path)}, cache_folder=tmp_path / "cache", progress=False
        )
    assert again.predictions == run.predictions


def test_features_follow_the_audio_not_the_name(tmp_path):
    pytest.importorskip("opensmile")
    records = {k: {**r, "wav": r["wav"].format(data_root=tmp_path)} for k, r in tone_corpus(tmp_path).items()}
    names = list(records)[:2]
    first = opensmile_features({n: records[n] for n in names}, cache_folder=tmp_path / "c", progress=False)
    swapped = {names[0]: records[names[1]], names[1]: records[names[0]]}
    second = opensmile_features(swapped, cache_folder=tmp_path / "c", progress=False)
    np.testing.assert_array_equal(first[names[0]], second[names[1]])
    assert first[names[0]].shape == (88,) and np.abs(first[names[0]] - first[names[1]]).max() > 0
    part = {names[0]: {**records[names[0]], "start": 0, "stop": 8000}}
    assert np.abs(
        opensmile_features(part, cache_folder=tmp_path / "c", progress=False)[names[0]] - first[names[0]]
    ).max()


def test_kernel_svm_equals_the_svm_on_features():
    rng = np.random.default_rng(0)
    labels = np.array(list("abc") * 10)
    features = rng.normal(size=(30, 400)) + 0.5 * (np.arange(400) % 3 == np.arange(30)[:, None] % 3)
    unseen = rng.normal(size=(20, 400))
    machines = baselines._LinearSVMs(features, labels)
    ours = machines.margins(machines.fit(0.01), unseen, list("abc"))
    plain = make_pipeline(
        StandardScaler(), SVC(kernel="linear", C=0.01, class_weight="balanced", break_ties=True)
    )
    plain.fit(features, labels)
    np.testing.assert_allclose(ours, plain.decision_function(unseen), atol=1e-6)
    assert [list("abc")[k] for k in ours.argmax(1)] == plain.predict(unseen).tolist()


def test_class_absent_from_training_is_never_predicted():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 3))
    machines = baselines._LinearSVMs(features, np.array(["a", "b"] * 10))
    margins = machines.margins(machines.fit(0.1), features, ["a", "b", "c"])
    assert np.isfinite(margins).all() and (margins.argmax(1) < 2).all()
    two = machines.fit(0.1).decision_function(machines.kernel)
    np.testing.assert_array_equal(margins[:, 1] > margins[:, 0], two > 0)


def test_c_is_chosen_on_speakers_not_utterances():
    """Features name the speaker, whose label is random: a C chosen on shared speakers would look perfect."""
    rng = np.random.default_rng(3)
    speakers = np.repeat(np.arange(12), 10)
    labels = rng.permutation(np.array(["a", "b"] * 6))[speakers]
    features = np.eye(12)[speakers] + 0.01 * rng.normal(size=(120, 12))
    *_, chosen = baselines._fit_svm(features, labels, speakers.astype(str), (0.01, 1.0), 4, 0)
    assert chosen["inner_ua"] < 0.9
    *_, leaking = baselines._fit_svm(features, labels, np.arange(120).astype(str), (0.01, 1.0), 4, 0)
    assert leaking["inner_ua"] > 0.97


def test_svm_refuses_leaks_and_gaps(tmp_path):
    records = tone_corpus(tmp_path, count=1)
    with pytest.raises(ValueError, match="in training and test"):
        opensmile_svm({"1": {"train": records, "test": records}})
    with pytest.raises(ValueError, match="give train and test"):
        opensmile_svm({"1": {"test": records}})


def test_pooling_ignores_padding_and_matches_numpy():
    x = np.random.default_rng(0).normal(size=(50, 3, 4))
    padded = np.concatenate([x, np.full((9, 3, 4), 1e6)])
    pooled = pool_mean_std(padded, 50)
    assert pooled.shape == (3, 8)
    np.testing.assert_allclose(pooled, np.concatenate([x.mean(0), x.std(0)], -1), atol=1e-6)
    assert (pool_mean_std(x[:1])[:, 4:] == 0).all()
    with pytest.raises(ValueError, match="num_frames is 51"):
        pool_mean_std(x, 51)


def probe_problem(layers=3, best=1, count=120, seed=0):
    """Only one layer holds the label."""
    rng = np.random.default_rng(seed)
    labels = np.array(["low", "mid", "high"])[rng.integers(0, 3, count)]
    features = rng.normal(size=(count, layers, 6)).astype(np.float32)
    for k, value in enumerate(("low", "mid", "high")):
        features[labels == value, best, k] += 3
    return features, labels.tolist(), [f"s{i % 6}" for i in range(count)]


def test_probe_chooses_the_layer_and_generalises():
    features, labels, speakers = probe_problem()
    unseen, truth, _ = probe_problem(seed=1)
    found = pooled_linear_probe(features, {"pitch": labels}, unseen, speakers, max_concatenated=0)["pitch"]
    assert found.chosen["layer"] == 1
    assert np.mean(np.array(found.predicted) == truth) > 0.9
    np.testing.assert_allclose(np.exp(found.log_probabilities).sum(1), 1, atol=1e-5)
    wide = pooled_linear_probe(features, {"pitch": labels}, unseen, speakers)["pitch"]
    assert np.mean(np.array(wide.predicted) == truth) > 0.9


def test_probe_predictions_are_scored_like_the_system():
    features, labels, speakers = probe_problem()
    names = [f"u{i}" for i in range(len(labels))]
    records = {
        n: {"speaker": s, "emotion": x, "descriptors": {"pitch": x, "speed": None}}
        for n, s, x in zip(names, speakers, labels)
    }
    train = {n: r for n, r in records.items() if r["speaker"] not in ("s0", "s1")}
    test = {n: r for n, r in records.items() if n not in train}
    known = dict(zip(names, features))
    run = probe_predictions(train, test, known, known, ["low", "mid", "high", "never"], ["pitch", "speed"])
    metrics = compute_results(run.predictions, ["low", "mid", "high", "never"], ["pitch", "speed"])
    assert metrics["test.ser.probe.ua"] > 0.85
    assert metrics["test.sed.probe.pitch"] == metrics["test.ser.probe.wa"]
    assert "test.sed.probe.speed" not in metrics
    with pytest.raises(ValueError, match="correct the manifest"):
        probe_predictions(train, test, known, known, ["low", "mid"])
    with pytest.raises(ValueError, match="lists"):
        train["u2"]["descriptors"]["pitch"] = ["low"]
        probe_predictions(train, test, known, known, ["low", "mid", "high"], ["pitch"])


def test_text_only_knows_the_words_and_nothing_else():
    rng = np.random.default_rng(0)
    telling = {"angry": "go away now", "happy": "what a lovely day"}
    train, test = {}, {}
    for i in range(80):
        emotion = ["angry", "happy"][i % 2]
        part, speaker = (train, f"s{i % 5}") if i < 60 else (test, "new")
        neutral = f"the {['cat', 'dog'][rng.integers(2)]} sat"
        part[f"u{i}"] = {
            "speaker": speaker,
            "emotion": emotion,
            "telling": telling[emotion],
            "neutral": neutral,
        }
    ua = {}
    for kind in ("telling", "neutral"):
        given = [{n: {**r, "transcript": r[kind]} for n, r in p.items()} for p in (train, test)]
        run = text_only_predictions(*given, ["angry", "happy"])
        ua[kind] = compute_results(run.predictions, ["angry", "happy"])["test.ser.text_only.ua"]
    assert ua["telling"] == 1.0 and ua["neutral"] < 0.75
    with pytest.raises(ValueError, match="no training record"):
        text_only_predictions({"u": {"transcript": None, "emotion": "a", "speaker": "s"}}, test, ["a"])


def test_merging_adds_conditions_and_checks_references():
    system = [{"id": "u", "emotion": "a", "scores": {"speech": {"a": 0.0}}}]
    run = BaselineRun("probe", [{"id": "u", "emotion": "a", "scores": {"probe": {"a": -1.0}}}])
    merged = merge_predictions(system, run)
    assert merged[0]["scores"] == {"speech": {"a": 0.0}, "probe": {"a": -1.0}}
    assert system[0]["scores"] == {"speech": {"a": 0.0}}
    with pytest.raises(ValueError, match="there already"):
        merge_predictions(merged, run)
    with pytest.raises(ValueError, match="no prediction of 'v'"):
        merge_predictions([{"id": "v"}], run)
    with pytest.raises(ValueError, match="same manifests"):
        merge_predictions([{"id": "u", "emotion": "b"}], run)


def test_egemaps_on_real_speech(shared_data):
    """EmoDB, 3 speakers for training and one to test: far above chance (1/7)."""
    pytest.importorskip("opensmile")
    folder = shared_data / "emodb" / "wav"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    records = {
        path.stem: {"wav": str(path), "speaker": path.stem[:2], "emotion": path.stem[5]}
        for path in sorted(folder.glob("*.wav"))
        # Four of the ten sentences keep it to seconds.
        if path.stem[:2] in ("03", "09", "13", "14") and path.stem[2:5] in ("a01", "a04", "b03", "b10")
    }
    run = opensmile_svm(folds_of(records, ["14"]), candidates=(0.003, 0.03), progress=False)
    metrics = compute_results(run.predictions, sorted("WLEAFTN"))
    assert metrics["test.ser.egemaps_svm.wa"] > 0.35
