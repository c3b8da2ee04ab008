"""Writes a trained model as a folder that loads as it is: data only, listed in a manifest.

The folder holds ``hyperparams.yaml``, ``front_end.safetensors``, ``adapter/`` in peft's own layout (with
``model.safetensors`` where the language model itself has trained), small local backbones, the model card
(``README.md``) and ``manifest.json``. It can be moved;
:class:`speechbrain_emo.inference.interfaces.EmotionExplainer` reads it, or
:class:`speechbrain_emo.inference.chat.EmotionalChat` where it is a dialogue model.
"""

import functools
import importlib.metadata
import inspect
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import ruamel.yaml
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.scalarstring import LiteralScalarString
from safetensors.torch import save_file
from speechbrain.utils.distributed import main_process_only

from speechbrain_emo.inference.safe_loading import (
    ALLOWED_CLASSES,
    ALLOWED_SUFFIXES,
    FORMAT,
    FORMAT_VERSION,
    HPARAMS_FILE,
    MANIFEST_FILE,
    MODEL_FOLDER,
    check_external_folder,
    check_structure,
    check_yaml,
    sha256_of,
    verify_folder,
)

#: Larger local backbones stay where they are and are named by their path.
MAX_COPY_BYTES = 200_000_000
FRONT_END_WEIGHTS = "front_end.safetensors"
ADAPTER_FOLDER = "adapter"
#: Settings of the explainer and their defaults; None for a task that the model does not have.
EXPLAIN_DEFAULTS = {
    "label_task": None,
    "chain_task": None,
    "transcript_task": None,
    "max_new_tokens": 128,
    "num_beams": 1,
    "max_duration": 60.0,
    "max_positions": None,
    "temperature": 1.0,
    "speech_temperature": None,
    "abstain_below": 0.0,
    "thresholds": None,
    "language": "en",
    "precision": "fp32",
}
ANNOTATOR_WEIGHTS = "annotator.safetensors"
ANNOTATOR_KEYS = (MODEL_FOLDER, "encoder", "annotator", "annotate")
#: Settings of the word annotator and their defaults; None for what must be given.
ANNOTATE_DEFAULTS = {
    "labels": None,
    "intensities": ["low", "medium", "high"],
    "intensity_thresholds": [2.5, 3.5],
    "untagged": None,
    "temperature": 1.0,
    "max_duration": 60.0,
    "supervision": None,
    "language": "en",
}
#: Settings of a dialogue model; durations in seconds.
CHAT_DEFAULTS = {
    "dialogue_task": None,
    "transcript_task": None,
    "choice_tasks": (),
    "max_new_tokens": 256,
    "max_duration": 60.0,
    "max_positions": None,
    "language": "en",
    "precision": "fp32",
}
#: Settings of a model that reasons about the next line of a conversation.
NEXT_LINE_DEFAULTS = {
    "next_task": None,
    "emotion_task": None,
    "num_beams": 1,
    "max_duration": 60.0,
    "max_positions": None,
    "language": "en",
    "precision": "fp32",
}
#: Settings of a synthesiser and their defaults; None for what must be given.
SPEAK_DEFAULTS = {
    "labels": None,
    "intensities": ["low", "medium", "high"],
    "untagged": None,
    "sampling": {},
    "language": "en",
    "plain_words": False,
    "max_characters": 5000,
    "max_piece_characters": 200,
    "max_duration": 30.0,
    "pause": 0.2,
}
SPEAK_KEYS = (MODEL_FOLDER, "speak")
#: Parts of a synthesiser: name in the model's folder -> name of the same part where it is a published file.
SPEAK_PARTS = {
    "speech_tokenizer": "speech_tokenizer_v2.onnx",
    "speaker_encoder": "campplus.onnx",
    "flow": None,
    "vocoder": None,
}
_COMMON_KEYS = (MODEL_FOLDER, "encoder", "llm", "front_end", "answer_format", "tasks", "slot_kinds", "labels")
#: Keys of ``hyperparams.yaml``, by what the model is for.
HPARAMS_KEYS = (*_COMMON_KEYS, "explain")
CHAT_KEYS = (*_COMMON_KEYS, "chat")
NEXT_LINE_KEYS = (*_COMMON_KEYS, "next_line")
KEYS_OF_PURPOSE = {"explain": HPARAMS_KEYS, "chat": CHAT_KEYS, "next_line": NEXT_LINE_KEYS}
_PACKAGES = ("speechbrain", "torch", "transformers", "peft", "safetensors", "hyperpyyaml")


class ExportError(ValueError):
    """A model that cannot be exported; the message says which part and why.

    Example
    -------
    >>> issubclass(ExportError, ValueError)
    True
    """


@main_process_only
def export_model(
    folder, model, factories, answer_format, tasks, explain=None, facts=None, chat=None, next_line=None
):
    """Write a trained model as a folder for inference; an older export there is replaced.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Arguments
    ---------
    folder : str or pathlib.Path
        Target, for example ``results/demo_ib/1986/model``.
    model : SpeechLanguageModel
        Trained, not wrapped.
    factories : mapping of str to functools.partial
        ``encoder``, ``llm`` and ``front_end`` as ``!name:`` makes them: the class and its keyword arguments.
        ``num_layers``, ``input_size`` and ``llm_size`` of the front end are read from the model where
        missing.
    answer_format : AnswerFormat
        Of the tasks.
    tasks : mapping of str to InstructionTask
        All tasks that ``explain`` or ``chat`` names; others are not written.
    explain : mapping, optional
        For a model that explains recordings. Keys of ``EXPLAIN_DEFAULTS``; ``label_task`` is needed. ``thresholds``
        is a ``dataio.descriptors.Thresholds`` or its ``to_dict()``; ``max_duration`` is in seconds
        (None: 60); ``temperature`` divides the label scores (nats) before the softmax, ``speech_temperature``
        those of the label asked for directly (None: the same); below the probability ``abstain_below`` the
        model says that it is not sure; ``precision`` is the evaluation's (``eval_precision``).
    facts : mapping, optional
        For the model card (see ``inference/model_card.py``), over those that are read from the model.
    chat : mapping, optional
        For a dialogue model, instead of ``explain``. Keys of ``CHAT_DEFAULTS``; ``dialogue_task`` is needed,
        ``transcript_task`` and ``choice_tasks`` are what it transcribes and describes a recording by.
    next_line : mapping, optional
        For a model that predicts the next line's emotion. Keys of ``NEXT_LINE_DEFAULTS``; ``next_task`` and
        ``emotion_task`` are needed.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If a part's class is not on the allow-list, a value is no plain data, a backbone's folder holds
        pickled weights only, or not exactly one of ``explain``, ``chat`` and ``next_line`` is given.

    Example
    -------
    >>> sorted(EXPLAIN_DEFAULTS)[:3]
    ['abstain_below', 'chain_task', 'label_task']
    """
    folder = Path(folder)
    given = {"explain": explain, "chat": chat, "next_line": next_line}
    given = {name: values for name, values in given.items() if values is not None}
    if len(given) != 1:
        raise ExportError(
            "give the settings of one of explain, chat and next_line: a model is exported for one of them"
        )
    ((purpose, settings),) = given.items()
    settings = complete_for(purpose, settings, tasks)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
        raise ExportError(f"{folder} exists and is no exported model: choose another folder, or take it away")
    encoder = model.encoder
    if encoder is None:  # All features came from the cache.
        encoder = factories["encoder"]()
    arguments = check_factories({name: factories[name] for name in ("encoder", "llm", "front_end")})
    front = arguments["front_end"][1]
    derived = {
        "num_layers": encoder.num_layers,
        "input_size": encoder.hidden_size,
        "llm_size": model.llm.hidden_size,
    }
    for name, value in derived.items():
        front.setdefault(name, value)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        external = {}
        for name, module in (("encoder", encoder), ("llm", model.llm)):
            _place_backbone(partial, name, arguments[name][1], module, external)
        state = {k: v.detach().cpu().contiguous() for k, v in model.front_end.state_dict().items()}
        save_file(state, str(partial / FRONT_END_WEIGHTS), metadata={"format": "pt"})
        model.llm.save_checkpoint(str(partial / ADAPTER_FOLDER))
        if not any((partial / ADAPTER_FOLDER).iterdir()):
            (partial / ADAPTER_FOLDER).rmdir()
        text = _hparams_text(arguments, answer_format, tasks, model.front_end.slot_kinds, settings, purpose)
        (partial / HPARAMS_FILE).write_text(text, encoding="utf-8")
        check_yaml(text)
        check_structure(text, KEYS_OF_PURPOSE[purpose])

        from speechbrain_emo.inference.model_card import write_model_card

        write_model_card(partial, _card_facts(arguments, model, encoder, answer_format, settings, facts))
        _write_manifest(partial, external)
        verify_folder(partial)
        _replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


@main_process_only
def export_annotator(folder, encoder, model, factories, settings, facts=None):
    """Write a trained word annotator as a folder for inference; an older export there is replaced.

    The folder holds ``hyperparams.yaml``, ``annotator.safetensors``, a small local encoder, the model card and
    ``manifest.json``; it appears whole or not at all.

    Arguments
    ---------
    folder : str or pathlib.Path
        Target, for example ``results/demo_word_emotion/1986/model``.
    encoder : SpeechEncoder or Emotion2Vec
        Frozen.
    model : WordEmotionModel
        Trained.
    factories : mapping of str to functools.partial
        ``encoder`` and ``annotator`` as ``!name:`` makes them.
    settings : mapping
        Keys of ``ANNOTATE_DEFAULTS``; ``labels`` and ``supervision`` are needed.
    facts : mapping, optional
        For the model card.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If a part's class is not on the allow-list, a setting is unknown or missing, or the encoder's folder holds
        pickled weights only.

    Example
    -------
    >>> sorted(ANNOTATE_DEFAULTS)[:3]
    ['intensities', 'intensity_thresholds', 'labels']
    """
    folder = Path(folder)
    settings = complete_annotate_settings(settings)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
        raise ExportError(f"{folder} exists and is no exported model: choose another folder, or take it away")
    arguments = {name: _arguments(name, factories[name]) for name in ("encoder", "annotator")}
    arguments["annotator"][1].update(
        num_labels=model.num_labels,
        input_size=model.input_size,
        num_encoder_layers=model.num_encoder_layers,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        external = {}
        _place_backbone(partial, "encoder", arguments["encoder"][1], encoder, external)
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(state, str(partial / ANNOTATOR_WEIGHTS), metadata={"format": "pt"})
        document = CommentedMap()
        document[MODEL_FOLDER] = None
        for name, (dotted, values) in arguments.items():
            document[name] = _new(dotted, values)
        document["annotate"] = _yaml_value(_plain(settings, "annotate"))
        text = _document_text(document)
        (partial / HPARAMS_FILE).write_text(text, encoding="utf-8")
        check_yaml(text)
        check_structure(text, ANNOTATOR_KEYS)

        from speechbrain_emo.inference.model_card import write_annotator_card

        parameters = sum(p.numel() for p in model.parameters())
        write_annotator_card(
            partial, {**settings, "encoder": encoder.source, "parameters": parameters, **(facts or {})}
        )
        _write_manifest(partial, external)
        verify_folder(partial)
        _replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def complete_annotate_settings(settings):
    """The annotator's settings with defaults for what is not given.

    Arguments
    ---------
    settings : mapping
        Keys of ``ANNOTATE_DEFAULTS``.

    Returns
    -------
    dict

    Raises
    ------
    ExportError
        If a key is unknown or missing, or a number is out of range.

    Example
    -------
    >>> complete_annotate_settings({"labels": ["hap", "sad"], "supervision": "weak"})["temperature"]
    1.0
    """
    settings = _with_defaults("annotate", settings, ANNOTATE_DEFAULTS)
    missing = [key for key in ("labels", "supervision") if not settings[key]]
    if missing:
        raise ExportError(f"annotate lacks {missing}")
    return settings


def complete_speak_settings(settings):
    """The synthesiser's settings with defaults for what is not given.

    Arguments
    ---------
    settings : mapping
        Keys of ``SPEAK_DEFAULTS``.

    Returns
    -------
    dict

    Raises
    ------
    ExportError
        If a key is unknown or missing, or a number is out of range.

    Example
    -------
    >>> complete_speak_settings({"labels": ["hap", "neu"]})["max_characters"]
    5000
    """
    settings = _with_defaults("speak", settings, SPEAK_DEFAULTS)
    if not settings["labels"]:
        raise ExportError("speak lacks 'labels'")
    for key in ("max_characters", "max_piece_characters"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise ExportError(f"speak.{key} is {settings[key]!r}; it must be a whole number of 1 and above")
    return settings


def export_tts(folder, lm, text_tokenizer, parts, settings, facts=None):
    """Write a synthesiser as a folder for inference; an older export there is replaced.

    The folder holds ``lm/``, ``text/`` (the text tokenizer), ``speech_tokenizer/``, ``speaker_encoder/``, ``flow/`` and
    ``vocoder/`` (or the published ONNX files of the first two), ``hyperparams.yaml`` (settings), the model card and
    ``manifest.json``; it appears whole or not at all.

    Arguments
    ---------
    folder : str or pathlib.Path
        Target, for example ``results/demo_film/1986/model``.
    lm : SpeechTokenLM
        Trained.
    text_tokenizer : transformers.PreTrainedTokenizerBase
        Its text tokens.
    parts : mapping of str to str
        Names of ``SPEAK_PARTS`` -> folder or ONNX file. What is left out the model lacks, and says so when it is used.
    settings : mapping
        Keys of ``SPEAK_DEFAULTS``; ``labels`` are needed.
    facts : mapping, optional
        For the model card.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If a part is unknown or not there, or a setting is unknown or missing.
    """
    folder = Path(folder)
    settings = complete_speak_settings(settings)
    unknown = sorted(set(parts) - set(SPEAK_PARTS))
    if unknown:
        raise ExportError(f"parts {unknown} are unknown; allowed: {', '.join(SPEAK_PARTS)}")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
        raise ExportError(f"{folder} exists and is no exported model: choose another folder, or take it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        lm.save(partial / "lm")
        text_tokenizer.save_pretrained(partial / "text")
        for name, source in parts.items():
            _copy_part(name, Path(source), partial)
        document = CommentedMap()
        document[MODEL_FOLDER] = None
        document["speak"] = _yaml_value(_plain(settings, "speak"))
        text = _document_text(document)
        (partial / HPARAMS_FILE).write_text(text, encoding="utf-8")
        check_yaml(text)
        check_structure(text, SPEAK_KEYS)

        from speechbrain_emo.inference.model_card import write_synthesis_card

        parameters = sum(value.numel() for value in lm.weights().values())
        write_synthesis_card(
            partial, {**settings, "parts": sorted(parts), "parameters": parameters, **(facts or {})}
        )
        _write_manifest(partial, {})
        verify_folder(partial)
        _replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _copy_part(name, source, partial):
    """A part that was stored as data: its folder's two files, or its ONNX file."""
    if source.is_file() and source.suffix == ".onnx" and SPEAK_PARTS[name]:
        shutil.copyfile(source, partial / SPEAK_PARTS[name])
        return
    files = [source / "config.json", source / "model.safetensors"]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise ExportError(f"{name}: {', '.join(missing)} not there: train it, or convert the published file")
    (partial / name).mkdir()
    for path in files:
        shutil.copyfile(path, partial / name / path.name)


def _replace(partial, folder):
    """Put the new folder in the place of an older export."""
    for path in partial.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(folder, old)
    os.rename(partial, folder)
    if old is not None:
        shutil.rmtree(old)


def _with_defaults(name, given, defaults):
    """Settings of one kind with its defaults; what every kind checks alike."""
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ExportError(f"{name} has unknown keys {unknown}; allowed: {sorted(defaults)}")
    settings = {**defaults, **given}
    if settings["max_duration"] is None:
        # Without a limit one long file would take all memory.
        settings["max_duration"] = defaults["max_duration"]
    for key in ("temperature", "max_duration", "max_new_tokens", "num_beams"):
        if key not in settings:
            continue
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ExportError(f"{name}.{key} is {value!r}; it must be a number above 0")
    if "precision" in settings and settings["precision"] not in ("fp32", "fp16", "bf16"):
        raise ExportError(f"{name}.precision is {settings['precision']!r}; allowed: fp32, fp16, bf16")
    return settings


def complete_settings(explain, tasks):
    """The explainer's settings with defaults for what is not given.

    Arguments
    ---------
    explain : mapping
        Keys of ``EXPLAIN_DEFAULTS``.
    tasks : collection of str
        Names of the tasks there are.

    Returns
    -------
    dict

    Raises
    ------
    ExportError
        If a key or a task is unknown, ``label_task`` is missing or a number is out of range.

    Example
    -------
    >>> complete_settings({"label_task": "ser"}, ["ser"])["num_beams"]
    1
    """
    settings = _with_defaults("explain", explain, EXPLAIN_DEFAULTS)
    if settings["label_task"] is None:
        raise ExportError("explain.label_task is null: name the task whose answer is the emotion alone")
    for key in ("label_task", "chain_task", "transcript_task"):
        if settings[key] is not None and settings[key] not in tasks:
            raise ExportError(
                f"explain.{key} is {settings[key]!r}; the experiment has the tasks {sorted(tasks)}"
            )
    below = settings["abstain_below"]
    if isinstance(below, bool) or not isinstance(below, (int, float)) or not 0 <= below <= 1:
        raise ExportError(f"explain.abstain_below is {below!r}; it must be a probability from 0 to 1")
    direct = settings["speech_temperature"]
    if direct is not None and (
        isinstance(direct, bool) or not isinstance(direct, (int, float)) or direct <= 0
    ):
        raise ExportError(f"explain.speech_temperature is {direct!r}; it must be null or a number above 0")
    if hasattr(settings["thresholds"], "to_dict"):
        settings["thresholds"] = settings["thresholds"].to_dict()
    return settings


def update_explain_settings(folder, changes):
    """Change settings of an exported model that explains; weights stay as they are.

    The folder is replaced as a whole, its manifest lists the new settings.

    Arguments
    ---------
    folder : str or pathlib.Path
        An exported model.
    changes : mapping
        Keys of ``EXPLAIN_DEFAULTS`` and their new values.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If the model does not explain recordings, or a setting is unknown or out of range.
    ValueError
        If the folder holds no exported model, or it was changed by hand.

    Example
    -------
    >>> update_explain_settings(getfixture("tmp_path"), {"abstain_below": 0.5})
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: ...manifest.json: missing; ...
    """
    folder = Path(folder)
    manifest = verify_folder(folder)
    yaml = ruamel.yaml.YAML()
    yaml.width = 4096
    document = yaml.load((folder / HPARAMS_FILE).read_text(encoding="utf-8"))
    if "explain" not in document:
        raise ExportError(f"{folder}: this model is not one that explains recordings")
    settings = complete_settings({**document["explain"], **changes}, list(document["tasks"]))
    document["explain"] = _yaml_value(_plain(settings, "explain"))
    stream = io.StringIO()
    yaml.dump(document, stream)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    shutil.copytree(folder, partial)
    try:
        (partial / MANIFEST_FILE).unlink()
        (partial / HPARAMS_FILE).write_text(stream.getvalue(), encoding="utf-8")
        check_yaml(stream.getvalue())
        check_structure(stream.getvalue(), HPARAMS_KEYS)
        _write_manifest(partial, manifest["external"])
        verify_folder(partial)
        _replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def complete_chat_settings(chat, tasks):
    """The settings of a dialogue model with defaults for what is not given.

    Arguments
    ---------
    chat : mapping
        Keys of ``CHAT_DEFAULTS``.
    tasks : collection of str
        Names of the tasks there are.

    Returns
    -------
    dict

    Raises
    ------
    ExportError
        If a key or a task is unknown, ``dialogue_task`` is missing or a number is out of range.

    Example
    -------
    >>> complete_chat_settings({"dialogue_task": "dialogue"}, ["dialogue"])["max_duration"]
    60.0
    """
    settings = _with_defaults("chat", chat, CHAT_DEFAULTS)
    if settings["dialogue_task"] is None:
        raise ExportError("chat.dialogue_task is null: name the task that answers a dialogue")
    settings["choice_tasks"] = [str(name) for name in settings["choice_tasks"]]
    for name in (settings["dialogue_task"], settings["transcript_task"], *settings["choice_tasks"]):
        if name is not None and name not in tasks:
            raise ExportError(f"chat names the task {name!r}; the experiment has {sorted(tasks)}")
    return settings


def complete_next_line_settings(settings, tasks):
    """The settings of a model for the next line, with defaults for what is not given.

    Arguments
    ---------
    settings : mapping
        Keys of ``NEXT_LINE_DEFAULTS``.
    tasks : collection of str
        Names of the tasks there are.

    Returns
    -------
    dict

    Raises
    ------
    ExportError
        If a key or a task is unknown, a task is missing or a number is out of range.

    Example
    -------
    >>> complete_next_line_settings({"next_task": "next", "emotion_task": "e"}, ["next", "e"])["num_beams"]
    1
    """
    settings = _with_defaults("next_line", settings, NEXT_LINE_DEFAULTS)
    for key in ("next_task", "emotion_task"):
        if settings[key] not in tasks:
            raise ExportError(
                f"next_line.{key} is {settings[key]!r}; the experiment has the tasks {sorted(tasks)}"
            )
    return settings


def complete_for(purpose, settings, tasks):
    """Complete settings of a purpose: ``explain``, ``chat`` or ``next_line``; the others' docstrings say how."""
    complete = {
        "explain": complete_settings,
        "chat": complete_chat_settings,
        "next_line": complete_next_line_settings,
    }
    return complete[purpose](settings, tasks)


def _named_tasks(settings):
    """Names of the tasks that settings of any kind ask for."""
    single = ("label_task", "chain_task", "transcript_task", "dialogue_task", "next_task", "emotion_task")
    return {settings.get(key) for key in single} - {None} | set(settings.get("choice_tasks") or ())


def check_factories(factories):
    """See that inference may construct what an experiment names, before anything is built or trained.

    Arguments
    ---------
    factories : mapping of str to functools.partial or type
        As ``!name:`` makes them: ``encoder``, ``llm`` and ``front_end``.

    Returns
    -------
    dict of str to tuple
        Name -> (dotted class name, keyword arguments as plain data).

    Raises
    ------
    ExportError
        If a class is not in ``ALLOWED_CLASSES``, or an argument is no plain data.

    Example
    -------
    >>> from speechbrain_emo.lobes.vib_front_end import VIBFrontEnd
    >>> check_factories({"front_end": functools.partial(VIBFrontEnd, stack=5)})
    {'front_end': ('speechbrain_emo.lobes.vib_front_end.VIBFrontEnd', {'stack': 5})}
    """
    return {name: _arguments(name, factory) for name, factory in factories.items()}


def _arguments(name, factory):
    """(dotted class name, keyword arguments as plain data) of a factory."""
    positional, keywords = (), {}
    while isinstance(factory, functools.partial):
        positional, keywords = factory.args + positional, {**factory.keywords, **keywords}
        factory = factory.func
    dotted = f"{getattr(factory, '__module__', '?')}.{getattr(factory, '__qualname__', factory)}"
    if dotted not in ALLOWED_CLASSES:
        raise ExportError(
            f"{name} is made by {dotted}, which inference may not construct; allowed: "
            f"{sorted(ALLOWED_CLASSES)}. A new "
            "lobe is added to ALLOWED_CLASSES in speechbrain_emo/inference/safe_loading.py"
        )
    bound = inspect.signature(factory).bind_partial(*positional, **keywords)
    return dotted, {key: _plain(value, f"{name}.{key}") for key, value in bound.arguments.items()}


def _plain(value, where):
    """Data that YAML holds without a tag."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)  # Also what the YAML reader wraps, such as a float that keeps its notation.
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise ExportError(f"{where} is a {type(value).__name__}; only plain data can be exported")


def _place_backbone(partial, name, arguments, module, external):
    """Copy a small local backbone into the export; a hub name keeps its name and gets its commit."""
    source = arguments.get("source")
    if source is None:
        raise ExportError(
            f"{name} was built from an architecture without a source: its weights cannot be read again; "
            "save it with "
            "save_pretrained and give the folder as source"
        )
    local = Path(source).expanduser()
    if not local.is_dir():
        commit = getattr(
            getattr(module.causal_lm if name == "llm" else module.model, "config", None), "_commit_hash", None
        )
        arguments["revision"] = arguments.get("revision") if commit is None else commit
        return
    if not any(local.glob("*.safetensors")) and hasattr(module, "save_pretrained"):
        # emotion2vec in ModelScope's layout is a pickle; its lobe writes it as data.
        module.save_pretrained(partial / name)
        arguments["source"] = _Reference(f"<{MODEL_FOLDER}>/{name}")
        arguments.pop("revision", None)
        return
    try:
        check_external_folder(local)
    except ValueError as error:
        raise ExportError(f"{name}: {error}") from error
    files = sorted(p for p in local.iterdir() if p.is_file() and p.suffix in ALLOWED_SUFFIXES - {".md"})
    if sum(p.stat().st_size for p in files) > MAX_COPY_BYTES:
        arguments["source"] = external[name] = str(local.resolve())
        return
    (partial / name).mkdir()
    for path in files:
        shutil.copyfile(path, partial / name / path.name)
    arguments["source"] = _Reference(f"<{MODEL_FOLDER}>/{name}")
    arguments.pop("revision", None)


class _Reference(str):
    """A ``!ref`` of the YAML."""


def _yaml_value(value):
    """Plain data as nodes that read back as they are."""
    if isinstance(value, _Reference):
        return TaggedScalar(str(value), style=None, tag=ruamel.yaml.Tag(suffix="!ref"))
    if isinstance(value, str):
        # HyperPyYAML reads a plain scalar in parentheses as a tuple, and drops the quotes of a quoted one.
        return (
            LiteralScalarString(value)
            if value.strip().startswith("(") and value.strip().endswith(")")
            else value
        )
    if isinstance(value, dict):
        return CommentedMap((k, _yaml_value(v)) for k, v in value.items())
    if isinstance(value, list):
        nodes = CommentedSeq(_yaml_value(v) for v in value)
        if all(isinstance(v, (int, float)) for v in value):
            nodes.fa.set_flow_style()  # 101 percentiles are no 101 lines.
        return nodes
    return value


def _new(dotted, arguments):
    node = _yaml_value(arguments)
    node.yaml_set_ctag(ruamel.yaml.Tag(suffix=f"!new:{dotted}"))
    return node


def _dotted(thing):
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _hparams_text(arguments, answer_format, tasks, slot_kinds, settings, purpose="explain"):
    """The text of ``hyperparams.yaml``."""
    task_nodes = CommentedMap()
    for name in sorted(_named_tasks(settings)):
        task = tasks[name]
        if _dotted(task) not in ALLOWED_CLASSES:
            raise ExportError(f"task {name!r} is a {_dotted(task)}, which inference may not construct")
        # A task keeps what it was made with under the names of its arguments.
        values = {}
        for key, parameter in inspect.signature(type(task)).parameters.items():
            value = getattr(task, key)
            if key == "format":
                values[key] = _Reference("<answer_format>")
            elif value != parameter.default and not (not value and not parameter.default):
                values[key] = _plain(value, f"tasks.{name}.{key}")
        task_nodes[name] = _new(_dotted(task), values)
    spec = {k: v if isinstance(v, str) else list(v) for k, v in answer_format.spec.items()}
    weights = _plain(answer_format.weights, "answer_format.weights")
    document = CommentedMap()
    document[MODEL_FOLDER] = None
    for name, (dotted, values) in arguments.items():
        document[name] = _new(dotted, values)
    document["answer_format"] = _new(_dotted(answer_format), {"fields": spec, "weights": weights})
    document["tasks"] = task_nodes
    document["slot_kinds"] = list(slot_kinds)
    document["labels"] = _yaml_value(_labels(answer_format))
    document[purpose] = _yaml_value(_plain(settings, purpose))
    return _document_text(document)


def _document_text(document):
    yaml = ruamel.yaml.YAML()
    yaml.default_flow_style = False
    yaml.width = 4096  # A folded line in a prompt would be hard to read.
    stream = io.StringIO()
    stream.write("# Written by speechbrain_emo.inference.export; data only, verified by manifest.json.\n")
    yaml.dump(document, stream)
    return stream.getvalue()


def _labels(answer_format):
    """Emotions of a format; none where it has no closed list of them."""
    kind = answer_format.spec.get("emotion", ())
    return [] if isinstance(kind, str) else list(kind)


def _interface(settings):
    """The class that loads a model of such settings."""
    if "next_task" in settings:
        return "ConversationalTTS"
    return "EmotionalChat" if "dialogue_task" in settings else "EmotionExplainer"


def _card_facts(arguments, model, encoder, answer_format, settings, facts):
    """What the model card says, as far as the model itself knows."""
    trained = sum(p.numel() for p in model.front_end.parameters())
    if model.llm.has_lora:
        trained += sum(p.numel() for m in model.llm.lora_modules() for p in m.parameters())
    own = {
        "labels": _labels(answer_format),
        "interface": _interface(settings),
        "descriptors": list(answer_format.descriptor_names),
        "encoder": encoder.source,
        "llm": model.llm.source,
        "front_end": arguments["front_end"][0].rsplit(".", 1)[1],
        "sample_rate": encoder.sample_rate,
        "language": settings["language"],
        "temperature": settings.get("temperature"),
        "thresholds": settings.get("thresholds"),
        "abstain_below": settings.get("abstain_below"),
        "max_duration": settings["max_duration"],
        "parameters": sum(
            p.numel() for part in (encoder, model.front_end, model.llm) for p in part.parameters()
        ),
        "num_trained_parameters": trained,
    }
    return {**own, **(facts or {})}


def _write_manifest(partial, external):
    files = {}
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            name = path.relative_to(partial).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    try:
        packages["speechbrain_emo"] = importlib.metadata.version("speechbrain_emo")
    except importlib.metadata.PackageNotFoundError:
        packages["speechbrain_emo"] = "not installed (run from a checkout)"
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": files,
        "external": external,
        "packages": packages,
    }
    (partial / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
