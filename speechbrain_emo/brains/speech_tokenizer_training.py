"""Trains the small speech tokenizer and the small speaker encoder from manifests, and saves them as folders.

The tokenizer learns as a recogniser with a quantiser inside (CosyVoice 2, https://arxiv.org/abs/2412.10117, section
2.2): phonemes of frames where a corpus has their times, else characters by CTC. Level, log-mels and periodicity may be
regressed beside that (``acoustic_weight``; not in the paper): tokens of a recogniser alone need not carry emotion.
The speaker encoder classifies the training voices on crops of two seconds.
"""

import logging
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch.nn import functional as F

from speechbrain_emo.brains.checkpointing import AtomicCheckpointer, RandomState
from speechbrain_emo.brains.encoder_pretraining import PretrainingBatches, load_utterances
from speechbrain_emo.brains.stages import (
    discard_other_settings,
    is_complete,
    mark_complete,
    settings_of,
    warm_cosine,
)
from speechbrain_emo.dataio.manifest import read_manifest
from speechbrain_emo.lobes.hubert_pretraining import IGNORE, FrameTargets
from speechbrain_emo.lobes.speaker_encoder import SpeakerEncoder, filter_banks
from speechbrain_emo.lobes.speech_tokenizer import SAMPLE_RATE, TOKEN_HOP, SpeechTokenizer

logger = logging.getLogger(__name__)

#: Frames of the targets: 40 ms without overlap, as tokens lie. The form is that of a HuBERT config.
FRAMES = SimpleNamespace(model_type="hubert", conv_kernel=[TOKEN_HOP], conv_stride=[TOKEN_HOP])
OBJECTIVES = ("phones", "ctc")
CROP = 2 * SAMPLE_RATE


@dataclass
class TokenizerBatch:
    """A batch of audios with all targets.

    ``audio`` is a PretrainingBatch at 25 Hz; ``transcripts`` int64 (B, L) of characters from 1, 0 on padding;
    ``speakers`` int64 (B,), -100 for unknown voices.
    """

    audio: object
    transcripts: torch.Tensor
    speakers: torch.Tensor

    def to(self, device, **options):
        """The batch on a device."""
        return TokenizerBatch(
            self.audio.to(device, **options), self.transcripts.to(device), self.speakers.to(device)
        )


class TokenizerBatches(PretrainingBatches):
    """:class:`PretrainingBatches` with transcripts and speakers.

    Arguments
    ---------
    utterances : list of Utterance
    transcripts : list of torch.Tensor
        Characters of each, int64.
    speakers : list of int
        Of each.
    **options
        Of :class:`PretrainingBatches`.
    """

    def __init__(self, utterances, transcripts, speakers, **options):
        self.transcripts, self.speakers = transcripts, speakers
        super().__init__(utterances, FRAMES, **options)
        self.training = bool(options.get("augment"))

    def _batch(self, indices, rng):
        audio = super()._batch(indices, rng)
        transcripts = torch.nn.utils.rnn.pad_sequence(
            [self.transcripts[i] for i in indices], batch_first=True
        )
        return TokenizerBatch(audio, transcripts, torch.tensor([self.speakers[i] for i in indices]))


class SpeechTokenizerBrain(sb.Brain):
    """Recognition through the quantiser, acoustics beside it, and voices.

    Arguments
    ---------
    modules : dict
        ``tokenizer``: SpeechTokenizer; ``targets``: FrameTargets; ``speaker``: SpeakerEncoder and ``voices``: linear
        layer over the training voices.
    statistics : dict
        ``mean`` and ``deviation`` of the regressed features, float (A,).
    hparams : dict
        ``objective``, ``acoustic_weight``, ``speaker_epochs``, ``lr``, ``num_steps``, ``warmup``, ``seed``.
    """

    def __init__(self, modules, statistics, **options):
        super().__init__(modules=modules, **options)
        self.statistics = {name: value.to(self.device) for name, value in statistics.items()}

    def on_fit_batch_start(self, batch, should_step):
        """Warm up linearly, then decay along a cosine to a twentieth."""
        factor = warm_cosine(self.optimizer_step, self.hparams.num_steps, self.hparams.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr * factor

    def compute_forward(self, batch, stage):
        """Output of the tokenizer, and logits of the voices (None once these are learned)."""
        batch = batch.to(self.device)
        output = self.modules.tokenizer(batch.audio.waveforms, batch.audio.num_samples)
        voices = None
        if stage == sb.Stage.TRAIN and self.epoch <= self.hparams.speaker_epochs:
            voices = self.modules.voices(self.modules.speaker(self._crops(batch.audio)))
        return output, voices

    def _crops(self, audio):
        """Filter banks (B, F, 80) of two seconds of each audio, repeated where it is shorter."""
        rng, crops = np.random.default_rng([self.hparams.seed, self.epoch, self.step]), []
        for waveform, length in zip(audio.waveforms, audio.num_samples.tolist()):
            samples = waveform[:length]
            samples = samples.repeat(-(-CROP // length)) if length < CROP else samples
            start = int(rng.integers(len(samples) - CROP + 1))
            crops.append(filter_banks(samples[start : start + CROP]))
        return torch.stack(crops)

    def compute_objectives(self, predictions, batch, stage):
        """The weighted sum of the objectives."""
        output, voices = predictions
        batch = batch.to(self.device)
        audio, losses = batch.audio, {}
        count = audio.phones.shape[1]
        if self.hparams.objective == "phones":
            logits = output.logits[:, :count]
            losses["recognition"] = F.cross_entropy(
                logits.flatten(0, 1), audio.phones.flatten(), ignore_index=IGNORE
            )
            known = audio.phones != IGNORE
            correct = (logits.argmax(-1) == audio.phones)[known].float().mean()
        else:
            lengths = (batch.transcripts > 0).sum(1)
            scores = output.logits.log_softmax(-1).transpose(0, 1)
            losses["recognition"] = F.ctc_loss(
                scores, batch.transcripts, output.lengths, lengths, zero_infinity=True
            )
            correct = torch.exp(-losses["recognition"]).detach()
        if output.acoustics is not None:
            features = self.modules.targets(audio.waveforms)
            wanted = torch.cat([features.matrix(), features.f0[..., None]], -1)
            wanted = (wanted - self.statistics["mean"]) / self.statistics["deviation"]
            frames = (
                torch.arange(count, device=wanted.device)[None] < (audio.num_samples // TOKEN_HOP)[:, None]
            )
            # F0 counts where there is one, and as much as ten bands: it is what tells emotions apart.
            weight = torch.ones(wanted.shape, device=wanted.device)
            weight[..., -1] = 10.0 * features.voiced
            weight = weight * frames[..., None]
            error = (output.acoustics[:, :count] - wanted).square() * weight
            losses["acoustics"] = error.sum() / weight.sum().clamp(min=1)
        if voices is not None:
            losses["voices"] = F.cross_entropy(voices, batch.speakers, ignore_index=IGNORE)
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(float(value.detach()))
        self.sums.setdefault("accuracy", []).append(float(correct))
        self.used.update(np.unique(output.tokens.cpu().numpy()).tolist())
        weights = {"recognition": 1.0, "acoustics": self.hparams.acoustic_weight, "voices": 1.0}
        return sum(weights[name] * value for name, value in losses.items())

    def on_stage_start(self, stage, epoch=None):
        """Draw the epoch's batches."""
        self.sums, self.used = {}, set()
        if stage == sb.Stage.TRAIN:
            self.epoch = epoch
            self.batches.set_epoch(epoch)
            torch.manual_seed((self.hparams.seed * 100003 + epoch) * 1009)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the epoch and save a checkpoint."""
        stats = {name: float(np.mean(values)) for name, values in self.sums.items()}
        stats["tokens_used"] = len(self.used)
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        self.valid_stats = stats
        if if_main_process():
            rounded = [{k: round(v, 4) for k, v in part.items()} for part in (self.train_stats, stats)]
            logger.info("epoch %s train %s valid %s", epoch, *rounded)
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch, **stats}, num_to_keep=1)


def train_speech_tokenizer(hparams, run_opts=None):
    """Data, training, export: what ``train.py`` runs for a tokenizer and a speaker encoder.

    A complete pair of the same settings is kept; an interrupted training goes on at its last epoch.

    Arguments
    ---------
    hparams : dict
        Keys: ``seed``, ``manifests`` (``train``, ``valid``), ``data_folder``, ``output_folder``, ``save_folder``,
        ``tokenizer_folder``, ``speaker_folder``, ``tokenizer`` (arguments of SpeechTokenizer without ``num_classes``
        and ``acoustic_size``), ``speaker`` (of SpeakerEncoder), ``objective``, ``acoustic_weight``,
        ``speaker_epochs``, ``augment``, ``number_of_epochs``, ``batch_seconds``, ``max_duration``, ``lr``,
        ``warmup``, ``weight_decay``, ``max_grad_norm``.
    run_opts : dict, optional
        SpeechBrain's run options.

    Returns
    -------
    tuple of str
        The folders of tokenizer and speaker encoder.

    Raises
    ------
    ValueError
        If the objective is unknown or has nothing to learn from.
    """
    if hparams["objective"] not in OBJECTIVES:
        raise ValueError(f"objective is {hparams['objective']!r}; allowed: {', '.join(OBJECTIVES)}")
    folders = tuple(str(hparams[name]) for name in ("tokenizer_folder", "speaker_folder"))
    wanted = _settings(hparams)
    if is_complete(folders[0], wanted):
        logger.info("speech tokenizer: complete in %s, kept", folders[0])
        return folders
    run_on_main(discard_other_settings, args=[hparams["save_folder"], wanted])
    brain, batches, valid, classes = _build(hparams, run_opts)
    brain.checkpointer.remove_partial()
    brain.checkpointer.recover_if_possible()
    brain.fit(
        brain.hparams.epoch_counter,
        torch.utils.data.DataLoader(batches, batch_size=None),
        torch.utils.data.DataLoader(valid, batch_size=None),
        progressbar=True,
    )

    def save():
        for name, folder in zip(("tokenizer", "speaker"), folders):
            module = brain.modules[name]
            getattr(module, "module", module).save(folder)
        # Written last: it says that all the rest is there.
        mark_complete(folders[0], wanted, {"classes": classes, "valid": getattr(brain, "valid_stats", {})})

    run_on_main(save)
    return folders


def _settings(hparams):
    names = (
        "seed tokenizer speaker objective acoustic_weight speaker_epochs augment number_of_epochs batch_seconds "
        "max_duration lr warmup weight_decay max_grad_norm"
    )
    return settings_of(hparams, names, {split: hparams["manifests"][split] for split in ("train", "valid")})


def _classes(hparams, records, utterances):
    """Class of each phoneme, or of each character from 1 (0 is CTC's blank)."""
    counts = {}
    if hparams["objective"] == "phones":
        for utterance in utterances:
            for row in utterance.phones:
                counts[row["phone"]] = counts.get(row["phone"], 0) + 1
        names = sorted(name for name, count in counts.items() if count >= 20)
        found = {name: i for i, name in enumerate(names)}
    else:
        names = sorted({letter for record in records.values() for letter in _letters(record)})
        found = {name: i for i, name in enumerate(names, 1)}
    if not found:
        raise ValueError(
            f"objective {hparams['objective']!r} finds nothing in the training manifest: phones need their times, ctc "
            "needs transcripts"
        )
    return found


def _letters(record):
    return " ".join((record.get("transcript") or "").lower().split())


def _build(hparams, run_opts):
    seed, manifests = int(hparams["seed"]), hparams["manifests"]
    records = {
        split: read_manifest(manifests[split], {"data_root": str(hparams["data_folder"])})
        for split in ("train", "valid")
    }
    utterances = {
        split: load_utterances(manifests[split], hparams["data_folder"], description=f"audio of {split}")
        for split in ("train", "valid")
    }
    classes = _classes(hparams, records["train"], utterances["train"])
    voices = {name: i for i, name in enumerate(sorted({r["speaker"] for r in records["train"].values()}))}
    targets = FrameTargets(FRAMES)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(utterances["train"]))[:300]
    with torch.no_grad():
        matrices = []
        for index in chosen:
            samples = utterances["train"][index].samples
            if len(samples) >= TOKEN_HOP:
                features = targets(samples[None])
                matrices.append(torch.cat([features.matrix(), features.f0[..., None]], -1)[0])
    stacked = torch.cat(matrices)
    statistics = {"mean": stacked.mean(0), "deviation": stacked.std(0).clamp_min(0.1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = SpeechTokenizer(
            num_classes=len(classes) + (hparams["objective"] == "ctc"),
            acoustic_size=stacked.shape[1] if hparams["acoustic_weight"] else 0,
            **hparams["tokenizer"],
        )
        speaker = SpeakerEncoder(**hparams["speaker"])
        over_voices = torch.nn.Linear(speaker.size, max(len(voices), 1))

    def batches(split, augment):
        rows = list(records[split].values())
        letters = [
            torch.tensor([classes[c] for c in _letters(r) if c in classes], dtype=torch.int64)
            if hparams["objective"] == "ctc"
            else torch.zeros(0, dtype=torch.int64)
            for r in rows
        ]
        return TokenizerBatches(
            utterances[split],
            letters,
            [voices.get(r["speaker"], IGNORE) for r in rows],
            phone_classes=classes if hparams["objective"] == "phones" else {},
            batch_seconds=hparams["batch_seconds"],
            seed=seed,
            max_duration=hparams["max_duration"],
            augment=augment,
        )

    train, valid = batches("train", hparams["augment"]), batches("valid", None)
    steps = 0
    for epoch in range(1, hparams["number_of_epochs"] + 1):
        train.set_epoch(epoch)
        steps += len(train)
    counter = sb.utils.epoch_loop.EpochCounter(hparams["number_of_epochs"])
    modules = {"tokenizer": tokenizer, "speaker": speaker, "voices": over_voices, "targets": targets}
    checkpointer = AtomicCheckpointer(
        hparams["save_folder"],
        recoverables={
            "tokenizer": tokenizer,
            "speaker": speaker,
            "voices": over_voices,
            "counter": counter,
            "random_state": RandomState(),
        },
    )

    def optimizer(parameters):
        parameters = list(parameters)
        return torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": hparams["weight_decay"]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=hparams["lr"],
            betas=(0.9, 0.98),
        )

    brain = SpeechTokenizerBrain(
        modules,
        statistics,
        opt_class=optimizer,
        hparams={
            "objective": hparams["objective"],
            "acoustic_weight": hparams["acoustic_weight"],
            "speaker_epochs": hparams["speaker_epochs"],
            "lr": hparams["lr"],
            "num_steps": steps,
            "warmup": hparams["warmup"],
            "seed": seed,
            "epoch_counter": counter,
        },
        run_opts={**dict(run_opts or {}), "max_grad_norm": hparams["max_grad_norm"]},
        checkpointer=checkpointer,
    )
    brain.batches = train
    return brain, train, valid, classes
