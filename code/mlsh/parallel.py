"""Task groups and sub-policies, spread over the processes of torchrun. A single process communicates nothing."""

import functools
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mlsh import ppo
from mlsh.errors import UserError
from mlsh.minibatches import MemberRows, MinibatchLayout
from mlsh.models import ActorCritic
from mlsh.optim import Adam

T = TypeVar("T")


class Lost(UserError):
    """Another process does not answer."""


def number_in(variable: str, unset: int) -> int:
    """The number in an environment variable: `unset` if it is missing or empty, −1 if it holds something else."""
    text = os.environ.get(variable) or str(unset)
    return int(text) if text.isdecimal() else -1


RANK, SIZE = number_in("RANK", 0), number_in("WORLD_SIZE", 1)
FIRST = RANK == 0  # the process that logs, saves and draws
TIMEOUT = timedelta(minutes=30)  # for another process, which may be filming


def start() -> None:
    """Join the other processes through Gloo, which exchanges tensors on the CPU."""
    if not 0 <= RANK < SIZE:
        named = " and ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in ("RANK", "WORLD_SIZE"))
        raise UserError(f"{named}; start several processes with torchrun, or unset both variables")
    if SIZE > 1:
        try:
            _wait_for(dist.init_process_group, "gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE is {SIZE}, but the processes do not meet ({str(error).splitlines()[0]:.150}); "
                "start them with torchrun, or unset WORLD_SIZE"
            ) from None


def stop() -> None:
    """Leave the other processes. All except the first end here."""
    if SIZE > 1:
        dist.destroy_process_group()
        if not FIRST:
            _exit(0)


def _exit(code: int) -> NoReturn:
    """End this process at once. A thread that Gloo leaves behind may abort an interpreter that shuts down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def local_device(name: str) -> str:
    """The device of this process if the user named `name`: with cuda, each process has a GPU of its own."""
    if SIZE == 1 or not name.startswith("cuda"):
        return name
    local = number_in("LOCAL_RANK", RANK)
    if local >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {local} for process {RANK}; use a smaller --nproc-per-node, or --device cpu")
    name = f"cuda:{local}"
    torch.cuda.set_device(name)
    return name


def own_groups(groups: int) -> list[int]:
    """The indices of the task groups that this process plays: neighbours among all `groups`."""
    if groups < SIZE:
        raise UserError(f"{SIZE} processes for {groups} task groups; use --groups {SIZE} or more")
    return np.array_split(range(groups), SIZE)[RANK].tolist()


def gather(x: T) -> list[T]:
    """A list of every process's `x`, with its tensors on the CPU."""
    if SIZE == 1:
        return [x]
    of_all: list[Any] = [None] * SIZE
    _communicate(dist.all_gather_object, of_all, tree_map_only(Tensor, Tensor.cpu, x))
    return of_all


def from_first(call: Callable[[], T]) -> T:
    """What `call()` returns in the first process, for all processes. If it exits or is a user's error, all end."""
    if SIZE == 1:
        return call()
    result: list[Any] = [(None, None)]
    if FIRST:
        try:
            result = [(call(), None)]
        except (UserError, SystemExit) as error:
            result = [(None, error)]
    _communicate(dist.broadcast_object_list, result)
    value, error = result[0]
    if error and FIRST:
        dist.destroy_process_group()  # a thread that Gloo leaves behind may abort an interpreter that shuts down
        raise error
    if error:
        _exit(2 if isinstance(error, UserError) or error.code else 0)
    return value


def refuse_differences(**started_with: Any) -> None:
    """Raise a UserError in the first process, and end all, if a value that each process names differs between them."""
    of_all = gather(started_with)

    def compare() -> None:
        for name, rank in itertools.product(started_with, range(SIZE)):
            own, other = of_all[0][name], of_all[rank][name]
            if other != own:
                raise UserError(f"process {rank} has another {name} ({other}) than process 0 ({own}); make them equal")

    from_first(compare)


class AllSamples(NamedTuple):
    """The labels and generators of all processes' samples, in rank order; groups are renumbered."""

    rngs: list[np.random.Generator]  # of all groups
    member: np.ndarray  # [S]
    group: np.ndarray  # [S]
    first_group: int  # the number of this process's first group

    @classmethod
    def gathered(cls, rngs: Sequence[np.random.Generator], batch: ppo.Batch) -> "AllSamples":
        processes = gather((list(rngs), batch.member, batch.group))
        groups_before = np.cumsum([0, *(len(rngs) for rngs, _, _ in processes)]).tolist()
        member = torch.cat([member for _, member, _ in processes])
        group = torch.cat([group + n for (_, _, group), n in zip(processes, groups_before, strict=False)])
        all_rngs = [rng for rngs, _, _ in processes for rng in rngs]
        return cls(all_rngs, member.numpy(), group.numpy(), groups_before[RANK])


def update(
    policy: ActorCritic,
    optimizer: Adam,
    batch: ppo.Batch,
    rngs: Sequence[np.random.Generator],
    settings: ppo.PPOSettings,
) -> dict[str, Tensor]:
    """`ppo.update` for a policy that all processes share, from all their samples, with the same result in each.

    Each process updates some of the members. It receives their samples before the update and sends the members after
    it, so nothing is communicated within the update. With more processes than members, the others wait. The `optimizer`
    must have `per_member`.
    """
    if SIZE == 1:
        return ppo.update(policy, optimizer, batch, rngs, settings)
    bounds = [policy.n * rank // SIZE for rank in range(SIZE + 1)]
    owned = [range(first, last) for first, last in itertools.pairwise(bounds)]  # members of each process
    own = owned[RANK]
    every = AllSamples.gathered(rngs, batch)
    received = _exchange(batch._replace(group=batch.group + every.first_group), owned)
    error, figures = None, {name: torch.full((len(own),), torch.nan) for name in ppo.FIGURES}
    if np.isin(every.member, own).any():
        assert received is not None
        layout = MinibatchLayout(every.member, every.group, policy.n, settings.minibatches, policy.splits)
        rows = MemberRows(layout, every.member, own)
        view = _view(policy, own)
        view.compiled = policy.compiled
        mine = received._replace(member=received.member - own.start)
        try:
            figures = ppo.update(view, optimizer.for_members(view, own), mine, every.rngs, settings, rows)
        except FloatingPointError as found:  # passed on to the other processes
            error = str(found)
    learned = {k: optimizer.member_state(k) for k in own}
    errors, all_figures, all_learned = zip(*gather((error, figures, learned)), strict=True)
    for message in filter(None, errors):
        raise FloatingPointError(message)
    for members in all_learned:
        for k, state in members.items():
            optimizer.load_member(k, state)
    return {name: torch.cat([x[name] for x in all_figures]).to(batch.obs.device) for name in ppo.FIGURES}


@functools.cache
def _view(policy: ActorCritic, members: range) -> ActorCritic:
    return policy.view_of(members)  # cached, so that it is compiled once


def _exchange(batch: ppo.Batch, owned: Sequence[range]) -> ppo.Batch | None:
    """Send each process the samples of the members it owns. Returns what this one received, on the batch's device."""
    parts = {}
    for rank, members in enumerate(owned):
        if members:
            which = (batch.member >= members.start) & (batch.member < members.stop)
            parts[rank] = [None if x is None else x[which].cpu() for x in batch]
    received = _send_to_each(parts)
    if received is None:
        return None
    fields: Any = zip(*received, strict=True)
    joined: Any = [None if x[0] is None else torch.cat(x).to(batch.obs.device) for x in fields]
    return ppo.Batch(*joined)


def _send_to_each(parts: Mapping[int, Any]) -> list[Any] | None:
    """Send each process its object of `parts` (rank -> object).

    Returns a list of what all processes sent to this one, or None if `parts` has nothing for it.
    """
    received = None
    for rank, part in parts.items():
        of_all = [None] * SIZE if rank == RANK else None
        _communicate(dist.gather_object, part, of_all, dst=rank)
        received = of_all or received
    return received


def _communicate(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        _wait_for(call, *args, **kwargs)
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0])  # without the place in Gloo's source
        raise Lost(f"process {RANK} has lost another process ({reason:.90})") from None


def _wait_for(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Make a call that waits for other processes in a thread of its own, so that this thread hears signals."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            done.set_result(call(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done.result()
