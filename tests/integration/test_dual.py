"""The dual-information system end to end at toy size: stages, freezing by step, resume, evaluation."""

import copy
import json

import pytest
import speechbrain as sb
import torch
import toy_dual

from speechbrain_emo.brains.speech_llm_experiment import SpeechLLMExperiment, run_speech_llm

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dual")
    return folder, toy_dual.build(folder)


def experiment(files, name, **changes):
    """An experiment with its cache filled."""
    folder, overlay = files
    made = SpeechLLMExperiment(
        toy_dual.hparams(overlay, output_folder=str(folder / name), **changes), {"device": "cpu"}
    )
    made.fill_cache()
    made.add_targets()
    return made


def enter(run, phase):
    """Plan the first epoch of a phase, without training the ones before."""
    run.brain.nonfinite_count = 0
    epoch = run.schedule.first_epoch(f"1.{phase}")
    run.brain.position = run.schedule.at(epoch)
    run.brain._enter(run.brain.position)
    run.brain.progress["steps_of_phase"] = None
    run.brain.on_stage_start(sb.Stage.TRAIN, epoch)
    run.brain.modules.train()


def state(module):
    return {n: v.detach().clone() for n, v in module.state_dict().items()}


def same(module, before):
    now = module.state_dict()
    return all(torch.equal(now[n], v) for n, v in before.items())


@pytest.fixture(scope="module")
def finished(files):
    """A run of all stages through the same function as train.py, with its evaluation."""
    folder, overlay = files
    hparams = toy_dual.hparams(overlay)
    run_speech_llm(hparams, {"device": "cpu"})
    return folder / "run"


def test_in_stage_2_each_step_moves_its_own_adapter_only(files):
    """Momentum and weight decay included: the other adapter is bit-identical across each single step."""
    run = experiment(files, "steps", stage2_epochs=3)
    enter(run, "stage2")
    front, seen = run.model.front_end, set()
    frozen = [state(run.llm), state(run.encoder)]
    for plan in run.brain.sampler.plans:
        batch = run.data["train"][plan]
        (task,) = {t for micro in batch for t in micro.tasks}
        moves, stays = (
            (front.linguistic, front.paralinguistic)
            if task == "asr"
            else (front.paralinguistic, front.linguistic)
        )
        before, still = state(moves), state(stays)
        run.brain.fit_batch(batch)
        assert same(stays, still), task
        assert not same(moves, before), task
        seen.add(task)
    assert "asr" in seen and len(seen) > 3
    assert same(run.llm, frozen[0]) and same(run.encoder, frozen[1])
    counts = {k[8:] for k in run.brain._sums if k.startswith("sources/")}
    assert {
        "asr: linguistic=speech,paralinguistic=text",
        "asr: linguistic=speech,paralinguistic=nothing",
    } <= counts
    assert not any("asr: linguistic=text" in c or "asr: linguistic=nothing" in c for c in counts)


def test_frozen_means_frozen_after_all_stages(finished, files):
    folder, overlay = files
    hparams = toy_dual.hparams(overlay)
    encoder, llm = hparams["encoder"](), hparams["llm"]()
    run = SpeechLLMExperiment({**hparams, "output_folder": str(folder / "again")}, {"device": "cpu"})
    run.brain.load_best("1.stage3")
    assert same(run.llm, state(llm)) and same(run.encoder, state(encoder))
    first = {n: p for n, p in run.model.front_end.named_parameters()}
    trained = copy.deepcopy({n: p.detach() for n, p in first.items()})
    run.brain.load_best("1.stage1")
    assert any(not torch.equal(first[n], p) for n, p in trained.items())
    saved = [p for p in (finished / "save").glob("CKPT+*/llm.ckpt/*")]
    assert not saved, "a frozen language model has nothing to save"


def test_the_log_counts_every_combination_of_sources(finished):
    lines = [json.loads(x) for x in (finished / "train_log.jsonl").read_text().splitlines()]
    by_phase = {line["phase"]: line["train"]["sources"] for line in lines}
    assert all(k.endswith("linguistic=speech,paralinguistic=speech") for k in by_phase["1.stage1"])
    assert sum(by_phase["1.stage2"].values()) == 24
    assert any("=nothing" in k for k in by_phase["1.stage2"])
    assert any(k.startswith("dialogue: ") for k in by_phase["1.stage3"])


def test_an_interrupted_run_goes_on_exactly(finished, files, monkeypatch):
    """Stopped in the middle of stage 2 and started again: wordings, lists, sources and dropout are the same."""
    folder, overlay = files
    changes = {"output_folder": str(folder / "stopped"), "evaluation": None}
    calls = {"steps": 0}
    from speechbrain_emo.brains.speech_llm_brain import SpeechLLMBrain

    plain = SpeechLLMBrain.fit_batch

    def stopping(self, batch):
        calls["steps"] += 1
        if self.position.phase.name == "stage2" and self.progress["phase_step"] == 2:
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(SpeechLLMBrain, "fit_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_speech_llm(toy_dual.hparams(overlay, **changes), {"device": "cpu"})
    monkeypatch.setattr(SpeechLLMBrain, "fit_batch", plain)
    run_speech_llm(toy_dual.hparams(overlay, **changes), {"device": "cpu"})
    logs = [
        [json.loads(x) for x in (path / "train_log.jsonl").read_text().splitlines()]
        for path in (finished, folder / "stopped")
    ]
    for one, two in zip(*logs, strict=True):
        assert one["valid"]["loss"] == two["valid"]["loss"]
        if one["phase"] != "1.stage2":  # The log of an epoch that was stopped counts its second part only.
            assert one["train"]["sources"] == two["train"]["sources"]
    from safetensors.torch import load_file

    weights = []
    for path in (finished, folder / "stopped"):
        last = max((path / "save").glob("CKPT+*"), key=lambda p: p.stat().st_mtime)
        weights.append(load_file(last / "front_end.ckpt"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_evaluation_has_every_row_of_the_issue(finished):
    content = json.loads((finished / "results.json").read_text())
    metrics = content["metrics"]
    for phase in ("stage1", "stage3"):
        for condition in ("both", "p_only", "l_only", "neither"):
            for task in ("pitch", "emotion"):
                for metric in ("accuracy", "likelihood_accuracy", "unmatched"):
                    assert 0 <= metrics[f"test.{task}.{condition}@{phase}.{metric}"] <= 1
            assert metrics[f"test.asr.{condition}@{phase}.wer"] >= 0
        assert 0 <= metrics[f"test.pitch.both_held_out_prompt@{phase}.accuracy"] <= 1
        assert 0 <= metrics[f"test.pitch.both_held_out_list@{phase}.accuracy"] <= 1
        assert metrics[f"test.dialogue.both@{phase}.kl"] >= 0
        for metric in ("agreement", "template_overlap", "changes_with_style", "changes_with_context"):
            assert 0 <= metrics[f"test.dialogue.both@{phase}.{metric}"] <= 1
        assert f"test.dialogue.both@{phase}.agreement_context_2" in metrics
    assert metrics["test.dialogue.text.changes_with_style"] is not None
    assert 0 < content["trainable_share"] < 1
    assert set(content["trainable_parameters"]) == {"front_end.linguistic", "front_end.paralinguistic"}
    responses = [json.loads(x) for x in (finished / "responses.jsonl").read_text().splitlines()]
    assert len(responses) == 8 and {"id", "response", "turns"} <= set(responses[0])


def test_neither_depends_on_the_speech_and_text_on_the_record_only(finished, files):
    """Without slots the answer is the prior; a row of another record cannot reach it."""
    lines = [json.loads(x) for x in (finished / "answers.jsonl").read_text().splitlines()]
    prior = {}
    for line in lines:
        if line["task"] == "asr" and line["condition"].startswith("neither"):
            prior.setdefault((line["id"], line["condition"].split("@")[0]), set()).add(line["answer"])
    assert prior and all(len(answers) == 1 for answers in prior.values())


def test_targets_are_the_frozen_model_s_own_and_are_kept(finished, files):
    lines = [json.loads(x) for x in (finished / "targets.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    run = experiment(files, "run")
    assert len((finished / "targets.jsonl").read_text().splitlines()) == 30, "nothing was asked again"
    by_id = {line["id"]: line for line in lines}
    for record in run.data["train"].records.records:
        line = by_id[f"train/{record['id']}"]
        usable = bool(line["response"])  # The toy keeps answers that were cut off.
        assert record.get("target") == (line["response"] if usable else None)
        assert run.tasks["dialogue"].applies(record) == usable


def test_the_exported_model_talks(finished):
    from speechbrain_emo.inference import EmotionalChat

    chat = EmotionalChat.from_hparams(source=str(finished))
    reply = chat.say(str(next((finished.parent / "corpus" / "wav").glob("test0_*.wav"))))
    assert reply is not None


def test_single_adapter_runs_all_stages(files):
    folder, overlay = files
    trains = ["front_end.linguistic"]
    run = experiment(
        files,
        "single",
        front_end={"adapters": "single", "hidden_size": 16},
        both_train=trains,
        linguistic_trains=trains,
        paralinguistic_trains=trains,
    )
    enter(run, "stage1")
    before = state(run.model.front_end)
    run.brain.fit_batch(run.data["train"][run.brain.sampler.plans[0]])
    assert not same(run.model.front_end, before)
