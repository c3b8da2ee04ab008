"""The model card that lies beside every exported model.

The headings follow Mitchell et al. 2019, "Model Cards for Model Reporting", https://arxiv.org/abs/1810.03993,
in the Markdown with a YAML head that model hubs read. What is not known is said to be unknown; nothing is
made up.
"""

import json
import math
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

CARD_FILE = "README.md"
HEADLINE = "test.ser.own_chain.ua"
# Metric of results.json -> what it is; order of the table.
METRICS = {
    "test.ser.own_chain.ua": "emotion, after the model's own transcript and descriptors: UA (mean recall)",
    "test.ser.own_chain.wa": "the same: WA (accuracy)",
    "test.ser.own_chain.macro_f1": "the same: macro F1",
    "test.ser.speech.ua": "emotion asked for directly: UA",
    "test.ser.speech.wa": "the same: WA",
    "test.ser.own_chain.ece": "expected calibration error",
    "test.ser.own_chain.brier": "Brier score",
    "test.asr.generated.wer": "word error rate of the transcript",
}
PAPERS = {
    "ib": (
        "arXiv:2505.23236",
        "Towards LLM-Empowered Fine-Grained Speech Descriptors for Explainable Emotion Recognition",
    ),
    "dual": ("arXiv:2508.08095", "the dual-information speech language model (ICME 2025)"),
}
UNKNOWN = "not stated"
# What the model is, by the class that loads it.
DESCRIPTIONS = {
    "EmotionExplainer": (
        "Explainable speech emotion recognition: a frozen speech encoder, two branches with an information",
        "bottleneck (what is said, how it is said) and a language model that writes transcript, descriptors",
        "and emotion.",
    ),
    "EmotionalChat": (
        "Spoken dialogue: a frozen speech encoder, two adapters (how it is said, what is said) and a frozen",
        "language model that answers the words in view of the voice. It also transcribes a recording and",
        "chooses attributes of the voice.",
    ),
}
EXAMPLES = {
    "EmotionExplainer": (
        "from speechbrain_emo.inference import EmotionExplainer",
        "",
        'explainer = EmotionExplainer.from_hparams(source="FOLDER_OF_THIS_FILE")',
        'print(explainer.explain_file("x.wav"))',
    ),
    "EmotionalChat": (
        "from speechbrain_emo.inference import EmotionalChat",
        "",
        'chat = EmotionalChat.from_hparams(source="FOLDER_OF_THIS_FILE")',
        'print(chat.say("turn1.wav"))',
    ),
}

INTENDED_USE = """\
Research on speech emotion recognition and on its explanation: comparing methods, describing recordings, and
inspecting what a model bases its label on. The explanation is text that the model generates; it is evidence
about the recording only as far as the table below says that transcript and descriptors are right.

**Not intended** for decisions about a person: hiring, schooling, credit, insurance, policing, border control,
health. In the European Union, emotion inference at the workplace and in education is prohibited except for
medical or safety reasons (Regulation (EU) 2024/1689, article 5(1)(f)). Recordings of people need their
consent."""

LIMITS = """\
- The model tells how a recording **sounds to annotators**, not what the speaker feels. The same emotion is
  voiced differently by different people, languages and cultures, and annotators disagree.
- The label is always one of the list above; anything else (irony, mixed or absent emotion, another language)
  is forced into it. Probabilities are calibrated on the validation data only and mislead elsewhere.
- Acted and synthetic speech is easier than spontaneous speech. A score on one corpus does not carry over to
  another, to telephone or far-field audio, to noise, to children or to pathological voices.
- Groups that the training data holds few of (age, accent, gender) fare worse, in ways the overall score
  hides.
- Descriptors (pitch, volume, speed) are relative to the training data; volume also depends on the recording
  level.
- A generated transcript may hold words that were not said. Label scores do not depend on it in the condition
  `speech`, and do in `own_chain`."""


def write_model_card(folder, facts):
    """Write the model card of an exported model.

    Arguments
    ---------
    folder : str or pathlib.Path
        The model's folder; ``README.md`` is written into it. It must exist.
    facts : mapping
        What is known; every key may be left out. ``experiment`` (str), ``seed`` (int), ``fold`` (str),
        ``labels`` and ``descriptors`` (lists of str), ``language`` (BCP 47), ``license`` (str or mapping: of
        the training data), ``datasets`` (mapping name -> licence), ``encoder`` and ``llm`` (names of the
        backbones), ``backbone_licenses`` (mapping), ``parameters`` and ``num_trained_parameters`` (int),
        ``training_hours`` (audio, float), ``num_train_records`` (int), ``phases`` (list of str or of mappings
        with ``name``), ``temperature`` (float or mapping), ``thresholds`` (of the descriptors; only named),
        ``abstain_below`` (probability), ``max_duration`` (s), ``split_hash``, ``git_commit``, ``command``,
        ``date`` (str), ``metrics`` (mapping as in ``results.json``), ``random_split`` (bool).
        Other keys are listed as they are.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.

    Example
    -------
    >>> import tempfile
    >>> facts = {"experiment": "demo_ib", "labels": ["happy", "sad"]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write_model_card(folder, facts).read_text("utf-8")
    >>> "# demo_ib" in text and "happy, sad" in text
    True
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder {str(folder)!r} of the model card does not exist: export the model first"
        )
    path = folder / CARD_FILE
    partial = folder / f".{CARD_FILE}.{os.getpid()}"
    partial.write_text(model_card(facts), encoding="utf-8")
    os.replace(partial, path)
    return path


ANNOTATOR_LIMITS = """\
- The labels are guesses about how words SOUND, not about what anybody feels; anything outside the list of labels is
  given one of them all the same.
- Results hold for the kind of speech that was trained on. Nothing is known about other languages, ages, recording
  conditions or dialects; nothing here is fit to judge people (hiring, policing, medicine, credit).
- Words that the aligner misplaces get the emotion of their neighbours' sound.
- Pseudo-labels are labels of a model. With `sentence broadcast` nobody has ever labelled a word."""


def write_annotator_card(folder, facts):
    """Write the model card of an exported word annotator.

    Arguments
    ---------
    folder : str or pathlib.Path
        The model's folder.
    facts : mapping
        ``experiment``, ``seed``, ``labels``, ``intensities``, ``supervision``, ``encoder``, ``license``, ``metrics``,
        ``git_commit``, ``command``, ``date``, ``split_hash``; what is missing is said to be unknown.

    Returns
    -------
    pathlib.Path
        The file.
    """
    metrics = facts.get("metrics") or {}
    supervision = {
        "weak": "sentence broadcast: every training word has the label of its sentence",
        "word": "labels of words",
    }
    lines = ["---", "library_name: speechbrain", "pipeline_tag: audio-classification", "---", ""]
    lines += [f"# {facts.get('experiment', 'word annotator')}, seed {facts.get('seed', UNKNOWN)}", ""]
    lines += [
        "Emotion, intensity, valence, arousal and dominance of every word of a recording whose text is known",
        "",
    ]
    lines += [f"- Emotions: {', '.join(facts.get('labels') or ()) or UNKNOWN}"]
    lines += [f"- Intensities: {', '.join(facts.get('intensities') or ()) or UNKNOWN}"]
    lines += [f"- Supervision: {supervision.get(facts.get('supervision'), UNKNOWN)}"]
    lines += [
        f"- Encoder: {facts.get('encoder') or UNKNOWN}; trained weights: {facts.get('parameters', UNKNOWN)}"
    ]
    lines += [f"- Training data: {facts.get('license') or 'licence ' + UNKNOWN}", ""]
    lines += ["```python", "from speechbrain_emo.inference import WordEmotionAnnotator", ""]
    lines += ['annotator = WordEmotionAnnotator.from_hparams(source="FOLDER_OF_THIS_FILE")']
    lines += [
        'print(annotator.annotate_file("x.wav", "what is said"))',
        "```",
        "",
        "## Limits",
        "",
        ANNOTATOR_LIMITS,
    ]
    rows = [
        (name.removeprefix("test.word."), value)
        for name, value in metrics.items()
        if name.startswith("test.word.") and name.endswith(("accuracy", "macro_f1")) and _is_number(value)
    ]
    if rows:
        lines += ["", "## Results on held-out speakers, by word", "", "| what | value |", "|---|---:|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in rows]
    lines += ["", "## Provenance", ""]
    lines += [
        f"- {key}: {facts.get(key) or UNKNOWN}" for key in ("command", "git_commit", "date", "split_hash")
    ]
    lines += ["- Method: Emo-FiLM, arXiv 2509.20378 (annotation)", ""]
    path = Path(folder) / CARD_FILE
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def model_card(facts):
    """Text of a model card.

    Arguments
    ---------
    facts : mapping
        As for :func:`write_model_card`.

    Returns
    -------
    str
        Markdown with a YAML head.

    Example
    -------
    >>> model_card({"metrics": {"test.ser.own_chain.ua": 0.775}}).count("| 0.775 |")
    1
    """
    facts = dict(facts)
    used = set()

    def take(key, default=None):
        used.add(key)
        value = facts.get(key)
        return default if value is None else value

    name = str(take("experiment", "speechbrain_emo model"))
    language = str(take("language", "")) or None
    metrics = dict(take("metrics", {}))
    lines = _head(name, language, metrics, facts)
    seed, fold = take("seed"), take("fold")
    lines += [
        f"# {name}{'' if seed is None else f', seed {seed}'}{'' if fold is None else f', fold {fold}'}",
        "",
    ]
    labels, descriptors = take("labels", []), take("descriptors", [])
    interface = take("interface", "EmotionExplainer")
    lines += [
        *DESCRIPTIONS[interface],
        "",
        f"- Emotions: {', '.join(map(str, labels)) or UNKNOWN}",
        f"- Descriptors: {', '.join(map(str, descriptors)) or 'none'}",
        f"- Language: {language or UNKNOWN}",
        "",
        "```python",
        *EXAMPLES[interface],
        "```",
        "",
        "## Intended use",
        "",
        INTENDED_USE,
        "",
        "## Limits of emotion recognition",
        "",
        LIMITS,
        "",
        "## Data and licences",
        "",
    ]
    lines += _licences(take("license"), take("datasets", {}), take("backbone_licenses", {}))
    if take("random_split", False) or metrics.get("test.warning"):
        lines += [
            "",
            "**Warning: the split is random; test speakers may occur in training, scores are optimistic.**",
        ]
    lines += ["", "## Training", ""]
    lines += _training(take)
    lines += ["", "## Results", ""]
    lines += _results(metrics, descriptors)
    lines += ["", "## Provenance", ""]
    lines += _provenance(take)
    rest = {key: value for key, value in facts.items() if key not in used and value is not None}
    if rest:
        lines += ["", "## Further facts", ""]
        lines += [f"- {key}: {_plain(value)}" for key, value in sorted(rest.items())]
    lines += ["", "## Citation", ""]
    papers = [PAPERS["dual" if interface == "EmotionalChat" else "ib"]]
    lines += [f"- {title}, {identifier}" for identifier, title in papers]
    lines += ["- speechbrain_emo, see CITATION.cff of the toolkit", ""]
    return "\n".join(lines)


def _head(name, language, metrics, facts):
    """The YAML head that hubs read; values are quoted as JSON, which YAML contains."""
    head = ["---"]
    if language:
        head.append(f"language: {json.dumps(language)}")
    head += ["library_name: speechbrain", "pipeline_tag: audio-classification"]
    head += ["tags:", "- speech-emotion-recognition", "- explainability", "- speechbrain_emo"]
    bases = [facts[key] for key in ("encoder", "llm") if _is_hub_name(facts.get(key))]
    if bases:
        head += ["base_model:", *(f"- {json.dumps(str(base))}" for base in bases)]
    if _is_number(metrics.get(HEADLINE)):
        head += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        head += ["  - task: {type: audio-classification, name: speech emotion recognition}"]
        head += [
            f"    dataset: {{type: {json.dumps(name.split('_')[0])}, name: {json.dumps(name.split('_')[0])}}}"
        ]
        head += [f"    metrics: [{{type: recall, name: UA, value: {float(metrics[HEADLINE]):.4f}}}]"]
    return [*head, "---", ""]


def _is_hub_name(value):
    value = "" if value is None else str(value)
    return value.count("/") == 1 and not value.startswith((".", "/", "~")) and not Path(value).exists()


def _licences(licence, datasets, backbones):
    lines = []
    if isinstance(licence, Mapping):
        lines += [f"- {name}: {text}" for name, text in licence.items()]
    elif licence is not None:
        lines.append(f"- Training data: {licence}")
    lines += [f"- Data set {name}: {text or UNKNOWN}" for name, text in datasets.items()]
    lines += [f"- Backbone {name}: {text or UNKNOWN}" for name, text in backbones.items()]
    if not lines:
        lines.append(f"- Training data: licence {UNKNOWN}. Ask before passing the model on.")
    lines.append(
        "- The weights in this folder are bound by the licences of the data and of the backbones above them;"
    )
    lines.append("  the code is Apache-2.0.")
    return lines


def _training(take):
    rows = [
        ("Encoder (frozen)", take("encoder")),
        ("Language model", take("llm")),
        ("Parameters", take("parameters")),
        ("Trained of them", take("num_trained_parameters")),
        ("Training records", take("num_train_records")),
        ("Hours of audio", take("training_hours")),
        ("Longest audio, s", take("max_duration")),
        ("Temperature of the probabilities", take("temperature")),
        ("Not sure below the probability", take("abstain_below")),
    ]
    lines = [f"- {title}: {_plain(_basename(value))}" for title, value in rows if value is not None]
    if take("thresholds") is not None:
        lines.append("- Thresholds of the measured descriptors: from the training data, in hyperparams.yaml")
    phases = [phase["name"] if isinstance(phase, Mapping) else str(phase) for phase in take("phases", [])]
    if phases:
        lines.append(f"- Phases: {' -> '.join(phases)}")
    return lines or [f"- {UNKNOWN}"]


def _basename(value):
    """A local folder by its name alone: a path tells about the machine, not about the model."""
    if isinstance(value, (str, os.PathLike)) and not _is_hub_name(value) and os.sep in str(value):
        return f"{Path(str(value)).name} (made by this toolkit or given as a folder)"
    return value


def _results(metrics, descriptors):
    known = [key for key in METRICS if _is_number(metrics.get(key))]
    if not metrics:
        return ["Not evaluated: no metric is known for this model."]
    lines = ["| metric | value | key in results.json |", "|---|---|---|"]
    lines += [f"| {METRICS[key]} | {metrics[key]:.3f} | `{key}` |" for key in known]
    for name in descriptors:
        key = f"test.sed.generated.{name}"
        if _is_number(metrics.get(key)):
            lines.append(f"| descriptor {name}, exact match | {metrics[key]:.3f} | `{key}` |")
    if len(lines) == 2:
        return [f"{len(metrics)} metrics stand in results.json; none of the headline ones was computed."]
    lines += [
        "",
        "Test speakers are not in the training data unless a warning above says so. More: results.json.",
    ]
    return lines


def _provenance(take):
    lines = []
    for title, key in (
        ("Command", "command"),
        ("Code, git commit", "git_commit"),
        ("Split, hash", "split_hash"),
        ("Made on", "date"),
    ):
        value = take(key)
        lines.append(f"- {title}: {f'`{value}`' if value else UNKNOWN}")
    packages = []
    for package in ("speechbrain_emo", "speechbrain", "torch", "transformers", "peft"):
        try:
            packages.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            packages.append(f"{package} (not installed as a package)")
    lines.append(f"- Packages: {', '.join(packages)}")
    return lines


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, Mapping, list, tuple)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return ", ".join(_plain(v) for v in value)
