"""Word-level synthesis from its YAML to speech: a toy of beeps, all stages of the real classes."""

import json

import pytest
import soundfile
import torch
import toy
import words_toy
from hyperpyyaml import load_hyperpyyaml

from speechbrain_emo.brains.speech_token_brain import SpeechTokenBrain
from speechbrain_emo.brains.speech_token_experiment import SpeechTokenExperiment, run_speech_token_lm
from speechbrain_emo.experiment import merge_overrides
from speechbrain_emo.inference import EmotionalTTS
from speechbrain_emo.lobes.flow import tiny_flow
from speechbrain_emo.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_emo.lobes.speech_tokenizer import SpeechTokenizer
from speechbrain_emo.lobes.vocoder import HiFT

pytestmark = pytest.mark.integration
OPTIONS = {"device": "cpu", "noprogressbar": True}
ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Manifests, a tokenizer, a speaker encoder, a flow and a vocoder with random weights."""
    folder = words_toy.build_words(
        tmp_path_factory.mktemp("film"), (("train", 20), ("valid", 4), ("test", 8)), encoder=False
    )
    torch.manual_seed(0)
    SpeechTokenizer(6, 16, 2, 24, 1, 1, [3, 3, 3]).save(folder / "speech_tokenizer")
    SpeakerEncoder([16, 16, 16, 16, 48], 8, 12).save(folder / "speaker_encoder")
    tiny_flow(vocab_size=27, speaker_size=12, num_emotions=4).save(folder / "flow")
    HiFT(num_mels=8, channels=16, f0_channels=8).save(folder / "vocoder")
    return folder


def hparams(folder, name="run", **changes):
    base = {
        "requires": [],
        "prepare": None,
        "data_folder": str(folder),
        "manifest_folder": str(folder),
        "output_folder": str(folder / name),
        "token_folder": str(folder / "tokens"),
        **{
            f"{part}_folder": str(folder / part)
            for part in ("speech_tokenizer", "speaker_encoder", "flow", "vocoder")
        },
        "manifests": {
            split: [str(folder / f"{kind}_{split}.json") for kind in ("single", "mixed")]
            for split in ("train", "valid", "test")
        },
        "text": {"vocab_size": 300},
        "lm": {"architecture": ARCHITECTURE},
        "classifier": {"size": 16, "epochs": 2},
        "num_evaluated": 6,
        "join": 0.5,
        "interleave": 0.5,
        "micro_batch_size": 5,
        "sampling": {"max_ratio": 4.0, "min_ratio": 1.0},
        **changes,
    }
    with open(toy.REPOSITORY / "hparams" / "demo_film.yaml", encoding="utf-8") as stream:
        loaded = load_hyperpyyaml(stream, merge_overrides([], base))
    phase = dict(loaded["phases"][0], epochs=2, batch_size=10)
    loaded["phases"] = [phase]
    return loaded


@pytest.fixture(scope="module")
def trained(folder):
    run_speech_token_lm(hparams(folder), OPTIONS)
    return folder


def test_a_run_ends_with_scores_pictures_and_a_model_that_speaks(trained):
    metrics = json.loads((trained / "run" / "results.json").read_text())["metrics"]
    for condition in ("recordings", "marked", "neutral"):
        assert 0 <= metrics[f"test.tokens.{condition}.word_accuracy"] <= 1
    assert 0 <= metrics["test.tokens.marked.eos"] <= 1 and metrics["test.tokens.prompt"] == "none"
    assert metrics["test.film.gamma_deviation"] > 0
    for name in ("film.png", "confusion_tokens.png", "training.png", "train_log.jsonl", "done.json"):
        assert (trained / "run" / name).stat().st_size > 100, name
    tts = EmotionalTTS.from_hparams(trained / "run")
    voice = trained / "voice.wav"
    soundfile.write(
        voice, words_toy.utterance(__import__("numpy").random.default_rng(0), ["happy"] * 8)[0], 16000
    )
    marked = "w w <emotion type='sad' intensity='high'>w w</emotion>"
    speech = tts.speak(marked, voice, "w w", aligner=None)
    assert len(speech.samples) == 960 * len(speech.tokens) > 0
    # The flow knows emotions too, whole and in a stream.
    stream = tts.stream(marked, voice, "w w")
    chunks = []
    with pytest.raises(StopIteration) as end:
        while True:
            chunks.append(next(stream))
    assert end.value.value.tokens == speech.tokens
    card = (trained / "run" / "model" / "README.md").read_text()
    assert "consent" in card and "synthetic" in card


def test_a_finished_run_is_kept_and_other_settings_are_refused(trained):
    before = (trained / "run" / "results.json").stat().st_mtime_ns
    run_speech_token_lm(hparams(trained), OPTIONS)
    assert (trained / "run" / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        run_speech_token_lm(hparams(trained, emotion_weight=0.7), OPTIONS)


def test_an_interrupted_training_ends_with_the_same_weights(trained, monkeypatch):
    whole = SpeechTokenExperiment(hparams(trained, "whole"), OPTIONS)
    whole.train()
    original, calls = SpeechTokenBrain.fit_batch, [0]

    def cut(self, batch):
        calls[0] += 1
        if calls[0] == 6:  # In the second epoch of four steps.
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(SpeechTokenBrain, "fit_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        SpeechTokenExperiment(hparams(trained, "cut"), OPTIONS).train()
    monkeypatch.setattr(SpeechTokenBrain, "fit_batch", original)
    resumed = SpeechTokenExperiment(hparams(trained, "cut"), OPTIONS)
    resumed.train()
    for (name, a), b in zip(whole.lm.state_dict().items(), resumed.lm.state_dict().values()):
        assert torch.equal(a, b), name
    assert [
        json.loads(x)["epoch"] for x in (trained / "cut" / "train_log.jsonl").read_text().splitlines()
    ] == [1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"supervision": "predicted"},
        {"supervision": "text", "film_mode": "addition"},
        {"supervision": "none", "film_mode": "none"},
        {"intensity": "continuous", "label_noise": {"wrong": 0.3, "shift": 0.08}, "label_smoothing": 0.1},
    ],
    ids=["predicted", "text and addition", "nothing", "continuous and noise"],
)
def test_every_ablation_trains(trained, changes):
    experiment = SpeechTokenExperiment(
        hparams(trained, "_".join(str(v) for v in changes.values() if isinstance(v, str)), **changes), OPTIONS
    )
    experiment.train()
    losses = [line["valid"]["loss"] for line in experiment.brain.progress["history"]]
    assert len(losses) == 2 and losses[1] < losses[0]
    emotion = "emotion_loss" in experiment.brain.progress["history"][0]["valid"]
    assert emotion == (changes.get("supervision") != "none")


def test_what_trains_stands_in_the_phase(trained):
    """The paper's: emotion encoder, modulation and head; all else keeps its bits."""
    loaded = hparams(trained, "frozen")
    loaded["phases"] = [dict(loaded["phases"][0], train=["film", "head", "emotion_head"])]
    experiment = SpeechTokenExperiment(loaded, OPTIONS)
    before = {k: v.clone() for k, v in experiment.objective.state_dict().items()}
    experiment.train()
    moved = {k for k, v in experiment.objective.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(("lm.film.", "lm.llm_decoder.", "emotion_head.")) for k in moved)


def test_a_group_trains_at_its_own_rate(trained):
    experiment = SpeechTokenExperiment(hparams(trained, "rates", lr_scales={"film": 0.0}), OPTIONS)
    before = {name: value.clone() for name, value in experiment.lm.state_dict().items()}
    experiment.train()
    moved = {
        name for name, value in experiment.lm.state_dict().items() if not torch.equal(value, before[name])
    }
    assert "speech_embedding.weight" in moved and not [name for name in moved if name.startswith("film.")]
    misspelt = SpeechTokenExperiment(hparams(trained, "misspelt", lr_scales={"fim": 0.1}), OPTIONS)
    with pytest.raises(ValueError, match="lr_scales names the groups .'fim'."):
        misspelt.train()


def test_labels_of_an_annotator_train_and_the_judge_stays_the_same(trained):
    annotated, agree, total = [], 0, 0
    for kind in ("single", "mixed"):
        records = json.loads((trained / f"{kind}_train.json").read_text())
        for record in records.values():
            for number, word in enumerate(record["words"]):
                true = words_toy.LABEL_MAP[word.get("emotion", record["emotion"])]
                heard = true if number % 2 else "sad"
                word["annotated"] = {"emotion": heard, "intensity": "high", "intensity_value": 0.9}
                agree, total = agree + (heard == true), total + 1
        annotated.append(str(trained / f"{kind}_train_annotated.json"))
        (trained / f"{kind}_train_annotated.json").write_text(json.dumps(records))
    manifests = {
        "train": annotated,
        **{s: [str(trained / f"{k}_{s}.json") for k in ("single", "mixed")] for s in ("valid", "test")},
    }
    judges = sorted(path.name for path in (trained / "tokens").glob("judge_*"))
    experiment = SpeechTokenExperiment(
        hparams(trained, "annotated", word_labels="annotated", manifests=manifests), OPTIONS
    )
    # Of tokens, not of words: longer words count more.
    assert abs(experiment.label_agreement - agree / total) < 0.15 < experiment.label_agreement < 1
    assert len(judges) == 1 and judges == sorted(p.name for p in (trained / "tokens").glob("judge_*"))
    noisy = SpeechTokenExperiment(
        hparams(trained, "noisy", label_noise={"wrong": 0.3, "shift": 0.0}), OPTIONS
    )
    assert 0.5 < noisy.label_agreement < 0.9
    assert SpeechTokenExperiment(hparams(trained, "clean"), OPTIONS).label_agreement is None
    # Other recordings: another judge, beside the first one.
    fewer = [str(trained / "single_train.json")]
    SpeechTokenExperiment(
        hparams(trained, "fewer", manifests={**manifests, "train": fewer}, judge_manifests=fewer), OPTIONS
    )
    assert set(judges) < {path.name for path in (trained / "tokens").glob("judge_*")}
    with pytest.raises(ValueError, match="allowed: own, annotated"):
        SpeechTokenExperiment(hparams(trained, "x", word_labels="mine"), OPTIONS)
