"""Phases: learning rates and beta against closed forms, the schedule, slot sources, refused values."""

import math
import random
from collections import Counter

import pytest

from speechbrain_emo.phases import Phase, PhaseSchedule, draw_slot_sources

BASE = {"name": "p", "train": ["llm.lora"], "tasks": {"asr": 1.0}, "epochs": 2, "lr": 0.1}


def phase(**changes):
    return Phase.from_mapping({**BASE, **changes})


def test_cosine_with_warm_up_matches_its_formula():
    p = phase(warmup=0.2, decay="cosine", final_lr_share=0.1)
    for step in range(50):
        if step < 10:
            expected = 0.1 * (step + 1) / 10
        else:
            expected = 0.1 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 40)))
        assert p.lr_at(step, 50) == pytest.approx(expected)


def test_beta_is_log_linear_and_constant_when_both_are_equal():
    p = phase(beta={"start": 1.0, "end": 1e-4})
    betas = [p.beta_at(s, 9) for s in range(9)]
    ratios = [b / a for a, b in zip(betas, betas[1:])]
    assert betas[0] == 1.0 and betas[-1] == pytest.approx(1e-4)
    assert max(ratios) == pytest.approx(min(ratios))
    assert {phase(beta=0.01).beta_at(s, 9) for s in range(9)} == {0.01}


def test_schedule_covers_cycles_in_order():
    s = PhaseSchedule([{**BASE, "name": "a", "epochs": 1}, {**BASE, "name": "b"}], cycles=2)
    assert s.keys == ["1.a", "1.b", "2.a", "2.b"]
    assert [s.at(e).last for e in range(1, s.num_epochs + 1)] == [True, False, True, True, False, True]
    assert [s.first_epoch(k) for k in s.keys] == [1, 2, 4, 5]


def test_slot_sources_follow_their_probabilities():
    p = phase(slot_sources={"a": {"speech": 0.5, "text": 0.3, "nothing": 0.2}})
    drawn = Counter(draw_slot_sources(p, ["a"], random.Random(i))["a"] for i in range(4000))
    for source, probability in (("speech", 0.5), ("text", 0.3), ("nothing", 0.2)):
        # Four standard errors.
        assert abs(drawn[source] / 4000 - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks": {}}, "at least one task"),
        ({"epochs": 0}, "epochs is 0"),
        ({"decay": "step"}, "constant, linear, cosine"),
        ({"beta": {"start": 1.0, "end": 0.0}}, "both 0 or both positive"),
        ({"slot_sources": {"a": {"speech": 0.5}}}, "sum to 1"),
        ({"slot_sources": {"a": {"voice": 1.0}}}, "probabilities of speech, text, nothing"),
        ({"train_by_task": {"asr": ["llm.lora"]}}, "with step_by_task"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        phase(**changes)


def test_unknown_key_is_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        phase(learning_rate=1.0)
    with pytest.raises(ValueError, match="no key 'train'"):
        Phase.from_mapping({k: v for k, v in BASE.items() if k != "train"})
