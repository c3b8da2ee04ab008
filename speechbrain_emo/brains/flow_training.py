"""Trains the flow from speech tokens to mels and saves it as a folder."""

import logging
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_emo.brains.acoustic_data import FlowBatches, flow_utterances, read_records
from speechbrain_emo.brains.checkpointing import AtomicCheckpointer, RandomState
from speechbrain_emo.brains.stages import (
    discard_other_settings,
    is_complete,
    mark_complete,
    settings_of,
    warm_cosine,
)
from speechbrain_emo.brains.word_emotion_data import WordTargets
from speechbrain_emo.lobes.flow import TokenToMel
from speechbrain_emo.lobes.flow.matching import PUBLISHED_GUIDANCE
from speechbrain_emo.lobes.mel import MelSpectrogram
from speechbrain_emo.lobes.speaker_encoder import load_speaker_encoder
from speechbrain_emo.lobes.speech_tokenizer import load_speech_tokenizer

logger = logging.getLogger(__name__)


class FlowObjective(torch.nn.Module):
    """The flow with one ``forward`` that gives its loss: what DDP wraps.

    Arguments
    ---------
    flow : TokenToMel
    prior_weight : float
        Of :meth:`TokenToMel.loss`, in training alone.
    """

    def __init__(self, flow, prior_weight=0.0):
        super().__init__()
        self.flow, self.prior_weight = flow, float(prior_weight)

    def forward(self, batch):
        """FlowBatch to the sum and the number of squared errors."""
        emotions = None if self.flow.emotion is None else batch.emotions
        return self.flow.loss(
            batch.tokens,
            batch.num_tokens,
            batch.mel,
            batch.num_frames,
            batch.speaker,
            batch.draws,
            streaming=batch.streaming,
            emotions=emotions,
            intensities=batch.intensities,
            prior_weight=self.prior_weight if self.training else 0.0,
        )


class FlowBrain(sb.Brain):
    """Flow matching on padded batches (Lipman et al. 2023, eq. 23), with prompts and guidance drawn by utterance.

    Arguments
    ---------
    modules : dict
        ``objective``: :class:`FlowObjective`.
    hparams : dict
        ``seed``, ``lr``, ``num_steps``, ``warmup``.
    """

    def compute_forward(self, batch, stage):
        """Sum and count of the squared errors."""
        return self.modules.objective(batch.to(self.device))

    def compute_objectives(self, predictions, batch, stage):
        """Mean squared error of the velocity, and in training that of the encoder's frames with its weight."""
        error, count = predictions
        self.error += float(error.detach())
        self.count += float(count)
        return error / count

    def on_fit_batch_start(self, batch, should_step):
        """Move the learning rate."""
        hparams = self.hparams
        factor = warm_cosine(self.optimizer_step, hparams.num_steps, hparams.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = hparams.lr * factor

    def on_stage_start(self, stage, epoch=None):
        """Draw the epoch's batches."""
        self.error = self.count = 0.0
        if stage == sb.Stage.TRAIN:
            self.batches.set_epoch(epoch)
            # Dropout: the only other use of the generator.
            torch.manual_seed(self.hparams.seed * 1000 + epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log and keep the last checkpoint."""
        loss = self.error / self.count
        if stage == sb.Stage.TRAIN:
            self.train_loss = loss
            return
        self.valid_loss = loss
        if if_main_process():
            logger.info("epoch %s train %.4f valid %.4f", epoch, self.train_loss, loss)
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch, "loss": loss}, num_to_keep=1)


@torch.inference_mode()
def mel_distance(flow, utterances, num_utterances, **options):
    """How far generated mels are from recorded ones, on true tokens.

    The prompt is another recording of the same speaker, whose frames are at most as many as those to be made.

    Arguments
    ---------
    flow : TokenToMel
        In eval mode.
    utterances : list of FlowUtterance
    num_utterances : int
        The first so many that have a prompt.
    **options
        Of :meth:`TokenToMel.generate`.

    Returns
    -------
    dict
        ``mel_l1``: mean absolute difference of log-mels; ``mean_mel_l1``: that of the mean frame of the recording,
        which a model must beat; ``utterances``.
    """
    voices, own, mean = {}, [], []
    for utterance in utterances:
        voices.setdefault(utterance.voice, []).append(utterance)
    for utterance in utterances:
        others = [u for u in voices[utterance.voice] if u.key != utterance.key]
        if not others or len(own) == num_utterances:
            continue
        prompt = min(others, key=lambda u: abs(len(u.tokens) - 50))
        known = {} if flow.emotion is None else {"emotions": utterance.emotions[None]}
        if known:
            known["intensities"] = utterance.intensities[None]
        made = (
            flow.generate(
                utterance.tokens[None],
                prompt.tokens[None],
                prompt.mel[None],
                prompt.speaker[None],
                **known,
                **options,
            )
            .mel[0]
            .T
        )
        true = utterance.mel[: len(made)]
        own.append(float((made[: len(true)] - true).abs().mean()))
        mean.append(float((true - true.mean(0)).abs().mean()))
    if not own:
        raise ValueError(
            "no speaker of the validation has two recordings: there is no voice prompt to test with"
        )
    return {"mel_l1": float(np.mean(own)), "mean_mel_l1": float(np.mean(mean)), "utterances": len(own)}


def train_flow(hparams, run_opts=None):
    """Data, training, export: what ``train.py`` runs for a flow.

    A complete flow of the same settings is kept; an interrupted training goes on at its last epoch.

    Arguments
    ---------
    hparams : dict
        Keys: ``seed``, ``train_manifests``, ``valid_manifests``, ``data_folder``, ``save_folder``, ``flow_folder``,
        ``speech_tokenizer_folder``, ``speaker_encoder_folder``, ``token_folder``, ``flow`` (arguments of
        :class:`TokenToMel` without ``vocab_size``, ``speaker_size``, ``num_mels`` and ``num_emotions``),
        ``emotion_conditioning``, ``labels``, ``label_map``, ``intensities``, ``mel``, ``speaker_from``, ``streaming``,
        ``emotion_dropout``, ``draws``, ``number_of_epochs``, ``batch_seconds``, ``max_duration``, ``max_utterances``,
        ``lr``, ``warmup``, ``weight_decay``, ``max_grad_norm``, ``num_evaluated``, ``prior_weight`` (of
        :meth:`TokenToMel.loss`), ``initial_flow`` (a folder to start from, or null) and ``start_from_levels`` (where
        there is none: whether tokens that share levels of the quantiser start alike).
    run_opts : dict, optional
        SpeechBrain's run options.

    Returns
    -------
    str
        The flow's folder.

    Raises
    ------
    ValueError
        If guidance is asked for and nothing trains its unconditional half.
    """
    guidance = (hparams["flow"].get("matching") or {}).get("guidance", PUBLISHED_GUIDANCE)
    if guidance and (hparams["draws"] or {}).get("drop") == 0:
        raise ValueError(
            f"flow.matching.guidance is {guidance} and draws.drop is 0: no row trains the half without conditions that "
            "guidance needs; set guidance to 0, or drop above it (published: 0.7 and 0.2)"
        )
    folder = str(hparams["flow_folder"])
    manifests = {"train": hparams["train_manifests"], "valid": hparams["valid_manifests"]}
    tokenizer = load_speech_tokenizer(hparams["speech_tokenizer_folder"])
    encoder = load_speaker_encoder(hparams["speaker_encoder_folder"])
    settings = settings_of(
        hparams,
        "seed flow emotion_conditioning labels label_map intensities mel speaker_from streaming emotion_dropout draws "
        "number_of_epochs batch_seconds max_duration max_utterances lr warmup weight_decay max_grad_norm initial_flow "
        "prior_weight start_from_levels",
        manifests,
    )
    settings["front_end"] = [tokenizer.fingerprint, encoder.fingerprint]
    if is_complete(folder, settings):
        logger.info("flow: complete in %s, kept", folder)
        return folder
    run_on_main(discard_other_settings, args=[hparams["save_folder"], settings])
    brain, valid = _build(hparams, run_opts, manifests, tokenizer, encoder)
    brain.checkpointer.remove_partial()
    brain.checkpointer.recover_if_possible()
    brain.fit(
        brain.hparams.epoch_counter,
        torch.utils.data.DataLoader(brain.batches, batch_size=None),
        torch.utils.data.DataLoader(valid, batch_size=None),
        progressbar=True,
    )

    def save():
        flow = getattr(brain.modules.objective, "module", brain.modules.objective).flow.eval()
        flow.save(folder)
        report = {"valid_loss": getattr(brain, "valid_loss", None)}
        if hparams["num_evaluated"]:
            report["valid"] = mel_distance(flow.cpu(), valid.utterances, hparams["num_evaluated"])
            logger.info("flow: %s", report["valid"])
        mark_complete(folder, settings, report)

    run_on_main(save)
    return folder


def _build(hparams, run_opts, manifests, tokenizer, encoder):
    mel = MelSpectrogram(**(hparams["mel"] or {}))
    emotional = bool(hparams["emotion_conditioning"])
    targets = WordTargets(hparams["labels"], hparams["label_map"], "word") if emotional else None
    sets = {}
    for split, files in manifests.items():
        records = read_records(
            files, hparams["data_folder"], hparams["max_duration"], hparams["max_utterances"]
        )
        sets[split] = flow_utterances(
            records,
            tokenizer,
            encoder,
            mel,
            Path(hparams["token_folder"]),
            targets,
            hparams["labels"],
            hparams["intensities"],
            name=split,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hparams["seed"]))
        flow = TokenToMel(
            vocab_size=tokenizer.vocab_size,
            speaker_size=encoder.size,
            num_mels=mel.num_mels,
            num_emotions=len(hparams["labels"]) if emotional else 0,
            **hparams["flow"],
        )
    if hparams["initial_flow"]:
        from speechbrain_emo.lobes.flow import load_flow

        # An emotion table is new where the flow to start from has none.
        flow.load_state_dict(load_flow(hparams["initial_flow"]).state_dict(), strict=not emotional)
    elif hparams["start_from_levels"]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(hparams["seed"]))
            flow.start_from_levels(tokenizer.levels)
    batches = FlowBatches(
        sets["train"],
        hparams["batch_seconds"],
        hparams["seed"],
        mel.sample_rate / mel.hop,
        True,
        hparams["speaker_from"],
        hparams["streaming"],
        hparams["emotion_dropout"],
        hparams["draws"],
    )
    valid = FlowBatches(
        sets["valid"],
        hparams["batch_seconds"],
        hparams["seed"],
        mel.sample_rate / mel.hop,
        False,
        hparams["speaker_from"],
        draws={"drop": 0.0},
    )
    steps = 0
    for epoch in range(1, hparams["number_of_epochs"] + 1):
        batches.set_epoch(epoch)
        steps += len(batches)
    counter = sb.utils.epoch_loop.EpochCounter(hparams["number_of_epochs"])
    objective = FlowObjective(flow, hparams["prior_weight"])
    checkpointer = AtomicCheckpointer(
        hparams["save_folder"],
        recoverables={"objective": objective, "counter": counter, "random_state": RandomState()},
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

    brain = FlowBrain(
        modules={"objective": objective},
        opt_class=optimizer,
        hparams={
            "seed": int(hparams["seed"]),
            "lr": hparams["lr"],
            "num_steps": steps,
            "warmup": hparams["warmup"],
            "epoch_counter": counter,
        },
        run_opts={**dict(run_opts or {}), "max_grad_norm": hparams["max_grad_norm"]},
        checkpointer=checkpointer,
    )
    brain.batches = batches
    return brain, valid
