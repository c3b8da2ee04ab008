"""Targets of words, batches, and records that get their words by alignment."""

import json
import math

import numpy as np
import pytest
import torch

from speechbrain_emo.alignment import AlignedInterval, Alignment, AlignmentError
from speechbrain_emo.alignment.textgrid import write_textgrid
from speechbrain_emo.brains import word_emotion_data
from speechbrain_emo.brains.word_emotion import word_rows
from speechbrain_emo.brains.word_emotion_data import WordBatches, WordData, WordTargets, align_records
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.metrics.word_emotion import at_transition, word_scores

LABELS = ["ang", "hap", "neu"]
MAP = {"anger": "ang", "angry": "ang"}


def record(sentence, *words, **more):
    rows = []
    for i, emotion in enumerate(words):
        row = {"word": f"w{i}", "start": 0.1 * i, "end": 0.1 * (i + 1)}
        rows.append(row if emotion is None else {**row, "emotion": emotion})
    return {"wav": "a.wav", "duration": 1.0, "speaker": "s", "emotion": sentence, "words": rows, **more}


def test_weak_supervision_gives_every_word_its_sentence_s_label():
    targets = WordTargets(LABELS, MAP, "weak", {"ang": [0.1, 0.9, 0.8]})
    labels, values = targets.of("a", record("angry", None, None))
    assert labels == [0, 0] and values == [[0.1, 0.9, 0.8]] * 2
    assert targets.of("a", record("anger", "angry", None))[0] == [0, 0]
    for bad in (record("hap", "hap", "neu"), record(None, "hap", "hap"), record(None, None)):
        with pytest.raises(ManifestError, match="one emotion only"):
            targets.of("a", bad)


def test_word_supervision_takes_labels_of_words_first():
    targets = WordTargets(LABELS, MAP, "word")
    labels, values = targets.of("a", record("neu", "angry", None))
    assert labels == [0, 2] and all(math.isnan(v) for row in values for v in row)
    assert targets.of("a", record(None, "hap", None))[0] == [1, -100]


def test_ratings_of_a_record_come_before_those_of_its_label():
    targets = WordTargets(LABELS, MAP, "weak", {"ang": [0.5, 0.5, 0.5]}, rating_scale=(1, 5))
    rated = record("angry", None, valence=1.0, activation=4.0, dominance=None)
    assert targets.of("a", rated)[1] == [[0.0, 0.75, 0.5]]
    assert targets.of("a", record("angry", None, valence=7, arousal=0))[1] == [[1.0, 0.0, 0.5]]


def test_labels_and_settings_that_cannot_be_are_refused():
    with pytest.raises(ManifestError, match="'fear' is none of"):
        WordTargets(LABELS).of("a", record("fear", None))
    for arguments in (
        (["ang"],),
        (LABELS, {"x": "joy"}),
        (LABELS, None, "strong"),
        (LABELS, None, "weak", {"joy": [0, 0, 0]}),
        (LABELS, None, "weak", {"ang": [0, 0, 2]}),
        (LABELS, None, "weak", None, (5, 1)),
    ):
        with pytest.raises(ValueError):
            WordTargets(*arguments)


class Encoder:
    """Rates of an encoder, for data that is never encoded."""

    frame_rate, frame_centre = 50.0, 0.0125

    def num_frames(self, num_samples):
        return num_samples // 320


def data(count=5):
    records = {f"u{i}": record("hap", *[None] * (i + 1)) for i in range(count)}
    return WordData(
        records, Encoder(), WordTargets(LABELS), None, lambda r: torch.zeros(3200 + 320 * len(r["words"]))
    )


def test_a_batch_holds_all_words_of_its_records():
    batch = data().batch([4, 0, 2])
    assert batch.keys == ["u4", "u0", "u2"]
    assert batch.words.audio.tolist() == [0] * 5 + [1] + [2] * 3
    assert batch.waveforms.shape == (3, 4800) and batch.num_samples.tolist() == [4800, 3520, 4160]
    assert batch.num_frames.tolist() == [15, 11, 13] and len(batch.labels) == 9
    assert batch.words.start.tolist()[:5] == [0, 5, 10, 14, 14]  # the last ones lie behind the audio


def test_every_record_once_an_epoch_and_the_order_follows_the_epoch():
    batches = WordBatches(data(11), 4, seed=3, training=True)
    seen = []
    for epoch in (1, 2, 1):
        batches.set_epoch(epoch)
        keys = [key for batch in batches for key in batch.keys]
        assert sorted(keys) == sorted(data(11).keys)
        seen.append(keys)
    assert seen[0] == seen[2] != seen[1]
    # Processes share a batch; together they are the batch of one process.
    ranks = [WordBatches(data(11), 4, 3, True, rank, 2) for rank in range(2)]
    whole = [sorted(batch.keys) for batch in WordBatches(data(11), 4, 3, True)]
    assert whole == [sorted(a.keys + b.keys) for a, b in zip(*ranks)]
    with pytest.raises(ValueError, match="each needs an utterance"):
        WordBatches(data(), 1, world_size=2)


def test_a_record_without_words_is_named():
    bad = {"u": {**record("hap"), "words": []}}
    with pytest.raises(ManifestError, match="u: the record has no words"):
        WordData(bad, Encoder(), WordTargets(LABELS), None, None)


# --------------------------------------------------------------------------------------------- alignment
@pytest.fixture
def spoken(tmp_path):
    """Records without words, TextGrids for two of them, audio for all."""
    import soundfile

    (tmp_path / "grids").mkdir()
    records = {}
    for name in ("a", "b", "c", "d"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16000), 16000)
        records[name] = {
            "wav": str(tmp_path / f"{name}.wav"),
            "transcript": "oh no" if name != "d" else None,
            "emotion": "hap",
            "duration": 1.0,
        }
    for name in ("a", "b"):
        words = (AlignedInterval("oh", 0.1, 0.4), AlignedInterval("no", 0.4, 0.8))
        write_textgrid(
            tmp_path / "grids" / f"{name}.TextGrid", Alignment(words, None, "oh no", 1.0, "textgrid")
        )
    return tmp_path, records


def test_records_are_aligned_and_what_fails_is_listed(spoken):
    folder, records = spoken
    aligner = {"name": "textgrid", "folder": str(folder / "grids")}
    kept, rejected = align_records(records, aligner, folder / "cache.jsonl", progress=False)
    assert list(kept) == ["a", "b"] and set(rejected) == {"c", "d"}
    assert rejected["d"] == "no transcript" and kept["a"]["aligner"] == "textgrid"
    assert [(w["word"], w["start"], w["end"]) for w in kept["a"]["words"]] == [
        ("oh", 0.1, 0.4),
        ("no", 0.4, 0.8),
    ]


def test_alignments_are_kept_and_an_interrupted_run_goes_on(spoken, monkeypatch):
    folder, records = spoken
    aligner, cache = {"name": "textgrid", "folder": str(folder / "grids")}, folder / "cache.jsonl"
    whole = align_records(records, aligner, cache, progress=False)
    lines = cache.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    cache.write_bytes(lines[0] + lines[1][:20])
    made, original = [], word_emotion_data.make_aligner

    def counting(name, **options):
        aligner = original(name, **options)
        align_corpus = aligner.align_corpus
        aligner.align_corpus = lambda items: align_corpus([made.append(i.name) or i for i in items])
        return aligner

    monkeypatch.setattr(word_emotion_data, "make_aligner", counting)
    assert align_records(records, aligner, cache, progress=False) == whole
    assert made == ["b", "c"]
    assert align_records(records, aligner, cache, progress=False) == whole and made == ["b", "c"]
    # Another text or another aligner is another alignment.
    records["a"]["transcript"] = "no"
    align_records(records, aligner, cache, progress=False)
    assert made[2:] == ["a"]


def test_records_that_have_words_ask_no_aligner(spoken):
    folder, _ = spoken
    records = {"x": record("hap", None)}
    assert align_records(records, {"name": "gentle"}, folder / "c.jsonl") == (records, {})
    with pytest.raises(AlignmentError, match="gentle"):
        align_records(spoken[1], {"name": "gentle"}, folder / "c.jsonl", progress=False)


def test_a_low_confidence_is_left_out_and_nothing_left_is_an_error(spoken):
    folder, records = spoken
    aligner, cache = {"name": "textgrid", "folder": str(folder / "grids")}, folder / "c.jsonl"
    align_records(records, aligner, cache, progress=False)
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    cache.write_text("".join(json.dumps({**x, "confidence": 0.3}) + "\n" for x in lines))
    with pytest.raises(ManifestError, match="none of 4 records"):
        align_records(records, aligner, cache, min_confidence=0.5, progress=False)


# ---------------------------------------------------------------------------------------------- scores
def test_scores_of_words_against_a_count_by_hand():
    truth = [["a", "a", "b", "b"], ["b", "b", "b"], ["a", "b", "a"]]
    said = [["a", "b", "b", "b"], ["b", "b", "a"], ["a", "a", "a"]]
    scores = word_scores(truth, said, ["s", "t", "t"], ["a", "b"], num_resamples=50)
    assert scores["accuracy"] == 0.7 and scores["count"] == 10
    # Words 2 and 3 of the first and all of the third stand at a change.
    assert (scores["transition_count"], scores["transition_accuracy"]) == (5, 0.6)
    assert (scores["inside_count"], scores["inside_accuracy"]) == (5, 0.8)
    assert scores["confusion"] == [[3, 1, 0], [2, 4, 0]]
    assert at_transition(["a"]) == [False] and at_transition([]) == []
    alone = word_scores([["a", "a"]], [["a", "b"]], ["s"], ["a", "b"])
    assert alone["transition_accuracy"] is None and alone["accuracy_low"] is None
    with pytest.raises(ValueError, match="2 words but 1 predictions"):
        word_scores([["a", "a"]], [["a"]], ["s"], ["a", "b"])


def test_the_table_names_the_best_label_of_whole_utterances():
    metrics = {
        "test.word.annotator.accuracy": 0.7,
        "test.word.utterance_probe.accuracy": 0.5,
        "test.word.best_utterance_condition": "utterance_probe",
        "test.word.oracle.accuracy": 0.9,
    }
    rows = word_rows(metrics)
    assert [row["accuracy"] for row in rows] == [0.7, 0.5, 0.9]
    assert "best of these" in rows[1]["words"]
