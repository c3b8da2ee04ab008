"""Pictures are written, hold what they should, and refuse what they cannot draw."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from speechbrain_emo import plots
from speechbrain_emo.metrics.probes import ProbeScores


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved, to look at their texts."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    return figures


def texts(figure):
    found = [t.get_text() for axes in figure.axes for t in axes.texts]
    return found + [axes.get_title() for axes in figure.axes]


def is_picture(path):
    pixels = imread(path)
    return pixels.shape[0] > 200 and pixels.shape[1] > 200 and pixels.std() > 0.01


def test_confusion_matrix_shows_counts_and_recall(tmp_path, drawn):
    path = plots.plot_confusion_matrix([[3, 1, 0], [0, 0, 0]], ["sad", "happy"], tmp_path / "a" / "c.png")
    assert is_picture(path)
    shown = texts(drawn[0])
    assert "3\n75 %" in shown and "1\n25 %" in shown and shown.count("–") == 2
    # The absent class does not lower UA; a column without unparsable answers is not drawn.
    assert any("UA 0.750" in t and "WA 0.750" in t for t in shown)
    assert [t.get_text() for t in drawn[0].axes[0].get_xticklabels()] == ["sad", "happy"]
    plots.plot_confusion_matrix([[3, 1, 2], [0, 2, 0]], ["sad", "happy"], tmp_path / "d.png")
    assert [t.get_text() for t in drawn[1].axes[0].get_xticklabels()][-1] == "(unparsable)"
    assert any("UA 0.750" in t and "WA 0.625" in t for t in texts(drawn[1]))


def test_layer_weights_has_a_line_a_branch(tmp_path, drawn):
    weights = {"content": np.full(5, 0.2), "descriptor": [0.1, 0.2, 0.3, 0.2, 0.2]}
    assert is_picture(plots.plot_layer_weights(weights, tmp_path / "w.png"))
    labels = [line.get_label() for line in drawn[0].axes[0].lines]
    assert labels == ["content", "descriptor", "uniform"]
    with pytest.raises(ValueError, match="numbers of layers"):
        plots.plot_layer_weights({"a": [1.0], "b": [0.5, 0.5]}, tmp_path / "w.png")


def test_training_curves_group_splits_and_mark_phases(tmp_path, drawn):
    log = [
        {"epoch": 1, "phase": "asr", "train": {"loss": 3.0, "kl_content": 1.0}, "valid": {"loss": 3.5}},
        {"epoch": 2, "phase": "ser", "train": {"loss": 2.0, "kl_content": 0.5}, "valid": {"loss": np.nan}},
    ]
    assert is_picture(plots.plot_training_curves(log, tmp_path / "t.png"))
    lines = {line.get_label(): line.get_xydata().tolist() for axes in drawn[0].axes for line in axes.lines}
    assert lines["train_loss"] == [[1, 3.0], [2, 2.0]] and lines["valid_loss"] == [[1, 3.5]]
    assert len(drawn[0].axes) == 2
    assert {"asr", "ser"} <= set(texts(drawn[0]))
    with pytest.raises(ValueError, match="no number"):
        plots.plot_training_curves([{"phase": "asr"}], tmp_path / "t.png")
    with pytest.raises(ValueError, match="wer"):
        plots.plot_training_curves(log, tmp_path / "t.png", panels=[["wer"]])


def test_latent_maps_carry_the_numbers(tmp_path, drawn):
    rng = np.random.default_rng(0)
    labels = {"emotion": ["sad", "happy", None] * 10, "phoneme": [f"p{i % 15}" for i in range(30)]}
    points = {"content": rng.normal(size=(30, 2)), "descriptor": rng.normal(size=(30, 2))}
    scores = {
        ("content", "emotion"): ProbeScores(0.51, 0.5, 0.5, -0.02, 30, 2, True),
        ("descriptor", "phoneme"): ProbeScores(None, None, None, None, 30, 2, True, "one label only (p1)"),
    }
    assert is_picture(plots.plot_latent_maps(points, labels, scores, tmp_path / "m.png"))
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(titles) == 4
    assert "probe 0.51" in titles[0] and "silhouette -0.02" in titles[0]
    assert "not probed" in titles[1] and "one label only" in titles[3]
    # Points without a label are not drawn; kinds beyond the colours are grey.
    shown = sum(len(c.get_offsets()) for c in drawn[0].axes[0].collections)
    assert shown == 20
    names = [c.get_label() for c in drawn[0].axes[1].collections]
    assert names[0] == "other" and len(names) == plots.MAX_KINDS + 1
    looks = [
        (tuple(c.get_facecolor()[0]), len(c.get_paths()[0].vertices)) for c in drawn[0].axes[1].collections
    ]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda path: plots.plot_confusion_matrix([[1]], ["a", "b"], path / "c.png"), "shape"),
        (lambda path: plots.plot_confusion_matrix([[1]], ["a"], path / "c.txt"), ".png"),
        (lambda path: plots.plot_latent_maps({}, {}, {}, path / "m.png"), "nothing to draw"),
        (
            lambda path: plots.plot_latent_maps({"z": [[0, 0]]}, {"e": ["a", "b"]}, {}, path / "m.png"),
            "2 labels of e",
        ),
        (
            lambda path: plots.plot_latent_maps({"z": [[0, 0, 0]]}, {"e": ["a"]}, {}, path / "m.png"),
            "vectors, 2",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, call, word):
    with pytest.raises(ValueError, match=word):
        call(tmp_path)


def test_speech_is_drawn_beside_its_reference(tmp_path, drawn):
    def tones(*pitches):
        time = np.arange(6400) / 16000
        return np.concatenate([0.1 * np.sin(2 * np.pi * pitch * time) for pitch in pitches])

    words = [(name, 0.4 * i, 0.4 * (i + 1)) for i, name in enumerate(("so", "it", "is"))]
    sounds = {"output": (tones(128, 128, 256), words), "reference": (tones(200, 200, 400), words)}
    path = plots.plot_speech(
        sounds, 16000, ["neu", None, "hap"], ["hap", "neu"], tmp_path / "y.png", "so it is"
    )
    assert is_picture(path)
    assert texts(drawn[0]).count("so") == 2, "both mels name their words"
    pitch = drawn[0].axes[2]
    lines = {
        line.get_label(): line.get_ydata() for line in pitch.lines if not line.get_label().startswith("_")
    }
    # An octave up on the last word in both: against their own means they are the same, though the voices differ.
    for name in ("output", "reference"):
        np.testing.assert_allclose(lines[name], [-1 / 3, -1 / 3, 2 / 3], atol=0.05)
    legend = [t.get_text() for t in drawn[0].legends[0].get_texts()]
    assert legend == ["output", "reference", "hap", "neu"]
    assert is_picture(plots.plot_speech({"output": (tones(150), [])}, 16000, [], ["hap"], tmp_path / "z.png"))
    with pytest.raises(ValueError, match="2 marks"):
        plots.plot_speech(sounds, 16000, ["neu", "neu"], ["hap", "neu"], tmp_path / "y.png")


def test_a_sweep_has_a_panel_a_quantity_and_a_line_an_emotion(tmp_path, drawn):
    rows = [{"emotion": "plain", "intensity": None, "wer": 0.05, "probability": None}]
    for emotion in ("hap", "sad"):
        rows += [
            {"emotion": emotion, "intensity": i / 2, "wer": 0.1 * i, "probability": 0.3} for i in (2, 0, 1)
        ]
    names = {"wer": "WER", "probability": "probability"}
    assert is_picture(plots.plot_intensity_sweep(rows, names, tmp_path / "s.png"))
    first, second = drawn[0].axes[:2]
    assert [line.get_label() for line in first.lines] == ["hap", "sad", "no marks"]
    assert [line.get_label() for line in second.lines] == ["hap", "sad"]
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0, 0.1, 0.2])
    with pytest.raises(ValueError, match="give marked rows"):
        plots.plot_intensity_sweep(rows[:1], names, tmp_path / "s.png")
