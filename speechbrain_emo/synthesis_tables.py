"""Runs of the synthesiser side by side: one table each of speech, tokens, changed spans and intensities.

What a folder holds follows from the names of its metrics: ``hparams/demo_film_speak.yaml`` and ``score_speech`` write
``speech.*`` (with floor and ceiling), a training of the language model ``test.tokens.*``,
``hparams/demo_film_changes.yaml`` ``change.*``, ``hparams/demo_film_sweep.yaml`` ``sweep.*``.
"""

from pathlib import Path

from speechbrain_emo.results import pool_seeds, read_results

SPEECH = {
    "eos": "finished",
    "wer": "WER",
    "span_accuracy": "spans",
    "word_emotion_accuracy": "words",
    "word_emotion_ua": "words UA",
    "prosody_log_f0": "F0 r",
    "prosody_energy": "level r",
    "prosody_log_duration": "duration r",
    "mcd": "MCD (dB)",
    "dtw": "DTW",
    "emo_sim": "Emo-SIM",
    "speaker_similarity": "voice",
    "count": "utterances",
}
TOKENS = {
    "eos": "finished",
    "duration_ratio": "duration ratio",
    "phone_difference": "phone difference",
    "word_accuracy": "word accuracy",
    "word_ua": "word UA",
}
#: Metric's first part -> what the row is called; the first is the model's own.
SPEECH_CONDITIONS = {
    "speech": "as marked",
    "neutral": "no marks (floor)",
    "recordings": "recordings (ceiling)",
}
TOKEN_CONDITIONS = {
    "marked": "as marked",
    "neutral": "no marks (floor)",
    "recordings": "recordings (ceiling)",
}
CHANGES = {"log_f0": "F0 (octaves)", "energy": "level (dB)", "log_duration": "log duration"}
PLACES = {
    "inside": "changed span",
    "outside": "beside it",
    "seeds.inside": "span, other seed",
    "seeds.outside": "beside it, other seed",
}
SWEEP = {
    "f0_range": "F0 range",
    "f0_shift": "F0",
    "energy_shift": "level",
    "duration_ratio": "duration",
    "probability": "probability",
    "wer": "WER",
}
#: Beginning of the metrics' names -> title of the table.
KINDS = {
    "speech.": "Speech",
    "test.tokens.": "Speech tokens",
    "change.": "Changed tag of one span: median difference of words",
    "sweep.": "Intensity: weakest, strongest mark, and correlation with the mark inside sentences",
}


def kind_of(metrics):
    """Beginning of the names of a synthesiser's metrics; None for any other run.

    Example
    -------
    >>> kind_of({"speech.wer": 0.1}), kind_of({"test.ser.speech.ua": 0.5})
    ('speech.', None)
    """
    return next((kind for kind in KINDS if any(name.startswith(kind) for name in metrics)), None)


def synthesis_tables(folders):
    """Tables of runs.

    Arguments
    ---------
    folders : sequence of str or pathlib.Path
        Folders with ``results.json``. Folders joined by commas are seeds of one system: mean and deviation.

    Returns
    -------
    tuple
        (tables: list of (title, rows for ``results.format_table``), rest: the folders that no table here holds).

    Raises
    ------
    FileNotFoundError
        If a folder has no ``results.json``.

    Example
    -------
    >>> import tempfile
    >>> from speechbrain_emo.results import write_results
    >>> folder = Path(tempfile.mkdtemp()) / "film" / "1986"
    >>> _ = write_results(folder, {"speech.wer": 0.2, "neutral.wer": 0.1}, {"seed": 1986})
    >>> synthesis_tables([folder])[0][0][1][1]
    {'run': 'film/1986', 'marks': 'no marks (floor)', 'WER': 0.1}
    """
    makers = {"speech.": _speech, "test.tokens.": _tokens, "change.": _changes, "sweep.": _sweep}
    groups, rest = {}, []
    for folder in folders:
        parts = [Path(part) for part in str(folder).split(",")]
        metrics = read_results(parts[0])["metrics"]
        kind = kind_of(metrics)
        if kind is None:
            rest.append(folder)
            continue
        name = f"{parts[0].parent.name}/{parts[0].name}"
        if len(parts) > 1:
            name = f"{parts[0].parent.name}, {len(parts)} seeds"
            metrics = {key: {k: v[k] for k in ("mean", "std")} for key, v in pool_seeds(parts).items()}
        groups.setdefault(kind, []).append((name, metrics))
    return [(KINDS[kind], makers[kind](runs)) for kind, runs in groups.items()], rest


def _chosen(metrics, prefix, columns):
    found = {title: metrics.get(f"{prefix}{key}") for key, title in columns.items()}
    return {title: value for title, value in found.items() if value is not None}


def _conditions(runs, beginning, conditions, columns):
    """A row a run and condition; recordings are the same for all runs on one list: the first run's stand last."""
    rows, ceiling = [], []
    for name, metrics in runs:
        for condition, marks in conditions.items():
            cells = _chosen(metrics, f"{beginning}{condition}.", columns)
            if cells:
                row = {"run": name, "marks": marks, **cells}
                (ceiling if condition == "recordings" else rows).append(row)
    # Another list has another ceiling.
    distinct = {tuple((k, str(v)) for k, v in row.items() if k != "run"): row for row in reversed(ceiling)}
    return rows + list(reversed(distinct.values()))


def _speech(runs):
    return _conditions(runs, "", SPEECH_CONDITIONS, SPEECH)


def _tokens(runs):
    return _conditions(runs, "test.tokens.", TOKEN_CONDITIONS, TOKENS)


def _changes(runs):
    rows = []
    for name, metrics in runs:
        for place, title in PLACES.items():
            cells = _chosen(metrics, f"change.{place}.", CHANGES)
            if cells:
                rows.append({"run": name, "words": title, **cells})
    return rows


def _sweep(runs):
    rows = []
    for name, metrics in runs:
        levels = {}
        for key in metrics:
            parts = key.split(".")
            if len(parts) == 4 and parts[2].isdigit():
                levels.setdefault(parts[1], set()).add(int(parts[2]))
        for emotion, own in levels.items():
            for level, title in ((min(own), "weakest"), (max(own), "strongest")):
                cells = _chosen(metrics, f"sweep.{emotion}.{level}.", SWEEP)
                rows.append({"run": name, "emotion": emotion, "mark": title, **cells})
            trend = _chosen(metrics, f"sweep.{emotion}.trend.", SWEEP)
            rows.append({"run": name, "emotion": emotion, "mark": "correlation", **trend})
        plain = _chosen(metrics, "sweep.plain.", SWEEP)
        if plain:
            rows.append({"run": name, "emotion": "", "mark": "none", **plain})
    return rows
