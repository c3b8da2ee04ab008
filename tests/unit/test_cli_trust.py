"""The commands that check a model: help with an example, exit status, JSON."""

import json

import numpy as np
import pytest
import soundfile

from speechbrain_emo import cli, cli_trust, results
from speechbrain_emo.dataio.descriptors import fit_thresholds, measure
from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.inference.export import ExportError, export_model, update_explain_settings
from speechbrain_emo.inference.interfaces import EmotionExplainer
from tests.tiny import build_tiny_system, voiced_tone

LABELS = ["neutral", "happy", "sad", "angry"]


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of a tiny model: exported model, predictions of validation and test, manifests, audio."""
    root = tmp_path_factory.mktemp("run")
    system = build_tiny_system(root)
    export_model(
        root / "model", system.model, system.factories, system.answer_format, system.tasks, system.explain
    )
    rng, records = np.random.default_rng(0), {}
    for i in range(30):
        soundfile.write(root / f"{i}.wav", voiced_tone(0.4, 100 + 5 * i, seed=i), 16000)
        records[f"u{i}"] = {
            "wav": f"{{data_root}}/{i}.wav",
            "duration": 0.4,
            "speaker": f"s{i % 3}",
            "gender": "female",
            "transcript": "the sky",
            "emotion": LABELS[i % 4],
            "descriptors": {"pitch": "low", "speed": "slow", "volume": "normal", "emphasis": []},
        }
    write_manifest(root / "all.json", records)
    for name in ("valid_predictions.jsonl", "predictions.jsonl"):
        lines = []
        for key, record in records.items():
            scores = rng.normal(0, 1, 4)
            scores[LABELS.index(record["emotion"])] += 2.5
            scores = dict(zip(LABELS, scores.tolist()))
            lines.append(
                {
                    "id": key,
                    "speaker": record["speaker"],
                    "emotion": record["emotion"],
                    "scores": {"speech": scores, "own_chain": scores},
                }
            )
        results.write_predictions(root / name, lines)
    evaluation = {"labels": LABELS, "fields": [], "temperature": {"speech": 1.0, "own_chain": 1.0}}
    hparams = {
        "manifests": {"train": str(root / "all.json"), "test": str(root / "all.json")},
        "data_folder": str(root),
    }
    metrics = results.compute_results(
        results.read_predictions(root), java=False, num_resamples=20, **evaluation
    )
    results.write_results(root, metrics, results.run_context(seed=1, hparams=hparams, evaluation=evaluation))
    return root


@pytest.mark.parametrize("command", [*cli_trust.COMMANDS, "listen make", "listen score"])
def test_help_has_an_example_and_exits_with_0(capsys, command):
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0 and "examples:" in out and f"python -m speechbrain_emo {command.split()[0]}" in out
    if " " not in command:
        assert "exit status:" in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["timeline", "a.wav", "--model", "x", "--out", "y", "--hop", "0"], "above 0"),
        (["calibrate", "x", "--risk", "1.5"], "between 0 and 1"),
        (["verify", "x.json", "--model", "m", "--out", "o", "--limit", "-3"], "0 and above"),
        (["listen"], "required"),
        (["report"], "required"),
        (["report", "nowhere"], "nowhere/results.json: no such file"),
        (["calibrate", "nowhere"], "no such file"),
        (["listen", "score", "nowhere.json"], "nowhere.json"),
        (["timeline", "a.wav", "--model", "nowhere/at/all", "--out", "y"], "no such folder"),
    ],
)
def test_wrong_arguments_are_2(capsys, arguments, said):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and said in err and "Traceback" not in err and not out


def test_calibrate_then_explain_abstains_and_measures(capsys, folder):
    before = EmotionExplainer.from_hparams(source=folder)
    assert before.thresholds is None and before.abstain_below == 0
    status, out, err = run(capsys, "calibrate", folder, "--measure", 30, "--risk", 0.3, "--json")
    done = json.loads(out)
    assert status == (0 if done["reached"] else 1), err
    assert done["num_measured"] == 30 and 0 < done["abstain_below"] < 1 and 0 < done["coverage"] <= 1
    assert (folder / "risk_coverage.png").is_file()
    after = EmotionExplainer.from_hparams(source=folder)
    assert after.abstain_below == pytest.approx(done["abstain_below"])
    assert after.temperature == pytest.approx(done["temperatures"]["own_chain"])
    file = folder / "12.wav"
    told, found = before.explain_file(file, gender="female"), after.explain_file(file, gender="female")
    assert found.scores == pytest.approx(told.scores, abs=1e-6)
    assert (
        found.percentiles["pitch"] == pytest.approx(40, abs=15) and found.compared_with["pitch"] == "female"
    )
    assert found.certain == (found.probability >= after.abstain_below)


def test_below_the_threshold_the_two_best_are_named(folder, tmp_path):
    update_explain_settings(folder / "model", {"abstain_below": 1.0})
    explainer = EmotionExplainer.from_hparams(source=folder)
    found = explainer.explain_file(folder / "3.wav")
    best = sorted(found.probabilities, key=found.probabilities.get)[::-1][:2]
    assert not found.certain and found.emotion == best[0]
    assert found.answer.startswith(f"not sure: {best[0]} ") and f", {best[1]} " in found.answer
    assert str(found).splitlines()[0] == f"{folder / '3.wav'}: {found.answer}"
    assert found.sentence.startswith("Not sure: ") and found.to_dict()["answer"] == found.answer
    update_explain_settings(folder / "model", {"abstain_below": 0.0})
    assert EmotionExplainer.from_hparams(source=folder).explain_file(folder / "3.wav").certain
    thresholds = fit_thresholds([measure(voiced_tone(1.0, 100 + i), 16000) for i in range(10)], ["male"] * 10)
    update_explain_settings(folder / "model", {"thresholds": thresholds.to_dict()})
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    explainer = EmotionExplainer.from_hparams(source=folder)
    assert not explainer.explain_file(tmp_path / "silence.wav").certain
    with pytest.raises(ExportError, match="abstain_below is 2"):
        update_explain_settings(folder / "model", {"abstain_below": 2})
    with pytest.raises(ExportError, match="unknown keys"):
        update_explain_settings(folder / "model", {"colour": 2})


def test_pictures_of_explanations(capsys, folder, tmp_path):
    status, _, _ = run(
        capsys, "explain", folder / "1.wav", "--model", folder, "--picture", tmp_path / "x.png"
    )
    assert status == 0 and (tmp_path / "x.png").stat().st_size > 20000
    files = [folder / "1.wav", folder / "2.wav", tmp_path / "none.wav"]
    status, _, _ = run(capsys, "explain", *files, "--model", folder, "--picture", tmp_path / "pictures")
    assert status == 1 and sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["1.png", "2.png"]
    status, _, err = run(
        capsys, "explain", folder / "1.wav", "--model", folder, "--picture", tmp_path / "x.jpg"
    )
    assert status == 2 and ".png" in err


def test_timeline_json_and_status_of_a_missing_file(capsys, folder, tmp_path):
    arguments = [
        "--model",
        folder,
        "--out",
        tmp_path,
        "--window",
        0.3,
        "--hop",
        0.1,
        "--device",
        "cpu",
        "--json",
    ]
    status, out, err = run(capsys, "timeline", folder / "5.wav", tmp_path / "none.wav", *arguments)
    assert status == 1 and "none.wav: no such file" in err
    (line,) = out.splitlines()
    assert json.loads(line)["segments"][-1]["end"] == pytest.approx(0.4)
    status, _, err = run(capsys, "timeline", folder / "5.wav", *arguments[:4], "--window", 1, "--hop", 2)
    assert status == 2 and "between windows" in err


def test_verify_and_report(capsys, folder, tmp_path):
    arguments = [
        "verify",
        folder / "all.json",
        "--data_root",
        folder,
        "--model",
        folder,
        "--out",
        tmp_path,
        "--limit",
        5,
    ]
    status, out, err = run(capsys, *arguments, "--parts", "prefix", "--json")
    assert status == 0, err
    metrics = json.loads(out)
    assert metrics == pytest.approx(results.read_results(tmp_path)["metrics"])
    assert set(k.split(".")[0] for k in metrics) == {"prefix"}
    status, _, err = run(capsys, *arguments, "--parts", "honesty")
    assert status == 2 and "honesty" in err
    status, out, _ = run(capsys, "report", tmp_path)
    assert status == 0 and str(tmp_path / "report.html") in out
    assert "Does the label listen" in (tmp_path / "report.html").read_text()
    status, out, _ = run(capsys, "report", folder, "--out", tmp_path / "run.html", "--no_audio")
    assert status == 0 and "<audio" not in (tmp_path / "run.html").read_text()
