"""Results come from predictions alone; folds and seeds pool as they should; files survive a round trip."""

import json
import logging
import math

import numpy as np
import pytest

from speechbrain_emo import results
from speechbrain_emo.metrics.calibration import label_probabilities
from speechbrain_emo.results import (
    compute_results,
    format_table,
    pool_folds,
    pool_seeds,
    predicted_label,
    read_predictions,
    read_results,
    result_rows,
    run_context,
    write_predictions,
    write_results,
)

LABELS = ["anger", "happiness", "sadness"]
FIELDS = ["pitch", "speed", "emphasis", "description"]


def make_predictions(count=60, speakers=4, seed=0, fold=None):
    """Predictions whose label is right about two times of three."""
    rng = np.random.default_rng(seed)
    predictions = []
    for i in range(count):
        emotion = LABELS[rng.integers(3)]
        prediction = {
            "id": f"{fold or 'u'}-{i}",
            "speaker": f"{fold or 's'}{i % speakers}",
            "emotion": emotion,
            "scores": {
                c: {x: float(rng.normal() + (1.5 if x == emotion else 0)) for x in LABELS}
                for c in ("speech", "own_chain", "gold_descriptors")
            },
            "transcript": "the cat sat on the mat",
            "hypothesis": "the cat sat on a mat" if i % 3 == 0 else "the cat sat on the mat",
            "descriptors": {
                "pitch": "high",
                "speed": "slow",
                "emphasis": ["cat"],
                "description": "a calm voice",
            },
            "predicted_descriptors": {
                "pitch": "high" if i % 2 else "low",
                "speed": None,
                "emphasis": ["cat"] if i % 4 else [],
                "description": "a calm voice",
            },
            "measured_descriptors": {"pitch": "low"},
            "generated": None if i % 10 == 0 else emotion,
            "unparsable": i % 10 == 0,
            "duration": 1.5,
        }
        if fold:
            prediction["fold"] = fold
        predictions.append(prediction)
    return predictions


def test_keys_and_values():
    predictions = make_predictions()
    metrics = compute_results(predictions, LABELS, FIELDS, java=False)
    for condition in ("speech", "own_chain", "gold_descriptors"):
        right = [max(LABELS, key=p["scores"][condition].get) == p["emotion"] for p in predictions]
        assert metrics[f"test.ser.{condition}.wa"] == pytest.approx(np.mean(right))
        recalls = [
            np.mean([r for r, p in zip(right, predictions) if p["emotion"] == label]) for label in LABELS
        ]
        assert metrics[f"test.ser.{condition}.ua"] == pytest.approx(np.mean(recalls))
        assert metrics[f"test.ser.{condition}.ua_low"] <= metrics[f"test.ser.{condition}.ua"]
        assert np.sum(metrics[f"test.ser.{condition}.confusion"]) == len(predictions)
    assert metrics["test.ser.generated.unparsable"] == 0.1
    assert metrics["test.ser.generated.wa"] == pytest.approx(0.9)
    assert metrics["test.asr.generated.wer"] == pytest.approx(20 / 360)
    assert [metrics[f"test.asr.generated.{k}"] for k in ("substitutions", "deletions", "insertions")] == [
        20,
        0,
        0,
    ]
    assert metrics["test.asr.generated.closed_set"] is False
    assert metrics["test.sed.generated.pitch"] == 0.5
    assert metrics["test.sed.generated.speed"] == 0.0
    assert metrics["test.sed.generated.speed_missing"] == 1.0
    assert metrics["test.sed.generated.emphasis"] == 0.75
    assert metrics["test.sed.faithfulness.pitch"] == 0.5
    assert metrics["test.sed.generated.meteor"] is None
    assert "switched off" in metrics["test.sed.generated.meteor_not_computed"]
    assert all(len(key.split(".", 3)) == 4 for key in metrics)


def test_only_predictions_matter(tmp_path):
    """Writing and reading them, in another order, leaves every number."""
    predictions = make_predictions()
    before = compute_results(predictions, LABELS, FIELDS, java=False)
    path = write_predictions(tmp_path, predictions[::-1])
    assert path == tmp_path / "predictions.jsonl"
    after = compute_results(read_predictions(tmp_path), LABELS, FIELDS, java=False)
    assert set(after) == set(before)
    for key, value in before.items():
        assert after[key] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), key


def test_text_of_generated_label_is_not_trusted():
    predictions = make_predictions(count=2)
    predictions[0].update(generated="furious", unparsable=False)
    predictions[1].update(generated=predictions[1]["emotion"], unparsable=False)
    assert compute_results(predictions, LABELS)["test.ser.generated.unparsable"] == 0.5


def test_ties_go_to_the_first_label_and_nan_is_refused():
    assert predicted_label({"a": -1.0, "b": -1.0}, ["b", "a"]) == "b"
    with pytest.raises(ValueError, match=r"\['b'\] have no finite score"):
        predicted_label({"a": -1.0, "b": math.nan}, ["a", "b"])


def test_temperature_of_a_condition():
    predictions = make_predictions()
    plain = compute_results(predictions, LABELS)
    scaled = compute_results(predictions, LABELS, temperature={"own_chain": 2.0})
    assert scaled["test.ser.own_chain.nll"] != pytest.approx(plain["test.ser.own_chain.nll"])
    assert scaled["test.ser.own_chain.ua"] == plain["test.ser.own_chain.ua"]
    assert scaled["test.ser.speech.nll"] == plain["test.ser.speech.nll"]
    # A baseline's stored probabilities stay although the system has a temperature.
    for p in predictions:
        p["scores"]["svm"] = {x: 100.0 * (x == "anger") for x in LABELS}
        p["probabilities"] = {"svm": dict(zip(LABELS, [0.4, 0.3, 0.3]))}
    found = compute_results(predictions, LABELS, temperature=3.0)["test.ser.svm.nll"]
    expected = np.mean([-math.log(0.4 if p["emotion"] == "anger" else 0.3) for p in predictions])
    assert found == pytest.approx(expected)


def test_random_split_warns_in_log_and_result(caplog):
    with caplog.at_level(logging.WARNING):
        metrics = compute_results(make_predictions(), LABELS, random_split=True)
    assert "random split" in caplog.text and "random split" in metrics["test.warning"]
    assert "test.warning" not in compute_results(make_predictions(), LABELS)


def test_condition_scored_for_some_utterances_only(caplog):
    predictions = make_predictions()
    del predictions[3]["scores"]["gold_descriptors"]
    with caplog.at_level(logging.WARNING):
        metrics = compute_results(predictions, LABELS)
    assert metrics["test.ser.gold_descriptors.count"] == 59 and "59 of 60" in caplog.text
    del predictions[3]["scores"]["own_chain"]
    with pytest.raises(ValueError, match="u-3"):
        compute_results(predictions, LABELS)


def test_baseline_descriptors_have_their_own_condition():
    predictions = make_predictions()
    for p in predictions:
        p["baseline_descriptors"] = {"probe": {"pitch": "high"}}
    metrics = compute_results(predictions, LABELS, FIELDS, java=False)
    assert metrics["test.sed.probe.pitch"] == 1.0
    assert "test.sed.probe.speed" not in metrics


def test_shifts():
    predictions = make_predictions(count=4)
    for p, value in zip(predictions, ["high", "normal", "low", "high"]):
        p["predicted_descriptors"]["pitch"] = "normal"
        p["shifted_descriptors"] = {"pitch_up": {"pitch": value}}
    metrics = compute_results(predictions, LABELS, FIELDS, java=False)
    assert metrics["test.sed.shift_pitch_up.share_right"] == 0.5
    predictions[0]["shifted_descriptors"] = {"louder": {}}
    with pytest.raises(ValueError, match="louder"):
        compute_results(predictions, LABELS, FIELDS, java=False)


def write_fold(folder, fold, predictions, temperature=1.0, **evaluation):
    write_predictions(folder / fold, predictions)
    settings = {"labels": LABELS, "fields": ["pitch"], "temperature": temperature, **evaluation}
    return write_results(folder / fold, {}, run_context(seed=1, evaluation=settings)).parent


def test_folds_pool_to_the_metrics_of_all_predictions(tmp_path):
    folds = {f"0{i}": make_predictions(count=30 + 10 * i, seed=i, fold=f"0{i}") for i in (1, 2, 3)}
    folders = [write_fold(tmp_path, name, p) for name, p in folds.items()]
    pooled = pool_folds(folders)
    everything = compute_results([p for ps in folds.values() for p in ps], LABELS, ["pitch"], temperature=1.0)
    for name in (
        "ser.own_chain.ua",
        "ser.own_chain.ua_low",
        "ser.speech.nll",
        "asr.generated.wer",
        "sed.generated.pitch",
    ):
        assert pooled[f"test.{name}"] == pytest.approx(everything[f"test.{name}"], abs=1e-12), name
    each = [compute_results(p, LABELS)["test.ser.own_chain.ua"] for p in folds.values()]
    assert pooled["test.ser.own_chain.ua_fold_mean"] == pytest.approx(np.mean(each))
    assert pooled["test.ser.own_chain.ua_fold_std"] == pytest.approx(np.std(each, ddof=1))
    # The headline is not the mean over folds: they differ in size.
    assert pooled["test.ser.own_chain.ua"] != pytest.approx(np.mean(each), abs=1e-6)


def test_each_fold_keeps_its_own_temperature(tmp_path):
    folds = {"a": make_predictions(seed=1, fold="a"), "b": make_predictions(seed=2, fold="b")}
    temperatures = {"a": 0.5, "b": {"own_chain": 3.0}}
    folders = [write_fold(tmp_path, n, p, temperature=temperatures[n]) for n, p in folds.items()]
    found = pool_folds(folders)["test.ser.own_chain.nll"]
    nll = []
    for name, value in (("a", 0.5), ("b", 3.0)):
        for p in folds[name]:
            q = label_probabilities([p["scores"]["own_chain"][x] for x in LABELS], value)
            nll.append(-math.log(q[LABELS.index(p["emotion"])]))
    assert found == pytest.approx(np.mean(nll))


def test_folds_that_do_not_belong_together(tmp_path):
    first = write_fold(tmp_path, "1", make_predictions(fold="a"))
    again = write_fold(tmp_path, "2", make_predictions(fold="a"))
    with pytest.raises(ValueError, match="a-0.*predicted in"):
        pool_folds([first, again])
    other = write_fold(tmp_path, "3", make_predictions(fold="b"), language="de")
    with pytest.raises(ValueError, match="language"):
        pool_folds([first, other])
    with pytest.raises(ValueError, match="no fold"):
        pool_folds([])
    write_results(tmp_path / "3", {}, {})
    with pytest.raises(ValueError, match="evaluation"):
        pool_folds([tmp_path / "3"])


def test_seeds(tmp_path):
    for seed, value in ((1, 0.5), (2, 0.6), (3, 0.8)):
        metrics = {"test.ser.speech.ua": value, "test.asr.generated.closed_set": True, "test.x.y.z": None}
        write_results(tmp_path / str(seed), metrics, {"seed": seed, "split_hash": "h"})
    pooled = pool_seeds([tmp_path / str(s) for s in (1, 2, 3)])
    assert list(pooled) == ["test.ser.speech.ua"]
    assert pooled["test.ser.speech.ua"]["mean"] == pytest.approx(np.mean([0.5, 0.6, 0.8]))
    assert pooled["test.ser.speech.ua"]["std"] == pytest.approx(np.std([0.5, 0.6, 0.8], ddof=1))
    with pytest.raises(ValueError, match="own seed"):
        pool_seeds([tmp_path / "1", tmp_path / "1"])
    write_results(tmp_path / "4", {}, {"seed": 4, "split_hash": "other"})
    with pytest.raises(ValueError, match="split hashes differ"):
        pool_seeds([tmp_path / "1", tmp_path / "4"])


def test_results_file_has_the_run_and_no_nan(tmp_path):
    hparams = {"lr": 1e-3, "layers": (1, 2), "seed": np.int64(3), "path": tmp_path}
    context = run_context(seed=3, hparams=hparams, split_hash="abc", wall_time=10.0, audio_seconds=50.0)
    path = write_results(tmp_path, {"test.a.b.c": math.nan, "test.a.b.d": np.float32(0.5)}, context)
    text = path.read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["metrics"] == {"test.a.b.c": None, "test.a.b.d": 0.5}
    assert content["hparams"] == {"lr": 1e-3, "layers": [1, 2], "seed": 3, "path": str(tmp_path)}
    assert content["packages"]["torch"] and content["peak_memory_bytes"] > 50e6
    assert content["audio_seconds_per_second"] == 5.0
    assert {"git_commit", "python", "machine", "wall_time_seconds", "split_hash"} <= set(content)
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ValueError, match="'metrics'"):
        write_results(tmp_path, {}, {"metrics": {}})


def test_git_commit_of_a_repository(tmp_path):
    import subprocess

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )

    git("init", "-q")
    assert results.git_commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert results.git_commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert results.git_commit(tmp_path) == head + "-dirty"


@pytest.mark.parametrize(
    "lines, word",
    [
        ('{"id": "a"}\n{"id": "a"}\n', "twice"),
        ('{"id": "a"}\n{"id": \n', "line 2"),
        ('{"speaker": "a"}\n', "no id"),
        ('["a"]\n', "no id"),
    ],
)
def test_broken_prediction_files(tmp_path, lines, word):
    (tmp_path / "predictions.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=word):
        read_predictions(tmp_path)


def test_predictions_that_cannot_be_written(tmp_path):
    write_predictions(tmp_path, [{"id": "old"}])
    with pytest.raises(ValueError, match="prediction of x"):
        write_predictions(tmp_path, [{"id": "x", "scores": {"speech": {"a": math.nan}}}])
    # The old file is whole.
    assert read_predictions(tmp_path) == [{"id": "old"}]
    with pytest.raises(ValueError, match="empty"):
        compute_results([], LABELS)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="metrics"):
        read_results(tmp_path)


def test_rows_and_table():
    metrics = compute_results(make_predictions(), LABELS, ["pitch"], closed_set=True)
    metrics |= {"test.ser.probe.ua": 0.7, "test.sed.probe.pitch": 0.6, "test.ser.oracle.ua": 0.9}
    metrics |= {"test.ser.text_only.ua": 0.25, "valid.ser.speech.ua": 0.1}
    rows = result_rows(metrics)
    names = [row["system"] for row in rows]
    assert names[:4] == ["label|own_chain", "label|speech", "label|gold_descriptors", "free generation"]
    assert names[4:] == [results.CONDITION_NAMES[c] for c in ("probe", "oracle", "text_only")]
    headline = rows[0]
    assert headline["WER (closed set)"] == metrics["test.asr.generated.wer"] and headline["pitch"] == 0.5
    assert "pitch" not in rows[1] and rows[4]["pitch"] == 0.6
    table = format_table(rows)
    lines = table.splitlines()
    assert len(lines) == len(rows) + 2
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "0.250" in table and "label\\|own_chain" in table
    plain = format_table(rows, columns=["system", "UA"], style="plain")
    assert "label|own_chain" in plain and "WER" not in plain
    with pytest.raises(ValueError, match="html"):
        format_table(rows, style="html")


def test_table_of_seeds_shows_the_spread():
    rows = result_rows({"test.ser.own_chain.ua": {"mean": 0.75, "std": 0.01, "values": [], "seeds": []}})
    assert "0.750 ± 0.010" in format_table(rows)
