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
