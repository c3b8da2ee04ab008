"""Utterances whose emotion changes inside: what espeak-ng is told is what is heard, and truth is where it says."""

import json

import numpy as np
import pytest
import soundfile

from recipes.Demo import demo_prepare as demo
from recipes.Demo.demo_words import (
    cut_sentence,
    prepare_demo_words,
    render_mixed,
    validate_words,
    word_oracle,
)
from speechbrain_emo.dataio.espeak import EspeakSynthesizer

pytest.importorskip("espeakng_loader", reason="pip install 'speechbrain_emo[demo]'")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small embedded corpus and the mixed utterances beside it."""
    folder = tmp_path_factory.mktemp("demo")
    demo.prepare_demo(folder, folder / "manifests", 56, 8, 8, num_processes=1)
    sizes = {"num_single": 16, "num_train": 5, "num_valid": 2, "num_test": 3, "num_processes": 1}
    report = prepare_demo_words(folder, folder / "manifests", folder / "words_manifests", **sizes)
    return folder, sizes, report


def read(folder, name):
    return json.loads((folder / "words_manifests" / f"{name}.json").read_text(encoding="utf-8"))


def test_stretches_cover_the_sentence_and_are_two_words_at_least():
    rng = np.random.default_rng(0)
    counts = set()
    for words in range(4, 10):
        for _ in range(100):
            borders = cut_sentence(words, rng)
            assert borders[0] == 0 and borders[-1] == words
            assert min(np.diff(borders)) >= 2
            counts.add(len(borders) - 1)
    assert counts == {2, 3}


def test_every_word_has_an_emotion_and_neighbouring_stretches_differ(corpus):
    folder, sizes, report = corpus
    for split in demo.SPLITS:
        mixed = read(folder, f"mixed_{split}")
        assert len(mixed) == sizes[f"num_{split}"]
        for record in mixed.values():
            assert record["emotion"] is None
            segments = record["params"]["segments"]
            assert all(a["emotion"] != b["emotion"] for a, b in zip(segments, segments[1:]))
            for segment in segments:
                rows = record["words"][segment["start"] : segment["stop"]]
                assert {row["emotion"] for row in rows} == {segment["emotion"]}
            info = soundfile.info(record["wav"].replace("{data_root}", str(folder)))
            assert info.frames / info.samplerate == pytest.approx(record["duration"])
            assert record["words"][-1]["end"] <= record["duration"] + 1e-3
    assert len(read(folder, "single_train")) == 16
    assert report["num_words"]["test"] == sum(len(r["words"]) for r in read(folder, "mixed_test").values())


def test_a_complete_corpus_is_kept_and_the_same_settings_give_the_same_bytes(corpus, tmp_path):
    folder, sizes, report = corpus
    wav = next((folder / "words" / "test").glob("*.wav"))
    before = wav.stat().st_mtime_ns
    again = prepare_demo_words(folder, folder / "manifests", folder / "words_manifests", **sizes)
    assert again == report and wav.stat().st_mtime_ns == before
    other = prepare_demo_words(
        tmp_path, folder / "manifests", tmp_path / "m", **{**sizes, "num_processes": 2}
    )
    assert other == report
    for path in (folder / "words").rglob("*.wav"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_what_a_stretch_is_told_is_what_is_heard(corpus):
    """Level, rate and F0 of a stretch against the same words in a sentence spoken that way all through."""
    from speechbrain_emo.dataio.compiled_librosa import librosa

    folder, _, _ = corpus
    synthesizer = EspeakSynthesizer()
    levels, durations, pitches = [], [], []
    for record in read(folder, "mixed_train").values():
        mixed, rows = render_mixed(record, synthesizer)
        for segment in record["params"]["segments"]:
            params = {**record["params"], "espeak": segment["espeak"], "emphasised": []}
            params["volume_db"] = segment["volume_db"]
            whole, whole_rows, _ = demo.render(
                {"transcript": record["transcript"], "params": params}, synthesizer
            )
            heard = []
            for samples, words in ((mixed, rows), (whole, whole_rows)):
                start, end = words[segment["start"]]["start"], words[segment["stop"] - 1]["end"]
                part = samples[round(start * 16000) : round(end * 16000)].astype(float)
                f0, _, _ = librosa.pyin(part, fmin=60, fmax=450, sr=16000, frame_length=1024)
                heard.append((10 * np.log10(np.mean(part**2)), end - start, np.nanmedian(f0)))
            levels.append(heard[0][0] - heard[1][0])
            durations.append(heard[0][1] / heard[1][1])
            pitches.append(12 * np.log2(heard[0][2] / heard[1][2]))
    # Emotions stand decibels, tenths of the rate and semitones apart.
    assert np.abs(levels).max() < 1.5 and np.median(np.abs(levels)) < 0.5
    assert np.abs(np.log(durations)).max() < 0.12
    assert np.nanmedian(np.abs(pitches)) < 0.3 and np.nanpercentile(np.abs(pitches), 90) < 1.0


def test_a_speaker_or_sentence_in_two_splits_is_found(corpus):
    folder, _, _ = corpus
    parts = {
        split: {**read(folder, f"single_{split}"), **read(folder, f"mixed_{split}")} for split in demo.SPLITS
    }
    validate_words(parts)
    key, record = next(iter(read(folder, "mixed_test").items()))
    with pytest.raises(ValueError, match="share"):
        validate_words({**parts, "train": {**parts["train"], key: record}})
    bad = {**record, "words": record["words"][:-1]}
    with pytest.raises(ValueError, match="words with times"):
        validate_words({**parts, "test": {**parts["test"], key: bad}})


def test_the_oracle_counts_words():
    def segment(start, stop, emotion):
        names = ("pitch", "range", "rate", "volume_db")
        return {
            "start": start,
            "stop": stop,
            "emotion": emotion,
            **dict(zip(names, demo.EMOTION_MEANS[emotion])),
        }

    record = {"params": {"segments": [segment(0, 3, "angry"), {**segment(3, 4, "sad"), "emotion": "happy"}]}}
    oracle = word_oracle({"a": record})
    assert oracle["accuracy"] == 0.75 and oracle["ua"] == 0.5


def test_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_test is 0"):
        prepare_demo_words(tmp_path, tmp_path, tmp_path, num_test=0)
    with pytest.raises(ValueError, match="no such manifest"):
        prepare_demo_words(tmp_path, tmp_path, tmp_path)
