"""The word annotator as an object: :class:`WordEmotionAnnotator`."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig

from speechbrain_emo.alignment import Alignment, make_aligner
from speechbrain_emo.brains.word_emotion import WordPredictor
from speechbrain_emo.dataio.audio import from_array, load_audio
from speechbrain_emo.inference.export import (
    ANNOTATOR_KEYS,
    ANNOTATOR_WEIGHTS,
    complete_annotate_settings,
)
from speechbrain_emo.inference.interfaces import _fetch_model, find_model_folder
from speechbrain_emo.inference.safe_loading import (
    HPARAMS_FILE,
    UnsafeModelError,
    check_parts,
    check_structure,
    check_yaml,
    load_checked_yaml,
    verify_folder,
)
from speechbrain_emo.inference.word_annotation import SUPERVISION, AnnotatedWord, WordAnnotation

DEFAULT_ALIGNER = "pocketsphinx"
# Of the mean over words; the same line as `align` draws.
LOW_CONFIDENCE = 0.5


class WordEmotionAnnotator(Pretrained):
    """Emotion, intensity and dimensions of every word of a recording whose text is known.

    Made by :meth:`from_hparams` from the folder of a training (``hparams/demo_word_emotion.yaml``), an exported model
    or a hub name.

    Arguments
    ---------
    modules : dict
        ``{"encoder": ..., "annotator": WordEmotionModel}``.
    hparams : dict
        ``annotate``: the settings of ``inference.export.ANNOTATE_DEFAULTS``; ``model_hash`` and ``model_name``.
    run_opts : dict, optional
        SpeechBrain's run options, for example ``{"device": "cuda:0"}``.
    freeze_params : bool
        As in ``Pretrained``.

    Example
    -------
    >>> from speechbrain_emo.inference import WordEmotionAnnotator
    >>> WordEmotionAnnotator.from_hparams(source=getfixture("tmp_path"))
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: ... holds no exported model: ...
    """

    HPARAMS_NEEDED = ["annotate"]
    MODULES_NEEDED = ["encoder", "annotator"]

    def __init__(self, modules=None, hparams=None, run_opts=None, freeze_params=True):
        super().__init__(modules, hparams, run_opts, freeze_params)
        self.settings = self.hparams.annotate
        self.predictor = WordPredictor(
            self.mods["encoder"],
            self.mods["annotator"].eval(),
            self.settings["labels"],
            self.settings["intensities"],
            self.settings["intensity_thresholds"],
            self.settings["temperature"],
        )
        self.sample_rate = self.mods["encoder"].sample_rate
        self.model_hash, self.model_name = self.hparams.model_hash, self.hparams.model_name
        self._aligners = {}

    @property
    def labels(self):
        """The emotions that the model tells apart."""
        return list(self.settings["labels"])

    # -- loading -------------------------------------------------------------------------------------------

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
            An exported model's folder, the folder of a training (which has it under ``model/``), or a name on the
            Hugging Face hub.
        hparams_file : str
            Only ``hyperparams.yaml``; there for SpeechBrain's signature.
        savedir : str or pathlib.Path, optional
            Where a model from the hub is copied to.
        overrides : mapping, optional
            Plain values over those of the model, for example ``{"encoder": {"source": "FOLDER"}}``.
        run_opts : dict, optional
            SpeechBrain's run options.
        fetch_config : speechbrain.utils.fetching.FetchConfig, optional
            Revision, token and the like, for the hub.
        **kwargs
            Further arguments of the class.

        Returns
        -------
        WordEmotionAnnotator

        Raises
        ------
        UnsafeModelError
            If there is no annotator, a file differs from the manifest, or something could run code.
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
        check_structure(text, ANNOTATOR_KEYS, name)
        replaced = [part for part, values in (overrides or {}).items() if "source" in (values or {})]
        check_parts(text, manifest, name, remote, replaced, parts=("encoder",))
        hparams = load_checked_yaml(text, folder.resolve(), name, overrides)
        if ANNOTATOR_WEIGHTS not in manifest["files"]:
            raise UnsafeModelError(f"{folder / ANNOTATOR_WEIGHTS}: not listed in the manifest")
        try:
            hparams["annotator"].load_state_dict(load_file(str(folder / ANNOTATOR_WEIGHTS)), strict=True)
        except (SafetensorError, RuntimeError) as error:
            raise UnsafeModelError(
                f"{folder / ANNOTATOR_WEIGHTS}: the weights do not fit the annotator: {error}"
            ) from error
        # The card may be corrected by people; everything else makes the labels what they are.
        parts = {k: v["sha256"] for k, v in manifest["files"].items() if not k.endswith(".md")}
        digest = hashlib.sha256(json.dumps([parts, overrides or {}], sort_keys=True, default=str).encode())
        values = {
            "annotate": complete_annotate_settings(hparams["annotate"]),
            "model_hash": digest.hexdigest(),
            "model_name": Path(source).name if remote else folder.resolve().parent.name + "/" + folder.name,
        }
        modules = {name: hparams[name] for name in ("encoder", "annotator")}
        return cls(modules=modules, hparams=values, run_opts=run_opts, **kwargs)

    # -- annotating ----------------------------------------------------------------------------------------

    def provenance(self, aligner):
        """Where labels of this model come from, for every result.

        Arguments
        ---------
        aligner : str
            Name of the aligner.

        Returns
        -------
        dict
        """
        from speechbrain_emo import __version__

        return {
            "model": self.model_hash,
            "model_name": self.model_name,
            "encoder": self.mods["encoder"].fingerprint,
            "aligner": aligner,
            "supervision": SUPERVISION.get(self.settings["supervision"], self.settings["supervision"]),
            "labels": self.labels,
            "intensities": list(self.settings["intensities"]),
            "untagged": self.settings["untagged"],
            "toolkit": f"speechbrain_emo {__version__}",
        }

    def aligner(self, name=DEFAULT_ALIGNER, **options):
        """An aligner by name, made once.

        Raises
        ------
        AlignmentError
            If it is unknown or cannot be used here.
        """
        key = json.dumps([name, options], sort_keys=True)
        if key not in self._aligners:
            self._aligners[key] = make_aligner(name, **options)
        return self._aligners[key]

    def annotate_file(
        self, path, text=None, aligner=DEFAULT_ALIGNER, alignment=None, name=None, start=None, stop=None
    ):
        """Annotate one file of any sample rate and number of channels.

        Arguments
        ---------
        path : str or pathlib.Path
            Audio file.
        text : str, optional
            What is said; not needed with ``alignment``.
        aligner : str or Aligner
            Finds the words: a name (pocketsphinx, espeak-dtw, ctc, mfa, textgrid) or an object with ``align``.
        alignment : Alignment, optional
            Words that are known already; no aligner is asked then.
        name : str, optional
            What the result is called. Default: the path.
        start, stop : int, optional
            Segment in samples at the file's own rate; times count from ``start``.

        Returns
        -------
        WordAnnotation

        Raises
        ------
        AudioError
            If the file cannot be used.
        AlignmentError
            If the text cannot be aligned to it.
        """
        waveform = load_audio(path, self.sample_rate, start, stop, max_duration=self.settings["max_duration"])
        return self._annotate(waveform, text, aligner, alignment, str(path) if name is None else name)

    def annotate_array(
        self, samples, sample_rate, text=None, aligner=DEFAULT_ALIGNER, alignment=None, name="array"
    ):
        """Annotate samples in memory; the other arguments are those of :meth:`annotate_file`.

        Arguments
        ---------
        samples : numpy.ndarray or torch.Tensor
            (samples,) or with a channel axis; float with full scale 1, or integers.
        sample_rate : int
            Hz.

        Returns
        -------
        WordAnnotation
        """
        waveform = from_array(samples, sample_rate, self.sample_rate, self.settings["max_duration"], name)
        return self._annotate(waveform, text, aligner, alignment, name)

    @torch.no_grad()
    def _annotate(self, waveform, text, aligner, alignment, name):
        if alignment is None:
            if not text or not text.strip():
                raise ValueError(
                    f"{name}: no text is given; the words must be known, or an alignment of them"
                )
            made = self.aligner(aligner) if isinstance(aligner, str) else aligner
            alignment = made.align(waveform.numpy(), self.sample_rate, text.strip(), name=Path(name).stem)
        elif not isinstance(alignment, Alignment):
            raise ValueError(
                f"{name}: alignment is a {type(alignment).__name__}; needed is an alignment.Alignment"
            )
        features = self.predictor.encode(waveform)
        said = self.predictor.predict(features, [(word.start, word.end) for word in alignment.words])
        words = tuple(
            AnnotatedWord(
                word.label,
                word.start,
                word.end,
                prediction.emotion,
                prediction.intensity,
                prediction.confidence,
                prediction.probabilities,
                **prediction.dimensions,
                alignment_confidence=word.confidence,
            )
            for word, prediction in zip(alignment.words, said)
        )
        warnings = []
        mean = alignment.mean_confidence
        if mean is not None and mean < LOW_CONFIDENCE:
            warnings.append(
                f"mean confidence of the alignment is {mean:.2f}: the text may not be what is said, and the labels "
                "belong to other sound then"
            )
        return WordAnnotation(
            name,
            alignment.text,
            len(waveform) / self.sample_rate,
            words,
            self.provenance(alignment.aligner),
            tuple(warnings),
        )

    def forward(self, path, text):
        """Same as :meth:`annotate_file` with the default aligner."""
        return self.annotate_file(path, text)
