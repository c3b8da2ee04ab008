"""The word annotator from YAML to annotation: it learns words from sentence labels, and resumes exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy
import words_toy
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file

from speechbrain_emo.brains.word_emotion import WordEmotionBrain, WordEmotionExperiment, run_word_emotion
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.experiment import merge_overrides
from speechbrain_emo.inference import WordEmotionAnnotator
from speechbrain_emo.inference.annotate_corpus import MANIFEST, annotate_corpus

pytestmark = pytest.mark.integration
EXPERIMENT = "hparams/demo_word_emotion.yaml"


def hparams(overlay, **changes):
    with open(toy.REPOSITORY / EXPERIMENT, encoding="utf-8") as stream:
        return load_hyperpyyaml(stream, merge_overrides([str(overlay)], changes))


OPTIONS = {"device": "cpu", "noprogressbar": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training through train.py, on sentence labels."""
    folder = words_toy.build_words(tmp_path_factory.mktemp("words"))
    toy.run(words_toy.overlay(folder), experiment=EXPERIMENT)
    return folder


def test_words_are_learned_from_sentence_labels_alone(trained):
    """Trained on utterances of one emotion, tested inside utterances of two: no sentence label can do that."""
    metrics = json.loads((trained / "run" / "results.json").read_text())["metrics"]
    words = metrics["test.word.annotator.accuracy"]
    best = metrics[f"test.word.{metrics['test.word.best_utterance_condition']}.accuracy"]
    assert words > 0.85
    assert best < 0.75 and metrics["test.word.majority.accuracy"] < 0.5
    assert metrics["test.word.annotator.transition_accuracy"] > 0.75
    assert metrics["test.word.reference"] == "word labels"
    assert metrics["test.word.annotator.count"] == sum(
        len(r["words"]) for r in json.loads((trained / "mixed_test.json").read_text()).values()
    )
    # Dimensions follow the labels' mapping.
    assert metrics["test.word.annotator.arousal_correlation"] > 0.7
    for name in (
        "confusion_words.png",
        "layer_weights.png",
        "training.png",
        "predictions.jsonl",
        "done.json",
    ):
        assert (trained / "run" / name).stat().st_size > 100, name


def test_inference_says_what_the_evaluation_said(trained):
    annotator = WordEmotionAnnotator.from_hparams(trained / "run")
    assert annotator.labels == ["ang", "hap", "neu", "sad"]
    records = json.loads((trained / "mixed_test.json").read_text())
    for record in records.values():
        record["wav"] = record["wav"].replace("{data_root}", str(trained))
    done = annotate_corpus(trained / "run", records, trained / "out.jsonl", aligner=MANIFEST, progress=False)
    assert (done.num_annotated, done.num_rejected) == (len(records), 0)
    lines = {x["id"]: x for x in map(json.loads, (trained / "out.jsonl").read_text().splitlines())}
    for said in map(json.loads, (trained / "run" / "predictions.jsonl").read_text().splitlines()):
        line = lines[said["id"]]
        assert [w["emotion"] for w in line["words"]] == [w["predicted"] for w in said["words"]]
        for a, b in zip(line["words"], said["words"]):
            assert a["arousal"] == pytest.approx(b["arousal"], abs=1e-4)
            assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-4)
            assert sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        source = line["provenance"]
        assert source["supervision"] == "sentence broadcast" and source["aligner"] == MANIFEST
        assert len(source["model"]) == 64 and source["encoder"]


def test_a_finished_run_is_kept_and_other_settings_are_refused(trained):
    before = (trained / "run" / "results.json").stat().st_mtime_ns
    run_word_emotion(hparams(trained / "overlay.yaml"), OPTIONS)
    assert (trained / "run" / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        run_word_emotion(hparams(trained / "overlay.yaml", lr=1.0e-4), OPTIONS)


def test_an_interrupted_training_ends_with_the_same_weights(trained, monkeypatch):
    """Bit for bit, whichever epoch is cut; the log has every line once."""
    folders = {}
    for name in ("whole", "cut"):
        folders[name] = trained / name
    overlay, few = trained / "overlay.yaml", {"number_of_epochs": 4}

    def experiment(name):
        return WordEmotionExperiment(hparams(overlay, output_folder=str(folders[name]), **few), OPTIONS)

    whole = experiment("whole")
    whole.train()
    original = WordEmotionBrain.fit_batch
    for stop in (3, 20):  # in the first and in the second epoch of twelve steps
        calls = [0]

        def cut(self, batch, calls=calls, stop=stop):
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return original(self, batch)

        monkeypatch.setattr(WordEmotionBrain, "fit_batch", cut)
        with pytest.raises(KeyboardInterrupt):
            experiment("cut").train()
    monkeypatch.setattr(WordEmotionBrain, "fit_batch", original)
    resumed = experiment("cut")
    resumed.train()
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name
    logs = [
        [{**json.loads(x), "train": None} for x in (f / "train_log.jsonl").read_text().splitlines()]
        for f in folders.values()
    ]
    assert logs[0] == logs[1] and [x["epoch"] for x in logs[0]] == [1, 2, 3, 4]


def test_a_killed_process_and_two_workers_end_with_the_same_file(trained, tmp_path):
    """SIGKILL while lines are being written, and another number of processes when it goes on."""
    model, records = trained / "run", {}
    for key, record in json.loads((trained / "mixed_test.json").read_text()).items():
        record["wav"] = record["wav"].replace("{data_root}", str(trained))
        records.update({f"{key}_{i}": record for i in range(4)})
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps(records))
    command = [
        sys.executable,
        "-m",
        "speechbrain_emo",
        "annotate",
        "--manifest",
        str(manifest),
        "--model",
        str(model),
    ]
    command += ["--aligner", "manifest", "--output"]
    killed = subprocess.Popen(
        [*command, str(tmp_path / "killed.jsonl")],
        cwd=toy.REPOSITORY,
        env=toy.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        # It is stopped once it writes; if the machine is slow it may even be done.
        while killed.poll() is None:
            output = tmp_path / "killed.jsonl"
            if output.is_file() and output.stat().st_size > 3000:
                break
            time.sleep(0.01)
    finally:
        if killed.poll() is None:
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    whole = annotate_corpus(model, records, tmp_path / "whole.jsonl", MANIFEST, progress=False)
    done = annotate_corpus(model, records, tmp_path / "killed.jsonl", MANIFEST, num_workers=2, progress=False)
    assert done.output.read_bytes() == whole.output.read_bytes()
    assert done.rejected_file.read_bytes() == whole.rejected_file.read_bytes()


def test_nine_classes_and_word_labels_from_the_yaml(trained, tmp_path):
    """The class set is a list in the YAML; words have labels of their own."""
    nine = ["angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "unknown"]
    values = {
        "labels": nine,
        "label_map": {"angry": "angry", "happy": "happy", "neutral": "neutral", "sad": "sad"},
        "dimensions": {"angry": [0.2, 0.9, 0.8], "sad": [0.2, 0.1, 0.2]},
        "intensities": ["none", "weak", "strong", "extreme"],
        "intensity_thresholds": [2.0, 3.0, 4.0],
        "untagged": ["neutral", "none"],
        "supervision": "word",
        "number_of_epochs": 2,
        "output_folder": str(tmp_path / "nine"),
    }
    # label_map of the YAML is merged with an override: the experiment's own file is loaded and changed instead.
    loaded = {**hparams(trained / "overlay.yaml"), **values, "save_folder": str(tmp_path / "nine" / "save")}
    loaded["manifests"] = {
        "train": [str(trained / "single_train.json"), str(trained / "mixed_train.json")],
        "valid": [str(trained / "single_valid.json"), str(trained / "mixed_valid.json")],
        "test": str(trained / "mixed_test.json"),
    }
    run_word_emotion(loaded, OPTIONS)
    annotator = WordEmotionAnnotator.from_hparams(tmp_path / "nine")
    assert annotator.labels == nine
    assert (
        load_file(str(tmp_path / "nine" / "model" / "annotator.safetensors"))["label_head.weight"].shape[0]
        == 9
    )
    record = next(iter(json.loads((trained / "mixed_test.json").read_text()).items()))
    record[1]["wav"] = record[1]["wav"].replace("{data_root}", str(trained))
    done = annotate_corpus(
        tmp_path / "nine", dict([record]), tmp_path / "o.jsonl", aligner=MANIFEST, progress=False
    )
    line = json.loads(Path(done.output).read_text())
    assert len(line["words"][0]["probabilities"]) == 9
    assert {w["intensity"] for w in line["words"]} <= set(values["intensities"])
    assert line["provenance"]["supervision"] == "word labels"


def test_weak_supervision_refuses_utterances_of_several_emotions(trained):
    loaded = hparams(trained / "overlay.yaml", output_folder=str(trained / "refused"))
    loaded["manifests"] = {**loaded["manifests"], "train": str(trained / "mixed_train.json")}
    with pytest.raises(ManifestError, match="one emotion only"):
        WordEmotionExperiment(loaded, OPTIONS)
