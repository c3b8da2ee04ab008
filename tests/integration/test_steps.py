"""Single optimiser steps of the real experiment: freezing by task, slot sources, accumulation."""

import pytest
import speechbrain as sb
import torch
import toy
import yaml

from speechbrain_emo.brains.speech_llm_experiment import SpeechLLMExperiment, plain_hparams
from speechbrain_emo.experiment import _load, merge_overrides

pytestmark = pytest.mark.integration

PHASE = {
    "name": "err",
    "train": ["llm.lora"],
    "tasks": {"asr": 0.5, "ser": 0.5},
    "step_by_task": True,
    "train_by_task": {"asr": ["front_end.content"], "ser": ["front_end.descriptor"]},
    "slot_sources": {"content": {"speech": 0.4, "text": 0.3, "nothing": 0.3}},
    "epochs": 1,
    "lr": 1.0e-2,
    "batch_size": 4,
    "warmup": 0.0,
    "weight_decay": 0.1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    return folder, toy.build(folder)


def experiment(files, name, **changes):
    """An experiment with its cache filled, ready to train."""
    folder, overlay = files
    overrides = yaml.safe_dump({"output_folder": str(folder / name), **changes})
    hparams = _load(toy.REPOSITORY / "hparams" / "demo_ib.yaml", merge_overrides([overlay], overrides))
    made = SpeechLLMExperiment(hparams, {"device": "cpu"})
    made.fill_cache()
    made.brain.on_fit_start()
    made.brain.on_stage_start(sb.Stage.TRAIN, 1)
    made.brain.modules.train()
    return made


def state(model, part):
    return {n: p.detach().clone() for n, p in model.named_parameters() if part in n}


def changed(model, before):
    now = dict(model.named_parameters())
    return any(not torch.equal(now[n], p) for n, p in before.items())


def test_only_the_branch_of_the_step_s_task_moves(files):
    """Momentum and weight decay included: the other branch is bit-identical across each single step."""
    run = experiment(files, "by_task", phases=[PHASE], cycles=1)
    seen = set()
    run.brain.nonfinite_count = 0
    for plan in run.brain.sampler.plans:
        batch = run.data["train"][plan]
        (task,) = {t for micro in batch for t in micro.tasks}
        branches = {"asr": ".content.", "ser": ".descriptor."}
        still = state(run.model, branches["ser" if task == "asr" else "asr"])
        moving = state(run.model, branches[task])
        used = any(branches[task].strip(".") in micro.speech_kinds for micro in batch)
        run.brain.fit_batch(batch)
        assert not changed(run.model, still)
        assert changed(run.model, moving) or not used
        seen.add(task)
    assert seen == {"asr", "ser"}
    counts = {k: v for k, v in run.brain._sums.items() if k.startswith("sources/")}
    assert sum(counts.values()) == 24 and len(counts) >= 4


def test_micro_batches_do_not_change_the_step(files):
    """One micro-batch of 8 rows, or rows one by one: the same weights after two optimiser steps."""
    phase = {"name": "asr", "train": ["front_end.content", "llm.lora"], "tasks": {"asr": 1.0}, "epochs": 1}
    phase.update(lr=1.0e-3, batch_size=8, beta={"start": 1.0e-2, "end": 1.0e-2})
    found = []
    for name, rows in (("whole", 64), ("single", 1)):
        limits = {"max_positions": 100000, "max_frames": 100000, "max_rows": rows}
        run = experiment(files, name, phases=[phase], cycles=1, limits=limits)
        run.brain.nonfinite_count = 0
        for plan in run.brain.sampler.plans[:2]:
            batch = run.data["train"][plan]
            assert (len(batch) == 1) == (rows == 64)
            run.brain.fit_batch(batch)
        found.append({n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad})
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=2e-5), name


def test_unknown_phase_group_is_refused_before_training(files):
    phase = {**PHASE, "train": ["front_end.voice"]}
    with pytest.raises(ValueError, match="unknown groups"):
        experiment(files, "wrong", phases=[phase], cycles=1)


def test_a_front_end_may_have_no_argument_in_the_yaml(files):
    """`!name:Class {}` is the class itself, not a partial of it."""
    folder, overlay = files
    hparams = _load(toy.REPOSITORY / "hparams" / "demo_ib.yaml", merge_overrides([overlay], ""))
    build = hparams["front_end"].func
    changes = {"front_end": build, "output_folder": str(folder / "bare")}
    run = SpeechLLMExperiment({**hparams, **changes}, {"device": "cpu"})
    assert type(run.model.front_end) is build and run.front_end_arguments["output_scale"] > 0
    assert plain_hparams({"front_end": build}) == {"front_end": {"VIBFrontEnd": {}}}
