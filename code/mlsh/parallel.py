"""Task groups spread over the processes of torchrun. In a process of its own every function here is the identity."""

import functools
import os
import sys
from datetime import timedelta
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map_only

from mlsh import ppo
from mlsh.errors import UserError
from mlsh.minibatches import Minibatches, Rows


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


def gather(x):
    """A list of every process's `x`; tensors in it come on the CPU."""
    if SIZE == 1:
        return [x]
    everyones = [None] * SIZE
    _communicate(dist.all_gather_object, everyones, tree_map_only(torch.Tensor, torch.Tensor.cpu, x))
    return everyones


def _to_each(parts):
    """Send every process its object of `parts`, with tensors on the CPU; returns a list of what all sent to this."""
    received = [None] * SIZE
    for rank, part in enumerate(parts):
        _communicate(dist.gather_object, part, received if rank == RANK else None, dst=rank)
    return received


@functools.cache
def _part(policy, members):
    return policy.part(members)  # compiled once


def update(policy, optimizer, batch, rngs, **settings):
    """`ppo.update` of a policy that all processes have, from all their samples, with the same result in all of them.

    Each process learns some of the members. So there is nothing to communicate within an update, but the samples
    before and the members after it; and with more processes than members the others wait. `optimizer`: an Adam, apart.
    """
    if SIZE == 1:
        return ppo.update(policy, optimizer, batch, rngs, **settings)
    owned = [range(policy.n)[a:b] for a, b in pairwise(policy.n * rank // SIZE for rank in range(SIZE + 1))]
    mine, device = owned[RANK], batch.obs.device
    everyones = gather((rngs, batch.member, batch.group))
    rngs = [rng for theirs, *_ in everyones for rng in theirs]
    begins = np.cumsum([0, *(len(theirs) for theirs, *_ in everyones)]).tolist()
    member = torch.cat([member for _, member, _ in everyones]).numpy()
    group = torch.cat([group + first for (*_, group), first in zip(everyones, begins, strict=False)]).numpy()
    batch = batch._replace(group=batch.group + begins[RANK])
    theirs = [torch.isin(batch.member, torch.arange(r.start, r.stop, device=device)) for r in owned]
    received = _to_each([[x if x is None else x[which].cpu() for x in batch] for which in theirs])
    batch = ppo.Batch(*(x[0] if x[0] is None else torch.cat(x).to(device) for x in zip(*received, strict=True)))
    error, stats = None, {name: torch.full((len(mine),), torch.nan) for name in ppo.FIGURES}
    if len(batch.obs):
        rows = Rows(Minibatches(member, group, policy.n, settings["parts"]), member, mine)
        batch, part = batch._replace(member=batch.member - mine.start), _part(policy, mine)
        try:
            stats = ppo.update(part, optimizer.part(part, mine), batch, rngs, minibatches=rows, **settings)
        except FloatingPointError as found:
            error = str(found)
    errors, stats, members = zip(*gather((error, stats, {k: optimizer.member(k) for k in mine})), strict=True)
    if any(errors):
        raise FloatingPointError(next(filter(None, errors)))
    for k, member in (item for theirs in members for item in theirs.items()):
        optimizer.put(k, member)
    return {name: torch.cat([x[name] for x in stats]).to(device) for name in ppo.FIGURES}


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
