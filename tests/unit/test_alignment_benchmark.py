"""The table of alignment errors: what it counts, checked with an aligner whose errors are known."""

import numpy as np
import pytest

pytest.importorskip("praatio", reason="praatio is not installed (extra align)")

from benchmarks import alignment as benchmark
from speechbrain_emo.alignment import AlignedInterval, Alignment, AlignmentError, align_each


class Shifted:
    """A test double: true times, moved by 20 ms at starts and 40 ms at ends; knows which texts are right."""

    name = "shifted"

    def __init__(self, utterances):
        self.truth = {u.name: u for u in utterances}

    def align(self, samples, sample_rate, text, name=None):
        truth = self.truth[name]
        if text != truth.text and name == "u1":
            raise AlignmentError("does not fit")
        moved = [(s + 0.02, e + 0.04) for _, s, e in truth.words]
        words = [
            AlignedInterval(w, s, e, 0.9 if text == truth.text else 0.2)
            for w, (s, e) in zip(text.split(), moved)
        ]
        return Alignment(words, None, text, 2.0, self.name)

    def align_corpus(self, items):
        return align_each(self, items)


@pytest.fixture
def utterances():
    samples = np.zeros(32000, dtype=np.float32)
    found = []
    for number, text in enumerate(("so it is", "what a day", "no more now")):
        words = [(word, 0.1 + j * 0.5, 0.5 + j * 0.5) for j, word in enumerate(text.split())]
        found.append(benchmark.Utterance(f"u{number}", samples, text, words))
    return found


def test_errors_confidences_and_speed(utterances):
    score = benchmark.measure(Shifted(utterances), utterances, progress=False)
    assert np.allclose(sorted(set(np.round(score.errors, 6))), [0.02, 0.04]) and len(score.errors) == 18
    assert score.median == pytest.approx(0.03) and score.failed == 0 and score.speech == 6.0
    assert score.accepted == 1.0 and score.rejected == 1.0 and score.wrong.count(None) == 1


def test_wrong_texts_are_of_others(utterances):
    from speechbrain_emo.alignment import AlignmentItem

    items = [AlignmentItem(u.name, u.text, samples=u.samples, sample_rate=16000) for u in utterances]
    changed = list(benchmark._with_other_texts(items))
    assert all(a.text != b.text and a.name == b.name for a, b in zip(items, changed))


def test_what_is_missing_is_a_note_not_a_row(tmp_path):
    (table,) = benchmark.run(data=str(tmp_path), corpus=str(tmp_path), aligners=["pocketsphinx"])
    assert table.rows == [] and len([note for note in table.notes if "not measured" in note]) == 3


def test_sets_are_loaded_with_their_truth(shared_data):
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (extra align)")
    (utterance,) = benchmark.load_set("ljspeech", 1, shared_data, shared_data)
    assert utterance.words[0] == ("especially", 0.0, 0.77) and utterance.text.startswith(
        "especially as no more"
    )
    (table,) = benchmark.run(["ljspeech"], ["pocketsphinx"], 1, str(shared_data))
    (row,) = table.rows
    assert len(row) == len(table.header)
    assert row[:2] == ["ljspeech", "pocketsphinx"] and float(row[table.header.index("median ms")]) < 30


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "example:\n  python -m benchmarks" in text and "reference" in text
