"""Timelines: the search against brute force, and a long file in windows with interrupts, silence and other batches."""

import itertools
import json

import numpy as np
import pytest
import soundfile

from speechbrain_emo.inference import EmotionExplainer, timeline
from speechbrain_emo.inference.export import export_model
from speechbrain_emo.inference.timeline import make_timeline, segment_cells
from speechbrain_emo.metrics.emotion_diarization import emotion_diarization_error
from tests.tiny import build_tiny_system, voiced_tone


@pytest.fixture(scope="module")
def explainer(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    system = build_tiny_system(root)
    settings = {**system.explain, "temperature": 0.1, "abstain_below": 0.3}
    export_model(root / "model", system.model, system.factories, system.answer_format, system.tasks, settings)
    return EmotionExplainer.from_hparams(source=root, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """21.3 s at 22050 Hz, stereo, silent from 8 to 12 s."""
    rate = 22050
    parts = [voiced_tone(1.0, 90 + 20 * i, rate, seed=i, level=0.1 + 0.02 * i) for i in range(21)]
    samples = np.concatenate([*parts, voiced_tone(0.3, 150, rate)])
    samples[8 * rate : 12 * rate] = 0
    path = tmp_path_factory.mktemp("audio") / "a long one.wav"
    soundfile.write(path, np.stack([samples, samples], 1), rate)
    return path


def told(made):
    content = made.to_dict()
    del content["run"]
    return content


def test_viterbi_is_the_best_of_all_sequences():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, cost = np.log(rng.dirichlet([1, 1, 1], 6)), rng.uniform(0, 2)

        def total(path, scores=scores, cost=cost):
            changes = sum(a != b for a, b in zip(path, path[1:]))
            return sum(scores[i, k] for i, k in enumerate(path)) - cost * changes

        best = max(total(path) for path in itertools.product(range(3), repeat=6))
        assert total(timeline._viterbi(scores, cost).tolist()) == pytest.approx(best)


def test_known_change_times_in_noisy_probabilities():
    """An hour of cells: the search finds the changes, no constant label comes near, more cost gives fewer segments."""
    rng = np.random.default_rng(2)
    labels, times, truth, path = ["angry", "happy", "neutral", "sad"], np.arange(3601.0), [], []
    while len(path) < 3600:
        length, k = min(int(rng.integers(20, 120)), 3600 - len(path)), int(rng.integers(4))
        truth.append({"start": len(path), "end": len(path) + length, "emotion": labels[k]})
        path += [k] * length
    logits = rng.normal(0, 1.2, (3600, 4))
    logits[np.arange(3600), path] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = {
        cost: [vars(s) for s in segment_cells(times, probabilities, labels, cost)]
        for cost in (0.0, 3.0, 30.0)
    }
    error = {cost: emotion_diarization_error(s, truth, frame=0.1) for cost, s in found.items()}
    constant = min(
        emotion_diarization_error([{"start": 0, "end": 3600, "emotion": x}], truth, frame=0.1) for x in labels
    )
    assert error[3.0] < 0.1 < error[0.0] - 0.1 and constant > 0.6
    assert len(found[0.0]) > len(found[3.0]) > len(found[30.0])
    for rows in found.values():
        assert rows[0]["start"] == 0 and rows[-1]["end"] == 3600
        assert all(a["end"] == b["start"] for a, b in zip(rows, rows[1:]))


def test_files_and_silence(explainer, recording, tmp_path):
    made = make_timeline(explainer, recording, tmp_path, window=2.0, hop=0.5)
    assert made.duration == pytest.approx(21.3, abs=0.01)
    assert made.segments[0].start == 0 and made.segments[-1].end == pytest.approx(made.duration)
    assert [(s.start, s.end) for s in made.segments if s.emotion is None] == [
        (pytest.approx(8, abs=0.01), pytest.approx(12, abs=0.01))
    ]
    content = json.loads((tmp_path / "a long one.json").read_text())
    assert content["segments"] == [vars(s) for s in made.segments]
    heard = [s for s in made.segments if s.emotion is not None]
    lines = (tmp_path / "a long one.rttm").read_text().splitlines()
    assert len(lines) == len(heard)
    for line, segment in zip(lines, heard):
        fields = line.split()
        assert len(fields) == 10 and fields[0] == "SPEAKER" and fields[1] == "a_long_one"
        assert float(fields[3]) == pytest.approx(segment.start, abs=1e-3) and fields[7] == segment.emotion
    assert (tmp_path / "a long one.png").stat().st_size > 5000


def test_scores_are_those_of_the_model_for_the_same_samples(explainer, recording, tmp_path):
    """No second path: a window scores as `explain` scores a file that holds it."""
    make_timeline(explainer, recording, tmp_path, window=2.0, hop=0.5)
    rows = [json.loads(x) for x in (tmp_path / "a long one.windows.jsonl").read_text().splitlines()][1:]
    samples, rate = soundfile.read(recording)
    row = rows[10]
    soundfile.write(tmp_path / "w.wav", samples[row["start"] : row["start"] + 2 * rate], rate)
    waveform = explainer.load_audio(tmp_path / "w.wav")
    direct = explainer.explainer.explain(
        [{"id": "recording"}],
        timeline.AudioBatch(timeline.torch.tensor([len(waveform)]), waveforms=waveform[None]),
    )[0]
    assert row["scores"] == pytest.approx(list(direct.scores["speech"].values()), abs=1e-4)


def test_an_interrupted_run_goes_on_and_batches_do_not_matter(explainer, recording, tmp_path, monkeypatch):
    whole = make_timeline(explainer, recording, tmp_path / "a", window=2.0, hop=1.0, batch_size=3)
    other = make_timeline(explainer, recording, tmp_path / "b", window=2.0, hop=1.0, batch_size=16)
    assert [s.emotion for s in whole.segments] == [s.emotion for s in other.segments]
    state = tmp_path / "a" / "a long one.windows.jsonl"
    lines = state.read_text().splitlines(keepends=True)
    state.write_text("".join(lines[:9]) + lines[9][: len(lines[9]) // 2])  # cut by a kill
    (tmp_path / "a" / "a long one.json").unlink()
    asked = []
    original = timeline.load_audio

    def counted(path, rate, start=None, stop=None, **more):
        asked.append((start, stop - start))
        return original(path, rate, start, stop, **more)

    monkeypatch.setattr(timeline, "load_audio", counted)
    again = make_timeline(explainer, recording, tmp_path / "a", window=2.0, hop=1.0, batch_size=3)
    # 8 whole windows; the batch that was cut is scored again as a whole.
    assert again.run["windows_kept"] == 6 and len(asked) == len(lines) - 1 - 6
    assert max(length for _, length in asked) <= 2 * 22050
    assert told(again)["segments"] == told(whole)["segments"] and told(again) == told(whole)
    asked.clear()
    make_timeline(explainer, recording, tmp_path / "a", window=2.0, hop=1.0)
    assert asked == []
    # Other settings begin anew.
    make_timeline(explainer, recording, tmp_path / "a", window=2.0, hop=0.7)
    assert len(asked) > 20


def test_a_short_file_is_one_window(explainer, tmp_path):
    soundfile.write(tmp_path / "s.wav", voiced_tone(0.5), 16000)
    made = make_timeline(explainer, tmp_path / "s.wav", tmp_path / "out")
    assert [(s.start, s.end) for s in made.segments] == [(0.0, 0.5)]
    assert sum(made.segments[0].probabilities.values()) == pytest.approx(1)


def test_bad_settings_and_files(explainer, recording, tmp_path):
    with pytest.raises(ValueError, match="between windows"):
        make_timeline(explainer, recording, tmp_path, window=1.0, hop=2.0)
    with pytest.raises(ValueError, match="at most 20"):
        make_timeline(explainer, recording, tmp_path, window=30.0)
    with pytest.raises(ValueError, match="no such file"):
        make_timeline(explainer, tmp_path / "none.wav", tmp_path)
    for name in ("window", "hop", "switch_cost", "batch_size"):
        with pytest.raises(ValueError, match=name):
            make_timeline(explainer, recording, tmp_path, **{name: -1})
