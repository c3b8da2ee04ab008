"""The commands of a shell: what they print, where, and with which exit status."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_emo import cli
from speechbrain_emo.inference.export import export_model
from tests.tiny import build_tiny_system, write_bad_files, write_good_files, write_tone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    system = build_tiny_system(root)
    export_model(
        root / "model", system.model, system.factories, system.answer_format, system.tasks, system.explain
    )
    return root


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_explain_in_a_process_of_its_own(folder, tmp_path):
    good, bad = write_tone(tmp_path / "a.wav"), tmp_path / "b.wav"
    bad.write_text("text")
    command = [
        sys.executable,
        "-m",
        "speechbrain_emo",
        "explain",
        good,
        bad,
        "--model",
        folder,
        "--json",
        "--device",
        "cpu",
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["ok"] for line in lines] == [True, False]
    assert f"error: {bad}: not an audio file" in done.stderr
    assert "Traceback" not in done.stderr and "1 of 2 files" in done.stderr


def test_all_kinds_of_files_in_one_call(capsys, folder, tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good, bad = write_good_files(tmp_path / "good"), write_bad_files(tmp_path / "bad")
    files = [path for path, _ in bad.values()] + list(good.values())
    status, out, err = run(capsys, "explain", *files, "--model", folder, "--json", "--batch_size", 4)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [line["name"] for line in lines] == [str(f) for f in files]
    assert [line["ok"] for line in lines] == [False] * len(bad) + [True] * len(good)
    for path, said in bad.values():
        errors = [line for line in err.splitlines() if line.startswith(f"error: {path}:")]
        assert len(errors) == 1 and said in errors[0]


def test_readable_output_and_status_0(capsys, folder, tmp_path):
    files = [write_tone(tmp_path / f"{i}.wav", 0.5, 120 + 40 * i) for i in range(3)]
    status, out, err = run(capsys, "explain", *files, "--model", folder / "model")
    assert status == 0 and "error" not in err
    assert [str(f) in out for f in files] == [True] * 3
    assert out.count("probabilities:") == 3


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "COMMAND"),
        (["explain"], "FILE"),
        (["explain", "a.wav"], "--model"),
        (["explain", "a.wav", "--model", "no/such/folder"], "no/such/folder: no such folder"),
        (["explain", "a.wav", "--model", ".", "--batch_size", "0"], "1 and above"),
        (["explain", "a.wav", "--model", ".", "--device", "abacus"], "--device abacus: cannot be used here"),
        (["explain", "a.wav", "--model", ".", "--gender", "x"], "female"),
        (["sing"], "sing"),
        (["train", "no.yaml"], "no.yaml"),
    ],
)
def test_wrong_usage_is_status_2_without_a_traceback(capsys, arguments, said):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and said in err and "Traceback" not in err and not out


def test_a_damaged_model_is_status_2_and_names_the_file(capsys, folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder / "model", tmp_path / "model")
    (copy / "llm" / "config.json").write_text("{}")
    status, _, err = run(capsys, "explain", write_tone(tmp_path / "a.wav"), "--model", copy)
    assert status == 2 and "config.json" in err and err.startswith("error: ")


@pytest.mark.parametrize("command", [[], ["explain"], ["doctor"], ["train"], ["speak"], ["score_speech"]])
def test_help_shows_an_example(capsys, command):
    status, out, _ = run(capsys, *command, "--help")
    assert status == 0 and "example" in out and "python -m speechbrain_emo" in out


@pytest.mark.parametrize(
    "command", ["prepare", "check", "train", "evaluate", "compare", "explain", "timeline", "report"]
)
def test_help_has_an_example_and_the_exit_statuses(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and f"python -m speechbrain_emo {command} " in out and "exit status: 0 " in out


def test_train_without_arguments_shows_its_help(capsys):
    status, out, _ = run(capsys, "train")
    assert "hparams/demo_ib.yaml" in out


def test_train_passes_everything_on(monkeypatch):
    passed = []
    monkeypatch.setattr("speechbrain_emo.experiment.main", lambda arguments: passed.append(arguments) or 0)
    assert cli.main(["train", "x.yaml", "--seed=3", "--overlay=y.yaml", "--debug"]) == 0
    assert passed == [["x.yaml", "--seed=3", "--overlay=y.yaml", "--debug"]]


def test_version(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0 and out.startswith("speechbrain_emo ")


def test_doctor(capsys):
    status, out, _ = run(capsys, "doctor", "--json")
    checks = json.loads(out)
    assert status in (0, 1) and {"name", "status"} <= set(checks[0])
    assert "python" in run(capsys, "doctor")[1]


def test_help_does_not_load_torch():
    """It must come at once."""
    code = (
        "import sys; from speechbrain_emo import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_silence_is_a_result(capsys, folder, tmp_path):
    soundfile.write(tmp_path / "s.wav", np.zeros(8000), 16000)
    assert run(capsys, "explain", tmp_path / "s.wav", "--model", folder)[0] == 0
