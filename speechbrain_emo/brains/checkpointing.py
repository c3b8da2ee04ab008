"""Checkpoints that survive a kill at any moment, and the random states that belong to them."""

import json
import os
import pathlib
import random
import shutil
import uuid

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speechbrain.utils.checkpoints import (
    METAFNAME,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only

PARTIAL_PREFIX = "PARTIAL+"


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer with checkpoints that appear whole or not at all.

    SpeechBrain writes the meta file first and the parameters after it, so that a process killed in between
    leaves a folder that looks like a checkpoint. Here everything is written to a folder with another name,
    flushed to disk and renamed.

    Arguments
    ---------
    checkpoints_dir : str or pathlib.Path
        Where checkpoints are kept.
    **kwargs
        SpeechBrain's own arguments.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> checkpointer = AtomicCheckpointer(folder, recoverables={"model": torch.nn.Linear(1, 1)})
    >>> checkpointer.save_checkpoint(meta={"loss": 1.0}).path.name.startswith("CKPT+")
    True
    """

    def save_checkpoint(self, meta=None, end_of_epoch=True, name=None, verbosity=20):
        """Save all recoverables; see ``speechbrain.utils.checkpoints.Checkpointer``."""
        partial = super().save_checkpoint(meta or {}, end_of_epoch, name, verbosity)
        ddp_barrier()
        if partial is None:
            ddp_barrier()
            return None
        final = partial.path.with_name(partial.path.name.removeprefix(PARTIAL_PREFIX))
        _flush(partial.path)
        os.rename(partial.path, final)
        _flush_folder(final.parent)
        ddp_barrier()
        return next(c for c in self.list_checkpoints() if c.path == final)

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        # Two checkpoints can fall into the same second.
        return path.with_name(f"{PARTIAL_PREFIX}{path.name}+{uuid.uuid4().hex[:6]}")

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(PARTIAL_PREFIX + path.name)

    @main_process_only
    def remove_partial(self):
        """Remove what a killed process left half written."""
        folder = pathlib.Path(self.checkpoints_dir)
        for path in folder.glob(PARTIAL_PREFIX + "*") if folder.is_dir() else ():
            shutil.rmtree(path)

    @main_process_only
    def keep_best(self, phases):
        """Delete all but the newest checkpoint and, of each phase, the one with the lowest validation loss.

        Runs on the main process alone, since others must not list folders that are being removed. A kill in
        between leaves no half checkpoint.

        Arguments
        ---------
        phases : sequence of str
            Values of the meta entry ``phase``.
        """
        kept = {c.path for c in self.find_checkpoints(max_num_checkpoints=1)}
        for phase in phases:
            kept |= {c.path for c in self.best(phase)}
        for checkpoint in self.list_checkpoints():
            if checkpoint.path not in kept:
                doomed = checkpoint.path.with_name(PARTIAL_PREFIX + checkpoint.path.name)
                os.rename(checkpoint.path, doomed)
                shutil.rmtree(doomed)

    def best(self, phase):
        """Checkpoint of a phase with the lowest validation loss: a list of one or none."""
        return self.find_checkpoints(
            min_key="loss", ckpt_predicate=lambda c: c.meta.get("phase") == phase, max_num_checkpoints=1
        )

    def load_only(self, checkpoint, names):
        """Load some of the recoverables of a checkpoint.

        Arguments
        ---------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint
            Where from.
        names : sequence of str
            Which recoverables.
        """
        everything = self.recoverables
        self.recoverables = {n: everything[n] for n in names if n in everything}
        try:
            self.load_checkpoint(checkpoint)
        finally:
            self.recoverables = everything


def _flush(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    _flush_folder(folder)


def _flush_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@register_checkpoint_hooks
class RandomState:
    """Recoverable states of Python's, NumPy's and torch's generators (CPU, and CUDA where it is in use).

    Every rank saves its own, since dropout differs between ranks.

    Example
    -------
    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "rng.ckpt")
    >>> state = RandomState(); state.save(path); a = torch.rand(2)
    >>> state.load(path, True); torch.equal(a, torch.rand(2))
    True
    """

    def _path(self, path):
        return pathlib.Path(f"{path}.rank{int(os.environ.get('RANK', 0))}")

    @mark_as_saver
    def save(self, path):
        """Write the states beside ``path``."""
        version, internal, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            tensors["cuda"] = torch.cuda.get_rng_state()
        meta = {
            "python": json.dumps([version, list(internal), gauss]),
            "numpy": json.dumps([name, position, has_gauss, cached]),
        }
        save_file(tensors, str(self._path(path)), metadata=meta)
        if if_main_process():
            pathlib.Path(path).write_text("states of each rank lie beside this file\n", encoding="utf-8")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Put the states back.

        Raises
        ------
        FileNotFoundError
            If the checkpoint was written by fewer processes.
        """
        del end_of_epoch
        file = self._path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: the checkpoint was written by another number of processes; "
                "resume with the same number (exactness is promised only then)"
            )
        from safetensors import safe_open

        tensors = load_file(str(file))
        with safe_open(str(file), framework="pt") as f:
            meta = f.metadata()
        version, internal, gauss = json.loads(meta["python"])
        random.setstate((version, tuple(internal), gauss))
        name, position, has_gauss, cached = json.loads(meta["numpy"])
        np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(tensors["torch"])
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])


@register_checkpoint_hooks
class JsonState:
    """A recoverable dictionary of plain values, for counters and logs.

    Example
    -------
    >>> state = JsonState(step=0)
    >>> state["step"] += 1
    >>> state["step"]
    1
    """

    def __init__(self, **values):
        self.values = values

    def __getitem__(self, key):
        return self.values[key]

    def __setitem__(self, key, value):
        self.values[key] = value

    @mark_as_saver
    @main_process_only
    def save(self, path):
        """Write JSON."""
        pathlib.Path(path).write_text(json.dumps(self.values), encoding="utf-8")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read JSON."""
        del end_of_epoch
        self.values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


@main_process_only
def save_module(module, path):
    """Save a module's state as safetensors (a checkpointer's custom save hook).

    Arguments
    ---------
    module : torch.nn.Module
        What to save.
    path : str or pathlib.Path
        Target file.
    """
    save_file({k: v.detach().contiguous().cpu() for k, v in module.state_dict().items()}, str(path))


def load_module(module, path, end_of_epoch=True):
    """Load a module's state from safetensors; missing and unexpected keys are an error."""
    del end_of_epoch
    module.load_state_dict(load_file(str(path)), strict=True)


__all__ = ["METAFNAME", "AtomicCheckpointer", "JsonState", "RandomState", "load_module", "save_module"]
