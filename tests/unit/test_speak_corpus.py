"""Evaluation lists: spoken once, resumed, scored against the natural variation."""

import json

import pytest
import soundfile
import tiny_tts

from speechbrain_emo.alignment import AlignedInterval, Alignment
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.inference import EmotionalTTS, speak_corpus
from speechbrain_emo.inference.speak_corpus import changed_span, read_lists, run_span_changes
from speechbrain_emo.prompts.markup import EmotionMarkup


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speak")
    tiny_tts.build_tts(folder)
    soundfile.write(folder / "me.wav", tiny_tts.recording(2.2), 16000)
    records = {
        f"u{i}": {
            "markup": f"so it is <emotion type='{emotion}' intensity='high'>you see</emotion>",
            "text": "so it is you see",
            "prompt": "{data_root}/me.wav",
            "prompt_text": "I said something",
            "protocol": "neutral",
            "reference": None,
        }
        for i, emotion in enumerate(("hap", "sad", "ang"))
    }
    (folder / "list.json").write_text(json.dumps(records))
    return folder


def test_a_list_is_spoken_once(place, monkeypatch):
    tts = EmotionalTTS.from_hparams(place / "run")
    records = read_lists([place / "list.json"], place)
    broken = {**records, "bad": {**records["u0"], "markup": "so <emotion>it"}}
    failures = speak_corpus.speak_corpus(tts, broken, place / "out", progress=False)
    assert list(failures) == ["bad"] and "has no type" in failures["bad"]
    lines = [json.loads(x) for x in (place / "out" / "outputs.jsonl").read_text().splitlines()]
    assert {x["id"] for x in lines} == set(records) and all(
        (place / "out" / x["file"]).is_file() for x in lines
    )
    assert all(x["protocol"] == "neutral" and x["finish_reason"] in ("eos", "max_length") for x in lines)
    # What is there is kept; what is gone is made again, and the same.
    before = (place / "out" / "u1.wav").read_bytes()
    (place / "out" / "u1.wav").unlink()
    spoken, original = [], tts.speak_batch
    monkeypatch.setattr(tts, "speak_batch", lambda texts, *a: spoken.extend(texts) or original(texts, *a))
    speak_corpus.speak_corpus(tts, records, place / "out", progress=False)
    assert len(spoken) == 1 and (place / "out" / "u1.wav").read_bytes() == before
    with pytest.raises(ManifestError, match="another model"):
        monkeypatch.setattr(tts, "model_hash", "x")
        speak_corpus.speak_corpus(tts, records, place / "out", progress=False)


def test_lists_that_cannot_be_spoken_are_refused(place, tmp_path):
    with pytest.raises(ManifestError, match="no such list"):
        read_lists([tmp_path / "x.json"])
    (tmp_path / "y.json").write_text(json.dumps({"a": {"markup": "so", "prompt": None, "speaker": "Mia"}}))
    with pytest.raises(ManifestError, match="voice Mia; give default_prompt"):
        read_lists([tmp_path / "y.json"])
    assert read_lists([tmp_path / "y.json"], None, {"wav": "w", "text": "t"})["a"]["prompt"] == "w"
    assert len(read_lists([place / "list.json"], place, num_evaluated=2)) == 2


def test_another_emotion_on_one_span_alone():
    markup = EmotionMarkup()
    marked = markup.parse(
        "<emotion type='ang' intensity='low'>so</emotion> it <emotion type='sur' intensity='high'>is</emotion>"
    )
    for number in range(2):
        changed = changed_span(markup, marked, number)
        assert changed.text == marked.text and changed.spans[1 - number] == marked.spans[1 - number]
        assert changed.spans[number].emotion not in (marked.spans[number].emotion, "neu")
        assert changed.spans[number].intensity == marked.spans[number].intensity


class Fifths:
    """Gives each of five words a fifth of the sound; a test double."""

    def align(self, samples, rate, text):
        length = len(samples) / rate / 5
        words = tuple(AlignedInterval(w, i * length, (i + 1) * length) for i, w in enumerate(text.split()))
        return Alignment(words, None, text, 5 * length, "fifths")


def test_changes_are_held_against_another_seed(place, monkeypatch):
    monkeypatch.setattr(speak_corpus, "make_aligner", lambda name, language: Fifths())
    hparams = {
        "model": str(place / "run"),
        "lists": [str(place / "list.json")],
        "data_folder": str(place),
        "output_folder": str(place / "changes"),
        "seeds": [0],
        "seed": 0,
        "batch_size": 4,
        "judges": {"aligner": "fifths"},
        "language": "en",
    }
    metrics = run_span_changes(hparams, {"device": "cpu"})
    assert metrics["change.count"] == 3 and metrics["change.not_aligned"] == 0
    for where in ("inside", "outside", "seeds.inside", "seeds.outside"):
        assert metrics[f"change.{where}.energy"] >= 0
    lines = [json.loads(x) for x in (place / "changes" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["inside"] == [False] * 3 + [True] * 2
    assert json.loads((place / "changes" / "results.json").read_text())["metrics"] == metrics
