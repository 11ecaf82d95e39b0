"""Joining the other processes of a job, as `torchrun` and `accelerate launch` start them."""

from __future__ import annotations

import functools
import os
from datetime import timedelta

import torch
from torch import distributed

from consensus_cli.data.share import ALL, Share
from consensus_cli.errors import JobEndedError, UserError

#: after which a process that waits for the gradients of the others gives up
_TRAINING_TIMEOUT = timedelta(minutes=10)

#: after which a process that ends speaks for itself, where it cannot ask whether another has spoken
_ASKING_TIMEOUT = timedelta(seconds=10)

#: the others have nothing to do while rank 0 measures latency and energy
_WAITING_TIMEOUT = timedelta(days=30)


def world() -> int:
    """Returns the number of processes of this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks(error: BaseException) -> bool:
    """Returns whether this process is the one of its job that says why the job ends.

    Of an error that all have raised it is rank 0, else the first that fails: the others end because of it, or like it.
    """
    leads = os.environ.get("RANK", "0") == "0"
    if world() == 1 or getattr(error, "shared", False):
        return leads
    if isinstance(error, JobEndedError) and not leads:
        return False
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(*place, is_master=False, timeout=_ASKING_TIMEOUT)
        # Where a launcher starts a job again, its first word was another job's.
        return store.add(f"consensus/spoken/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def local_rank() -> int:
    """Returns the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@functools.cache
def join() -> Share:
    """Returns this process's share of the job's work; the first call meets the other processes.

    Raises:
        UserError: the launcher asks for a way to share the model that this package does not support, or nothing but
            `WORLD_SIZE` says that there is a job.
    """
    if world() == 1:
        return ALL
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(variable, "false").lower() == "true":
            refused = UserError(
                f"{variable.removeprefix('ACCELERATE_USE_')} is not supported: surgery needs the whole network",
                "launch with data parallelism alone: torchrun, or accelerate launch --multi_gpu",
            )
            refused.shared = True
            raise refused
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # A script that calls `run` from Python may have met the others already.
    if not distributed.is_initialized():
        try:
            distributed.init_process_group(backend, timeout=_TRAINING_TIMEOUT)
        except ValueError as error:
            raise UserError(
                f"WORLD_SIZE={world()} in the environment, but there is no job to join: {error}",
                "start several processes with torchrun, or unset WORLD_SIZE",
            ) from error
    group = distributed.new_group(backend="gloo", timeout=_WAITING_TIMEOUT)
    return Share(distributed.get_rank(), distributed.get_world_size(), group)
