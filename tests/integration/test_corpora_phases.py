"""Pretraining and fine-tuning as phases of one run: each draws from, and is judged on, its own corpus."""

import json

import pytest
import toy
import yaml

from speechbrain_emo.brains.speech_llm_experiment import SpeechLLMExperiment, run_speech_llm
from speechbrain_emo.dataio.batching import Item
from speechbrain_emo.experiment import _load, merge_overrides
from speechbrain_emo.inference import EmotionExplainer
from tests.corpora import savee_tree

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


def test_a_phase_without_records_says_so(files):
    run = experiment(files, "no_training", phases=[{**PHASES[1], "corpora": {"B": 0.0}}])
    with pytest.raises(ValueError, match="phase 'finetune': no training record has an answer for ser"):
        run.train()
    run = experiment(files, "no_validation", phases=[PHASES[1]])
    for record in run.data["valid"].records.records:
        record["corpus"] = "A"
    with pytest.raises(ValueError, match="phase 'finetune': no validation record has an answer for ser"):
        run.train()


def test_votes_are_learned_in_their_shares(files):
    """Drawn by utterance and epoch: the shares are those of the votes, and nothing else decides."""
    run = experiment(files, "votes", phases=[{**PHASES[1], "draw_votes": True}])
    data = run.data["train"]
    number = next(i for i, r in enumerate(data.records.records) if r["corpus"] == "B")
    data.records.records[number]["soft_labels"] = {"sad": 0.75, "happy": 0.25}

    def drawn(epoch, others=()):
        packed = data.micro_batch([*others, Item(number, "ser")], epoch, "1.finetune").packed
        answer = packed.token_ids[-1][packed.labels[-1] != -100].tolist()
        text = run.packer.tokenizer.decode(answer, skip_special_tokens=True)
        (label,) = [x for x in toy.EMOTIONS if x in text]
        return label

    labels = [drawn(epoch) for epoch in range(1, 201)]
    assert 0.65 < labels.count("sad") / 200 < 0.85 and labels.count("sad") + labels.count("happy") == 200
    other = next(i for i, r in enumerate(data.records.records) if r["corpus"] == "B" and i != number)
    assert [drawn(e, [Item(other, "ser")]) for e in range(1, 21)] == labels[:20], "not by the batch"
    # Evaluation and validation keep the label; so does a phase that does not draw.
    assert drawn(0) == data.records.records[number]["emotion"]


def test_the_base_experiment_runs_on_a_corpus_that_an_overlay_names(files, tmp_path, monkeypatch):
    """Preparation by name, data check, training, evaluation, export: `ser_ib.yaml` with SAVEE's overlay, tiny
    backbones."""
    folder, _ = files
    monkeypatch.chdir(tmp_path)
    savee_tree(tmp_path / "SAVEE")
    tiny = {
        "data_folder": str(tmp_path / "SAVEE"),
        "fold": "1",
        "recipes": {"SAVEE": {"num_workers": 1, "progress": False}},
        "encoder": {"source": str(folder / "backbones" / "encoder"), "revision": None, "architecture": None},
        "llm": {
            "source": str(folder / "backbones" / "llm"),
            "revision": None,
            "architecture": None,
            "dtype": "float32",
            "gradient_checkpointing": False,
        },
        "front_end": {"hidden_size": 16, "latent_size": 4, "adapter_size": 16},
        "joint_epochs": 1,
        "precision": "fp32",
        "eval_precision": "fp32",
        "num_workers": 0,
        "evaluation": {"max_new_tokens": 8, "check_batch": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    overlays = [str(toy.REPOSITORY / "hparams" / "corpora" / "savee.yaml"), str(tmp_path / "tiny.yaml")]
    hparams = _load(toy.REPOSITORY / "hparams" / "ser_ib.yaml", merge_overrides(overlays, ""))
    hparams["prepare"]()
    run_speech_llm(hparams, {"device": "cpu"})
    results = json.loads((tmp_path / "results" / "savee_ib" / "1986" / "1" / "results.json").read_text())
    metrics = results["metrics"]
    assert metrics["test.ser.own_chain.count"] == metrics["test.ser.speech.count"] == 14
    assert metrics["test.ser.own_chain.num_speakers"] == 1 and metrics["test.ser.own_chain.ua_low"] is None
    assert "test.sed.generated.pitch" in metrics and "test.asr.generated.wer" not in metrics
    check = json.loads((tmp_path / "results" / "savee_ib" / "data" / "1" / "data_check.json").read_text())
    assert check["num_of_split"] == {"train": 28, "valid": 14, "test": 14}
    model = EmotionExplainer.from_hparams(source=tmp_path / "results" / "savee_ib" / "1986" / "1")
    assert model.labels == ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
