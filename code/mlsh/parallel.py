"""Task groups, and sub-policies, spread over the processes of torchrun; a process of its own has nothing to share."""

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
    """Join the other processes, by Gloo: what they tell each other are tensors on the CPU."""
    if SIZE > 1:
        try:
            dist.init_process_group("gloo", timeout=PATIENCE)
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
    """Send each of some processes its object of `parts` (rank -> object), with tensors on the CPU.

    Returns a list of what all sent to this one, or None if it is none of them.
    """
    received = None
    for rank, part in parts.items():
        mine = [None] * SIZE if rank == RANK else None
        _communicate(dist.gather_object, part, mine, dst=rank)
        received = mine or received
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
    everyones, own = gather((rngs, batch.member, batch.group)), owned[RANK]
    rngs = [rng for theirs, *_ in everyones for rng in theirs]
    begins = np.cumsum([0, *(len(theirs) for theirs, *_ in everyones)]).tolist()
    member = torch.cat([members for _, members, _ in everyones]).numpy()
    group = torch.cat([groups + first for (*_, groups), first in zip(everyones, begins, strict=False)]).numpy()
    batch = batch._replace(group=batch.group + begins[RANK])
    of = {r: (batch.member >= x.start) & (batch.member < x.stop) for r, x in enumerate(owned) if x}
    received = _to_each({r: [x if x is None else x[which].cpu() for x in batch] for r, which in of.items()})
    error, stats = None, {name: torch.full((len(own),), torch.nan) for name in ppo.FIGURES}
    if np.isin(member, own).any():
        fields = (x[0] if x[0] is None else torch.cat(x).to(batch.obs.device) for x in zip(*received, strict=True))
        mine, part = ppo.Batch(*fields), _part(policy, own)
        rows = Rows(Minibatches(member, group, policy.n, settings["parts"]), member, own)
        mine, adam = mine._replace(member=mine.member - own.start), optimizer.part(part, own)
        try:
            stats = ppo.update(part, adam, mine, rngs, minibatches=rows, **settings)
        except FloatingPointError as found:  # the others learn of it
            error = str(found)
    errors, stats, members = zip(*gather((error, stats, {k: optimizer.member(k) for k in own})), strict=True)
    if any(errors):
        raise FloatingPointError(next(filter(None, errors)))
    for k, learned in (item for theirs in members for item in theirs.items()):
        optimizer.put(k, learned)
    return {name: torch.cat([x[name] for x in stats]).to(batch.obs.device) for name in ppo.FIGURES}


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
        if "memory" in str(error):
            raise
        raise Lost(f"process {RANK} has lost another one ({str(error).splitlines()[0]:.90})") from None
