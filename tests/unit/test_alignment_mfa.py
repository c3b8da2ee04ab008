"""Driving `mfa`: a stand-in program on PATH checks what it is given and writes TextGrids as MFA lays them out."""

import os
import stat
import sys

import numpy as np
import pytest

pytest.importorskip("praatio", reason="praatio is not installed (extra align)")
pytest.importorskip("num2words", reason="num2words is not installed (extra align)")

from speechbrain_emo.alignment import Alignment, AlignmentError, AlignmentItem, make_aligner

# A stand-in for the program alone: it holds the command line against MFA's own interface (options of
# montreal_forced_aligner.command_line), reads the corpus and gives every word the same length.
PROGRAM = """#!{python}
import json, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
arguments = sys.argv[1:]
mode = os.environ.get("FAKE_MFA", "")
if arguments == ["version"]:
    print("nonsense" if mode == "nonsense" else "4.0.1" if mode == "four" else "3.2.1")
    sys.exit()
command, rest = arguments[0], arguments[1:]
assert command == ("align_legacy" if mode == "four" else "align"), command
flags, values, places = set(), {{}}, []
while rest:
    head = rest.pop(0)
    if head in ("--clean", "--overwrite", "--single_speaker"):
        flags.add(head)
    elif head.startswith("--"):
        known = "output_format num_jobs beam retry_beam temporary_directory g2p_model_path"
        assert head[2:] in known.split(), head
        values[head] = rest.pop(0)
    else:
        places.append(head)
corpus, dictionary, acoustic, output = places
if mode == "fail" or acoustic == "no_such_model":
    print("PretrainedModelNotFoundError: no_such_model", file=sys.stderr)
    sys.exit(1)
assert values["--output_format"] == "long_textgrid" and "--clean" in flags
import soundfile
from speechbrain_emo.alignment.textgrid import TextGrid, Tier, write_textgrid
seen = []
for lab in sorted(Path(corpus).rglob("*.lab")):
    words = lab.read_text(encoding="utf-8").split()
    info = soundfile.info(str(lab.with_suffix(".wav")))
    assert info.samplerate == 16000 and info.channels == 1
    seen.append([str(lab.relative_to(corpus)), words])
    if "left" in words:
        continue
    duration = info.frames / 16000
    step = duration / (len(words) + 1)
    entries = tuple(((i + 1) * step, (i + 2) * step, word) for i, word in enumerate(words))
    target = Path(output) / (lab.stem if mode == "flat" else lab.relative_to(corpus).with_suffix(""))
    target.parent.mkdir(parents=True, exist_ok=True)
    phones = tuple((a, b, "spn" if w == "zzz" else "AH0") for a, b, w in entries)
    write_textgrid(str(target) + ".TextGrid", TextGrid((Tier("words", entries), Tier("phones", phones)), 0.0, duration))
Path({log!r}).write_text(json.dumps([command, sorted(flags), values, dictionary, acoustic, seen]))
"""


@pytest.fixture
def program(tmp_path, monkeypatch, repository):
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log.json"
    path = folder / "mfa"
    path.write_text(
        PROGRAM.format(python=sys.executable, root=str(repository), log=str(log)), encoding="utf-8"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("FAKE_MFA", raising=False)
    return log


def item(name, text, seconds=1.0, rate=22050):
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    return AlignmentItem(name, text, samples=samples, sample_rate=rate)


def test_a_corpus_goes_through_one_call(program, tmp_path):
    import json

    items = [
        item("anna/1", "It's 5 pm!"),
        item("odd name: ü?", "So, so."),
        item("c", "left out here"),
        item("d", "..."),
    ]
    items.append(AlignmentItem("e", "hi", str(tmp_path / "none.wav")))
    aligner = make_aligner(
        "mfa",
        acoustic_model="a_model",
        dictionary="a_dictionary",
        g2p_model="g",
        num_jobs="3",
        beam=12,
        retry_beam=50,
    )
    results = dict(aligner.align_corpus(items))
    assert list(results) == [i.name for i in items]
    first = results["anna/1"]
    assert isinstance(first, Alignment) and first.aligner == "mfa" and first.text == "It's 5 pm!"
    # Tokens: it's, five, p, m, a fifth of a second each; the text's own words have their times.
    assert [w.label for w in first.words] == ["It's", "5", "pm"]
    times = np.array([(w.start, w.end) for w in first.words])
    np.testing.assert_allclose(times, [(0.2, 0.4), (0.4, 0.6), (0.6, 1.0)], atol=1e-3)
    assert all(w.confidence is None for w in first.words) and len(first.phones) == 4
    assert [w.label for w in results["odd name: ü?"].words] == ["So", "so"]
    assert "mfa left it out" in str(results["c"]) and "no word that can be spoken" in str(results["d"])
    assert "no such file" in str(results["e"])
    command, flags, values, dictionary, acoustic, seen = json.loads(program.read_text())
    assert (command, flags, dictionary, acoustic) == (
        "align",
        ["--clean", "--overwrite"],
        "a_dictionary",
        "a_model",
    )
    assert values["--num_jobs"] == "3" and values["--beam"] == "12" and values["--retry_beam"] == "50"
    assert values["--g2p_model_path"] == "g"
    # Speakers of names are folders; the others are speakers of their own.
    assert [path for path, _ in seen] == [
        "anna/utterance_000000.lab",
        "speaker_000001/utterance_000001.lab",
        "speaker_000002/utterance_000002.lab",
    ]


@pytest.mark.parametrize("mode", ["flat", "four"])
def test_other_versions(program, monkeypatch, mode):
    monkeypatch.setenv("FAKE_MFA", mode)
    sample = item("a", "so it is")
    found = make_aligner("mfa", single_speaker=True).align(sample.samples, sample.sample_rate, sample.text)
    assert [w.label for w in found.words] == ["so", "it", "is"]
    assert (found.words[0].start, found.words[0].end) == pytest.approx((0.25, 0.5), abs=1e-3)
    assert '"--single_speaker"' in program.read_text()


def test_failures_are_told(program, monkeypatch):
    sample = item("a", "so it is")
    with pytest.raises(
        AlignmentError, match="(?s)status 1.*mfa model download acoustic no_such_model.*NotFoundError"
    ):
        list(make_aligner("mfa", acoustic_model="no_such_model").align_corpus([sample]))
    with pytest.raises(AlignmentError, match="left it out"):
        make_aligner("mfa").align(sample.samples, sample.sample_rate, "left")
    monkeypatch.setenv("FAKE_MFA", "nonsense")
    with pytest.raises(AlignmentError, match="version` says 'nonsense'"):
        make_aligner("mfa").align(sample.samples, sample.sample_rate, sample.text)


def test_without_the_program_conda_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AlignmentError, match="conda create -n mfa -c conda-forge montreal-forced-aligner"):
        make_aligner("mfa")


def test_nothing_is_left_behind(program, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    sample = item("a", "so it is")
    list(make_aligner("mfa", temporary=str(place)).align_corpus([sample]))
    assert list(place.iterdir()) == []
