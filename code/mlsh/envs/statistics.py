"""The statistics that Gymnasium's normalising wrappers keep from one episode to the next, as part of a checkpoint."""

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist


def kept_values(env: gym.Env) -> Iterator[tuple[Any, str]]:
    """Yield each value that a wrapper keeps, as an object and the name of its attribute."""
    layer = env
    while isinstance(layer, gym.Wrapper):
        for name in vars(layer).keys() & {"obs_rms", "return_rms"}:
            yield from ((vars(layer)[name], of_moments) for of_moments in ("mean", "var", "count"))
        if "discounted_reward" in vars(layer):
            yield layer, "discounted_reward"
        layer = layer.env


class RunningStatistics:
    """The statistics in the wrappers of all copies, to be saved like a module. It is false if there are none."""

    def __init__(self, envs: Sequence[gym.Env]) -> None:
        self._values = [list(kept_values(env)) for env in envs]

    def __bool__(self) -> bool:
        return any(self._values)

    def state_dict(self) -> dict[str, Any]:
        """Return the values of the copies of all processes, [copies][values]."""
        own = [[torch.from_numpy(np.array(getattr(*place))) for place in places] for places in self._values]
        return {"copies": [values for of_process in gather(own) for values in of_process]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        counts = gather(len(self._values))
        start = sum(counts[: dist.get_rank()]) if dist.is_initialized() else 0
        if len(state["copies"]) != sum(counts):
            raise ValueError(f"it has the wrappers of {len(state['copies'])} copies, but there are {sum(counts)}")
        for places, values in zip(self._values, state["copies"][start:], strict=False):
            for (owner, name), value in zip(places, values, strict=True):
                is_float = type(getattr(owner, name)) is float  # an array would change the types of later results
                setattr(owner, name, value.item() if is_float else value.numpy().copy())


def gather(x: Any) -> list[Any]:
    """Return a list of every process's `x`."""
    if not dist.is_initialized():
        return [x]
    of_all = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, x)
    return of_all
