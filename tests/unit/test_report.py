"""The report: one file, nothing from outside, what is there and nothing that is not."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from speechbrain_emo import results
from speechbrain_emo.plots import plot_confusion_matrix
from speechbrain_emo.report import worst_mistakes, write_report
from tests.tiny import voiced_tone

LABELS = ["happy", "sad"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def line(number, reference, probability_of_sad, **more):
    scores = {"sad": float(np.log(probability_of_sad)), "happy": float(np.log(1 - probability_of_sad))}
    return {
        "id": f"u{number}",
        "speaker": f"s{number % 2}",
        "emotion": reference,
        "scores": {"own_chain": scores, "speech": scores},
        "transcript": "the sky",
        "hypothesis": "the <b>sky</b>",
        "descriptors": {"pitch": "low", "emphasis": []},
        "predicted_descriptors": {"pitch": "high", "emphasis": ["sky"]},
        "answered": {"own_chain": probability_of_sad > 0.8},
        **more,
    }


@pytest.fixture
def run(tmp_path):
    """A run's folder: 6 utterances, 4 of them wrong, with audio, manifest, picture and data check."""
    folder, data = tmp_path / "exp" / "7", tmp_path / "data"
    data.mkdir()
    lines = [
        line(0, "happy", 0.95),
        line(1, "happy", 0.6),
        line(2, "sad", 0.9),
        line(3, "happy", 0.99),
        line(4, "sad", 0.3),
        line(5, "sad", 0.7),
    ]
    manifest = {}
    for i, x in enumerate(lines):
        soundfile.write(data / f"{i}.wav", voiced_tone(0.5, 120 + 10 * i), 16000)
        manifest[x["id"]] = {
            "wav": f"{{data_root}}/{i}.wav",
            "duration": 0.5,
            "speaker": x["speaker"],
            "gender": None,
            "transcript": "the sky",
            "emotion": x["emotion"],
            "descriptors": {},
        }
    (data / "test.json").write_text(json.dumps(manifest))
    check = {
        "findings": [
            {"kind": "clipped", "count": 7, "message": "7 files", "items": [f"f{i}" for i in range(7)]}
        ]
    }
    (data / "data_check.json").write_text(json.dumps(check))
    evaluation = {"labels": LABELS, "fields": ["pitch"], "temperature": {"own_chain": 1.0, "speech": 1.0}}
    metrics = results.compute_results(lines, java=False, num_resamples=50, **evaluation)
    metrics["test.ser.own_chain.abstain_below"] = 0.8
    metrics["test.sed.faithfulness.pitch"], metrics["test.sed.faithfulness.pitch_balanced"] = 0.5, 0.4
    metrics["diagnoses"] = ["Branch content has collapsed"]
    hparams = {
        "experiment": "exp",
        "lr": 0.25,
        "data_folder": str(data),
        "manifests": {"test": str(data / "test.json")},
    }
    results.write_predictions(folder, lines)
    results.write_results(
        folder, metrics, results.run_context(seed=7, hparams=hparams, evaluation=evaluation)
    )
    plot_confusion_matrix([[1, 2], [1, 2]], LABELS, folder / "confusion_own_chain.png")
    return folder


def test_one_file_that_needs_no_network(run):
    text = write_report(run).read_text("utf-8")
    page = Page(text)
    assert (run / "report.html").is_file()
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    assert "http://" not in text and "https://" not in text and not page.of("link") and not page.of("script")


def test_settings_tables_pictures_faithfulness_and_data_check(run):
    page = Page(write_report(run).read_text("utf-8"))
    words = "\n".join(page.text)
    for expected in (
        "label|own_chain",
        "0.500",
        '"lr": 0.25',
        "clipped",
        "and 2 more",
        "agrees with measurement",
    ):
        assert expected in words, expected
    assert "Branch content has collapsed" in words and "says that it is not sure" in words
    picture = base64.b64decode(page.of("img")[0]["src"].split(",", 1)[1])
    assert picture == (run / "confusion_own_chain.png").read_bytes()


def test_mistakes_are_the_surest_first_and_can_be_heard(run):
    predictions = results.read_predictions(run)
    assert [m["id"] for m in worst_mistakes(predictions, 3)] == ["u3", "u0", "u4"]
    text = write_report(run).read_text("utf-8")
    players = Page(text).of("audio")
    assert len(players) == 4
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(players[0]["src"].split(",", 1)[1])))
    original, _ = soundfile.read(run.parents[1] / "data" / "3.wav")
    assert rate == 16000 and np.abs(heard - original).max() < 1e-3
    assert "<b>sky</b>" not in text  # words of a corpus are no HTML


def test_players_are_capped_and_absent_audio_is_said(run):
    size = len(Page(write_report(run).read_text("utf-8")).of("audio")[0]["src"])
    page = Page(write_report(run, audio_bytes=1.5 * size).read_text("utf-8"))
    assert len(page.of("audio")) == 1 and "have no player" in "".join(page.text)
    for path in (run.parents[1] / "data").glob("*.wav"):
        path.unlink()
    page = Page(write_report(run, out=run / "x.html").read_text("utf-8"))
    assert not page.of("audio") and "4 of 4 recordings have no player" in "".join(page.text)


def test_a_bare_folder(tmp_path):
    results.write_results(tmp_path, {"test.emotion.both.accuracy": 0.5}, {"seed": 1})
    assert "0.5000" in write_report(tmp_path).read_text("utf-8")
    with pytest.raises(FileNotFoundError, match="results.json"):
        write_report(tmp_path / "none")
