"""Evaluation lists: spoken once, resumed, scored against the natural variation."""

import json

import pytest
import soundfile
import tiny_tts

from speechbrain_emo.alignment import AlignedInterval, Alignment
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.inference import EmotionalTTS, intensity_sweep, speak_corpus, speech_scores
from speechbrain_emo.inference.speak_corpus import changed_span, read_lists, run_span_changes
from speechbrain_emo.inference.speech_scores import Judges
from speechbrain_emo.inference.word_annotation import AnnotatedWord, WordAnnotation
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
    # A list that was changed: what an output was not asked for is not kept under its id.
    changed = {**records, "u0": {**records["u0"], "prompt_text": "I said nothing"}}
    changed["u2"] = {**records["u2"], "markup": records["u2"]["markup"].replace("ang", "sad")}
    spoken.clear()
    speak_corpus.speak_corpus(tts, changed, place / "out", progress=False)
    assert sorted(spoken) == sorted(changed[key]["markup"] for key in ("u0", "u2"))
    lines = [json.loads(x) for x in (place / "out" / "outputs.jsonl").read_text().splitlines()]
    assert {x["id"]: x["markup"] for x in lines} == {k: r["markup"] for k, r in changed.items()}
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


@pytest.mark.parametrize("run", ["run_speak_corpus", "run_span_changes"])
def test_a_missing_judge_is_told_with_its_command_before_anything_is_spoken(place, run):
    commands = {"annotator": "python train.py hparams/demo_word_emotion.yaml"}
    absent = str(place / "absent")
    hparams = settings(place, "early", judges={"annotator": absent, "aligner": "none"}, commands=commands)
    with pytest.raises(ManifestError, match="annotator is .*absent.* python train.py hparams/demo_word"):
        getattr(speak_corpus, run)(hparams, {"device": "cpu"})
    assert not (place / "early").exists()


class Fifths:
    """Gives each of five words a fifth of the sound; a test double."""

    def align(self, samples, rate, text):
        length = len(samples) / rate / 5
        words = tuple(AlignedInterval(w, i * length, (i + 1) * length) for i, w in enumerate(text.split()))
        return Alignment(words, None, text, 5 * length, "fifths")


def settings(place, name, **more):
    return {
        "model": str(place / "run"),
        "lists": [str(place / "list.json")],
        "data_folder": str(place),
        "output_folder": str(place / name),
        "seeds": [0],
        "seed": 0,
        "batch_size": 4,
        "judges": {"aligner": "fifths"},
        "language": "en",
        **more,
    }


class Annotator:
    """Hears the second half of every sentence as happy; a test double."""

    settings = {
        "labels": tiny_tts.LABELS,
        "intensities": ["low", "medium", "high"],
        "untagged": ["neu", "low"],
    }

    def annotate_file(self, path, alignment):
        words = []
        for number, word in enumerate(alignment.words):
            heard = "hap" if number >= 3 else "neu"
            chances = {label: 0.6 if label == heard else 0.1 for label in tiny_tts.LABELS}
            words.append(
                AnnotatedWord(word.label, word.start, word.end, heard, "low", 0.6, chances, 0.5, 0.5, 0.5)
            )
        return WordAnnotation(str(path), alignment.text, alignment.duration, tuple(words))


def judges(**given):
    return Judges(
        asr=lambda paths: ["so it is you see"] * len(paths), annotator=Annotator(), aligner="fifths"
    )


@pytest.fixture
def doubles(monkeypatch):
    for module in (speak_corpus, speech_scores):
        monkeypatch.setattr(module, "make_aligner", lambda name, language: Fifths())
    for module in (speak_corpus, intensity_sweep):
        monkeypatch.setattr(module, "make_judges", judges)


def test_marks_are_scored_beside_their_floor_and_ceiling(place, doubles):
    records = json.loads((place / "list.json").read_text())
    for key in ("u0", "u1"):
        records[key]["reference"] = "{data_root}/me.wav"
    (place / "referenced.json").write_text(json.dumps(records))
    hparams = settings(place, "floor", lists=[str(place / "referenced.json")], seeds=[0, 1])
    hparams.update(conditions=["marked", "neutral", "recordings"], num_pictures=1)
    metrics = speak_corpus.run_speak_corpus(hparams, {"device": "cpu"})
    # One of three spans is happy, and happy is what is heard, whatever was said; two recordings, one of them happy.
    assert metrics["speech.span_accuracy"] == metrics["neutral.span_accuracy"] == pytest.approx(1 / 3)
    assert metrics["recordings.span_accuracy"] == 0.5 and metrics["recordings.count"] == 2
    assert (
        "recordings.mcd" not in metrics and metrics["speech.mcd_count"] == 2 and metrics["neutral.wer"] == 0
    )
    stored = json.loads((place / "floor" / "results.json").read_text())
    assert stored["metrics"] == metrics and stored["seeds"] == [0, 1]
    lines = {}
    for name in ("seed_0", "neutral_0"):
        text = (place / "floor" / name / "outputs.jsonl").read_text()
        lines[name] = {row["id"]: row for row in map(json.loads, text.splitlines())}
    for key, row in lines["neutral_0"].items():
        assert row["markup"] == records[key]["markup"] and row["spoken"] == row["text"] == "so it is you see"
        assert row["seed"] == lines["seed_0"][key]["seed"] and row["tokens"] != lines["seed_0"][key]["tokens"]
    pictures = sorted(p.name for p in (place / "floor").glob("*/scores/*.png"))
    assert pictures == ["confusion_words.png"] * 5 + ["u0.png"] * 5
    # Two of five words are marked: all neutral words are heard right, of the marked ones the happy sentence alone.
    assert metrics["speech.word_emotion_ua"] == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert metrics["speech.word_emotion_accuracy"] == pytest.approx((9 + 2) / 15)
    with pytest.raises(ValueError, match="allowed: marked, neutral, recordings"):
        speak_corpus.run_speak_corpus(settings(place, "x", conditions=["loud"]), {"device": "cpu"})


def test_a_sweep_says_every_sentence_at_every_intensity(place, doubles):
    hparams = settings(place, "sweep", num_evaluated=2, steps=5)
    metrics = intensity_sweep.run_intensity_sweep(hparams, {"device": "cpu"})
    assert metrics["sweep.sentences"] == 2
    emotions = [label for label in tiny_tts.LABELS if label != "neu"]
    for emotion in emotions:
        for level in range(3):
            assert metrics[f"sweep.{emotion}.{level}.probability"] == pytest.approx(
                0.1 * 3 / 5 + 0.6 * 2 / 5 if emotion == "hap" else 0.1
            )
            assert metrics[f"sweep.{emotion}.{level}.wer"] == 0
            assert metrics[f"sweep.{emotion}.{level}.duration_ratio"] > 0
        assert metrics[f"sweep.{emotion}.trend.probability"] == 0
    rows = [json.loads(x) for x in (place / "sweep" / "seed_0" / "outputs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (1 + 3 * len(emotions))
    assert len({row["seed"] for row in rows}) == 2, "one seed a sentence"
    assert (place / "sweep" / "sweep.png").stat().st_size > 1000


def test_a_continuous_model_is_swept_in_finer_steps(place, doubles):
    tiny_tts.build_tts(place / "continuous", intensity="continuous")
    hparams = settings(place, "fine", model=str(place / "continuous" / "run"), num_evaluated=1, steps=5)
    metrics = intensity_sweep.run_intensity_sweep(hparams, {"device": "cpu"})
    assert {key.split(".")[2] for key in metrics if key.startswith("sweep.hap.")} == {*"01234", "trend"}
    assert json.loads((place / "fine" / "results.json").read_text())["intensities"] == [
        "0",
        "25",
        "50",
        "75",
        "100",
    ]
    with pytest.raises(ValueError, match="steps is 1"):
        intensity_sweep.run_intensity_sweep({**hparams, "steps": 1}, {"device": "cpu"})


def test_trends_are_of_sentences_and_shifts_of_the_same_sentence():
    def line(sentence, emotion, level, f0, energy):
        found = {"f0": f0, "f0_range": f0, "energy": energy, "duration": 2.0, "eos": 1.0}
        return {
            "sentence": sentence,
            "emotion": emotion,
            "level": level,
            "text": "so it is",
            "heard": "so is",
            **found,
        }

    lines = [line("a", None, None, 7.0, -30.0), line("b", None, None, 8.0, -20.0)]
    lines += [line("a", "hap", level, 7.0 + 0.1 * level, -30.0 - level) for level in range(3)]
    lines += [
        line("b", "hap", level, None if level == 1 else 8.0 + 0.3 * level, -20.0 + level)
        for level in range(3)
    ]
    metrics, rows = intensity_sweep.sweep_metrics(lines, 3)
    assert metrics["sweep.hap.2.f0_shift"] == pytest.approx((0.2 + 0.6) / 2)
    assert metrics["sweep.hap.1.f0_shift"] == pytest.approx(0.1), "where F0 is not known, it counts not"
    assert (
        metrics["sweep.hap.2.energy_shift"] == pytest.approx(0) and metrics["sweep.hap.trend.f0_shift"] == 1
    )
    assert metrics["sweep.hap.trend.energy_shift"] == 0, "one rises, one falls"
    assert metrics["sweep.hap.0.wer"] == pytest.approx(1 / 3) and metrics["sweep.plain.wer"] == pytest.approx(
        1 / 3
    )
    assert [row["intensity"] for row in rows] == [None, 0.0, 0.5, 1.0]
    # An output in which no word is understood has lost them all; it is not left out of the WER.
    lines[2]["heard"] = None
    assert intensity_sweep.sweep_metrics(lines, 3)[0]["sweep.hap.0.wer"] == pytest.approx((3 + 1) / 6)


def test_changes_are_held_against_another_seed(place, monkeypatch):
    monkeypatch.setattr(speak_corpus, "make_aligner", lambda name, language: Fifths())
    metrics = run_span_changes(settings(place, "changes"), {"device": "cpu"})
    assert metrics["change.count"] == 3 and metrics["change.not_aligned"] == 0
    for where in ("inside", "outside", "seeds.inside", "seeds.outside"):
        assert metrics[f"change.{where}.energy"] >= 0
    lines = [json.loads(x) for x in (place / "changes" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["inside"] == [False] * 3 + [True] * 2
    assert json.loads((place / "changes" / "results.json").read_text())["metrics"] == metrics
