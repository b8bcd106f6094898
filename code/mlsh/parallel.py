"""Task groups spread over the processes of torchrun. In a process of its own every function here is the identity."""

import os
import sys
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map_only

from mlsh.errors import UserError


class Lost(UserError):
    """Another process does not answer."""


RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
FIRST = RANK == 0  # the process that logs, saves and draws
PATIENCE = timedelta(minutes=30)  # to wait for another process, which may be filming


def start():
    """Join the other processes: NCCL for tensors on a GPU, Gloo for all else."""
    if SIZE > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE is {SIZE}, but the processes do not meet ({str(error).splitlines()[0]:.150}); "
                "start them with torchrun, or unset it"
            ) from None


def stop():
    """Leave the other processes. One that is not the first ends here: as the interpreter goes down, a thread that
    Gloo has left may abort it ("terminate called without an active exception"), and with it the whole run."""
    if SIZE > 1:
        dist.destroy_process_group()
        if not FIRST:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def device(name):
    """The device of this process where the user said `name`: each its own GPU."""
    if SIZE == 1 or not name.startswith("cuda"):
        return name
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {local} for process {RANK}; use a smaller --nproc-per-node, or --device cpu")
    name = f"cuda:{local}"
    torch.cuda.set_device(name)
    return name


def mine(groups):
    """The indices among `groups` task groups that this process plays: neighbours."""
    if groups < SIZE:
        raise UserError(f"{SIZE} processes for {groups} task groups; use --groups {SIZE} or more")
    return np.array_split(range(groups), SIZE)[RANK].tolist()


def _total(x):
    """The sum over the processes of a tensor, in place."""
    _communicate(dist.all_reduce, x)
    return x


total = _total if SIZE > 1 else None  # for `ppo.update`, which alone has nothing to sum


def gather(x):
    """A list of every process's `x`; tensors in it come on the CPU."""
    if SIZE == 1:
        return [x]
    everyones = [None] * SIZE
    _communicate(dist.all_gather_object, everyones, tree_map_only(torch.Tensor, torch.Tensor.cpu, x))
    return everyones


def from_first(call):
    """What `call()` gives in the first process, in all of them; if it exits or is the user's error, all end."""
    if SIZE == 1:
        return call()
    result = [(None, None)]
    if FIRST:
        try:
            result = [(call(), None)]
        except (UserError, SystemExit) as error:
            result = [(None, error)]
    _communicate(dist.broadcast_object_list, result)
    value, error = result[0]
    if error:
        raise error if FIRST or isinstance(error, SystemExit) else SystemExit(2)
    return value


def _communicate(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except RuntimeError as error:
        raise Lost(f"process {RANK} has lost another one ({str(error).splitlines()[0]:.90})") from None
