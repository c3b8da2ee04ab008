"""Trains a speech-token language model with E-FiLM ("Emo-FiLM", arXiv 2509.20378) on CosyVoice 2's layout.

Loss = cross-entropy of speech tokens + lambda * cross-entropy of the words' emotion, each over its own number in the
whole step. What trains stands in the phases. Axis letters as in ``lobes/speech_token_lm.py``.
"""

import collections
import json
import logging
import math
import pathlib
import time

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from torch.nn.parallel import DistributedDataParallel

from speechbrain_emo.brains.checkpointing import JsonState, RandomState, save_module
from speechbrain_emo.brains.distributed import world
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.lobes.speech_token_lm import UNUSED

logger = logging.getLogger(__name__)


def save_objective(objective, path):
    """A checkpoint's weights: all but the body's unused text output and the frozen classifier."""

    class Weights:
        @staticmethod
        def state_dict():
            return _own_weights(objective)

    save_module(Weights, path)


def load_objective(objective, path, end_of_epoch=True):
    """Load what :func:`save_objective` wrote; missing and unexpected names are an error."""
    from safetensors.torch import load_file

    del end_of_epoch
    state, own = load_file(str(path)), _own_weights(objective)
    if set(state) != set(own):
        raise ValueError(f"{path}: the weights differ from the model in {sorted(set(state) ^ set(own))[:5]}")
    objective.load_state_dict(state, strict=False)


def _own_weights(objective):
    return {
        name: value
        for name, value in objective.state_dict().items()
        if name != f"lm.{UNUSED}" and not name.startswith("classifier.")
    }


class SpeechTokenBrain(sb.Brain):
    """One optimiser step is a list of micro-batches; losses are sums divided by the counts of the step.

    Arguments
    ---------
    modules : dict
        ``{"model": TokenObjective}``.
    schedule : PhaseSchedule
        What trains when. A phase starts from the best validation checkpoint of the one before.
    train_steps, valid_steps : TokenSteps
        What is trained and validated on.
    train_log : str or pathlib.Path, optional
        JSON-lines file that gets a line an epoch.
    opt_class, hparams, run_opts, checkpointer :
        As in ``sb.Brain``. hparams: ``seed``, ``emotion_weight``, and ``lr_scales``: name of a trainable group ->
        factor of its learning rate, 1 where it is not named.

    Example
    -------
    >>> SpeechTokenBrain.__mro__[1].__name__
    'Brain'
    """

    def __init__(
        self,
        modules,
        schedule,
        train_steps,
        valid_steps,
        train_log=None,
        opt_class=torch.optim.AdamW,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.model, self.schedule = self.modules["model"], schedule
        self.train_steps, self.valid_steps = train_steps, valid_steps
        self.train_log = None if train_log is None else pathlib.Path(train_log)
        self.epoch_counter = sb.utils.epoch_loop.EpochCounter(schedule.num_epochs)
        self.progress = JsonState(phase_step=0, seconds=0.0, history=[])
        self.position, self.optimizer = None, None
        self.lr_scales = dict(getattr(self.hparams, "lr_scales", None) or {})
        self.sums = collections.Counter()
        if checkpointer is not None:
            checkpointer.add_recoverable("model", self.model, load_objective, save_objective)
            checkpointer.add_recoverable("epoch_counter", self.epoch_counter)
            checkpointer.add_recoverable("progress", self.progress)
            checkpointer.add_recoverable("random_state", RandomState())

    # -- phases --------------------------------------------------------------------------------------------

    def train_all(self, progressbar=None):
        """Train every epoch that is not done yet, from the last checkpoint on."""
        loaders = [
            torch.utils.data.DataLoader(steps, batch_size=None)
            for steps in (self.train_steps, self.valid_steps)
        ]
        self.fit(self.epoch_counter, *loaders, progressbar=progressbar)

    def on_fit_start(self):
        """Recover the last checkpoint, in the phase that wrote it."""
        if self.checkpointer is None:
            return
        self.checkpointer.remove_partial()
        checkpoint = self.checkpointer.find_checkpoint()
        if checkpoint is not None:
            self._enter(self.schedule.at(self.schedule.first_epoch(checkpoint.meta["phase"])))
            self.checkpointer.load_checkpoint(checkpoint)

    def _enter(self, position, keep_optimizer=False):
        self.modules["model"] = self.model
        self.model.set_trainable(position.phase.groups)
        self._wrap_distributed()
        self.position = position
        if not keep_optimizer:
            self.init_optimizers()

    def init_optimizers(self):
        """One optimiser: matrices with weight decay, biases and norms without, each at its group's learning rate.

        Raises
        ------
        ValueError
            If ``lr_scales`` names a group that the model does not have.
        """
        phase = (self.position or self.schedule.at(1)).phase
        scales, known = {}, self.model.groups()
        # A model without modulation has no group of it, and its ablation keeps the setting.
        unknown = sorted(set(self.lr_scales) - set(known) - {"film"})
        if unknown:
            raise ValueError(f"lr_scales names the groups {unknown}; this model has {sorted(known)}")
        for name, scale in self.lr_scales.items():
            for module in known.get(name, ()):
                scales.update({id(parameter): float(scale) for parameter in module.parameters()})
        groups = {}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                decay = phase.weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((decay, scales.get(id(parameter), 1.0)), []).append(parameter)
        settings = [
            {"params": parameters, "weight_decay": decay, "scale": scale, "lr": phase.lr * scale}
            for (decay, scale), parameters in groups.items()
        ]
        self.optimizer = self.opt_class(settings, lr=phase.lr)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def load_best(self, key=None):
        """Load the weights with the lowest validation loss of a phase; default: the last.

        Raises
        ------
        ValueError
            If there is no checkpoint of it.
        """
        if self.checkpointer is None:
            return
        key = key or self.schedule.keys[-1]
        best = self.checkpointer.best(key)
        if not best:
            raise ValueError(f"no checkpoint of phase {key!r} in {self.checkpointer.checkpoints_dir}")
        self.checkpointer.load_only(best[0], ["model"])

    # -- a step --------------------------------------------------------------------------------------------

    def fit_batch(self, batch):
        """One optimiser step.

        Arguments
        ---------
        batch : list of TokenBatch
            This rank's share of the step.

        Returns
        -------
        torch.Tensor
            The step's loss on this rank's share times the number of ranks, detached.
        """
        phase, step = self.position.phase, self.progress["phase_step"]
        learning_rate = phase.lr_at(step, len(self.train_steps) * phase.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        counts = torch.tensor(self._counts(batch), dtype=torch.float64, device=self.device)
        _, world_size = world()
        if world_size > 1:
            torch.distributed.all_reduce(counts)
        num_tokens, num_emotions = counts.clamp(min=1).tolist()
        total = 0.0
        for number, micro in enumerate(batch):
            with self.no_sync(number < len(batch) - 1):
                with self.training_ctx:
                    found = self.modules["model"](micro.to(self.device))
                    loss = found.token_sum / num_tokens
                    loss = loss + self.hparams.emotion_weight * found.emotion_sum / num_emotions
                    # Weights that a micro-batch has no use for get a zero gradient, on every process alike.
                    for parameter in self.model.parameters():
                        if parameter.requires_grad:
                            loss = loss + 0.0 * parameter.flatten()[0]
                self.check_loss_isfinite(loss)
                # DistributedDataParallel averages over ranks; the loss is a sum over them.
                self.scaler.scale(loss * world_size).backward()
            total += loss.detach() * world_size
            self._add(found)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.sums["gradient"] += float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        self.sums["steps"] += 1
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self.progress["phase_step"] = step + 1
        return total.cpu()

    def _counts(self, batch):
        """(tokens, decisions on emotion) of this rank's share, before the model has run."""
        tokens = emotions = 0
        for micro in batch:
            fills = (micro.text_lengths[micro.interleave] // 5).sum()
            tokens += int((micro.speech_lengths + 1).sum() + fills)
            emotions += count_decisions(self.model, micro)
        return [tokens, emotions]

    def _add(self, found):
        self.sums["token_sum"] += float(found.token_sum.detach())
        self.sums["tokens"] += found.num_tokens
        self.sums["correct"] += found.num_correct
        self.sums["emotion_sum"] += float(found.emotion_sum.detach())
        self.sums["emotions"] += found.num_emotions
        self.sums["correct_emotions"] += found.num_correct_emotions

    @torch.no_grad()
    def evaluate_batch(self, batch, stage):
        """Sums of a validation step; returns the mean token loss so far."""
        for micro in batch:
            with self.evaluation_ctx:
                self._add(self.model(micro.to(self.device)))
        return torch.tensor(self.sums["token_sum"] / max(self.sums["tokens"], 1))

    # -- epochs --------------------------------------------------------------------------------------------

    def on_stage_start(self, stage, epoch=None):
        """Enter the epoch's phase; what is random in the epoch follows from the seed and its number."""
        self.sums, self.started = collections.Counter(), time.time()
        if stage != sb.Stage.TRAIN:
            return
        position = self.schedule.at(epoch)
        if self.position is None or self.position.key != position.key:
            previous = self.position
            if previous is not None:
                self.load_best(previous.key)
            self._enter(position, keep_optimizer=position.phase.keep_optimizer and previous is not None)
            self.progress["phase_step"] = 0
            logger.info(f"Phase {position.key}: {', '.join(self.model.trainable_names)} train")
        self.position = position
        self.train_steps.set_epoch(epoch)
        torch.manual_seed((self.hparams.seed * 100003 + epoch) * 1009 + world()[0])

    def _stats(self):
        sums = self.sums
        stats = {
            "token_loss": sums["token_sum"] / max(sums["tokens"], 1),
            "token_accuracy": sums["correct"] / max(sums["tokens"], 1),
        }
        stats["loss"] = stats["token_loss"]
        if sums["emotions"]:
            stats["emotion_loss"] = sums["emotion_sum"] / sums["emotions"]
            stats["emotion_accuracy"] = sums["correct_emotions"] / sums["emotions"]
            stats["loss"] += self.hparams.emotion_weight * stats["emotion_loss"]
        return stats

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the epoch and save a checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {**self._stats(), "seconds": time.time() - self.started}
            self.train_stats["gradient"] = self.sums["gradient"] / max(self.sums["steps"], 1)
            self.progress["seconds"] += self.train_stats["seconds"]
        elif stage == sb.Stage.VALID:
            line = {
                "epoch": epoch,
                "phase": self.position.key,
                "train": self.train_stats,
                "valid": self._stats(),
            }
            self.progress["history"].append(line)
            if if_main_process():
                shown = {k: round(v, 4) for k, v in line["valid"].items()}
                logger.info(f"epoch {epoch}: train {self.train_stats['loss']:.4f}, valid {shown}")
                if self.train_log is not None:
                    # From the recoverable history, so that a resumed run has every line once.
                    text = "".join(json.dumps(entry) + "\n" for entry in self.progress["history"])
                    write_text_atomically(self.train_log, text)
            if self.checkpointer is not None:
                self.checkpointer.save_checkpoint(
                    meta={"phase": self.position.key, "loss": line["valid"]["loss"]}, verbosity=logging.DEBUG
                )
                self.checkpointer.keep_best(self.schedule.keys)

    def unwrapped(self):
        """The objective without DDP."""
        model = self.modules["model"]
        return model.module if isinstance(model, DistributedDataParallel) else model


def count_decisions(objective, batch):
    """Decisions on emotion that an objective makes about a batch: tokens or words with a label.

    Arguments
    ---------
    objective : TokenObjective
        Its supervision and granularity count.
    batch : TokenBatch
        On the CPU.

    Returns
    -------
    int
    """
    if objective.supervision == "none":
        return 0
    words = batch.text_words if objective.supervision == "text" else batch.speech_words
    labels = torch.where(words >= 0, batch.word_labels.gather(1, words.clamp(min=0)), -100)
    if objective.granularity == "step" and objective.supervision != "predicted":
        return int((labels != -100).sum())
    num_words = batch.word_labels.shape[1]
    pairs = torch.arange(len(words))[:, None] * num_words + words
    return len(torch.unique(pairs[labels != -100]))


class TokenEmotionBrain(sb.Brain):
    """Trains the classifier that names the emotion of words from their true speech tokens.

    Arguments
    ---------
    modules : dict
        ``{"classifier": TokenEmotionClassifier}``.
    steps : TokenSteps
        Training steps.
    opt_class, hparams, run_opts, checkpointer :
        As in ``sb.Brain``. hparams: ``epochs``, ``lr``, ``seed``.
    """

    def __init__(self, modules, steps, opt_class=torch.optim.AdamW, hparams=None, run_opts=None):
        super().__init__(modules, opt_class, hparams, run_opts)
        self.steps = steps

    def train_all(self, progressbar=None):
        """Train from the start; minutes at most, so nothing is kept in between."""
        counter = sb.utils.epoch_loop.EpochCounter(self.hparams.epochs)
        loader = torch.utils.data.DataLoader(self.steps, batch_size=None)
        self.fit(counter, loader, progressbar=progressbar)
        self.modules["classifier"].eval()

    def init_optimizers(self):
        """One optimiser over all."""
        self.optimizer = self.opt_class(self.modules["classifier"].parameters(), lr=self.hparams.lr)
        self.optimizers_dict = {"opt_class": self.optimizer}

    def on_stage_start(self, stage, epoch=None):
        """Draw the epoch's order."""
        if stage == sb.Stage.TRAIN:
            self.steps.set_epoch(epoch)
            torch.manual_seed((self.hparams.seed * 100003 + epoch) * 1009)

    def on_fit_batch_start(self, batch, should_step):
        """Decay along a cosine."""
        part = self.optimizer_step / max(1, len(self.steps) * self.hparams.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))

    def compute_forward(self, batch, stage):
        """Logits of the words of every micro-batch."""
        return [
            self.modules["classifier"](
                m.speech.to(self.device),
                m.speech_lengths.to(self.device),
                m.speech_words.to(self.device),
                m.word_labels.shape[1],
            )
            for m in batch
        ]

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy over all labelled words that have a token."""
        logits = torch.cat([p.flatten(0, 1) for p in predictions])
        labels = torch.cat([labels_of_words(m).flatten() for m in batch]).to(logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)


def labels_of_words(batch):
    """Labels (B, W) of the words that have a speech token; -100 for the others."""
    there = torch.zeros_like(batch.word_labels, dtype=torch.bool)
    rows, places = torch.nonzero(batch.speech_words >= 0, as_tuple=True)
    there[rows, batch.speech_words[rows, places]] = True
    return torch.where(there, batch.word_labels, -100)


__all__ = [
    "SpeechTokenBrain",
    "TokenEmotionBrain",
    "count_decisions",
    "labels_of_words",
    "load_objective",
    "save_objective",
]
