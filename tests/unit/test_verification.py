"""Verification: what it asks the model, what it writes down, and that neither batches nor interrupts change it."""

import numpy as np
import pytest
import soundfile

from speechbrain_emo import results
from speechbrain_emo.brains.explainer import Explainer
from speechbrain_emo.brains.verification import Verification, exchanged, verification_tables
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.audio_changes import FAULTS, SHIFTS
from speechbrain_emo.dataio.descriptors import fit_thresholds, measure
from tests.tiny import build_tiny_system, voiced_tone

EMOTIONS = ("neutral", "happy", "sad", "angry")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return build_tiny_system(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("audio"), []
    for i in range(8):
        seconds = 0.5 + 0.1 * i
        soundfile.write(folder / f"{i}.wav", voiced_tone(seconds, 100 + 15 * i, seed=i), 16000)
        found.append(
            {
                "id": f"u{i}",
                "wav": str(folder / f"{i}.wav"),
                "duration": seconds,
                "speaker": f"s{i % 2}",
                "gender": "male",
                "transcript": "the sky is blue",
                "emotion": EMOTIONS[i % 4],
                "descriptors": {
                    "pitch": ("low", "normal", "high")[i % 3],
                    "speed": "slow",
                    "volume": "normal",
                    "emphasis": [],
                },
            }
        )
    return found


@pytest.fixture(scope="module")
def thresholds():
    rows = [measure(voiced_tone(1.0, 90 + 10 * i, seed=i), 16000, "a b c") for i in range(14)]
    return fit_thresholds(rows, ["male"] * len(rows))


def verification(system, records, folder, thresholds=None, batch_size=3, chain=True):
    settings = {k: v for k, v in system.explain.items() if k != "max_duration"}
    if not chain:
        settings["chain_task"] = None
    explainer = Explainer(system.model, system.packer, system.tasks, **settings)
    return Verification(
        explainer,
        records,
        lambda record: load_audio(record["wav"], 16000),
        16000,
        folder,
        thresholds=thresholds,
        batch_size=batch_size,
        evaluation={"temperature": {"own_chain": 0.5, "gold_descriptors": 0.5, "speech": 0.5}},
        progress=False,
    )


@pytest.fixture(scope="module")
def done(system, records, thresholds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    return folder, *verification(system, records, folder, thresholds).run()


def test_every_part_has_its_numbers(done):
    _, metrics, lines = done
    for field in ("pitch", "volume", "speed"):
        assert 0 <= metrics[f"test.sed.faithfulness.{field}"] <= 1
        for way in ("up", "down"):
            key = f"test.sed.shift_{field}_{way}"
            counts = [metrics[f"{key}.{x}"] for x in ("right", "wrong", "unmoved", "saturated")]
            assert sum(counts) == len(lines)
            assert 0 <= metrics[f"{key}.emotion_changed"] <= 1
            # The pitch of a tone is shifted for certain: the control must see it.
            if field == "pitch":
                assert metrics[f"{key}.measured_share_right"] > 0.5
    for fault in FAULTS:
        assert 0 <= metrics[f"robust_{fault}.ser.own_chain.ua"] <= 1
        assert metrics[f"robust_{fault}.asr.generated.wer"] >= 0
    for condition in (
        "gold_descriptors",
        "own_chain",
        "shuffled_descriptors",
        "swapped_descriptors",
        "speech",
    ):
        assert 0 <= metrics[f"prefix.ser.{condition}.ua"] <= 1
    tables = verification_tables(metrics)
    assert [len(rows) for rows in tables.values()] == [3, len(FAULTS), 5]
    assert all(results.format_table(rows) for rows in tables.values())


def test_measured_descriptors_are_those_of_the_signal(done, records, thresholds):
    _, metrics, lines = done
    for line, record in zip(lines, records):
        samples, _ = soundfile.read(record["wav"], dtype="float32")
        pitch = measure(samples, 16000).f0_median
        low, high = thresholds.of("f0_median", "male")["edges"]
        assert line["measured_descriptors"]["pitch"] == (
            "low" if pitch < low else "high" if pitch > high else "normal"
        )
    hits = [line["predicted_descriptors"]["pitch"] == line["measured_descriptors"]["pitch"] for line in lines]
    assert metrics["test.sed.faithfulness.pitch"] == pytest.approx(np.mean(hits))


def test_batches_do_not_matter(done, system, records, thresholds, tmp_path):
    _, metrics, _ = done
    other, _ = verification(system, records, tmp_path, thresholds, batch_size=8).run()
    assert other.keys() == metrics.keys()
    for name, value in metrics.items():
        assert other[name] == pytest.approx(value, abs=1e-4), name


def test_a_second_run_asks_the_model_only_for_what_is_missing(done, system, records, thresholds, monkeypatch):
    folder, metrics, _ = done
    missing = next(folder.glob("noise_10-*"))
    kept = missing.read_text()
    missing.unlink()
    asked, original = [], Explainer.explain
    monkeypatch.setattr(
        Explainer,
        "explain",
        lambda self, chosen, *a, **k: asked.append(len(chosen)) or original(self, chosen, *a, **k),
    )
    again, _ = verification(system, records, folder, thresholds).run()
    assert sum(asked) == len(records) and again == pytest.approx(metrics)
    assert missing.read_text() == kept
    # Other records are other predictions.
    asked.clear()
    verification(system, records[:3], folder, thresholds).run(["prefix"])
    assert sum(asked) == 3


def test_what_stands_before_the_label_reaches_the_model(system, records, tmp_path):
    """Gold, shuffled and swapped answers give different scores, and each is scored after its own text."""
    checked = verification(system, records, tmp_path)
    lines = checked.predict()
    for condition in ("shuffled_descriptors", "swapped_descriptors"):
        assert any(
            abs(line["scores"][condition]["sad"] - line["scores"]["gold_descriptors"]["sad"]) > 1e-4
            for line in lines
        )
    chains = checked._chains(records)
    for record, shuffled, swapped in zip(records, *chains.values()):
        assert checked._other(record)["emotion"] != record["emotion"]
        assert shuffled["transcript"] == swapped["transcript"] == record["transcript"]
        assert swapped["pitch"] == exchanged(record["descriptors"]["pitch"]) and swapped["speed"] == "fast"
    assert chains["shuffled_descriptors"][0]["pitch"] == checked._other(records[0])["descriptors"]["pitch"]


def test_descriptors_that_follow_the_shift_are_counted_as_right(system, records, tmp_path, monkeypatch):
    """A model that reads pitch from the audio is told from one that says the same always."""
    checked = verification(system, records, tmp_path)

    def follows(change="clean"):
        values = {"pitch_up": "high", "pitch_down": "low"}
        return [
            {
                "id": r["id"],
                "speaker": r["speaker"],
                "emotion": r["emotion"],
                "scores": {"own_chain": {x: float(x == r["emotion"]) for x in EMOTIONS}},
                "predicted_descriptors": {
                    "pitch": values.get(change, "normal"),
                    "volume": "normal",
                    "speed": "normal",
                },
            }
            for r in records
        ]

    monkeypatch.setattr(checked, "predict", follows)
    metrics, _ = checked.run(["shifts"])
    for shift in SHIFTS:
        assert metrics[f"test.sed.shift_{shift}.share_right"] == (1.0 if shift.startswith("pitch") else 0.0)


def test_what_cannot_be_verified_is_said(system, records, tmp_path):
    with pytest.raises(ValueError, match="calibrate"):
        verification(system, records, tmp_path).run(["faithfulness"])
    with pytest.raises(ValueError, match="without descriptors"):
        verification(system, records, tmp_path, chain=False).run(["shifts"])
    with pytest.raises(ValueError, match="allowed: faithfulness"):
        verification(system, records, tmp_path).run(["honesty"])
    with pytest.raises(ValueError, match="no record"):
        verification(system, [], tmp_path)
    bare = [{k: v for k, v in r.items() if k != "descriptors"} for r in records]
    with pytest.raises(ValueError, match="descriptors of the answer format"):
        verification(system, bare, tmp_path).run(["prefix"])


def test_a_model_of_labels_alone_has_robustness(system, records, tmp_path):
    metrics, _ = verification(system, records[:4], tmp_path, chain=False).run(["robustness"])
    assert "robust_clean.ser.speech.ua" in metrics and not any("own_chain" in key for key in metrics)


def test_only_whole_words_are_exchanged():
    assert exchanged("slowly, highest, below: high low slow") == "slowly, highest, below: low high fast"
