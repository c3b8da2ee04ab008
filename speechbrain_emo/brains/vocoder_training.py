"""Trains the vocoder, first on spectra, then against discriminators, and saves it as a folder."""

import logging

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_emo.brains.acoustic_data import VocoderBatches, read_records, vocoder_utterances
from speechbrain_emo.brains.checkpointing import AtomicCheckpointer, RandomState
from speechbrain_emo.brains.stages import (
    discard_other_settings,
    is_complete,
    mark_complete,
    settings_of,
    warm_cosine,
)
from speechbrain_emo.lobes.mel import MelSpectrogram
from speechbrain_emo.lobes.vocoder import HiFT, griffin_lim, load_vocoder
from speechbrain_emo.lobes.vocoder.discriminators import WaveformDiscriminator
from speechbrain_emo.lobes.vocoder.losses import VocoderLoss

logger = logging.getLogger(__name__)


class VocoderBrain(sb.Brain):
    """Generator and discriminators in turns; the discriminators begin after ``reconstruction_epochs``.

    As in CosyVoice2's recipe both are updated on every batch, the discriminators first. The reconstruction phase is
    not in it: it is what makes a short training intelligible.

    Arguments
    ---------
    modules : dict
        ``vocoder``, ``discriminator``, ``loss`` and ``mel``.
    hparams : dict
        ``seed``, ``lr``, ``discriminator_lr``, ``betas``, ``weight_decay``, ``num_steps``, ``warmup``,
        ``reconstruction_epochs``, ``max_grad_norm``.
    """

    def init_optimizers(self):
        """One optimizer for each side."""
        hparams = self.hparams

        def adam(module, lr):
            return torch.optim.AdamW(
                module.parameters(), lr=lr, betas=tuple(hparams.betas), weight_decay=hparams.weight_decay
            )

        self.optimizers_dict = {
            "generator": adam(self.modules.vocoder, hparams.lr),
            "discriminator": adam(self.modules.discriminator, hparams.discriminator_lr),
        }
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(f"{name}_optimizer", optimizer)

    def compute_forward(self, batch, stage):
        """Waveforms and F0 that the vocoder makes of the recordings' mels."""
        batch = batch.to(self.device)
        generator = torch.Generator(device=batch.wave.device).manual_seed(batch.seed)
        mel = self.modules.mel(batch.wave)
        return self.modules.vocoder(mel, generator=generator)

    def compute_objectives(self, predictions, batch, stage):
        """Terms of the generator that need no discriminator, summed for the log."""
        wave, f0 = predictions
        batch = batch.to(self.device)
        terms = self.modules.loss.reconstruction(wave, batch.wave, f0, batch.f0)
        self._count(terms)
        return self.modules.loss.total(terms)

    def _count(self, terms):
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
            self.counts[name] = self.counts.get(name, 0) + 1

    def fit_batch(self, batch):
        """One step of each side."""
        factor = warm_cosine(self.step_number, self.hparams.num_steps, self.hparams.warmup)
        for name, lr in (("generator", self.hparams.lr), ("discriminator", self.hparams.discriminator_lr)):
            for group in self.optimizers_dict[name].param_groups:
                group["lr"] = lr * factor
        batch = batch.to(self.device)
        predictions = self.compute_forward(batch, sb.Stage.TRAIN)
        wave = predictions[0]
        adversarial = self.epoch > self.hparams.reconstruction_epochs
        judge, loss = self.modules.discriminator, self.modules.loss
        if adversarial:
            judged = loss.discriminator(judge(wave.detach()), judge(batch.wave))
            self._step("discriminator", judged)
            self._count({"discriminator": judged})
        total = self.compute_objectives(predictions, batch, sb.Stage.TRAIN)
        if adversarial:
            # The discriminators only judge here: without gradients of their own.
            judge.requires_grad_(False)
            with torch.no_grad():
                real = judge(batch.wave)
            terms = loss.generator(judge(wave), real)
            self._count(terms)
            total = total + loss.total(terms)
        self._step("generator", total)
        judge.requires_grad_(True)
        self.step_number += 1
        return total.detach().cpu()

    def _step(self, name, loss):
        optimizer = self.optimizers_dict[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.hparams.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of the {name} is {norm.item()} at step {self.step_number}: lower its learning rate"
            )
        optimizer.step()

    def on_stage_start(self, stage, epoch=None):
        """Draw the epoch's crops."""
        self.sums, self.counts = {}, {}
        if stage == sb.Stage.TRAIN:
            self.epoch = epoch
            self.batches.set_epoch(epoch)
            self.step_number = (epoch - 1) * len(self.batches)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log and keep the last checkpoint."""
        stats = {name: self.sums[name] / self.counts[name] for name in self.sums}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        self.valid_stats = stats
        if if_main_process():
            shown = [{k: round(v, 4) for k, v in part.items()} for part in (self.train_stats, stats)]
            logger.info("epoch %s train %s valid %s", epoch, *shown)
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch, **stats}, num_to_keep=1)


@torch.inference_mode()
def copy_synthesis(vocoder, utterances, mel, num_utterances):
    """How near recordings come through their mels, beside Griffin-Lim without training.

    Arguments
    ---------
    vocoder : HiFT
        In eval mode.
    utterances : list of VocoderUtterance
    mel : MelSpectrogram
        What the vocoder reads.
    num_utterances : int

    Returns
    -------
    dict
        For ``vocoder`` and ``griffin_lim``: ``mel_l1`` (log-mels up to half the sample rate) and ``pesq`` (wide band
        at 16 kHz, the mean over utterances that it can judge; None where the package ``pesq`` is missing).
    """
    from torchaudio.functional import resample

    full = MelSpectrogram(mel.sample_rate, mel.n_fft, mel.hop, mel.num_mels, f_max=None)
    scores = {}
    for name in ("vocoder", "griffin_lim"):
        distances, qualities = [], []
        for number, utterance in enumerate(utterances[:num_utterances]):
            real = utterance.wave.float()[None] / 32767
            generator = torch.Generator().manual_seed(number)
            if name == "vocoder":
                made, _ = vocoder.synthesise(mel(real), generator=generator)
            else:
                made = griffin_lim(mel(real), mel, generator=generator)
            distances.append(float((full(made) - full(real)).abs().mean()))
            qualities.append(_pesq(*(resample(x[0], mel.sample_rate, 16000).numpy() for x in (real, made))))
        known = [q for q in qualities if q is not None]
        scores[name] = {
            "mel_l1": float(np.mean(distances)),
            "pesq": float(np.mean(known)) if known else None,
            "pesq_utterances": len(known),
        }
    return scores


def _pesq(reference, degraded):
    """Wide-band PESQ (ITU-T P.862.2), None where it cannot be had."""
    try:
        import pesq
    except ImportError:
        return None
    try:
        return float(pesq.pesq(16000, reference, degraded, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        # It found no speech in one of the two.
        return None


def train_vocoder(hparams, run_opts=None):
    """Data, training, export: what ``train.py`` runs for a vocoder.

    A complete vocoder of the same settings is kept; an interrupted training goes on at its last epoch.

    Arguments
    ---------
    hparams : dict
        Keys: ``seed``, ``train_manifests``, ``valid_manifests``, ``data_folder``, ``save_folder``,
        ``vocoder_folder``, ``vocoder`` (arguments of :class:`HiFT`), ``discriminator`` (of
        :class:`WaveformDiscriminator`), ``loss`` (weights of :class:`VocoderLoss`), ``mel``, ``crop_frames``,
        ``crops``, ``batch_size``, ``reconstruction_epochs``, ``number_of_epochs``, ``max_duration``,
        ``max_utterances``, ``lr``, ``discriminator_lr``, ``betas``, ``warmup``, ``weight_decay``, ``max_grad_norm``,
        ``num_evaluated``, and ``initial_vocoder`` (a folder to start from, or null).
    run_opts : dict, optional
        SpeechBrain's run options.

    Returns
    -------
    str
        The vocoder's folder.
    """
    folder = str(hparams["vocoder_folder"])
    manifests = {"train": hparams["train_manifests"], "valid": hparams["valid_manifests"]}
    settings = settings_of(
        hparams,
        "seed vocoder discriminator loss mel crop_frames crops batch_size reconstruction_epochs number_of_epochs "
        "max_duration max_utterances lr discriminator_lr betas warmup weight_decay max_grad_norm initial_vocoder",
        manifests,
    )
    if is_complete(folder, settings):
        logger.info("vocoder: complete in %s, kept", folder)
        return folder
    run_on_main(discard_other_settings, args=[hparams["save_folder"], settings])
    brain, valid = _build(hparams, run_opts, manifests)
    brain.checkpointer.remove_partial()
    brain.checkpointer.recover_if_possible()
    brain.fit(
        brain.hparams.epoch_counter,
        torch.utils.data.DataLoader(brain.batches, batch_size=None),
        torch.utils.data.DataLoader(valid, batch_size=None),
        progressbar=True,
    )

    def save():
        vocoder = getattr(brain.modules.vocoder, "module", brain.modules.vocoder).eval().cpu()
        vocoder.save(folder)
        report = {"valid": getattr(brain, "valid_stats", {})}
        if hparams["num_evaluated"]:
            report["copy_synthesis"] = copy_synthesis(
                vocoder, valid.utterances, brain.modules.mel.cpu(), hparams["num_evaluated"]
            )
            logger.info("vocoder: %s", report["copy_synthesis"])
        mark_complete(folder, settings, report)

    run_on_main(save)
    return folder


def _build(hparams, run_opts, manifests):
    seed = int(hparams["seed"])
    mel = MelSpectrogram(**(hparams["mel"] or {}))
    sets = {
        split: vocoder_utterances(
            read_records(files, hparams["data_folder"], hparams["max_duration"], hparams["max_utterances"]),
            mel,
            split,
        )
        for split, files in manifests.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hparams["initial_vocoder"]:
            vocoder = load_vocoder(hparams["initial_vocoder"])
        else:
            vocoder = HiFT(**{"sample_rate": mel.sample_rate, "num_mels": mel.num_mels, **hparams["vocoder"]})
        discriminator = WaveformDiscriminator(**(hparams["discriminator"] or {}))
    if vocoder.frame_samples != mel.hop:
        raise ValueError(
            f"a mel frame has {mel.hop} samples, the vocoder makes {vocoder.frame_samples}: its hop times the "
            "upsample_rates must be the mel's hop"
        )
    loss = VocoderLoss(
        **(hparams["loss"] or {}),
        sample_rate=mel.sample_rate,
        n_fft=mel.n_fft,
        hop=mel.hop,
        num_mels=mel.num_mels,
    )
    shape = (hparams["batch_size"], hparams["crop_frames"], mel.hop, seed)
    batches = VocoderBatches(sets["train"], *shape, crops=hparams["crops"])
    valid = VocoderBatches(sets["valid"], *shape, training=False)
    counter = sb.utils.epoch_loop.EpochCounter(hparams["number_of_epochs"])
    checkpointer = AtomicCheckpointer(
        hparams["save_folder"],
        recoverables={
            "vocoder": vocoder,
            "discriminator": discriminator,
            "counter": counter,
            "random_state": RandomState(),
        },
    )
    brain = VocoderBrain(
        modules={"vocoder": vocoder, "discriminator": discriminator, "loss": loss, "mel": mel},
        hparams={
            "seed": seed,
            "lr": hparams["lr"],
            "discriminator_lr": hparams["discriminator_lr"],
            "betas": hparams["betas"],
            "weight_decay": hparams["weight_decay"],
            "num_steps": len(batches) * hparams["number_of_epochs"],
            "warmup": hparams["warmup"],
            "reconstruction_epochs": hparams["reconstruction_epochs"],
            "max_grad_norm": hparams["max_grad_norm"],
            "epoch_counter": counter,
        },
        run_opts=dict(run_opts or {}),
        checkpointer=checkpointer,
    )
    brain.batches = batches
    return brain, valid
