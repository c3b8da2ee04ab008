"""FEDD: the rebuild's lists, and joining of recordings."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.FEDD import fedd_prepare
from recipes.FEDD.fedd_prepare import join_recordings, prepare_fedd, read_list
from speechbrain_emo.alignment import AlignedInterval, Alignment
from speechbrain_emo.dataio.manifest import ManifestError

LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "annotations" / "fedd_rebuild"
RATE = 16000


def test_the_join_keeps_both_sides_and_fades_between():
    first, second = np.full(8000, 0.5), np.full(8000, -0.25)
    samples, border = join_recordings(first, second, 0.3, 0.2)
    assert len(samples) == 4800 + 8000 - 3200 and border == pytest.approx(0.3)
    assert (samples[: 4800 - 400] == 0.5).all() and (samples[4800 + 400 :] == -0.25).all()
    # 50 ms; the middle is the mean of both, and the way between is monotone.
    middle = samples[4800 - 400 : 4800 + 400]
    assert (np.diff(middle) <= 0).all() and abs(middle[399:401].mean() - 0.125) < 1e-3
    # A signal joined to itself is itself.
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    same, _ = join_recordings(noise, noise, 0.25, 0.25)
    np.testing.assert_allclose(same, noise, atol=1e-6)
    # Close to an end the fade is as long as there is room for.
    short, _ = join_recordings(noise, noise, 0.005, 0.005)
    np.testing.assert_allclose(short, noise, atol=1e-6)
    with pytest.raises(ValueError, match="not inside"):
        join_recordings(noise, noise, 0.6, 0.2)


@pytest.mark.skipif(not LISTS.is_dir(), reason="needs ../shared/data/annotations/fedd_rebuild")
def test_all_sentences_of_the_rebuild_are_well_formed(tmp_path):
    counts = prepare_fedd(LISTS, tmp_path)
    assert {k: v["records"] for k, v in counts.items()} == {"mild": 500, "strong": 500, "esd": 1500}
    strong = json.loads((tmp_path / "strong.json").read_text())
    assert all(r["transition"][0] != r["transition"][1] for r in strong.values())
    assert all(r["markup"].count("<emotion") == 2 for r in strong.values())
    assert not any(r["prompt"] or r["reference"] for r in strong.values())


def tree(folder):
    """Two recordings of one sentence and a neutral one, in ESD's layout, and lists of one record each."""
    esd = folder / "esd"
    for emotion, number, f0 in (("Angry", 351, 300), ("Happy", 701, 200), ("Neutral", 1, 100)):
        (esd / "0011" / emotion).mkdir(parents=True)
        wave = 0.1 * np.sin(2 * np.pi * f0 * np.arange(RATE) / RATE)
        soundfile.write(esd / "0011" / emotion / f"0011_{number:06d}.wav", wave, RATE)
    base = {
        "plain_text": "one two three four",
        "tagged_text": "<emotion type='ang' intensity='medium'>one two</emotion> "
        "<emotion type='hap' intensity='medium'>three four</emotion>",
        "speaker_id": "0011",
        "prompt_wav": "datasets/ESD/0011/Neutral/0011_000001.wav",
        "prompt_text": "one two three four",
        "emo_from": "ang",
        "emo_to": "hap",
    }
    strong = {**base, "utt_id": "s", "boundary_word_index": 2}
    strong.update(src_utt_from="0011_000351", src_utt_to="0011_000701")
    lost = {**strong, "utt_id": "lost", "src_utt_to": "0012_000001"}
    mild = {**base, "utt_id": "m", "speaker_id": "Mia", "prompt_wav": "elsewhere/Mia.wav"}
    plain = {**base, "utt_id": "e", "target_wav": "datasets/ESD/0011/Angry/0011_000351.wav"}
    lists = folder / "lists"
    lists.mkdir()
    for name, rows in (("part_a", [mild]), ("part_b", [strong, lost]), ("esd_eval_manifest", [plain])):
        (lists / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lists, esd


class Quarters:
    """An aligner that gives each of four words a quarter of the second; a test double."""

    def align_corpus(self, items):
        for item in items:
            words = tuple(
                AlignedInterval(word, i / 4, (i + 1) / 4) for i, word in enumerate(item.text.split())
            )
            yield item.name, Alignment(words, None, item.text, 1.0, "quarters")


def test_strong_ones_are_joined_where_esd_is_at_hand(tmp_path, monkeypatch):
    lists, esd = tree(tmp_path)
    monkeypatch.setattr(fedd_prepare, "make_aligner", lambda name: Quarters())
    counts = prepare_fedd(lists, tmp_path / "out", esd, {"Mia": {"wav": "mia.wav", "text": "hello"}})
    assert counts["strong"] == {"records": 2, "prompts": 2, "references": 1}
    record = json.loads((tmp_path / "out" / "strong.json").read_text())["s"]
    assert record["border"] == 0.5 and record["prompt"].endswith("0011_000001.wav")
    samples, rate = soundfile.read(record["reference"])
    assert rate == RATE and len(samples) == RATE
    peaks = [np.abs(np.fft.rfft(part)).argmax() for part in (samples[:6400], samples[-6400:])]
    assert [round(p * RATE / 6400) for p in peaks] == [300, 200]
    mild = json.loads((tmp_path / "out" / "mild.json").read_text())["m"]
    assert (mild["prompt"], mild["prompt_text"], mild["reference"]) == ("mia.wav", "hello", None)
    assert json.loads((tmp_path / "out" / "esd.json").read_text())["e"]["reference"].endswith(
        "0011_000351.wav"
    )
    assert "lost: 0011_000351 or 0012_000001 is not in" in (tmp_path / "out" / "preparation.txt").read_text()


def test_broken_lists_are_told_line_by_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"utt_id": "a", "tagged_text": "<emotion type=\'joy\'>x</emotion>", "plain_text": "x"}\n'
        '{"utt_id": "b", "tagged_text": "x", "plain_text": "y"}\nnonsense\n'
    )
    with pytest.raises(ManifestError) as caught:
        read_list(path)
    assert [f"line {i}" in str(caught.value) for i in (1, 2, 3)] == [True] * 3
    with pytest.raises(ManifestError, match="no such list"):
        read_list(tmp_path / "missing.jsonl")
