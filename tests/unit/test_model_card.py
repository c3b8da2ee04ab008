"""The card says what is known, says when something is not, and makes nothing up."""

import math

import pytest
import yaml

from speechbrain_emo.inference.model_card import model_card, write_model_card

FACTS = {
    "experiment": "emodb_ib",
    "seed": 1986,
    "fold": "03",
    "language": "de",
    "labels": ["anger", "boredom"],
    "descriptors": ["pitch", "volume"],
    "license": "CC0",
    "encoder": "facebook/hubert-large-ll60k",
    "llm": "results/somewhere/llm",
    "parameters": 8_371_926_706,
    "num_trained_parameters": 26_226_738,
    "temperature": {"speech": 1.25, "own_chain": 2.5},
    "metrics": {
        "test.ser.own_chain.ua": 0.7774,
        "test.asr.generated.wer": 0.0521,
        "test.ser.speech.ua": math.nan,
        "test.sed.generated.pitch": 0.8125,
    },
    "command": "python train.py hparams/emodb_ib.yaml --fold=03",
    "git_commit": "abc123",
    "split_hash": "ffee",
}


def head(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_facts_stand_in_the_card(tmp_path):
    path = write_model_card(tmp_path, FACTS)
    text = path.read_text(encoding="utf-8")
    assert path.name == "README.md" and list(tmp_path.iterdir()) == [path]
    for expected in (
        "# emodb_ib, seed 1986, fold 03",
        "anger, boredom",
        "8,371,926,706",
        "26,226,738",
        "Training data: CC0",
        "| 0.777 | `test.ser.own_chain.ua` |",
        "| 0.052 | `test.asr.generated.wer` |",
        "`test.sed.generated.pitch`",
        "--fold=03",
        "abc123",
        "speech 1.25, own_chain 2.5",
    ):
        assert expected in text, expected
    # What is not a number is left out, not shown as a result.
    assert "nan" not in text.lower().split("## results")[1].split("## provenance")[0]


def test_limits_use_and_law_are_always_there():
    for facts in ({}, FACTS):
        text = model_card(facts)
        for heading in (
            "Intended use",
            "Limits of emotion recognition",
            "Data and licences",
            "Results",
            "Provenance",
        ):
            assert f"## {heading}\n" in text
        assert "Not intended" in text and "2024/1689" in text and "not what the speaker feels" in text


def test_what_is_not_known_is_said():
    text = model_card({})
    assert "Not evaluated" in text
    assert "licence not stated" in text
    assert "Emotions: not stated" in text
    assert "Command: not stated" in text
    assert "model-index" not in text


def test_the_head_is_yaml_that_a_hub_reads():
    content = head(model_card(FACTS))
    assert content["language"] == "de" and content["library_name"] == "speechbrain"
    # Only names on a hub are base models; a folder of this machine is not.
    assert content["base_model"] == ["facebook/hubert-large-ll60k"]
    assert content["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.7774
    strange = {"experiment": 'x: "y" {z}', "language": "no", "metrics": {"test.ser.own_chain.ua": 1}}
    assert head(model_card(strange))["model-index"][0]["name"] == 'x: "y" {z}'
    assert head(model_card(strange))["language"] == "no"  # and not false, as YAML 1.1 reads a bare `no`


def test_no_folder_of_this_machine_in_the_card():
    text = model_card({**FACTS, "encoder": "/data/me/encoder", "llm": "results/somewhere/llm"})
    assert "/data/me" not in text and "results/somewhere" not in text
    assert "Encoder (frozen): encoder (made by" in text


def test_a_random_split_is_a_warning_and_unknown_facts_are_listed():
    assert "optimistic" not in model_card(FACTS)
    assert "scores are optimistic" in model_card({**FACTS, "random_split": True})
    assert "scores are optimistic" in model_card({**FACTS, "metrics": {"test.warning": "random split"}})
    assert "- annotators: 20" in model_card({"annotators": 20})


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="export the model first"):
        write_model_card(tmp_path / "absent", FACTS)
