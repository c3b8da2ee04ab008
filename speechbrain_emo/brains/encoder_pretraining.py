"""Pretrain a tiny HuBERT or Whisper encoder from manifests and save it as a folder that ``transformers`` loads."""

import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch.nn import functional as F
from tqdm import tqdm

from speechbrain_emo.brains.stages import (
    discard_other_settings,
    is_complete,
    mark_complete,
    settings_of,
    warm_cosine,
)
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.feature_cache import audio_segments
from speechbrain_emo.lobes.hubert_pretraining import (
    IGNORE,
    SAMPLE_RATE,
    AcousticUnits,
    EncoderPretrainer,
    FrameTargets,
    build_tiny_hubert,
    build_tiny_whisper,
    calibrate_filterbank,
    num_frames,
    phone_frames,
    save_encoder,
    span_mask,
)

logger = logging.getLogger(__name__)

COMPLETE = "pretraining.json"
OBJECTIVES = ("units", "phones", "acoustics", "durations", "emotion")
FINE_TUNING = {
    "freeze_convolutions": False,
    "mix_layers": False,
    "frame_emotions": 0.0,
    "dropout": 0.1,
    "weight_average": 0.0,
}


@dataclass
class Utterance:
    """One audio in memory.

    ``samples`` float32 tensor (samples,) at 16 kHz; ``phones`` list of {phone, start, end} in seconds, empty
    where there are none; ``emotion`` class, -100 where there is none.
    """

    key: str
    samples: torch.Tensor
    phones: list
    emotion: int


@dataclass
class PretrainingBatch:
    """Audios with their frame labels.

    ``waveforms`` float32 (B, samples), zero at padding; ``num_samples`` int64 (B,); ``phones`` int64 (B, T)
    and ``durations`` float (B, T) of :func:`phone_frames`; ``emotions`` int64 (B,); ``mask`` bool (B, T).
    """

    waveforms: torch.Tensor
    num_samples: torch.Tensor
    phones: torch.Tensor
    durations: torch.Tensor
    emotions: torch.Tensor
    mask: torch.Tensor

    def to(self, device, **options):
        """The batch on a device."""
        return PretrainingBatch(
            *(getattr(self, name).to(device, **options) for name in self.__dataclass_fields__)
        )


def load_utterances(manifest_file, data_folder, emotions=(), max_duration=15.0, description="audio"):
    """Read the audio of a manifest into memory.

    Arguments
    ---------
    manifest_file : str
        Records may have ``phones``; :class:`Utterance` says their form.
    data_folder : str
        What ``{data_root}`` stands for.
    emotions : sequence of str
        Labels, in the order of their classes.
    max_duration : float
        Seconds; what is beyond is left out.
    description : str
        Of the progress bar.

    Returns
    -------
    list of Utterance
    """
    records = json.loads(Path(manifest_file).read_text(encoding="utf-8"))
    classes = {name: i for i, name in enumerate(emotions)}
    utterances = []
    for key, record in tqdm(records.items(), desc=description, unit="utt", mininterval=1.0):
        # Of a dialogue the last turn: its phonemes are those of the record.
        audio = audio_segments(record)[-1]
        samples = load_audio(
            audio["wav"].replace("{data_root}", str(data_folder)),
            SAMPLE_RATE,
            start=audio.get("start"),
            stop=audio.get("stop"),
            max_duration=max_duration,
        )
        utterances.append(
            Utterance(
                key,
                torch.as_tensor(np.asarray(samples), dtype=torch.float32),
                record.get("phones") or [],
                classes.get(record.get("emotion"), IGNORE),
            )
        )
    if not utterances:
        raise ValueError(f"{manifest_file} holds no record: there is nothing to train on")
    return utterances


def change_speed(samples, factor):
    """Play faster or slower: duration divided by the factor, all frequencies multiplied by it.

    Arguments
    ---------
    samples : torch.Tensor
        float32, shape (samples,).
    factor : float
        Above 1 is faster.

    Returns
    -------
    torch.Tensor
        float32, shape (round(samples / factor),).

    Example
    -------
    >>> change_speed(torch.zeros(1000), 1.25).shape
    torch.Size([800])
    """
    if factor == 1.0:
        return samples
    length = max(1, round(samples.shape[0] / factor))
    # Lengths with small factors keep the Fourier transforms fast; the rest is cut off afterwards.
    block = 1600
    padded = F.pad(samples, (0, -samples.shape[0] % block + block))
    target = 32 * round(padded.shape[0] / factor / 32)
    spectrum = torch.fft.rfft(padded)
    bins = target // 2 + 1
    spectrum = (
        spectrum[:bins] if bins <= spectrum.shape[0] else F.pad(spectrum, (0, bins - spectrum.shape[0]))
    )
    return (torch.fft.irfft(spectrum, n=target) * (target / padded.shape[0]))[:length]


class PretrainingBatches(torch.utils.data.IterableDataset):
    """Batches of similar lengths, bounded by seconds of padded audio; augmented in training.

    All random choices follow from (seed, epoch, batch): a resumed epoch is the same epoch.

    Arguments
    ---------
    utterances : list of Utterance
    config : transformers.HubertConfig
    phone_classes : dict
        Phone -> class.
    batch_seconds : float
        Upper bound of a batch, padding included.
    seed : int
    mask_probability : float
        Of :func:`span_mask`; 0 in validation.
    mask_span : int
        Frames.
    max_duration : float
        Seconds; longer audios are cropped at random.
    augment : dict, optional
        ``speed``: largest relative change, ``gain_db``: deviation of a gain in dB, ``noise_db``: loudest
        white noise under the speech, in dB. None in validation.
    """

    def __init__(
        self,
        utterances,
        config,
        phone_classes,
        batch_seconds,
        seed,
        mask_probability=0.0,
        mask_span=10,
        max_duration=8.0,
        augment=None,
    ):
        super().__init__()
        allowed = {"speed", "gain_db", "noise_db"}
        if augment and set(augment) - allowed:
            raise ValueError(f"augment has {sorted(set(augment) - allowed)}; allowed are {sorted(allowed)}")
        self.utterances, self.config, self.phone_classes = utterances, config, phone_classes
        self.batch_samples = int(batch_seconds * SAMPLE_RATE)
        self.seed, self.mask_probability, self.mask_span = seed, mask_probability, mask_span
        self.max_samples = int(max_duration * SAMPLE_RATE)
        self.augment = {name: float(value) for name, value in (augment or {}).items()}
        self.training = mask_probability > 0 or bool(self.augment)
        self.epoch = 0
        self.batches = self._plan()

    def _plan(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        lengths = np.array([min(len(u.samples), self.max_samples) for u in self.utterances], dtype=float)
        # Noise on the lengths mixes the batches' members from epoch to epoch at little padding.
        order = np.argsort(lengths * (1 + 0.1 * rng.random(len(lengths)) * self.training), kind="stable")
        batches, current, longest = [], [], 0
        for index in order:
            longest_now = max(longest, int(lengths[index]))
            if current and longest_now * (len(current) + 1) > self.batch_samples:
                batches.append(current)
                current, longest_now = [], int(lengths[index])
            current.append(int(index))
            longest = longest_now
        batches.append(current)
        if self.training:
            rng.shuffle(batches)
        return batches

    def set_epoch(self, epoch):
        """Draw the batches of an epoch."""
        self.epoch = int(epoch)
        self.batches = self._plan()

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for number, indices in enumerate(self.batches):
            yield self._batch(indices, np.random.default_rng([self.seed, self.epoch, number]))

    def _augmented(self, utterance, rng):
        samples, speed = utterance.samples, 1.0
        phones = utterance.phones
        if len(samples) > self.max_samples:
            begin = int(rng.integers(len(samples) - self.max_samples + 1)) if self.training else 0
            samples = samples[begin : begin + self.max_samples]
            offset = begin / SAMPLE_RATE
            phones = [{**p, "start": p["start"] - offset, "end": p["end"] - offset} for p in phones]
        if self.augment.get("speed"):
            speed = 1.0 + self.augment["speed"] * (2 * rng.random() - 1)
            samples = change_speed(samples, speed)
        if self.augment.get("gain_db"):
            samples = samples * float(10 ** (self.augment["gain_db"] * rng.normal() / 20))
        if "noise_db" in self.augment:
            level = samples.square().mean().sqrt() * 10 ** (
                (self.augment["noise_db"] - 40 * rng.random()) / 20
            )
            noise = torch.from_numpy(rng.standard_normal(len(samples), dtype=np.float32))
            samples = samples + level * noise
        return samples, phones, speed

    def _batch(self, indices, rng):
        made = [self._augmented(self.utterances[i], rng) for i in indices]
        num_samples = torch.tensor([len(samples) for samples, _, _ in made])
        waveforms = torch.zeros(len(made), int(num_samples.max()))
        frames = num_frames(self.config, num_samples)
        size = (len(made), int(frames.max()))
        phones = torch.full(size, IGNORE)
        durations = torch.full(size, float("nan"))
        for row, (samples, intervals, speed) in enumerate(made):
            waveforms[row, : len(samples)] = samples
            if intervals:
                count = int(frames[row])
                phones[row, :count], durations[row, :count] = phone_frames(
                    intervals, self.phone_classes, count, self.config, speed
                )
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        mask = (
            span_mask(frames, self.mask_probability, self.mask_span, generator)
            if self.mask_probability
            else torch.zeros(size, dtype=torch.bool)
        )
        emotions = torch.tensor([self.utterances[i].emotion for i in indices])
        return PretrainingBatch(waveforms, num_samples, phones, durations, emotions, mask)


class EncoderPretrainingBrain(sb.Brain):
    """Masked prediction of acoustic units, with frame and utterance objectives beside it.

    Hsu et al. 2021, "HuBERT", eq. (1) with alpha = 1 for the units; the weights of ``hparams.weights`` mix in
    ``phones`` (cross-entropy on all frames), ``acoustics`` (mean squared error of standardised log-mels,
    level, periodicity and F0), ``durations`` (squared error of the phone's log-duration) and ``emotion``
    (cross-entropy of the utterance).

    Arguments
    ---------
    modules : dict
        ``model``: :class:`EncoderPretrainer`, ``targets``: :class:`FrameTargets`, ``units``:
        :class:`AcousticUnits`.
    statistics : dict
        ``mean`` and ``deviation`` of the regressed features, float (F,).
    hparams : dict
        ``weights``, ``lr``, ``num_steps``, ``warmup``, ``train_precision`` and ``fine_tuning``.
    average : EncoderPretrainer, optional
        Holds the moving average of the weights; validation uses it.
    """

    def __init__(self, modules, statistics, average=None, **options):
        super().__init__(modules=modules, **options)
        self.statistics = {name: value.to(self.device) for name, value in statistics.items()}
        self.autocast = torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.hparams.train_precision == "bf16"
        )
        self.average = average

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Move the average of the weights; early in training it forgets faster."""
        if self.average is None:
            return
        decay = min(
            self.hparams.fine_tuning["weight_average"], (1 + self.optimizer_step) / (10 + self.optimizer_step)
        )
        model = getattr(self.modules.model, "module", self.modules.model)
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def compute_forward(self, batch, stage):
        """Predictions of a batch, with the acoustic targets."""
        batch = batch.to(self.device)
        features = None
        if any(self.hparams.weights[name] for name in ("units", "acoustics")):
            with torch.no_grad():
                features = self.modules.targets(batch.waveforms)
        model = self.modules.model
        if self.average is not None and stage != sb.Stage.TRAIN:
            model = self.average.eval()
        with self.autocast:
            out = model(batch.waveforms, batch.num_samples, batch.mask)
        return out, features

    def compute_objectives(self, predictions, batch, stage):
        """The weighted sum of the objectives."""
        out, features = predictions
        batch = batch.to(self.device)
        weights = self.hparams.weights
        losses = {}
        if out.units is not None:
            with torch.no_grad():
                targets = self.modules.units(features.log_mel)
            # HuBERT's alpha = 1: only masked frames count. Validation, which masks nothing, reads all.
            chosen = out.mask & out.valid if bool(out.mask.any()) else out.valid
            losses["units"] = F.cross_entropy(out.units[chosen].float(), targets[chosen])
        known = out.valid & (batch.phones != IGNORE)
        if out.phones is not None and bool(known.any()):
            logits, labels = out.phones[known].float(), batch.phones[known]
            losses["phones"] = F.cross_entropy(logits, labels)
            if stage != sb.Stage.TRAIN:
                self.sums["phone_correct"] += float((logits.argmax(-1) == labels).sum())
                self.sums["phone_count"] += labels.numel()
        if out.acoustics is not None:
            losses["acoustics"] = self._regression(out, features, batch)
        timed = out.valid & ~batch.durations.isnan()
        if out.durations is not None and bool(timed.any()):
            # A factor of 1.65 in duration weighs like one deviation of a standardised feature.
            error = 2 * (out.durations.float()[timed] - batch.durations[timed])
            losses["durations"] = error.square().mean()
        if out.emotion is not None and bool((batch.emotions != IGNORE).any()):
            losses["emotion"] = F.cross_entropy(
                out.emotion.float(), batch.emotions, ignore_index=IGNORE, label_smoothing=0.1
            )
            if stage != sb.Stage.TRAIN:
                some = batch.emotions != IGNORE
                self.sums["emotion_correct"] += float((out.emotion.argmax(-1) == batch.emotions)[some].sum())
                self.sums["emotion_count"] += int(some.sum())
            if out.frame_emotions is not None:
                labels = batch.emotions[:, None].expand(out.valid.shape)[out.valid]
                losses["frame_emotions"] = F.cross_entropy(
                    out.frame_emotions.float()[out.valid], labels, ignore_index=IGNORE, label_smoothing=0.1
                )
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.sums["batches"] += 1
        weights = {**weights, "frame_emotions": self.hparams.fine_tuning["frame_emotions"]}
        return sum(weights[name] * value for name, value in losses.items())

    def _regression(self, out, features, batch):
        matrix = (features.matrix() - self.statistics["mean"]) / self.statistics["deviation"]
        size = matrix.shape[-1]
        predicted = out.acoustics.float()
        # One feature more than half of the loss is of bands: each group has the weight of one feature group.
        bands = self.modules.targets.filters.shape[1]
        error = (predicted[..., :size] - matrix).square()
        groups = [
            error[..., :bands].mean(-1)[out.valid].mean(),
            error[..., bands][out.valid].mean(),
            error[..., bands + 1 :].mean(-1)[out.valid].mean(),
        ]
        voiced = out.valid & features.voiced
        if bool(voiced.any()):
            # An octave's third weighs like one deviation of the other features.
            groups.append((3 * (predicted[..., size] - features.f0)[voiced]).square().mean())
        return torch.stack(groups).mean()

    def on_stage_start(self, stage, epoch=None):
        """Draw the epoch's batches."""
        self.sums = dict.fromkeys(
            ("batches", "phone_correct", "phone_count", "emotion_correct", "emotion_count"), 0
        )
        if stage == sb.Stage.TRAIN:
            self.batches.set_epoch(epoch)
            # Dropout: the only other use of the generator.
            torch.manual_seed(self.hparams.seed * 1000 + epoch)

    def on_fit_batch_start(self, batch, should_step):
        """Warm up linearly, then decay along a cosine to a twentieth."""
        factor = warm_cosine(self.optimizer_step, self.hparams.num_steps, self.hparams.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr * factor

    def on_stage_end(self, stage, stage_loss, epoch):
        """Log, and keep the last checkpoint."""
        sums = self.sums
        stats = {"loss": stage_loss}
        for name in (*OBJECTIVES, "frame_emotions"):
            if name in sums:
                stats[name] = sums[name] / sums["batches"]
        for name in ("phone", "emotion"):
            if sums[f"{name}_count"]:
                stats[f"{name}_accuracy"] = sums[f"{name}_correct"] / sums[f"{name}_count"]
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        self.valid_stats = {name: float(value) for name, value in stats.items()}
        if if_main_process():
            shown = {name: f"{value:.3f}" for name, value in self.valid_stats.items()}
            trained = {name: f"{float(value):.3f}" for name, value in self.train_stats.items()}
            logger.info("epoch %s train %s valid %s", epoch, trained, shown)
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch, **self.valid_stats}, num_to_keep=1)


def _phone_inventory(utterances, minimum=20):
    counts = {}
    for utterance in utterances:
        for row in utterance.phones:
            counts[row["phone"]] = counts.get(row["phone"], 0) + 1
    names = sorted(name for name, count in counts.items() if count >= minimum)
    return {name: i for i, name in enumerate(names)}


def _fit_targets(utterances, targets, num_units, seed):
    """Statistics of the regressed features and the clusters, from part of the training audio."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(utterances))[:400]
    matrices, log_mels = [], []
    with torch.no_grad():
        for index in chosen:
            features = targets(utterances[index].samples[None])
            matrices.append(features.matrix()[0])
            log_mels.append(features.log_mel[0])
    stacked = torch.cat(matrices)
    statistics = {"mean": stacked.mean(0), "deviation": stacked.std(0).clamp_min(0.1)}
    return statistics, AcousticUnits.fit(log_mels, max(num_units, 2), seed)


def pretrain_encoder(hparams, run_opts=None):
    """Data, training, export: what ``train.py`` runs for an encoder.

    A complete encoder of the same settings is kept; an interrupted training goes on at its last epoch.

    Arguments
    ---------
    hparams : dict
        Keys: ``seed``, ``manifests`` (``train``, ``valid``), ``data_folder``, ``output_folder``,
        ``save_folder``, ``encoder_folder``, ``architecture`` (``model_type``, hubert where it is left
        out or whisper, and arguments of :func:`build_tiny_hubert` or :func:`build_tiny_whisper`),
        ``prosody_layer``, ``num_units``, ``emotions``, ``weights``, ``mask_probability``, ``mask_span``,
        ``augment``, ``number_of_epochs``, ``batch_seconds``, ``max_duration``, ``lr``, ``warmup``,
        ``weight_decay``, ``max_grad_norm``, ``train_precision``, and ``initial_encoder`` (a folder to start
        from, or null). Optional: ``fine_tuning``, a mapping of some of the keys of ``FINE_TUNING``:
        ``freeze_convolutions`` (the waveform's convolutions stay as they are), ``mix_layers`` and
        ``frame_emotions`` (the weight of that objective) of :class:`EncoderPretrainer`, ``dropout`` before the
        emotion's classifier, ``weight_average`` (decay of a moving average of the weights, which is then what
        is validated and saved; 0 for none).
    run_opts : dict, optional
        SpeechBrain's run options.

    Returns
    -------
    str
        The encoder's folder.

    Raises
    ------
    ValueError
        If a weight is not known or a split is empty.
    """
    unknown = set(hparams["weights"]) - set(OBJECTIVES)
    if unknown:
        raise ValueError(f"weights has {sorted(unknown)}; allowed are {OBJECTIVES}")
    hparams = {**hparams, "weights": {name: hparams["weights"].get(name, 0.0) for name in OBJECTIVES}}
    unknown = set(hparams.get("fine_tuning") or ()) - set(FINE_TUNING)
    if unknown:
        raise ValueError(f"fine_tuning has {sorted(unknown)}; allowed are {sorted(FINE_TUNING)}")
    folder = Path(hparams["encoder_folder"])
    wanted = _settings(hparams)
    if is_complete(folder, wanted, COMPLETE):
        logger.info("encoder: complete in %s, kept", folder)
        return str(folder)
    run_on_main(discard_other_settings, args=[hparams["save_folder"], wanted])
    brain, batches, valid = _build(hparams, run_opts)
    brain.checkpointer.recover_if_possible()
    brain.fit(
        brain.hparams.epoch_counter,
        torch.utils.data.DataLoader(batches, batch_size=None),
        torch.utils.data.DataLoader(valid, batch_size=None),
        progressbar=True,
    )
    model = brain.average or brain.modules.model
    run_on_main(save_encoder, args=[getattr(model, "module", model).encoder, folder])
    report = {"valid": getattr(brain, "valid_stats", {})}
    run_on_main(mark_complete, args=[folder, wanted, report, COMPLETE])
    return str(folder)


def _settings(hparams):
    names = (
        "seed architecture prosody_layer num_units emotions weights mask_probability mask_span augment "
        "number_of_epochs batch_seconds max_duration lr warmup weight_decay max_grad_norm train_precision "
        "initial_encoder"
    )
    # Encoders that were trained before there was fine-tuning are those of no fine-tuning.
    names += " fine_tuning" if hparams.get("fine_tuning") else ""
    return settings_of(hparams, names, {split: hparams["manifests"][split] for split in ("train", "valid")})


def _encoder(hparams, utterances, seed):
    """The encoder to train: a stored one, or a new one of the architecture."""
    architecture = dict(hparams["architecture"])
    kind = architecture.pop("model_type", "hubert")
    if kind not in ("hubert", "whisper"):
        raise ValueError(f"architecture has model_type {kind!r}; allowed are hubert and whisper")
    if hparams["initial_encoder"]:
        from transformers import HubertModel
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        # Eager attention: with bfloat16 on a CPU the fused kernel of torch makes a step 1.6 times as long.
        attention = {"attn_implementation": "eager"} if hparams["train_precision"] == "bf16" else {}
        classes = {"hubert": HubertModel, "whisper": WhisperEncoder}
        return classes[kind].from_pretrained(hparams["initial_encoder"], **attention)
    if kind == "whisper":
        encoder = build_tiny_whisper(seed=seed, **architecture)
        if hparams["train_precision"] == "bf16":
            encoder.set_attn_implementation("eager")
        return encoder
    hubert = build_tiny_hubert(seed=seed, **architecture)
    levels = architecture.get("level_channels", 8)
    calibrate_filterbank(hubert, [u.samples for u in utterances[::20]], levels)
    return hubert


def _build(hparams, run_opts):
    seed, weights = int(hparams["seed"]), hparams["weights"]
    fine_tuning = {**FINE_TUNING, **(hparams.get("fine_tuning") or {})}
    emotions = list(hparams["emotions"] or ())
    sets = {
        split: load_utterances(
            hparams["manifests"][split], hparams["data_folder"], emotions, description=f"audio of {split}"
        )
        for split in ("train", "valid")
    }
    encoder = _encoder(hparams, sets["train"], seed)
    # Before any tensor of a resumed run: the inventory and the clusters follow from the data and the seed.
    phones = _phone_inventory(sets["train"]) if weights["phones"] or weights["durations"] else {}
    targets = FrameTargets(encoder.config)
    statistics, units = _fit_targets(sets["train"], targets, hparams["num_units"], seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EncoderPretrainer(
            encoder,
            num_units=hparams["num_units"] if weights["units"] else 0,
            num_phones=len(phones) if weights["phones"] else 0,
            # F0 stands behind the features.
            acoustic_size=targets.size + 1 if weights["acoustics"] else 0,
            durations=bool(phones and weights["durations"]),
            num_emotions=len(emotions) if weights["emotion"] else 0,
            prosody_layer=hparams["prosody_layer"],
            dropout=fine_tuning["dropout"],
            mix_layers=fine_tuning["mix_layers"],
            frame_emotions=fine_tuning["frame_emotions"] > 0,
        )
    if fine_tuning["freeze_convolutions"]:
        convolutions = (
            [encoder.conv1, encoder.conv2] if hasattr(encoder, "conv1") else [encoder.feature_extractor]
        )
        for module in convolutions:
            module.requires_grad_(False)
    average = None
    if fine_tuning["weight_average"]:
        average = copy.deepcopy(model).requires_grad_(False)
    common = {
        "config": encoder.config,
        "phone_classes": phones,
        "batch_seconds": hparams["batch_seconds"],
        "seed": seed,
        "max_duration": hparams["max_duration"],
    }
    batches = PretrainingBatches(
        sets["train"],
        mask_probability=hparams["mask_probability"],
        mask_span=hparams["mask_span"],
        augment=hparams["augment"],
        **common,
    )
    valid = PretrainingBatches(sets["valid"], **common)
    steps = 0
    for epoch in range(1, hparams["number_of_epochs"] + 1):
        batches.set_epoch(epoch)
        steps += len(batches)
    counter = sb.utils.epoch_loop.EpochCounter(hparams["number_of_epochs"])
    Path(hparams["save_folder"]).mkdir(parents=True, exist_ok=True)
    recoverables = {"model": model, "counter": counter}
    if average is not None:
        recoverables["average"] = average
    checkpointer = sb.utils.checkpoints.Checkpointer(hparams["save_folder"], recoverables=recoverables)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]

    def optimizer(_):
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": hparams["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=hparams["lr"],
            betas=(0.9, 0.98),
        )

    options = dict(run_opts or {})
    options["max_grad_norm"] = hparams["max_grad_norm"]
    brain = EncoderPretrainingBrain(
        modules={"model": model, "targets": targets, "units": units},
        statistics=statistics,
        average=average,
        opt_class=optimizer,
        hparams={
            "seed": seed,
            "weights": weights,
            "lr": hparams["lr"],
            "num_steps": steps,
            "warmup": hparams["warmup"],
            "train_precision": hparams["train_precision"],
            "epoch_counter": counter,
            "fine_tuning": fine_tuning,
        },
        run_opts=options,
        checkpointer=checkpointer,
    )
    brain.batches = batches
    return brain, batches, valid
