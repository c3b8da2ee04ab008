"""Pictures of a run (confusion matrix, layer weights, training curves, maps of the latents) and of a recording.

Colours are those of M. Okabe and K. Ito 2008, "Color Universal Design", and ``viridis``/``Blues``, which
readers with colour-vision deficiencies can tell apart; markers differ as well where classes are shown.
"""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

__all__ = [
    "plot_confusion_matrix",
    "plot_explanation",
    "plot_film",
    "plot_group_means",
    "plot_intensity_sweep",
    "plot_latent_maps",
    "plot_layer_weights",
    "plot_next_line",
    "plot_risk_coverage",
    "plot_speech",
    "plot_timeline",
    "plot_training_curves",
    "plot_word_emotions",
]

# Okabe-Ito without yellow, which is faint on white; then, for many kinds, some of Paul Tol's "muted" scheme.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933", "#332288", "#44AA99", "#AA4499"),
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
DPI = 130
# More kinds than this are not told apart by colour: the rest is grey.
MAX_KINDS = len(COLOURS)


def _figure(width, height):
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path):
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path is {path}: give a file name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def plot_confusion_matrix(confusion, labels, path, title="Confusion matrix"):
    """Counts and recall of every pair of reference and predicted label.

    Arguments
    ---------
    confusion : array
        Counts, (K, K) or (K, K + 1): rows are the reference; an extra last column counts utterances without
        a usable prediction and is shown only if it holds any.
    labels : sequence of str
        K names.
    path : str or Path
        PNG file to write.
    title : str
        Title; UA and WA are written below it.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If shapes do not fit or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/confusion.png"
    >>> path = plot_confusion_matrix([[8, 2], [1, 9]], ["happy", "sad"], path)
    >>> path.stat().st_size > 1000
    True
    """
    confusion = np.asarray(confusion)
    labels = [str(label) for label in labels]
    size = len(labels)
    if confusion.shape not in ((size, size), (size, size + 1)):
        raise ValueError(
            f"confusion has shape {confusion.shape}, for {size} labels: give as many rows, and columns "
            "as many or one more"
        )
    columns = list(labels)
    if confusion.shape[1] > size:
        if confusion[:, size].any():
            columns.append("(unparsable)")
        else:
            confusion = confusion[:, :size]
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    recalls = np.diagonal(shares)[totals[:, 0] > 0]
    ua = recalls.mean() if len(recalls) else 0.0
    wa = np.trace(confusion[:, :size]) / max(1, confusion.sum())
    figure = _figure(1.9 + 0.85 * len(columns), 1.7 + 0.75 * size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row in range(size):
        for column in range(len(columns)):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{confusion[row, column]}\n{100 * share:.0f} %" if totals[row, 0] else "–",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share > 0.55 else "black",
            )
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), [f"{label} ({total})" for label, total in zip(labels, totals[:, 0])])
    axes.set_xlabel("predicted")
    axes.set_ylabel("reference (utterances)")
    axes.set_title(f"{title}\nUA {ua:.3f}   WA {wa:.3f}", fontsize=11)
    figure.colorbar(image, ax=axes, label="share of the reference's row")
    return _save(figure, path)


def plot_layer_weights(weights, path, title="Weights of the encoder's layers"):
    """Learned softmax weights over the encoder's layers, one line a branch.

    Arguments
    ---------
    weights : dict
        Branch -> weights (L,), summing to 1. Index 0 is the input of the first layer.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no branch, or the branches differ in length.

    Example
    -------
    >>> import tempfile
    >>> weights = {"content": [0.1, 0.2, 0.7], "descriptor": [0.6, 0.3, 0.1]}
    >>> plot_layer_weights(weights, tempfile.mkdtemp() + "/layer_weights.png").name
    'layer_weights.png'
    """
    weights = {str(k): np.asarray(v, dtype=float).reshape(-1) for k, v in weights.items()}
    lengths = {len(v) for v in weights.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"numbers of layers are {dict((k, len(v)) for k, v in weights.items())}: give equal ones, not 0"
        )
    (num_layers,) = lengths
    figure = _figure(max(5.0, 2.5 + 0.25 * num_layers), 3.6)
    axes = figure.add_subplot()
    for i, (name, values) in enumerate(weights.items()):
        axes.plot(
            range(num_layers),
            values,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            label=name,
        )
    axes.axhline(1 / num_layers, color="0.55", linestyle=":", label="uniform")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
    axes.set_xlabel("encoder layer (0: input of the first)")
    axes.set_ylabel("softmax weight")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return _save(figure, path)


def plot_training_curves(log, path, panels=None, title="Training"):
    """Curves of the train log, one panel a group of quantities.

    Arguments
    ---------
    log : sequence of dict
        One entry an epoch, in order: quantity -> number, also one level down (``{"train": {"loss": 1.0}}``
        is ``train_loss``); other values are ignored. ``epoch`` is the position
        (default: the entry's number) and ``phase``, a name, marks where phases begin.
    path : str or Path
        PNG file to write.
    panels : sequence of sequence of str, optional
        Quantities of each panel. Default: quantities share a panel whose names begin with the same word once
        train, valid and test are taken off (``train_loss`` and ``valid_loss``; ``kl_content`` and
        ``kl_descriptor``).
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If the log has no number to draw, or a panel names an unknown quantity.

    Example
    -------
    >>> import tempfile
    >>> log = [{"epoch": 1, "phase": "asr", "train_loss": 3.0},
    ...        {"epoch": 2, "phase": "ser", "train_loss": 2.0}]
    >>> plot_training_curves(log, tempfile.mkdtemp() + "/curves.png").name
    'curves.png'
    """
    log = [_flat(entry) for entry in log]
    numbers = {}
    for i, entry in enumerate(log):
        position = entry.get("epoch", i + 1)
        for name, value in entry.items():
            plain = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if name != "epoch" and plain and np.isfinite(value):
                numbers.setdefault(name, []).append((position, float(value)))
    if not numbers:
        raise ValueError(f"the log has {len(log)} entries and no number to draw: is it the train log?")
    if panels is None:
        groups = {}
        for name in numbers:
            groups.setdefault(_quantity(name), []).append(name)
        panels = list(groups.values())
    unknown = [name for panel in panels for name in panel if name not in numbers]
    if unknown:
        raise ValueError(f"panels name {unknown}: the log has {sorted(numbers)}")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(4.1 * columns, 2.9 * rows + 0.4)
    starts = [
        (entry.get("epoch", i + 1), entry["phase"])
        for i, entry in enumerate(log)
        if entry.get("phase") is not None and (i == 0 or entry["phase"] != log[i - 1].get("phase"))
    ]
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for i, name in enumerate(panel):
            x, y = zip(*numbers[name])
            axes.plot(
                x,
                y,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4 if len(x) < 60 else 0,
                label=name,
            )
        for k, (start, phase) in enumerate(starts):
            axes.axvline(start - 0.5, color="0.6", linestyle=":", linewidth=1)
            # Every other name lower, so that short phases do not write over each other.
            axes.text(
                start - 0.4,
                0.99 - 0.08 * (k % 2),
                str(phase),
                transform=axes.get_xaxis_transform(),
                fontsize=7,
                color="0.35",
                va="top",
            )
        axes.margins(y=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("epoch")
        axes.set_ylabel(panel[0] if len(panel) == 1 else _quantity(panel[0]))
        axes.grid(alpha=0.25)
        if len(panel) > 1:
            axes.legend(fontsize=7, frameon=False, loc="best")
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def _flat(entry):
    """An entry of the log with nested quantities brought up: train -> loss becomes train_loss."""
    flat = {}
    for name, value in entry.items():
        if isinstance(value, dict):
            flat.update({f"{name}_{inner}": v for inner, v in value.items()})
        else:
            flat[name] = value
    return flat


def _quantity(name):
    """First word of a quantity's name after the split's: what its axis shows."""
    words = name.replace("_", " ").replace(".", " ").replace("/", " ").split()
    rest = [w for w in words if w not in ("train", "valid", "test")]
    return (rest or words)[0]


def _kinds(values):
    """Kinds to colour, most frequent first; the rest shares the last place."""
    names, counts = np.unique([str(v) for v in values if v is not None], return_counts=True)
    order = names[np.argsort(-counts, kind="stable")].tolist()
    return sorted(order[:MAX_KINDS]), len(order) > MAX_KINDS


def plot_latent_maps(coordinates, labels, scores, path, title="Latents"):
    """Two-dimensional maps: one row a latent, one column a kind of label.

    Arguments
    ---------
    coordinates : dict
        Latent -> (N, 2), from ``metrics.probes.latent_map``. What stands after a comma in a latent's name
        (``content, frames``) is the unit of its vectors: latents that differ in it share a row.
    labels : dict
        Kind (``emotion``, ``speaker``, ``phoneme``) -> N labels (``None``: not drawn), or
        latent -> kind -> N labels where latents have different vectors.
    scores : dict
        (latent, kind) -> ``ProbeScores``; its numbers stand in the panel's title.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is nothing to draw or lengths differ.

    Example
    -------
    >>> import tempfile
    >>> from speechbrain_emo.metrics.probes import probe_latents
    >>> z = np.repeat([[0.0, 1.0], [1.0, 0.0]], 6, axis=0)
    >>> labels = {"emotion": ["sad"] * 6 + ["happy"] * 6}
    >>> scores = probe_latents({"content": z}, labels)
    >>> plot_latent_maps({"content": z}, labels, scores, tempfile.mkdtemp() + "/latents.png").name
    'latents.png'
    """
    nested = bool(labels) and all(isinstance(v, dict) for v in labels.values())
    panels = {}
    for latent in coordinates:
        for kind, values in (labels[latent] if nested else labels).items():
            row = panels.setdefault(latent.split(",")[0], [])
            row.append((latent, kind, list(values)))
    if not panels:
        raise ValueError("nothing to draw: give at least one latent and one kind of label")
    columns = max(len(row) for row in panels.values())
    figure = _figure(4.6 * columns + 0.3, 3.7 * len(panels) + 0.5)
    for i, row in enumerate(panels.values()):
        for k, (latent, kind, values) in enumerate(row):
            points = np.asarray(coordinates[latent], dtype=float)
            if points.ndim != 2 or points.shape[1] != 2:
                raise ValueError(f"coordinates of {latent} have shape {points.shape}: give (vectors, 2)")
            if len(values) != len(points):
                raise ValueError(f"{len(values)} labels of {kind} but {len(points)} points of {latent}")
            axes = figure.add_subplot(len(panels), columns, i * columns + k + 1)
            _scatter(axes, points, values)
            axes.set_title(f"{latent}: {kind}\n{_describe(scores.get((latent, kind)))}", fontsize=9)
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def _scatter(axes, points, values):
    """Points coloured by kind; rare kinds beyond the palette are grey, points without one are left out."""
    names, rest = _kinds(values)
    texts = np.array(["" if v is None else str(v) for v in values])
    size = 14 if len(points) < 600 else 6
    if rest:
        other = ~np.isin(texts, [*names, ""])
        axes.scatter(*points[other].T, s=size, color="0.8", label="other", linewidths=0)
    for i, name in enumerate(names):
        marker = MARKERS[i % len(MARKERS)]
        axes.scatter(
            *points[texts == name].T,
            s=size,
            color=COLOURS[i],
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=name,
        )
    axes.set_xlabel("t-SNE 1")
    axes.set_ylabel("t-SNE 2")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(
        fontsize=7,
        frameon=False,
        markerscale=1.6 if size < 10 else 1.0,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handletextpad=0.1,
        borderpad=0,
    )


def _describe(score):
    if score is None:
        return "not probed"
    if score.accuracy is None:
        return f"no probe: {score.reason}"
    text = f"probe {score.accuracy:.2f} (most frequent {score.chance:.2f})"
    return text if score.silhouette is None else f"{text}, silhouette {score.silhouette:+.2f}"


def plot_group_means(groups, path, title, label):
    """A mean with its interval for each group.

    Arguments
    ---------
    groups : dict
        Name -> (mean, low, high).
    path : str or Path
        PNG file to write.
    title, label : str
        Of the picture and of the vertical axis.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no group or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> plot_group_means({"sad": (0.3, 0.2, 0.4)}, tempfile.mkdtemp() + "/means.png", "Arousal", "mean").name
    'means.png'
    """
    if not groups:
        raise ValueError("there is no group to draw")
    figure = _figure(max(5.0, 1.5 + 0.9 * len(groups)), 3.8)
    axes = figure.add_subplot()
    for i, (mean, low, high) in enumerate(groups.values()):
        axes.errorbar(
            i,
            mean,
            yerr=[[max(mean - low, 0)], [max(high - mean, 0)]],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            capsize=4,
        )
    axes.set_xticks(range(len(groups)), [str(name) for name in groups], rotation=20)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=11)
    axes.grid(axis="y", alpha=0.25)
    return _save(figure, path)


def plot_word_emotions(samples, sample_rate, words, labels, path, title=""):
    """Timeline of a recording: waveform, F0 and the words with their emotions and dimensions.

    Arguments
    ---------
    samples : array
        Float (N,), full scale 1.
    sample_rate : int
        Hz.
    words : sequence of dict
        ``word``, ``start``, ``end`` (seconds), ``emotion``, ``intensity``, ``confidence``, ``valence``, ``arousal``
        and ``dominance`` in [0, 1].
    labels : sequence of str
        All emotions, in order: their colours.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If a word's emotion is none of the labels, there are no samples, or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> word = {"word": "oh", "start": 0.1, "end": 0.4, "emotion": "sad", "intensity": "low", "confidence": 0.8}
    >>> word.update(valence=0.2, arousal=0.3, dominance=0.3)
    >>> tone = 0.1 * np.sin(2 * np.pi * 150 * np.arange(8000) / 16000)
    >>> plot_word_emotions(tone, 16000, [word], ["hap", "sad"], tempfile.mkdtemp() + "/words.png").name
    'words.png'
    """
    from speechbrain_emo.dataio.compiled_librosa import librosa

    samples = np.asarray(samples, dtype=np.float32).reshape(-1)
    labels = [str(label) for label in labels]
    unknown = sorted({word["emotion"] for word in words} - set(labels))
    if unknown or not len(samples):
        raise ValueError(
            f"{len(samples)} samples, emotions {unknown} not among {labels}: give audio and all labels"
        )
    colours = {label: COLOURS[i] if i < MAX_KINDS else "0.5" for i, label in enumerate(labels)}
    duration = len(samples) / sample_rate
    figure = _figure(min(max(8.0, 2.2 * duration, 0.75 * len(words)), 40.0), 6.2)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(1.0, 2.0, 2.0, 2.0))
    axes[1].fill_between(*_envelope(samples, sample_rate), color="0.25", linewidth=0)
    axes[1].set_ylabel("waveform")
    # Up to 500 Hz, as the descriptors measure it.
    low = librosa.resample(samples, orig_sr=sample_rate, target_sr=8000) if sample_rate != 8000 else samples
    low = np.pad(low, (0, max(0, 1024 - len(low))))
    f0, voiced, _ = librosa.pyin(low, fmin=60, fmax=500, sr=8000, frame_length=512, hop_length=80)
    f0 = np.where(voiced, f0, np.nan)
    axes[2].plot(np.arange(len(f0)) * 0.01, f0, ".", color="black", markersize=2.5)
    axes[2].set_ylabel("F0 (Hz)")
    for word in words:
        for axis in axes:
            axis.axvspan(word["start"], word["end"], color=colours[word["emotion"]], alpha=0.22, linewidth=0)
        middle = (word["start"] + word["end"]) / 2
        axes[0].text(middle, 0.72, word["word"], ha="center", va="center", fontsize=9)
        mark = f"{word['emotion']} {word['intensity']}\n{100 * word['confidence']:.0f} %"
        axes[0].text(middle, 0.26, mark, ha="center", va="center", fontsize=6.5)
    axes[0].set_ylim(0, 1)
    axes[0].set_yticks([])
    for number, name in enumerate(("arousal", "valence", "dominance")):
        xs, ys = [], []
        for word in words:
            xs += [word["start"], word["end"], word["end"]]
            ys += [word[name], word[name], np.nan]
        axes[3].plot(xs, ys, color="black", linestyle=("-", "--", ":")[number], linewidth=2, label=name)
    axes[3].set_ylim(0, 1)
    axes[3].set_ylabel("dimensions")
    axes[3].set_xlabel("time (s)")
    axes[3].set_xlim(0, duration)
    handles, names = axes[3].get_legend_handles_labels()
    for label in labels:
        if any(word["emotion"] == label for word in words):
            handles.append(Rectangle((0, 0), 1, 1, color=colours[label], alpha=0.35, linewidth=0))
            names.append(label)
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(len(names), 8), frameon=False, fontsize=8
    )
    if title:
        axes[0].set_title(title, fontsize=11)
    return _save(figure, path)


def plot_risk_coverage(curves, path, points=None, title="Errors among what is answered"):
    """Risk-coverage curves: how the error falls when unsure utterances are not answered.

    Arguments
    ---------
    curves : dict
        Name -> ``metrics.abstention.RiskCoverage``.
    path : str or Path
        PNG file to write.
    points : dict, optional
        Name -> (coverage, risk) under the threshold that was chosen on validation data.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no curve or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> from speechbrain_emo.metrics.abstention import risk_coverage
    >>> curve = risk_coverage([0.9, 0.8, 0.4], [True, True, False])
    >>> plot_risk_coverage({"speech": curve}, tempfile.mkdtemp() + "/risk.png", {"speech": (0.67, 0.0)}).name
    'risk.png'
    """
    if not curves:
        raise ValueError("there is no curve to draw")
    figure = _figure(5.6, 4.0)
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(curve.coverage, curve.risk, color=colour, label=f"{name} (area {curve.area:.3f})")
        if points and points.get(name) is not None and points[name][1] is not None:
            axes.plot(*points[name], "o", color=colour, markersize=8)
            axes.annotate(
                "chosen on validation", points[name], (6, -12), textcoords="offset points", fontsize=7
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage: share of utterances that are answered")
    axes.set_ylabel("risk: share of errors among them")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _envelope(samples, sample_rate, most=6000):
    """Times, lowest and highest samples of at most ``most`` columns: a minute of samples would be a million points."""
    step = max(1, len(samples) // most)
    blocks = samples[: len(samples) // step * step].reshape(-1, step)
    return (np.arange(len(blocks)) + 0.5) * step / sample_rate, blocks.min(1), blocks.max(1)


def plot_explanation(samples, sample_rate, curves, summary, path):
    """What the model says about a recording beside what is measured in it.

    Arguments
    ---------
    samples : array
        Float (N,), full scale 1.
    sample_rate : int
        Hz.
    curves : dict
        Of :func:`speechbrain_emo.dataio.descriptors.curves`.
    summary : dict
        ``title`` and ``transcript`` (str or None), ``probabilities`` (label -> float), ``rows`` (sequence of
        (field, what the model says, measured value, place in training, whether they contradict)), ``warnings``
        (sequence of str), ``f0_edges`` (two values in Hz between which pitch is normal, or None).
    path : str or Path
        PNG file to write.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there are no samples or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> from speechbrain_emo.dataio.descriptors import curves
    >>> tone = 0.1 * np.sin(2 * np.pi * 150 * np.arange(8000) / 16000)
    >>> summary = {"title": "a.wav: sad (80 %)", "transcript": None, "probabilities": {"sad": 0.8, "happy": 0.2},
    ...            "rows": [("pitch", "low", "150 Hz", "20th percentile of male speakers", False)],
    ...            "warnings": [], "f0_edges": (160.0, 200.0)}
    >>> plot_explanation(tone, 16000, curves(tone, 16000), summary, tempfile.mkdtemp() + "/e.png").name
    'e.png'
    """
    samples = np.asarray(samples, dtype=np.float32).reshape(-1)
    if not len(samples):
        raise ValueError("there are no samples to draw")
    duration = len(samples) / sample_rate
    rows, warnings = list(summary["rows"]), list(summary["warnings"])
    lines = len(rows) + 1 + sum(1 + len(str(w)) // 130 for w in warnings) + 1
    figure = _figure(11.0, 6.0 + 0.27 * lines)
    grid = figure.add_gridspec(4, 2, width_ratios=(2.4, 1.0), height_ratios=(1.4, 1.4, 1.4, 0.21 * lines))
    waveform = figure.add_subplot(grid[0, 0])
    f0 = figure.add_subplot(grid[1, 0], sharex=waveform)
    level = figure.add_subplot(grid[2, 0], sharex=waveform)
    times, low, high = _envelope(samples, sample_rate)
    waveform.fill_between(times, low, high, color="0.25", linewidth=0)
    waveform.set_ylabel("waveform")
    f0.plot(curves["f0_times"], curves["f0"], ".", color=COLOURS[0], markersize=4)
    if summary.get("f0_edges"):
        f0.axhspan(*summary["f0_edges"], color=COLOURS[2], alpha=0.15, linewidth=0)
        f0.text(
            0.99 * duration,
            sum(summary["f0_edges"]) / 2,
            "normal in training",
            fontsize=7,
            ha="right",
            va="center",
        )
    f0.set_ylabel("F0 (Hz)")
    floor = max(float(curves["level"].max(initial=-200.0)) - 70, -120.0)
    level.plot(curves["level_times"], np.maximum(curves["level"], floor), color=COLOURS[1], linewidth=1.2)
    level.set_ylabel("level (dB)")
    level.set_xlabel("time (s)")
    level.set_xlim(0, duration)
    for axes in (f0, level):
        axes.grid(alpha=0.25)
    for axes in (waveform, f0):
        axes.tick_params(labelbottom=False)
    bars = figure.add_subplot(grid[:3, 1])
    ranked = sorted(summary["probabilities"].items(), key=lambda item: item[1])
    bars.barh([name for name, _ in ranked], [p for _, p in ranked], color=COLOURS[0])
    for i, (_, p) in enumerate(ranked):
        inside = p > 0.8
        place = {"ha": "right", "color": "white"} if inside else {"ha": "left"}
        shown = f"{100 * p:.0f} %" if p >= 0.005 else "<1 %"
        bars.text(p - 0.02 if inside else p + 0.02, i, shown, va="center", fontsize=9, **place)
    bars.set_xlim(0, 1)
    bars.set_xlabel("probability")
    table = figure.add_subplot(grid[3, :])
    table.set_axis_off()
    columns = (0.0, 0.16, 0.36, 0.56)
    y, step = 1.0, 1.0 / max(lines, 1)
    for x, text in zip(columns, ("", "the model says", "measured", "in training")):
        table.text(x, y, text, fontsize=9, color="0.4", va="top", transform=table.transAxes)
    for field, said, measured, place, contradicts in rows:
        y -= step
        for x, text in zip(columns, (field, said, measured, place)):
            colour = COLOURS[1] if contradicts else "black"
            table.text(x, y, text or "–", fontsize=9.5, va="top", color=colour, transform=table.transAxes)
    y -= step
    for warning in warnings:
        y -= step
        text = "\n".join(textwrap.wrap(f"warning: {warning}", 150))
        table.text(0.0, y, text, fontsize=8.5, va="top", color=COLOURS[1], transform=table.transAxes)
        y -= step * text.count("\n")
    words = summary.get("transcript")
    heading = summary["title"] + (f"\n“{words}”" if words else "")
    figure.suptitle("\n".join(textwrap.fill(part, 110) for part in heading.split("\n")), fontsize=11)
    return _save(figure, path)


def plot_timeline(times, probabilities, labels, segments, levels, path, title="Emotion over time"):
    """Emotions of a long recording: segments, probabilities and level over time.

    Arguments
    ---------
    times : array
        Float (C + 1,): borders of the cells, in seconds.
    probabilities : array
        Float (C, K); rows of NaN where nothing was heard.
    labels : sequence of str
        K names.
    segments : sequence of dict
        ``start``, ``end``, ``emotion`` (None: no speech), ``certain``.
    levels : array
        Float (C,): level of each cell in dB.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no cell, shapes do not fit, or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> segments = [{"start": 0.0, "end": 2.0, "emotion": "sad", "certain": True}]
    >>> path = tempfile.mkdtemp() + "/timeline.png"
    >>> plot_timeline([0, 1, 2], [[0.9, 0.1]] * 2, ["sad", "happy"], segments, [-20, -22], path).name
    'timeline.png'
    """
    times, probabilities = np.asarray(times, dtype=float), np.asarray(probabilities, dtype=float)
    labels = [str(label) for label in labels]
    if not len(probabilities) or probabilities.shape != (len(times) - 1, len(labels)):
        raise ValueError(
            f"probabilities have shape {probabilities.shape}: give ({len(times) - 1}, {len(labels)}), one cell at least"
        )
    duration = float(times[-1])
    scale, unit = (60.0, "min") if duration > 300 else (1.0, "s")
    figure = _figure(min(max(9.0, 5 + duration / 120), 24.0), 5.4)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(0.9, 2.2, 1.0))
    colours = {label: COLOURS[i] if i < MAX_KINDS else "0.5" for i, label in enumerate(labels)}
    for segment in segments:
        if segment["emotion"] is None:
            continue
        axes[0].axvspan(
            segment["start"] / scale,
            segment["end"] / scale,
            color=colours[segment["emotion"]],
            alpha=0.9 if segment["certain"] else 0.3,
            linewidth=0,
        )
    axes[0].set_yticks([])
    axes[0].set_ylabel("emotion")
    middles = (times[:-1] + times[1:]) / 2 / scale
    shown = np.where(np.isnan(probabilities), 0.0, probabilities)
    axes[1].stackplot(
        middles, shown.T, colors=[colours[x] for x in labels], labels=labels, step="mid", linewidth=0
    )
    axes[1].set_ylim(0, 1)
    axes[1].set_ylabel("probability")
    axes[2].step(middles, np.maximum(levels, -80), where="mid", color="0.25", linewidth=0.8)
    axes[2].set_ylabel("level (dB)")
    axes[2].set_xlabel(f"time ({unit})")
    axes[2].set_xlim(0, duration / scale)
    handles = [Rectangle((0, 0), 1, 1, color=colours[x]) for x in labels]
    handles.append(Rectangle((0, 0), 1, 1, color="0.5", alpha=0.3))
    figure.legend(
        handles,
        [*labels, "pale: not sure"],
        loc="outside lower center",
        ncols=min(len(labels) + 1, 9),
        frameon=False,
        fontsize=8,
    )
    axes[0].set_title(title, fontsize=11)
    return _save(figure, path)


def plot_film(names, gamma, beta, num_intensities, path, title="Modulation of text embeddings"):
    """gamma and beta of every emotion and intensity: a map of two principal components, and their norms.

    Arguments
    ---------
    names : sequence of str
        N names ``emotion/intensity``; those of one emotion stand together, weakest intensity first.
    gamma, beta : array
        (N, D).
    num_intensities : int
        Intensities of each emotion.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If the numbers do not fit, or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> names = [f"{e}/{i}" for e in ("hap", "sad") for i in ("low", "high")]
    >>> plot_film(names, rng.normal(1, 0.1, (4, 8)), rng.normal(0, 0.1, (4, 8)), 2, tempfile.mkdtemp() + "/f.png").name
    'f.png'
    """
    gamma, beta = np.asarray(gamma, dtype=float), np.asarray(beta, dtype=float)
    if not len(names) == len(gamma) == len(beta) or len(names) % num_intensities:
        raise ValueError(
            f"{len(names)} names, {len(gamma)} gamma, {len(beta)} beta, {num_intensities} intensities: give one of each"
        )
    figure = _figure(11.0, 7.5)
    axes = figure.subplots(2, 2)
    parts = ((r"$\gamma - 1$", gamma - 1), (r"$\beta$", beta))
    emotions = [name.rsplit("/", 1)[0] for name in names[::num_intensities]]
    intensities = [name.rsplit("/", 1)[1] for name in names[:num_intensities]]
    for row, (label, values) in enumerate(parts):
        centred = values - values.mean(0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        places = (left * sizes)[:, :2]
        if places.shape[1] < 2:
            places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
        share = (sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30)
        norms = np.linalg.norm(values, axis=1)
        for number, emotion in enumerate(emotions):
            own = slice(number * num_intensities, (number + 1) * num_intensities)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            # The line goes from the weakest to the strongest, whose marker is the largest.
            axes[row][0].plot(*places[own].T, color=colour, linewidth=1)
            axes[row][0].scatter(
                *places[own].T,
                s=np.linspace(25, 110, num_intensities),
                color=colour,
                marker=marker,
                label=emotion,
            )
            axes[row][1].plot(range(num_intensities), norms[own], color=colour, marker=marker, label=emotion)
        axes[row][0].set_title(f"{label}: two components, {100 * share:.0f} % of the variance", fontsize=10)
        axes[row][1].set_title(f"norm of {label}", fontsize=10)
        axes[row][1].set_xticks(range(num_intensities), intensities)
        axes[row][1].set_ylim(bottom=0)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def plot_speech(sounds, sample_rate, emotions, labels, path, title=""):
    """Synthetic speech: its mel and words with their marks, and F0 and level of each word beside the reference's.

    Arguments
    ---------
    sounds : dict
        ``output`` and, where there is one, ``reference`` -> (samples, float (N,); list of (word, start, end) in s).
    sample_rate : int
        Hz, of both.
    emotions : sequence of (str or None)
        Mark of each word of the output.
    labels : sequence of str
        All emotions, in order: their colours.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no output, the marks do not fit its words, or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> tone = 0.1 * np.sin(2 * np.pi * 150 * np.arange(8000) / 16000)
    >>> sounds = {"output": (tone, [("oh", 0.1, 0.4)])}
    >>> plot_speech(sounds, 16000, ["sad"], ["hap", "sad"], tempfile.mkdtemp() + "/y.png").name
    'y.png'
    """
    from speechbrain_emo.dataio.compiled_librosa import librosa
    from speechbrain_emo.metrics.synthesis import word_prosody

    if "output" not in sounds or len(sounds["output"][0]) == 0 or len(emotions) != len(sounds["output"][1]):
        raise ValueError(
            f"sounds are {sorted(sounds)}, {len(emotions)} marks: give an output with samples and a mark for each of "
            "its words"
        )
    labels = [str(label) for label in labels]
    colours = {label: COLOURS[i] if i < MAX_KINDS else "0.5" for i, label in enumerate(labels)}
    figure = _figure(max(8.0, 0.9 * len(emotions)), 2.6 * (1 + len(sounds)) + 1.5)
    axes = figure.subplots(len(sounds) + 2, 1, height_ratios=[2.2] * len(sounds) + [1.4, 1.4])
    for axis, (name, (samples, words)) in zip(axes, sounds.items()):
        mel = librosa.feature.melspectrogram(
            y=np.asarray(samples, dtype=np.float32),
            sr=sample_rate,
            n_fft=1024,
            hop_length=sample_rate // 100,
            n_mels=80,
        )
        shown = librosa.power_to_db(mel, ref=max(float(mel.max()), 1e-10), top_db=70)
        seconds = len(samples) / sample_rate
        axis.imshow(
            shown,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, 80),
            cmap="Greys",
            interpolation="nearest",
        )
        for number, (word, start, end) in enumerate(words):
            # Both say the same words; where an aligner lost some, the marks of the rest are not known.
            mark = emotions[number] if len(words) == len(emotions) else None
            axis.axvspan(start, end, color=colours.get(mark, "0.5"), alpha=0.22, linewidth=0)
            axis.text((start + end) / 2, 74, word, ha="center", va="center", fontsize=8)
        axis.set_ylabel(f"{name}\nmel band")
        axis.set_xlabel("time (s)")
        axis.set_yticks([])
    for axis, quantity, unit in zip(axes[-2:], ("log_f0", "energy"), ("F0 (octaves)", "level (dB)")):
        for number, (name, (samples, words)) in enumerate(sounds.items()):
            if not words:
                continue
            values = getattr(word_prosody(samples, sample_rate, [row[1:] for row in words]), quantity)
            # Against the utterance's own mean: voices differ, how far words are moved should not.
            known = values[~np.isnan(values)]
            moved = values - (known.mean() if len(known) else 0.0)
            line = {"color": COLOURS[6 if name == "output" else 0], "linestyle": ("-", "--")[number % 2]}
            axis.plot(range(len(words)), moved, marker=MARKERS[number], label=name, **line)
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set_ylabel(unit + "\nagainst the mean", fontsize=8)
        axis.set_xticks(range(len(emotions)), [word for word, _, _ in sounds["output"][1]], fontsize=8)
    handles, names = axes[-1].get_legend_handles_labels()
    for label in labels:
        if label in emotions:
            handles.append(Rectangle((0, 0), 1, 1, color=colours[label], alpha=0.35, linewidth=0))
            names.append(label)
    if handles:
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(len(names), 8), frameon=False, fontsize=8
        )
    if title:
        axes[0].set_title("\n".join(textwrap.wrap(title, 100)), fontsize=10)
    return _save(figure, path)


def plot_intensity_sweep(rows, names, path, title="Marked intensity against what is heard"):
    """What a synthesiser does with the intensity of each emotion: a panel a quantity, a line an emotion.

    Arguments
    ---------
    rows : sequence of dict
        ``emotion``, ``intensity`` (a place from 0 to 1, or None for text without marks) and numbers or None by name.
    names : dict of str to str
        Key of a row -> what the panel is called.
    path : str or Path
        PNG file to write.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is nothing to draw, or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> rows = [{"emotion": "hap", "intensity": i / 2, "wer": 0.1 * i} for i in range(3)]
    >>> plot_intensity_sweep(rows, {"wer": "WER"}, tempfile.mkdtemp() + "/s.png").name
    's.png'
    """
    emotions = list(dict.fromkeys(row["emotion"] for row in rows if row["intensity"] is not None))
    if not emotions or not names:
        raise ValueError(
            f"{len(rows)} rows, quantities {list(names)}: give marked rows and at least one quantity"
        )
    columns = min(3, len(names))
    figure = _figure(4.2 * columns, 3.2 * -(-len(names) // columns))
    panels = np.atleast_1d(figure.subplots(-(-len(names) // columns), columns, squeeze=False)).ravel()
    for axis, (key, label) in zip(panels, names.items()):
        for number, emotion in enumerate(emotions):
            own = [r for r in rows if r["emotion"] == emotion and r["intensity"] is not None]
            points = sorted((r["intensity"], r[key]) for r in own if r.get(key) is not None)
            if points:
                axis.plot(
                    *zip(*points),
                    color=COLOURS[number % MAX_KINDS],
                    marker=MARKERS[number % len(MARKERS)],
                    label=emotion,
                )
        for row in rows:
            if row["intensity"] is None and row.get(key) is not None:
                axis.axhline(row[key], color="0.4", linestyle=":", linewidth=1, label="no marks")
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("marked intensity", fontsize=8)
    for axis in panels[len(names) :]:
        axis.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def plot_next_line(groups, replies, path, counts=None, title="Where the next line's emotion is found"):
    """Accuracy by length of the history, by intensity and where the emotion changes, and over replies in a row.

    Arguments
    ---------
    groups : dict of str to dict of str to float
        Row -> group -> accuracy: ``history_<n>`` is drawn over n, the other groups beside each other.
    replies : dict of str to dict of int to float
        Quantity -> number of replies in a row -> share; empty to leave the panel out.
    path : str or Path
        PNG file to write.
    counts : dict of str to int, optional
        Group -> lines, written below it.
    title : str
        Title.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no group, or the path is no PNG.

    Example
    -------
    >>> import tempfile
    >>> groups = {"speech": {"history_1": 0.4, "history_2": 0.5, "change": 0.3, "stay": 0.6}}
    >>> plot_next_line(groups, {"right": {2: 0.5, 5: 0.4}}, tempfile.mkdtemp() + "/next.png").name
    'next.png'
    """
    names = list(dict.fromkeys(name for row in groups.values() for name in row))
    if not names:
        raise ValueError("there is no group to draw: is it the evaluation of next lines?")
    lengths = sorted(int(n.rpartition("_")[2]) for n in names if n.startswith("history_"))
    others = [n for n in names if not n.startswith("history_")]
    counts = counts or {}
    figure = _figure(12.5 if replies else 9.5, 3.8)
    panels = figure.subplots(1, 3 if replies else 2, sharey=True)
    styles = [{"color": COLOURS[i % len(COLOURS)], "label": name} for i, name in enumerate(groups)]
    for number, (row, style) in enumerate(zip(groups.values(), styles)):
        points = [(n, row[f"history_{n}"]) for n in lengths if f"history_{n}" in row]
        if points:
            panels[0].plot(*zip(*points), marker=MARKERS[number % len(MARKERS)], markersize=4, **style)
        width = 0.8 / len(groups)
        places = [i + (number - (len(groups) - 1) / 2) * width for i in range(len(others))]
        panels[1].bar(places, [row.get(n, 0.0) for n in others], width, **style)
    panels[0].set_xticks(
        lengths, [f"{n}\n({counts[f'history_{n}']})" if f"history_{n}" in counts else str(n) for n in lengths]
    )
    panels[0].set_xlabel("lines of history (lines measured)" if counts else "lines of history")
    panels[0].set_ylabel("share of right emotions")
    panels[1].set_xticks(
        range(len(others)),
        [f"{n.replace('_', ' ')}{f' ({counts[n]})' if n in counts else ''}" for n in others],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    panels[0].legend(fontsize=7, frameon=False)
    for number, (name, points) in enumerate(replies.items()):
        panels[2].plot(
            *zip(*sorted(points.items())),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            label=name,
        )
    if replies:
        panels[2].set_xlabel("replies in a row, on its own predictions")
        panels[2].set_xticks(sorted({n for points in replies.values() for n in points}))
        panels[2].legend(fontsize=7, frameon=False)
    for axes in panels:
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)
