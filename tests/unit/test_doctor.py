"""The doctor on this machine and on machines that lack things."""

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys

import pytest

from speechbrain_emo import doctor
from speechbrain_emo.doctor import Check, format_checks, print_doctor, run_doctor


def named(checks, name):
    found = [check for check in checks if check.name == name or check.name.startswith(name + " [")]
    assert len(found) == 1, f"{name}: {[check.name for check in checks]}"
    return found[0]


def test_the_environment_of_the_tests_has_no_error():
    checks = run_doctor()
    assert [check for check in checks if check.status == "error"] == []
    assert named(checks, "python").detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert named(checks, "package torch").detail == importlib.metadata.version("torch")


def test_every_package_of_setup_cfg_is_looked_at(repository):
    import configparser

    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    names = {check.name for check in run_doctor() if check.name.startswith("package ")}
    for line in parser["options"]["install_requires"].splitlines():
        if line and not line.startswith("#"):
            package = line.split(">")[0]
            assert f"package {package}" in names
    assert any(name.startswith("package funasr [emotion2vec]") for name in names)


def test_a_missing_required_package_is_an_error_and_an_optional_one_is_not(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name in ("soundfile", "jiwer"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = run_doctor()
    assert named(checks, "package soundfile").status == "error"
    assert "soundfile" in named(checks, "package soundfile").advice
    lost = named(checks, "package jiwer")
    assert (lost.status, lost.advice) == ("missing", "in the checkout: pip install -e '.[eval]'")
    assert "WER" in lost.detail


def test_a_version_out_of_range_is_told_with_the_range(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.5.0" if name == "speechbrain" else real(name)
    )
    check = named(run_doctor(), "package speechbrain")
    assert check.status == "error" and "0.5.0" in check.detail and ">=1.1.2" in check.detail


def test_commands_that_are_there_absent_or_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk 17' >&2\n")
    (tmp_path / "mfa").write_text("#!/bin/sh\necho 'no kaldi' >&2\nexit 3\n")
    for name in ("java", "mfa"):
        (tmp_path / name).chmod(0o755)
    # The shebang needs /bin/sh, which is found by its path; `echo` and `exit` are built in.
    checks = run_doctor()
    assert (
        named(checks, "command java").status == "ok" and "openjdk 17" in named(checks, "command java").detail
    )
    broken = named(checks, "command mfa")
    assert (
        broken.status == "warning" and "exits with 3: no kaldi" in broken.detail and "conda" in broken.advice
    )
    assert named(checks, "command ffmpeg").status == "missing"


def test_a_command_that_hangs_is_a_warning(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")

    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired(args[0], kwargs["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert named(run_doctor(), "command ffmpeg").status == "warning"


def test_little_disk_is_a_warning_and_the_folder_need_not_exist(tmp_path, monkeypatch):
    check = named(run_doctor(tmp_path / "not" / "yet"), "disk")
    assert str(tmp_path) in check.detail
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert named(run_doctor(tmp_path), "disk").status == "warning"


def test_no_host_is_contacted(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert "not contacted" in named(run_doctor(), "model hub").detail


def test_not_installed_at_all(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert named(run_doctor(), doctor.DISTRIBUTION).status == "error"


def test_text_json_and_exit_status(capsys, monkeypatch):
    assert print_doctor() == 0
    text = capsys.readouterr().out
    assert print_doctor(as_json=True) == 0
    loaded = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in loaded} >= {"python", "gpu", "disk", "command mfa"}
    assert all(entry["name"] in text for entry in loaded)
    assert "0 errors" in text
    monkeypatch.setattr(doctor, "run_doctor", lambda folder: [Check("python", "error", "3.8", "use 3.10")])
    assert print_doctor() == 1
    assert "use 3.10" in capsys.readouterr().out


def test_advice_stands_beneath_what_is_wrong_only():
    text = format_checks([Check("a", "ok", "1", "unused"), Check("b", "missing", "none", "get b")])
    assert "unused" not in text and "-> get b" in text and "1 optional part missing" in text


def test_unknown_status_is_refused():
    with pytest.raises(ValueError, match="'fine'; allowed: ok, missing, warning, error"):
        Check("a", "fine", "")
