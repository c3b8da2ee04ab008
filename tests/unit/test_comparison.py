"""The comparison of overlays: what is planned, run again and run not again, and what the table says."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from speechbrain_emo import cli, comparison
from speechbrain_emo.comparison import (
    Run,
    SystemPredictions,
    compare_systems,
    execute,
    plan_runs,
    read_system,
)
from speechbrain_emo.results import format_table, run_context, write_predictions, write_results

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = ["angry", "happy", "sad"]


def system(name, skill, seeds=(1, 2, 3), count=300, speakers=12, wobble=0.0):
    """Predictions that are right with a chance of ``skill``, other ones for each seed."""
    truth = np.random.default_rng(0).integers(0, 3, count)
    by_seed = {}
    for seed in seeds:
        rng = np.random.default_rng([seed, round(1000 * skill), len(name)])
        chance = skill + wobble * (seed - 2)
        answers = np.where(rng.random(count) < chance, truth, rng.integers(0, 3, count))
        by_seed[seed] = {
            str(i): (LABELS[truth[i]], LABELS[answers[i]], f"s{i % speakers}") for i in range(count)
        }
    return SystemPredictions(name, "own_chain", LABELS, by_seed)


def test_verdicts():
    base = system("base", 0.6)
    rows = {
        r["system"]: r
        for r in compare_systems([base, system("good", 0.9), system("bad", 0.2), system("same", 0.6)])
    }
    assert rows["good"]["verdict"] == "better" and rows["good"]["95 % of Δ"][0] > 0
    assert rows["bad"]["verdict"] == "worse" and rows["bad"]["p (McNemar)"] < 0.001
    assert rows["same"]["verdict"].startswith("tie")
    assert rows["good"]["Δ UA"] == pytest.approx(rows["good"]["UA"]["mean"] - rows["base"]["UA"]["mean"])
    assert "Δ UA" not in rows["base"] and rows["base"]["seeds"] == 3


def test_a_difference_within_the_spread_over_seeds_is_a_tie_whatever_p_says():
    rows = compare_systems(
        [system("base", 0.6, wobble=0.25, count=3000), system("other", 0.7, wobble=0.25, count=3000)]
    )
    assert rows[1]["p (bootstrap over speakers)"] < 0.05
    assert rows[1]["verdict"] == "tie: within the spread over seeds"


def test_one_seed_is_said():
    rows = compare_systems([system("base", 0.6, (1,)), system("good", 0.9, (1,)), system("same", 0.6, (1,))])
    assert rows[1]["verdict"] == "better, spread over seeds unknown"
    assert rows[2]["verdict"] == "no difference shown (one seed)"
    assert rows[1]["UA"]["std"] is None


def test_other_utterances_are_no_pair():
    with pytest.raises(
        ValueError, match="other was not tested on what base was .seed 1: 2 utterances differ"
    ):
        compare_systems([system("base", 0.5, (1,), 300), system("other", 0.5, (1,), 302)])
    with pytest.raises(ValueError, match="have no seed in common"):
        compare_systems([system("base", 0.5, (1,)), system("other", 0.5, (2,))])


def test_the_table_in_latex():
    rows = compare_systems([system("base_one", 0.6), system("50 % & more", 0.9)])
    table = format_table(rows, style="latex")
    lines = table.splitlines()
    assert lines[0].startswith(r"\begin{tabular}{ll") and lines[-1] == r"\end{tabular}"
    assert (
        r"base\_one" in table and r"50 \% \& more" in table and r"$\Delta$ UA" in table and r"$\pm$" in table
    )
    # Every row has as many cells as there are columns.
    assert {len(line.replace(r"\&", "").split("&")) for line in lines if line.endswith(r"\\")} == {
        len(lines[0].split("{")[2]) - 1
    }


# -- plans and runs ----------------------------------------------------------------------------------------

OVERLAY = REPOSITORY / "hparams" / "overlays"


def test_plans_share_everything_but_results(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    systems = {"base": [], "no_bottleneck": [str(OVERLAY / "no_bottleneck.yaml")]}
    runs = plan_runs("hparams/emodb_ib.yaml", systems, [1, 2], None, ["--data_folder=X"])
    assert [(r.system, r.seed) for r in runs] == [
        ("base", 1),
        ("base", 2),
        ("no_bottleneck", 1),
        ("no_bottleneck", 2),
    ]
    assert runs[0].folders["03"] == Path("results/emodb_ib/1/03") and len(runs[0].folders) == 10
    assert runs[3].folders["16"] == Path("results/emodb_ib_no_bottleneck/2/16")
    assert not any("experiment=" in a for a in runs[3].arguments), (
        "manifests and features belong to the experiment"
    )
    # What train.py makes of these arguments is what the plan says.
    import speechbrain as sb

    from speechbrain_emo.experiment import _take_overlays, merge_overrides, peek

    arguments, overlays = _take_overlays([*runs[3].arguments, "--fold=08"])
    file, _, overrides = sb.parse_arguments(arguments)
    plain = peek(file, merge_overrides(overlays, overrides))
    assert plain["output_folder"] == "results/emodb_ib_no_bottleneck/2/8" or plain["output_folder"].endswith(
        "/08"
    )
    assert plain["manifest_folder"].startswith("results/emodb_ib/data")
    some = plan_runs("hparams/emodb_ib.yaml", systems, [1], ["08"], ["--data_folder=X"])
    assert list(some[1].folders) == ["08"]
    with pytest.raises(ValueError, match="folds .'99'. are none of 03, 08"):
        plan_runs("hparams/emodb_ib.yaml", systems, [1], ["99"], ["--data_folder=X"])
    demo = plan_runs("hparams/demo_ib.yaml", systems, [1986])
    assert demo[0].folders == {"": Path("results/demo_ib/1986")}
    assert demo[1].folders == {"": Path("results/demo_ib_no_bottleneck/1986")}


def write_run(run, skill, split="test"):
    """What a finished run leaves."""
    for fold, folder in run.folders.items():
        rng = np.random.default_rng([run.seed, len(run.system), sum(map(ord, fold))])
        lines = []
        for i in range(60):
            emotion = LABELS[i % 3]
            scores = {x: float(rng.normal() + (skill if x == emotion else 0)) for x in LABELS}
            lines.append(
                {
                    "id": f"{fold}{i}",
                    "speaker": f"{fold}{i % 4}",
                    "emotion": emotion,
                    "scores": {"speech": scores},
                }
            )
        write_predictions(folder, lines)
        write_predictions(folder / "valid_predictions.jsonl", lines)
        write_results(folder, {}, run_context(seed=run.seed, evaluation={"labels": LABELS}))
        (folder / "done.json").write_text("{}")


def test_what_is_done_is_not_run_again_and_failures_do_not_stop(tmp_path, monkeypatch):
    runs = [
        Run("base", 1, ("x.yaml", "--seed=1"), {"": tmp_path / "base"}),
        Run("bad", 1, ("x.yaml", "--seed=1", "--overlay=bad"), {"": tmp_path / "bad"}),
        Run("good", 1, ("x.yaml", "--seed=1", "--overlay=good"), {"": tmp_path / "good"}),
    ]
    write_run(runs[0], 2.0)
    called = []

    class Done:
        def __init__(self, command):
            called.append(command[-1])
            self.returncode = 2 if command[-1].endswith("bad") else 0

    monkeypatch.setattr(comparison.subprocess, "run", lambda command, check: Done(command))
    lines = []
    assert execute(runs, log=lines.append) == {"bad, seed 1": 2}
    assert called == ["--overlay=bad", "--overlay=good"]
    # A YAML that is newer than the run: train.py is asked whether its settings are others.
    (tmp_path / "x.yaml").write_text("seed: 1")
    os.utime(tmp_path / "base" / "done.json", (1, 1))
    changed = Run("base", 1, (str(tmp_path / "x.yaml"), "--seed=1"), runs[0].folders)
    assert execute([changed], log=lambda line: None) == {} and called[-1] == "--seed=1"
    assert lines[0] == "[1/3] base, seed 1: done before" and "[2/3] bad, seed 1: exit status 2" in lines


def test_validation_predictions_of_folds_do_not_collide(tmp_path):
    run = Run("base", 1, (), {f: tmp_path / f for f in ("a", "b")})
    write_run(run, 2.0)
    read = read_system("base", [run])
    assert read.condition == "speech" and len(read.by_seed[1]) == 120
    for folder in run.folders.values():
        lines = [json.loads(x) for x in (folder / "valid_predictions.jsonl").read_text().splitlines()]
        for number, line in enumerate(lines):
            line["id"] = str(number)
        write_predictions(folder / "valid_predictions.jsonl", lines)
    assert len(read_system("base", [run], "valid").by_seed[1]) == 120
    with pytest.raises(ValueError, match="no scores of 'own_chain'; there are speech"):
        read_system("base", [run], condition="own_chain")


def write_next_line_run(run, skill, conditions):
    """What a finished run of ``evaluation.kind: next_line`` leaves."""
    row = {"phase": "stage2_2", "task": "next", "conditions": conditions}
    settings = {"evaluation": {"kind": "next_line", "prediction": [row]}}
    rng = np.random.default_rng(len(run.system))
    lines = []
    for i in range(120):
        truth = LABELS[i % 3]
        answers = {
            **{c: truth if rng.random() < skill else LABELS[(i + 1) % 3] for c in conditions},
            "majority": LABELS[0],
            "gru": truth if rng.random() < 0.5 else LABELS[0],
        }
        if skill < 0.5 and i == 0:
            answers[conditions[0]] = "disgust"  # No line of the test has it.
        for condition, answer in answers.items():
            phase = {"majority": None, "gru": "stage1_2"}.get(condition, "stage2_2")
            line = {"id": f"t_{i // 6}_{i % 6}", "task": "next", "condition": condition, "phase": phase}
            lines.append({**line, "scored": f"weak {answer}", "truth": f"strong {truth}"})
    # Another task and another part of the same file do not belong to the comparison.
    lines.append({**lines[0], "task": "emotion", "id": "other"})
    lines.append({**lines[0], "split": "meld", "id": "meld_1_1"})
    key = f"test.next.{conditions[0]}@stage2_2"
    metrics = {f"{key}.scored_emotion_wa": 0.5, f"{key}.latency": 0.25}
    metrics.update({"test.next.gru@stage1_2.own_parameters": 9000, "test.next.gru@stage1_2.latency": 0.125})
    (folder,) = run.folders.values()
    context = run_context(
        seed=run.seed, evaluation=settings, trainable_parameters={"llm.lora.text": 5000}, train_seconds=7.0
    )
    write_results(folder, metrics, context)
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "done.json").write_text("{}")


def test_runs_about_next_lines_are_compared_by_emotion_with_their_baselines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hparams").symlink_to(REPOSITORY / "hparams")
    common = ["compare", "hparams/demo_jelly.yaml", "--overlays", "text_only_history", "--table_only"]
    systems = {"base": [], "text_only_history": ["hparams/overlays/text_only_history.yaml"]}
    base, other = plan_runs("hparams/demo_jelly.yaml", systems)
    write_next_line_run(base, 0.9, ["speech", "gold"])
    write_next_line_run(other, 0.3, ["nothing"])
    assert base.is_done() and not base.is_done("valid")
    assert cli.main([*common, "--json"]) == 0
    rows = {r["system"]: r for r in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == ["base", "text_only_history", "majority label", "GRU, no language model"]
    assert rows["base"]["label"] == "label|speech" and rows["text_only_history"]["label"] == "label|nothing"
    assert rows["text_only_history"]["verdict"].startswith("worse")
    assert rows["majority label"]["WA"]["mean"] == pytest.approx(1 / 3)
    assert rows["base"]["one line (s)"] == 0.25 and rows["base"]["trainable (thousands)"] == 5
    assert rows["GRU, no language model"]["trainable (thousands)"] == 9
    assert rows["GRU, no language model"]["one line (s)"] == 0.125
    # 20 conversations of 6 lines: what is drawn anew are conversations.
    (read,) = [read_system("base", [base])]
    assert len(read.by_seed[1986]) == 120 and len({line[2] for line in read.by_seed[1986].values()}) == 20
    with pytest.raises(
        ValueError, match="no answers of 'speech_only'; there are gold, gru, majority, speech"
    ):
        read_system("base", [base], condition="speech_only")
    assert cli.main(["table", str(next(iter(base.folders.values())))]) == 0
    assert "| next.speech" in capsys.readouterr().out


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    common = [
        "compare",
        "hparams/demo_ib.yaml",
        "--overlays",
        "no_bottleneck,joint_branches",
        "--seeds",
        "1,2",
    ]
    assert cli.main([*common, "--plan"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert len(plan) == 6 and "--overlay=hparams/overlays/no_bottleneck.yaml" in plan[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hparams").symlink_to(REPOSITORY / "hparams")
    assert (
        cli.main([*common, "--table_only"]) == 2 and "itself has no finished run" in capsys.readouterr().err
    )
    systems = {"base": [], "no_bottleneck": ["hparams/overlays/no_bottleneck.yaml"]}
    for run in plan_runs("hparams/demo_ib.yaml", systems, [1, 2]):
        write_run(run, 1.5)
    # One of the two overlays is there: it is compared, the other is named.
    assert cli.main([*common, "--table_only"]) == 1
    captured = capsys.readouterr()
    assert "| no_bottleneck" in captured.out and "joint_branches, seed 1" in captured.err
    written = tmp_path / "results" / "comparison" / "demo_ib"
    assert {p.name for p in written.iterdir()} == {"comparison.md", "comparison.tex", "comparison.json"}
    content = json.loads((written / "comparison.json").read_text())
    assert (
        "compare hparams/demo_ib.yaml --overlays no_bottleneck,joint_branches --seeds 1,2"
        in content["command"]
    )
    for wrong, says in (
        (["compare", "none.yaml", "--overlays", "x"], "no such file"),
        (["compare", "hparams/demo_ib.yaml", "--overlays", "x"], "overlay 'x': neither a file nor a name"),
        ([*common, "--no-equals"], "further arguments are --key=value"),
    ):
        assert cli.main(wrong) == 2 and says in capsys.readouterr().err
