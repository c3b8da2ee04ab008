"""A run as one HTML file that needs no network: settings, tables, pictures, mistakes to listen to.

Everything is read from the run's folder (``results.json``, ``predictions.jsonl``, pictures, the data check beside the
manifests); what is not there is left out. Audio is FLAC in data URIs, up to a size.
"""

import base64
import io
import json
import logging
from pathlib import Path

import jinja2
import soundfile

from speechbrain_emo import results
from speechbrain_emo.brains.verification import verification_tables
from speechbrain_emo.dataio.audio import AudioError, load_audio
from speechbrain_emo.dataio.manifest import read_manifest, write_text_atomically
from speechbrain_emo.metrics.calibration import label_probabilities

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
DATA_CHECK_FILE = "data_check.json"
_TEMPLATES = Path(__file__).resolve().parent / "templates"
_AUDIO_RATE = 16000
# A mistake is heard in a few seconds; a long recording would fill the report.
_LONGEST_CLIP = 15.0
# Pictures in the order in which a reader asks; others follow.
_PICTURES = (
    "confusion_own_chain",
    "confusion_speech",
    "risk_coverage",
    "training",
    "layer_weights",
    "latents",
)
# File names at most of a finding of the data check.
_MOST_ITEMS = 5


def write_report(folder, out=None, mistakes=12, audio_bytes=8e6, data_root=None):
    """Write the report of a training, an evaluation or a verification.

    Arguments
    ---------
    folder : str or pathlib.Path
        Holds ``results.json``.
    out : str or pathlib.Path, optional
        HTML file. Default: ``report.html`` in the folder.
    mistakes : int
        Most mistakes that are shown, the surest first.
    audio_bytes : float
        Most bytes of all players together; 0: no players. What does not fit is named without one.
    data_root : str or pathlib.Path, optional
        What ``{data_root}`` of the manifests stands for. Default: the run's.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no ``results.json``.
    ValueError
        If it holds no metrics.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = results.write_results(folder, {"test.ser.speech.ua": 0.5}, {"seed": 1})
    >>> "0.500" in write_report(folder).read_text("utf-8")
    True
    """
    folder = Path(folder)
    run = results.read_results(folder)
    metrics = run["metrics"]
    hparams = run.get("hparams") or {}
    # Together they are wider than a page.
    scores, voice = results.split_rows(results.result_rows(metrics))
    tables = {"Results": scores, "Descriptors": voice, **verification_tables(metrics)}
    tables = {title: _table(rows) for title, rows in tables.items() if rows}
    predictions = _predictions(folder)
    evaluation = run.get("evaluation") or {}
    # A model on another corpus chooses among the labels that both have, here as in the table.
    wrong = worst_mistakes(predictions, mistakes, evaluation.get("temperature"), evaluation.get("labels"))
    records, told = _records(run, data_root) if wrong and audio_bytes else ({}, None)
    budget = float(audio_bytes)
    for mistake in wrong:
        mistake["audio"] = None
        record = records.get(mistake["id"])
        if record is not None:
            mistake["audio"] = _clip(record, budget)
            budget -= len(mistake["audio"] or "")
    lacking = sum(m["audio"] is None for m in wrong)
    if wrong and lacking and told is None:
        told = (
            f"{lacking} of {len(wrong)} recordings have no player: not found, or more than "
            f"{audio_bytes / 1e6:g} MB together"
        )
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=f"{hparams.get('experiment') or folder.absolute().parent.name}, {folder.absolute().name}",
            facts=_facts(run),
            tables=tables,
            diagnoses=metrics.get("diagnoses") or [],
            abstention=_abstention(metrics),
            pictures=_pictures(folder),
            mistakes=wrong,
            audio_note=told,
            left_out=_left_out(run),
            lacking=[
                (key.removesuffix("_not_computed"), reason)
                for key, reason in sorted(metrics.items())
                if key.endswith("_not_computed")
            ],
            check=_data_check(folder, run),
            settings=_settings(run),
            numbers=sorted(
                (k, f"{v:.4f}" if isinstance(v, float) else v)
                for k, v in metrics.items()
                if isinstance(v, (int, float, str)) and not isinstance(v, bool)
            ),
            packages=run.get("packages") or {},
        )
    )
    path = Path(out) if out else folder / REPORT_FILE
    write_text_atomically(path, page)
    return path


def worst_mistakes(predictions, most, temperature=None, labels=None):
    """The wrong predictions of which the model was surest.

    Arguments
    ---------
    predictions : list of dict
        Lines of ``predictions.jsonl``.
    most : int
        How many.
    temperature : mapping, optional
        Condition -> temperature of the probabilities.
    labels : sequence of str, optional
        What the model may choose among. Default: all that it has scores of.

    Returns
    -------
    list of dict
        ``id``, ``speaker``, ``reference``, ``predicted``, ``probability``, ``reference_probability``, and
        ``descriptors`` and words where there are any; the surest mistake first.

    Example
    -------
    >>> lines = [{"id": "u", "emotion": "sad", "scores": {"speech": {"sad": -2.0, "happy": 0.0}}}]
    >>> found = worst_mistakes(lines, 5)[0]
    >>> found["predicted"], round(found["probability"], 2)
    ('happy', 0.88)
    """
    found = []
    for line in predictions:
        scores = line.get("scores") or {}
        condition = next((c for c in results.SYSTEM_CONDITIONS if c in scores), None)
        if condition is None or line.get("emotion") is None:
            continue
        names = [n for n in scores[condition] if labels is None or n in labels]
        values = label_probabilities(
            [scores[condition][n] for n in names], (temperature or {}).get(condition) or 1.0
        )
        best = int(values.argmax())
        if names[best] == line["emotion"] or line["emotion"] not in names:
            continue
        said, known = line.get("predicted_descriptors") or {}, line.get("descriptors") or {}
        found.append(
            {
                "id": line["id"],
                "speaker": line.get("speaker"),
                "reference": line["emotion"],
                "predicted": names[best],
                "probability": float(values[best]),
                "reference_probability": float(values[names.index(line["emotion"])]),
                "transcript": line.get("transcript"),
                "hypothesis": line.get("hypothesis"),
                "descriptors": [
                    (name, _words(value), _words(known.get(name)))
                    for name, value in said.items()
                    if name != "description"
                ],
            }
        )
    return sorted(found, key=lambda m: (-m["probability"], m["id"]))[:most]


def _words(value):
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "none"
    return "–" if value is None else str(value)


def _predictions(folder):
    file = folder / "predictions.jsonl"
    return results.read_predictions(file) if file.is_file() else []


def _records(run, data_root):
    """Records of the test part by id, and why there are none."""
    hparams = run.get("hparams") or {}
    path = run.get("manifest") or (hparams.get("manifests") or {}).get("test")
    root = data_root or run.get("data_root") or hparams.get("data_folder")
    if path is None or not Path(path).is_file():
        return {}, f"No players: the test manifest {path} is not here."
    try:
        return read_manifest(path, {"data_root": str(root)}), None
    except ValueError as error:
        return {}, f"No players: {error}"


def _clip(record, budget):
    """A recording as a data URI, or None where it cannot be read or is larger than what is left."""
    try:
        waveform = load_audio(record["wav"], _AUDIO_RATE, record.get("start"), record.get("stop"))
    except (AudioError, KeyError) as error:
        logger.warning(f"no player for a recording: {error}")
        return None
    uri = audio_uri(waveform[: int(_LONGEST_CLIP * _AUDIO_RATE)].numpy(), _AUDIO_RATE)
    return uri if len(uri) <= budget else None


def audio_uri(samples, sample_rate):
    """Samples as a FLAC data URI, which every current browser plays.

    Arguments
    ---------
    samples : np.ndarray
        float32 (samples,), full scale 1; what exceeds it is clipped.
    sample_rate : int
        Hz.

    Returns
    -------
    str

    Example
    -------
    >>> import numpy
    >>> audio_uri(numpy.zeros(1600, dtype="float32"), 16000)[:28]
    'data:audio/flac;base64,ZkxhQ'
    """
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _pictures(folder):
    """(title, data URI) of every PNG of the folder."""
    order = {name: i for i, name in enumerate(_PICTURES)}
    files = sorted(folder.glob("*.png"), key=lambda p: (order.get(p.stem, len(order)), p.stem))
    return [
        (
            p.stem.replace("_", " "),
            "data:image/png;base64," + base64.b64encode(p.read_bytes()).decode("ascii"),
        )
        for p in files
    ]


def _table(rows):
    """Columns, rows of cells as text, and which columns hold text."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[results.format_cell(row.get(name)) for name in columns] for row in rows]
    textual = [any(isinstance(row.get(name), str) for row in rows) for name in columns]
    return {"columns": columns, "rows": cells, "textual": textual}


def _facts(run):
    """What identifies the run, as (name, text)."""
    machine = run.get("machine") or {}
    seconds, peak = run.get("wall_time_seconds"), run.get("peak_memory_bytes")
    facts = [
        ("command", run.get("command")),
        ("model", run.get("model")),
        ("corpus", run.get("source")),
        ("manifest", run.get("manifest")),
        ("seed", run.get("seed")),
        ("fold", (run.get("hparams") or {}).get("fold")),
        ("git commit", run.get("git_commit")),
        ("split hash", run.get("split_hash")),
        ("wall time", None if seconds is None else f"{seconds / 60:.1f} min"),
        ("peak memory", None if peak is None else f"{peak / 1e9:.2f} GB"),
        (
            "machine",
            run.get("gpu") or (f"{machine['cpu_count']} CPU cores" if machine.get("cpu_count") else None),
        ),
        ("trainable parameters", _sum(run.get("trainable_parameters"))),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _settings(run):
    """Settings of a training, or of an evaluation, as text; None where there are none."""
    names = ("evaluation", "label_map", "direct", "level", "parts")
    found = run.get("hparams") or {name: run[name] for name in names if name in run}
    return json.dumps(found, indent=1, ensure_ascii=False) if found else None


def _left_out(run):
    """What an evaluation did not score, and why, as sentences."""
    failed = [f"not used: {reason}" for reason in (run.get("failures") or {}).values()]
    return [*(run.get("findings") or []), *(run.get("left_out") or []), *failed]


def _sum(parts):
    return f"{sum(parts.values()):,}" if parts else None


def _abstention(metrics):
    """What the threshold does, as a sentence, or None."""
    for condition in results.SYSTEM_CONDITIONS:
        key = f"test.ser.{condition}"
        if metrics.get(f"{key}.coverage") is not None and metrics.get(f"{key}.abstain_below"):
            risk = metrics.get(f"{key}.selective_risk")
            errors = "" if risk is None else f", with {100 * risk:.1f} % errors among them"
            return (
                f"Below a probability of {metrics[f'{key}.abstain_below']:.2f} (chosen on validation data) the model "
                f"says that it is not sure: it answers {100 * metrics[f'{key}.coverage']:.1f} % of the test "
                f"recordings{errors}."
            )
    return None


def _data_check(folder, run):
    """The data check beside the run, its manifests or the evaluated corpus, as plain data, or None."""
    test = ((run.get("hparams") or {}).get("manifests") or {}).get("test")
    files = [Path(file) for file in (test, run.get("source"), run.get("manifest")) if file]
    places = [folder, *(file if file.is_dir() else file.parent for file in files)]
    for place in places:
        file = place / DATA_CHECK_FILE
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            for finding in content.get("findings", []):
                items = list(finding.get("items") or [])
                finding["shown"] = items[:_MOST_ITEMS]
                finding["more"] = len(items) - len(finding["shown"])
            return content
    return None


def _environment():
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    # File names and words of a corpus are no HTML.
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
