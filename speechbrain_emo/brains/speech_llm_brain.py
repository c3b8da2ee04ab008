"""The Brain that trains every language-model system: phases over one ``fit``, exact resume, exact DDP.

A batch is one optimiser step: a list of micro-batches whose losses are divided by the counts of the WHOLE
step over all ranks, so that accumulation, bucketing and the number of processes do not change the gradient.
"""

import collections
import json
import logging
import pathlib
import time

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from torch.nn.parallel import DistributedDataParallel

from speechbrain_emo.brains.checkpointing import JsonState, RandomState, load_module, save_module
from speechbrain_emo.brains.diagnoses import diagnose_epoch
from speechbrain_emo.brains.distributed import gather, world
from speechbrain_emo.brains.speech_data import StepSampler, step_loader
from speechbrain_emo.lobes.information_bottleneck import ActiveUnits, frame_mask
from speechbrain_emo.prompts.tasks import keyed_seed

logger = logging.getLogger(__name__)

WEIGHTS = ("front_end", "llm")


def _all_sum(values, device):
    """Sum a dict of floats over all ranks, in float64."""
    names = sorted(values)
    total = torch.tensor([float(values[n]) for n in names], dtype=torch.float64, device=device)
    if world()[1] > 1:
        torch.distributed.all_reduce(total)
    return dict(zip(names, total.tolist()))


class SpeechLLMBrain(sb.Brain):
    """Trains a :class:`SpeechLanguageModel` phase by phase.

    Arguments
    ---------
    modules : dict
        ``{"model": SpeechLanguageModel}``.
    schedule : PhaseSchedule
        The phases.
    train_data, valid_data : SpeechData
        Built with the same tasks and packer.
    planner_limits : dict
        ``max_positions``, ``max_frames`` and optionally ``max_rows`` of a micro-batch.
    train_log : str, optional
        JSON-lines file that gets a line an epoch.
    logger_board : speechbrain.utils.train_logger.TensorboardLogger, optional
        Gets the same numbers.
    thresholds : dict, optional
        Of the diagnoses (see ``diagnoses.py``).
    seed : int
        Key of the plans' shuffling.
    num_workers : int
        Of the training loader.
    validate_every : int
        Validate and save every so many epochs of a phase, and always at its last.
    opt_class, hparams, run_opts, checkpointer :
        As in ``sb.Brain``; ``opt_class`` takes parameter groups.

    Example
    -------
    >>> SpeechLLMBrain.__mro__[1].__name__
    'Brain'
    """

    def __init__(
        self,
        modules,
        schedule,
        train_data,
        valid_data,
        planner_limits,
        train_log=None,
        logger_board=None,
        thresholds=None,
        seed=0,
        num_workers=0,
        validate_every=1,
        opt_class=torch.optim.AdamW,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.model = self.modules["model"]
        self.schedule = schedule
        self.train_data = train_data
        self.valid_data = valid_data
        self.train_planner = train_data.planner(**planner_limits)
        self.valid_planner = valid_data.planner(**planner_limits)
        self.train_log = pathlib.Path(train_log) if train_log else None
        self.logger_board = logger_board
        self.thresholds = thresholds or {}
        self.seed = seed
        self.validate_every = validate_every
        self.sampler = StepSampler()
        self.loader = step_loader(train_data, self.sampler, num_workers)
        self.valid_sampler = StepSampler()
        self.valid_loader = step_loader(valid_data, self.valid_sampler)
        self.epoch_counter = sb.utils.epoch_loop.EpochCounter(schedule.num_epochs)
        self.position = None
        self.progress = JsonState(phase_step=0, steps_of_phase=None, seconds=0.0, history=[])
        self.optimizer = None
        self._sums = collections.Counter()
        self._units = collections.defaultdict(ActiveUnits)
        if checkpointer is not None:
            if self.model.front_end is not None:
                checkpointer.add_recoverable("front_end", self.model.front_end, load_module, save_module)
            checkpointer.add_recoverable("llm", self.model.llm)
            checkpointer.add_recoverable("epoch_counter", self.epoch_counter)
            checkpointer.add_recoverable("progress", self.progress)
            checkpointer.add_recoverable("random_state", RandomState())

    # -- one fit over all phases ---------------------------------------------------------------------------

    def train_all(self, progressbar=None):
        """Run every phase that is not done yet, resuming from the last checkpoint."""
        self.fit(self.epoch_counter, self.loader, self.valid_loader, progressbar=progressbar)

    def on_fit_start(self):
        """Recover the last checkpoint, in the phase that wrote it."""
        if self.checkpointer is None:
            return
        self.checkpointer.remove_partial()
        checkpoint = self.checkpointer.find_checkpoint()
        if checkpoint is not None:
            self._enter(self.schedule.at(self.schedule.first_epoch(checkpoint.meta["phase"])))
            if self._is_complete(checkpoint):
                # Nothing is drawn any more: what is left, an evaluation, may run on another number of processes.
                names = [n for n in self.checkpointer.recoverables if n != "random_state"]
                self.checkpointer.load_only(checkpoint, names)
            else:
                self.checkpointer.load_checkpoint(checkpoint)

    def _is_complete(self, checkpoint):
        """Whether a checkpoint was written at the end of the last epoch."""
        counter = checkpoint.paramfiles["epoch_counter"].read_text(encoding="utf-8")
        return checkpoint.meta["end-of-epoch"] and int(counter) >= self.schedule.num_epochs

    def on_stage_start(self, stage, epoch=None):
        """Enter the epoch's phase and plan the epoch."""
        self._sums = collections.Counter()
        self._units = collections.defaultdict(ActiveUnits)
        self._started = time.time()
        if stage == sb.Stage.TRAIN:
            position = self.schedule.at(epoch)
            if self.position is None or self.position.key != position.key:
                previous = self.position
                if previous is not None:
                    self.load_best(previous.key)
                self._enter(position, keep_optimizer=position.phase.keep_optimizer and previous is not None)
                self.progress["phase_step"] = 0
                self.progress["steps_of_phase"] = None
                logger.info(f"Phase {position.key}: {', '.join(position.phase.groups)} train")
            self.position = position
            if self.step == 0:
                # Dropout: what was drawn before training, for a cache say, must not change it. A run that goes on in
                # the middle of an epoch has its generators from the checkpoint.
                torch.manual_seed(keyed_seed("epoch", self.seed, epoch, world()[0]))
            plans = self._plans(position, epoch)
            if self.progress["steps_of_phase"] is None:
                self.progress["steps_of_phase"] = len(plans) * position.phase.epochs
            self.sampler.plans, self.sampler.start = plans, self.step
            waste = self.train_planner.padding_share(plans)
            logger.info(
                f"Epoch {epoch} ({position.key}, {position.epoch} of {position.phase.epochs}): {len(plans)} steps, "
                f"{100 * waste:.1f} % of the packed positions are padding"
            )
        elif stage == sb.Stage.VALID:
            phase, rank_world = self.position.phase, world()
            items = self.valid_data.all_items(sorted(phase.tasks), phase.corpora) if self._validates() else []
            if self._validates() and not items and len(self.valid_data):
                raise ValueError(
                    f"phase {phase.name!r}: no validation record has an answer for {', '.join(sorted(phase.tasks))} "
                    f"in the "
                    f"corpora that it trains on (corpora: {dict(phase.corpora)})"
                )
            self.valid_sampler.plans = self.valid_planner.plan_evaluation(
                items, self.position.key, *rank_world
            )

    def _plans(self, position, epoch):
        items = self.train_data.draw_items(position.phase, position.key, epoch)
        if not items:
            raise ValueError(
                f"phase {position.phase.name!r}: no training record has an answer for "
                f"{', '.join(sorted(position.phase.tasks))} (corpora: {dict(position.phase.corpora)})"
            )
        rank, world_size = world()
        return self.train_planner.plan(
            items,
            position.phase.batch_size,
            epoch,
            position.key,
            self.seed,
            position.phase.step_by_task,
            rank,
            world_size,
        )

    def _validates(self):
        return self.position.last or self.position.epoch % self.validate_every == 0

    def _enter(self, position, keep_optimizer=False):
        """Set what trains, wrap for DDP anew, and build the optimiser."""
        phase = position.phase
        # The reducer of DDP is built for the parameters that train; another phase needs another one.
        self.modules["model"] = self.model
        self.model.set_trainable(phase.groups)
        self.print_trainable_parameters()
        self._wrap_distributed()
        if not keep_optimizer:
            self.init_optimizers()
        self.position = position

    def print_trainable_parameters(self):
        """Log how many parameters the phase trains; before the first phase all are frozen, which needs no warning."""
        if self.modules["model"].trainable_names:
            super().print_trainable_parameters()

    def init_optimizers(self):
        """One optimiser of two groups: matrices with weight decay; biases, norms and layer weights without."""
        decay, plain = [], []
        for p in self.model.parameters():
            if p.requires_grad:
                (decay if p.dim() > 1 else plain).append(p)
        phase = self.position.phase if self.position else self.schedule.at(1).phase
        groups = [
            {"params": decay, "weight_decay": phase.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = self.opt_class([g for g in groups if g["params"]], lr=phase.lr)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    # -- one optimiser step --------------------------------------------------------------------------------

    def fit_batch(self, batch):
        """One optimiser step over the micro-batches of a plan.

        Arguments
        ---------
        batch : list of MicroBatch
            This rank's share of the step.

        Returns
        -------
        torch.Tensor
            The step's loss on this rank's share times the number of ranks, detached.
        """
        phase = self.position.phase
        step, num_steps = self.progress["phase_step"], self.progress["steps_of_phase"]
        beta = phase.beta_at(step, num_steps)
        branches = {n.split(".", 1)[1] for n in self.model.trainable_names if n.startswith("front_end.")}
        counts = {"weight": sum(float(m.packed.label_weights.sum()) for m in batch)}
        for kind in sorted(branches):
            counts[f"frames/{kind}"] = sum(m.num_frames for m in batch if kind in m.speech_kinds)
        counts = _all_sum(counts, self.device)
        world_size = world()[1]
        lr = phase.lr_at(step, num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = 0.0
        for number, micro in enumerate(batch):
            micro = micro.to(self.device)
            with self.no_sync(number < len(batch) - 1):
                with self.training_ctx:
                    terms = self.modules["model"](micro)
                    loss = terms.answer / counts["weight"]
                    for branch, kl in terms.kl.items():
                        if branch in branches:
                            loss = loss + beta * kl / max(counts[f"frames/{branch}"], 1.0)
                self.check_loss_isfinite(loss)
                # DistributedDataParallel averages over ranks; the loss is a sum over them.
                self.scaler.scale(loss * world_size).backward()
            total += loss.detach() * world_size
            self._count(terms, micro)
        self._drop_gradients(batch)
        self.optimizers_step()
        self.progress["phase_step"] = step + 1
        self._sums["beta"] = beta
        self._sums["lr"] = lr
        return total.cpu()

    def _drop_gradients(self, batch):
        """Freezing per step: with ``train_by_task``, only the groups of the step's task move."""
        by_task = self.position.phase.train_by_task
        if not by_task:
            return
        tasks = {t for m in batch for t in m.tasks}
        if len(tasks) != 1:
            raise ValueError(
                f"train_by_task needs steps of one task (step_by_task: true); this one has {sorted(tasks)}"
            )
        moving = set(self.position.phase.train) | set(by_task[tasks.pop()])
        for name in self.model.trainable_names:
            if name not in moving:
                for p in self.model.group_parameters(name):
                    p.grad = None

    def optimizers_step(self):
        """Clip over all parameters (SpeechBrain clips the first group only) and step."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self._sums["grad_norm"] += float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        self._sums["steps"] += 1
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def _count(self, terms, micro):
        sums = self._sums
        sums["nll"] += float(terms.nll_sum)
        sums["tokens"] += float(terms.num_tokens)
        sums["correct"] += float(terms.num_correct)
        sums["weighted"] += float(terms.answer.detach())
        sums["weight"] += float(micro.packed.label_weights.sum())
        for branch, kl in terms.kl.items():
            sums[f"kl/{branch}"] += float(kl.detach())
            sums[f"frames/{branch}"] += micro.num_frames
        for source in micro.sources:
            if source:
                sums[f"sources/{source}"] += 1

    # -- validation, checkpoints, logs ---------------------------------------------------------------------

    @torch.no_grad()
    def evaluate_batch(self, batch, stage):
        """Sums of a validation micro-batch; returns its mean loss."""
        for micro in batch:
            micro = micro.to(self.device)
            with self.evaluation_ctx:
                terms = self.model(micro)
            self._count(terms, micro)
            for branch, latents in terms.latents.items():
                self._units[branch].update(latents, frame_mask(terms.num_frames, latents.shape[1]))
        return torch.tensor(self._sums["weighted"] / max(self._sums["weight"], 1e-9))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the epoch, look for failure signatures, save a checkpoint."""
        raw = {k: v for k, v in self._sums.items() if k not in ("beta", "lr")}
        # Ranks see different branches and sources; the union of names makes the reduction line up.
        names = gather(sorted(raw))
        sums = _all_sum({n: raw.get(n, 0.0) for n in names}, self.device)
        stats = {}
        if sums.get("tokens"):
            stats = {
                "loss": sums["weighted"] / sums["weight"],
                "nll": sums["nll"] / sums["tokens"],
                "token_accuracy": sums["correct"] / sums["tokens"],
            }
            for name, value in sums.items():
                if name.startswith("kl/") and sums.get(f"frames/{name[3:]}"):
                    stats[name] = value / sums[f"frames/{name[3:]}"]
        if stage == sb.Stage.TRAIN:
            stats.update(lr=self._sums["lr"], beta=self._sums["beta"], seconds=time.time() - self._started)
            stats["grad_norm"] = sums.get("grad_norm", 0.0) / max(sums.get("steps", 0.0), 1.0)
            stats["sources"] = {k[8:]: int(v) for k, v in sums.items() if k.startswith("sources/")}
            self._train_stats = stats
            self.progress["seconds"] += stats["seconds"]
        elif stage == sb.Stage.VALID and self._validates():
            for branch, units in self._units.items():
                stats[f"active_units/{branch}"] = int(units.active.sum())
            self._finish_epoch(epoch, stats)

    def _finish_epoch(self, epoch, valid_stats):
        line = {
            "epoch": epoch,
            "phase": self.position.key,
            "train": self._train_stats,
            "valid": valid_stats,
        }
        line["diagnoses"] = diagnose_epoch(line, self.thresholds)
        for diagnosis in line["diagnoses"]:
            logger.warning(diagnosis)
        self.progress["history"].append(line)
        if if_main_process():
            train, valid = self._train_stats, valid_stats
            logger.info(
                f"{self.position.key} epoch {epoch}: train loss {train.get('loss', float('nan')):.4f}, valid loss "
                f"{valid['loss']:.4f}, token accuracy {valid['token_accuracy']:.4f}, {train['seconds']:.0f} s"
            )
            if self.train_log is not None:
                # Written from the recoverable history, so that a resumed run has every line once.
                text = "".join(json.dumps(x) + "\n" for x in self.progress["history"])
                self.train_log.write_text(text, encoding="utf-8")
        if self.logger_board is not None:
            # On every rank: SpeechBrain's main-process functions broadcast their result.
            flat = [
                {k.replace("/", "_"): v for k, v in s.items() if isinstance(v, (int, float))}
                for s in (self._train_stats, valid_stats)
            ]
            self.logger_board.log_stats({"epoch": epoch}, train_stats=flat[0], valid_stats=flat[1])
        self._save(valid_stats["loss"])

    def _save(self, loss=None):
        if self.checkpointer is None:
            return
        meta = {"phase": self.position.key}
        if loss is not None:
            meta["loss"] = float(loss)
        # ``fit`` resets these after the hook that saves at the end of an epoch.
        step, average = self.step, self.avg_train_loss
        if loss is not None:
            self.step, self.avg_train_loss = 0, 0.0
        self.checkpointer.save_checkpoint(meta=meta, end_of_epoch=loss is not None, verbosity=logging.DEBUG)
        self.step, self.avg_train_loss = step, average
        self.checkpointer.keep_best(self.schedule.keys)

    def _save_intra_epoch_ckpt(self):
        self._save()

    def load_best(self, key):
        """Load the weights of the best validation checkpoint of a pass of a phase, by its key.

        Raises
        ------
        ValueError
            If there is none.
        """
        if self.checkpointer is None:
            return
        best = self.checkpointer.best(key)
        if not best:
            raise ValueError(
                f"no checkpoint of phase {key!r} in {self.checkpointer.checkpoints_dir}: train it first"
            )
        logger.info(f"Best of phase {key}: {best[0].path.name} (valid loss {best[0].meta['loss']:.4f})")
        self.checkpointer.load_only(best[0], WEIGHTS)

    # -- evaluation ----------------------------------------------------------------------------------------

    def unwrapped(self):
        """The model without DDP, for generation and scoring."""
        model = self.modules["model"]
        return model.module if isinstance(model, DistributedDataParallel) else model
