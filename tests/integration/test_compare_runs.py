"""The comparison as a user runs it: two trainings in processes of their own, a table, and nothing to do the second
time."""

import json

import pytest
import toy
import yaml

from speechbrain_emo import cli, comparison

pytestmark = pytest.mark.integration


def test_an_overlay_is_trained_and_compared(tmp_path, monkeypatch, capsys):
    overlay = yaml.safe_load(toy.build(tmp_path).read_text())
    phase = {**overlay["phases"][1], "epochs": 1, "tasks": {"ser": 1.0}}
    overlay.update(cycles=1, phases=[phase], experiment="tiny")
    overlay["evaluation"] = {"max_new_tokens": 4, "check_batch": 1, "interventions": 0, "baselines": []}
    overlay.pop("output_folder")
    overrides = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in overlay.items()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(toy.REPOSITORY))
    (tmp_path / "hparams").symlink_to(toy.REPOSITORY / "hparams")
    command = ["compare", "hparams/demo_ib.yaml", "--overlays", "no_bottleneck", "--seeds", "7", *overrides]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert "| base" in captured.out and "| no_bottleneck" in captured.out and "(one seed)" in captured.out
    results = {
        n: json.loads((tmp_path / "results" / n / "7" / "results.json").read_text())
        for n in ("tiny", "tiny_no_bottleneck")
    }
    assert "VIBFrontEnd" in str(results["tiny"]["hparams"]["front_end"])
    bottleneck = {n: r["hparams"]["front_end"]["VIBFrontEnd"]["bottleneck"] for n, r in results.items()}
    assert bottleneck == {"tiny": True, "tiny_no_bottleneck": False}
    rows = json.loads((tmp_path / "results" / "comparison" / "demo_ib" / "comparison.json").read_text())[
        "rows"
    ]
    for row, result in zip(rows, results.values()):
        assert row["UA"]["mean"] == pytest.approx(result["metrics"]["test.ser.own_chain.ua"])
    # Again: nothing is run.
    monkeypatch.setattr(
        comparison.subprocess, "run", lambda *a, **k: pytest.fail("a finished run was repeated")
    )
    assert cli.main(command) == 0
