"""What should be learned is learned: VIB-SER on tones, from text pretraining to interventions, in about a minute."""

import json

import numpy as np
import pytest
import toy

from speechbrain_emo.inference import EmotionExplainer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """results.json and predictions of a toy experiment that has enough data and steps to learn."""
    folder = tmp_path_factory.mktemp("learn")
    toy.build_corpus(folder / "corpus", (("train", 400), ("valid", 24), ("test", 64)), seed=3)
    toy.build_encoder(folder / "backbones" / "encoder", hidden_size=64)
    text = toy.text_overlay(folder)
    toy.run(text, experiment="hparams/demo_llm.yaml")
    overlay = toy.learning_overlay(folder)
    toy.run(overlay)
    lines = [json.loads(x) for x in (folder / "run" / "predictions.jsonl").read_text().splitlines()]
    return folder, json.loads((folder / "run" / "results.json").read_text())["metrics"], lines


def test_words_descriptors_and_emotion_are_learned(learned):
    """Chance: WER about 1 (the words of another recording give 0.87), UA 0.25, pitch 0.33."""
    _, metrics, _ = learned
    assert metrics["test.asr.generated.wer"] < 0.7
    assert metrics["test.ser.own_chain.ua"] > 0.8
    assert metrics["test.sed.generated.pitch"] > 0.42
    assert metrics["test.ser.own_chain.prefix_changes"] == 0


def test_exchanging_descriptor_slots_destroys_descriptors_and_leaves_the_words(learned):
    _, metrics, _ = learned
    assert metrics["shuffled_descriptor.ser.own_chain.ua"] < metrics["unshuffled.ser.own_chain.ua"] - 0.3
    assert (
        metrics["shuffled_descriptor.sed.generated.pitch"] < metrics["unshuffled.sed.generated.pitch"] - 0.1
    )
    assert (
        abs(metrics["shuffled_descriptor.asr.generated.wer"] - metrics["unshuffled.asr.generated.wer"]) < 0.12
    )


def test_exchanging_content_slots_destroys_the_words_and_leaves_descriptors(learned):
    _, metrics, _ = learned
    assert metrics["shuffled_content.asr.generated.wer"] > metrics["unshuffled.asr.generated.wer"] + 0.2
    assert (
        abs(metrics["shuffled_content.sed.generated.pitch"] - metrics["unshuffled.sed.generated.pitch"])
        < 0.15
    )


def test_kl_falls_as_beta_says_and_units_stay_active(learned):
    folder, _, _ = learned
    log = [json.loads(x) for x in (folder / "run" / "train_log.jsonl").read_text().splitlines()]
    assert log[-1]["valid"]["active_units/descriptor"] >= 2
    assert all(x["train"]["beta"] > 0 for x in log)


def test_sure_answers_are_right_more_often_and_the_model_keeps_its_threshold(learned):
    folder, metrics, lines = learned
    key = "test.ser.own_chain"
    assert 0 < metrics[f"{key}.coverage"] <= 1
    assert metrics[f"{key}.selective_risk"] <= 1 - metrics[f"{key}.wa"] + 1e-9
    assert metrics[f"{key}.aurc"] <= 1 - metrics[f"{key}.wa"] + 1e-9
    answered = [line["answered"]["own_chain"] for line in lines]
    assert np.mean(answered) == pytest.approx(metrics[f"{key}.coverage"])
    assert (folder / "run" / "risk_coverage.png").is_file()
    explainer = EmotionExplainer.from_hparams(source=folder / "run")
    assert explainer.abstain_below == pytest.approx(metrics[f"{key}.abstain_below"])


def test_verification_runs_inside_the_experiment(learned):
    folder, metrics, _ = learned
    for condition in (
        "gold_descriptors",
        "own_chain",
        "shuffled_descriptors",
        "swapped_descriptors",
        "speech",
    ):
        assert 0 <= metrics[f"prefix.ser.{condition}.ua"] <= 1
    # The emotion is heard whatever stands before it: descriptors say nothing about it in this corpus.
    assert metrics["prefix.ser.gold_descriptors.ua"] > 0.7
    assert (folder / "run" / "verification" / "predictions.jsonl").is_file()
