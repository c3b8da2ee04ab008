"""Pretraining and fine-tuning as phases of one run: each draws from, and is judged on, its own corpus."""

import json

import pytest
import toy
import yaml

from speechbrain_emo.brains.speech_llm_experiment import SpeechLLMExperiment
from speechbrain_emo.experiment import _load, merge_overrides

pytestmark = pytest.mark.integration

COMMON = {"train": ["front_end.content", "llm.lora"], "lr": 1.0e-3, "batch_size": 4, "epochs": 1}
PHASES = [
    {"name": "pretrain", "tasks": {"asr": 1.0}, "corpora": {"B": 0.0}, **COMMON},
    {"name": "finetune", "tasks": {"ser": 1.0}, "corpora": {"A": 0.0}, **COMMON},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The toy corpus, its records half of corpus A (without emotions) and half of corpus B."""
    folder = tmp_path_factory.mktemp("corpora")
    overlay = toy.build(folder)
    for path in (folder / "corpus" / "manifests").glob("*.json"):
        records = json.loads(path.read_text())
        for number, record in enumerate(records.values()):
            record["corpus"] = "AB"[number % 2]
            if record["corpus"] == "A" and path.stem != "test":
                record["emotion"] = None
        path.write_text(json.dumps(records))
    return folder, overlay


def experiment(files, name, **changes):
    folder, overlay = files
    overrides = yaml.safe_dump(
        {"output_folder": str(folder / name), "phases": PHASES, "cycles": 1, **changes}
    )
    hparams = _load(toy.REPOSITORY / "hparams" / "demo_ib.yaml", merge_overrides([overlay], overrides))
    return SpeechLLMExperiment(hparams, {"device": "cpu"})


def corpora_of(data, plans):
    return {
        data.records[item.record]["corpus"]
        for plan in plans
        for items in plan.micro_batches
        for item in items
    }


def test_a_phase_trains_and_validates_on_its_own_corpus(files):
    run = experiment(files, "phases", validate_every=1)
    seen = []
    on_stage_start = run.brain.on_stage_start

    def watched(stage, epoch=None):
        on_stage_start(stage, epoch)
        if stage.name in ("TRAIN", "VALID"):
            split = stage.name.lower()
            sampler = run.brain.sampler if split == "train" else run.brain.valid_sampler
            seen.append((run.brain.position.phase.name, split, corpora_of(run.data[split], sampler.plans)))

    run.brain.on_stage_start = watched
    run.train()
    assert seen == [
        ("pretrain", "train", {"A"}),
        ("pretrain", "valid", {"A"}),
        ("finetune", "train", {"B"}),
        ("finetune", "valid", {"B"}),
    ]
    # One result of each corpus beside that over both.
    metrics = run.evaluate()
    assert {"test.ser.speech.ua", "test_A.ser.speech.ua", "test_B.ser.speech.ua"} <= set(metrics)
    both = metrics["test_A.ser.speech.count"] + metrics["test_B.ser.speech.count"]
    assert both == metrics["test.ser.speech.count"] == 8


def test_a_phase_without_validation_records_says_so(files):
    phases = [
        {**PHASES[0], "corpora": {"A": 0.0, "B": 1.0}},
        {**PHASES[1], "tasks": {"ser": 1.0}, "corpora": {"B": 0.0}},
    ]
    run = experiment(files, "without", phases=phases)
    with pytest.raises(ValueError, match="phase 'finetune': no validation record has an answer for ser"):
        run.train()
