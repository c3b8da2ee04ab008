"""Trained models as objects that explain recordings.

There is no second path: audio enters through ``dataio.audio`` and predictions come from
``brains.explainer``, as in training and evaluation.
"""

import logging
import os
from pathlib import Path

import ruamel.yaml
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig, FetchFrom, FetchSource, LocalStrategy, fetch
from tqdm import tqdm

from speechbrain_emo.brains.explainer import Explainer
from speechbrain_emo.brains.speech_language_model import AudioBatch, SpeechLanguageModel
from speechbrain_emo.dataio.audio import AudioError, from_array, load_audio
from speechbrain_emo.dataio.descriptors import (
    VALUES,
    Thresholds,
    compared_with,
    curves,
    describe,
    measure,
    percentile,
)
from speechbrain_emo.inference.explanation import (
    Explanation,
    Failure,
    answer_phrase,
    compose_sentence,
    describe_value,
    measurement_phrase,
    place_phrase,
)
from speechbrain_emo.inference.export import (
    ADAPTER_FOLDER,
    FRONT_END_WEIGHTS,
    KEYS_OF_PURPOSE,
    complete_for,
)
from speechbrain_emo.inference.safe_loading import (
    HPARAMS_FILE,
    HUB_NAME,
    MANIFEST_FILE,
    UnsafeModelError,
    check_parts,
    check_structure,
    check_yaml,
    load_checked_yaml,
    read_manifest,
    verify_folder,
)
from speechbrain_emo.metrics.calibration import label_probabilities
from speechbrain_emo.plots import plot_explanation
from speechbrain_emo.prompts.packer import Packer
from speechbrain_emo.prompts.tasks import EMOTION, TRANSCRIPT

logger = logging.getLogger(__name__)

MODEL_SUBFOLDER = "model"
# Every recording gets the same wording of the prompt (a hash of the id chooses it), whatever its file is
# called.
_RECORD_ID = "recording"
# Percentiles by which a measurement must lie outside a descriptor's range before it contradicts it.
_MARGIN = 10.0


class EmotionExplainer(Pretrained):
    """Emotion of a recording with probabilities, transcript, descriptors and a sentence of explanation.

    Made by :meth:`from_hparams` from the folder of a training, an exported model or a hub name.

    Arguments
    ---------
    modules : dict
        ``{"model": SpeechLanguageModel}``.
    hparams : dict
        What ``hyperparams.yaml`` of an exported model holds (see ``inference/export.py``).
    run_opts : dict, optional
        SpeechBrain's run options, for example ``{"device": "cuda:0"}``.
    freeze_params : bool
        As in ``Pretrained``.

    Example
    -------
    >>> from speechbrain_emo.inference import EmotionExplainer
    >>> EmotionExplainer.from_hparams(source=getfixture("tmp_path"))
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: ... holds no exported model: ...
    """

    HPARAMS_NEEDED = ["answer_format", "tasks", "slot_kinds", "labels", "explain"]
    MODULES_NEEDED = ["model"]

    def __init__(self, modules=None, hparams=None, run_opts=None, freeze_params=True):
        super().__init__(modules, hparams, run_opts, freeze_params)
        settings = self.hparams.explain
        model = self.mods["model"]
        model.eval()
        # Length is checked recording by recording, where the message can name it.
        packer = Packer(model.llm.tokenizer, self.hparams.slot_kinds)
        self.explainer = Explainer(
            model,
            packer,
            self.hparams.tasks,
            settings["label_task"],
            settings["chain_task"],
            settings["transcript_task"],
            settings["max_new_tokens"],
            settings["num_beams"],
        )
        self.sample_rate = model.encoder.sample_rate
        self.max_duration = settings["max_duration"]
        limits = [settings["max_positions"]]
        positions = getattr(model.llm.causal_lm.config, "max_position_embeddings", None)
        if positions is not None:
            limits.append(positions - settings["max_new_tokens"])
        self.max_prompt_positions = min((n for n in limits if n is not None), default=None)
        self.temperature = settings["temperature"]
        # Where the label is asked for directly, as `timeline` does.
        self.speech_temperature = settings["speech_temperature"] or self.temperature
        self.abstain_below = settings["abstain_below"]
        thresholds = settings["thresholds"]
        self.thresholds = None if thresholds is None else Thresholds.from_dict(thresholds)
        self.language = settings["language"]

    @property
    def labels(self):
        """The emotions that the model tells apart."""
        return list(self.explainer.labels)

    # -- loading ---------------------------------------------------------------------------------------------

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=HPARAMS_FILE,
        savedir=None,
        overrides=None,
        run_opts=None,
        fetch_config=None,
        **kwargs,
    ):
        """Load a model after checking it: nothing that it brings is run.

        Arguments
        ---------
        source : str or pathlib.Path
            An exported model's folder, the folder of a training (which has it under ``model/``), or a name
            on the Hugging Face hub (``name/model``).
        hparams_file : str
            Only ``hyperparams.yaml``; there for SpeechBrain's signature.
        savedir : str or pathlib.Path, optional
            Where a model from the hub is copied to. Default: beside the hub's own cache.
        overrides : mapping, optional
            Plain values over those of the model, for example ``{"llm": {"source": "FOLDER"}}``.
        run_opts : dict, optional
            SpeechBrain's run options, for example ``{"device": "cuda:0"}``.
        fetch_config : speechbrain.utils.fetching.FetchConfig, optional
            Revision, token and the like, for the hub.
        **kwargs
            Further arguments of the class.

        Returns
        -------
        EmotionExplainer

        Raises
        ------
        UnsafeModelError
            If there is no model, a file differs from the manifest, or something could run code.
        """
        model, hparams = load_exported(source, "explain", hparams_file, savedir, overrides, fetch_config)
        return cls(modules={"model": model}, hparams=hparams, run_opts=run_opts, **kwargs)

    # -- explaining ------------------------------------------------------------------------------------------

    def load_audio(self, path, savedir=None):
        """Waveform (samples,) of a file as the model hears it.

        Arguments
        ---------
        path : str or pathlib.Path
            Audio file on this machine.
        savedir : str, optional
            Not used; there for SpeechBrain's signature.

        Returns
        -------
        torch.Tensor
            float32, shape (samples,), at ``sample_rate``.

        Raises
        ------
        AudioError
            If the file cannot be used, or is longer than the model can take.
        """
        del savedir
        waveform = load_audio(path, self.sample_rate, max_duration=self.max_duration)
        return self.check_length(waveform, str(path))

    def check_length(self, waveform, name):
        """Refuse a recording whose prompt is longer than the language model was trained for.

        Arguments
        ---------
        waveform : torch.Tensor
            float32 (samples,).
        name : str
            What the message calls it.

        Returns
        -------
        torch.Tensor
            The same.

        Raises
        ------
        AudioError
            If it is too long.
        """
        if self.max_prompt_positions is None:
            return waveform
        model, packer = self.explainer.model, self.explainer.packer
        frames = model.encoder.num_frames(len(waveform))
        lengths = {kind: model.front_end.num_positions(kind, frames) for kind in packer.slot_kinds}
        tasks = (self.explainer.label_task, self.explainer.chain_task, self.explainer.transcript_task)
        needed = max(
            packer.encode(task.build({"id": _RECORD_ID}), [lengths], with_answer=False).num_positions
            for task in tasks
            if task is not None
        )
        if needed > self.max_prompt_positions:
            raise AudioError(
                f"{name}: {len(waveform) / self.sample_rate:.1f} s is too long for this model: its prompt "
                "needs "
                f"{needed} positions, at most {self.max_prompt_positions} are allowed; cut it into utterances"
            )
        return waveform

    def explain_file(self, path, gender=None):
        """Explain one file of any sample rate and number of channels.

        Arguments
        ---------
        path : str or pathlib.Path
            Audio file.
        gender : str, optional
            ``female`` or ``male``: what measured pitch is compared with. Default: what the model says, if it
            does.

        Returns
        -------
        Explanation

        Raises
        ------
        AudioError
            If the file cannot be used; the message names it.
        """
        return self.explain_files([path], on_error="raise", genders=[gender])[0]

    def explain_files(self, paths, batch_size=8, on_error="report", genders=None, progress=None):
        """Explain many files; the results do not depend on the batches.

        Arguments
        ---------
        paths : sequence of str or pathlib.Path
            Audio files.
        batch_size : int
            Files that run through the model at a time.
        on_error : str
            ``report``: a :class:`Failure` stands in the place of a file that cannot be used, the others are
            finished. ``raise``: the first such file raises.
        genders : sequence of (str or None), optional
            As in :meth:`explain_file`, one a file.
        progress : bool, optional
            Whether a bar is shown. Default: for more than one batch, on a terminal.

        Returns
        -------
        list of (Explanation or Failure)
            In the order of ``paths``.

        Raises
        ------
        AudioError
            With ``on_error="raise"``.
        ValueError
            If an argument is not allowed.
        """
        if isinstance(paths, (str, os.PathLike)):
            raise ValueError(f"paths is the one path {str(paths)!r}; give a list, or use explain_file")
        if on_error not in ("report", "raise"):
            raise ValueError(f"on_error is {on_error!r}; allowed: report, raise")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed: 1 and above")
        paths = [os.fspath(p) for p in paths]
        genders = [None] * len(paths) if genders is None else list(genders)
        if len(genders) != len(paths):
            raise ValueError(f"{len(genders)} genders for {len(paths)} files: give one a file, or none")
        results, pending = [None] * len(paths), []

        def flush():
            waveforms = [waveform for _, waveform in pending]
            indices = [index for index, _ in pending]
            explained = self._explain(waveforms, [paths[i] for i in indices], [genders[i] for i in indices])
            for index, explanation in zip(indices, explained):
                results[index] = explanation
            bar.update(len(pending))
            pending.clear()

        if progress is None:
            hidden = None if len(paths) > batch_size else True  # None: hidden unless on a terminal.
        else:
            hidden = not progress
        with tqdm(total=len(paths), desc="explain", unit="file", disable=hidden) as bar:
            for index, path in enumerate(paths):
                try:
                    waveform = self.load_audio(path)
                except (AudioError, OSError) as error:
                    if on_error == "raise":
                        raise
                    text = str(error)
                    results[index] = Failure(path, text if path in text else f"{path}: {text}")
                    bar.update(1)
                    continue
                pending.append((index, waveform))
                if len(pending) == batch_size:
                    flush()
            if pending:
                flush()
        return results

    def draw(self, explanation, waveform, path):
        """A picture of an explanation beside what is measured in the recording.

        Arguments
        ---------
        explanation : Explanation
            Of this explainer.
        waveform : torch.Tensor
            float32 (samples,) at ``sample_rate``: of :meth:`load_audio`.
        path : str or pathlib.Path
            PNG file to write.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        ValueError
            If the path is no PNG.
        """
        pitch = None
        group = explanation.compared_with.get("pitch")
        if self.thresholds is not None and group is not None:
            pitch = self.thresholds.of("f0_median", group)["edges"]
        rows = [
            (
                name,
                describe_value(value),
                (measurement_phrase(name, explanation.measured) or "").removeprefix("measured "),
                place_phrase(name, explanation.percentiles, explanation.compared_with) or "",
                any(w.startswith(f"{name}: the model says") for w in explanation.warnings),
            )
            for name, value in explanation.descriptors.items()
        ]
        warnings = list(explanation.warnings)
        if self.thresholds is None:
            warnings.append(
                "nothing is measured: the model holds no quantiles of its training set "
                "(python -m speechbrain_emo calibrate FOLDER adds them)"
            )
        summary = {
            "title": f"{Path(explanation.name).name}: {explanation.answer}",
            "transcript": explanation.transcript,
            "probabilities": explanation.probabilities,
            "rows": rows,
            "warnings": warnings,
            "f0_edges": pitch,
        }
        return plot_explanation(
            waveform.numpy(), self.sample_rate, curves(waveform, self.sample_rate), summary, path
        )

    def explain_array(self, samples, sample_rate, name="array", gender=None):
        """Explain samples in memory.

        Arguments
        ---------
        samples : numpy.ndarray or torch.Tensor
            (samples,) or with a channel axis; float with full scale 1, or integers.
        sample_rate : int
            Hz.
        name : str
            What the result and messages call it.
        gender : str, optional
            As in :meth:`explain_file`.

        Returns
        -------
        Explanation

        Raises
        ------
        AudioError
            If the samples cannot be used.
        """
        waveform = from_array(samples, sample_rate, self.sample_rate, self.max_duration, name)
        self.check_length(waveform, name)
        return self._explain([waveform], [name], [gender])[0]

    def explain_batch(self, waveforms, lens=None):
        """Explain a padded batch, in SpeechBrain's convention.

        Arguments
        ---------
        waveforms : torch.Tensor
            Float, shape (B, samples), at ``sample_rate``.
        lens : torch.Tensor, optional
            Relative lengths in (0, 1], shape (B,). Default: all full.

        Returns
        -------
        list of Explanation

        Raises
        ------
        ValueError
            If the shapes do not fit.
        AudioError
            If a row cannot be used.
        """
        if waveforms.dim() != 2 or (lens is not None and tuple(lens.shape) != (len(waveforms),)):
            shape = None if lens is None else tuple(lens.shape)
            raise ValueError(
                f"waveforms have shape {tuple(waveforms.shape)}, lens {shape}; needed: (B, samples) and (B,)"
            )
        width = waveforms.shape[1]
        lengths = [width] * len(waveforms) if lens is None else (lens * width).round().long().tolist()
        names = [f"waveforms[{i}]" for i in range(len(waveforms))]
        rows = [
            self.check_length(
                from_array(row[:n], self.sample_rate, self.sample_rate, self.max_duration, name), name
            )
            for row, n, name in zip(waveforms, lengths, names)
        ]
        return self._explain(rows, names, [None] * len(rows)) if rows else []

    def forward(self, waveforms, lens=None):
        """Same as :meth:`explain_batch`."""
        return self.explain_batch(waveforms, lens)

    @torch.no_grad()
    def _explain(self, waveforms, names, genders):
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        audio = AudioBatch(torch.tensor([len(w) for w in waveforms]), waveforms=padded).to(self.device)
        with self.inference_ctx:
            predictions = self.explainer.explain([{"id": _RECORD_ID}] * len(waveforms), audio)
        return [
            self._result(prediction, waveform, name, gender)
            for prediction, waveform, name, gender in zip(predictions, waveforms, names, genders)
        ]

    def _result(self, prediction, waveform, name, gender):
        condition = "own_chain" if self.explainer.chain_task is not None else "speech"
        scores = prediction.scores[condition]
        probabilities = label_probabilities(list(scores.values()), self.temperature)
        probabilities = dict(zip(scores, probabilities.tolist()))
        emotion = prediction.label(condition)
        form, warnings = self.explainer.format, []
        asked = self.explainer.chain_task or self.explainer.transcript_task
        fields = asked.answer if asked is not None else ()
        transcript = prediction.fields.get(TRANSCRIPT)
        descriptors = {}
        for field in fields:
            value = prediction.fields.get(field)
            if field in (TRANSCRIPT, EMOTION, "description"):
                continue
            if form.spec[field] == "words" and value is not None:
                value = [] if value == "none" else [w.strip() for w in value.split(",") if w.strip()]
            descriptors[field] = value
        written = prediction.fields.get(EMOTION)
        if EMOTION in fields and written is None:
            warnings.append("the written answer names no emotion; the label comes from the scores alone")
        elif written is not None and written != emotion:
            warnings.append(f"the written answer says {written}, the label scores say {emotion}")
        missing = [field for field, value in descriptors.items() if value is None]
        if missing:
            warnings.append(f"the written answer has no readable {', '.join(missing)}")
        found = self._measure(waveform, transcript, descriptors, gender, warnings)
        certain = probabilities[emotion] >= self.abstain_below and not found.get("silent", False)
        places = {key: found.get(key, {}) for key in ("measured", "percentiles", "compared_with")}
        return Explanation(
            name=name,
            emotion=emotion,
            probabilities=probabilities,
            scores=dict(scores),
            condition=condition,
            descriptors=descriptors,
            transcript=transcript,
            description=prediction.fields.get("description"),
            sentence=compose_sentence(answer_phrase(probabilities, certain), descriptors, **places),
            measured_descriptors=found.get("words", {}),
            warnings=warnings,
            generated=prediction.generated,
            duration=len(waveform) / self.sample_rate,
            certain=certain,
            abstain_below=self.abstain_below,
            **places,
        )

    def _measure(self, waveform, transcript, descriptors, gender, warnings):
        """Measurements, their words and places in training; what contradicts the model's words joins the warnings."""
        if self.thresholds is None:
            return {}
        if gender is None and descriptors.get("gender") in ("female", "male"):
            gender = descriptors["gender"]
        measurement = measure(waveform, self.sample_rate, transcript or None, self.language)
        measured = {
            "f0_median": measurement.f0_median,
            "f0_range": measurement.f0_range,
            "level": measurement.level,
            "syllable_rate": measurement.syllable_rate,
            "nuclei_rate": measurement.nuclei_rate,
            "voiced_share": measurement.voiced_share,
            "active_duration": measurement.active_duration,
        }
        if measurement.is_silent:
            warnings.append("no speech was found in the recording; the emotion has no ground")
        words = describe(measurement, gender, self.thresholds)
        places = percentile(measurement, gender, self.thresholds)
        groups = compared_with(measurement, gender, self.thresholds)
        words = {field: words[field] for field in VALUES if field in words}
        # A training that compares each gender with itself calls high what is high for that gender: beside everybody
        # together, a man's high voice is low.
        gendered = any(self.thresholds.groups.get(g, {}).get("f0_median") for g in ("female", "male"))
        incomparable = gendered and groups["pitch"] == "all"
        low, high = (100 * q for q in self.thresholds.quantiles)
        ranges = ((0.0, low), (low, high), (high, 100.0))
        for field, word in words.items():
            said = descriptors.get(field)
            if said not in VALUES[field] or said == word:
                continue
            if field == "pitch" and incomparable and "unvoiced" not in (said, word):
                continue
            place, span = places[field], VALUES[field].index(said)
            # A value just beside a threshold contradicts nobody.
            if (
                place is not None
                and span < 3
                and ranges[span][0] - _MARGIN <= place <= ranges[span][1] + _MARGIN
            ):
                continue
            phrase = measurement_phrase(field, measured, places, groups) or "not measurable"
            warnings.append(
                f"{field}: the model says {describe_value(said)}, the signal says {word} ({phrase})"
            )
        return {
            "measured": measured,
            "words": words,
            "percentiles": places,
            "compared_with": groups,
            "silent": measurement.is_silent,
        }


def load_exported(
    source, purpose, hparams_file=HPARAMS_FILE, savedir=None, overrides=None, fetch_config=None
):
    """Check an exported model and build it: nothing that it brings is run.

    Arguments
    ---------
    source : str or pathlib.Path
        Folder of an export or of a training, or a hub name.
    purpose : str
        ``explain``, ``chat`` or ``next_line``: whose settings the model must have.
    hparams_file, savedir, overrides, fetch_config :
        As of :meth:`EmotionExplainer.from_hparams`.

    Returns
    -------
    tuple
        The SpeechLanguageModel and the other hyperparameters (dict).

    Raises
    ------
    UnsafeModelError
        If there is no model, it is for another purpose, a file differs from the manifest, or something could
        run code.
    """
    if hparams_file != HPARAMS_FILE:
        raise UnsafeModelError(
            f"hparams_file is {hparams_file!r}; an exported model has {HPARAMS_FILE!r} only"
        )
    folder = find_model_folder(source)
    remote = folder is None
    if remote:
        folder = _fetch_model(str(source), savedir, fetch_config or FetchConfig())
    manifest = verify_folder(folder)
    name = str(folder / HPARAMS_FILE)
    try:
        text = (folder / HPARAMS_FILE).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnsafeModelError(f"{name}: not UTF-8 text ({error})") from error
    check_yaml(text, name)
    found = _purpose(text)
    if found != purpose and found is not None:
        other = {
            "explain": "EmotionExplainer",
            "chat": "EmotionalChat",
            "next_line": "ConversationalTTS",
        }
        raise UnsafeModelError(f"{name}: this model is for {other[found]}, not for {other[purpose]}")
    check_structure(text, KEYS_OF_PURPOSE[purpose], name)
    if isinstance(overrides, str):  # SpeechBrain takes YAML text too.
        overrides = ruamel.yaml.YAML(typ="safe", pure=True).load(overrides)
    replaced = [part for part, values in (overrides or {}).items() if "source" in (values or {})]
    check_parts(text, manifest, name, remote, replaced)
    hparams = load_checked_yaml(text, folder.resolve(), name, overrides)
    hparams[purpose] = complete_for(purpose, hparams[purpose], hparams["tasks"])
    hparams["precision"] = hparams[purpose]["precision"]
    front_end, llm = hparams["front_end"], hparams["llm"]
    _load_front_end(front_end, folder / FRONT_END_WEIGHTS, manifest)
    adapter = folder / ADAPTER_FOLDER
    if any(n.startswith(ADAPTER_FOLDER + "/") for n in manifest["files"]):
        try:
            llm.load_checkpoint(str(adapter))
        except (SafetensorError, ValueError) as error:
            raise UnsafeModelError(f"{adapter}: does not fit the language model: {error}") from error
    elif llm.has_lora:
        raise UnsafeModelError(f"{adapter}: missing, but {name} describes a language model with LoRA")
    model = SpeechLanguageModel(llm, front_end, hparams["encoder"])
    return model, {k: v for k, v in hparams.items() if k not in ("encoder", "llm", "front_end")}


def _purpose(text):
    """Which settings a text has: explain, chat, next_line, or None."""
    node = ruamel.yaml.YAML(typ="safe", pure=True).compose(text)
    keys = {key.value for key, _ in node.value}
    return next((p for p in KEYS_OF_PURPOSE if p in keys), None)


def find_model_folder(source):
    """The exported model that a local path means.

    Arguments
    ---------
    source : str or pathlib.Path
        Folder of an export or of a training, or a hub name.

    Returns
    -------
    pathlib.Path or None
        None where ``source`` is no local path and may be a hub name.

    Raises
    ------
    UnsafeModelError
        If it is a path without a model.
    """
    path = Path(source).expanduser()
    for folder in (path, path / MODEL_SUBFOLDER):
        if (folder / MANIFEST_FILE).is_file():
            return folder
    if path.is_dir():
        raise UnsafeModelError(
            f"{source} holds no exported model: neither {MANIFEST_FILE} nor "
            f"{MODEL_SUBFOLDER}/{MANIFEST_FILE} is there; a "
            "training writes it when it ends"
        )
    if path.exists() or not HUB_NAME.fullmatch(str(source)) or str(source).count("/") != 1:
        raise UnsafeModelError(
            f"{source}: no such folder; give the folder of a training (results/demo_ib/1986), of an "
            "exported model, or "
            "a name on the Hugging Face hub (owner/model)"
        )
    return None


def _fetch_model(source, savedir, fetch_config):
    """Copy the manifest from the hub, and then the files it lists, and no other."""
    if savedir is None:
        from huggingface_hub import constants

        savedir = Path(constants.HF_HOME) / "speechbrain_emo" / source.replace("/", "--")
    savedir = Path(savedir)

    def get(name):
        target = savedir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch(
                name,
                FetchSource(FetchFrom.HUGGING_FACE, source),
                savedir=savedir,
                local_strategy=LocalStrategy.COPY,
                fetch_config=fetch_config,
            )
        except Exception as error:  # The hub's client raises many kinds, most of them of its own.
            raise UnsafeModelError(
                f"{source}: {name} could not be fetched from the hub ({type(error).__name__}: {error}); "
                "check the name, "
                "the network and the access, or give a local folder"
            ) from error

    get(MANIFEST_FILE)
    for name in tqdm(
        read_manifest(savedir / MANIFEST_FILE)["files"], desc=f"fetch {source}", unit="file", disable=None
    ):
        get(name)
    return savedir


def _load_front_end(front_end, path, manifest):
    if FRONT_END_WEIGHTS not in manifest["files"]:
        raise UnsafeModelError(f"{path}: not listed in {MANIFEST_FILE}")
    try:
        front_end.load_state_dict(load_file(str(path)), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise UnsafeModelError(f"{path}: the weights do not fit the front end: {error}") from error
