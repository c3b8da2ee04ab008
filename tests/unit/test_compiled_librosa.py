"""Several processes that start at once on a new machine all get librosa's functions, and all get them right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechbrain_emo.dataio import compiled_librosa

SCRIPT = """
import numpy as np
from speechbrain_emo.dataio.compiled_librosa import librosa
samples = (0.1 * np.sin(2 * np.pi * 150 * np.arange(16000) / 16000)).astype("{dtype}")
print(round(float(np.median(librosa.yin(samples, fmin=60, fmax=500, sr=16000)))))
"""


def test_the_first_process_compiles_and_the_others_wait(tmp_path, repository):
    order = tmp_path / "order.txt"
    # Compiling takes half a minute of a core: a pause stands for it, in the true lock.
    stand_in = f"""
import time
from speechbrain_emo.dataio import compiled_librosa as module
def work():
    with open({str(order)!r}, "a") as file: file.write("begin\\n")
    time.sleep(1)
    with open({str(order)!r}, "a") as file: file.write("end\\n")
module._use_everything = work
folder = __import__("pathlib").Path({str(tmp_path)!r})
module.marker_file = lambda: folder / "x.compiled"
(folder / f"ready{{__import__('os').getpid()}}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.01)
module._compile_once()
with open({str(order)!r}, "a") as file: file.write("used\\n")
"""
    processes = [subprocess.Popen([sys.executable, "-c", stand_in], cwd=repository) for _ in range(2)]
    assert [p.wait(timeout=300) for p in processes] == [0, 0]
    # One compiled, and nobody used anything before it had ended.
    assert order.read_text().split() == ["begin", "end", "used", "used"]


def test_functions_give_what_they_should_in_processes_of_their_own(repository):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(dtype=d)], stdout=subprocess.PIPE, text=True, cwd=repository
        )
        for d in ("float32", "float64")
    ]
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert all(float(o) == pytest.approx(150, abs=1) for o in outputs)


def test_another_place_of_numba_s_files_is_compiled_anew(monkeypatch, tmp_path):
    before = compiled_librosa.marker_file()
    assert before.exists()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    after = compiled_librosa.marker_file()
    assert after.parent == tmp_path and not after.exists()


def test_nothing_takes_librosa_past_the_lock(repository):
    own = (repository / "speechbrain_emo" / "dataio" / "compiled_librosa.py", Path(__file__))
    files = [
        f
        for d in ("speechbrain_emo", "recipes", "benchmarks", "tests")
        for f in (repository / d).rglob("*.py")
    ]
    taken = [
        str(f)
        for f in files
        if f not in own
        for line in f.read_text().splitlines()
        if line.strip().startswith(("import librosa", "from librosa", "import numba"))
    ]
    assert not taken and len(files) > 100, os.linesep.join(taken)
