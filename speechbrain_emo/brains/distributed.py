"""Processes that share the work: which one this is, and everybody's results in one place.

Under ``torchrun`` an evaluation deals its recordings out; each is counted once and the scores do not depend on the
number of processes.
"""

import datetime
import os

import torch

# An evaluation's processes wait for the slowest one; torch's own half an hour is short for a large corpus.
_PATIENCE = datetime.timedelta(hours=24)


def world():
    """Rank of this process and the number of processes.

    Returns
    -------
    tuple of int
        (0, 1) where there is one process.

    Example
    -------
    >>> world()
    (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def join_group():
    """Join the processes that ``torchrun`` has started, for results that are Python objects (gloo).

    Returns
    -------
    tuple of int
        As of :func:`world`; without ``torchrun`` nothing happens.

    Example
    -------
    >>> join_group()
    (0, 1)
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    return world()


def leave_group():
    """Wait for the other processes and leave them.

    A process that leaves while another still talks to the group is killed by its threads ("terminate called").

    Example
    -------
    >>> leave_group()
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def gather(items):
    """The items of all processes, those of rank 0 first.

    Arguments
    ---------
    items : list
        Of this process; what it holds can be pickled.

    Returns
    -------
    list
        The same on every process.

    Example
    -------
    >>> gather([3, 1])
    [3, 1]
    """
    count = world()[1]
    if count == 1:
        return list(items)
    parts = [None] * count
    torch.distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]
